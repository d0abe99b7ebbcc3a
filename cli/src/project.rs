//! `basin project`: a run on this machine.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use coordinator::plan::RunSpec;
use engine::LoadedModel;
use proto::{ModelManifest, Object, RunRecord};
use results::redrive::Redrive;
use store::Store;

use crate::asked::Asked;
use crate::local::{Local, Machine, Outcome, Task};
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
    #[command(flatten)]
    machine: Machine,
    /// Folder for a film of each image's search (WebP): the target, and what is closest to it so far.
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
}

/// Runs it.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let params = args.asked.params()?;
    let (manifest, model_digest) = read_manifest(&args.model)?;
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
        annotations: args.asked.annotations.clone(),
        limit: args.asked.limit(),
        model: manifest.name.clone(),
        model_digest,
        resolution: manifest.generator.resolution,
        params,
        seed: args.asked.seed,
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
            "{stale} results are of another file, class or box than the data set has now; to make them again, delete their folders \
            under images/ or choose another --out"
        );
    }
    if detects {
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

/// Reads `model.json` of a model folder; also returns the model's digest.
pub fn read_manifest(model: &Path) -> anyhow::Result<(ModelManifest, String)> {
    let path = model.join("model.json");
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {} (--model names a model folder)", path.display()))?;
    ModelManifest::parse(&bytes).with_context(|| format!("{} is no model description", path.display()))
}

/// Loads a model, with what finds the `object` in an image.
pub async fn load(model: PathBuf, object: Object) -> anyhow::Result<LoadedModel> {
    let load = move || engine::load_for(&model, &object);
    tokio::task::spawn_blocking(load).await?.context("cannot load the model")
}

/// Last part of a store's URL, without its options.
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
