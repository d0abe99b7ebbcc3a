//! Loaded images become solved ones: the only stage that computes. No I/O; one thread drives the devices.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use projector::{DeviceError, Lanes, Projection, Solution, Target};
use proto::{Found, Job, JobId, ModelRef, Params, RunningSha256};
use queue::Delivery;
use tch::{Device, Tensor};
use tokio::sync::{mpsc, watch};

use crate::fetch::{Batch, Loaded};
use crate::job_span::{Course, Hand};
use crate::{Config, Shutdown, checkpoint, metrics};
use engine::LoadedModel;
use engine::codec::Decoded;
use engine::find::{self, Finder, Sighting};
use engine::recorder::Recorder;

/// What the devices do now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Working {
    /// The batch's run.
    pub run: String,
    /// Images in the batch.
    pub images: usize,
    /// Lane-steps done and in all, for this batch.
    pub batch: (u64, u64),
    /// Mean over the images of the last loss.
    pub loss: f64,
    /// Lane-steps computed since the start, of this and all earlier batches.
    pub lane_steps: u64,
    /// Lane-steps that were found in checkpoints.
    pub resumed: u64,
}

/// What leaves the devices.
pub enum Done {
    /// An image is finished.
    Solved(Box<Solved>),
    /// State of an image that goes on.
    Saved(Saved),
    /// State of an image that is given back.
    Released(Box<Released>),
}

/// State of an image in work.
pub struct Saved {
    pub run: String,
    pub image: String,
    pub attempt: String,
    pub checkpoint: Vec<u8>,
}

/// An image that is given back unfinished.
pub struct Released {
    pub delivery: Delivery,
    pub hand: Hand,
    pub job: Job,
    pub attempt: String,
    pub checkpoint: Vec<u8>,
    /// To the queue; if not, its run is not to be computed now.
    pub queued: bool,
}

/// An image with its answer.
pub struct Solved {
    pub delivery: Delivery,
    pub hand: Hand,
    pub job: Job,
    pub id: JobId,
    pub attempt: String,
    pub model: ModelRef,
    /// The target.
    pub frame: Decoded,
    /// What was found in the image, if anything was looked for.
    pub found: Option<Found>,
    pub solution: Result<Solution, projector::Diverged>,
    /// Seconds of device work of the batch, divided by its images.
    pub seconds: f64,
}

/// Starts the thread. It ends when `loaded` closes, a stop is requested, or a device fails.
pub fn spawn(
    config: &Config,
    mut loaded: mpsc::Receiver<Batch>,
    done: mpsc::Sender<Done>,
    shutdown: Shutdown,
    withdrawn: Arc<AtomicBool>,
    working: watch::Sender<Working>,
) -> JoinHandle<Result<(), DeviceError>> {
    let (devices, checkpoint_every, record) = (config.devices.0.clone(), config.checkpoint_every, config.record.clone());
    let body = move || {
        let mut devices_now: Option<(LoadedModel, Finder, Lanes)> = None;
        let mut thread = Thread { checkpoint_every, record, done, shutdown, withdrawn, working, computed: 0, resumed: 0 };
        while let Some(Batch { model, images, begin }) = loaded.blocking_recv() {
            if let Some(model) = model {
                // The old model leaves the devices before the new one comes.
                drop(devices_now.take());
                let lanes = Lanes::new(&model.model, &devices);
                let finder = model.finder.replicate(devices.first().copied().unwrap_or(Device::Cpu));
                devices_now = Some((model, finder, lanes));
            }
            let (model, finder, lanes) = devices_now.as_ref().expect("the first batch brings a model");
            begin.wait();
            let images = images.into_iter().map(|image| looked_at(model, finder, image)).collect();
            thread.project(lanes, model, images)?;
            thread.working.send_modify(|w| w.images = 0);
        }
        Ok(())
    };
    std::thread::Builder::new().name("project".into()).spawn(body).expect("a thread can be started")
}

/// What the thread has at hand.
struct Thread {
    checkpoint_every: std::time::Duration,
    /// Folder of the films.
    record: Option<PathBuf>,
    done: mpsc::Sender<Done>,
    shutdown: Shutdown,
    withdrawn: Arc<AtomicBool>,
    working: watch::Sender<Working>,
    /// Lane-steps since the start.
    computed: u64,
    resumed: u64,
}

impl Thread {
    fn project(&mut self, lanes: &Lanes, model: &LoadedModel, batch: Vec<(Loaded, Option<Found>)>) -> Result<(), DeviceError> {
        let (batch, found): (Vec<Loaded>, Vec<Option<Found>>) = batch.into_iter().unzip();
        let Some(first) = batch.first() else { return Ok(()) };
        let (params, run) = (first.job.params.clone(), first.job.run.clone());
        let mut projection = start(&params, model, &batch);
        let mut batch = batch;
        for (i, image) in batch.iter_mut().enumerate() {
            let target = target_digest(image);
            if let Some(saved) = image.checkpoint.take() {
                // A checkpoint that does not fit costs the work it held, nothing else.
                if saved.target == target && projection.resume(i, saved.state).is_ok() {
                    image.seconds = saved.seconds;
                    metrics::CHECKPOINTS.record(1.0, &[("outcome", "resumed")]);
                }
            }
        }
        self.withdrawn.store(false, Ordering::SeqCst);
        let started = Instant::now();
        let mut saved = Instant::now();
        let mut last = projection.progress().done;
        self.resumed += last;
        tracing::info!(run, images = batch.len(), lane_steps = projection.progress().total, resumed = last, "projecting");
        self.show(&projection, &run);
        let mut courses: Vec<Course> =
            batch.iter().enumerate().map(|(i, image)| Course::begin(&image.hand, projection.stage(i))).collect();
        let images = batch.iter().map(|image| (image.job.image.as_str(), image.frame.pixels.as_slice()));
        let mut recorder = self.record.as_ref().map(|dir| Recorder::new(dir, model.reference.resolution, images));
        // Of which images what is kept can change no more: fine-tuning begins again from the search's answer (docs/adr/0009).
        let searched = |projection: &Projection, i| projection.stage(i) == Some("fine_tune");
        let mut settled: Vec<bool> = (0..batch.len()).map(|i| searched(&projection, i)).collect();
        while !projection.finished() {
            let (stop, withdrawn) = (self.shutdown.requested(), self.withdrawn.load(Ordering::SeqCst));
            if stop || withdrawn {
                self.release(&projection, batch, started, !withdrawn);
                return Ok(());
            }
            let begun = Instant::now();
            let progress = projection.step(lanes)?;
            if let Some(recorder) = &mut recorder {
                recorder.look(&projection, lanes)?;
            }
            let (seconds, steps) = (begun.elapsed().as_secs_f64(), progress.done.saturating_sub(last));
            metrics::DEVICE_BUSY.record(seconds * lanes.devices() as f64, &[]);
            metrics::LANE_STEPS.record(steps as f64, &[]);
            let stepped = courses.iter().filter(|course| course.goes_on()).count();
            for (i, (course, image)) in courses.iter_mut().zip(&mut batch).enumerate() {
                course.stepped(&mut image.hand, seconds / stepped as f64, projection.loss(i), projection.stage(i));
            }
            self.computed += steps;
            last = progress.done;
            tracing::debug!(computed = self.computed, done = progress.done, of = progress.total, loss = progress.loss, "step");
            self.show(&projection, &run);
            let due = saved.elapsed() >= self.checkpoint_every && !projection.finished();
            if due {
                saved = Instant::now();
            }
            for (i, image) in batch.iter().enumerate() {
                if settled[i] {
                    continue;
                }
                let ended = searched(&projection, i);
                if due || ended {
                    self.save(&projection, i, image, (started, batch.len()));
                }
                settled[i] = ended;
            }
        }
        let solutions = projection.finish(lanes)?;
        drop(courses);
        if let Some(recorder) = recorder {
            recorder.finish(solutions.iter().map(|solution| solution.as_ref().ok()));
        }
        let seconds = started.elapsed().as_secs_f64() / batch.len() as f64;
        for ((image, found), solution) in batch.into_iter().zip(found).zip(solutions) {
            let Loaded { delivery, hand, job, id, attempt, model, frame, .. } = image;
            let seconds = image.seconds + seconds;
            let solved = Solved { delivery, hand, job, id, attempt, model, frame, found, solution, seconds };
            // Nobody receives any more when publishing failed; that error is the one to report.
            let _ = self.done.blocking_send(Done::Solved(Box::new(solved)));
        }
        Ok(())
    }

    fn show(&self, projection: &Projection, run: &str) {
        let progress = projection.progress();
        self.working.send_replace(Working {
            run: run.to_owned(),
            images: projection.len(),
            batch: (progress.done, progress.total),
            loss: progress.loss,
            lane_steps: self.computed,
            resumed: self.resumed,
        });
    }

    fn save(&self, projection: &Projection, i: usize, image: &Loaded, (started, images): (Instant, usize)) {
        let checkpoint = kept(projection, i, image, started, images);
        let (run, attempt) = (image.job.run.clone(), image.attempt.clone());
        let _ = self.done.blocking_send(Done::Saved(Saved { run, image: image.job.image.clone(), attempt, checkpoint }));
    }

    fn release(&self, projection: &Projection, batch: Vec<Loaded>, started: Instant, queued: bool) {
        let images = batch.len();
        for (i, image) in batch.into_iter().enumerate() {
            let checkpoint = kept(projection, i, &image, started, images);
            let Loaded { delivery, hand, job, attempt, .. } = image;
            let released = Released { delivery, hand, job, attempt, checkpoint, queued };
            let _ = self.done.blocking_send(Done::Released(Box::new(released)));
        }
    }
}

/// Finds in an image what is not known of it yet.
fn looked_at(model: &LoadedModel, finder: &Finder, mut image: Loaded) -> (Loaded, Option<Found>) {
    let Some(photo) = image.photo.take() else { return (image, None) };
    let begun = Instant::now();
    let Sighting { class, found, frame } = find::find(model, finder, &image.job, &photo, &image.frame);
    image.job.class = class;
    image.job.class_name = model.manifest.classes[class as usize].clone();
    image.hand.is_of_class(&image.job.class_name);
    image.frame = frame.unwrap_or(image.frame);
    image.hand.took("find", begun.elapsed().as_secs_f64());
    image.hand.ended("find");
    tracing::info!(run = image.job.run, image = image.job.image, class = image.job.class_name, ?found, "found");
    (image, Some(found))
}

fn kept(projection: &Projection, i: usize, image: &Loaded, started: Instant, images: usize) -> Vec<u8> {
    let seconds = image.seconds + started.elapsed().as_secs_f64() / images as f64;
    let (state, target) = (projection.checkpoint(i).clone(), target_digest(image));
    checkpoint::encode(&image.id, &checkpoint::Saved { state, seconds, target })
}

/// Of class, pixels and mask.
fn target_digest(image: &Loaded) -> String {
    let mut digest = RunningSha256::default();
    digest.update(&image.job.class.to_be_bytes());
    for values in [Some(&image.frame.pixels), image.frame.mask.as_ref()].into_iter().flatten() {
        values.iter().for_each(|v| digest.update(&v.to_le_bytes()));
    }
    digest.hex()
}

fn start(params: &Params, model: &LoadedModel, batch: &[Loaded]) -> Projection {
    let r = i64::from(model.reference.resolution);
    let targets = batch
        .iter()
        .map(|image| Target {
            image: Tensor::from_slice(&image.frame.pixels).view([3, r, r]),
            bbox: image.frame.bbox,
            mask: image.frame.mask.as_ref().map(|mask| Tensor::from_slice(mask).view([r, r])),
            class: i64::from(image.job.class),
            seed: image.job.seed,
        })
        .collect();
    Projection::new(params, &model.model, &model.statistics, targets)
}
