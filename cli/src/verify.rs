//! `basin verify`: whether a run is complete and undamaged.

use std::process::ExitCode;

use store::Store;

use crate::terminal::list_problems;

#[derive(clap::Args)]
pub struct Args {
    /// Folder or bucket of the run (in a fleet's home: `<home>/runs/<run>`).
    out: String,
    /// Also read every object and compare its digest, not only its size, and compare every record with the run's tables.
    #[arg(long)]
    deep: bool,
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let results = Store::open(&args.out).await?;
    let found = results::verify::verify(&results, args.deep).await?;
    say!("{}: {} images, {} succeeded, {} failed", results.url(), found.images, found.succeeded, found.failed);
    Ok(list_problems(&found.problems, "the run is complete and whole"))
}
