//! What happened to a job.

use std::collections::BTreeMap;

use prost::Message;
use serde::Serialize;

use crate::wire::event::What as Wire;
use crate::{Alive, DecodeError, Job, wire};

const VERSION: u32 = 1;

/// What happened to a job, by which worker. Events may come twice and in any order.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Id of the job.
    pub job: String,
    /// Name of the run.
    pub run: String,
    /// Key of the image.
    pub image: String,
    /// Class of the job.
    pub class: u32,
    /// See `Job::generation`.
    pub generation: u64,
    /// Name of the worker.
    pub worker: String,
    /// What happened.
    pub what: What,
}

/// The kinds of events.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// A worker has begun.
    Started,
    /// A result is in the store.
    Succeeded {
        /// Training loss of the best seed.
        loss: f64,
        /// Seconds from fetch to publication.
        seconds: f64,
        /// Lane-steps done by this worker for this job.
        lane_steps: u64,
        /// L1 of the best seed inside the box after inversion.
        l1: f64,
        /// LPIPS inside the box after inversion.
        lpips: f64,
        /// Seconds of each stage, by its name.
        stage_seconds: BTreeMap<String, f64>,
    },
    /// A failure record is in the store.
    Failed {
        /// Short name of the reason.
        reason: String,
        /// For people.
        message: String,
    },
    /// Given back unfinished, with a checkpoint.
    Released {
        /// It is on the queue again; if not, it waits to be published again.
        queued: bool,
    },
    /// The heartbeat of a worker, which belongs to no job.
    Alive(Alive),
    /// A coordinator that does not act reaches the store. It belongs to no job.
    Standby,
}

impl Alive {
    /// Most jobs that a heartbeat lists.
    pub const MOST_JOBS: usize = 1024;

    /// Lists the jobs that the worker holds, by their numbers. If they are too many, it does not say that these are all.
    pub fn holding(mut self, jobs: impl IntoIterator<Item = u64>) -> Alive {
        let mut jobs = jobs.into_iter();
        self.jobs = jobs.by_ref().take(Alive::MOST_JOBS).collect();
        self.jobs.sort_unstable();
        self.lists_jobs = jobs.next().is_none();
        self
    }

    /// Whether the worker may hold a job. One that does not list all its jobs may hold any.
    pub fn may_hold(&self, job: u64) -> bool {
        !self.lists_jobs || self.jobs.binary_search(&job).is_ok()
    }
}

impl What {
    /// The event of a result that was found in the store: its numbers are unknown.
    pub fn found() -> What {
        let stage_seconds = BTreeMap::new();
        What::Succeeded { loss: f64::NAN, seconds: 0.0, lane_steps: 0, l1: f64::NAN, lpips: f64::NAN, stage_seconds }
    }
}

impl Event {
    /// `worker` says what happened to `job`.
    pub fn about(job: &Job, worker: &str, what: What) -> Event {
        Event {
            job: job.id().to_string(),
            run: job.run.clone(),
            image: job.image.clone(),
            class: job.class,
            generation: job.generation,
            worker: worker.to_owned(),
            what,
        }
    }

    /// A heartbeat of `worker`.
    pub fn alive(worker: &str, alive: Alive) -> Event {
        let (job, run, image) = (String::new(), String::new(), String::new());
        Event { job, run, image, class: 0, generation: 0, worker: worker.to_owned(), what: What::Alive(alive) }
    }

    /// `coordinator` stands by, and reaches the store.
    pub fn standby(coordinator: &str) -> Event {
        Event { what: What::Standby, ..Event::alive(coordinator, Alive::default()) }
    }

    /// The message.
    pub fn encode(&self) -> Vec<u8> {
        let what = match self.what.clone() {
            What::Started => Wire::Started(wire::Started {}),
            What::Succeeded { loss, seconds, lane_steps, l1, lpips, stage_seconds } => {
                Wire::Succeeded(wire::Succeeded { loss, seconds, lane_steps, l1, lpips, stage_seconds })
            }
            What::Failed { reason, message } => Wire::Failed(wire::Failed { reason, message }),
            What::Released { queued } => Wire::Released(wire::Released { queued }),
            What::Alive(alive) => Wire::Alive(alive),
            What::Standby => Wire::Standby(wire::Standby {}),
        };
        wire::Event {
            version: VERSION,
            job: self.job.clone(),
            run: self.run.clone(),
            image: self.image.clone(),
            class: self.class,
            worker: self.worker.clone(),
            what: Some(what),
            generation: self.generation,
        }
        .encode_to_vec()
    }

    /// Reads and validates a message.
    pub fn decode(bytes: &[u8]) -> Result<Event, DecodeError> {
        let message = "event";
        let wire = wire::Event::decode(bytes).map_err(|source| DecodeError::Malformed { message, source })?;
        if wire.version != VERSION {
            return Err(DecodeError::Version { message, found: wire.version, known: VERSION });
        }
        let missing = |field| DecodeError::Field { message, field, problem: "is missing".into() };
        let what = wire.what.ok_or_else(|| missing("what"))?;
        if wire.job.is_empty() && !matches!(what, Wire::Alive(_) | Wire::Standby(_)) {
            return Err(missing("job"));
        }
        let what = match what {
            Wire::Started(_) => What::Started,
            Wire::Succeeded(wire::Succeeded { loss, seconds, lane_steps, l1, lpips, stage_seconds }) => {
                What::Succeeded { loss, seconds, lane_steps, l1, lpips, stage_seconds }
            }
            Wire::Failed(wire::Failed { reason, message }) => What::Failed { reason, message },
            Wire::Released(wire::Released { queued }) => What::Released { queued },
            Wire::Alive(alive) => What::Alive(alive),
            Wire::Standby(_) => What::Standby,
        };
        Ok(Event {
            job: wire.job,
            run: wire.run,
            image: wire.image,
            class: wire.class,
            generation: wire.generation,
            worker: wire.worker,
            what,
        })
    }
}
