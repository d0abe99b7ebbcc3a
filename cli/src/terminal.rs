//! Text for a terminal.

use std::process::ExitCode;

/// A text that a stranger may have written, such as a name that the coordinator sends. Characters that steer the terminal, are
/// invisible or change the direction of text are written as Rust escapes them, so that the line shows what it holds.
pub fn harmless(text: &str) -> String {
    let mut harmless = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\u{ad}'
            | '\u{61c}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}' => harmless.extend(c.escape_unicode()),
            c if c.is_control() => harmless.extend(c.escape_default()),
            c => harmless.push(c),
        }
    }
    harmless
}

/// Prints the problems of a check, or `good` where there are none. Exit code: 0 without problems, else 2.
pub fn list_problems(problems: &[String], good: &str) -> ExitCode {
    for problem in problems {
        say!("  {problem}");
    }
    if problems.is_empty() {
        say!("{good}");
        return ExitCode::SUCCESS;
    }
    ExitCode::from(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strangers_text_steers_nothing() {
        let hostile = "a\u{1b}[2J\u{1b}]0;title\u{7}\r\n\u{202e}gnp\u{200b}\u{9b}31m";
        assert_eq!(harmless(hostile), "a\\u{1b}[2J\\u{1b}]0;title\\u{7}\\r\\n\\u{202e}gnp\\u{200b}\\u{9b}31m");
        assert_eq!(harmless("Bügeleisen 表 ± s3://bucket/x"), "Bügeleisen 表 ± s3://bucket/x");
    }
}
