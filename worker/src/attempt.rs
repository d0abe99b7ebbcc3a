//! One worker's try at one job (*io*): what the fleet hears of it, and how it is settled.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proto::keys::{self, Marker};
use proto::{CrashPoint, Event, Failure, FailureReason, Job, JobId, What, chain};
use queue::{Channel, Delivery, Parcel, Queue};
use store::{Runs, Store};
use telemetry::trace::{self, Message};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::fate::{Fate, JobError, Unavailable, fate};
use crate::held::{HeldJobs, Hold};
use crate::job_span::JobSpan;
use crate::outage::{Outages, Place, Wait};
use crate::run_control::RunControl;
use crate::{Config, Error, metrics};

/// Before the first retry of a job; it doubles with each attempt. A result that could not be written is retried at once.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What the stages of a worker share.
#[derive(Clone)]
pub struct Shared {
    pub config: Config,
    pub queue: Queue,
    pub runs: Runs,
    pub outages: Outages,
    pub held: HeldJobs,
    pub control: RunControl,
    /// The stage is to end: it waits for no store any more.
    pub shutdown: CancellationToken,
}

impl Shared {
    /// The store that all runs are in.
    pub fn home(&self) -> &Store {
        let (Runs::One(home) | Runs::Home(home)) = &self.runs;
        home
    }

    /// For one piece of work that needs `place`.
    pub fn wait(&self, place: Place) -> Wait {
        Wait::new(&self.outages, place, &self.shutdown)
    }

    /// Does work at the store, again and again while that is away. `None`: the worker is to leave, and the work is not done.
    pub async fn persist<T>(&self, work: impl AsyncFnMut() -> Result<T, store::Error>) -> Result<Option<T>, store::Error> {
        self.outages.persist(self.home(), &self.shutdown, work).await
    }
}

pub struct Attempt {
    /// Part of the keys of its objects; no other attempt has it.
    pub name: String,
    pub delivery: Delivery,
    pub job: Job,
    pub id: JobId,
    pub span: JobSpan,
    /// The heartbeat lists the job as long as this is there.
    pub hold: Hold,
}

impl Attempt {
    pub fn begin(shared: &Shared, delivery: Delivery, job: Job) -> Attempt {
        let id = job.id();
        let span = JobSpan::begin(&delivery, &message(Channel::Jobs, &shared.queue, id.as_str(), &job), &job);
        Attempt { name: unique_name(&shared.config.name), hold: shared.held.hold(&id), delivery, job, id, span }
    }

    pub fn results(&self, shared: &Shared) -> Result<Store, store::Error> {
        shared.runs.of(&self.job.run)
    }

    /// Publishes an event about the job, as part of its trace.
    pub async fn tell(&self, shared: &Shared, what: What) -> Result<(), queue::Error> {
        let event = Event::about(&self.job, &shared.config.name, what);
        let message = message(Channel::Events, &shared.queue, &event.job, &self.job);
        let span = trace::publish(Some(&self.span.span), &message);
        let parcel = Parcel { payload: event.encode(), context: trace::context(&span) };
        shared.queue.publish(Channel::Events, parcel).instrument(span).await
    }

    /// Releases the job without an outcome. The coordinator publishes one that is not `queued` again when its run resumes.
    pub async fn release(self, shared: &Shared, queued: bool) -> Result<(), Error> {
        self.tell(shared, What::Released { queued }).await?;
        CrashPoint::ReleaseTold.pass();
        if queued {
            self.delivery.release().await?;
        } else {
            self.delivery.ack().await?;
        }
        CrashPoint::ReleaseSettled.pass();
        Ok(())
    }

    /// The attempt counts, and the job is delivered again after a pause.
    pub async fn retry(self, unavailable: Unavailable, error: String) -> Result<(), queue::Error> {
        let Attempt { delivery, job, hold, .. } = self;
        tracing::warn!(run = job.run, image = job.image, error, "the job is retried");
        metrics::RETRIES.record(1.0, &[("basin.reason", unavailable.as_str())]);
        if unavailable == Unavailable::Upload {
            return delivery.retry().await;
        }
        let pause = FIRST_PAUSE * 2u32.saturating_pow(delivery.attempt().min(16) - 1);
        // It waits in the delivery's place, so that a store that is away does not spin the queue.
        tokio::spawn(async move {
            tokio::time::sleep(pause.min(LONGEST_PAUSE)).await;
            let _ = delivery.retry().await;
            drop(hold);
        });
        Ok(())
    }

    /// The failure record first, then the event, then the dead letter. Without the record the job goes back.
    async fn reject(self, shared: &Shared, reason: FailureReason, message: String) -> Result<(), Error> {
        let job = &self.job;
        trace::fail(&self.span.span, reason.as_str());
        tracing::warn!(run = job.run, image = job.image, reason = reason.as_str(), message, "failed");
        let failure = Failure::of(job, reason, message);
        // Not over the failure of a later try, if this worker was away so long.
        let (results, marker) = (self.results(shared)?, keys::marker(&job.image, Marker::Failure));
        match shared.persist(async || results.update(&marker, |there| failure.over(there)).await).await {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(self.delivery.release().await?),
            Err(error) => {
                self.delivery.release().await?;
                return Err(error.into());
            }
        }
        CrashPoint::FailureRecorded.pass();
        self.tell(shared, What::Failed { reason: reason.as_str().into(), message: failure.message.clone() }).await?;
        CrashPoint::FailureTold.pass();
        self.delivery.reject(&failure.message).await?;
        CrashPoint::FailureSettled.pass();
        Ok(())
    }
}

/// Settles the attempts that end with `error`. Returns an error if the worker must exit.
pub async fn settle(shared: &Shared, attempts: Vec<Attempt>, error: JobError) -> Result<(), Error> {
    let mut exits = false;
    let mut unsettled = None;
    for attempt in attempts {
        match fate(&error, attempt.delivery.attempt()) {
            _ if unsettled.is_some() => attempt.delivery.release().await?,
            Fate::Retry(unavailable) => attempt.retry(unavailable, chain(&error)).await?,
            // The others are not to be counted for the record that could not be written.
            Fate::Reject(reason) => unsettled = attempt.reject(shared, reason, chain(&error)).await.err(),
            Fate::Continue | Fate::Wait(_) => attempt.delivery.release().await?,
            Fate::Release => {
                exits = true;
                attempt.delivery.release().await?;
            }
            // A delivery that is dropped counts as failed.
            Fate::Crash => exits = true,
        }
    }
    match unsettled {
        Some(unsettled) => Err(unsettled),
        None if exits => Err(error.into()),
        None => Ok(()),
    }
}

fn message<'a>(channel: Channel, queue: &'a Queue, id: &'a str, job: &'a Job) -> Message<'a> {
    Message { destination: queue.destination(channel), job: id, run: &job.run, image: &job.image }
}

/// Worker, time and a counter, hashed.
fn unique_name(worker: &str) -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    proto::hex_sha256(format!("{worker} {} {time} {count}", std::process::id()).as_bytes())[..12].to_owned()
}
