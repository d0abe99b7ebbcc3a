//! What happened to a job.

use prost::Message;

use crate::{DecodeError, wire};

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
    /// Name of the worker.
    pub worker: String,
    /// What happened.
    pub what: What,
}

/// The kinds of events.
#[derive(Clone, Debug, PartialEq)]
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
    },
    /// A failure record is in the store.
    Failed {
        /// Short name of the reason.
        reason: String,
        /// For people.
        message: String,
    },
    /// Given back unfinished, with a checkpoint.
    Released,
}

impl Event {
    /// The message.
    pub fn encode(&self) -> Vec<u8> {
        use wire::event::What as W;
        let what = match self.what.clone() {
            What::Started => W::Started(wire::Started {}),
            What::Succeeded { loss, seconds, lane_steps } => W::Succeeded(wire::Succeeded { loss, seconds, lane_steps }),
            What::Failed { reason, message } => W::Failed(wire::Failed { reason, message }),
            What::Released => W::Released(wire::Released {}),
        };
        wire::Event {
            version: VERSION,
            job: self.job.clone(),
            run: self.run.clone(),
            image: self.image.clone(),
            class: self.class,
            worker: self.worker.clone(),
            what: Some(what),
        }
        .encode_to_vec()
    }

    /// Reads and validates a message.
    pub fn decode(bytes: &[u8]) -> Result<Event, DecodeError> {
        use wire::event::What as W;
        let message = "event";
        let wire = wire::Event::decode(bytes).map_err(|source| DecodeError::Malformed { message, source })?;
        if wire.version != VERSION {
            return Err(DecodeError::Version { message, found: wire.version, known: VERSION });
        }
        let missing = |field| DecodeError::Field { message, field, problem: "is missing".into() };
        if wire.job.is_empty() {
            return Err(missing("job"));
        }
        let what = match wire.what.ok_or_else(|| missing("what"))? {
            W::Started(_) => What::Started,
            W::Succeeded(s) => What::Succeeded { loss: s.loss, seconds: s.seconds, lane_steps: s.lane_steps },
            W::Failed(f) => What::Failed { reason: f.reason, message: f.message },
            W::Released(_) => What::Released,
        };
        Ok(Event { job: wire.job, run: wire.run, image: wire.image, class: wire.class, worker: wire.worker, what })
    }
}
