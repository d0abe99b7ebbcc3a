//! `basin-worker`: takes jobs from the queue and projects their images on the local devices.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use engine::{Cache, Devices, Models};
use queue::Queue;
use store::{Allowed, Runs, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use worker::{Config, Working, shutdown};

/// Takes jobs from the queue and projects their images on the local devices.
///
/// At the first SIGTERM or Ctrl-C the worker finishes the step, saves checkpoints, releases its jobs and exits with 0; at the second
/// it exits at once.
#[derive(Parser)]
#[command(name = "basin-worker", version)]
struct Args {
    /// The fleet's home: folder or bucket (s3://bucket/prefix) of runs, results and models.
    #[arg(long, env = "BASIN_HOME_URL", value_name = "URL")]
    home: String,
    /// The queue: amqp://user@host:5672/vhost (password from BASIN_AMQP_PASSWORD or ?password_file=).
    #[arg(long, env = "BASIN_QUEUE_URL", value_name = "URL", hide_env_values = true)]
    queue: String,
    /// Data sets that a job may name: what lies under these folders and buckets (s3://bucket/prefix, s3://* for any bucket, each with
    /// ?endpoint=… unless it is Amazon's). Without it: buckets at Amazon's endpoint and the home's, and folders. Repeat it, or separate by
    /// commas. Give it the coordinator's list.
    #[arg(long = "allow-data-set", env = "BASIN_ALLOWED_DATA_SETS", value_name = "URL", value_delimiter = ',')]
    allowed_data_sets: Vec<String>,
    /// Devices to compute on: `auto`, or a list such as `cpu,cpu` or `cuda:0,cuda:1`.
    #[arg(long, default_value = "auto", env = "BASIN_DEVICES")]
    devices: String,
    /// Images that are projected side by side.
    #[arg(long, default_value_t = 8, env = "BASIN_BATCH_IMAGES", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch_images: u16,
    /// Seconds between checkpoints: the work that a kill costs at most.
    #[arg(long, default_value_t = 30, env = "BASIN_CHECKPOINT_EVERY", value_name = "SECONDS")]
    checkpoint_every: u64,
    /// Folder for copies of models, shared by the workers of a machine. Default: basin-models in the folder for temporary files.
    #[arg(long, env = "BASIN_MODEL_CACHE", value_name = "DIR")]
    model_cache: Option<PathBuf>,
    /// Limit of that folder in bytes. Models in use are kept even above it.
    #[arg(long, default_value_t = 20_000_000_000, env = "BASIN_MODEL_CACHE_BYTES", value_name = "N")]
    model_cache_bytes: u64,
    /// Exit with 0 when no job came for this many seconds. Default: never.
    #[arg(long, env = "BASIN_DRAIN_AFTER", value_name = "SECONDS")]
    drain_after: Option<u64>,
    /// Exit with 0 after this many seconds, and release unfinished jobs. Default: never.
    #[arg(long, env = "BASIN_MAX_RUNTIME", value_name = "SECONDS")]
    max_runtime: Option<u64>,
    /// The worker's name in events. Default: host name and process id.
    #[arg(long, env = "BASIN_WORKER_NAME")]
    name: Option<String>,
    /// The machine's name: attempts that never ended are counted by machine. Default: host name.
    #[arg(long, env = "BASIN_NODE_NAME")]
    node: Option<String>,
    /// End the process with exit code 4 when no device finishes a step for this many seconds although there is work; 0: never. The
    /// limit of /healthz, too.
    #[arg(long, default_value_t = worker::STEP_LIMIT.as_secs(), env = "BASIN_STEP_LIMIT", value_name = "SECONDS")]
    step_limit: u64,
    /// This pod as namespace/name: write its deletion cost, so that a Deployment that is scaled in stops idle workers first. The pod's
    /// service account must be allowed to patch pods.
    #[arg(long, env = "BASIN_DELETION_COST_POD", value_name = "POD")]
    deletion_cost_pod: Option<String>,
    /// Address on which to serve /healthz, /readyz and /metrics, such as 0.0.0.0:8080. Default: not served.
    #[arg(long, env = "BASIN_LISTEN")]
    listen: Option<SocketAddr>,
}

fn main() -> ExitCode {
    let _telemetry = telemetry::init_scraped("basin-worker", "info");
    let args = Args::parse();
    // The queue's heartbeats need a thread even while others wait for the disk.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.context("cannot start the I/O threads").and_then(|runtime| runtime.block_on(run(args))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            error.downcast_ref::<worker::Error>().map_or(ExitCode::FAILURE, |error| ExitCode::from(error.exit_code()))
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let devices: Devices = args.devices.parse().map_err(anyhow::Error::msg).context("--devices")?;
    let home = Store::open(&args.home).await.context("cannot open --home")?;
    let allowed = match args.allowed_data_sets.is_empty() {
        true => Allowed::without_list(&home, true),
        false => Allowed::listed(&args.allowed_data_sets).context("--allow-data-set")?,
    };
    let queue = Queue::open(&args.queue).await.context("cannot open --queue")?;
    let host = || std::fs::read_to_string("/etc/hostname").unwrap_or_else(|_| "worker".into()).trim().to_owned();
    let step_limit = (args.step_limit > 0).then(|| Duration::from_secs(args.step_limit));
    let name = args.name.clone().unwrap_or_else(|| format!("{}-{}", host(), std::process::id()));
    let dir = args.model_cache.clone().unwrap_or_else(|| std::env::temp_dir().join("basin-models"));
    let cache = Cache { dir, max_bytes: args.model_cache_bytes };
    tracing::info!(name, home = home.url(), queue = queue.server(), %devices, "started");
    let config = Config {
        name,
        node: args.node.clone().unwrap_or_else(host),
        devices,
        batch_images: usize::from(args.batch_images),
        checkpoint_every: Duration::from_secs(args.checkpoint_every),
        drain_after: args.drain_after.map(Duration::from_secs),
        max_runtime: args.max_runtime.map(Duration::from_secs),
        step_limit,
        allowed,
        version: env!("CARGO_PKG_VERSION").into(),
        ..Config::default()
    };
    let token = CancellationToken::new();
    let note = || {
        tracing::info!("stopping after this step and saving; a second signal exits at once");
        true
    };
    shutdown::on_signals(token.clone(), note).context("cannot listen for signals")?;
    let (working, workings) = watch::channel(Working::default());
    if let Some(pod) = &args.deletion_cost_pod {
        let place = worker::deletion_cost::Place::in_cluster(pod).map_err(anyhow::Error::msg).context("--deletion-cost-pod")?;
        tokio::spawn(worker::deletion_cost::keep(place, workings.clone()));
    }
    if let Some(address) = args.listen {
        let listener = tokio::net::TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
        tokio::spawn(worker::health::serve(listener, workings, step_limit, token.clone()));
    }
    let models = Models::Home { home: home.clone(), cache };
    let worked = worker::run(config, models, queue.clone(), Runs::Home(home), token, working).await;
    // Also after an error: released jobs must reach the broker before the process exits.
    queue.close().await;
    worked?;
    tracing::info!("left");
    Ok(())
}
