//! Percent-encoding for queries of URLs and for cookies.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

pub(super) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

/// `a=1&b=2`.
pub(super) fn encoded_query(fields: &[(String, String)]) -> String {
    let field = |(name, value): &(String, String)| format!("{}={}", encoded(name), encoded(value));
    fields.iter().map(field).collect::<Vec<_>>().join("&")
}

/// Bytes that are not UTF-8 become question marks.
pub(super) fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        for text in ["", "a b", "100 %", "ä/%41\u{202e}\n\"<b>", "%", "%4"] {
            let there = encoded(text);
            assert!(there.is_ascii() && !there.contains(['<', ' ', '"', ';', ',']), "{there}");
            assert_eq!(decoded(&there), text);
        }
        assert_eq!([decoded("%"), decoded("%4"), decoded("%zz%41"), decoded("%ff")], ["%", "%4", "%zzA", "\u{fffd}"]);
    }
}
