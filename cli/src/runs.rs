//! `basin submit`, `basin runs`, `basin redrive` and `basin workers`: the runs of a fleet, submitted, shown and controlled.

use std::process::ExitCode;

use anyhow::Context;
use client::api::{Change, ClassStatus, LogEntry, LogQuery, RedriveRequest, RunRequest, RunStatus};
use client::{Client, LONG};
use proto::RunState;
use results::format::{duration, parse_duration, short, utc};
use serde_json::Value;

use crate::connection::Connection;
use crate::delete::delete;
use crate::run_options::RunOptions;
use crate::terminal::harmless;
use crate::wait::wait;

#[derive(clap::Args)]
pub struct SubmitArgs {
    /// Folder or bucket of the images, as the workers reach it.
    dataset: String,
    /// Name of the run: 1 to 63 letters, digits, `-`, `_` and `.`.
    #[arg(long)]
    name: String,
    /// Name of a model in the fleet's home (see `basin push`).
    #[arg(long)]
    model: String,
    #[command(flatten)]
    options: RunOptions,
    /// Priority; jobs of runs with a higher one are published first.
    #[arg(long, default_value_t = 0, allow_hyphen_values = true)]
    priority: i32,
    /// Start at most N jobs a minute. Default: no limit.
    #[arg(long, value_name = "N", value_parser = rate)]
    per_minute: Option<f64>,
    /// Pause the run when workers have worked on it for this time, summed over the workers, such as 12h. Default: no budget.
    #[arg(long, value_name = "TIME", value_parser = worker_hours)]
    budget: Option<f64>,
    /// Wait until the run is finished and print its progress, as `basin runs wait` does.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    connection: Connection,
}

pub fn submit(args: SubmitArgs) -> anyhow::Result<ExitCode> {
    let client = args.connection.client(LONG)?;
    let request = RunRequest {
        name: args.name.clone(),
        dataset: absolute(&args.dataset)?,
        annotations: args.options.annotations.clone(),
        model: args.model,
        profile: None,
        params: Some(args.options.params()?),
        seed: args.options.seed,
        limit: args.options.limit(),
        priority: args.priority,
        per_minute: args.per_minute,
        budget_hours: args.budget,
    };
    say!("{}", client.submit(&request)?);
    if args.wait { wait(&args.connection, &[args.name]) } else { Ok(ExitCode::SUCCESS) }
}

/// A folder's absolute path, since the coordinator has another working directory; a URL stays as it is.
pub fn absolute(dataset: &str) -> anyhow::Result<String> {
    if dataset.contains("://") || dataset.starts_with("file:") {
        return Ok(dataset.to_owned());
    }
    let path = std::path::absolute(dataset).with_context(|| format!("cannot find the absolute path of {dataset}"))?;
    Ok(path.to_string_lossy().into_owned())
}

#[derive(clap::Args)]
pub struct RunsArgs {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    connection: Connection,
}

#[derive(clap::Subcommand)]
enum Action {
    /// List all runs (the default).
    List,
    /// Show a run and its errors by class.
    Show(RunName),
    /// Wait until a run is finished and print its progress. If the coordinator goes away, wait for it up to five minutes.
    Wait(RunName),
    /// Pause a run: no more jobs are published, and workers save and release the jobs that they have.
    Pause(RunName),
    /// Resume a paused run.
    Resume(RunName),
    /// Cancel a run permanently. Its results stay.
    Cancel(RunName),
    /// Change a run's priority. Jobs of runs with a higher one are published first.
    Priority {
        /// Name of the run.
        run: String,
        /// The new priority; 0 is the default.
        #[arg(allow_hyphen_values = true)]
        priority: i32,
    },
    /// Limit how many jobs of a run are started each minute; 0 removes the limit.
    Rate {
        /// Name of the run.
        run: String,
        /// Jobs a minute.
        #[arg(value_parser = rate)]
        per_minute: f64,
    },
    /// Set how long workers may work on a run, summed over the workers. A run that has used it is paused; raise it and resume the run.
    Budget {
        /// Name of the run.
        run: String,
        /// The new budget, such as 12h, including what is used already; `none` removes it.
        #[arg(value_parser = budget)]
        budget: f64,
    },
    /// Delete a run that has ended, with all its objects. Its name is free then.
    Delete {
        /// Name of the run.
        run: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Show who changed what: the newest changes, the newest first.
    Log {
        /// Name of the run. Default: all runs, also deleted ones.
        run: Option<String>,
        /// Show at most N changes, 1000 at most.
        #[arg(long, value_name = "N", default_value_t = LogQuery::LIMIT)]
        limit: usize,
    },
    /// Retry failures of a finished run. `basin redrive` does the same with any conditions.
    Retry {
        /// Name of the run.
        run: String,
        /// Retry only images of this class. Can be repeated.
        #[arg(long)]
        class: Vec<String>,
        /// Retry only failures with this reason, such as `bad_image`. Can be repeated.
        #[arg(long)]
        reason: Vec<String>,
    },
}

#[derive(clap::Args)]
struct RunName {
    /// Name of the run.
    run: String,
}

#[derive(clap::Args)]
pub struct RedriveArgs {
    /// Name of the run, which must be finished.
    run: String,
    /// Conditions joined by commas, all of which an image must meet. Can be repeated: an image is selected if it meets
    /// one of the lists. Fields: class, reason, image (`*` matches any text, `\*` a star), loss, inverted_loss, l1, l2, lpips.
    /// Operators: = != < <= > >=. Put a value with a comma in double quotes, as in JSON. Default: all failures. Example:
    /// `--where 'class=Bag,lpips>0.4'`.
    #[arg(long = "where", value_name = "CONDITIONS")]
    wheres: Vec<String>,
    /// Project the images with this seed instead of the run seed. Only with a seed are results redriven, too: they are deleted first.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    seed: Option<u64>,
    #[command(flatten)]
    connection: Connection,
}

pub fn rate(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate >= 0.0).ok_or_else(|| "expected a number ≥ 0".into())
}

/// Hours of a time such as `12h`.
fn worker_hours(text: &str) -> Result<f64, String> {
    parse_duration(text).map(|seconds| seconds / 3600.0)
}

/// As [`worker_hours`]; 0 removes the budget.
fn budget(text: &str) -> Result<f64, String> {
    if text == "none" { Ok(0.0) } else { worker_hours(text) }
}

pub fn run(args: RunsArgs) -> anyhow::Result<ExitCode> {
    let client = args.connection.client(LONG)?;
    let change = |run: &str, change: Change| -> anyhow::Result<ExitCode> {
        print_runs(&[client.change(run, &change)?]);
        Ok(ExitCode::SUCCESS)
    };
    let state = |state| Change { state: Some(state), ..Change::default() };
    match args.action.unwrap_or(Action::List) {
        Action::List => print_runs(&client.runs()?),
        Action::Show(RunName { run }) => {
            let status = client.run(&run)?;
            print_runs(std::slice::from_ref(&status));
            print_classes(&status);
        }
        Action::Wait(RunName { run }) => return wait(&args.connection, &[run]),
        Action::Pause(RunName { run }) => return change(&run, state(RunState::Paused)),
        Action::Resume(RunName { run }) => return change(&run, state(RunState::Running)),
        Action::Cancel(RunName { run }) => return change(&run, state(RunState::Cancelled)),
        Action::Priority { run, priority } => return change(&run, Change { priority: Some(priority), ..Change::default() }),
        Action::Rate { run, per_minute } => return change(&run, Change { per_minute: Some(per_minute), ..Change::default() }),
        Action::Budget { run, budget } => return change(&run, Change { budget_hours: Some(budget), ..Change::default() }),
        Action::Delete { run, yes } => return delete(&args.connection, &run, yes),
        Action::Log { run, limit } => print_log(&client.log(run.as_deref(), limit)?),
        Action::Retry { run, class, reason } => {
            return request_redrive(&client, &run, conditions(&class, &reason), None);
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub fn redrive(args: RedriveArgs) -> anyhow::Result<ExitCode> {
    request_redrive(&args.connection.client(LONG)?, &args.run, args.wheres, args.seed)
}

fn request_redrive(client: &Client, run: &str, wheres: Vec<String>, seed: Option<u64>) -> anyhow::Result<ExitCode> {
    say!("{}", client.redrive(run, &RedriveRequest { wheres, seed })?);
    Ok(ExitCode::SUCCESS)
}

pub fn workers(connection: &Connection) -> anyhow::Result<ExitCode> {
    let workers = connection.client(LONG)?.workers()?;
    say!("{:32} {:>6} {:>12} {:24} devices", "worker", "images", "lane-steps/s", "run");
    for worker in &workers {
        let alive = &worker.alive;
        let [name, run, devices] = [&worker.name, &alive.run, &alive.devices].map(|text| harmless(text));
        say!("{name:32} {:>6} {:>12.0} {run:24} {devices}", alive.images, alive.lane_steps_per_second);
    }
    Ok(ExitCode::SUCCESS)
}

fn print_runs(runs: &[RunStatus]) {
    let row = |name: &str,
               state: &str,
               [priority, images, succeeded, failed, working, queued, waiting, rate, left]: [&str; 9]| {
        say!(
            "{name:24} {state:10} {priority:>8} {images:>9} {succeeded:>9} {failed:>7} {working:>12} {queued:>7} {waiting:>8} {rate:>8} {left:>10}"
        );
    };
    let heads = ["priority", "images", "succeeded", "failed", "with workers", "queued", "waiting", "per hour", "time left"];
    row("run", "state", heads);
    for run in runs {
        let succeeded = run.skipped.saturating_add(run.succeeded);
        let [images, succeeded, failed, working, queued, waiting] =
            [run.images, succeeded, run.failed, run.started, run.queued, run.waiting].map(|n| n.to_string());
        let rate = run.per_hour.map(short).unwrap_or_default();
        let left = run.eta_seconds.map(duration).unwrap_or_default();
        let cells = [&run.priority.to_string(), &images, &succeeded, &failed, &working, &queued, &waiting, &rate, &left];
        row(&harmless(&run.name), run.state.as_str(), cells.map(String::as_str));
        if let Some(problem) = &run.problem {
            say!("  cannot continue now: {}", harmless(problem));
        }
        if let Some(budget) = run.budget_hours {
            say!("  budget: {:.2} of {budget} worker hours used", run.worker_hours);
        }
        if let Some(why) = &run.paused_because {
            say!("  paused: {}", harmless(why));
        }
        if let Some(objects) = run.deleting {
            say!("  being deleted: {objects} objects are gone");
        }
        if let Some(problem) = &run.notification_problem {
            say!("  notification: {}", harmless(problem));
        }
    }
}

fn print_log(entries: &[LogEntry]) {
    for LogEntry { time, action, run, who, address, detail } in entries {
        let when = utc(time / 1_000_000).unwrap_or_default();
        let [action, run, who, detail] = [action, run, who, detail].map(|text| harmless(text));
        let address = harmless(address.as_deref().unwrap_or("–"));
        say!("{when}  {action:10} {run:24} {who:12} {address:16} {detail}");
    }
}

fn print_classes(run: &RunStatus) {
    let number = |value: Option<f64>| value.map_or_else(|| "–".into(), |value| format!("{value:.4}"));
    for ClassStatus { class, images, loss, l1, lpips, lpips_standard_error, .. } in &run.classes {
        say!(
            "  {:24} {images:>7} images   loss {}   L1 {}   LPIPS {} ± {}",
            harmless(class),
            number(*loss),
            number(*l1),
            number(*lpips),
            number(*lpips_standard_error),
        );
    }
    if run.unread > 0 {
        say!("  {} results are still being read", run.unread);
    }
}

/// Conditions that select images of one of the classes with one of the reasons; an empty list stands for all.
fn conditions(classes: &[String], reasons: &[String]) -> Vec<String> {
    let alternatives = |field: &str, values: &[String]| -> Vec<Option<String>> {
        let condition = |value: &String| Some(format!("{field}={}", Value::from(value.as_str())));
        if values.is_empty() { vec![None] } else { values.iter().map(condition).collect() }
    };
    let (classes, reasons) = (alternatives("class", classes), alternatives("reason", reasons));
    let pairs = classes.iter().flat_map(|class| reasons.iter().map(move |reason| [class, reason]));
    let joined = pairs.map(|pair| pair.into_iter().flatten().cloned().collect::<Vec<_>>().join(","));
    joined.filter(|text| !text.is_empty()).collect()
}
