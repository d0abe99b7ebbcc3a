//! Loaded images become solved ones: the only stage that computes. No I/O; one thread drives the devices.

use std::thread::JoinHandle;
use std::time::Instant;

use projector::{DeviceError, Lanes, Projection, Solution, Target};
use proto::{Job, JobId};
use queue::Delivery;
use tch::Tensor;
use tokio::sync::{mpsc, watch};

use crate::fetch::Loaded;
use crate::{Config, LoadedModel, Shutdown, checkpoint};

/// What the devices do now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Working {
    /// Images in the batch.
    pub images: usize,
    /// Lane-steps done and in all, for this batch.
    pub batch: (u64, u64),
    /// Mean over the images of the last loss.
    pub loss: f64,
    /// Lane-steps computed since the start, of this and all earlier batches; resumed ones are not counted.
    pub lane_steps: u64,
}

/// What leaves the devices.
pub enum Done {
    /// An image is finished.
    Solved(Box<Solved>),
    /// State of an image that goes on.
    Saved {
        /// Key of the image.
        image: String,
        /// The checkpoint.
        bytes: Vec<u8>,
    },
    /// State of an image that is given back.
    Released(Box<Released>),
}

/// An image that is given back unfinished.
pub struct Released {
    pub delivery: Delivery,
    pub job: Job,
    pub id: JobId,
    pub checkpoint: Vec<u8>,
}

/// An image with its answer.
pub struct Solved {
    pub delivery: Delivery,
    pub job: Job,
    pub id: JobId,
    pub pixels: Vec<f32>,
    pub solution: Result<Solution, projector::Diverged>,
    /// Seconds of device work of the batch, divided by its images.
    pub seconds: f64,
}

/// Starts the thread. It ends when `loaded` closes, a stop is requested, or a device fails.
pub fn spawn(
    config: &Config,
    model: LoadedModel,
    mut loaded: mpsc::Receiver<Vec<Loaded>>,
    done: mpsc::Sender<Done>,
    shutdown: Shutdown,
    working: watch::Sender<Working>,
) -> JoinHandle<Result<(), DeviceError>> {
    let (devices, every) = (config.devices.0.clone(), config.checkpoint_every);
    let body = move || {
        let lanes = Lanes::new(&model.model, &devices);
        let mut computed = 0;
        while let Some(batch) = loaded.blocking_recv() {
            project(&lanes, &model, batch, every, &done, &shutdown, &working, &mut computed)?;
        }
        Ok(())
    };
    std::thread::Builder::new().name("project".into()).spawn(body).expect("a thread can be started")
}

#[allow(clippy::too_many_arguments)]
fn project(
    lanes: &Lanes,
    model: &LoadedModel,
    mut batch: Vec<Loaded>,
    checkpoint_every: std::time::Duration,
    done: &mpsc::Sender<Done>,
    shutdown: &Shutdown,
    working: &watch::Sender<Working>,
    computed: &mut u64,
) -> Result<(), DeviceError> {
    let Some(params) = batch.first().map(|image| image.job.params.clone()) else { return Ok(()) };
    let r = i64::from(model.reference.resolution);
    let targets = batch
        .iter()
        .map(|image| Target {
            image: Tensor::from_slice(&image.pixels).view([3, r, r]),
            bbox: image.bbox,
            class: i64::from(image.job.class),
            seed: image.job.seed,
        })
        .collect();
    let mut projection = Projection::new(&params, &model.model, &model.statistics, targets);
    for (i, image) in batch.iter_mut().enumerate() {
        if let Some(checkpoint) = image.checkpoint.take() {
            // A checkpoint that does not fit costs the work it held, nothing else.
            let _ = projection.resume(i, checkpoint);
        }
    }
    let show = |projection: &Projection, computed: u64| {
        let progress = projection.progress();
        working.send_replace(Working {
            images: projection.len(),
            batch: (progress.done, progress.total),
            loss: progress.loss,
            lane_steps: computed,
        });
    };
    let started = Instant::now();
    let mut saved = Instant::now();
    let mut last = projection.progress().done;
    show(&projection, *computed);
    while !projection.finished() {
        if shutdown.requested() {
            for (i, image) in batch.into_iter().enumerate() {
                let checkpoint = checkpoint::encode(&image.id, projection.checkpoint(i));
                let Loaded { delivery, job, id, .. } = image;
                let _ = done.blocking_send(Done::Released(Box::new(Released { delivery, job, id, checkpoint })));
            }
            return Ok(());
        }
        let progress = projection.step(lanes)?;
        *computed += progress.done.saturating_sub(last);
        last = progress.done;
        show(&projection, *computed);
        if saved.elapsed() >= checkpoint_every && !projection.finished() {
            saved = Instant::now();
            for (i, image) in batch.iter().enumerate() {
                let bytes = checkpoint::encode(&image.id, projection.checkpoint(i));
                let _ = done.blocking_send(Done::Saved { image: image.job.image.clone(), bytes });
            }
        }
    }
    let solutions = projection.finish(lanes)?;
    let seconds = started.elapsed().as_secs_f64() / batch.len() as f64;
    for (image, solution) in batch.into_iter().zip(solutions) {
        let Loaded { delivery, job, id, pixels, .. } = image;
        // Nobody receives any more when publishing failed; that error is the one to report.
        let _ = done.blocking_send(Done::Solved(Box::new(Solved { delivery, job, id, pixels, solution, seconds })));
    }
    Ok(())
}
