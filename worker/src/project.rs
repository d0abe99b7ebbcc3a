//! Loaded images become solved ones: the only stage that computes. No I/O; one thread drives the devices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use engine::LoadedModel;
use engine::find::{self, Sighting};
use engine::finder::Finder;
use engine::recorder::Recorder;
use engine::self_test::self_test;
use projector::{DeviceError, Diverged, Lanes, Projection, Solution, Target};
use proto::{Params, RunningSha256, Stage, chain};
use tch::{Device, Tensor};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::attempt::Attempt;
use crate::checkpoint::{self, JobCheckpoint};
use crate::fetch::{Batch, Loaded};
use crate::job_span::StageSpans;
use crate::{Config, Error, metrics};

/// What the devices do now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Working {
    pub run: String,
    pub images: usize,
    /// Mean over the images of the last loss.
    pub loss: f64,
    /// Lane-steps computed since the start, of this and all earlier batches.
    pub lane_steps: u64,
    /// Lane-steps that were found in checkpoints.
    pub resumed: u64,
    /// When the step began that the devices are at. `None`: they have nothing to compute. A change of it alone wakes nobody.
    pub computing: Option<Instant>,
}

pub enum Output {
    Solved(Box<Solved>),
    /// The image stays on the devices. `attempt` is a name.
    Checkpoint {
        run: String,
        image: String,
        attempt: String,
        bytes: Vec<u8>,
    },
    /// The job is released. If it is not `queued` again, its run is not to be computed now.
    Unfinished {
        attempt: Box<Attempt>,
        checkpoint: Vec<u8>,
        queued: bool,
    },
    /// The job is released as it was: its search did not begin, or its device failed.
    Returned(Box<Attempt>),
}

/// An image whose search is finished, with all its seconds of device work: those of a batch are divided by its images.
pub struct Solved {
    pub image: Loaded,
    pub solution: Result<Solution, Diverged>,
}

/// The thread that drives the devices.
pub struct Thread {
    pub config: Config,
    pub outputs: mpsc::Sender<Output>,
    pub shutdown: CancellationToken,
    pub withdrawn: Arc<AtomicBool>,
    pub working: watch::Sender<Working>,
}

/// A batch on the devices. `spans` and `searched` have an entry for each image.
struct Work {
    run: String,
    projection: Projection,
    images: Vec<Loaded>,
    spans: Vec<StageSpans>,
    /// Whether the search has ended, and with it what a checkpoint holds: fine-tuning begins again from it (docs/src/adr/0009).
    searched: Vec<bool>,
    started: Instant,
    /// Lane-steps, those of checkpoints included.
    done: u64,
    saved: Instant,
}

/// A model on the devices.
struct Ready {
    model: LoadedModel,
    finder: Finder,
    lanes: Lanes,
}

impl Thread {
    /// Starts the thread. It ends when `loaded` closes, a shutdown is requested, or the devices cannot be trusted any more. Jobs that
    /// it has not begun then go back.
    pub fn spawn(self, mut loaded: mpsc::Receiver<Batch>) -> JoinHandle<Result<(), Error>> {
        let body = move || {
            // The finder computes here: sums that are split over threads are added in another order, and boxes would depend on the cores.
            tch::set_num_threads(1);
            let worked = self.work(&mut loaded);
            loaded.close();
            while let Some(batch) = loaded.blocking_recv() {
                self.give_back(batch.images);
            }
            worked
        };
        std::thread::Builder::new().name("project".into()).spawn(body).expect("a thread can be started")
    }

    fn work(&self, loaded: &mut mpsc::Receiver<Batch>) -> Result<(), Error> {
        let mut on_devices: Option<Ready> = None;
        let mut failed = false;
        while let Some(Batch { model, mut images, begin }) = loaded.blocking_recv() {
            if let Some(model) = model {
                // The old model leaves the devices before the new one comes.
                drop(on_devices.take());
                match self.prepare(model) {
                    Ok(ready) => on_devices = Some(ready),
                    Err(error) => {
                        self.give_back(images);
                        return Err(error);
                    }
                }
            }
            let Ready { model, finder, lanes } = on_devices.as_ref().expect("the first batch brings a model");
            begin();
            self.compute(|| images.iter_mut().for_each(|image| look(model, finder, image)));
            let projected = self.project(lanes, model, images);
            self.working.send_modify(|w| w.images = 0);
            if let Err(error) = projected {
                if std::mem::replace(&mut failed, true) {
                    return Err(Error::Faulty(format!("a second error: {error}")));
                }
                tracing::warn!(error = chain(&error), "a device failed: it is tested, and its jobs go back");
                let Ready { model, .. } = on_devices.take().expect("it was there");
                on_devices = Some(self.prepare(model)?);
            }
        }
        Ok(())
    }

    /// Puts the model on the devices, once they have shown that they compute.
    fn prepare(&self, model: LoadedModel) -> Result<Ready, Error> {
        let devices = &self.config.devices.0;
        self.compute(|| {
            self_test(&*model.model.generator, devices).map_err(Error::Faulty)?;
            let lanes = Lanes::new(&model.model, devices);
            let finder = model.finder.replicate(devices.first().copied().unwrap_or(Device::Cpu));
            Ok(Ready { model, finder, lanes })
        })
    }

    /// Does work of the devices, in sight of the watchdog.
    fn compute<T>(&self, step: impl FnOnce() -> T) -> T {
        let show = |computing: Option<Instant>| {
            self.working.send_if_modified(|now| {
                now.computing = computing;
                false
            });
        };
        show(Some(Instant::now()));
        let done = step();
        show(None);
        done
    }

    fn give_back(&self, images: Vec<Loaded>) {
        images.into_iter().for_each(|image| self.send(Output::Returned(Box::new(image.attempt))));
    }

    /// Projects a batch. If a device fails, the jobs go back uncounted: their marks stay, and tell if it is an image's fault.
    fn project(&self, lanes: &Lanes, model: &LoadedModel, images: Vec<Loaded>) -> Result<(), DeviceError> {
        let mut work = Work::begin(model, images);
        self.withdrawn.store(false, Ordering::SeqCst);
        let (images, lane_steps) = (work.images.len(), work.projection.progress().total);
        tracing::info!(run = work.run, images, lane_steps, resumed = work.done, "projecting");
        self.show(&work, 0, work.done);
        let images = work.images.iter().map(|image| (image.attempt.job.image.as_str(), image.frame.pixels.as_slice()));
        let mut recorder = self.config.record.as_ref().map(|dir| Recorder::new(dir, model.reference.resolution, images));
        while !work.projection.finished() {
            let withdrawn = self.withdrawn.load(Ordering::SeqCst);
            if withdrawn || self.shutdown.is_cancelled() {
                self.release(work, !withdrawn);
                return Ok(());
            }
            if let Err(error) = self.compute(|| self.step(lanes, &mut work, recorder.as_mut())) {
                self.give_back(work.images);
                return Err(error);
            }
            self.save_due(&mut work);
        }
        let Work { projection, images, spans, started, .. } = work;
        let solutions = match self.compute(|| projection.finish(lanes)) {
            Ok(solutions) => solutions,
            Err(error) => {
                self.give_back(images);
                return Err(error);
            }
        };
        drop(spans);
        if let Some(recorder) = recorder {
            recorder.finish(solutions.iter().map(|solution| solution.as_ref().ok()));
        }
        self.send_solved(model, images, solutions, started);
        Ok(())
    }

    fn send_solved(
        &self,
        model: &LoadedModel,
        images: Vec<Loaded>,
        solutions: Vec<Result<Solution, Diverged>>,
        started: Instant,
    ) {
        let batch_seconds = started.elapsed().as_secs_f64() / images.len() as f64;
        for (mut image, solution) in images.into_iter().zip(solutions) {
            image.seconds += batch_seconds;
            if let Ok(solution) = &solution {
                // The class whose seed won, where several were likely.
                let job = &mut image.attempt.job;
                job.class = solution.class as u32;
                job.class_name = model.manifest.classes[job.class as usize].clone();
                let won = image.likely.iter().find(|(class, _)| *class == job.class).map(|(_, probability)| *probability);
                if let (Some(found), Some(won)) = (&mut image.found, won) {
                    found.probability = Some(won);
                }
            }
            self.send(Output::Solved(Box::new(Solved { image, solution })));
        }
    }

    fn step(&self, lanes: &Lanes, work: &mut Work, recorder: Option<&mut Recorder>) -> Result<(), DeviceError> {
        let begun = Instant::now();
        let progress = work.projection.step(lanes)?;
        if let Some(recorder) = recorder {
            recorder.look(&work.projection, lanes)?;
        }
        let (seconds, steps) = (begun.elapsed().as_secs_f64(), progress.done.saturating_sub(work.done));
        metrics::DEVICE_BUSY.record(seconds * lanes.devices() as f64, &[]);
        metrics::LANE_STEPS.record(steps as f64, &[]);
        let active = work.spans.iter().filter(|spans| spans.is_active()).count();
        for (i, (spans, image)) in work.spans.iter_mut().zip(&mut work.images).enumerate() {
            let (loss, stage) = (work.projection.loss(i), work.projection.stage(i));
            spans.stepped(&mut image.attempt.span, seconds / active as f64, loss, stage);
        }
        work.done = progress.done;
        self.show(work, steps, 0);
        let computed = self.working.borrow().lane_steps;
        tracing::debug!(computed, done = progress.done, of = progress.total, loss = progress.loss, "step");
        Ok(())
    }

    /// Sends the checkpoints that are due: of all searches from time to time, and of each that has ended.
    fn save_due(&self, work: &mut Work) {
        let due = work.saved.elapsed() >= self.config.checkpoint_every && !work.projection.finished();
        if due {
            work.saved = Instant::now();
        }
        for i in 0..work.images.len() {
            if work.searched[i] {
                continue;
            }
            work.searched[i] = work.projection.stage(i) == Some(Stage::FineTune);
            if due || work.searched[i] {
                let Attempt { job, name, .. } = &work.images[i].attempt;
                let (run, image, attempt) = (job.run.clone(), job.image.clone(), name.clone());
                self.send(Output::Checkpoint { run, image, attempt, bytes: work.checkpoint(i) });
            }
        }
    }

    fn release(&self, work: Work, queued: bool) {
        let checkpoints: Vec<Vec<u8>> = (0..work.images.len()).map(|i| work.checkpoint(i)).collect();
        for (image, checkpoint) in work.images.into_iter().zip(checkpoints) {
            self.send(Output::Unfinished { attempt: Box::new(image.attempt), checkpoint, queued });
        }
    }

    /// It fails if publishing has failed, which is the error to report.
    fn send(&self, output: Output) {
        let _ = self.outputs.blocking_send(output);
    }

    /// Shows the batch, after more lane-steps that were `computed` or found in checkpoints.
    fn show(&self, work: &Work, computed: u64, resumed: u64) {
        self.working.send_modify(|now| {
            now.run.clone_from(&work.run);
            now.images = work.images.len();
            now.loss = work.projection.progress().loss;
            now.lane_steps += computed;
            now.resumed += resumed;
        });
    }
}

impl Work {
    /// Starts the search of at least one image; all are of one run. Resumes those that have a checkpoint.
    fn begin(model: &LoadedModel, mut images: Vec<Loaded>) -> Work {
        let job = &images[0].attempt.job;
        let (run, mut projection) = (job.run.clone(), start(model, &images, &job.params));
        for (i, image) in images.iter_mut().enumerate() {
            let target = target_digest(image);
            // A checkpoint that does not fit costs the work it held, nothing else.
            if let Some(checkpoint) = image.checkpoint.take()
                && checkpoint.target == target
                && projection.resume(i, checkpoint.state).is_ok()
            {
                image.seconds = checkpoint.seconds;
                metrics::CHECKPOINTS.record(1.0, &[("basin.outcome", "resumed")]);
            }
        }
        let stages = images.iter().enumerate().map(|(i, image)| (image, projection.stage(i)));
        let (spans, searched) =
            stages.map(|(image, stage)| (StageSpans::begin(&image.attempt.span, stage), stage == Some(Stage::FineTune))).unzip();
        let (started, done) = (Instant::now(), projection.progress().done);
        Work { run, projection, images, spans, searched, started, done, saved: started }
    }

    fn checkpoint(&self, i: usize) -> Vec<u8> {
        let image = &self.images[i];
        let seconds = image.seconds + self.started.elapsed().as_secs_f64() / self.images.len() as f64;
        let (state, target) = (self.projection.checkpoint(i).clone(), target_digest(image));
        checkpoint::encode(&image.attempt.id, &JobCheckpoint { state, seconds, target })
    }
}

/// Finds the class and the object, where the job leaves them open.
fn look(model: &LoadedModel, finder: &Finder, image: &mut Loaded) {
    let Some(photo) = image.photo.take() else { return };
    let begun = Instant::now();
    let Sighting { class, likely, found, frame } = find::find(model, finder, &image.attempt.job, &photo, &image.frame);
    let Attempt { job, span, .. } = &mut image.attempt;
    job.class = class;
    job.class_name = model.manifest.classes[class as usize].clone();
    span.set_class(&job.class_name);
    if let Some(frame) = frame {
        image.frame = frame;
    }
    span.add_seconds(Stage::Find, begun.elapsed().as_secs_f64());
    span.end_stage(Stage::Find);
    tracing::info!(run = job.run, image = job.image, class = job.class_name, ?found, "found");
    (image.found, image.likely) = (Some(found), likely);
}

fn target_digest(image: &Loaded) -> String {
    let mut digest = RunningSha256::default();
    digest.update(&image.attempt.job.class.to_be_bytes());
    for (class, probability) in &image.likely {
        digest.update(&class.to_be_bytes());
        digest.update(&probability.to_le_bytes());
    }
    for values in [Some(&image.frame.pixels), image.frame.mask.as_ref()].into_iter().flatten() {
        values.iter().for_each(|v| digest.update(&v.to_le_bytes()));
    }
    digest.hex()
}

fn start(model: &LoadedModel, batch: &[Loaded], params: &Params) -> Projection {
    let r = i64::from(model.reference.resolution);
    let targets = batch
        .iter()
        .map(|image| Target {
            image: Tensor::from_slice(&image.frame.pixels).view([3, r, r]),
            bbox: image.frame.bbox,
            mask: image.frame.mask.as_ref().map(|mask| Tensor::from_slice(mask).view([r, r])),
            class: i64::from(image.attempt.job.class),
            likely: image.likely.iter().map(|&(class, probability)| (i64::from(class), probability)).collect(),
            seed: image.attempt.job.seed,
        })
        .collect();
    Projection::new(params, &model.model, &model.statistics, targets)
}
