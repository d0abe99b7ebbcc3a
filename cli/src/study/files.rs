//! Writes a study's files (*io*): its numbers, its page as Markdown and as HTML, and its figures.

use maud::{Markup, PreEscaped};
use pulldown_cmark::html::push_html;
use pulldown_cmark::{Alignment, Event, Options, Parser, Tag, TagEnd};
use results::chart::figure;
use results::format;
use results::html::{self, page, picture};
use serde::Serialize;
use store::Store;

use crate::project::place;

/// For HTML made from Markdown.
const STYLE: &str = "main > h2 { margin-top: 40px; } main > p { color: var(--quiet); margin-top: 8px; max-width: 100ch; }
main > p:has(.scroll) { max-width: none; } span.scroll { display: block; }";

/// A drawing (SVG) or a picture (PNG).
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Name of its file, as the page refers to it.
    pub file: String,
    /// Text for a reader who does not see it.
    pub alt: String,
    pub bytes: Vec<u8>,
}

/// Writes `<study>.json`, `<study>.md`, `<study>.html` and the figures.
pub async fn write(
    out: &Store,
    study: &str,
    numbers: &impl Serialize,
    markdown: &str,
    figures: &[Figure],
) -> Result<(), store::Error> {
    for figure in figures {
        out.put(&figure.file, figure.bytes.clone()).await?;
    }
    let html = html_page(markdown, figures).into_bytes();
    for (extension, bytes) in [("json", format::json(numbers)), ("md", markdown.as_bytes().to_vec()), ("html", html)] {
        out.put(&format!("{study}.{extension}"), bytes).await?;
    }
    say!("page: {} (and {study}.md, {study}.json)", place(out, &format!("{study}.html")));
    Ok(())
}

/// A study's Markdown as one page that loads nothing, with its figures inside.
fn html_page(markdown: &str, figures: &[Figure]) -> String {
    let title = markdown.lines().next().unwrap_or_default().trim_start_matches("# ");
    page(title, &[html::STYLE, STYLE, figure::STYLE], None, &body(markdown, figures))
}

/// Position of the Markdown parser.
#[derive(Default)]
struct Position {
    /// Alignment of the table's columns: a column that is aligned to the left is text, others are numbers.
    columns: Vec<Alignment>,
    column: usize,
    in_head: bool,
    in_image: bool,
}

fn body(markdown: &str, figures: &[Figure]) -> Markup {
    let mut position = Position::default();
    let mut html = String::new();
    let events = Parser::new_ext(markdown, Options::ENABLE_TABLES);
    push_html(&mut html, events.filter_map(|event| position.replaced(event, figures)));
    PreEscaped(html)
}

impl Position {
    fn replaced<'a>(&mut self, event: Event<'a>, figures: &[Figure]) -> Option<Event<'a>> {
        let html = |html: String| Some(Event::Html(html.into()));
        match event {
            // A data set's names and paths must not become HTML.
            Event::Html(text) | Event::InlineHtml(text) => Some(Event::Text(text)),
            Event::Start(Tag::Image { dest_url, .. }) => {
                self.in_image = true;
                figures.iter().find(|figure| figure.file == *dest_url).and_then(|figure| html(embedded(figure)))
            }
            Event::End(TagEnd::Image) => {
                self.in_image = false;
                None
            }
            _ if self.in_image => None,
            Event::Start(Tag::Table(columns)) => {
                self.columns = columns;
                html("<div class=\"scroll\" tabindex=\"0\"><table class=\"numbers\">\n".into())
            }
            Event::End(TagEnd::Table) => html("</tbody></table></div>\n".into()),
            Event::Start(Tag::TableHead | Tag::TableRow) => {
                self.column = 0;
                self.in_head = matches!(event, Event::Start(Tag::TableHead));
                Some(event)
            }
            Event::Start(Tag::TableCell) => {
                self.column += 1;
                let text = self.columns.get(self.column - 1) == Some(&Alignment::Left);
                let class = if text { " class=\"text\"" } else { "" };
                html(match (self.in_head, self.column) {
                    (true, _) => format!("<th scope=\"col\"{class}>"),
                    (false, 1) => "<th scope=\"row\">".into(),
                    (false, _) => format!("<td{class}>"),
                })
            }
            Event::End(TagEnd::TableCell) => html(if self.in_head || self.column == 1 { "</th>" } else { "</td>" }.into()),
            event => Some(event),
        }
    }
}

fn embedded(Figure { file, alt, bytes }: &Figure) -> String {
    let figure = match file.ends_with(".svg") {
        true => String::from_utf8_lossy(bytes).into_owned(),
        false => picture(alt, bytes).into_string(),
    };
    format!("<span class=\"scroll\">{figure}</span>")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::markdown::{cell, code};

    #[test]
    fn a_page_is_its_markdown_with_the_figures_inside() {
        let markdown = format!(
            "# A study\n\n| | |\n|:--|:--|\n| command | {} |\n\n## Two\n\n| x | y |\n|---|---|\n| {} | 1 |\n\n\
             Some text <script>.\n\n![the grid](a.png)\n\n![bars](b.svg)\n",
            code("a|b 'it'\\''s'"),
            cell("<b> *Bag* __init__\n| [x](y)"),
        );
        let figure = |file: &str, bytes: &[u8]| Figure { file: file.into(), alt: "the grid".into(), bytes: bytes.to_vec() };
        let page = html_page(&markdown, &[figure("a.png", b"png"), figure("b.svg", b"<svg>here</svg>")]);
        for part in [
            "<title>A study · basin</title>",
            "<h1>A study</h1>",
            "<th scope=\"row\">command</th><td class=\"text\"><code>a|b 'it'\\''s'</code></td>",
            "<th scope=\"col\">x</th><th scope=\"col\">y</th>",
            "<th scope=\"row\">&lt;b&gt; *Bag* __init__ | [x](y)</th><td>1</td>",
            "Some text &lt;script&gt;.",
            "<img alt=\"the grid\" src=\"data:image/png;base64,cG5n\">",
            "<svg>here</svg>",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
    }

    #[test]
    fn code_with_backticks_is_code() {
        assert!(body(&code("a `b` c"), &[]).into_string().contains("<code>a `b` c</code>"));
    }
}
