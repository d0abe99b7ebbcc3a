//! `basin runs`: the runs of a fleet, shown and controlled.

use std::process::ExitCode;

use client::LONG;
use client::api::{Change, ClassStatus, RedriveRequest, RunStatus};
use proto::RunState;
use results::format::{duration, short};
use serde_json::Value;

use crate::connection::Connection;
use crate::redrive::redrive;
use crate::terminal::harmless;
use crate::wait::wait;

#[derive(clap::Args)]
pub struct Args {
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
    Show { run: String },
    /// Wait until a run is finished and print its progress. If the coordinator goes away, wait for it up to five minutes.
    Wait { run: String },
    /// Pause a run: no more jobs are published, and workers save and release the jobs that they have.
    Pause { run: String },
    /// Resume a paused run.
    Resume { run: String },
    /// Cancel a run permanently. Its results stay.
    Cancel { run: String },
    /// Change a run's priority. Jobs of runs with a higher one are published first.
    Priority {
        run: String,
        #[arg(allow_hyphen_values = true)]
        priority: i32,
    },
    /// Limit how many jobs of a run are started each minute; 0 removes the limit.
    Rate {
        run: String,
        #[arg(value_parser = rate)]
        per_minute: f64,
    },
    /// Retry failures of a finished run. `basin redrive` does the same with any conditions.
    Retry {
        run: String,
        /// Retry only images of this class. May be given several times.
        #[arg(long)]
        class: Vec<String>,
        /// Retry only failures with this reason, such as `bad_image`. May be given several times.
        #[arg(long)]
        reason: Vec<String>,
    },
}

/// Parses jobs per minute.
pub fn rate(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate >= 0.0).ok_or_else(|| "expected a number ≥ 0".into())
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let client = args.connection.client(LONG)?;
    let change = |run: &str, change: Change| -> anyhow::Result<ExitCode> {
        print_runs(&[client.change(run, &change)?]);
        Ok(ExitCode::SUCCESS)
    };
    let state = |state| Change { state: Some(state), ..Change::default() };
    match args.action.unwrap_or(Action::List) {
        Action::List => print_runs(&client.runs()?),
        Action::Show { run } => {
            let status = client.run(&run)?;
            print_runs(std::slice::from_ref(&status));
            print_classes(&status);
        }
        Action::Wait { run } => return wait(&args.connection, &[run]),
        Action::Pause { run } => return change(&run, state(RunState::Paused)),
        Action::Resume { run } => return change(&run, state(RunState::Running)),
        Action::Cancel { run } => return change(&run, state(RunState::Cancelled)),
        Action::Priority { run, priority } => return change(&run, Change { priority: Some(priority), ..Change::default() }),
        Action::Rate { run, per_minute } => return change(&run, Change { per_minute: Some(per_minute), ..Change::default() }),
        Action::Retry { run, class, reason } => {
            return redrive(&client, &run, &RedriveRequest { wheres: conditions(&class, &reason), seed: None });
        }
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
