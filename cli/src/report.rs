//! `basin report`: tables and report of a run, again.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use results::summary::Summary;
use store::Store;

/// Options of `basin report`.
#[derive(clap::Args)]
pub struct Args {
    /// Folder or bucket of the run.
    out: String,
}

/// Writes the outputs of the run as a whole.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let results = Store::open(&args.out).await?;
    let run = results::run::read_run(&results).await?;
    let run = run.with_context(|| format!("{} holds no run (there is no run.json)", results.url()))?;
    let records = Arc::new(results::run::read_records(&results).await?);
    // How many images the run has in all, and the model's super-classes, only its earlier tables know here.
    let earlier = results.get("summary.json").await.ok().and_then(|bytes| serde_json::from_slice::<Summary>(&bytes).ok());
    let planned = earlier.as_ref().and_then(|summary| summary.images.planned).map(|n| n as usize);
    let super_classes = earlier.map(|summary| summary.super_class_of()).unwrap_or_default();
    let summary = results::tables::write_tables(&run, planned, super_classes, &records, &results).await?;
    say!("{} images: {} succeeded, {} failed", summary.images.total, summary.images.succeeded, summary.images.failed);
    say!("report: {}", place(&results, "report.html"));
    Ok(ExitCode::SUCCESS)
}

/// Where a person finds an object.
pub fn place(results: &Store, key: &str) -> String {
    match results.local_path(key) {
        Some(path) => path.display().to_string(),
        None => format!("{} ({key})", results.url()),
    }
}
