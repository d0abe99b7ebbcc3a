//! HTML for texts from outside, and pages that stand alone. Pure.
//!
//! Names and messages come from data sets and stores: they go into a page through [`Untrusted`], [`UntrustedName`] or
//! [`UntrustedLines`]. A [`page`] loads nothing: style, script and pictures are inside, and its content security policy forbids the
//! rest, so that a name that slipped through the escaping still could not run.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use maud::{DOCTYPE, Markup, PreEscaped, Render, html};
use sha2::{Digest, Sha256};

/// The style of a report; other pages take it too.
pub const STYLE: &str = include_str!("report/report.css");

/// A text that is safe between tags and in a quoted attribute. Control characters, and those that turn the direction of the text
/// around them, are written as Rust escapes.
pub struct Untrusted<'a>(pub &'a str);

impl Render for Untrusted<'_> {
    fn render_to(&self, page: &mut String) {
        for c in self.0.chars() {
            match c {
                '&' => page.push_str("&amp;"),
                '<' => page.push_str("&lt;"),
                '>' => page.push_str("&gt;"),
                '"' => page.push_str("&quot;"),
                '\'' => page.push_str("&#39;"),
                '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => page.extend(c.escape_unicode()),
                c if c.is_control() => page.extend(c.escape_default()),
                c => page.push(c),
            }
        }
    }
}

/// A name that a browser may break after `_`, `/` and `-`. Not for attributes.
pub struct UntrustedName<'a>(pub &'a str);

impl Render for UntrustedName<'_> {
    fn render_to(&self, page: &mut String) {
        for part in self.0.split_inclusive(['_', '/', '-']) {
            Untrusted(part).render_to(page);
            if part.ends_with(['_', '/', '-']) {
                page.push_str("<wbr>");
            }
        }
    }
}

/// A text of several lines, which stay lines.
pub struct UntrustedLines<'a>(pub &'a str);

impl Render for UntrustedLines<'_> {
    fn render_to(&self, page: &mut String) {
        for (i, line) in self.0.lines().enumerate() {
            if i > 0 {
                page.push('\n');
            }
            Untrusted(line).render_to(page);
        }
    }
}

/// A page of `main` with these styles. With a script the root has the class `static`, which the script removes.
pub fn page(title: &str, styles: &[&str], script: Option<&str>, main: &Markup) -> String {
    let policy = format!(
        "default-src 'none'; img-src data:; style-src {}; script-src {}; base-uri 'none'; form-action 'none'",
        hashes(styles),
        hashes(script.as_slice()),
    );
    let page = html! {
        (DOCTYPE)
        html lang="en" class=[script.map(|_| "static")] {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(policy);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="referrer" content="no-referrer";
                link rel="icon" href="data:,";
                title { (Untrusted(title)) " · basin" }
                @for style in styles { style { (PreEscaped(style)) } }
            }
            body {
                main { (main) }
                @if let Some(script) = script { script { (PreEscaped(script)) } }
            }
        }
    };
    page.into_string() + "\n"
}

/// The sources of a content security policy that allow these texts and no others.
fn hashes(texts: &[&str]) -> String {
    if texts.is_empty() {
        return "'none'".to_owned();
    }
    let hash = |text: &&str| format!("'sha256-{}'", BASE64.encode(Sha256::digest(text.as_bytes())));
    texts.iter().map(hash).collect::<Vec<_>>().join(" ")
}

/// `data:` URL of a PNG.
pub fn png_url(png: &[u8]) -> String {
    let mut url = "data:image/png;base64,".to_owned();
    BASE64.encode_string(png, &mut url);
    url
}

/// A PNG inside the page.
pub fn picture(alt: &str, png: &[u8]) -> Markup {
    html! { img alt=(Untrusted(alt)) src=(png_url(png)); }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(text: impl Render) -> String {
        text.render().into_string()
    }

    #[test]
    fn text_can_neither_leave_its_place_nor_turn_the_line() {
        assert_eq!(rendered(Untrusted("<a href='x'>&\"")), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;");
        assert_eq!(rendered(Untrusted("a\0\u{1b}[2J\u{202e}gnp.exe ümlaut")), "a\\u{0}\\u{1b}[2J\\u{202e}gnp.exe ümlaut");
        assert_eq!([rendered(Untrusted("a\n<b>")), rendered(UntrustedLines("a\n<b>\r\n"))], ["a\\n&lt;b&gt;", "a\n&lt;b&gt;"]);
    }

    #[test]
    fn a_name_breaks_between_its_words_and_stays_text() {
        assert_eq!(rendered(UntrustedName("a_b/c-d.png")), "a_<wbr>b/<wbr>c-<wbr>d.png");
        assert_eq!(rendered(UntrustedName("</script>_")), "&lt;/<wbr>script&gt;_<wbr>");
    }
}
