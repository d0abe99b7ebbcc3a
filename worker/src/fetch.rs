//! Deliveries become loaded images (*io*).

use std::collections::HashMap;
use std::time::{Duration, Instant};

use engine::codec::{Bitmap, CodecError, Decoded, Photo};
use engine::finder::Needs;
use engine::supply::Supply;
use engine::{LoadedModel, Models, codec, outline};
use proto::{CrashPoint, Found, Job, JobId, Mask, MaskSource, ModelRef, OPEN_CLASS, Stage, What, chain, keys};
use queue::{Consumer, Delivery};
use store::{ErrorKind, Runs, Store};
use telemetry::trace;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::Error;
use crate::attempt::{Attempt, Shared, settle};
use crate::checkpoint::{self, JobCheckpoint};
use crate::fate::JobError;
use crate::publish::has_result;
use crate::run_control::RunControl;

/// Largest image file, in bytes.
const MAX_IMAGE_BYTES: u64 = 256 << 20;
/// An image is projected alone after this many attempts that began and neither ended nor saved anything.
const SUSPECT: usize = 2;
/// After this many of them it fails.
const MAX_UNENDED: usize = 5;

/// An image ready for the devices.
pub struct Loaded {
    pub attempt: Attempt,
    pub model: ModelRef,
    /// The image in the generator's frame.
    pub frame: Decoded,
    /// The image as it is, where the class or the object is still to be found in it.
    pub photo: Option<Photo>,
    /// What was found in the image, if anything was looked for.
    pub found: Option<Found>,
    /// The classes that the classifier finds likely, with their probabilities; empty: it was not asked.
    pub likely: Vec<(u32, f64)>,
    pub checkpoint: Option<JobCheckpoint>,
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
    /// Called before the devices start: records that these attempts begin, and waits. Not for async code.
    pub begin: Box<dyn FnOnce() + Send>,
}

/// What a job's image needs.
struct Fetched {
    frame: Decoded,
    photo: Option<Photo>,
    model: ModelRef,
    checkpoint: Option<JobCheckpoint>,
    /// Earlier attempts that began and did not end.
    unended: usize,
}

struct Fetcher {
    shared: Shared,
    supply: Supply,
    control: RunControl,
    datasets: HashMap<String, Store>,
    loaded: mpsc::Sender<Batch>,
    /// Digest of the model that the devices have, and which of its finder's networks.
    on_devices: Option<(String, Needs)>,
    batch: Vec<Loaded>,
    shutdown: CancellationToken,
}

/// Fetches batches until the queue closes, a shutdown is requested, or no job has come for the time to drain.
pub async fn run(
    shared: Shared,
    models: Models,
    mut consumer: Consumer,
    loaded: mpsc::Sender<Batch>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let (max_runtime, drain_after) = (shared.config.max_runtime, shared.config.drain_after);
    let (supply, control) = (Supply::new(models), RunControl::new(&shared.runs));
    let (datasets, on_devices, batch) = Default::default();
    let mut fetcher = Fetcher { shared, supply, control, datasets, loaded, on_devices, batch, shutdown };
    let started = Instant::now();
    let mut last = Instant::now();
    let over = |limit: Option<Duration>, since: Instant| limit.is_some_and(|limit| since.elapsed() >= limit);
    while !fetcher.shutdown.is_cancelled() && !fetcher.loaded.is_closed() && !over(max_runtime, started) {
        // A batch that is not full waits a moment for more, not for ever.
        let Ok(next) = tokio::time::timeout(Duration::from_millis(100), consumer.next()).await else {
            fetcher.send_batch().await?;
            // The devices still work while the channel has no room.
            if fetcher.loaded.capacity() == 0 {
                last = Instant::now();
            }
            if over(drain_after, last) {
                tracing::info!("no job has come for the time to drain: the worker leaves");
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
        image.attempt.delivery.release().await?;
    }
    Ok(())
}

impl Fetcher {
    /// Puts an image into the batch. One batch: one run, and so one model and one set of parameters.
    async fn add(&mut self, image: Loaded) -> Result<(), Error> {
        let job = &image.attempt.job;
        let differs = |first: &Loaded| first.attempt.job.run != job.run || first.attempt.job.params != job.params;
        let suspect = image.suspect;
        if suspect || self.batch.first().is_some_and(differs) {
            self.send_batch().await?;
        }
        self.batch.push(image);
        if suspect || self.batch.len() >= self.shared.config.batch_images {
            self.send_batch().await?;
        }
        Ok(())
    }

    /// Sends the batch to the devices, with its model if they have another.
    async fn send_batch(&mut self) -> Result<(), Error> {
        let images = std::mem::take(&mut self.batch);
        let Some(first) = images.first() else { return Ok(()) };
        let job = &first.attempt.job;
        let wanted = Some((job.model_digest.clone(), Needs::of(&job.params.object)));
        let mut model = None;
        if wanted != self.on_devices {
            let loaded = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => {
                    // They go back at the end of `run`. A copy of a large model takes minutes.
                    self.batch = images;
                    return Ok(());
                }
                loaded = self.supply.load(job) => loaded,
            };
            match loaded {
                Ok(loaded) => (model, self.on_devices) = (Some(loaded), wanted),
                Err(error) => {
                    let attempts = images.into_iter().map(|image| image.attempt).collect();
                    return settle(&self.shared, attempts, error.into()).await;
                }
            }
        }
        // When the devices' thread has ended this fails, and the deliveries, which are dropped, go back.
        let begin = self.begin(&images)?;
        let _ = self.loaded.send(Batch { model, images, begin }).await;
        Ok(())
    }

    /// Ready to record that attempts at these images of one run begin.
    fn begin(&self, images: &[Loaded]) -> Result<Box<dyn FnOnce() + Send>, Error> {
        let attempts = images.iter().map(|image| &image.attempt);
        let keys: Vec<String> = attempts.map(|attempt| keys::attempt(&attempt.job.image, &attempt.name)).collect();
        let results = images[0].attempt.results(&self.shared)?;
        let name = self.shared.config.name.clone();
        let runtime = tokio::runtime::Handle::current();
        let record = async move {
            for key in keys {
                if let Err(error) = results.put(&key, name.clone().into_bytes()).await {
                    tracing::warn!(error = chain(&error), "cannot record that an attempt begins");
                }
            }
            CrashPoint::AttemptRecorded.pass();
        };
        Ok(Box::new(move || runtime.block_on(record)))
    }

    /// One delivery; `None` if it is settled already.
    async fn fetch(&mut self, delivery: Delivery) -> Result<Option<Loaded>, Error> {
        let job = match Job::decode(delivery.payload()) {
            Ok(job) if keys::check_run(&job.run).is_ok() || matches!(self.shared.runs, Runs::One(_)) => job,
            // Without a job there is no place for a record; the dead letter is the record.
            Ok(job) => {
                delivery.reject(&format!("the run's name {:?} is not valid", job.run)).await?;
                return Ok(None);
            }
            Err(error) => {
                delivery.reject(&chain(&JobError::from(error))).await?;
                return Ok(None);
            }
        };
        CrashPoint::JobTaken.pass();
        let attempt = Attempt::begin(&self.shared, delivery, job);
        let span = attempt.span.span.clone();
        self.try_job(attempt).instrument(span).await
    }

    /// One job; `None` if it is settled already.
    async fn try_job(&mut self, mut attempt: Attempt) -> Result<Option<Loaded>, Error> {
        if !self.control.may_compute(&attempt.job.run).await {
            attempt.release(&self.shared, false).await?;
            return Ok(None);
        }
        let begun = Instant::now();
        let fetched = self.load(&attempt.job, &attempt.id).instrument(attempt.span.stage(Stage::Fetch)).await;
        attempt.span.add_seconds(Stage::Fetch, begun.elapsed().as_secs_f64());
        match fetched {
            Ok(Some(Fetched { frame, photo, model, checkpoint, unended })) => {
                attempt.span.end_stage(Stage::Fetch);
                if attempt.delivery.attempt() > 1 || unended > 0 || checkpoint.is_some() {
                    trace::redelivered(&attempt.span.span, attempt.delivery.context());
                }
                attempt.tell(&self.shared, What::Started).await?;
                CrashPoint::StartTold.pass();
                let suspect = unended >= SUSPECT;
                Ok(Some(Loaded { attempt, model, frame, photo, found: None, likely: vec![], checkpoint, seconds: 0.0, suspect }))
            }
            Ok(None) => {
                attempt.tell(&self.shared, What::found()).await?;
                attempt.delivery.ack().await?;
                Ok(None)
            }
            Err(error) => settle(&self.shared, vec![attempt], error).await.map(|()| None),
        }
    }

    /// Reads everything that the devices need; `None`: there is a result already.
    async fn load(&mut self, job: &Job, id: &JobId) -> Result<Option<Fetched>, JobError> {
        let results = self.shared.runs.of(&job.run).map_err(JobError::Results)?;
        if has_result(&results, &job.image, id, job.generation).await.map_err(JobError::Results)? {
            return Ok(None);
        }
        let manifest = self.supply.manifest(job).await?;
        if let Some(problem) = manifest.lacks(&job.params) {
            return Err(JobError::Lacks(problem));
        }
        let (classes, open) = (manifest.classes.len(), job.params.object.class.is_predicted());
        if (job.class as usize >= classes) != open || open && job.class != OPEN_CLASS {
            return Err(JobError::Class { class: job.class, classes });
        }
        let resolution = manifest.generator.resolution;
        let (frame, photo) = self.decode(job, resolution).await?;
        let checkpoint = match results.get(&keys::checkpoint(&job.image)).await {
            Ok(bytes) => checkpoint::decode(id, &bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(JobError::Results(error)),
        };
        let unended = unended(&results, job).await?;
        let model = ModelRef { name: job.model.clone(), digest: job.model_digest.clone(), resolution };
        Ok(Some(Fetched { frame, photo, model, checkpoint, unended }))
    }

    /// The image in the generator's frame, and as it is if more is to be found in it.
    async fn decode(&mut self, job: &Job, resolution: u32) -> Result<(Decoded, Option<Photo>), JobError> {
        let image_error = |source| JobError::Image { image: job.image.clone(), source };
        let dataset = match self.datasets.get(&job.dataset) {
            Some(store) => store.clone(),
            None => {
                let store = Store::open(&job.dataset).await.map_err(image_error)?;
                self.datasets.entry(job.dataset.clone()).or_insert(store).clone()
            }
        };
        let bytes = match dataset.get_limited(&job.image, MAX_IMAGE_BYTES).await {
            Ok(bytes) => bytes,
            Err(error) => return Err(image_or_dataset(&dataset, job, error).await),
        };
        let found = dataset.identity(&job.image).await.map_err(image_error)?.unwrap_or_default();
        if found != job.identity {
            let (image, planned) = (job.image.clone(), job.identity.clone());
            return Err(JobError::Changed { image, planned, found });
        }
        let mask = match &job.mask {
            Some(Mask::File { key, identity }) => Some(read_mask(&dataset, key, identity).await?),
            _ => None,
        };
        let known = job.clone();
        let decoded = tokio::task::spawn_blocking(move || decode(&known, &bytes, mask, resolution)).await;
        decoded.expect("decoding does not panic").map_err(|source| JobError::Decode { image: job.image.clone(), source })
    }
}

/// The error of an image that cannot be read: the image's, or this machine's if it cannot see the data set at all.
async fn image_or_dataset(dataset: &Store, job: &Job, error: store::Error) -> JobError {
    let of_image = matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::InvalidKey | ErrorKind::TooLarge);
    if let Ok(list) = dataset.list("")
        && !of_image
        && !list.with_page_size(1).next_page().await.is_ok_and(|page| page.is_some())
    {
        return JobError::Dataset { dataset: job.dataset.clone(), source: error };
    }
    JobError::Image { image: job.image.clone(), source: error }
}

/// How many earlier attempts at the image began and never ended. An image with too many is an error.
async fn unended(results: &Store, job: &Job) -> Result<usize, JobError> {
    let before = results.list(&keys::attempts(&job.image)).map_err(JobError::Results)?;
    let before = before.all().await.map_err(JobError::Results)?;
    if before.len() >= MAX_UNENDED {
        for object in &before {
            results.delete(&object.key).await.map_err(JobError::Results)?;
        }
        return Err(JobError::Quarantined { image: job.image.clone(), attempts: before.len() });
    }
    Ok(before.len())
}

/// A mask that is a file of the data set.
async fn read_mask(dataset: &Store, key: &str, planned: &str) -> Result<Bitmap, JobError> {
    let mask = key.to_owned();
    let error = |source| JobError::Mask { mask: mask.clone(), source };
    let bytes = dataset.get_limited(key, MAX_IMAGE_BYTES).await.map_err(error)?;
    let found = dataset.identity(key).await.map_err(error)?.unwrap_or_default();
    if found != planned {
        return Err(JobError::Changed { image: mask, planned: planned.to_owned(), found });
    }
    let bitmap = tokio::task::spawn_blocking(move || codec::read_mask(&bytes)).await.expect("decoding does not panic");
    bitmap.map_err(|source| JobError::DecodeMask { mask, source })
}

/// Decodes an image and its mask, which is a `file` already if it is one of the data set.
fn decode(job: &Job, bytes: &[u8], file: Option<Bitmap>, resolution: u32) -> Result<(Decoded, Option<Photo>), CodecError> {
    let photo = codec::read(bytes)?;
    let mask = match &job.mask {
        Some(Mask::Polygons(polygons)) => Some(outline::polygons(polygons, photo.width(), photo.height())),
        Some(Mask::Runs { height, width, .. }) if (*width, *height) != (photo.width(), photo.height()) => {
            let problem = format!("is {width} x {height} pixels");
            return Err(CodecError::BadMask { width: photo.width(), height: photo.height(), problem });
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
    Ok((frame, (Needs::of(object) != Needs::default()).then_some(photo)))
}
