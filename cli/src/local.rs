//! A run on this machine: coordinator and worker in one process, over the embedded queue.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use coordinator::auth::Gate;
use coordinator::dashboard::Elsewhere;
use coordinator::desk::Desk;
use coordinator::drive::{self, Status};
use coordinator::plan::{Plan, RunSpec};
use coordinator::prepare;
use engine::{Devices, LoadedModel, Models};
use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use proto::{JobId, ResultRecord};
use queue::Queue;
use results::redrive::Redrive;
use results::run::{self, Records};
use results::summary::Summary;
use store::{Runs, Store};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use worker::{Shutdown, Working};

/// How to compute on this machine.
#[derive(clap::Args)]
pub struct Machine {
    /// Where to compute: `auto`, or a list such as `cpu,cpu` or `cuda:0,cuda:1`.
    #[arg(long, default_value = "auto", env = "BASIN_DEVICES")]
    devices: String,
    /// Images that are projected side by side.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch_images: u16,
    /// Seconds between checkpoints: what a kill costs at most.
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    checkpoint_every: u64,
    /// Serve a dashboard of the run while it goes on, to browsers of this machine.
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "127.0.0.1:8470")]
    watch: Option<SocketAddr>,
}

/// This process, as far as it computes: one run after the other.
pub struct Local {
    machine: Machine,
    /// Where it computes.
    pub devices: Devices,
    shutdown: Shutdown,
    /// Whether a signal asked to stop.
    asked: watch::Receiver<bool>,
    /// In progress while images are projected.
    bar: ProgressBar,
}

/// One run of several.
pub struct Task<'a> {
    /// The run.
    pub spec: RunSpec,
    /// What is projected again.
    pub redrive: Option<Redrive>,
    /// Where its images are.
    pub dataset: &'a Store,
    /// Where its results go.
    pub results: &'a Store,
    /// Folder of the films.
    pub record: Option<PathBuf>,
    /// Stands before the progress.
    pub title: String,
}

/// What came of a run.
pub struct Outcome {
    /// Images of the run.
    pub total: usize,
    /// Images that had neither a result nor a failure before.
    pub left: usize,
    /// A signal asked to stop: some of it is left.
    pub interrupted: bool,
    /// Its numbers.
    pub summary: Summary,
    /// Its results and failures.
    pub records: Arc<Records>,
    /// The jobs of images that had a result before.
    expected: HashMap<String, JobId>,
}

impl Outcome {
    /// Results that were there before and are of another file, class or box than the data set has now.
    pub fn stale(&self) -> usize {
        let other = |record: &&ResultRecord| self.expected.get(&record.image).is_some_and(|id| *id != record.job);
        self.records.results.iter().filter(other).count()
    }
}

impl Local {
    /// Checks the devices, and listens to signals from now on. Needs a runtime.
    pub fn new(machine: Machine) -> anyhow::Result<Local> {
        let devices: Devices = machine.devices.parse().map_err(anyhow::Error::msg).context("--devices")?;
        let (shutdown, bar) = (Shutdown::default(), progress_bar());
        let (ask, asked) = watch::channel(false);
        let listen = |kind| signal(kind).context("cannot listen to signals");
        let signals = [listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?];
        // Lives as long as the process: what comes before and after the work can be ended, too.
        tokio::spawn(on_signal(signals, shutdown.clone(), ask, bar.clone()));
        Ok(Local { machine, devices, shutdown, asked, bar })
    }

    /// Projects what is left of a run, and writes its tables. `model` is asked for if there is something left.
    pub async fn project(&self, task: Task<'_>, model: impl FnOnce() -> LoadedModel) -> anyhow::Result<Outcome> {
        let Task { spec, redrive, dataset, results, record, title } = task;
        let super_classes = spec.super_class_of();
        let (mut plan, notes) = prepare::prepare(&spec, redrive.as_ref(), dataset, results).await?;
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
            let proto::RunRecord { model: name, params, .. } = &spec.record;
            let (seeds, how, devices) = (params.seeds, params.described(), &self.devices);
            note!("projecting {left} images into {name} ({seeds} seeds, profile {how}) on {devices}");
            self.drive(spec, plan, record, model(), results, title).await?
        };
        // From here on a signal ends the process: `basin report` makes again what it leaves unwritten.
        let record = run::read_run(results).await?.context("run.json has vanished")?;
        let records = Arc::new(run::read_records(results).await?);
        if !interrupted {
            run::sweep(&records.results, results).await?;
        }
        let summary = results::tables::write_tables(&record, Some(total), super_classes, &records, results).await?;
        Ok(Outcome { total, left, interrupted, summary, records, expected })
    }

    fn worker(&self, record: Option<PathBuf>, version: String) -> worker::Config {
        worker::Config {
            name: format!("local-{}", std::process::id()),
            devices: self.devices.clone(),
            batch_images: usize::from(self.machine.batch_images),
            checkpoint_every: Duration::from_secs(self.machine.checkpoint_every),
            drain_after: None,
            max_runtime: None,
            record,
            version,
        }
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
        let desk = match self.machine.watch {
            Some(address) => Some(open_desk(address, results).await?),
            None => None,
        };
        let (desk, served) = desk.unzip();
        let queue = Queue::open("embedded:").await?;
        let shutdown = self.shutdown.clone();
        let (stop, stopped) = watch::channel(false);
        let (status, statuses) = watch::channel(Status::default());
        let (working, workings) = watch::channel(Working::default());
        let per_image = engine::lane_steps(&spec.record.params);
        let runs = Runs::One(results.clone());
        let config = self.worker(record, spec.record.version.clone());

        self.bar.reset();
        let obeys = tokio::spawn(obey(self.asked.clone(), stop.clone()));
        let progress = tokio::spawn(show(self.bar.clone(), title, statuses, workings, per_image));
        let worker = {
            let (queue, runs, shutdown) = (queue.clone(), runs.clone(), shutdown.clone());
            let models = Models::One(Box::new(model));
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
        obeys.abort();
        if let Some(served) = served {
            // The next run has a dashboard of its own at the same address.
            served.abort();
        }
        worked?;
        Ok(coordinated?)
    }
}

/// Ends the run as soon as a signal asks for it.
async fn obey(mut asked: watch::Receiver<bool>, stop: watch::Sender<bool>) {
    if asked.wait_for(|asked| *asked).await.is_ok() {
        stop.send_replace(true);
    }
}

/// The dashboard of the run, and what serves it.
async fn open_desk(address: SocketAddr, results: &Store) -> anyhow::Result<(Desk, AbortHandle)> {
    if !address.ip().is_loopback() {
        bail!("--watch {address} can be reached from other machines, and asks for no token: use 127.0.0.1");
    }
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("--watch cannot listen on {address} (give another address)"))?;
    let (desk, handle) = Desk::open(results).await?;
    note!("dashboard: http://{}", listener.local_addr()?);
    let gate = Gate::local().context("cannot read /dev/urandom")?;
    let serves = tokio::spawn(coordinator::api::serve(listener, handle, gate, Elsewhere::default()));
    Ok((desk, serves.abort_handle()))
}

/// The first signal asks to stop, the second leaves at once.
async fn on_signal([mut interrupt, mut terminate]: [Signal; 2], shutdown: Shutdown, stop: watch::Sender<bool>, bar: ProgressBar) {
    for count in 0.. {
        tokio::select! {
            _ = interrupt.recv() => {}
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
    mut statuses: watch::Receiver<Status>,
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
        let (status, working) = (*statuses.borrow(), workings.borrow().clone());
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
