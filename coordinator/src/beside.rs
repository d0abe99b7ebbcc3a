//! What the driver does beside its loop (*io*): the loop waits neither for the store nor for the broker.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use proto::keys::Marker;
use proto::{Control, Event, Failure, FailureReason, Job, What, chain, hex_sha256, keys};
use queue::{Channel, DeadLetter, Delivery, Parcel, Queue};
use results::RunError;
use results::run::{self, write_failure};
use store::{Runs, Store};
use tracing::Span;

use crate::Error;
use crate::silence::{self, Silent};

/// Pause before the store is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Pause after the store refused.
const REFUSED: Duration = Duration::from_secs(300);
/// Reads of the store at a time.
const READS: usize = 32;

/// What goes to the broker, in this order.
pub enum Outgoing {
    /// Jobs, and what is known of them.
    Jobs(Vec<Parcel>, Vec<Begun>),
    /// Takes all waiting jobs off the queue.
    Purge,
}

/// A job that is being published.
pub struct Begun {
    pub run: String,
    pub job: String,
    /// The span of its publication.
    pub span: Span,
}

pub enum Done {
    /// The queue has these jobs.
    Sent(Vec<Begun>),
    Purged,
    /// A dead letter's end is on record.
    Buried(Box<Event>, Delivery),
    /// A message that cannot be read is kept.
    Kept(Delivery),
    Looked(Looked),
}

/// What queue and store say about silent jobs.
pub struct Looked {
    /// Time at which a job had to be silent for [`look`] to ask about it.
    pub before: f64,
    /// Whether the queue has no job.
    pub empty: bool,
    /// They are on the queue.
    pub waiting: Vec<Silent>,
    /// With what the store says; `Err`: it did not answer.
    pub asked: Vec<(Silent, Result<Option<Marked>, Error>)>,
}

/// What the commit marker of an image says: it has a result, or this failure.
pub type Marked = Result<(), Failure>;

pub(crate) async fn send(queue: Queue, outgoing: Outgoing) -> Result<Done, Error> {
    match outgoing {
        Outgoing::Jobs(parcels, begun) => {
            queue.publish_all(Channel::Jobs, parcels).await?;
            Ok(Done::Sent(begun))
        }
        Outgoing::Purge => {
            queue.purge(Channel::Jobs).await?;
            Ok(Done::Purged)
        }
    }
}

/// Writes a failure for a dead letter, unless its worker wrote one or there is a result. While the store is away it tries again.
pub(crate) async fn bury(runs: Runs, delivery: Delivery, letter: DeadLetter, job: Job) -> Result<Done, Error> {
    let failure = until_done("the end of a dead letter", || outcome(&runs, &letter, &job)).await;
    let failed = |failure: Failure| What::Failed { reason: failure.reason.as_str().into(), message: failure.message };
    let what = failure.map_or_else(What::found, failed);
    Ok(Done::Buried(Box::new(Event::about(&job, "coordinator", what)), delivery))
}

/// The failure of a given-up job; `None`: it has a result.
async fn outcome(runs: &Runs, letter: &DeadLetter, job: &Job) -> Result<Option<Failure>, Error> {
    let results = runs.of(&job.run)?;
    if let Some(marked) = marked(&results, &job.image, job.id().as_str(), job.generation).await? {
        return Ok(marked.err());
    }
    if is_deleted(runs, &job.run).await? {
        return Ok(None);
    }
    let message = format!("given up after {} attempts: {}", letter.attempts, letter.reason);
    let failure = Failure::of(job, FailureReason::Quarantined, message);
    write_failure(&results, &failure).await?;
    Ok(Some(failure))
}

/// Whether the run is deleted: nothing is written for it any more.
async fn is_deleted(runs: &Runs, run: &str) -> Result<bool, Error> {
    let Runs::Home(home) = runs else { return Ok(false) };
    let control = run::if_present(run::read_json::<Control>(home, &keys::control(run)).await)?;
    Ok(control.is_some_and(|control| control.deleted))
}

/// A message that cannot be read belongs to no run: it is kept beside the runs, for a person to look at.
pub(crate) async fn keep_unreadable(runs: Runs, delivery: Delivery, reason: String) -> Result<Done, Error> {
    let (Runs::One(place) | Runs::Home(place)) = &runs;
    let digest = hex_sha256(delivery.payload());
    tracing::warn!(reason, digest, "a message on the queue cannot be read; it is kept in unreadable/");
    let key = format!("unreadable/{}", &digest[..16]);
    let (payload, reason) = (delivery.payload().to_vec(), reason.into_bytes());
    until_done("a message that cannot be read", || keep(place, &key, &payload, &reason)).await;
    Ok(Done::Kept(delivery))
}

async fn keep(place: &Store, key: &str, payload: &[u8], reason: &[u8]) -> Result<(), Error> {
    place.put(key, payload.to_vec()).await?;
    Ok(place.put(&format!("{key}.txt"), reason.to_vec()).await?)
}

async fn until_done<T, F: Future<Output = Result<T, Error>>>(what: &str, mut work: impl FnMut() -> F) -> T {
    loop {
        match work().await {
            Ok(done) => return done,
            Err(error) => {
                tracing::warn!(error = chain(&error), "{what} cannot be recorded; tried again");
                let passes = error.store().is_none_or(store::Error::is_retryable);
                tokio::time::sleep(if passes { RETRY } else { REFUSED }).await;
            }
        }
    }
}

/// Asks the store for the outcomes of silent jobs.
pub(crate) async fn look(queue: Queue, runs: Runs, silent: Vec<Silent>, before: f64) -> Result<Done, Error> {
    let empty = queue.depth(Channel::Jobs).await? == 0;
    let (asked, waiting) = silence::choose(silent, empty);
    let asked = stream::iter(asked.into_iter().map(|silent| ask(runs.clone(), silent))).buffered(READS).collect().await;
    Ok(Done::Looked(Looked { before, empty, waiting, asked }))
}

async fn ask(runs: Runs, silent: Silent) -> (Silent, Result<Option<Marked>, Error>) {
    let marker = async { marked(&runs.of(&silent.run)?, &silent.image, &silent.job, silent.generation).await }.await;
    (silent, marker)
}

/// A failure of another generation does not count, nor does a late result of another job.
pub async fn marked(results: &Store, image: &str, job: &str, generation: u64) -> Result<Option<Marked>, Error> {
    if run::has_result(results, image, job, generation).await? {
        return Ok(Some(Ok(())));
    }
    match run::read_json::<Failure>(results, &keys::marker(image, Marker::Failure)).await {
        Ok(failure) if failure.generation != generation => Ok(None),
        Ok(failure) => Ok(Some(Err(failure))),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error @ RunError::Damaged { .. }) => {
            Ok(Some(Err(Failure::without_job(image, FailureReason::BadJob, chain(&error), None))))
        }
        Err(error) => Err(error.into()),
    }
}
