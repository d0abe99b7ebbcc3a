//! Text in a CSV file that people open in a spreadsheet, where a cell that begins like a formula is one. Such a text gets a `'` before it,
//! as OWASP advises (CSV injection), and loses it when it is read back. Pure.

use std::borrow::Cow;

const MARK: char = '\'';

/// Whether a spreadsheet may take a text that begins so for a formula.
fn is_formula(first: char) -> bool {
    matches!(first, '=' | '+' | '-' | '@' | '\t' | '\r' | '\n' | '＝' | '＋' | '－' | '＠')
}

/// Whether the text looks like one that got a mark, or needs one.
fn is_ambiguous(text: &str) -> bool {
    text.starts_with(|first| first == MARK || is_formula(first))
}

/// The text as a cell.
pub fn guarded(text: &str) -> Cow<'_, str> {
    let marked = text.strip_prefix(MARK).is_some_and(is_ambiguous);
    if marked || text.starts_with(is_formula) { Cow::Owned(format!("{MARK}{text}")) } else { Cow::Borrowed(text) }
}

/// The text of a cell.
pub fn plain(cell: &str) -> &str {
    cell.strip_prefix(MARK).filter(|text| is_ambiguous(text)).unwrap_or(cell)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cell_is_a_formula_and_every_text_is_read_back() {
        for (text, cell) in [
            ("Bag/1.png", "Bag/1.png"),
            ("", ""),
            ("a=b", "a=b"),
            ("=1+1", "'=1+1"),
            ("=HYPERLINK(\"http://evil.example\")", "'=HYPERLINK(\"http://evil.example\")"),
            ("+1", "'+1"),
            ("-1", "'-1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("\t=1", "'\t=1"),
            ("\r=1", "'\r=1"),
            ("＝1", "'＝1"),
            ("'", "'"),
            ("'n' roll", "'n' roll"),
            ("''", "'''"),
            ("'=1", "''=1"),
            ("''=1", "'''=1"),
        ] {
            assert_eq!(guarded(text), cell);
            assert_eq!(plain(cell), text);
        }
        // As earlier versions wrote it.
        assert_eq!(plain("=1+1"), "=1+1");
    }
}
