//! `basin-coordinator`: hands out the jobs of many runs. Never links torch.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Parser;
use coordinator::auth::{Gate, secret};
use coordinator::dashboard::{EditUrl, Edits, Elsewhere, TraceUrl};
use coordinator::service::{Config, Service};
use queue::{Channel, Queue};
use store::Store;
use tokio::sync::watch;

/// Hands out the jobs of runs to workers, and serves the API that `basin submit` and `basin runs` speak.
#[derive(Parser)]
#[command(name = "basin-coordinator", version)]
struct Args {
    /// Folder or bucket (s3://bucket/prefix) of runs, results and models.
    #[arg(long, env = "BASIN_HOME_URL", value_name = "URL")]
    home: String,
    /// The queue that workers share: amqp://user@host:5672/vhost (password from BASIN_AMQP_PASSWORD or ?password_file=).
    #[arg(long, env = "BASIN_QUEUE_URL", value_name = "URL", hide_env_values = true)]
    queue: String,
    /// Address of the API.
    #[arg(long, env = "BASIN_LISTEN", default_value = "127.0.0.1:8470")]
    listen: SocketAddr,
    /// File with the token that clients must show. BASIN_TOKEN holds the token itself.
    #[arg(long, env = "BASIN_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// File with another token, by which clients may look and change nothing. BASIN_VIEW_TOKEN holds the token itself.
    #[arg(long, env = "BASIN_VIEW_TOKEN_FILE", value_name = "FILE")]
    view_token_file: Option<PathBuf>,
    /// Dollars for an hour of a worker, to show what runs may cost.
    #[arg(long, env = "BASIN_WORKER_HOUR_PRICE", value_name = "DOLLARS")]
    worker_hour_price: Option<f64>,
    /// Where traces are looked at, to link them: a URL with {trace} in the place of a trace's id.
    #[arg(long, env = "BASIN_TRACE_URL", value_name = "URL")]
    trace_url: Option<TraceUrl>,
    /// Where `basin serve-edits` listens, for the sliders on the pages of images. It is shown the token, if there is one.
    #[arg(long, env = "BASIN_EDIT_URL", value_name = "URL")]
    edit_url: Option<EditUrl>,
    /// Jobs published and not settled, at most: at least four for each image that all workers together can hold.
    #[arg(long, env = "BASIN_WINDOW", default_value_t = coordinator::drive::WINDOW, value_name = "N")]
    window: usize,
    /// Delete the queues and make them anew first: the way out when one is broken, or is of another version of basin or of
    /// RabbitMQ. Stop all other services before. What was on them is planned again from the home.
    #[arg(long)]
    reset_queues: bool,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let _telemetry = telemetry::init("basin-coordinator", "info");
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
    let view = token_of_viewers(&args, token.as_deref())?;
    if token.is_none() && !args.listen.ip().is_loopback() {
        bail!("--listen {} can be reached from other machines: set BASIN_TOKEN or --token-file", args.listen);
    }
    let home = Store::open(&args.home).await.context("cannot open --home")?;
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
        window: args.window,
        version,
        worker_hour_price: args.worker_hour_price,
    });
    let gate = Gate::new(token.as_deref(), view.as_deref(), &secret().context("cannot read /dev/urandom")?);
    let edits = args.edit_url.map(|url| Edits::new(url, token.clone()));
    let api = coordinator::api::serve(listener, handle, gate, Elsewhere { traces: args.trace_url, edits });
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        if terminated().await.is_ok() {
            tracing::info!("stopping");
            stop.send_replace(true);
        }
    });
    tokio::select! {
        never = api => match never {},
        outcome = service.run(stopped) => outcome?,
    }
    queue.close().await;
    Ok(())
}

/// Of viewers, who are only told from operators where there are such.
fn token_of_viewers(args: &Args, operators: Option<&str>) -> anyhow::Result<Option<String>> {
    let view = token(args.view_token_file.as_deref(), "BASIN_VIEW_TOKEN")?;
    match (&view, operators) {
        (Some(_), None) => bail!("there is a token for viewers, and none for operators: set BASIN_TOKEN or --token-file"),
        (Some(view), Some(operators)) if view == operators => bail!("viewers and operators have the same token"),
        _ => Ok(view),
    }
}

fn token(file: Option<&Path>, variable: &str) -> anyhow::Result<Option<String>> {
    let text = match file {
        Some(path) => Some(std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?),
        None => std::env::var(variable).ok(),
    };
    let token = text.map(|t| t.trim().to_owned());
    if token.as_deref().is_some_and(|t| t.len() < 16) {
        bail!("the token has fewer than 16 characters");
    }
    Ok(token)
}

async fn terminated() -> std::io::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        done = tokio::signal::ctrl_c() => done,
        _ = terminate.recv() => Ok(()),
    }
}
