//! `basin-coordinator`: the service that plans runs and publishes their jobs. Never links torch.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use coordinator::http::auth::{Gate, secret};
use coordinator::http::other_services::{EditUrl, Edits, OtherServices, TraceUrl};
use coordinator::notify::Notify;
use coordinator::notify::notice::Secret;
use coordinator::notify::send::{Program, Target, Webhook, WebhookUrl};
use coordinator::service::{Config, Service};
use queue::{Channel, Queue};
use store::{Allowed, Store};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Publish the jobs of runs to workers, and serve the API that `basin submit` and `basin runs` use, and the dashboard.
#[derive(Parser)]
#[command(name = "basin-coordinator", version)]
struct Args {
    /// Folder or bucket (s3://bucket/prefix) of runs, results and models.
    #[arg(long, env = "BASIN_HOME_URL", value_name = "URL")]
    home: String,
    /// Queue that workers share: amqp://user@host:5672/vhost (password from BASIN_AMQP_PASSWORD or ?password_file=).
    #[arg(long, env = "BASIN_QUEUE_URL", value_name = "URL", hide_env_values = true)]
    queue: String,
    /// Address of the API and the dashboard.
    #[arg(long, env = "BASIN_LISTEN", default_value = "127.0.0.1:8470")]
    listen: SocketAddr,
    /// Data sets that clients may name: what lies under these folders and buckets (s3://bucket/prefix, s3://* for any bucket, each with
    /// ?endpoint=… unless it is Amazon's). Without it: buckets at Amazon's endpoint and the home's, and folders while only this machine
    /// can reach --listen. Repeat it, or separate by commas. Give the workers the same list.
    #[arg(long = "allow-data-set", env = "BASIN_ALLOWED_DATA_SETS", value_name = "URL", value_delimiter = ',')]
    allowed_data_sets: Vec<String>,
    /// File with the token that clients must send. BASIN_TOKEN holds the token itself.
    #[arg(long, env = "BASIN_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// File with the read-only token, which lets clients read everything and change nothing. BASIN_VIEW_TOKEN holds the token itself.
    #[arg(long, env = "BASIN_VIEW_TOKEN_FILE", value_name = "FILE")]
    view_token_file: Option<PathBuf>,
    /// Clients reach this coordinator by https, through a proxy that does not say so in X-Forwarded-Proto: mark all cookies Secure.
    #[arg(long, env = "BASIN_HTTPS")]
    https: bool,
    /// Dollars for an hour of a worker, to estimate the cost of runs.
    #[arg(long, env = "BASIN_WORKER_HOUR_PRICE", value_name = "DOLLARS")]
    worker_hour_price: Option<f64>,
    /// URL of a trace in your tracing system, with {trace} in place of the trace's id. The dashboard links traces to it.
    #[arg(long, env = "BASIN_TRACE_URL", value_name = "URL")]
    trace_url: Option<TraceUrl>,
    /// URL of `basin serve-edits`, for the sliders on the pages of images. The coordinator sends it the token, if there is one.
    #[arg(long, env = "BASIN_EDIT_URL", value_name = "URL")]
    edit_url: Option<EditUrl>,
    /// Most jobs that are published and not finished. Use at least four for each image that all workers together can hold.
    #[arg(long, env = "BASIN_WINDOW", default_value_t = coordinator::drive::WINDOW, value_name = "N")]
    window: usize,
    /// URL that is told by POST when a run ends, is paused by its budget or stalls, and when store or broker are away. The body is JSON in
    /// the form of Standard Webhooks.
    #[arg(long, env = "BASIN_WEBHOOK_URL", value_name = "URL", hide_env_values = true)]
    webhook_url: Option<WebhookUrl>,
    /// File with the secret that signs the webhook's requests: whsec_ and base64. BASIN_WEBHOOK_SECRET holds the secret itself.
    #[arg(long, env = "BASIN_WEBHOOK_SECRET_FILE", value_name = "FILE")]
    webhook_secret_file: Option<PathBuf>,
    /// Program that is told the same, as JSON on its standard input. It has 30 seconds.
    #[arg(long, env = "BASIN_NOTIFY_COMMAND", value_name = "PROGRAM")]
    notify_command: Option<PathBuf>,
    /// Time without progress after which a running run with images left has stalled, such as 30m. Choose it longer than a run waits for
    /// its first worker.
    #[arg(long, env = "BASIN_STALLED_AFTER", default_value = "30m", value_name = "TIME", value_parser = duration)]
    stalled_after: Duration,
    /// Delete runs that ended longer ago than this, such as 30d, with all their objects. Default: keep all.
    #[arg(long, env = "BASIN_KEEP_RUNS", value_name = "TIME", value_parser = duration)]
    keep_runs: Option<Duration>,
    /// This pod as namespace/name: label it basin-leads=true while this coordinator acts, so that the Service of two coordinators finds
    /// the acting one. The pod's service account must be allowed to patch pods.
    #[arg(long, env = "BASIN_LEADER_LABEL_POD", value_name = "POD")]
    leader_label_pod: Option<String>,
    /// Delete the queues and create them again before the start. Use it when a queue is broken, or after a change of the version of
    /// basin or RabbitMQ. Stop all other services first. The coordinator plans again what was on the queues.
    #[arg(long)]
    reset_queues: bool,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let _telemetry = telemetry::init_scraped("basin-coordinator", "info");
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let token = token(args.token_file.as_deref(), "BASIN_TOKEN")?;
    let read_only = read_only_token(&args, token.as_deref())?;
    if token.is_none() && !args.listen.ip().is_loopback() {
        bail!("--listen {} can be reached from other machines: set BASIN_TOKEN or --token-file", args.listen);
    }
    let notify = Notify::new(targets(&args)?, args.stalled_after);
    let home = Store::open(&args.home).await.context("cannot open --home")?;
    let allowed = match args.allowed_data_sets.is_empty() {
        true => Allowed::without_list(&home, args.listen.ip().is_loopback()),
        false => Allowed::listed(&args.allowed_data_sets).context("--allow-data-set")?,
    };
    if args.reset_queues {
        for channel in Channel::ALL {
            Queue::reset_at(&args.queue, channel).await.context("cannot reset --queue")?;
        }
        tracing::info!("the queues are new and empty");
    }
    let queue = Queue::open(&args.queue).await.context("cannot open --queue")?;
    let listener = tokio::net::TcpListener::bind(args.listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {}", args.listen))?;
    tracing::info!(home = home.url(), queue = queue.server(), listen = %listener.local_addr()?, "started");

    let version = env!("CARGO_PKG_VERSION").into();
    let (service, handle) = Service::new(Config {
        home,
        queue: queue.clone(),
        allowed,
        window: args.window,
        version,
        worker_hour_price: args.worker_hour_price,
        notify,
        keep_runs: args.keep_runs,
    });
    if let Some(pod) = &args.leader_label_pod {
        let place = pod::Place::in_cluster(pod).map_err(anyhow::Error::msg).context("--leader-label-pod")?;
        tokio::spawn(coordinator::pod_label::keep(place, handle.leadership()));
    }
    let gate = Gate::new(token.as_deref(), read_only.as_deref(), &secret().context("cannot read /dev/urandom")?);
    let gate = gate.by_https(args.https);
    let edits = args.edit_url.map(|url| Edits::new(url, token.clone()));
    let api = coordinator::http::serve(listener, handle, gate, OtherServices { traces: args.trace_url, edits });
    let stop = CancellationToken::new();
    let listen = |kind| signal(kind).context("cannot listen to signals");
    tokio::spawn(on_signal([listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?], stop.clone()));
    tokio::select! {
        never = api => match never {},
        outcome = service.run(stop) => outcome?,
    }
    queue.close().await;
    Ok(())
}

fn duration(text: &str) -> Result<Duration, String> {
    results::format::parse_duration(text).map(Duration::from_secs_f64)
}

/// Who is told of what happens.
fn targets(args: &Args) -> anyhow::Result<Vec<Target>> {
    let secret = match args.webhook_secret_file.as_deref() {
        Some(path) => Some(std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?),
        None => std::env::var("BASIN_WEBHOOK_SECRET").ok().filter(|secret| !secret.is_empty()),
    };
    let secret = secret.map(|secret| secret.parse::<Secret>().map_err(anyhow::Error::msg)).transpose()?;
    if secret.is_some() && args.webhook_url.is_none() {
        bail!("there is a secret for a webhook and no webhook: set BASIN_WEBHOOK_URL or --webhook-url, too");
    }
    let webhook = args.webhook_url.clone().map(|url| Target::Webhook(Webhook::new(url, secret)));
    let program = args.notify_command.clone().map(|path| Target::Program(Program::new(path)));
    Ok(webhook.into_iter().chain(program).collect())
}

fn read_only_token(args: &Args, operate: Option<&str>) -> anyhow::Result<Option<String>> {
    let read_only = token(args.view_token_file.as_deref(), "BASIN_VIEW_TOKEN")?;
    match (&read_only, operate) {
        (Some(_), None) => bail!("there is a read-only token and no other token: set BASIN_TOKEN or --token-file, too"),
        (Some(read_only), Some(operate)) if read_only == operate => {
            bail!("the read-only token equals the token that may change runs: set different tokens")
        }
        _ => Ok(read_only),
    }
}

fn token(file: Option<&Path>, variable: &str) -> anyhow::Result<Option<String>> {
    let text = match file {
        Some(path) => Some(std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?),
        None => std::env::var(variable).ok(),
    };
    let token = text.map(|t| t.trim().to_owned());
    if token.as_deref().is_some_and(|t| t.len() < 16) {
        bail!("the token of {variable} has fewer than 16 characters: set a longer one");
    }
    Ok(token)
}

/// The first signal stops the service, the second ends the process at once.
async fn on_signal([mut interrupt, mut terminate]: [Signal; 2], stop: CancellationToken) {
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if stop.is_cancelled() {
            std::process::exit(130);
        }
        tracing::info!("stopping (send the signal again to end at once)");
        stop.cancel();
    }
}
