//! `basin project`: coordinator and worker in one process, over the embedded queue.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use coordinator::auth::Gate;
use coordinator::dashboard::Elsewhere;
use coordinator::desk::Desk;
use coordinator::drive::{self, Status};
use coordinator::plan::RunSpec;
use coordinator::redrive::Redrive;
use coordinator::run;
use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use proto::{JobId, ModelManifest, RunRecord};
use queue::Queue;
use store::{Runs, Store};
use tokio::net::TcpListener;
use tokio::sync::watch;
use worker::{Devices, Models, Shutdown, Working};

use crate::asked::Asked;
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
    #[command(flatten)]
    asked: Asked,
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
    /// Folder for a film of each image's search (WebP): the target, and what is closest to it so far.
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
    /// Serve a dashboard of the run while it goes on, to browsers of this machine.
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "127.0.0.1:8470")]
    watch: Option<SocketAddr>,
}

/// Runs it.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let params = args.asked.params()?;
    let manifest_path = args.model.join("model.json");
    let bytes = std::fs::read(&manifest_path)
        .with_context(|| format!("cannot read {} (--model names a model folder)", manifest_path.display()))?;
    let (manifest, model_digest) =
        ModelManifest::parse(&bytes).with_context(|| format!("{} is no model description", manifest_path.display()))?;
    if let Some(problem) = manifest.lacks(&params) {
        bail!(problem);
    }
    let devices: Devices = args.devices.parse().map_err(anyhow::Error::msg).context("--devices")?;
    let dataset = Store::open(&args.dataset).await.context("cannot open the data set")?;
    let results = Store::open(&args.out).await.context("cannot open --out")?;

    let (model_dir, object) = (args.model.clone(), params.object.clone());
    let load = move || worker::load_for(&model_dir, &object);
    let model = tokio::task::spawn_blocking(load).await?.context("cannot load the model")?;
    let record = RunRecord {
        format: 1,
        name: run_name(&args.out),
        dataset: dataset.url(),
        annotations: args.asked.annotations.clone(),
        limit: args.asked.limit(),
        model: manifest.name.clone(),
        model_digest,
        resolution: manifest.generator.resolution,
        params: params.clone(),
        seed: args.asked.seed,
        version: env!("CARGO_PKG_VERSION").into(),
    };
    let spec = RunSpec::new(record, &manifest);
    let super_classes = spec.super_class_of();
    let redrive = args.retry_failed.then(Redrive::failures);
    let (mut plan, notes) = run::prepare(&spec, redrive.as_ref(), &dataset, &results).await?;
    for note in notes {
        note!("{note}");
    }
    let total = plan.total();
    let expected: HashMap<String, JobId> =
        std::mem::take(&mut plan.settled).iter().map(|planned| (planned.image.to_string(), spec.job(planned).id())).collect();
    plan.settled_bad += expected.len();

    let interrupted = if plan.images.is_empty() {
        note!("nothing is left to project");
        false
    } else {
        let (images, model_name, seeds, how) = (plan.images.len(), &manifest.name, params.seeds, params.described());
        note!("projecting {images} images into {model_name} ({seeds} seeds, profile {how}) on {devices}");
        let worker = worker::Config {
            name: format!("local-{}", std::process::id()),
            devices,
            batch_images: usize::from(args.batch_images),
            checkpoint_every: Duration::from_secs(args.checkpoint_every),
            drain_after: None,
            max_runtime: None,
            record: args.record.clone(),
            version: spec.record.version.clone(),
        };
        let desk = match args.watch {
            Some(address) => Some(open_desk(address, &results).await?),
            None => None,
        };
        drive(spec, plan, worker, model, &results, desk).await?
    };
    // From here on a signal ends the process: `basin report` makes again what it leaves unwritten.
    let record = run::read_run(&results).await?.context("run.json has vanished")?;
    let records = Arc::new(run::read_records(&results).await?);
    if !interrupted {
        run::sweep(&records.results, &results).await?;
    }
    let summary = coordinator::finish::finish(&record, Some(total), super_classes, &records, &results).await?;
    let failures = &records.failures;
    let (succeeded, failed) = (summary.images.succeeded, summary.images.failed);
    let left = (total as u64).saturating_sub(succeeded + failed);
    let left = if left > 0 { format!(", {left} left") } else { String::new() };
    say!("{total} images: {succeeded} succeeded, {failed} failed{left}");
    for failure in failures.iter().take(LISTED) {
        say!("  failed: {:?} ({}): {}", failure.image, failure.reason.as_str(), failure.message);
    }
    if failures.len() > LISTED {
        say!("  and {} more, see results.csv", failures.len() - LISTED);
    }
    let stale = records.results.iter().filter(|r| expected.get(&r.image).is_some_and(|id| *id != r.job)).count();
    if stale > 0 {
        note!(
            "{stale} results are of another file, class or box than the data set has now; to make them again, delete their folders \
            under images/ or choose another --out"
        );
    }
    if params.object.mask.is_detected() {
        let whole = records.results.iter().filter(|r| r.found.as_ref().is_some_and(|found| found.detection.is_none())).count();
        if whole > 0 {
            note!("{whole} images are projected whole, since no detection fits their class");
        }
    }
    if !failures.is_empty() && !interrupted {
        note!("mended something? run again with --retry-failed");
    }
    say!("report: {}", place(&results, "report.html"));
    Ok(if interrupted {
        note!("interrupted: run the same command again to go on");
        ExitCode::from(130)
    } else if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(2)
    })
}

/// Last part of the URL, without its options.
fn run_name(out: &str) -> String {
    let place = out.split('?').next().unwrap_or(out);
    place
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .filter(|n| !n.is_empty() && *n != "." && *n != "..")
        .unwrap_or("run")
        .to_owned()
}

/// Coordinator and worker side by side; whether it was interrupted.
async fn drive(
    spec: RunSpec,
    plan: coordinator::plan::Plan,
    config: worker::Config,
    model: worker::LoadedModel,
    results: &Store,
    desk: Option<Desk>,
) -> anyhow::Result<bool> {
    let queue = Queue::open("embedded:").await?;
    let shutdown = Shutdown::default();
    let (stop, stopped) = watch::channel(false);
    let (status, statuses) = watch::channel(Status::default());
    let (working, workings) = watch::channel(Working::default());
    let per_image = worker::lane_steps(&spec.record.params);
    let runs = Runs::One(results.clone());

    let bar = progress_bar();
    // Lives as long as the process: what comes after the work can be ended too.
    tokio::spawn(on_signal(shutdown.clone(), stop.clone(), bar.clone()));
    let progress = tokio::spawn(show(bar, statuses, workings, per_image));
    let worker = {
        let (queue, runs, shutdown) = (queue.clone(), runs.clone(), shutdown.clone());
        let models = Models::One(Box::new(model));
        let stop = stop.clone();
        async move {
            let outcome = worker::run(config, models, queue.clone(), runs, shutdown, working).await;
            // Without the worker nothing more will happen.
            stop.send_replace(true);
            outcome
        }
    };
    let coordinate = {
        let queue = queue.clone();
        async move {
            let outcome = drive::drive(spec, plan, &queue, runs, stopped, status, desk).await;
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
    progress.await?;
    worked?;
    Ok(coordinated?)
}

/// The dashboard of the run, until the process ends.
async fn open_desk(address: SocketAddr, results: &Store) -> anyhow::Result<Desk> {
    if !address.ip().is_loopback() {
        bail!("--watch {address} can be reached from other machines, and asks for no token: use 127.0.0.1");
    }
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("--watch cannot listen on {address} (give another address)"))?;
    let (desk, handle) = Desk::open(results).await?;
    note!("dashboard: http://{}", listener.local_addr()?);
    let gate = Gate::local().context("cannot read /dev/urandom")?;
    tokio::spawn(coordinator::api::serve(listener, handle, gate, Elsewhere::default()));
    Ok(desk)
}

/// The first signal asks to stop, the second leaves at once.
async fn on_signal(shutdown: Shutdown, stop: watch::Sender<bool>, bar: ProgressBar) {
    let mut terminate = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(stream) => stream,
        Err(_) => return,
    };
    for count in 0.. {
        tokio::select! {
            done = tokio::signal::ctrl_c() => if done.is_err() { return },
            _ = terminate.recv() => {}
        }
        if count > 0 || bar.is_finished() {
            // Not `exit`, which would destroy libtorch's state under the threads that use it.
            signal_hook::low_level::exit(130);
        }
        bar.suspend(|| note!("stopping after this step, saving (again: leave at once)"));
        shutdown.request();
        stop.send_replace(true);
    }
}

fn progress_bar() -> ProgressBar {
    let terminal = std::io::stderr().is_terminal();
    let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(None, target);
    let template = "{bar:20} {percent:>3}%  {wide_msg}";
    bar.set_style(ProgressStyle::with_template(template).expect("a valid template").progress_chars("━━╌"));
    bar
}

/// The progress bar; plain lines where there is no terminal. Ends when the coordinator does.
async fn show(bar: ProgressBar, mut statuses: watch::Receiver<Status>, workings: watch::Receiver<Working>, per_image: u64) {
    let terminal = std::io::stderr().is_terminal();
    let started = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(250));
    let mut last_line = Instant::now();
    loop {
        let ended = tokio::select! {
            _ = tick.tick() => false,
            changed = statuses.changed() => changed.is_err(),
        };
        let (status, working) = (*statuses.borrow(), workings.borrow().clone());
        // The batch's own progress counts until its images are settled.
        let total = (status.images - status.skipped - status.failed) as u64 * per_image;
        let position = (working.lane_steps + working.resumed).min(total);
        bar.set_length(total.max(1));
        bar.set_position(position);
        let message = message(&status, &working, total - position, started.elapsed().as_secs_f64());
        if terminal {
            bar.set_message(message);
        } else if last_line.elapsed() > Duration::from_secs(10) || ended {
            last_line = Instant::now();
            note!("{:3.0} %  {message}", 100.0 * position as f64 / total.max(1) as f64);
        }
        if ended {
            break;
        }
    }
    bar.finish_and_clear();
}

fn message(status: &Status, working: &Working, left: u64, seconds: f64) -> String {
    let settled = status.skipped + status.succeeded + status.failed;
    let failed = if status.failed > 0 { format!(" ({} failed)", status.failed) } else { String::new() };
    let images = format!("{settled}/{} images{failed}", status.images);
    if working.lane_steps == 0 {
        return format!("{images}, starting");
    }
    let rate = working.lane_steps as f64 / seconds.max(1e-3);
    let left = HumanDuration(Duration::from_secs_f64((left as f64 / rate.max(1e-3)).min(1e9)));
    let loss = if working.loss.is_finite() { format!(", loss {:.3}", working.loss) } else { String::new() };
    format!("{images}, {left} left{loss}, {rate:.0} lane-steps/s")
}
