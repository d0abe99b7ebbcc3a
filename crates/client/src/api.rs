//! What the coordinator's HTTP API takes and answers. Plain data.

use std::collections::BTreeMap;

use proto::{Alive, FailureReason, Params, RunRecord, RunState};
use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::{Object, ObjectBuilder, Type};
use utoipa::{IntoParams, ToResponse, ToSchema};

/// End of the refusal of a run that exists with the same settings.
pub const SAME_SETTINGS: &str = "is there already, with the same settings";

/// A sentence for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Note {
    pub note: String,
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToResponse, ToSchema)]
#[response(description = "Why the request is refused")]
pub struct ErrorAnswer {
    pub error: String,
}

/// State and progress of a run. A missing count is 0, so that a client can read the answer of an older coordinator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunStatus {
    pub name: String,
    #[schema(schema_with = run_states)]
    pub state: RunState,
    /// Higher comes first.
    #[serde(default)]
    pub priority: i32,
    /// Most jobs published each minute.
    pub per_minute: Option<f64>,
    /// Images of the run.
    #[serde(default)]
    pub images: usize,
    /// With a result from before the coordinator started.
    #[serde(default)]
    pub skipped: usize,
    /// With a result since the coordinator started.
    #[serde(default)]
    pub succeeded: usize,
    /// With a failure.
    #[serde(default)]
    pub failed: usize,
    /// With a worker.
    #[serde(default)]
    pub started: usize,
    /// On the queue.
    #[serde(default)]
    pub queued: usize,
    /// Not on the queue yet.
    #[serde(default)]
    pub waiting: usize,
    /// Errors by class, of the images with a result.
    #[serde(default)]
    pub classes: Vec<ClassStatus>,
    /// Errors by super-class, of the same images; empty if the model has no super-classes.
    #[serde(default)]
    pub super_classes: Vec<ClassStatus>,
    /// Results that are not in `classes` yet: they are read one after another.
    #[serde(default)]
    pub unread: usize,
    /// Images finished an hour, over the last ten minutes.
    pub per_hour: Option<f64>,
    /// Seconds until all images are finished, at that rate.
    pub eta_seconds: Option<f64>,
    /// Mean seconds of each stage of an image, since the coordinator started.
    #[serde(default)]
    pub stage_seconds: BTreeMap<String, f64>,
    /// Estimated dollars for all images, if the price of a worker's hour is known.
    pub cost: Option<f64>,
    /// Why the run cannot continue now.
    pub problem: Option<String>,
    /// Worker hours so far: how long workers had images of the run, summed over the workers.
    #[serde(default)]
    pub worker_hours: f64,
    /// Worker hours after which the coordinator pauses the run.
    pub budget_hours: Option<f64>,
    /// Why the coordinator has paused the run.
    pub paused_because: Option<String>,
    /// When it was cancelled or finished, in seconds since 1970.
    pub ended: Option<u64>,
    /// The run is being deleted: objects deleted so far.
    pub deleting: Option<usize>,
    /// Why a notification about the run is not delivered.
    pub notification_problem: Option<String>,
}

/// Mean errors of the best seeds of a class, or of a super-class, so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClassStatus {
    pub class: String,
    /// Super-class of a class, if the model has super-classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub super_class: Option<String>,
    pub images: u64,
    /// Training loss.
    pub loss: Option<f64>,
    pub l1: Option<f64>,
    pub lpips: Option<f64>,
    /// Standard error of the mean LPIPS.
    pub lpips_standard_error: Option<f64>,
}

/// A run to submit.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// 1 to 63 letters, digits, `-`, `_` and `.`.
    #[schema(max_length = 63)]
    pub name: String,
    /// URL or absolute path of the data set, readable by coordinator and workers.
    pub dataset: String,
    /// `auto`, `none` or a key of the data set.
    #[serde(default = "auto")]
    #[schema(default = "auto")]
    pub annotations: String,
    /// Name of a model in the home.
    pub model: String,
    /// Default `paper`; not together with `params`.
    #[serde(default)]
    #[schema(schema_with = profiles)]
    pub profile: Option<String>,
    /// All parameters, as `basin params` prints them.
    #[schema(value_type = Option<Object>)]
    pub params: Option<Params>,
    /// Run seed: all random numbers follow from it.
    #[serde(default)]
    pub seed: u64,
    /// Project only this many images, evenly spread.
    pub limit: Option<usize>,
    /// Higher comes first.
    #[serde(default)]
    pub priority: i32,
    /// Most jobs published each minute.
    pub per_minute: Option<f64>,
    /// Worker hours after which the coordinator pauses the run.
    pub budget_hours: Option<f64>,
}

impl RunRequest {
    /// All images, with the profile `paper`.
    pub fn new(name: &str, dataset: &str, model: &str) -> RunRequest {
        RunRequest {
            name: name.into(),
            dataset: dataset.into(),
            annotations: auto(),
            model: model.into(),
            profile: None,
            params: None,
            seed: 0,
            limit: None,
            priority: 0,
            per_minute: None,
            budget_hours: None,
        }
    }
}

fn auto() -> String {
    "auto".into()
}

fn names(names: impl IntoIterator<Item = &'static str>) -> Object {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(names)).build()
}

fn profiles() -> Object {
    names(Params::PROFILES)
}

fn run_states() -> Object {
    names(["running", "paused", "cancelled", "finished"])
}

/// The states that a client can set.
fn settable_states() -> Object {
    names(["running", "paused", "cancelled"])
}

/// A change of a run; what is absent stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Change {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = settable_states)]
    pub state: Option<RunState>,
    /// Higher comes first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// Most jobs published each minute; 0 removes the limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_minute: Option<f64>,
    /// Worker hours after which the coordinator pauses the run; 0 removes the budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_hours: Option<f64>,
}

/// Images of a finished run to project again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RedriveRequest {
    /// Images that match one of these; each is conditions joined by commas: `class=Bag,reason=diverged` or `loss>1.5`. In a value of
    /// `image`, `*` stands for any text, and `\*` for a star. Empty: all failures.
    #[serde(default, rename = "where")]
    pub wheres: Vec<String>,
    /// Replaces the run seed for these images. Without it, only failures are redriven.
    pub seed: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WorkerStatus {
    pub name: String,
    /// Seconds since its last heartbeat.
    #[serde(default)]
    pub silent_seconds: f64,
    /// Its last heartbeat.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub alive: Alive,
}

/// Something that the coordinator waits for. Nothing that it holds up counts as failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Outage {
    /// `store` or `broker`.
    pub what: String,
    /// For people.
    pub why: String,
    /// Seconds since it began.
    pub seconds: f64,
}

impl Outage {
    /// What is waited for, without the time.
    pub fn text(&self) -> String {
        format!("waiting for the {}, nothing counts as failed: {}", self.what, self.why)
    }
}

/// Origin of a run: its entry in the index of the home.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    #[serde(flatten)]
    pub record: RunRecord,
    /// When it was submitted, in seconds since 1970; `None` for runs of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began: Option<u64>,
}

/// Which images of a run, in which order. What is absent restricts nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields, default)]
pub struct ImageQuery {
    /// Name of a class, in any case.
    #[param(required = false)]
    pub class: String,
    /// Name of a super-class, in any case.
    #[param(required = false)]
    pub super_class: String,
    #[param(inline)]
    pub state: Option<ImageState>,
    /// Reason of a failure.
    #[param(value_type = Option<String>)]
    pub reason: Option<FailureReason>,
    /// Part of the image's key, in any case.
    #[param(required = false)]
    pub image: String,
    /// Smallest loss.
    pub min_loss: Option<f64>,
    /// Largest loss.
    pub max_loss: Option<f64>,
    #[param(inline, required = false)]
    pub sort: ImageSort,
    #[param(required = false, default = false)]
    pub descending: bool,
    /// Images to skip.
    #[param(required = false, default = 0)]
    pub offset: usize,
    /// Most images of a page; 0 is 100.
    #[param(required = false, default = 100, maximum = 1000)]
    pub limit: usize,
}

impl ImageQuery {
    /// Default of [`ImageQuery::limit`].
    pub const LIMIT: usize = 100;
    pub const MOST: usize = 1000;
}

/// Outcome of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageState {
    Succeeded,
    Failed,
}

impl ImageState {
    /// The name used in JSON and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            ImageState::Succeeded => "succeeded",
            ImageState::Failed => "failed",
        }
    }
}

/// Order of images; images without the value come last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageSort {
    #[default]
    Image,
    Class,
    Loss,
    L1,
    Lpips,
}

/// A finished image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ImageRow {
    /// Key in the data set.
    pub image: String,
    pub class: Option<String>,
    pub state: ImageState,
    /// Training loss of the best seed.
    pub loss: Option<f64>,
    /// L1 of the best seed.
    pub l1: Option<f64>,
    /// LPIPS of the best seed.
    pub lpips: Option<f64>,
    /// Reason of the failure.
    #[schema(value_type = Option<String>)]
    pub reason: Option<FailureReason>,
    /// Message of the failure.
    pub message: Option<String>,
}

/// A page of the images that match a query.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ImagePage {
    /// All images that match, on this page or not.
    pub total: usize,
    pub images: Vec<ImageRow>,
}

/// Failures of one reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FailureGroup {
    #[schema(value_type = String)]
    pub reason: FailureReason,
    pub images: usize,
    pub examples: Vec<ImageRow>,
}

/// A change that was made, and by whom.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LogEntry {
    /// Microseconds since 1970.
    pub time: u64,
    /// `submit`, `pause`, `resume`, `cancel`, `priority`, `rate`, `budget`, `redrive` or `delete`; several changes of one request are
    /// joined by `+`.
    pub action: String,
    pub run: String,
    /// `token`, `session` (the dashboard), `local` (a client on the coordinator's machine, without a token) or `coordinator`.
    pub who: String,
    /// Address that the request came from: a proxy's, if there is one between. The coordinator itself has none.
    pub address: Option<String>,
    /// What was requested, as JSON, or why the coordinator did it.
    #[serde(default)]
    pub detail: String,
}

/// Which entries of the log. What is absent restricts nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields, default)]
pub struct LogQuery {
    /// Name of the run.
    pub run: Option<String>,
    /// Most entries, the newest; 0 is 100.
    #[param(required = false, default = 100, maximum = 1000)]
    pub limit: usize,
}

impl LogQuery {
    /// Default of [`LogQuery::limit`].
    pub const LIMIT: usize = 100;
    pub const MOST: usize = 1000;
}

/// Images of running runs that are not finished.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Backlog {
    pub backlog: usize,
}
