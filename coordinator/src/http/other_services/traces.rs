//! Links to traces.

use std::str::FromStr;

use axum::http::Uri;

/// A URL with `{trace}` in place of a trace's id.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceUrl(String);

const PLACE: &str = "{trace}";

impl TraceUrl {
    /// The URL of a trace. `None`: not an id of a trace; ids come from records, which may be hostile.
    pub fn of(&self, trace: &str) -> Option<String> {
        let is_id = trace.len() == 32 && trace.bytes().all(|b| b.is_ascii_hexdigit());
        is_id.then(|| self.0.replace(PLACE, trace))
    }
}

impl FromStr for TraceUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<TraceUrl, String> {
        if !text.contains(PLACE) {
            return Err(format!("the URL has no {PLACE}: use one such as https://tempo.example/trace/{PLACE}"));
        }
        let example: Uri = text.replace(PLACE, "0").parse().map_err(|_| "not a URL".to_owned())?;
        match (example.scheme_str(), example.host()) {
            (Some("http" | "https"), Some(_)) => Ok(TraceUrl(text.to_owned())),
            _ => Err("use http:// or https:// with a host".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_of_the_web_with_a_place_for_the_trace_is_taken_and_nothing_else() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        let url: TraceUrl = "https://tempo.example/trace/{trace}?x=1".parse().expect("a URL");
        assert_eq!(url.of(id), Some(format!("https://tempo.example/trace/{id}?x=1")));
        for strange in ["", "4bf9", "../../../../../../../../../../../x", "4bf92f3577b34da6a3ce929d0e0e473g", &id[1..]] {
            assert_eq!(url.of(strange), None, "{strange}");
        }
        for (text, why) in [
            ("https://tempo.example/trace/", "has no {trace}"),
            ("javascript:alert({trace})", "http://"),
            ("ftp://tempo.example/{trace}", "http://"),
            ("/trace/{trace}", "http://"),
            ("https:///{trace}", "URL"),
            ("https://tempo.example/a b/{trace}", "URL"),
        ] {
            let refusal = text.parse::<TraceUrl>().expect_err(text);
            assert!(refusal.contains(why), "{text}: {refusal}");
        }
    }
}
