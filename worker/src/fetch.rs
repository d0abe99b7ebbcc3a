//! Deliveries become loaded images (*io*).

use std::collections::HashMap;
use std::time::{Duration, Instant};

use engine::codec::{Bitmap, CodecError, Decoded, Photo};
use engine::finder::Needs;
use engine::supply::Supply;
use engine::{LoadedModel, Models, SupplyError, codec, outline};
use futures_util::future::join_all;
use proto::{CrashPoint, Found, Job, JobId, Mask, MaskSource, ModelRef, OPEN_CLASS, Stage, What, chain, keys};
use queue::{Consumer, Delivery};
use store::{ErrorKind, Runs, Store};
use telemetry::trace;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::Instrument;

use crate::Error;
use crate::attempt::{Attempt, Shared, settle};
use crate::checkpoint::{self, JobCheckpoint};
use crate::fate::{Fate, JobError, Unavailable, fate};
use crate::has_result::has_result;
use crate::marks::{self, SUSPECT, unended};
use crate::outage::{Check, Place, Then};

/// Longest time in which the beginning of attempts is recorded.
const MARKED: Duration = Duration::from_secs(10);
/// Largest image file, in bytes.
const MAX_IMAGE_BYTES: u64 = 256 << 20;

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
    datasets: HashMap<String, Store>,
    loaded: mpsc::Sender<Batch>,
    /// Digest of the model that the devices have, and which of its finder's networks.
    on_devices: Option<(String, Needs)>,
    batch: Vec<Loaded>,
    /// Jobs that are held while the store of their data set is away.
    held: JoinSet<()>,
}

/// Fetches batches until the queue closes, a shutdown is requested, or no job has come for the time to drain. Cancels the
/// `shutdown` of its `shared` at the end, which is one of its own.
pub async fn run(shared: Shared, models: Models, mut consumer: Consumer, loaded: mpsc::Sender<Batch>) -> Result<(), Error> {
    let supply = Supply::new(models);
    let (datasets, on_devices, batch) = Default::default();
    let mut fetcher = Fetcher { shared, supply, datasets, loaded, on_devices, batch, held: JoinSet::new() };
    let worked = fetcher.work(&mut consumer).await;
    // What has not begun goes back, whatever ended the work.
    fetcher.shared.shutdown.cancel();
    while fetcher.held.join_next().await.is_some() {}
    let mut released = Ok(());
    for image in fetcher.batch {
        released = released.and(image.attempt.delivery.release().await);
    }
    worked?;
    Ok(released?)
}

impl Fetcher {
    async fn work(&mut self, consumer: &mut Consumer) -> Result<(), Error> {
        let drain_after = self.shared.config.drain_after;
        let shutdown = self.shared.shutdown.clone();
        if let Some(limit) = self.shared.config.max_runtime {
            let shutdown = shutdown.clone();
            tokio::spawn(async move {
                tokio::time::sleep(limit).await;
                shutdown.cancel();
            });
        }
        let mut last = Instant::now();
        while !shutdown.is_cancelled() && !self.loaded.is_closed() {
            if self.shared.outages.is_away(Place::Store) {
                // Publishing waits for the store: more jobs would only be held. That is no idleness.
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = self.shared.outages.is_back(Place::Store) => {}
                }
                last = Instant::now();
                continue;
            }
            // A batch that is not full waits a moment for more, not for ever.
            let Ok(next) = tokio::time::timeout(Duration::from_millis(100), consumer.next()).await else {
                self.send_batch().await?;
                while self.held.try_join_next().is_some() {}
                // The devices still work while the channel has no room.
                if self.loaded.capacity() == 0 || !self.held.is_empty() {
                    last = Instant::now();
                }
                if drain_after.is_some_and(|limit| last.elapsed() >= limit) {
                    tracing::info!("no job has come for the time to drain: the worker leaves");
                    break;
                }
                continue;
            };
            let Some(delivery) = next? else { break };
            last = Instant::now();
            if let Some(image) = self.fetch(delivery).await? {
                self.add(image).await?;
            }
        }
        Ok(())
    }

    /// Puts an image into the batch. One batch: one run, and so one model and one set of parameters.
    async fn add(&mut self, image: Loaded) -> Result<(), Error> {
        let job = &image.attempt.job;
        let differs = |first: &Loaded| first.attempt.job.run != job.run || first.attempt.job.params != job.params;
        let suspect = image.suspect;
        let alone = suspect || self.batch.first().is_some_and(differs);
        let sent = if alone { self.send_batch().await } else { Ok(()) };
        // Also after an error: what is in the batch goes back.
        self.batch.push(image);
        sent?;
        if suspect || self.batch.len() >= self.shared.config.batch_images {
            self.send_batch().await?;
        }
        Ok(())
    }

    /// Sends the batch to the devices, with its model if they have another.
    async fn send_batch(&mut self) -> Result<(), Error> {
        let images = std::mem::take(&mut self.batch);
        let Some(first) = images.first() else { return Ok(()) };
        let job = first.attempt.job.clone();
        let wanted = Some((job.model_digest.clone(), Needs::of(&job.params.object)));
        let mut model = None;
        if wanted != self.on_devices {
            match self.load_model(&job).await {
                Ok(Some(loaded)) => (model, self.on_devices) = (Some(loaded), wanted),
                Ok(None) => {
                    // They go back at the end of `run`.
                    self.batch = images;
                    return Ok(());
                }
                Err(error) => {
                    let attempts = images.into_iter().map(|image| image.attempt).collect();
                    return settle(&self.shared, attempts, error).await;
                }
            }
        }
        let begin = self.begin(&images)?;
        if let Err(unsent) = self.loaded.send(Batch { model, images, begin }).await {
            // The devices' thread has ended: nothing of this has begun.
            self.batch = unsent.0.images;
        }
        Ok(())
    }

    /// The job's model; `None`: the worker is to leave. A copy of a large model takes minutes.
    async fn load_model(&mut self, job: &Job) -> Result<Option<LoadedModel>, JobError> {
        let shutdown = self.shared.shutdown.clone();
        let mut wait = self.shared.wait(Place::Store);
        loop {
            let loaded = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(None),
                loaded = self.supply.load(job) => loaded,
            };
            let error = match loaded {
                Ok(loaded) => return Ok(Some(loaded)),
                Err(error) => JobError::from(error),
            };
            if fate(&error, 1) != Fate::Wait(Place::Store) {
                return Err(error);
            }
            match wait.until_it_answers(&chain(&error), Check::Reads(self.shared.home())).await {
                Then::Again => {}
                Then::Leave => return Ok(None),
                // The store answers, and does not give this model: as good as damaged.
                Then::GiveUp => return Err(SupplyError::Damaged { model: job.model.clone(), problem: chain(&error) }.into()),
            }
        }
    }

    /// Ready to record that attempts at these images of one run begin.
    fn begin(&self, images: &[Loaded]) -> Result<Box<dyn FnOnce() + Send>, Error> {
        let attempts = images.iter().map(|image| &image.attempt);
        let keys: Vec<String> = attempts.map(|attempt| keys::attempt(&attempt.job.image, &attempt.name)).collect();
        let results = images[0].attempt.results(&self.shared)?;
        let mark = marks::mark(&self.shared.config.name, &self.shared.config.node);
        let runtime = tokio::runtime::Handle::current();
        let record = async move {
            let puts = join_all(keys.iter().map(|key| results.put(key, mark.clone())));
            // The devices do not wait for a store that is away.
            match tokio::time::timeout(MARKED, puts).await {
                Ok(marked) => {
                    for error in marked.into_iter().filter_map(Result::err) {
                        tracing::warn!(error = chain(&error), "cannot record that an attempt begins");
                    }
                }
                Err(_) => tracing::warn!(seconds = MARKED.as_secs(), "cannot record in time that an attempt begins"),
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
        if !self.shared.control.may_compute(&attempt.job.run).await {
            attempt.release(&self.shared, false).await?;
            return Ok(None);
        }
        let mut wait = self.shared.wait(Place::Store);
        let fetched = loop {
            let begun = Instant::now();
            let fetched = self.load(&attempt.job, &attempt.id).instrument(attempt.span.stage(Stage::Fetch)).await;
            attempt.span.add_seconds(Stage::Fetch, begun.elapsed().as_secs_f64());
            let Err(error) = &fetched else { break fetched };
            if fate(error, attempt.delivery.attempt()) != Fate::Wait(Place::Store) {
                break fetched;
            }
            match wait.until_it_answers(&chain(error), Check::Reads(self.shared.home())).await {
                Then::Again => {}
                Then::Leave => break fetched,
                Then::GiveUp => {
                    attempt.retry(Unavailable::Results, chain(error)).await?;
                    return Ok(None);
                }
            }
        };
        drop(wait);
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
            Err(error @ JobError::DatasetAway { .. }) => self.hold(attempt, error).await.map(|()| None),
            Err(error) => settle(&self.shared, vec![attempt], error).await.map(|()| None),
        }
    }

    /// Holds the job while the store of its data set is away, in the delivery's place: the jobs of other runs go on until this
    /// worker holds as many as it may. Then it goes back uncounted.
    async fn hold(&mut self, attempt: Attempt, error: JobError) -> Result<(), Error> {
        let Some(dataset) = self.datasets.get(&attempt.job.dataset).cloned() else {
            return settle(&self.shared, vec![attempt], error).await;
        };
        // The coordinator is to know who has the job.
        attempt.tell(&self.shared, What::Started).await?;
        let shared = self.shared.clone();
        let mut wait = shared.wait(Place::DataSet);
        let error = chain(&error);
        wait.show(&error);
        while self.held.try_join_next().is_some() {}
        self.held.spawn(async move {
            wait.until_it_answers(&error, Check::Reads(&dataset)).await;
            if let Err(error) = attempt.release(&shared, true).await {
                // Every stage meets the same error of the queue.
                tracing::debug!(error = chain(&error), "cannot release a job that was held");
            }
        });
        Ok(())
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
                let allowed = &self.shared.config.allowed;
                let store = Store::open_allowed(&job.dataset, allowed).await.map_err(image_error)??;
                self.datasets.entry(job.dataset.clone()).or_insert(store).clone()
            }
        };
        let bytes = match dataset.get_limited(&job.image, MAX_IMAGE_BYTES).await {
            Ok(bytes) => bytes,
            Err(error) => return Err(image_or_dataset(&dataset, job, error).await),
        };
        let found = match dataset.identity(&job.image).await {
            Ok(found) => found.unwrap_or_default(),
            Err(error) => return Err(image_or_dataset(&dataset, job, error).await),
        };
        if found != job.identity {
            let (image, planned) = (job.image.clone(), job.identity.clone());
            return Err(JobError::Changed { image, planned, found });
        }
        let mask = match &job.mask {
            Some(Mask::File { key, identity }) => Some(read_mask(&dataset, job, key, identity).await?),
            _ => None,
        };
        let known = job.clone();
        let decoded = tokio::task::spawn_blocking(move || decode(&known, &bytes, mask, resolution)).await;
        decoded.expect("decoding does not panic").map_err(|source| JobError::Decode { image: job.image.clone(), source })
    }
}

/// The error of an image that cannot be read: the image's, or this machine's if it cannot see the data set at all, or that of a store
/// that is away.
async fn image_or_dataset(dataset: &Store, job: &Job, error: store::Error) -> JobError {
    let error = match away(dataset, job, error).await {
        Ok(away) => return away,
        Err(error) => error,
    };
    let of_image = matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::InvalidKey | ErrorKind::TooLarge);
    if let Ok(list) = dataset.list("")
        && !of_image
        && !list.with_page_size(1).next_page().await.is_ok_and(|page| page.is_some())
    {
        return JobError::Dataset { dataset: job.dataset.clone(), source: error };
    }
    JobError::Image { image: job.image.clone(), source: error }
}

/// Whether an object could not be read because the whole store of the data set is away; if not, `error` comes back.
async fn away(dataset: &Store, job: &Job, error: store::Error) -> Result<JobError, store::Error> {
    if error.kind() == ErrorKind::Unavailable && !Check::Reads(dataset).answers().await {
        return Ok(JobError::DatasetAway { dataset: job.dataset.clone(), source: error });
    }
    Err(error)
}

/// A mask that is a file of the data set.
async fn read_mask(dataset: &Store, job: &Job, key: &str, planned: &str) -> Result<Bitmap, JobError> {
    let mask = key.to_owned();
    let read = async {
        let bytes = dataset.get_limited(key, MAX_IMAGE_BYTES).await?;
        Ok::<_, store::Error>((bytes, dataset.identity(key).await?.unwrap_or_default()))
    };
    let (bytes, found) = match read.await {
        Ok(read) => read,
        Err(error) => {
            let of_mask = |source| JobError::Mask { mask, source };
            return Err(away(dataset, job, error).await.unwrap_or_else(of_mask));
        }
    };
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
