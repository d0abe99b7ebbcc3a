//! `basin report`, `basin verify` and `basin export`: the results of a run, once it is in its store.

use std::num::NonZeroUsize;
use std::process::ExitCode;

use anyhow::Context;
use results::run::read_run;
use results::summary::Summary;
use results::tables::write_tables;
use results::webdataset::{self, Cut};
use store::Store;

use crate::project::place;
use crate::terminal::list_problems;

#[derive(clap::Args)]
pub struct ReportArgs {
    /// Folder or bucket of the run (in a fleet's home: `<home>/runs/<run>`).
    out: String,
}

/// Writes the tables and the report of a run from its results and failures.
pub async fn report(args: ReportArgs) -> anyhow::Result<ExitCode> {
    let results = Store::open(&args.out).await?;
    let run = read_run(&results).await?;
    let run = run.with_context(|| format!("{} does not hold a run: run.json is missing", results.url()))?;
    // Only the earlier tables hold the number of planned images and the super-classes of the model.
    let earlier = results.get(proto::keys::SUMMARY).await.ok().and_then(|bytes| serde_json::from_slice::<Summary>(&bytes).ok());
    let planned = earlier.as_ref().and_then(|summary| summary.images.planned).map(|n| n as usize);
    let super_classes = earlier.map(|summary| summary.super_class_of()).unwrap_or_default();
    let summary = write_tables(&run, planned, super_classes, &results, |_| {}).await?.summary;
    say!("{} images: {} succeeded, {} failed", summary.images.total, summary.images.succeeded, summary.images.failed);
    say!("report: {}", place(&results, proto::keys::REPORT));
    Ok(ExitCode::SUCCESS)
}

#[derive(clap::Args)]
pub struct VerifyArgs {
    /// Folder or bucket of the run (in a fleet's home: `<home>/runs/<run>`).
    out: String,
    /// Also read every object and compare its digest, not only its size, and compare every record with the run's tables.
    #[arg(long)]
    deep: bool,
}

pub async fn verify(args: VerifyArgs) -> anyhow::Result<ExitCode> {
    let results = Store::open(&args.out).await?;
    let found = results::verify::verify(&results, args.deep).await?;
    say!("{}: {} images, {} succeeded, {} failed", results.url(), found.images, found.succeeded, found.failed);
    Ok(list_problems(&found.problems, "the run is complete and whole"))
}

#[derive(clap::Args)]
pub struct ExportArgs {
    /// Folder or bucket of the run (in a fleet's home: `<home>/runs/<run>`).
    run: String,
    /// Folder or bucket to write to. It must hold nothing else.
    #[arg(long, value_name = "URL")]
    out: String,
    /// Output format.
    #[arg(long, value_enum, default_value_t = Format::Webdataset)]
    format: Format,
    /// Put at most N images into a shard. A shard never exceeds 256 MiB.
    #[arg(long, value_name = "N")]
    shard_images: Option<NonZeroUsize>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    /// Tar files with six members for each image, two more after fine-tuning, one more for a mask.
    Webdataset,
}

pub async fn export(args: ExportArgs) -> anyhow::Result<ExitCode> {
    let (run, out) = (Store::open(&args.run).await?, Store::open(&args.out).await.context("cannot open --out")?);
    let Format::Webdataset = args.format;
    let cut = Cut { samples: args.shard_images.map(Into::into), ..Cut::default() };
    let exported = webdataset::export(&run, &out, cut).await?;
    let (images, shards, megabytes) = (exported.images.succeeded, exported.shards, exported.bytes as f64 / 1e6);
    say!("exported {images} images in {shards} shards ({megabytes:.1} MB) to {}", out.url());
    if let Some(caveat) = exported.caveat() {
        note!("{caveat}");
    }
    Ok(ExitCode::SUCCESS)
}
