//! Deliveries become loaded images (*io*).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use proto::keys::Marker;
use proto::{CrashPoint, Failure, FailureReason, Job, JobId, Mask, MaskSource, ModelRef, OPEN_CLASS, What, chain, keys};
use queue::{Consumer, Delivery, Queue};
use store::{ErrorKind, Runs, Store};
use telemetry::trace;
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument;

use crate::fate::{self, Fate, FetchError};
use crate::job_span::{Hand, tell};
use crate::run_control::Controls;
use crate::{Config, Error, Shutdown, checkpoint, metrics};
use engine::codec::{Bitmap, CodecError, Decoded, Photo};
use engine::supply::{Facts, Models, Supply};
use engine::{LoadedModel, SupplyError, codec, find, outline};

/// Largest image file, in bytes.
const MAX_IMAGE_BYTES: u64 = 256 << 20;
/// An image at which this many attempts began, and neither ended nor saved anything, is projected alone; and after so many more
/// it is not tried again.
const SUSPECT: usize = 2;
const MAX_UNENDED: usize = 5;
/// A failed fetch is tried again after this time, twice as long each time up to the second.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(60));
/// After so many attempts (some six minutes) the image is left to the next start.
const RETRIES: u32 = 13;

/// An image ready for the devices.
pub struct Loaded {
    pub delivery: Delivery,
    pub hand: Hand,
    pub job: Job,
    pub id: JobId,
    /// Name of this attempt.
    pub attempt: String,
    pub model: ModelRef,
    /// The image in the generator's frame.
    pub frame: Decoded,
    /// The image as it is, where the class or the object is still to be found in it.
    pub photo: Option<Photo>,
    pub checkpoint: Option<checkpoint::Saved>,
    /// Seconds of device work in earlier attempts.
    pub seconds: f64,
    /// It may kill its worker: it is projected alone.
    pub suspect: bool,
}

/// Images of one run, projected side by side.
pub struct Batch {
    /// The model, if it is another than the last batch's.
    pub model: Option<LoadedModel>,
    pub images: Vec<Loaded>,
    /// To be asked before the devices start: records that these attempts begin.
    pub begin: Begin,
}

/// Asks for a record and waits until it is written.
pub struct Begin {
    ask: oneshot::Sender<()>,
    written: oneshot::Receiver<()>,
}

impl Begin {
    /// Waits until it is written, or cannot be. Not for async code.
    pub fn wait(self) {
        let _ = self.ask.send(());
        let _ = self.written.blocking_recv();
    }
}

/// What a job's image needs.
struct Fetched {
    frame: Decoded,
    photo: Option<Photo>,
    model: ModelRef,
    checkpoint: Option<checkpoint::Saved>,
    /// Earlier attempts that began and did not end.
    before: usize,
}

/// What fetching needs.
struct Fetcher {
    config: Config,
    supply: Supply,
    controls: Controls,
    queue: Queue,
    runs: Runs,
    datasets: HashMap<String, Store>,
    loaded: mpsc::Sender<Batch>,
    /// Digest of the model that the devices have, and what else of it.
    handed: (String, (bool, bool)),
    batch: Vec<Loaded>,
    shutdown: Shutdown,
}

/// Fetches batches until the queue closes, a stop is requested, or nothing has come for the time to drain.
pub async fn run(
    config: Config,
    models: Models,
    queue: Queue,
    runs: Runs,
    mut consumer: Consumer,
    loaded: mpsc::Sender<Batch>,
    shutdown: Shutdown,
) -> Result<(), Error> {
    let (supply, controls) = (Supply::new(models), Controls::new(&runs));
    let (datasets, handed, batch) = Default::default();
    let mut fetcher = Fetcher { config, supply, controls, queue, runs, datasets, loaded, handed, batch, shutdown };
    let started = Instant::now();
    let mut last = Instant::now();
    let over = |limit: Option<Duration>, since: Instant| limit.is_some_and(|limit| since.elapsed() >= limit);
    while !fetcher.shutdown.requested() && !fetcher.loaded.is_closed() && !over(fetcher.config.max_runtime, started) {
        // A batch that is not full waits a moment for more, not for ever.
        let Ok(next) = tokio::time::timeout(Duration::from_millis(100), consumer.next()).await else {
            fetcher.hand_over().await?;
            // The devices still work while the channel has no room.
            if fetcher.loaded.capacity() == 0 {
                last = Instant::now();
            }
            if over(fetcher.config.drain_after, last) {
                tracing::info!("no job has come: leaving");
                break;
            }
            continue;
        };
        let Some(delivery) = next? else { break };
        last = Instant::now();
        if let Some(image) = fetcher.fetch(delivery).await? {
            fetcher.add(image).await?;
        }
    }
    for image in fetcher.batch {
        image.delivery.release().await?;
    }
    Ok(())
}

impl Fetcher {
    /// Puts an image into the batch. One batch: one run, and so one model and one set of parameters.
    async fn add(&mut self, image: Loaded) -> Result<(), Error> {
        let differs = |first: &Loaded| first.job.run != image.job.run || first.job.params != image.job.params;
        let suspect = image.suspect;
        if suspect || self.batch.first().is_some_and(differs) {
            self.hand_over().await?;
        }
        self.batch.push(image);
        if suspect || self.batch.len() >= self.config.batch_images {
            self.hand_over().await?;
        }
        Ok(())
    }

    /// Gives the batch to the devices, with its model if they have another.
    async fn hand_over(&mut self) -> Result<(), Error> {
        let images = std::mem::take(&mut self.batch);
        let Some(first) = images.first() else { return Ok(()) };
        let wanted = (first.job.model_digest.clone(), find::needs(&first.job.params.object));
        let model = if wanted == self.handed {
            None
        } else {
            let loaded = tokio::select! {
                biased;
                () = self.shutdown.asked() => {
                    // They go back at the end of `run`. A copy of a large model takes minutes.
                    self.batch = images;
                    return Ok(());
                }
                loaded = self.supply.load(&first.job) => loaded.map_err(FetchError::from),
            };
            match loaded {
                Ok(model) => {
                    self.handed = wanted;
                    Some(model)
                }
                Err(error) => {
                    for image in images {
                        self.fail(image.delivery, &image.hand, &image.job, &error).await?;
                    }
                    // A model that cannot be kept on this machine is no fault of the images.
                    return match error {
                        FetchError::Model(error @ SupplyError::Cache { .. }) => Err(Error::Cache(Box::new(error))),
                        _ => Ok(()),
                    };
                }
            }
        };
        // Nobody receives any more when the devices' thread has ended: dropped deliveries go back.
        let begin = self.begin(&images)?;
        let _ = self.loaded.send(Batch { model, images, begin }).await;
        Ok(())
    }

    /// Ready to record that attempts at these images begin.
    fn begin(&self, images: &[Loaded]) -> Result<Begin, Error> {
        let keys: Vec<String> = images.iter().map(|image| keys::attempt(&image.job.image, &image.attempt)).collect();
        let results = images.first().map(|image| self.runs.of(&image.job.run)).transpose()?;
        let worker = self.config.name.clone();
        let ((ask, asked), (tell, written)) = (oneshot::channel(), oneshot::channel());
        tokio::spawn(async move {
            let (Ok(()), Some(results)) = (asked.await, results) else { return };
            for key in keys {
                if let Err(error) = results.put(&key, worker.clone().into_bytes()).await {
                    tracing::warn!(error = chain(&error), "an attempt could not be recorded");
                }
            }
            CrashPoint::AttemptRecorded.pass();
            let _ = tell.send(());
        });
        Ok(Begin { ask, written })
    }

    /// One delivery; `None` if it is settled already.
    async fn fetch(&mut self, delivery: Delivery) -> Result<Option<Loaded>, Error> {
        let job = match Job::decode(delivery.payload()) {
            Ok(job) if keys::check_run(&job.run).is_ok() || matches!(self.runs, Runs::One(_)) => job,
            // Without a job there is no place for a record; the dead letter is the record.
            Ok(job) => {
                delivery.reject(&format!("the run's name {:?} is not valid", job.run)).await?;
                return Ok(None);
            }
            Err(error) => {
                delivery.reject(&chain(&FetchError::from(error))).await?;
                return Ok(None);
            }
        };
        CrashPoint::JobTaken.pass();
        let id = job.id();
        let hand = Hand::take(&delivery, &job, &id, &self.queue);
        let span = hand.span.clone();
        self.take_up(delivery, hand, job, id).instrument(span).await
    }

    /// One job; `None` if it is settled already.
    async fn take_up(&mut self, delivery: Delivery, mut hand: Hand, job: Job, id: JobId) -> Result<Option<Loaded>, Error> {
        if !self.controls.may_compute(&job.run).await {
            // It is not wanted now: the coordinator keeps it.
            tell(&self.config, &self.queue, &hand, &job, What::Released { queued: false }).await?;
            delivery.ack().await?;
            return Ok(None);
        }
        let begun = Instant::now();
        let loaded = self.load(&job, &id).instrument(trace::child(&hand.span, "fetch")).await;
        hand.took("fetch", begun.elapsed().as_secs_f64());
        match loaded {
            Ok(Some(Fetched { frame, photo, model, checkpoint, before })) => {
                hand.ended("fetch");
                if delivery.attempt() > 1 || before > 0 || checkpoint.is_some() {
                    trace::redelivered(&hand.span, delivery.context());
                }
                tell(&self.config, &self.queue, &hand, &job, What::Started).await?;
                CrashPoint::StartTold.pass();
                let (attempt, seconds) = (attempt_name(&self.config.name), 0.0);
                let suspect = before >= SUSPECT;
                Ok(Some(Loaded { delivery, hand, job, id, attempt, model, frame, photo, checkpoint, seconds, suspect }))
            }
            Ok(None) => {
                tell(&self.config, &self.queue, &hand, &job, What::found()).await?;
                delivery.ack().await?;
                Ok(None)
            }
            Err(error) => {
                self.fail(delivery, &hand, &job, &error).await?;
                match error {
                    FetchError::Results(source) if fate::results(&source) == Fate::Crash => Err(source.into()),
                    FetchError::Model(error @ SupplyError::Cache { .. }) => Err(Error::Cache(Box::new(error))),
                    FetchError::Dataset { .. } => Err(Error::Dataset(Box::new(error))),
                    _ => Ok(None),
                }
            }
        }
    }

    /// Does with a job what its error means.
    async fn fail(&self, delivery: Delivery, hand: &Hand, job: &Job, error: &FetchError) -> Result<(), Error> {
        let message = chain(error);
        let fate = match fate::fate(error) {
            // What the results' store does not take can not be recorded there either.
            Fate::Retry if delivery.attempt() >= RETRIES && !matches!(error, FetchError::Results(_)) => {
                Fate::Reject(FailureReason::Unavailable)
            }
            fate => fate,
        };
        match fate {
            Fate::Retry => {
                tracing::warn!(run = job.run, image = job.image, error = message, "tried again in a moment");
                metrics::RETRIES.record(1.0, &[("reason", missing(error))]);
                let pause = RETRY_PAUSE.0 * 2u32.saturating_pow(delivery.attempt().min(16) - 1);
                // It waits in the delivery's place, so that a store that is away does not spin the queue.
                tokio::spawn(async move {
                    tokio::time::sleep(pause.min(RETRY_PAUSE.1)).await;
                    let _ = delivery.retry().await;
                });
            }
            Fate::Reject(reason) => {
                let results = self.runs.of(&job.run)?;
                reject(&self.config, &self.queue, &results, delivery, hand, job, (reason, message)).await?;
            }
            // No fault of the job's: it goes back uncounted, and the caller ends the worker.
            Fate::Crash => delivery.release().await?,
        }
        Ok(())
    }

    /// Reads everything that the devices need; `None`: there is a result already.
    async fn load(&mut self, job: &Job, id: &JobId) -> Result<Option<Fetched>, FetchError> {
        let results = self.runs.of(&job.run).map_err(FetchError::Results)?;
        if results.exists(&keys::marker(&job.image, Marker::Result)).await.map_err(FetchError::Results)? {
            return Ok(None);
        }
        let facts = self.supply.facts(job).await?;
        if let Some(problem) = facts.manifest.lacks(&job.params) {
            return Err(FetchError::Lacks(problem.to_string()));
        }
        let (classes, open) = (facts.manifest.classes.len(), job.params.object.class.is_predicted());
        if (job.class as usize >= classes) != open || open && job.class != OPEN_CLASS {
            return Err(FetchError::Class { class: job.class, classes });
        }
        let (frame, photo) = self.decode(job, &facts).await?;
        let checkpoint = match results.get(&keys::checkpoint(&job.image)).await {
            Ok(bytes) => checkpoint::decode(id, &bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(FetchError::Results(error)),
        };
        let before = self.unended(&results, job).await?;
        let model =
            ModelRef { name: job.model.clone(), digest: facts.digest.clone(), resolution: facts.manifest.generator.resolution };
        Ok(Some(Fetched { frame, photo, model, checkpoint, before }))
    }

    /// The image as the data set says, and as it is if more is to be found in it.
    async fn decode(&mut self, job: &Job, facts: &Facts) -> Result<(Decoded, Option<Photo>), FetchError> {
        let image_error = |source| FetchError::Image { image: job.image.clone(), source };
        let dataset = match self.datasets.get(&job.dataset) {
            Some(store) => store.clone(),
            None => {
                let store = Store::open(&job.dataset).await.map_err(image_error)?;
                self.datasets.entry(job.dataset.clone()).or_insert(store).clone()
            }
        };
        let bytes = match dataset.get_limited(&job.image, MAX_IMAGE_BYTES).await {
            Ok(bytes) => bytes,
            Err(error) => return Err(self.image_or_dataset(&dataset, job, error).await),
        };
        let found = dataset.identity(&job.image).await.map_err(image_error)?.unwrap_or_default();
        if found != job.identity {
            let (image, planned) = (job.image.clone(), job.identity.clone());
            return Err(FetchError::Changed { image, planned, found });
        }
        let mask = match &job.mask {
            Some(Mask::File { key, identity }) => Some(read_mask(&dataset, key, identity).await?),
            _ => None,
        };
        let (known, resolution) = (job.clone(), facts.manifest.generator.resolution);
        let decoded = tokio::task::spawn_blocking(move || decode(&known, &bytes, mask, resolution)).await;
        decoded.expect("decoding does not panic").map_err(|source| FetchError::Decode { image: job.image.clone(), source })
    }

    /// An image that cannot be read may be at fault; or this machine, if it cannot see the data set at all.
    async fn image_or_dataset(&self, dataset: &Store, job: &Job, error: store::Error) -> FetchError {
        let of_image = matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::InvalidKey | ErrorKind::TooLarge);
        let seen = match dataset.list("") {
            Ok(list) if !of_image => list.with_page_size(1).next_page().await.is_ok_and(|page| page.is_some()),
            _ => true,
        };
        match seen {
            true => FetchError::Image { image: job.image.clone(), source: error },
            false => FetchError::Dataset { dataset: job.dataset.clone(), source: error },
        }
    }

    /// How many earlier attempts at the image began and never ended; refuses one where they always do.
    async fn unended(&self, results: &Store, job: &Job) -> Result<usize, FetchError> {
        let before = results.list(&keys::attempts(&job.image)).map_err(FetchError::Results)?;
        let before = before.all().await.map_err(FetchError::Results)?;
        if before.len() >= MAX_UNENDED {
            for object in &before {
                results.delete(&object.key).await.map_err(FetchError::Results)?;
            }
            return Err(FetchError::Quarantined { image: job.image.clone(), attempts: before.len() });
        }
        Ok(before.len())
    }
}

/// A mask that is a file of the data set.
async fn read_mask(dataset: &Store, key: &str, planned: &str) -> Result<Bitmap, FetchError> {
    let mask = key.to_owned();
    let error = |source| FetchError::Mask { mask: mask.clone(), source };
    let bytes = dataset.get_limited(key, MAX_IMAGE_BYTES).await.map_err(error)?;
    let found = dataset.identity(key).await.map_err(error)?.unwrap_or_default();
    if found != planned {
        return Err(FetchError::Changed { image: mask, planned: planned.to_owned(), found });
    }
    let bitmap = tokio::task::spawn_blocking(move || codec::read_mask(&bytes)).await.expect("decoding does not panic");
    bitmap.map_err(|source| FetchError::DecodeMask { mask, source })
}

/// The image as the data set says; and as it is, where a worker looks for more.
fn decode(job: &Job, bytes: &[u8], file: Option<Bitmap>, resolution: u32) -> Result<(Decoded, Option<Photo>), CodecError> {
    let photo = codec::read(bytes)?;
    let mask = match &job.mask {
        Some(Mask::Polygons(polygons)) => Some(outline::polygons(polygons, photo.width, photo.height)),
        Some(Mask::Runs { height, width, .. }) if (*width, *height) != (photo.width, photo.height) => {
            let problem = format!("is {width} x {height} pixels");
            return Err(CodecError::BadMask { width: photo.width, height: photo.height, problem });
        }
        Some(Mask::Runs { height, width, lengths }) => Some(outline::runs(lengths, *width, *height)),
        Some(Mask::File { .. }) => file,
        None => None,
    };
    // COCO has outlines that hold no pixel: the box is what is known then.
    let mask = mask.filter(|mask| matches!(job.mask, Some(Mask::File { .. })) || mask.extent().is_some());
    let object = &job.params.object;
    let bbox = job.bbox.filter(|_| !object.mask.is_detected() && object.mask != MaskSource::Whole);
    let frame = codec::frame(&photo, bbox, mask.as_ref(), resolution)?;
    let (classifier, detector) = find::needs(object);
    Ok((frame, (classifier || detector).then_some(photo)))
}

/// What was not there, of errors that are tried again.
fn missing(error: &FetchError) -> &'static str {
    match error {
        FetchError::Image { .. } | FetchError::Mask { .. } => "image",
        FetchError::Results(_) => "results",
        _ => "model",
    }
}

/// A name that no other attempt has: worker, time and a counter, hashed.
fn attempt_name(worker: &str) -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    proto::hex_sha256(format!("{worker} {} {time} {count}", std::process::id()).as_bytes())[..12].to_owned()
}

/// The failure record first, then the event, then the dead letter.
pub(crate) async fn reject(
    config: &Config,
    queue: &Queue,
    results: &Store,
    delivery: Delivery,
    hand: &Hand,
    job: &Job,
    (reason, message): (FailureReason, String),
) -> Result<(), Error> {
    hand.fail(reason);
    tracing::warn!(run = job.run, image = job.image, reason = reason.as_str(), message, "failed");
    let failure = Failure::of(job, reason, message);
    let bytes = serde_json::to_vec_pretty(&failure).expect("a record serialises");
    results.put(&keys::marker(&job.image, Marker::Failure), bytes).await?;
    CrashPoint::FailureRecorded.pass();
    let what = What::Failed { reason: reason.as_str().into(), message: failure.message.clone() };
    tell(config, queue, hand, job, what).await?;
    CrashPoint::FailureTold.pass();
    delivery.reject(&failure.message).await?;
    CrashPoint::FailureSettled.pass();
    Ok(())
}
