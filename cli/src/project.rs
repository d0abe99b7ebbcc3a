//! `basin project`: coordinator and worker in one process, over the embedded queue.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use coordinator::dataset::Annotations;
use coordinator::plan::RunSpec;
use coordinator::run::{self, Status};
use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use proto::{ModelManifest, Params};
use queue::Queue;
use store::Store;
use tokio::sync::watch;
use worker::{Devices, Shutdown, Working};

use crate::report::place;

/// Failures that are listed at the end.
const LISTED: usize = 20;

/// Options of `basin project`.
#[derive(clap::Args)]
pub struct Args {
    /// Folder or bucket (s3://bucket/prefix) of the images.
    dataset: String,
    /// Model folder.
    #[arg(long, env = "BASIN_MODEL")]
    model: PathBuf,
    /// Folder or bucket (s3://bucket/prefix) for the results.
    #[arg(long, env = "BASIN_OUT")]
    out: String,
    /// COCO JSON or CSV manifest with classes and boxes; `auto` looks for one, `none` takes the folders' names as classes.
    #[arg(long, default_value = "auto")]
    annotations: Annotations,
    /// Which method and schedule.
    #[arg(long, value_parser = Params::PROFILES, default_value = "paper", conflicts_with = "params")]
    profile: String,
    /// Parameters from a JSON file (see `basin params`).
    #[arg(long, value_name = "FILE")]
    params: Option<PathBuf>,
    /// Everything random follows from it.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Project only this many images, evenly spread over the data set.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Try images again that failed in an earlier start.
    #[arg(long)]
    retry_failed: bool,
    /// Where to compute: `auto`, or a list such as `cpu,cpu` or `cuda:0,cuda:1`.
    #[arg(long, default_value = "auto", env = "BASIN_DEVICES")]
    devices: String,
    /// Images that are projected side by side.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch_images: u16,
    /// Seconds between checkpoints: what a kill costs at most.
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    checkpoint_every: u64,
}

/// Runs it.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let params = params(&args)?;
    let manifest_path = args.model.join("model.json");
    let bytes = std::fs::read(&manifest_path)
        .with_context(|| format!("cannot read {} (--model names a model folder)", manifest_path.display()))?;
    let (manifest, model_digest) =
        ModelManifest::parse(&bytes).with_context(|| format!("{} is no model description", manifest_path.display()))?;
    let devices: Devices = args.devices.parse().map_err(anyhow::Error::msg).context("--devices")?;
    let dataset = Store::open(&args.dataset).await.context("cannot open the data set")?;
    let results = Store::open(&args.out).await.context("cannot open --out")?;

    let name = args.out.trim_end_matches('/').rsplit('/').next().filter(|n| !n.is_empty()).unwrap_or("run").to_owned();
    let config = run::Config {
        spec: RunSpec {
            name,
            dataset: dataset.url(),
            model: manifest.name.clone(),
            model_digest,
            classes: manifest.classes.clone(),
            params: params.clone(),
            seed: args.seed,
        },
        annotations: args.annotations.clone(),
        limit: args.limit,
        retry_failed: args.retry_failed,
        version: env!("CARGO_PKG_VERSION").into(),
    };
    let (plan, notes) = run::prepare(&config, &dataset, &results).await?;
    for note in notes {
        eprintln!("{note}");
    }

    let interrupted = if plan.jobs.is_empty() {
        eprintln!("nothing is left to project");
        false
    } else {
        let model_dir = args.model.clone();
        let model = tokio::task::spawn_blocking(move || worker::load(&model_dir)).await?.context("cannot load the model")?;
        eprintln!(
            "projecting {} images into {} ({} seeds, profile {}) on {}",
            plan.jobs.len(),
            manifest.name,
            params.seeds,
            params.profile,
            devices
        );
        let worker = worker::Config {
            name: format!("local-{}", std::process::id()),
            devices,
            batch_images: usize::from(args.batch_images),
            checkpoint_every: Duration::from_secs(args.checkpoint_every),
            version: config.version.clone(),
        };
        drive(plan, worker, model, &params, &results).await?
    };

    let record = run::read_run(&results).await?.context("run.json has vanished")?;
    let summary = coordinator::finish::finish(&record, manifest.generator.resolution, &results).await?;
    let (_, failures) = run::read_records(&results).await?;
    println!("{} images: {} projected, {} failed", summary.images.total, summary.images.succeeded, summary.images.failed);
    for failure in failures.iter().take(LISTED) {
        println!("  failed: {:?} ({}): {}", failure.image, failure.reason.as_str(), failure.message);
    }
    if failures.len() > LISTED {
        println!("  and {} more, see results.csv", failures.len() - LISTED);
    }
    println!("report: {}", place(&results, "report.html"));
    Ok(if interrupted {
        eprintln!("interrupted: run the same command again to go on");
        ExitCode::from(130)
    } else if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(2)
    })
}

fn params(args: &Args) -> anyhow::Result<Params> {
    let Some(path) = &args.params else {
        return Ok(Params::profile(&args.profile).expect("clap allows known names only"));
    };
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Params::from_json(&text).with_context(|| format!("{} holds no valid parameters", path.display()))
}

/// Coordinator and worker side by side; whether it was interrupted.
async fn drive(
    plan: coordinator::plan::Plan,
    config: worker::Config,
    model: worker::LoadedModel,
    params: &Params,
    results: &Store,
) -> anyhow::Result<bool> {
    let queue = Queue::open("embedded:").await?;
    let shutdown = Shutdown::default();
    let (stop, stopped) = watch::channel(false);
    let (status, statuses) = watch::channel(Status::default());
    let (working, workings) = watch::channel(Working::default());
    let per_image = worker::lane_steps(params);

    let signals = tokio::spawn(on_signal(shutdown.clone(), stop.clone()));
    let progress = tokio::spawn(show(statuses, workings, per_image));
    let worker = {
        let (queue, results, shutdown) = (queue.clone(), results.clone(), shutdown.clone());
        let stop = stop.clone();
        async move {
            let outcome = worker::run(config, model, queue.clone(), results, shutdown, working).await;
            // Without the worker nothing more will happen.
            stop.send_replace(true);
            outcome
        }
    };
    let coordinate = {
        let queue = queue.clone();
        async move {
            let outcome = run::drive(plan, &queue, results, stopped, status).await;
            // The worker gives back what it holds before the queue closes.
            if outcome.is_ok() && !shutdown.requested() {
                queue.close().await;
            } else {
                shutdown.request();
            }
            outcome.map(|()| shutdown.requested())
        }
    };
    let (worked, coordinated) = tokio::join!(worker, coordinate);
    signals.abort();
    progress.await?;
    worked?;
    Ok(coordinated?)
}

/// The first signal asks to stop, the second leaves at once.
async fn on_signal(shutdown: Shutdown, stop: watch::Sender<bool>) {
    let mut terminate = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(stream) => stream,
        Err(_) => return,
    };
    for count in 0.. {
        tokio::select! {
            done = tokio::signal::ctrl_c() => if done.is_err() { return },
            _ = terminate.recv() => {}
        }
        if count > 0 {
            std::process::exit(130);
        }
        eprintln!("stopping after this step, saving (again: leave at once)");
        shutdown.request();
        stop.send_replace(true);
    }
}

/// The progress bar; plain lines where there is no terminal. Ends when the coordinator does.
async fn show(mut statuses: watch::Receiver<Status>, workings: watch::Receiver<Working>, per_image: u64) {
    let terminal = std::io::stderr().is_terminal();
    let bar =
        ProgressBar::with_draw_target(None, if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() });
    let template = "{bar:32} {percent:>3}%  {msg}";
    bar.set_style(ProgressStyle::with_template(template).expect("a valid template").progress_chars("━━╌"));
    let started = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(250));
    let mut last_line = Instant::now();
    loop {
        let ended = tokio::select! {
            _ = tick.tick() => false,
            changed = statuses.changed() => changed.is_err(),
        };
        let (status, working) = (*statuses.borrow(), workings.borrow().clone());
        let settled = status.succeeded + status.failed;
        // The batch's own progress counts until its images are settled.
        let total = (status.images - status.skipped - status.failed) as u64 * per_image;
        bar.set_length(total.max(1));
        let position = working.lane_steps.min(total);
        bar.set_position(position);
        let rate = working.lane_steps as f64 / started.elapsed().as_secs_f64().max(1e-3);
        let left = (total - position) as f64 / rate.max(1e-3);
        let eta =
            if working.lane_steps == 0 { "?".into() } else { HumanDuration(Duration::from_secs_f64(left.min(1e9))).to_string() };
        let message = format!(
            "{}/{} images ({} failed), {} left, loss {:.3}, {:.0} lane-steps/s",
            settled + status.skipped,
            status.images,
            status.failed,
            eta,
            working.loss,
            rate
        );
        if terminal {
            bar.set_message(message);
        } else if last_line.elapsed() > Duration::from_secs(10) || ended {
            last_line = Instant::now();
            let _ = writeln!(std::io::stderr(), "{message}");
        }
        if ended {
            break;
        }
    }
    bar.finish_and_clear();
}
