//! Computes: pulls jobs, projects images, publishes results.
//!
//! Three stages with bounded channels between them, one batch deep, so that fetching and publishing overlap with the devices'
//! work: [`fetch`](mod@fetch) (io) -> [`project`](mod@project) (device threads) -> [`publish`](mod@publish) (io). Each image
//! travels with its [`queue::Delivery`], which is settled last. [`fate`] says what an error means for its job.

pub mod checkpoint;
pub mod deletion_cost;
pub mod fate;
mod fetch;
pub mod health;
mod heartbeat;
mod job_span;
pub mod metrics;
mod project;
mod publish;
mod run_control;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use engine::{Devices, Models, SupplyError};
use queue::{Channel, Queue};
use store::Runs;
use tokio::sync::{mpsc, watch};

pub use project::Working;

/// How to run; what to compute is in the jobs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this worker in events.
    pub name: String,
    /// Where to compute.
    pub devices: Devices,
    /// Images that are projected side by side.
    pub batch_images: usize,
    /// A kill costs at most this much work.
    pub checkpoint_every: Duration,
    /// Leave when there was no job for this long; `None`: stay.
    pub drain_after: Option<Duration>,
    /// Leave after this time; `None`: stay.
    pub max_runtime: Option<Duration>,
    /// Folder for a film of each image's search.
    pub record: Option<PathBuf>,
    /// Version of basin, for the results.
    pub version: String,
}

/// Why a worker stopped before its work was done. The jobs in its hands go back to the queue.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The queue failed.
    #[error("the queue failed")]
    Queue(#[from] queue::Error),
    /// The store failed in a way that waiting does not mend.
    #[error("the store failed")]
    Store(#[from] store::Error),
    /// This machine has no place for models.
    #[error("cannot load models")]
    Cache(#[source] Box<SupplyError>),
    /// This machine cannot see a data set.
    #[error("cannot fetch images")]
    Dataset(#[source] Box<fate::FetchError>),
    /// A device failed.
    #[error("cannot compute")]
    Device(#[from] projector::DeviceError),
}

/// Asks the stages to stop: finish the step, save, give back.
#[derive(Clone, Debug, Default)]
pub struct Shutdown(Arc<AtomicBool>);

impl Shutdown {
    /// Asks.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether it was asked.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Waits until it was asked.
    pub(crate) async fn asked(&self) {
        while !self.requested() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Works until the queue closes, a stop is requested, or it has drained. `working` shows what it does now.
pub async fn run(
    config: Config,
    models: Models,
    queue: Queue,
    runs: Runs,
    shutdown: Shutdown,
    working: watch::Sender<Working>,
) -> Result<(), Error> {
    if let Runs::Home(home) = &runs {
        // A worker that could not write its results must not use up the jobs' attempts.
        home.check_writable().await?;
    }
    metrics::watch();
    models.check().map_err(|error| Error::Cache(Box::new(error)))?;
    let consumer = queue.consume(Channel::Jobs, (2 * config.batch_images).min(u16::MAX.into()) as u16).await?;
    let (loaded_sender, loaded) = mpsc::channel(1);
    // Room for a batch: its images are sent one by one.
    let (done_sender, done) = mpsc::channel(config.batch_images.max(1));

    // Set while the run in the devices' hands is not to be computed.
    let withdrawn = Arc::new(AtomicBool::new(false));
    let heartbeat =
        tokio::spawn(heartbeat::run(config.clone(), queue.clone(), runs.clone(), working.subscribe(), withdrawn.clone()));
    let devices = project::spawn(&config, loaded, done_sender, shutdown.clone(), withdrawn, working);
    let publish = {
        let work = publish::run(config.clone(), queue.clone(), runs.clone(), done);
        let shutdown = shutdown.clone();
        async move {
            let published = work.await;
            if published.is_err() {
                // Nothing can be handed on any more: the other stages must end too.
                shutdown.request();
            }
            published
        }
    };
    let fetch = fetch::run(config.clone(), models, queue.clone(), runs, consumer, loaded_sender, shutdown);
    // Publishing ends when the devices' thread has ended, and that when fetching has: nothing is left half-way.
    let (fetched, published) = tokio::join!(fetch, publish);
    heartbeat.abort();
    heartbeat::leave(&config, &queue).await;
    devices.join().map_err(|_| projector::DeviceError { device: "all".into(), message: "the thread panicked".into() })??;
    fetched?;
    published
}
