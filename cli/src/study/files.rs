//! What a study writes: its numbers, its page in two forms, its figures.

use std::fmt::Write;

use coordinator::report::{Text, plain_page, png_url};
use serde::Serialize;
use store::Store;

use super::chart;
use crate::report::place;

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

/// Text that stays in its cell of a Markdown table.
pub fn cell(text: &str) -> String {
    text.replace(['\n', '\r'], " ").replace('|', "\\|")
}

/// A study's Markdown as one page that loads nothing: headings, tables, figures on lines of their own, paragraphs, code.
pub fn html(markdown: &str, figures: &[Figure]) -> String {
    let title = markdown.lines().next().unwrap_or_default().trim_start_matches("# ");
    plain_page(title, chart::STYLE, &body(markdown, figures))
}

fn body(markdown: &str, figures: &[Figure]) -> String {
    let mut body = String::new();
    for block in markdown.split("\n\n").map(str::trim).filter(|block| !block.is_empty()) {
        if let Some(heading) = block.strip_prefix("## ") {
            body += &format!("<h2>{}</h2>\n", inline(heading));
        } else if let Some(heading) = block.strip_prefix("# ") {
            body += &format!("<h1>{}</h1>\n", inline(heading));
        } else if block.starts_with('|') {
            body += &table(block);
        } else if let Some((alt, file)) =
            block.strip_prefix("![").and_then(|b| b.strip_suffix(')')).and_then(|b| b.split_once("]("))
        {
            body += &figure(alt, figures.iter().find(|figure| figure.file == file));
        } else {
            body += &format!("<p class=\"lead\">{}</p>\n", inline(block));
        }
    }
    body
}

fn table(block: &str) -> String {
    let heads = block.lines().next().is_some_and(|line| !cells(line).iter().all(String::is_empty));
    // Without heads it is a list of names and texts.
    let class = if heads { "numbers" } else { "numbers facts" };
    let mut html = format!("<div class=\"scroll\" tabindex=\"0\"><table class=\"{class}\">\n");
    for (i, line) in block.lines().enumerate() {
        let cells = cells(line);
        match i {
            0 if !heads => {}
            0 => {
                let heads = cells.iter().map(|c| format!("<th scope=\"col\">{}</th>", inline(c))).collect::<String>();
                writeln!(html, "<thead><tr>{heads}</tr></thead>").expect("a String takes every write");
            }
            1 => {}
            _ => {
                let others = cells.iter().skip(1).map(|c| format!("<td>{}</td>", inline(c))).collect::<String>();
                let first = cells.first().map(|c| inline(c)).unwrap_or_default();
                writeln!(html, "<tr><th scope=\"row\">{first}</th>{others}</tr>").expect("a String takes every write");
            }
        }
    }
    html + "</table></div>\n"
}

/// Of a line of a table.
fn cells(line: &str) -> Vec<String> {
    let inner = line.trim().trim_start_matches('|');
    let inner = inner.strip_suffix('|').unwrap_or(inner);
    let mut cells = vec![String::new()];
    let mut escaped = false;
    for c in inner.chars() {
        match c {
            '\\' if !escaped => {
                escaped = true;
                continue;
            }
            '|' if !escaped => cells.push(String::new()),
            c => {
                let cell = cells.last_mut().expect("there is one");
                if escaped && c != '|' {
                    cell.push('\\');
                }
                cell.push(c);
            }
        }
        escaped = false;
    }
    cells.into_iter().map(|cell| cell.trim().to_owned()).collect()
}

/// Every other piece between backticks is code.
fn inline(text: &str) -> String {
    let pieces = text.split('`').enumerate();
    pieces.map(|(i, piece)| if i % 2 == 1 { format!("<code>{}</code>", Text(piece)) } else { Text(piece).to_string() }).collect()
}

fn figure(alt: &str, figure: Option<&Figure>) -> String {
    match figure {
        Some(Figure { file, bytes, .. }) if file.ends_with(".svg") => {
            format!("<div class=\"scroll\">{}</div>\n", String::from_utf8_lossy(bytes))
        }
        Some(Figure { bytes, .. }) => {
            format!("<div class=\"scroll\"><img alt=\"{}\" src=\"{}\"></div>\n", Text(alt), png_url(bytes))
        }
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_its_markdown_with_the_figures_inside() {
        let markdown = "# A <b>\n\n| | |\n|---|---|\n| command | `a\\|b 'it'\\''s'` |\n\n## Two\n\n| x | y |\n|---|---|\n| Bag | 1 |\n\n\
                        Some text.\n\n![the grid](a.png)\n\n![bars](b.svg)\n";
        let file = |file: &str, bytes: &[u8]| Figure { file: file.into(), alt: String::new(), bytes: bytes.to_vec() };
        let page = html(markdown, &[file("a.png", b"png"), file("b.svg", b"<svg>here</svg>")]);
        for part in [
            "<title>A &lt;b&gt; · basin</title>",
            "<h1>A &lt;b&gt;</h1>",
            "<tr><th scope=\"row\">command</th><td><code>a|b &#39;it&#39;\\&#39;&#39;s&#39;</code></td></tr>",
            "<thead><tr><th scope=\"col\">x</th><th scope=\"col\">y</th></tr></thead>",
            "<p class=\"lead\">Some text.</p>",
            "<img alt=\"the grid\" src=\"data:image/png;base64,cG5n\">",
            "<svg>here</svg>",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
    }

    #[test]
    fn what_stands_in_a_cell_stays_in_it() {
        assert_eq!(cells(&format!("| {} | b |", cell("a | b\nc"))), ["a | b c", "b"]);
    }
}
