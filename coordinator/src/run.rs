//! One run from start to end (*io*): read the data set, plan, keep a window of jobs on the queue, collect events.

use std::collections::HashSet;

use proto::{Event, Failure, FailureReason, Job, Params, ResultRecord, keys};
use queue::{Channel, Queue};
use serde::{Deserialize, Serialize};
use store::{ErrorKind, PutNew, Store};
use tokio::sync::watch;

use crate::dataset::{self, Annotations, DatasetError};
use crate::ledger::Ledger;
use crate::plan::{Plan, RunSpec, plan};

/// Jobs that are published and not settled, at most. The queue is not the plan: a lost queue costs nothing.
const WINDOW: usize = 1000;

/// What to do.
#[derive(Clone, Debug)]
pub struct Config {
    /// The run.
    pub spec: RunSpec,
    /// Where the classes and boxes are written.
    pub annotations: Annotations,
    /// Only this many images, evenly spread over the data set.
    pub limit: Option<usize>,
    /// Whether images with a failure are tried again.
    pub retry_failed: bool,
    /// Version of basin.
    pub version: String,
}

/// How a run stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Images of the run.
    pub images: usize,
    /// Settled before this start.
    pub skipped: usize,
    /// With a result, since this start.
    pub succeeded: usize,
    /// With a failure, since this start.
    pub failed: usize,
}

/// Why a run cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data set cannot be read.
    #[error("cannot read the data set")]
    Dataset(#[from] DatasetError),
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] store::Error),
    /// The queue failed.
    #[error("the queue failed")]
    Queue(#[from] queue::Error),
    /// The store holds another run.
    #[error("{url} holds a run with another {what}: choose another --out, or the same {what} ({there} there, {here} asked for)")]
    OtherRun {
        /// URL of the store.
        url: String,
        /// What differs.
        what: &'static str,
        /// Its value in the store.
        there: String,
        /// Its value now.
        here: String,
    },
    /// An object of the run cannot be read.
    #[error("{key} is damaged: delete it and run again")]
    Damaged {
        /// Key of the object.
        key: String,
        /// Why.
        source: serde_json::Error,
    },
}

/// `run.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Of this file: 1.
    pub format: u32,
    /// Name of the run.
    pub name: String,
    /// URL of the data set.
    pub dataset: String,
    /// Name of the model.
    pub model: String,
    /// Digest of the model.
    pub model_digest: String,
    /// What is computed.
    pub params: Params,
    /// Everything random follows from it.
    pub seed: u64,
    /// Version of basin that began it.
    pub version: String,
}

/// Reads and plans, records what cannot be a job, and returns what is left. Notes are for people.
pub async fn prepare(config: &Config, dataset: &Store, results: &Store) -> Result<(Plan, Vec<String>), Error> {
    let dataset = dataset::read(dataset, &config.annotations).await?;
    results.check_writable().await?;
    begin(config, results).await?;
    let mut settled = HashSet::new();
    let mut lister = results.list(keys::IMAGES)?;
    let mut failed = Vec::new();
    while let Some(page) = lister.next_page().await? {
        for object in page {
            match keys::parse_item(&object.key) {
                Some((image, keys::Item::Result)) => drop(settled.insert(image)),
                Some((image, keys::Item::Failure)) => failed.push(image),
                _ => {}
            }
        }
    }
    for image in failed {
        if config.retry_failed {
            results.delete(&keys::item(&image, keys::Item::Failure)).await?;
        } else {
            settled.insert(image);
        }
    }
    let entries = match config.limit {
        Some(limit) => spread(dataset.entries, limit),
        None => dataset.entries,
    };
    let plan = plan(&entries, &config.spec, &settled);
    for failure in &plan.failures {
        write_failure(results, failure).await?;
    }
    let mut notes = dataset.notes;
    notes.insert(0, format!("read {} images from {}", entries.len(), dataset.source));
    Ok((plan, notes))
}

/// Every n-th entry, `limit` of them.
fn spread<T>(entries: Vec<T>, limit: usize) -> Vec<T> {
    let n = entries.len();
    if limit >= n {
        return entries;
    }
    let keep: HashSet<usize> = (0..limit).map(|i| i * n / limit).collect();
    entries.into_iter().enumerate().filter(|(i, _)| keep.contains(i)).map(|(_, e)| e).collect()
}

/// Writes `run.json`, or compares with the one that is there.
async fn begin(config: &Config, results: &Store) -> Result<(), Error> {
    let spec = &config.spec;
    let record = RunRecord {
        format: 1,
        name: spec.name.clone(),
        dataset: spec.dataset.clone(),
        model: spec.model.clone(),
        model_digest: spec.model_digest.clone(),
        params: spec.params.clone(),
        seed: spec.seed,
        version: config.version.clone(),
    };
    let bytes = serde_json::to_vec_pretty(&record).expect("a record serialises");
    if results.put_new(keys::RUN, bytes).await? == PutNew::Created {
        return Ok(());
    }
    let there: RunRecord = serde_json::from_slice(&results.get(keys::RUN).await?)
        .map_err(|source| Error::Damaged { key: keys::RUN.into(), source })?;
    let differs = |what, there: String, here: String| Err(Error::OtherRun { url: results.url(), what, there, here });
    if there.dataset != record.dataset {
        return differs("data set", there.dataset, record.dataset);
    }
    if there.model_digest != record.model_digest {
        return differs("model", there.model_digest, record.model_digest);
    }
    if there.params != record.params {
        return differs("set of parameters", there.params.to_json(), record.params.to_json());
    }
    if there.seed != record.seed {
        return differs("seed", there.seed.to_string(), record.seed.to_string());
    }
    Ok(())
}

async fn write_failure(results: &Store, failure: &Failure) -> Result<(), store::Error> {
    let bytes = serde_json::to_vec_pretty(failure).expect("a record serialises");
    results.put(&keys::item(&failure.image, keys::Item::Failure), bytes).await
}

/// Publishes the plan's jobs and collects events until every job is settled or `stop` becomes true.
pub async fn drive(
    plan: Plan,
    queue: &Queue,
    results: &Store,
    mut stop: watch::Receiver<bool>,
    status: watch::Sender<Status>,
) -> Result<(), Error> {
    let mut now = Status {
        images: plan.jobs.len() + plan.failures.len() + plan.skipped,
        skipped: plan.skipped,
        succeeded: 0,
        failed: plan.failures.len(),
    };
    status.send_replace(now);
    let (early, total) = (plan.failures.len(), plan.jobs.len());
    let mut ledger = Ledger::default();
    let mut jobs = plan.jobs.into_iter();
    let mut events = queue.consume(Channel::Events, 100).await?;
    let mut dead_letters = queue.consume(Channel::DeadLetters, 100).await?;
    while ledger.succeeded() + ledger.failed() < total {
        while ledger.open() < WINDOW {
            let Some(job) = jobs.next() else { break };
            ledger.expect(job.id().to_string());
            queue.publish(Channel::Jobs, job.encode()).await?;
        }
        tokio::select! {
            event = events.next() => {
                let Some(delivery) = event else { return Ok(()) };
                match Event::decode(delivery.payload()) {
                    Ok(event) => {
                        ledger.apply(&event);
                        delivery.ack().await?;
                    }
                    Err(error) => delivery.reject(&error.to_string()).await?,
                }
            }
            letter = dead_letters.next() => {
                let Some(delivery) = letter else { return Ok(()) };
                if let Some(event) = bury(&delivery, results).await? {
                    ledger.apply(&event);
                }
                delivery.ack().await?;
            }
            changed = stop.changed() => {
                if changed.is_err() || *stop.borrow() {
                    return Ok(());
                }
            }
        }
        now.succeeded = ledger.succeeded();
        now.failed = early + ledger.failed();
        status.send_replace(now);
    }
    Ok(())
}

/// A dead letter becomes a failure record, unless its worker wrote one; the event that the worker could not send.
async fn bury(delivery: &queue::Delivery, results: &Store) -> Result<Option<Event>, Error> {
    let (Some(letter), Ok(job)) = (delivery.dead_letter(), Job::decode(delivery.payload())) else { return Ok(None) };
    let key = keys::item(&job.image, keys::Item::Failure);
    let message = format!("given up after {} attempts: {}", letter.attempts, letter.reason);
    if !results.exists(&key).await? {
        let failure = Failure {
            format: 1,
            job: Some(job.id()),
            image: job.image.clone(),
            reason: FailureReason::BadJob,
            message: message.clone(),
            class_name: Some(job.class_name.clone()),
        };
        write_failure(results, &failure).await?;
    }
    Ok(Some(Event {
        job: job.id().to_string(),
        run: job.run.clone(),
        image: job.image.clone(),
        class: job.class,
        worker: "coordinator".into(),
        what: proto::What::Failed { reason: FailureReason::BadJob.as_str().into(), message },
    }))
}

/// `run.json` of a store; `None` if there is no run.
pub async fn read_run(results: &Store) -> Result<Option<RunRecord>, Error> {
    match results.get(keys::RUN).await {
        Ok(bytes) => {
            let record = serde_json::from_slice(&bytes);
            Ok(Some(record.map_err(|source| Error::Damaged { key: keys::RUN.into(), source })?))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// All results and failures of a run, by image.
pub async fn read_records(results: &Store) -> Result<(Vec<ResultRecord>, Vec<Failure>), Error> {
    let (mut records, mut failures) = (Vec::new(), Vec::new());
    let mut failed = Vec::new();
    let mut lister = results.list(keys::IMAGES)?;
    while let Some(page) = lister.next_page().await? {
        for object in page {
            let damaged = |source| Error::Damaged { key: object.key.clone(), source };
            match keys::parse_item(&object.key) {
                Some((_, keys::Item::Result)) => {
                    let record: ResultRecord = serde_json::from_slice(&results.get(&object.key).await?).map_err(damaged)?;
                    records.push(record);
                }
                Some((_, keys::Item::Failure)) => failed.push(object.key),
                _ => {}
            }
        }
    }
    let done: HashSet<&str> = records.iter().map(|r| r.image.as_str()).collect();
    for key in failed {
        let bytes = results.get(&key).await?;
        let failure: Failure = serde_json::from_slice(&bytes).map_err(|source| Error::Damaged { key: key.clone(), source })?;
        // A result wins.
        if !done.contains(failure.image.as_str()) {
            failures.push(failure);
        }
    }
    Ok((records, failures))
}
