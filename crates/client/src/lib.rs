//! The coordinator's HTTP API: its types, and a blocking client. Texts in an answer are what the coordinator sent: escape them before
//! they reach a terminal or a page.

pub mod api;

use std::path::{Path, PathBuf};
use std::time::Duration;

use api::{Change, FailureGroup, LogEntry, Note, Outage, RedriveRequest, RunRequest, RunStatus, SAME_SETTINGS, WorkerStatus};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body, RequestBuilder};

/// Time limit of a request that may start work, such as `submit`.
pub const LONG: Duration = Duration::from_secs(600);
/// Time limit of a request that is repeated until a run ends.
pub const SHORT: Duration = Duration::from_secs(10);

/// Why a request has no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot read the token file {}", path.display())]
    Token { path: PathBuf, source: std::io::Error },
    #[error("the coordinator at {base} does not answer")]
    Unreachable { base: String, source: Box<ureq::Error> },
    /// The connection broke before the answer was complete.
    #[error("the connection to the coordinator broke during its answer")]
    Broken(#[source] Box<ureq::Error>),
    /// `why` is the coordinator's own message.
    #[error("the coordinator refuses: {why}")]
    Refused { status: StatusCode, why: String },
    /// The answer is not JSON of the expected form.
    #[error("the coordinator's answer is not what this version of basin expects")]
    Unexpected(#[source] serde_json::Error),
}

impl ClientError {
    /// Whether the same request may succeed later. 404 counts: a coordinator that has just started does not know its runs yet.
    pub fn may_pass(&self) -> bool {
        match self {
            ClientError::Refused { status, .. } => {
                status.is_server_error() || [StatusCode::NOT_FOUND, StatusCode::TOO_MANY_REQUESTS].contains(status)
            }
            ClientError::Unreachable { .. } | ClientError::Broken(_) => true,
            ClientError::Token { .. } | ClientError::Unexpected(_) => false,
        }
    }
}

/// The token in `file`, or in the environment variable `BASIN_TOKEN`.
pub fn token(file: Option<&Path>) -> Result<Option<String>, ClientError> {
    let text = match file {
        Some(path) => {
            let read = std::fs::read_to_string(path);
            Some(read.map_err(|source| ClientError::Token { path: path.to_owned(), source })?)
        }
        None => std::env::var("BASIN_TOKEN").ok(),
    };
    Ok(text.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()))
}

/// A connection to one coordinator. Every call blocks until the answer or the time limit.
pub struct Client {
    agent: Agent,
    base: String,
    token: Option<String>,
}

impl Client {
    /// `base`: URL of the coordinator; `limit`: longest time for an answer.
    pub fn new(base: &str, token: Option<String>, limit: Duration) -> Client {
        let config = Agent::config_builder().tls_config(trust::tls()).http_status_as_error(false).timeout_global(Some(limit));
        Client { agent: config.build().into(), base: base.trim_end_matches('/').to_owned(), token }
    }

    /// URL of the coordinator, without a slash at its end.
    pub fn base(&self) -> &str {
        &self.base
    }

    pub fn runs(&self) -> Result<Vec<RunStatus>, ClientError> {
        self.get("/v1/runs")
    }

    /// One run, with its errors by class.
    pub fn run(&self, name: &str) -> Result<RunStatus, ClientError> {
        self.get(&format!("/v1/runs/{name}"))
    }

    /// Submits a run and returns the coordinator's note for people. To submit the same run again is not an error: a Kubernetes Job
    /// does that when its pod is lost.
    pub fn submit(&self, request: &RunRequest) -> Result<String, ClientError> {
        match self.post::<Note>("/v1/runs", request) {
            Ok(Note { note }) => Ok(note),
            Err(error @ ClientError::Refused { status: StatusCode::CONFLICT, .. })
                if error.to_string().ends_with(SAME_SETTINGS) =>
            {
                Ok(error.to_string())
            }
            Err(error) => Err(error),
        }
    }

    /// Pauses, resumes or cancels a run, or changes its priority or rate.
    pub fn change(&self, name: &str, change: &Change) -> Result<RunStatus, ClientError> {
        let request = self.agent.patch(format!("{}/v1/runs/{name}", self.base));
        self.read(self.authorized(request).send_json(change))
    }

    /// Has a run deleted that has ended, and returns the coordinator's note for people. The run is there until its objects are gone.
    pub fn delete(&self, name: &str) -> Result<String, ClientError> {
        let request = self.agent.delete(format!("{}/v1/runs/{name}", self.base));
        self.read::<Note>(self.authorized(request).call()).map(|answer| answer.note)
    }

    /// The newest changes, of one run or of all, the newest first.
    pub fn log(&self, run: Option<&str>, limit: usize) -> Result<Vec<LogEntry>, ClientError> {
        let of = run.map(|run| format!("&run={run}")).unwrap_or_default();
        self.get(&format!("/v1/log?limit={limit}{of}"))
    }

    /// Redrives images of a finished run and returns the coordinator's note for people.
    pub fn redrive(&self, name: &str, request: &RedriveRequest) -> Result<String, ClientError> {
        self.post::<Note>(&format!("/v1/runs/{name}/redrive"), request).map(|answer| answer.note)
    }

    /// The failures of a run by reason.
    pub fn failures(&self, name: &str) -> Result<Vec<FailureGroup>, ClientError> {
        self.get(&format!("/v1/runs/{name}/failures"))
    }

    /// The workers whose heartbeats the coordinator has received lately.
    pub fn workers(&self) -> Result<Vec<WorkerStatus>, ClientError> {
        self.get("/v1/workers")
    }

    /// What the coordinator waits for now; none from an older coordinator.
    pub fn outages(&self) -> Result<Vec<Outage>, ClientError> {
        self.get("/v1/outages")
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.read(self.authorized(self.agent.get(format!("{}{path}", self.base))).call())
    }

    fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        self.read(self.authorized(self.agent.post(format!("{}{path}", self.base))).send_json(body))
    }

    fn authorized<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match &self.token {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    fn read<T: DeserializeOwned>(&self, answer: Result<Response<Body>, ureq::Error>) -> Result<T, ClientError> {
        let unreachable = |source| ClientError::Unreachable { base: self.base.clone(), source: Box::new(source) };
        let mut answer = answer.map_err(unreachable)?;
        let status = answer.status();
        let text = answer.body_mut().read_to_string().map_err(|error| ClientError::Broken(Box::new(error)))?;
        if status.is_success() {
            let answer = serde_json::from_str(&text).map(without_nulls);
            return answer.and_then(serde_json::from_value).map_err(ClientError::Unexpected);
        }
        let why =
            serde_json::from_str::<api::ErrorAnswer>(&text).map_or_else(|_| format!("{status} {text}"), |answer| answer.error);
        Err(ClientError::Refused { status, why })
    }
}

/// JSON has `null` for a number that is not finite, such as a rate that a worker reports: it counts as missing.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(fields.map(|(name, value)| (name, without_nulls(value))).collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_answer_with_missing_counts_and_numbers_that_are_not_finite_is_read() {
        let run =
            json!({ "name": "r", "state": "running", "stage_seconds": { "fetch": null, "publish": 1.0 }, "per_hour": null });
        let run: RunStatus = serde_json::from_value(without_nulls(run)).expect("a run");
        assert_eq!((run.images, run.per_hour, run.stage_seconds.len()), (0, None, 1));
        let worker = json!({ "name": "w", "images": 2, "lane_steps_per_second": null });
        let worker: WorkerStatus = serde_json::from_value(without_nulls(worker)).expect("a worker");
        assert_eq!((worker.alive.images, worker.alive.lane_steps_per_second, worker.silent_seconds), (2, 0.0, 0.0));
    }
}
