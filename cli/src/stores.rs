//! `basin copy` and `basin doctor`: objects from one store to another, and whether a store does what a fleet needs.

use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::bail;
use futures_util::{StreamExt, stream};
use results::run::ABANDONED;
use store::{ObjectInfo, PIECE, Store};

use crate::terminal::list_problems;

/// Objects that are copied at a time, if they have at most [`PIECE`] bytes; others are copied in pieces.
const COPIES: usize = 16;

#[derive(clap::Args)]
pub struct CopyArgs {
    /// Folder or bucket to read.
    from: String,
    /// Folder or bucket to write.
    to: String,
}

pub async fn copy(args: CopyArgs) -> anyhow::Result<ExitCode> {
    let (from, to) = (Store::open(&args.from).await?, Store::open(&args.to).await?);
    if from.contains(&to) {
        bail!("cannot copy to {}: it is inside {}; choose another destination", to.url(), from.url());
    }
    let (mut objects, mut bytes) = (0, 0);
    let mut lister = from.list("")?;
    while let Some(page) = lister.next_page().await? {
        let (small, large): (Vec<&ObjectInfo>, Vec<&ObjectInfo>) = page.iter().partition(|object| object.size <= PIECE as u64);
        let copies = small.iter().map(async |object| to.put(&object.key, from.get(&object.key).await?).await);
        let copies: Vec<Result<(), store::Error>> = stream::iter(copies).buffer_unordered(COPIES).collect().await;
        copies.into_iter().collect::<Result<(), _>>()?;
        // One after the other: the pieces of one object fill the connection.
        for object in large {
            copy_large(&from, &to, &object.key).await?;
        }
        objects += page.len();
        bytes += page.iter().map(|object| object.size).sum::<u64>();
    }
    for skipped in lister.skipped() {
        note!("not copied: {:?}, {}", skipped.name, skipped.why);
    }
    if objects == 0 {
        bail!("nothing to copy: {} holds no objects", from.url());
    }
    say!("copied {objects} objects ({:.1} MB) to {}", bytes as f64 / 1e6, to.url());
    Ok(ExitCode::SUCCESS)
}

async fn copy_large(from: &Store, to: &Store, key: &str) -> Result<(), store::Error> {
    let (mut download, mut upload) = (from.download(key).await?, to.upload(key).await?);
    loop {
        match download.next().await {
            Ok(Some(piece)) => upload.write(piece).await?,
            Ok(None) => return upload.finish().await,
            Err(error) => {
                // The parts that cannot be removed now are swept later: see `basin doctor`.
                let _ = upload.abort().await;
                return Err(error);
            }
        }
    }
}

#[derive(clap::Args)]
pub struct DoctorArgs {
    /// Folder or bucket to check.
    store: String,
}

pub async fn doctor(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let store = Store::open(&args.store).await?;
    let problems = store.examine().await?;
    match store.sweep_uploads(SystemTime::now() - ABANDONED).await {
        Ok(0) => {}
        Ok(uploads) => say!("removed the parts of {uploads} uploads that were never finished"),
        Err(error) => say!("cannot remove the parts of uploads that were never finished: {error}"),
    }
    Ok(list_problems(&problems, "the store does what a fleet needs"))
}
