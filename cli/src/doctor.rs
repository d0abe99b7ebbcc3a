//! `basin doctor`: whether a store does what a fleet needs.

use std::process::ExitCode;
use std::time::SystemTime;

use results::run::ABANDONED;
use store::Store;

use crate::terminal::list_problems;

#[derive(clap::Args)]
pub struct Args {
    /// Folder or bucket to check.
    store: String,
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let store = Store::open(&args.store).await?;
    let problems = store.examine().await?;
    match store.sweep_uploads(SystemTime::now() - ABANDONED).await {
        Ok(0) => {}
        Ok(uploads) => say!("removed the parts of {uploads} uploads that were never finished"),
        Err(error) => say!("cannot remove the parts of uploads that were never finished: {error}"),
    }
    Ok(list_problems(&problems, "the store does what a fleet needs"))
}
