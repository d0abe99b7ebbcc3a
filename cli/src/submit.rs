//! `basin submit`: a run for a fleet.

use std::process::ExitCode;

use anyhow::Context;
use client::LONG;
use client::api::RunRequest;

use crate::connection::Connection;
use crate::run_options::RunOptions;
use crate::runs::rate;
use crate::wait::wait;

#[derive(clap::Args)]
pub struct Args {
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
    /// Wait until the run is finished and print its progress, as `basin runs wait` does.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    connection: Connection,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
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
