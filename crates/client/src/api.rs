//! What the coordinator's HTTP API takes and answers. Plain data.

use std::collections::BTreeMap;

use proto::{Alive, FailureReason, Params, RunRecord, RunState};
use serde::{Deserialize, Serialize};

/// How the refusal of a run ends that is there already with the same settings.
pub const SAME_SETTINGS: &str = "is there already, with the same settings";

/// An answer that is a sentence for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Note {
    pub note: String,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorAnswer {
    pub error: String,
}

/// How a run stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunStatus {
    /// Name of the run.
    pub name: String,
    /// Whether its jobs are handed out.
    pub state: RunState,
    /// Higher comes first.
    pub priority: i32,
    /// Most jobs started each minute.
    pub per_minute: Option<f64>,
    /// Images in all.
    pub images: usize,
    /// With a result from before the coordinator started.
    pub skipped: usize,
    /// With a result, since then.
    pub succeeded: usize,
    /// With a failure.
    pub failed: usize,
    /// In a worker's hands.
    pub started: usize,
    /// On the queue, and not begun.
    pub queued: usize,
    /// Not on the queue yet.
    pub waiting: usize,
    /// By class, of the images with a result.
    pub classes: Vec<ClassStatus>,
    /// By super-class, of the same images; empty where the model has none.
    pub super_classes: Vec<ClassStatus>,
    /// Results that are not in `classes` yet: they are read one after another.
    pub unread: usize,
    /// Images settled each hour, lately.
    pub per_hour: Option<f64>,
    /// Seconds until all are settled, at that rate.
    pub eta_seconds: Option<f64>,
    /// Mean seconds of each stage of an image, since the coordinator started.
    pub stage_seconds: BTreeMap<String, f64>,
    /// What all images may cost, in dollars, where the price of a worker's hour is known.
    pub cost: Option<f64>,
    /// Why it cannot go on now.
    pub problem: Option<String>,
}

/// Errors of a class, or of a super-class, so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassStatus {
    /// Its name.
    pub class: String,
    /// Super-class of the class, where the model has such.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub super_class: Option<String>,
    /// Images.
    pub images: u64,
    /// Mean training loss of the best seed.
    pub loss: Option<f64>,
    /// Mean L1 of the best seed.
    pub l1: Option<f64>,
    /// Mean LPIPS of the best seed.
    pub lpips: Option<f64>,
    /// Standard error of that mean.
    pub lpips_standard_error: Option<f64>,
}

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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its name.
    pub name: String,
    /// Seconds since it was heard of.
    pub silent_seconds: f64,
    /// What it said.
    #[serde(flatten)]
    pub alive: Alive,
}

/// Where a run comes from: what is in the home's index of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// What it is.
    #[serde(flatten)]
    pub record: RunRecord,
    /// When it began, in seconds since 1970, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began: Option<u64>,
}

/// Which images, in which order. What is absent asks for nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageQuery {
    /// Name of a class, in any case.
    pub class: String,
    /// Name of a super-class, in any case.
    pub super_class: String,
    /// With a result, or with a failure.
    pub state: Option<ImageState>,
    /// Kind of the failure.
    pub reason: Option<FailureReason>,
    /// Part of the image's key, in any case.
    pub image: String,
    /// Smallest loss.
    pub min_loss: Option<f64>,
    /// Largest loss.
    pub max_loss: Option<f64>,
    /// What comes first.
    pub sort: ImageSort,
    /// The other way round.
    pub descending: bool,
    /// Images that are left out at the beginning.
    pub offset: usize,
    /// Images at most; 0: [`ImageQuery::LIMIT`].
    pub limit: usize,
}

impl ImageQuery {
    /// Images of a page, where none is asked for; and at most.
    pub const LIMIT: usize = 100;
    /// Images of a page at most.
    pub const MOST: usize = 1000;
}

/// How an image ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageState {
    /// With a result.
    Succeeded,
    /// With a failure.
    Failed,
}

/// By what images are sorted; images that have it not come last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageSort {
    /// Key in the data set.
    #[default]
    Image,
    /// Name of the class.
    Class,
    /// Training loss.
    Loss,
    /// L1.
    L1,
    /// LPIPS.
    Lpips,
}

/// An image for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageRow {
    /// Key in the data set.
    pub image: String,
    /// Name of the class, if known.
    pub class: Option<String>,
    /// How it ended.
    pub state: ImageState,
    /// Training loss of the best seed.
    pub loss: Option<f64>,
    /// L1 of the best seed.
    pub l1: Option<f64>,
    /// LPIPS of the best seed.
    pub lpips: Option<f64>,
    /// Kind of the failure.
    pub reason: Option<FailureReason>,
    /// What the failure says.
    pub message: Option<String>,
}

/// Some of the images that meet a query.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImagePage {
    /// Images that meet it in all.
    pub total: usize,
    /// Those that were asked for.
    pub images: Vec<ImageRow>,
}

/// Failures of one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FailureGroup {
    /// The kind.
    pub reason: FailureReason,
    /// How many.
    pub images: usize,
    /// Some of them.
    pub examples: Vec<ImageRow>,
}
