//! What people ask of the service, and why it is not done.

use proto::{Params, RunState, chain};
use serde::{Deserialize, Serialize};

use crate::dataset::DatasetError;
use crate::run::Error;

/// A run that a person asks for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// 1 to 63 letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// URL of the data set, readable by coordinator and workers.
    pub dataset: String,
    /// `auto`, `none` or a key of the data set.
    #[serde(default = "auto")]
    pub annotations: String,
    /// Name of a model in the home.
    pub model: String,
    /// `paper`, `pix2latent` or `fast`; not together with `params`.
    #[serde(default)]
    pub profile: Option<String>,
    /// All parameters.
    #[serde(default)]
    pub params: Option<Params>,
    /// Everything random follows from it.
    #[serde(default)]
    pub seed: u64,
    /// Only this many images, evenly spread.
    #[serde(default)]
    pub limit: Option<usize>,
    /// Higher comes first.
    #[serde(default)]
    pub priority: i32,
    /// Most jobs started each minute.
    #[serde(default)]
    pub per_minute: Option<f64>,
}

fn auto() -> String {
    "auto".into()
}

/// A change of what should be done with a run; what is absent stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// `running`, `paused` or `cancelled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<RunState>,
    /// Higher comes first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// Most jobs started each minute; 0 lifts the limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_minute: Option<f64>,
}

/// What of a finished run is projected again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedriveRequest {
    /// Images that meet one of these; each is conditions joined by commas. None stands for all failures.
    #[serde(default, rename = "where")]
    pub wheres: Vec<String>,
    /// Takes the place of the run's seed for them; without it only failures are meant.
    #[serde(default)]
    pub seed: Option<u64>,
}

/// A worker, for people.
#[derive(Clone, Debug, Serialize)]
pub struct WorkerStatus {
    /// Its name.
    pub name: String,
    /// Seconds since it was heard of.
    pub silent_seconds: f64,
    /// What it said.
    #[serde(flatten)]
    pub alive: proto::Alive,
}

/// Why something is not done.
#[derive(Clone, Debug)]
pub enum Refusal {
    /// No such run.
    NotFound(String),
    /// It contradicts what is there.
    Conflict(String),
    /// It makes no sense.
    Invalid(String),
    /// Whoever asks may not.
    Forbidden(String),
    /// Whoever asks does so too often.
    TooMany(String),
    /// Not now.
    Unavailable(String),
}

impl Refusal {
    /// For people.
    pub fn message(&self) -> &str {
        match self {
            Refusal::NotFound(m) | Refusal::Conflict(m) | Refusal::Invalid(m) => m,
            Refusal::Forbidden(m) | Refusal::TooMany(m) | Refusal::Unavailable(m) => m,
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        let message = chain(&error);
        match error {
            Error::Store(e) | Error::Dataset(DatasetError::Store(e)) if e.is_retryable() => Refusal::Unavailable(message),
            Error::NothingMeant { .. } => Refusal::Conflict(message),
            _ => Refusal::Invalid(message),
        }
    }
}
