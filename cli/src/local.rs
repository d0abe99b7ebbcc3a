//! A run on this machine: coordinator and worker in one process, with the embedded queue between them.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use client::api::RunStatus;
use coordinator::http::auth::Gate;
use coordinator::http::other_services::OtherServices;
use coordinator::plan::{Plan, RunSpec};
use coordinator::prepare::see;
use coordinator::service::{Handle, OneRun, Service};
use engine::{Devices, LoadedModel, Models};
use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use proto::{Failure, JobId, ResultRecord, RunRecord};
use queue::Queue;
use results::redrive::Redrive;
use results::run;
use results::summary::Summary;
use results::sweep::sweep;
use results::tables::{Written, write_tables};
use store::{Allowed, Runs, Store};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use worker::Working;
use worker::shutdown::on_signals;

#[derive(clap::Args)]
pub struct ComputeOptions {
    /// Devices to compute on: `auto`, or a list such as `cpu,cpu` or `cuda:0,cuda:1`.
    #[arg(long, default_value = "auto", env = "BASIN_DEVICES")]
    devices: String,
    /// Number of images to project at one time.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch_images: u16,
    /// Seconds between checkpoints; a killed process loses at most this much work.
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    checkpoint_every: u64,
    /// Serve a dashboard of the run to browsers of this machine until the run ends. Default address: 127.0.0.1:8470.
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "127.0.0.1:8470")]
    watch: Option<SocketAddr>,
}

/// This process, as far as it computes: one run after the other.
pub struct Local {
    options: ComputeOptions,
    pub devices: Devices,
    shutdown: CancellationToken,
    /// In progress while images are projected.
    bar: ProgressBar,
}

pub struct LocalRun<'a> {
    pub spec: RunSpec,
    pub redrive: Option<Redrive>,
    pub dataset: &'a Store,
    pub results: &'a Store,
    /// Folder for films of the search.
    pub record: Option<PathBuf>,
    pub title: String,
}

pub struct Outcome {
    pub total: usize,
    /// Images that had neither a result nor a failure before.
    pub left: usize,
    /// A signal stopped the run before its end.
    pub interrupted: bool,
    pub summary: Summary,
    /// Results of earlier starts that were made from another file, class or box than the data set has now.
    pub stale: usize,
    /// Results in whose images something was looked for, and no object was found.
    pub whole: usize,
    /// Some failures, by reason.
    pub failures: Vec<Failure>,
}

impl Local {
    /// Checks the devices, and listens for signals from now on. Needs a runtime.
    pub fn new(options: ComputeOptions) -> anyhow::Result<Local> {
        let devices: Devices = options.devices.parse().map_err(anyhow::Error::msg).context("--devices")?;
        let (shutdown, bar) = (CancellationToken::new(), progress_bar());
        let shown = bar.clone();
        // Before and after the projecting there is nothing to finish: the first signal ends the process.
        let note = move || {
            let projecting = !shown.is_finished();
            if projecting {
                shown.suspend(|| note!("stopping after this step and saving; a second signal exits at once"));
            }
            projecting
        };
        on_signals(shutdown.clone(), note).context("cannot listen for signals")?;
        Ok(Local { options, devices, shutdown, bar })
    }

    /// Projects what is left of a run, and writes its tables. `model` is called if an image is left.
    pub async fn project(&self, run: LocalRun<'_>, model: impl FnOnce() -> LoadedModel) -> anyhow::Result<Outcome> {
        let LocalRun { spec, redrive, dataset, results, record, title } = run;
        let super_classes = spec.super_class_of();
        let seen = see(&spec, redrive.as_ref(), true, dataset, &Allowed::default(), results).await?;
        let (mut plan, notes) = seen.plan(&spec, results).await?;
        for note in notes {
            note!("{note}");
        }
        let total = plan.total();
        let expected: HashMap<String, JobId> =
            std::mem::take(&mut plan.settled).iter().map(|planned| (planned.image.to_string(), spec.job(planned).id())).collect();
        plan.settled_bad += expected.len();

        let left = plan.images.len();
        let interrupted = if left == 0 {
            note!("nothing is left to project");
            false
        } else {
            let RunRecord { model: name, params, .. } = &spec.record;
            let (seeds, how, devices) = (params.seeds, params.described(), &self.devices);
            note!("projecting {left} images into {name} ({seeds} seeds, profile {how}) on {devices}");
            self.drive(spec, plan, record, model(), results, title).await?
        };
        // From here on a signal ends the process; `basin report` writes the tables that are missing then.
        let record = run::read_run(results).await?.context("run.json has vanished")?;
        let (mut stale, mut whole) = (0, 0);
        let look = |record: &ResultRecord| {
            stale += usize::from(expected.get(&record.image).is_some_and(|id| *id != record.job));
            whole += usize::from(record.found.as_ref().is_some_and(|found| found.detection.is_none()));
        };
        let written = write_tables(&record, Some(total), super_classes, results, look).await?;
        if !interrupted {
            sweep(&written.winners, results).await?;
        }
        let Written { summary, failures, .. } = written;
        Ok(Outcome { total, left, interrupted, summary, stale, whole, failures })
    }

    /// Coordinator and worker side by side; whether it was interrupted.
    async fn drive(
        &self,
        spec: RunSpec,
        plan: Plan,
        record: Option<PathBuf>,
        model: LoadedModel,
        results: &Store,
        title: String,
    ) -> anyhow::Result<bool> {
        let listener = match self.options.watch {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let queue = Queue::open("embedded:").await?;
        // The worker's end stops the coordinator of this run, and not those of the next ones.
        let stop = self.shutdown.child_token();
        let (status, statuses) = watch::channel(RunStatus::default());
        let (working, workings) = watch::channel(Working::default());
        let per_image = engine::lane_steps(&spec.record.params);
        let config = worker::Config {
            name: format!("local-{}", std::process::id()),
            devices: self.devices.clone(),
            batch_images: usize::from(self.options.batch_images),
            checkpoint_every: Duration::from_secs(self.options.checkpoint_every),
            drain_after: None,
            max_runtime: None,
            record,
            version: spec.record.version.clone(),
            ..worker::Config::default()
        };

        self.bar.reset();
        let run = OneRun::new(spec, plan, results, status);
        let run = if listener.is_some() { run.watched().await? } else { run };
        let (service, handle) = Service::one(run, queue.clone());
        let served = listener.map(|listener| serve(listener, handle)).transpose()?;
        let shown = tokio::spawn(show(self.bar.clone(), title, statuses, workings, per_image));
        let worker = async {
            let (models, runs) = (Models::One(Box::new(model)), Runs::One(results.clone()));
            let outcome = worker::run(config, models, queue.clone(), runs, self.shutdown.clone(), working).await;
            // Without the worker no result will come.
            stop.cancel();
            outcome
        };
        let coordinate = async {
            let outcome = service.run(stop.clone()).await;
            // The worker releases the jobs that it holds before the queue closes.
            if outcome.is_ok() && !self.shutdown.is_cancelled() {
                queue.close().await;
            } else {
                self.shutdown.cancel();
            }
            outcome.map(|()| self.shutdown.is_cancelled())
        };
        let (worked, coordinated) = tokio::join!(worker, coordinate);
        shown.await?;
        if let Some(served) = served {
            // The next run has a dashboard of its own at the same address.
            served.abort();
        }
        worked?;
        Ok(coordinated?)
    }
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    if !address.ip().is_loopback() {
        bail!("--watch {address} is open to other machines, and this dashboard has no token: use 127.0.0.1");
    }
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("--watch cannot listen on {address}: give another address"))
}

fn serve(listener: TcpListener, handle: Handle) -> anyhow::Result<AbortHandle> {
    note!("dashboard: http://{}", listener.local_addr()?);
    let gate = Gate::local().context("cannot read /dev/urandom")?;
    let serves = tokio::spawn(coordinator::http::serve(listener, handle, gate, OtherServices::default()));
    Ok(serves.abort_handle())
}

/// Finished until images are projected.
fn progress_bar() -> ProgressBar {
    let terminal = std::io::stderr().is_terminal();
    let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(None, target);
    let template = "{bar:20} {percent:>3}%  {wide_msg}";
    bar.set_style(ProgressStyle::with_template(template).expect("a valid template").progress_chars("━━╌"));
    bar.finish_and_clear();
    bar
}

/// The progress bar; plain lines where there is no terminal. Ends when the coordinator does.
async fn show(
    bar: ProgressBar,
    title: String,
    mut statuses: watch::Receiver<RunStatus>,
    workings: watch::Receiver<Working>,
    per_image: u64,
) {
    let terminal = std::io::stderr().is_terminal();
    let started = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(250));
    let mut last_line = Instant::now();
    loop {
        let ended = tokio::select! {
            _ = tick.tick() => false,
            changed = statuses.changed() => changed.is_err(),
        };
        let (status, working) = (statuses.borrow().clone(), workings.borrow().clone());
        // The batch's own progress counts until its images are settled.
        let total = (status.images - status.skipped - status.failed) as u64 * per_image;
        let position = (working.lane_steps + working.resumed).min(total);
        bar.set_length(total.max(1));
        bar.set_position(position);
        let message = title.clone() + &message(&status, &working, total - position, started.elapsed().as_secs_f64());
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

fn message(status: &RunStatus, working: &Working, left: u64, seconds: f64) -> String {
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
