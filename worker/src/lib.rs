//! The service that computes: takes jobs, projects images, publishes results.
//!
//! Three stages with bounded channels between them, one batch deep, so that fetching and publishing overlap with the devices'
//! work: [`fetch`](mod@fetch) (io) -> [`project`](mod@project) (device threads) -> [`publish`](mod@publish) (io). Each image
//! travels as an [`attempt`](mod@attempt) with its [`queue::Delivery`], which is settled last. [`fate`] decides what an error
//! means for its job.

mod attempt;
mod checkpoint;
pub mod deletion_cost;
pub mod exit;
mod fate;
mod fetch;
mod has_result;
pub mod health;
mod heartbeat;
mod held;
mod job_span;
mod marks;
pub mod metrics;
mod outage;
mod project;
mod publish;
mod run_control;
pub mod shutdown;
mod watchdog;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use engine::{Devices, Models, SupplyError};
use queue::{Channel, Queue};
use store::{Allowed, Runs};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use attempt::Shared;
use held::HeldJobs;
use outage::Outages;
use run_control::RunControl;

pub use fate::JobError;
pub use project::Working;
pub use watchdog::STEP_LIMIT;

/// How to run; what to compute is in the jobs.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The worker's name in events.
    pub name: String,
    /// The machine: attempts that never ended are counted by it.
    pub node: String,
    pub devices: Devices,
    /// Images that are projected side by side; 0 counts as 1.
    pub batch_images: usize,
    /// The work that a kill costs at most.
    pub checkpoint_every: Duration,
    /// Leave when no job came for this long; `None`: stay.
    pub drain_after: Option<Duration>,
    /// Leave after this time; `None`: stay.
    pub max_runtime: Option<Duration>,
    /// End the process when no device finishes a step for this time although there is work; `None`: never.
    pub step_limit: Option<Duration>,
    /// Data sets that a job may name.
    pub allowed: Allowed,
    /// Folder for a film of each image's search.
    pub record: Option<PathBuf>,
    /// Version of basin, for the results.
    pub version: String,
}

/// Why a worker exits before its work is done. The jobs that it holds go back to the queue.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the queue failed")]
    Queue(#[from] queue::Error),
    #[error("the store failed")]
    Store(#[from] store::Error),
    #[error("cannot load models")]
    Models(#[source] Box<SupplyError>),
    #[error("cannot do jobs on this machine")]
    Job(#[source] Box<JobError>),
    #[error("cannot compute")]
    Device(#[from] projector::DeviceError),
    /// A device failed its test, or failed twice.
    #[error("a device of this machine is faulty: {0}")]
    Faulty(String),
}

impl Error {
    /// The exit code of a worker that ends with this error.
    pub fn exit_code(&self) -> u8 {
        if matches!(self, Error::Faulty(_)) { exit::FAULTY_DEVICE } else { 1 }
    }
}

/// Works until the queue closes, `shutdown` is cancelled, or it has drained. After a cancellation the devices finish their step, the
/// images are saved and their jobs go back. `working` shows what it does now.
pub async fn run(
    config: Config,
    models: Models,
    queue: Queue,
    runs: Runs,
    shutdown: CancellationToken,
    working: watch::Sender<Working>,
) -> Result<(), Error> {
    let (outages, held, control) = (Outages::none(), HeldJobs::default(), RunControl::new(&runs));
    let shared = Shared { config, queue, runs, outages, held, control, shutdown: shutdown.clone() };
    metrics::watch();
    models.check().map_err(|error| Error::Models(Box::new(error)))?;
    // Set while the run on the devices is not to be computed.
    let withdrawn = Arc::new(AtomicBool::new(false));
    let heartbeat = tokio::spawn(heartbeat::run(shared.clone(), working.subscribe(), withdrawn.clone()));
    let listening = tokio::spawn(shared.control.clone().listen(shared.queue.listen()));
    let watchdog = tokio::spawn(watchdog::run(shared.clone(), working.subscribe(), heartbeat.abort_handle()));
    let worked = work(&shared, models, working, withdrawn).await;
    heartbeat.abort();
    watchdog.abort();
    listening.abort();
    let reason = worked.as_ref().err().filter(|error| matches!(error, Error::Faulty(_))).map(Error::to_string);
    heartbeat::leave(&shared, reason).await;
    worked
}

async fn work(shared: &Shared, models: Models, working: watch::Sender<Working>, withdrawn: Arc<AtomicBool>) -> Result<(), Error> {
    let shutdown = &shared.shutdown;
    if let Runs::Home(home) = &shared.runs {
        // A worker that could not write its results must not use up the jobs' attempts.
        let Some(()) = shared.persist(async || home.check_writable().await).await? else { return Ok(()) };
    }
    let batch_images = shared.config.batch_images.max(1);
    let consumer = shared.queue.consume(Channel::Jobs, (2 * batch_images).min(u16::MAX.into()) as u16).await?;
    let (loaded_sender, loaded) = mpsc::channel(1);
    // Room for a batch: its images are sent one by one.
    let (outputs_sender, mut outputs) = mpsc::channel(batch_images);

    let config = shared.config.clone();
    let thread = project::Thread { config, outputs: outputs_sender, shutdown: shutdown.clone(), withdrawn, working };
    let devices = thread.spawn(loaded);
    // Fetching ends with the devices' thread, too, even while it waits for a store.
    let fetching = shutdown.child_token();
    let publish = async {
        let published = publish::run(shared, &mut outputs).await;
        if published.is_err() {
            // Results cannot be published any more: the other stages must end too.
            shutdown.cancel();
            publish::give_back(&mut outputs).await;
        }
        fetching.cancel();
        published
    };
    let fetch = fetch::run(Shared { shutdown: fetching.clone(), ..shared.clone() }, models, consumer, loaded_sender);
    // Publishing ends when the devices' thread has ended, and that when fetching has: nothing is left half-way.
    let (fetched, published) = tokio::join!(fetch, publish);
    let panicked = || projector::DeviceError { device: "all".into(), message: "the thread panicked".into() };
    devices.join().unwrap_or_else(|_| Err(Error::Device(panicked())))?;
    fetched?;
    published
}
