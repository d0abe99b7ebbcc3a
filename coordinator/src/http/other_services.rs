//! Other services that the dashboard uses or links to (*io*).

use std::io::Read;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::Uri;
use tokio::sync::Semaphore;

use super::percent::encoded_query;
use crate::service::Refusal;
use client::api::ErrorAnswer;

#[derive(Clone, Default)]
pub struct OtherServices {
    pub traces: Option<TraceUrl>,
    pub edits: Option<Edits>,
}

fn is_web(url: &Uri) -> bool {
    matches!((url.scheme_str(), url.host()), (Some("http" | "https"), Some(_)))
}

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
        is_web(&example).then(|| TraceUrl(text.to_owned())).ok_or_else(|| "use http:// or https:// with a host".into())
    }
}

/// Longest time for an answer. The first one loads a model.
const PATIENCE: Duration = Duration::from_secs(120);
/// Most requests at a time; the service answers one after the other.
const AT_ONCE: usize = 16;
/// Largest answer, in bytes.
const LARGEST: u64 = 32 << 20;

/// URL of `basin serve-edits`, such as `http://edits:8475`.
#[derive(Clone, Debug, PartialEq)]
pub struct EditUrl(String);

impl FromStr for EditUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<EditUrl, String> {
        let url: Uri = text.parse().map_err(|_| "not a URL: use one such as http://edits:8475".to_owned())?;
        if !is_web(&url) || url.query().is_some() {
            return Err("use http:// or https:// with a host and at most a path, such as http://edits:8475".into());
        }
        Ok(EditUrl(text.trim_end_matches('/').to_owned()))
    }
}

/// The edit service. The coordinator forwards requests to it, so that a browser needs no other address.
#[derive(Clone)]
pub struct Edits {
    url: EditUrl,
    token: Option<String>,
    agent: ureq::Agent,
    room: Arc<Semaphore>,
}

impl Edits {
    /// The service at `url` gets the token with each request.
    pub fn new(url: EditUrl, token: Option<String>) -> Edits {
        let config = ureq::Agent::config_builder().tls_config(trust::tls()).timeout_global(Some(PATIENCE));
        let config = config.http_status_as_error(false).build();
        Edits { url, token, agent: config.into(), room: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Requests an edited picture (`what` is empty) or the possible edits (`/options`) of an image of a run. Returns the content type
    /// and the bytes.
    pub(super) async fn ask(
        &self,
        run: &str,
        what: &'static str,
        fields: &[(String, String)],
    ) -> Result<(String, Vec<u8>), Refusal> {
        proto::keys::check_run(run).map_err(|problem| Refusal::NotFound(format!("run {run:?} {problem}")))?;
        let url = format!("{}/v1/runs/{run}/edit{what}?{}", self.url.0, encoded_query(fields));
        let (agent, token) = (self.agent.clone(), self.token.clone());
        let busy = |_| Refusal::TooMany("the edit service is busy: try again in a moment".into());
        let room = self.room.clone().try_acquire_owned().map_err(busy)?;
        let ask = move || {
            let _room = room;
            let mut request = agent.get(&url);
            if let Some(token) = token {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let mut answer = request.call()?;
            let status = answer.status().as_u16();
            let kind = answer.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
            let mut bytes = Vec::new();
            answer.body_mut().as_reader().take(LARGEST).read_to_end(&mut bytes)?;
            Ok::<_, ureq::Error>((status, kind, bytes))
        };
        let asked = tokio::task::spawn_blocking(ask).await.expect("it does not panic");
        let (status, kind, bytes) =
            asked.map_err(|error| Refusal::Unavailable(format!("the edit service does not answer: {error}")))?;
        // Nothing else is forwarded.
        if status == 200 && ["image/png", "application/json"].contains(&kind.as_str()) {
            return Ok((kind, bytes));
        }
        let said = serde_json::from_slice::<ErrorAnswer>(&bytes);
        let why = said.map_or_else(|_| format!("the edit service answers {status}"), |said| said.error);
        Err(match status {
            404 => Refusal::NotFound(why),
            409 => Refusal::Conflict(why),
            422 => Refusal::Invalid(why),
            _ => Refusal::Unavailable(why),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_a_service_is_taken_and_nothing_else() {
        assert_eq!("http://edits:8475/".parse(), Ok(EditUrl("http://edits:8475".into())));
        assert!("https://host/path".parse::<EditUrl>().is_ok());
        for strange in ["", "edits:8475", "file:///etc/passwd", "http://host/?x=", "http:///x", "ftp://host"] {
            assert!(strange.parse::<EditUrl>().is_err(), "{strange}");
        }
    }

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
