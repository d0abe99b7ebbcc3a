//! `basin project`: a run on this machine.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use coordinator::plan::RunSpec;
use engine::LoadedModel;
use proto::{ModelManifest, ModelRef, Object};
use results::redrive::Redrive;
use store::Store;

use crate::local::{ComputeOptions, Local, LocalRun, Outcome};
use crate::run_options::RunOptions;

/// Failures that are printed at the end.
const LISTED: usize = 20;

#[derive(clap::Args)]
pub struct ProjectArgs {
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
    compute: ComputeOptions,
    /// Write a film (WebP) of each image's search to this folder: the target beside the closest picture so far.
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
}

pub async fn run(args: ProjectArgs) -> anyhow::Result<ExitCode> {
    let params = args.options.params()?;
    let (manifest, reference) = described(&args.model)?;
    if let Some(problem) = manifest.lacks(&params) {
        bail!(problem);
    }
    let local = Local::new(args.compute)?;
    let dataset = Store::open(&args.dataset).await.context("cannot open the data set")?;
    let results = Store::open(&args.out).await.context("cannot open --out")?;
    let model = load(args.model, params.object.clone()).await?;
    let detects = params.object.mask.is_detected();
    let record = args.options.record(&run_name(&args.out), dataset.url(), reference, params);
    let run = LocalRun {
        spec: RunSpec::new(record, &manifest),
        redrive: args.retry_failed.then(Redrive::failures),
        dataset: &dataset,
        results: &results,
        record: args.record,
        title: String::new(),
    };
    let outcome = local.project(run, || model).await?;
    let Outcome { total, interrupted, summary, stale, whole, failures, .. } = outcome;
    let (succeeded, failed) = (summary.images.succeeded, summary.images.failed);
    let left = (total as u64).saturating_sub(succeeded + failed);
    let left = if left > 0 { format!(", {left} left") } else { String::new() };
    say!("{total} images: {succeeded} succeeded, {failed} failed{left}");
    for failure in failures.iter().take(LISTED) {
        say!("  failed: {:?} ({}): {}", failure.image, failure.reason.as_str(), failure.message);
    }
    if failed > LISTED as u64 {
        say!("  and {} more, see results.csv", failed - LISTED as u64);
    }
    if stale > 0 {
        note!(
            "{stale} results were made from another file, class or box than the data set has now; to project these images again, \
            delete their folders under images/ or choose another --out"
        );
    }
    if detects && whole > 0 {
        note!("{whole} images were projected whole, because the detector found no object of their class");
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

/// Description of a model folder, and how runs name the model.
pub fn described(model: &Path) -> anyhow::Result<(ModelManifest, ModelRef)> {
    let (manifest, digest) = engine::read_manifest(model).context("--model must name a model folder")?;
    let reference = manifest.reference(&digest);
    Ok((manifest, reference))
}

/// Loads a model, with what finds the `object` in an image.
pub async fn load(model: PathBuf, object: Object) -> anyhow::Result<LoadedModel> {
    let load = move || engine::load_for(&model, &object);
    tokio::task::spawn_blocking(load).await?.context("cannot load the model")
}

/// Last part of a store's path or URL, without the URL's options.
pub fn run_name(out: &str) -> String {
    let place = out.split('?').next().unwrap_or(out).trim_end_matches('/');
    let last = place.rsplit('/').next().filter(|name| !["", ".", ".."].contains(name));
    last.unwrap_or("run").to_owned()
}

/// Path or URL of an object, for people.
pub fn place(results: &Store, key: &str) -> String {
    match results.local_path(key) {
        Some(path) => path.display().to_string(),
        None => format!("{} ({key})", results.url()),
    }
}
