//! `basin export`: a run's results as files for training programs.

use std::num::NonZeroUsize;
use std::process::ExitCode;

use anyhow::Context;
use results::webdataset::{self, Cut};
use store::Store;

#[derive(clap::Args)]
pub struct Args {
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

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
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
