//! What a run is, and what a fleet should do with it. JSON, since people read them.

use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

use crate::result::is_zero;
use crate::{ModelRef, Params};

/// `run.json`, and `index/<run>.json` in a fleet's home: never changes once written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Version of this format: 1.
    pub format: u32,
    /// Name of the run.
    pub name: String,
    /// URL of the data set.
    pub dataset: String,
    /// `auto`, `none` or a file.
    pub annotations: String,
    /// Only this many images, evenly spread.
    pub limit: Option<usize>,
    /// Name of the model.
    pub model: String,
    /// Digest of the model.
    pub model_digest: String,
    /// Width and height of the model's images.
    pub resolution: u32,
    /// What is computed.
    pub params: Params,
    /// Seed of everything random in the run.
    pub seed: u64,
    /// Version of basin that began it.
    pub version: String,
}

impl RunRecord {
    /// A run that this version of basin begins: of all images, with the annotations that are found, and with seed 0.
    pub fn new(name: &str, dataset: String, model: ModelRef, params: Params) -> RunRecord {
        let ModelRef { name: model, digest: model_digest, resolution } = model;
        RunRecord {
            format: 1,
            name: name.into(),
            dataset,
            annotations: "auto".into(),
            limit: None,
            model,
            model_digest,
            resolution,
            params,
            seed: 0,
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

/// `redrives/<n>.json`: images of a run that are projected again, with another seed or the one that they have. Never changes once
/// written; if several name an image, the last one counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RedriveRecord {
    /// Version of this format: 1.
    pub format: u32,
    /// The conditions of the request; each image met at least one of them.
    #[serde(rename = "where")]
    pub wheres: Vec<String>,
    /// Takes the place of the run's seed for these images. Of a retry: what it is already.
    pub seed: u64,
    /// Keys of the images in the data set.
    pub images: Vec<String>,
    /// The record's number, which is the generation of these images' jobs from now on. 0: by a version of basin whose jobs have none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub generation: u64,
}

/// `control/<run>.json`: what a fleet should do with a run now.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Control {
    /// Version of this format: 1.
    pub format: u32,
    /// Whether its jobs are to be computed.
    pub state: RunState,
    /// Runs of higher priority come first.
    pub priority: i32,
    /// Most jobs started each minute; `None`: as fast as the fleet can.
    pub per_minute: Option<f64>,
    /// Epoch of the coordinator that wrote it. 0: by a version of basin that has none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub epoch: u64,
    /// Worker hours after which the coordinator pauses the run; `None`: there is no budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_hours: Option<f64>,
    /// When the run was cancelled or finished, in seconds since 1970; `None`: it has not ended, or a version of basin ended it that did
    /// not say when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<u64>,
    /// The run's objects are being deleted, or are gone. The order stays: a worker that was stopped before the run's end sees that
    /// nothing is to be written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
}

impl Default for Control {
    fn default() -> Control {
        let (state, priority, per_minute, epoch) = (RunState::Running, 0, None, 0);
        Control { format: 1, state, priority, per_minute, epoch, budget_hours: None, ended: None, deleted: false }
    }
}

/// `usage/<run>.json` in a fleet's home: the work that a run has cost. It only grows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Version of this format: 1.
    pub format: u32,
    /// Seconds that workers had images of the run, summed over the workers.
    pub worker_seconds: f64,
}

/// What a coordinator broadcasts when it has written the control of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ControlWritten {
    /// Name of the run.
    pub run: String,
    /// What was written.
    pub control: Control,
}

/// `leader.json` in a fleet's home: who acts. A coordinator that takes the lead replaces it by one of the next epoch, on condition
/// that it is still the one that was read; so each epoch has one coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// Version of this format: 1.
    pub format: u32,
    /// Grows by one with every leadership.
    pub epoch: u64,
    /// Process of the coordinator, for people.
    pub holder: String,
}

/// Where a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum RunState {
    /// Its jobs are handed out.
    #[default]
    Running,
    /// No job is handed out, and workers give back those that they hold.
    Paused,
    /// The run is over without its remaining images.
    Cancelled,
    /// Every image has a result or a failure, and the tables are written.
    Finished,
}

impl RunState {
    /// Whether workers may compute its jobs.
    pub fn may_compute(self) -> bool {
        self == RunState::Running
    }

    /// Whether no job of the run will be published any more. A redrive opens a finished run again.
    pub fn is_closed(self) -> bool {
        matches!(self, RunState::Cancelled | RunState::Finished)
    }

    /// The name used in JSON.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}
