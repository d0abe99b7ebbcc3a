//! A job in this worker's hands, as its trace and the metrics see it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use proto::{Event, FailureReason, Job, JobId, What};
use queue::{Channel, Delivery, Parcel, Queue};
use telemetry::trace::{self, Message};
use tracing::{Instrument, Span};

use crate::{Config, metrics};

/// Jobs in hand.
pub static IN_HAND: AtomicUsize = AtomicUsize::new(0);

/// Lives as long as the job is in hand.
pub struct Hand {
    /// The work on the job, from its message until that is settled.
    pub span: Span,
    /// Seconds by stage so far, in this attempt.
    pub seconds: BTreeMap<String, f64>,
}

impl Hand {
    /// Takes up a job.
    pub fn take(delivery: &Delivery, job: &Job, id: &JobId, queue: &Queue) -> Hand {
        let message = message(Channel::Jobs, queue, id.as_str(), job);
        let span = trace::process(delivery.context(), &message);
        IN_HAND.fetch_add(1, Ordering::Relaxed);
        let hand = Hand { span, seconds: BTreeMap::new() };
        if !job.class_name.is_empty() {
            hand.is_of_class(&job.class_name);
        }
        hand
    }

    /// The class is known.
    pub fn is_of_class(&self, name: &str) {
        trace::attribute(&self.span, "basin.class", name.to_owned());
    }

    /// A stage took some of the seconds of this image.
    pub fn took(&mut self, stage: &str, seconds: f64) {
        *self.seconds.entry(stage.to_owned()).or_default() += seconds;
    }

    /// A stage is over.
    pub fn ended(&self, stage: &str) {
        if let Some(seconds) = self.seconds.get(stage) {
            metrics::STAGE.record(*seconds, &[("stage", stage)]);
        }
    }

    /// The job fails.
    pub fn fail(&self, reason: FailureReason) {
        trace::fail(&self.span, reason.as_str());
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        IN_HAND.fetch_sub(1, Ordering::Relaxed);
    }
}

fn message<'a>(channel: Channel, queue: &Queue, id: &'a str, job: &'a Job) -> Message<'a> {
    Message { system: queue.system(), queue: channel.name(), job: id, run: &job.run, image: &job.image }
}

/// Tells the fleet what happened to a job, as part of its trace.
pub async fn tell(config: &Config, queue: &Queue, hand: &Hand, job: &Job, what: What) -> Result<(), queue::Error> {
    let event = Event::about(job, &config.name, what);
    let span = trace::publish(Some(&hand.span), &message(Channel::Events, queue, &event.job, job));
    let parcel = Parcel { payload: event.encode(), context: trace::context(&span) };
    queue.publish(Channel::Events, parcel).instrument(span).await
}

/// An image on the devices: the spans of its stages.
pub struct Course {
    project: Span,
    now: Option<(&'static str, Span)>,
}

impl Course {
    /// The image comes to the devices, at `stage`.
    pub fn begin(hand: &Hand, stage: Option<&'static str>) -> Course {
        let project = trace::child(&hand.span, "project");
        let now = stage.map(|stage| (stage, trace::child(&project, stage)));
        Course { project, now }
    }

    /// Whether the image takes part in the next step.
    pub fn goes_on(&self) -> bool {
        self.now.is_some()
    }

    /// A step was made, which took `seconds` of this image, found `loss`, and leaves it at `stage`.
    pub fn stepped(&mut self, hand: &mut Hand, seconds: f64, loss: f64, stage: Option<&'static str>) {
        let Some((now, _)) = &self.now else { return };
        hand.took(now, seconds);
        if stage == Some(now) {
            return;
        }
        hand.ended(now);
        if *now != "final_descent" {
            metrics::LOSS.record(loss, &[("stage", now)]);
        }
        self.now = stage.map(|stage| (stage, trace::child(&self.project, stage)));
    }
}
