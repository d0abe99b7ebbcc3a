//! The coordinator's HTTP API: its types, and a client that speaks it.

pub mod api;

use std::path::{Path, PathBuf};
use std::time::Duration;

use api::{Change, FailureGroup, Note, RedriveRequest, RunRequest, RunStatus, SAME_SETTINGS, WorkerStatus};
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body, RequestBuilder};

/// Time limit of a request that may start work, such as `submit`.
pub const LONG: Duration = Duration::from_secs(600);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The token's file cannot be read.
    #[error("cannot read {}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Nothing answered in time.
    #[error("the coordinator at {base} does not answer")]
    Unreachable {
        /// URL of the coordinator.
        base: String,
        /// Why.
        source: Box<ureq::Error>,
    },
    /// The answer ended too early.
    #[error("the coordinator's answer broke off")]
    Broken(#[source] Box<ureq::Error>),
    /// The coordinator answered with an error.
    #[error("the coordinator refuses: {why}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// Its message.
        why: String,
    },
    /// The answer is not JSON of the expected form.
    #[error("the coordinator's answer is not what this version expects")]
    Unexpected(#[source] serde_json::Error),
}

impl ClientError {
    /// Whether asking again may help. A coordinator that has just started does not know its runs yet, hence 404.
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

/// Speaks to a coordinator. Blocks.
pub struct Client {
    agent: Agent,
    base: String,
    token: Option<String>,
}

impl Client {
    /// `base`: URL of the coordinator; `limit`: longest time for an answer.
    pub fn new(base: &str, token: Option<String>, limit: Duration) -> Client {
        let config = Agent::config_builder().http_status_as_error(false).timeout_global(Some(limit));
        Client { agent: config.build().into(), base: base.trim_end_matches('/').to_owned(), token }
    }

    /// URL of the coordinator.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// All runs.
    pub fn runs(&self) -> Result<Vec<RunStatus>, ClientError> {
        self.get("/v1/runs")
    }

    /// One run, with its errors by class.
    pub fn run(&self, name: &str) -> Result<RunStatus, ClientError> {
        self.get(&format!("/v1/runs/{name}"))
    }

    /// Submits a run; the coordinator's note for people. Submitting the same run twice is one run.
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

    /// Projects images of a finished run again; the coordinator's note for people.
    pub fn redrive(&self, name: &str, request: &RedriveRequest) -> Result<String, ClientError> {
        self.post::<Note>(&format!("/v1/runs/{name}/redrive"), request).map(|answer| answer.note)
    }

    /// The failures of a run by reason.
    pub fn failures(&self, name: &str) -> Result<Vec<FailureGroup>, ClientError> {
        self.get(&format!("/v1/runs/{name}/failures"))
    }

    /// The workers that the coordinator heard from lately.
    pub fn workers(&self) -> Result<Vec<WorkerStatus>, ClientError> {
        self.get("/v1/workers")
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
            return serde_json::from_str(&text).map_err(ClientError::Unexpected);
        }
        let why =
            serde_json::from_str::<api::ErrorAnswer>(&text).map_or_else(|_| format!("{status} {text}"), |answer| answer.error);
        Err(ClientError::Refused { status, why })
    }
}
