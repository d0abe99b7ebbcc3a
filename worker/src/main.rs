//! `basin-worker`: takes jobs from the queue and projects their images on the local devices.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use engine::{Cache, Devices, Models};
use queue::Queue;
use store::{Runs, Store};
use tokio::sync::watch;
use worker::{Config, Shutdown, Working};

/// Takes jobs from the queue and projects their images on the local devices.
///
/// A first SIGTERM or Ctrl-C finishes the step, saves, gives the jobs back and leaves with 0; a second one leaves at once.
#[derive(Parser)]
#[command(name = "basin-worker", version)]
struct Args {
    /// Folder or bucket (s3://bucket/prefix) of runs, results and models.
    #[arg(long, env = "BASIN_HOME_URL", value_name = "URL")]
    home: String,
    /// The queue: amqp://user@host:5672/vhost (password from BASIN_AMQP_PASSWORD or ?password_file=).
    #[arg(long, env = "BASIN_QUEUE_URL", value_name = "URL", hide_env_values = true)]
    queue: String,
    /// Where to compute: `auto`, or a list such as `cpu,cpu` or `cuda:0,cuda:1`.
    #[arg(long, default_value = "auto", env = "BASIN_DEVICES")]
    devices: String,
    /// Images that are projected side by side.
    #[arg(long, default_value_t = 8, env = "BASIN_BATCH_IMAGES", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch_images: u16,
    /// Seconds between checkpoints: what a kill costs at most.
    #[arg(long, default_value_t = 30, env = "BASIN_CHECKPOINT_EVERY", value_name = "SECONDS")]
    checkpoint_every: u64,
    /// Folder for models, shared by the workers of a machine.
    #[arg(long, env = "BASIN_MODEL_CACHE", value_name = "DIR")]
    model_cache: Option<PathBuf>,
    /// Bytes of models in that folder, at most; those in use are kept even if they are more.
    #[arg(long, default_value_t = 20_000_000_000, env = "BASIN_MODEL_CACHE_BYTES", value_name = "N")]
    model_cache_bytes: u64,
    /// Leave with 0 when there was no job for this many seconds.
    #[arg(long, env = "BASIN_DRAIN_AFTER", value_name = "SECONDS")]
    drain_after: Option<u64>,
    /// Leave with 0 after this many seconds, giving back what is unfinished.
    #[arg(long, env = "BASIN_MAX_RUNTIME", value_name = "SECONDS")]
    max_runtime: Option<u64>,
    /// Name in events; host name and process id if not given.
    #[arg(long, env = "BASIN_WORKER_NAME")]
    name: Option<String>,
    /// This pod as namespace/name: Kubernetes is told whether it is busy, so that a Deployment that is scaled in stops idle workers
    /// first. Its service account must be allowed to patch pods.
    #[arg(long, env = "BASIN_DELETION_COST_POD", value_name = "POD")]
    deletion_cost_pod: Option<String>,
    /// Address for /healthz and /readyz.
    #[arg(long, env = "BASIN_LISTEN")]
    listen: Option<SocketAddr>,
}

fn main() -> ExitCode {
    let _telemetry = telemetry::init("basin-worker", "info");
    let args = Args::parse();
    // Heartbeats of the queue need a thread even while others wait for the disk.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.context("cannot start the I/O threads").and_then(|runtime| runtime.block_on(run(args))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let devices: Devices = args.devices.parse().map_err(anyhow::Error::msg).context("--devices")?;
    let home = Store::open(&args.home).await.context("cannot open --home")?;
    let queue = Queue::open(&args.queue).await.context("cannot open --queue")?;
    let host = || std::fs::read_to_string("/etc/hostname").unwrap_or_else(|_| "worker".into()).trim().to_owned();
    let name = args.name.clone().unwrap_or_else(|| format!("{}-{}", host(), std::process::id()));
    let cache = args.model_cache.clone().unwrap_or_else(|| std::env::temp_dir().join("basin-models"));
    let cache = Cache::new(cache, args.model_cache_bytes);
    tracing::info!(name, home = home.url(), queue = queue.server(), %devices, "started");
    let config = Config {
        name,
        devices,
        batch_images: usize::from(args.batch_images),
        checkpoint_every: Duration::from_secs(args.checkpoint_every),
        drain_after: args.drain_after.map(Duration::from_secs),
        max_runtime: args.max_runtime.map(Duration::from_secs),
        record: None,
        version: env!("CARGO_PKG_VERSION").into(),
    };
    let shutdown = Shutdown::default();
    let (working, workings) = watch::channel(Working::default());
    if let Some(pod) = &args.deletion_cost_pod {
        let place = worker::deletion_cost::Place::in_cluster(pod).map_err(anyhow::Error::msg).context("--deletion-cost-pod")?;
        tokio::spawn(worker::deletion_cost::keep(place, workings.clone()));
    }
    if let Some(address) = args.listen {
        let listener = tokio::net::TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
        tokio::spawn(worker::health::serve(listener, workings, shutdown.clone()));
    }
    tokio::spawn(on_signal(shutdown.clone()));
    let models = Models::Home { home: home.clone(), cache };
    let worked = worker::run(config, models, queue.clone(), Runs::Home(home), shutdown, working).await;
    // Also after an error: what was given back must leave before the process does.
    queue.close().await;
    worked?;
    tracing::info!("left");
    Ok(())
}

/// The first signal asks to stop, the second leaves at once.
async fn on_signal(shutdown: Shutdown) -> std::io::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    for count in 0.. {
        tokio::select! {
            done = tokio::signal::ctrl_c() => done?,
            _ = terminate.recv() => {}
        }
        if count > 0 {
            // Not `exit`, which would destroy libtorch's state under the threads that use it.
            signal_hook::low_level::exit(130);
        }
        tracing::info!("stopping after this step, saving (again: leave at once)");
        shutdown.request();
    }
    Ok(())
}
