//! The spans and stage times of a job that this worker holds.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use proto::{Job, Stage};
use queue::Delivery;
use telemetry::trace::{self, Message};
use tracing::Span;

use crate::metrics;

/// Lives as long as the worker holds the job.
pub struct JobSpan {
    pub span: Span,
    seconds: BTreeMap<Stage, f64>,
}

impl JobSpan {
    /// Continues the trace that `delivery` brings.
    pub fn begin(delivery: &Delivery, message: &Message, job: &Job) -> JobSpan {
        let span = trace::process(delivery.context(), message);
        metrics::HELD.fetch_add(1, Ordering::Relaxed);
        let span = JobSpan { span, seconds: BTreeMap::new() };
        if !job.class_name.is_empty() {
            span.set_class(&job.class_name);
        }
        span
    }

    pub fn set_class(&self, name: &str) {
        trace::attribute(&self.span, "basin.class", name.to_owned());
    }

    pub fn stage(&self, stage: Stage) -> Span {
        trace::child(&self.span, stage.as_str())
    }

    pub fn add_seconds(&mut self, stage: Stage, seconds: f64) {
        *self.seconds.entry(stage).or_default() += seconds;
    }

    /// Records how long the stage took in all.
    pub fn end_stage(&self, stage: Stage) {
        if let Some(seconds) = self.seconds.get(&stage) {
            metrics::STAGE.record(*seconds, &[("basin.stage", stage.as_str())]);
        }
    }

    pub fn stage_seconds(&self) -> BTreeMap<String, f64> {
        self.seconds.iter().map(|(stage, seconds)| (stage.as_str().to_owned(), *seconds)).collect()
    }
}

impl Drop for JobSpan {
    fn drop(&mut self) {
        metrics::HELD.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The spans of an image on the devices: of all of its stages, and of the one it is in.
pub struct StageSpans {
    project: Span,
    now: Option<(Stage, Span)>,
}

impl StageSpans {
    pub fn begin(job: &JobSpan, stage: Option<Stage>) -> StageSpans {
        let project = trace::child(&job.span, "project");
        let now = stage.map(|stage| (stage, trace::child(&project, stage.as_str())));
        StageSpans { project, now }
    }

    /// Whether the image takes part in the next step.
    pub fn is_active(&self) -> bool {
        self.now.is_some()
    }

    /// After a step that took `seconds` of this image, found `loss` and leaves the image at `stage`.
    pub fn stepped(&mut self, job: &mut JobSpan, seconds: f64, loss: f64, stage: Option<Stage>) {
        let Some((now, _)) = self.now else { return };
        job.add_seconds(now, seconds);
        if stage == Some(now) {
            return;
        }
        job.end_stage(now);
        if now != Stage::FinalDescent {
            metrics::LOSS.record(loss, &[("basin.stage", now.as_str())]);
        }
        self.now = stage.map(|stage| (stage, trace::child(&self.project, stage.as_str())));
    }
}
