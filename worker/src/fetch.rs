//! Deliveries become loaded images (*io*).

use std::collections::HashMap;

use proto::{Box2d, Event, Failure, Job, JobId, What, keys};
use queue::{Channel, Consumer, Delivery, Queue};
use store::{ErrorKind, Store};
use tokio::sync::mpsc;

use crate::codec::{self, Decoded};
use crate::fate::{self, Fate, LoadError};
use crate::{Config, Error, Shutdown, checkpoint};

/// Largest image file, in bytes.
const MAX_IMAGE_BYTES: u64 = 256 << 20;

/// What jobs are checked against.
pub struct Facts {
    pub resolution: u32,
    pub digest: String,
    pub classes: usize,
}

/// An image ready for the devices.
pub struct Loaded {
    pub delivery: Delivery,
    pub job: Job,
    pub id: JobId,
    /// RGB in [-1, 1], channel by channel.
    pub pixels: Vec<f32>,
    pub bbox: Option<Box2d>,
    pub checkpoint: Option<projector::Checkpoint>,
}

/// Fetches batches until the queue closes or a stop is requested.
pub async fn run(
    config: Config,
    facts: std::sync::Arc<Facts>,
    queue: Queue,
    results: Store,
    mut consumer: Consumer,
    loaded: mpsc::Sender<Vec<Loaded>>,
    shutdown: Shutdown,
) -> Result<(), Error> {
    let mut datasets: HashMap<String, Store> = HashMap::new();
    let mut batch: Vec<Loaded> = Vec::new();
    while !shutdown.requested() && !loaded.is_closed() {
        // A batch that is not full waits a moment for more, not for ever.
        let next = tokio::time::timeout(std::time::Duration::from_millis(100), consumer.next()).await;
        let Ok(next) = next else {
            if !batch.is_empty() && loaded.send(std::mem::take(&mut batch)).await.is_err() {
                break;
            }
            continue;
        };
        let Some(delivery) = next else { break };
        if let Some(image) = fetch(&config, &facts, &queue, &results, &mut datasets, delivery).await? {
            // One batch, one set of parameters.
            let differs = batch.first().is_some_and(|first| first.job.params != image.job.params);
            if differs && loaded.send(std::mem::take(&mut batch)).await.is_err() {
                break;
            }
            batch.push(image);
            if batch.len() >= config.batch_images && loaded.send(std::mem::take(&mut batch)).await.is_err() {
                break;
            }
        }
    }
    for image in batch {
        image.delivery.release().await?;
    }
    Ok(())
}

/// One delivery; `None` if it is settled already.
async fn fetch(
    config: &Config,
    facts: &Facts,
    queue: &Queue,
    results: &Store,
    datasets: &mut HashMap<String, Store>,
    delivery: Delivery,
) -> Result<Option<Loaded>, Error> {
    let job = match Job::decode(delivery.payload()) {
        Ok(job) => job,
        // Without a job there is no place for a record; the dead letter is the record.
        Err(error) => {
            delivery.reject(&fate::chain(&LoadError::from(error))).await?;
            return Ok(None);
        }
    };
    let id = job.id();
    let done = results.exists(&keys::item(&job.image, keys::Item::Result)).await;
    let outcome = match done {
        Ok(true) => {
            let what = What::Succeeded { loss: f64::NAN, seconds: 0.0, lane_steps: 0 };
            queue.publish(Channel::Events, event(config, &job, &id, what).encode()).await?;
            delivery.ack().await?;
            return Ok(None);
        }
        Ok(false) => load(facts, results, datasets, &job, &id).await,
        Err(source) => Err(LoadError::Results(source)),
    };
    let error = match outcome {
        Ok((image, checkpoint)) => {
            queue.publish(Channel::Events, event(config, &job, &id, What::Started).encode()).await?;
            let Decoded { pixels, bbox, .. } = image;
            return Ok(Some(Loaded { delivery, job, id, pixels, bbox, checkpoint }));
        }
        Err(error) => error,
    };
    match fate::fate(&error) {
        Fate::Retry => delivery.retry().await?,
        Fate::Reject(reason) => {
            reject(config, queue, results, delivery, &job, &id, reason, fate::chain(&error)).await?;
        }
        Fate::Crash => match error {
            LoadError::Results(source) => return Err(source.into()),
            _ => unreachable!("only the results' store can stop a worker while it loads"),
        },
    }
    Ok(None)
}

async fn load(
    facts: &Facts,
    results: &Store,
    datasets: &mut HashMap<String, Store>,
    job: &Job,
    id: &JobId,
) -> Result<(Decoded, Option<projector::Checkpoint>), LoadError> {
    if job.model_digest != facts.digest {
        return Err(LoadError::Model { wanted: job.model_digest.clone(), loaded: facts.digest.clone() });
    }
    if job.class as usize >= facts.classes {
        return Err(LoadError::Class { class: job.class, classes: facts.classes });
    }
    let image_error = |source| LoadError::Image { image: job.image.clone(), source };
    let dataset = match datasets.get(&job.dataset) {
        Some(store) => store.clone(),
        None => {
            let store = Store::open(&job.dataset).await.map_err(image_error)?;
            datasets.entry(job.dataset.clone()).or_insert(store).clone()
        }
    };
    let bytes = dataset.get_limited(&job.image, MAX_IMAGE_BYTES).await.map_err(image_error)?;
    let (bbox, resolution) = (job.bbox, facts.resolution);
    let decoded = tokio::task::spawn_blocking(move || codec::decode(&bytes, bbox, resolution)).await;
    let decoded =
        decoded.expect("decoding does not panic").map_err(|source| LoadError::Decode { image: job.image.clone(), source })?;
    let checkpoint = match results.get(&keys::checkpoint(&job.image)).await {
        Ok(bytes) => checkpoint::decode(id, &bytes),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(LoadError::Results(error)),
    };
    Ok((decoded, checkpoint))
}

pub(crate) fn event(config: &Config, job: &Job, id: &JobId, what: What) -> Event {
    Event {
        job: id.to_string(),
        run: job.run.clone(),
        image: job.image.clone(),
        class: job.class,
        worker: config.name.clone(),
        what,
    }
}

/// The failure record first, then the event, then the dead letter.
#[allow(clippy::too_many_arguments)]
pub(crate) async fn reject(
    config: &Config,
    queue: &Queue,
    results: &Store,
    delivery: Delivery,
    job: &Job,
    id: &JobId,
    reason: proto::FailureReason,
    message: String,
) -> Result<(), Error> {
    let failure = Failure {
        format: 1,
        job: Some(id.clone()),
        image: job.image.clone(),
        reason,
        message: message.clone(),
        class_name: Some(job.class_name.clone()),
    };
    let bytes = serde_json::to_vec_pretty(&failure).expect("a record serialises");
    results.put(&keys::item(&job.image, keys::Item::Failure), bytes).await?;
    let what = What::Failed { reason: reason.as_str().into(), message: message.clone() };
    queue.publish(Channel::Events, event(config, job, id, what).encode()).await?;
    delivery.reject(&message).await?;
    Ok(())
}
