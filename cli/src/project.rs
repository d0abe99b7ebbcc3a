//! `basin project`: a run on this machine. `basin report`: its tables and its report.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use coordinator::plan::RunSpec;
use engine::LoadedModel;
use proto::{Object, RunRecord};
use results::redrive::Redrive;
use results::summary::Summary;
use store::Store;

use crate::local::{Local, Machine, Outcome, Task};
use crate::run_options::RunOptions;

/// Failures that are printed at the end.
const LISTED: usize = 20;

/// Options of `basin project`.
#[derive(clap::Args)]
pub struct Args {
    /// Folder or bucket (s3://bucket/prefix) of the images.
    dataset: String,
    /// Model folder (`basin models` makes them).
    #[arg(long, env = "BASIN_MODEL")]
    model: PathBuf,
    /// Folder or bucket (s3://bucket/prefix) for the results.
    #[arg(long, env = "BASIN_OUT")]
    out: String,
    #[command(flatten)]
    options: RunOptions,
    /// Retry the failures of an earlier start, too. Default: only images without a result or a failure are projected.
    #[arg(long)]
    retry_failed: bool,
    #[command(flatten)]
    machine: Machine,
    /// Write a film (WebP) of each image's search to this folder: the target beside the closest picture so far.
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let params = args.options.params()?;
    let (manifest, model_digest) = engine::read_manifest(&args.model).context("--model must name a model folder")?;
    if let Some(problem) = manifest.lacks(&params) {
        bail!(problem);
    }
    let local = Local::new(args.machine)?;
    let dataset = Store::open(&args.dataset).await.context("cannot open the data set")?;
    let results = Store::open(&args.out).await.context("cannot open --out")?;
    let model = load(args.model, params.object.clone()).await?;
    let detects = params.object.mask.is_detected();
    let record = RunRecord {
        format: 1,
        name: run_name(&args.out),
        dataset: dataset.url(),
        annotations: args.options.annotations.clone(),
        limit: args.options.limit(),
        model: manifest.name.clone(),
        model_digest,
        resolution: manifest.generator.resolution,
        params,
        seed: args.options.seed,
        version: env!("CARGO_PKG_VERSION").into(),
    };
    let task = Task {
        spec: RunSpec::new(record, &manifest),
        redrive: args.retry_failed.then(Redrive::failures),
        dataset: &dataset,
        results: &results,
        record: args.record,
        title: String::new(),
    };
    let outcome = local.project(task, || model).await?;
    let stale = outcome.stale();
    let Outcome { total, interrupted, summary, records, .. } = outcome;
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
    if stale > 0 {
        note!(
            "{stale} results were made from another file, class or box than the data set has now; to project these images again, \
            delete their folders under images/ or choose another --out"
        );
    }
    if detects {
        let whole = records.results.iter().filter(|r| r.found.as_ref().is_some_and(|found| found.detection.is_none())).count();
        if whole > 0 {
            note!("{whole} images were projected whole, because the detector found no object of their class");
        }
    }
    if !failures.is_empty() && !interrupted {
        note!("after fixing the cause, run again with --retry-failed");
    }
    say!("report: {}", place(&results, proto::keys::REPORT));
    Ok(if interrupted {
        note!("interrupted: run the same command again to resume");
        ExitCode::from(130)
    } else if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(2)
    })
}

/// Loads a model, with what finds the `object` in an image.
pub async fn load(model: PathBuf, object: Object) -> anyhow::Result<LoadedModel> {
    let load = move || engine::load_for(&model, &object);
    tokio::task::spawn_blocking(load).await?.context("cannot load the model")
}

/// Last part of a store's path or URL, without the URL's options.
pub fn run_name(out: &str) -> String {
    let place = out.split('?').next().unwrap_or(out);
    place
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .filter(|n| !n.is_empty() && *n != "." && *n != "..")
        .unwrap_or("run")
        .to_owned()
}

/// Options of `basin report`.
#[derive(clap::Args)]
pub struct ReportArgs {
    /// Folder or bucket of the run (in a fleet's home: `<home>/runs/<run>`).
    out: String,
}

/// Writes the tables and the report of a run from its results and failures.
pub async fn report(args: ReportArgs) -> anyhow::Result<ExitCode> {
    let results = Store::open(&args.out).await?;
    let run = results::run::read_run(&results).await?;
    let run = run.with_context(|| format!("{} does not hold a run: run.json is missing", results.url()))?;
    let records = Arc::new(results::run::read_records(&results).await?);
    // Only the earlier tables hold the number of planned images and the super-classes of the model.
    let earlier = results.get(proto::keys::SUMMARY).await.ok().and_then(|bytes| serde_json::from_slice::<Summary>(&bytes).ok());
    let planned = earlier.as_ref().and_then(|summary| summary.images.planned).map(|n| n as usize);
    let super_classes = earlier.map(|summary| summary.super_class_of()).unwrap_or_default();
    let summary = results::tables::write_tables(&run, planned, super_classes, &records, &results).await?;
    say!("{} images: {} succeeded, {} failed", summary.images.total, summary.images.succeeded, summary.images.failed);
    say!("report: {}", place(&results, proto::keys::REPORT));
    Ok(ExitCode::SUCCESS)
}

/// Path or URL of an object, for people.
pub fn place(results: &Store, key: &str) -> String {
    match results.local_path(key) {
        Some(path) => path.display().to_string(),
        None => format!("{} ({key})", results.url()),
    }
}
