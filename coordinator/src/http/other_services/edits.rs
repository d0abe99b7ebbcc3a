//! The edit service (*io*). The coordinator forwards requests to it, so that a browser needs no other address.

use std::io::Read;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::Uri;
use axum::http::uri::Scheme;
use tokio::sync::Semaphore;

use crate::http::percent::encoded;
use crate::service::Refusal;

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
        let plain = url.query().is_none() && url.host().is_some();
        match url.scheme() {
            Some(scheme) if plain && (*scheme == Scheme::HTTP || *scheme == Scheme::HTTPS) => {
                Ok(EditUrl(text.trim_end_matches('/').to_owned()))
            }
            _ => Err("use http:// or https:// with a host and at most a path, such as http://edits:8475".into()),
        }
    }
}

#[derive(Clone)]
pub struct Edits {
    url: EditUrl,
    token: Option<String>,
    agent: ureq::Agent,
    room: Arc<Semaphore>,
}

pub(in crate::http) struct Answered {
    /// Content type.
    pub kind: String,
    pub bytes: Vec<u8>,
}

impl Edits {
    /// The service at `url` gets the token with each request.
    pub fn new(url: EditUrl, token: Option<String>) -> Edits {
        let config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false).build();
        Edits { url, token, agent: config.into(), room: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Requests an edited picture (`what` is empty) or the possible edits (`/options`) of an image of a run.
    pub(in crate::http) async fn ask(
        &self,
        run: &str,
        what: &'static str,
        fields: &[(String, String)],
    ) -> Result<Answered, Refusal> {
        proto::keys::check_run(run).map_err(|problem| Refusal::NotFound(format!("run {run:?} {problem}")))?;
        let query =
            fields.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect::<Vec<_>>().join("&");
        let url = format!("{}/v1/runs/{run}/edit{what}?{query}", self.url.0);
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
            return Ok(Answered { kind, bytes });
        }
        let said = serde_json::from_slice::<serde_json::Value>(&bytes).ok();
        let why = said.and_then(|said| Some(said.get("error")?.as_str()?.to_owned()));
        let why = why.unwrap_or_else(|| format!("the edit service answers {status}"));
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
}
