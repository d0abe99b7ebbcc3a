//! What a study writes: its numbers, its page in two forms, its figures.

use pulldown_cmark::html::push_html;
use pulldown_cmark::{Alignment, Event, Options, Parser, Tag, TagEnd};
use results::report::{Text, plain_page, png_url};
use serde::Serialize;
use store::Store;

use super::chart;
use crate::report::place;

/// Of what Markdown becomes.
const STYLE: &str = "main > h2 { margin-top: 40px; } main > p { color: var(--quiet); margin-top: 8px; max-width: 100ch; }
main > p:has(.scroll) { max-width: none; } span.scroll { display: block; }";

/// A drawing (SVG) or a picture (PNG).
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Name of its file, as the page refers to it.
    pub file: String,
    /// For who does not see it.
    pub alt: String,
    /// The file.
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
    let mut json = serde_json::to_vec_pretty(numbers).expect("plain structs with string keys serialise");
    json.push(b'\n');
    for figure in figures {
        out.put(&figure.file, figure.bytes.clone()).await?;
    }
    let page = html(markdown, figures).into_bytes();
    for (extension, bytes) in [("json", json), ("md", markdown.as_bytes().to_vec()), ("html", page)] {
        out.put(&format!("{study}.{extension}"), bytes).await?;
    }
    say!("page: {} (and {study}.md, {study}.json)", place(out, &format!("{study}.html")));
    Ok(())
}

/// Text as Markdown that stays in its cell of a table and means nothing there.
pub fn cell(text: &str) -> String {
    let mut cell = String::new();
    for c in text.chars() {
        match c {
            '\n' | '\r' => cell.push(' '),
            '\\' | '|' | '`' | '*' | '_' | '~' | '[' | ']' | '<' | '&' => cell.extend(['\\', c]),
            c => cell.push(c),
        }
    }
    cell
}

/// Text as code that stays in its cell of a table.
pub fn code(text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let (fence, gap) = ("`".repeat(longest + 1), if longest > 0 { " " } else { "" });
    format!("{fence}{gap}{}{gap}{fence}", text.replace(['\n', '\r'], " ").replace('|', "\\|"))
}

/// A study's Markdown as one page that loads nothing, with its figures inside.
pub fn html(markdown: &str, figures: &[Figure]) -> String {
    let title = markdown.lines().next().unwrap_or_default().trim_start_matches("# ");
    plain_page(title, &format!("{STYLE}\n{}", chart::STYLE), &body(markdown, figures))
}

/// Where in the Markdown its parser is.
#[derive(Default)]
struct Place {
    /// Of the table's columns: those that are aligned to the left are text, others are numbers.
    columns: Vec<Alignment>,
    /// Of the column of the cell that comes next.
    column: usize,
    in_head: bool,
    in_image: bool,
}

fn body(markdown: &str, figures: &[Figure]) -> String {
    let mut place = Place::default();
    let mut html = String::new();
    push_html(&mut html, Parser::new_ext(markdown, Options::ENABLE_TABLES).filter_map(|event| place.shown(event, figures)));
    html
}

impl Place {
    fn shown<'a>(&mut self, event: Event<'a>, figures: &[Figure]) -> Option<Event<'a>> {
        let html = |html: String| Some(Event::Html(html.into()));
        match event {
            // Nothing that a data set or a path says becomes part of the page.
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
        false => format!("<img alt=\"{}\" src=\"{}\">", Text(alt), png_url(bytes)),
    };
    format!("<span class=\"scroll\">{figure}</span>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_its_markdown_with_the_figures_inside() {
        let markdown = format!(
            "# A study\n\n| | |\n|:--|:--|\n| command | {} |\n\n## Two\n\n| x | y |\n|---|---|\n| {} | 1 |\n\n\
             Some text <script>.\n\n![the grid](a.png)\n\n![bars](b.svg)\n",
            code("a|b 'it'\\''s'"),
            cell("<b> *Bag* __init__\n| [x](y)"),
        );
        let figure = |file: &str, bytes: &[u8]| Figure { file: file.into(), alt: "the grid".into(), bytes: bytes.to_vec() };
        let page = html(&markdown, &[figure("a.png", b"png"), figure("b.svg", b"<svg>here</svg>")]);
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
        assert!(body(&code("a `b` c"), &[]).contains("<code>a `b` c</code>"));
    }
}
