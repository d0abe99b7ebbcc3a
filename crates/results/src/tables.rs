//! Writes the outputs of a run (*io*): tables, summary, report and manifest from the records in the store.
//!
//! Memory is bounded, whatever a record holds: for each image its key, its numbers and its winner, 300 to 400 bytes in all, and
//! besides some hundred megabytes for the records at work, the uploads and the report's pictures. A run of 1,000,000 results stays
//! below 1 GiB (`tests/memory.rs`).

use std::collections::HashMap;

use futures_util::{StreamExt, TryStreamExt, stream};
use proto::{Failure, ResultRecord, RunRecord, RunningSha256, keys};
use store::{ErrorKind, Store, Upload};

use crate::format;
use crate::manifest::{Manifest, ObjectEntry};
use crate::report::{PICTURES, Pictures, report_html};
use crate::run::{AT_ONCE, RunError, redrives};
use crate::summary::{Summary, SuperClasses};
use crate::sweep::Winners;
use crate::tabulation::{Pieces, Tabulation};
use crate::walk::Walk;

/// Records that are turned into rows together.
pub const ROWS: usize = 8192;

/// What [`write_tables`] found.
pub struct Written {
    pub summary: Summary,
    /// Some failures, by reason: those that the report lists.
    pub failures: Vec<Failure>,
    /// For a sweep.
    pub winners: Winners,
}

/// Writes `results.csv`, `results.parquet`, `summary.json`, `report.html`, `objects.jsonl.gz` and `manifest.json`.
///
/// `planned`: all images of the run, where that is known; `super_classes`: those of the model. `look` sees each result.
pub async fn write_tables(
    run: &RunRecord,
    planned: Option<usize>,
    super_classes: SuperClasses,
    results: &Store,
    look: impl FnMut(&ResultRecord),
) -> Result<Written, RunError> {
    let walk = Walk::begin(results).await?;
    let mut files = Vec::new();
    for key in [keys::RESULTS_CSV, keys::RESULTS_PARQUET, keys::OBJECTS] {
        files.push(File::create(key, results).await?);
    }
    let tabulation = match tabulate(walk, &mut files, look).await {
        Ok(tabulation) => tabulation,
        Err(error) => {
            for file in files {
                // What is left of it is swept with other unfinished uploads.
                let _ = file.upload.abort().await;
            }
            return Err(error);
        }
    };
    let (ends, numbers, mut shown, winners) = tabulation.finish();
    let failures = shown.failures().to_vec();
    let pictures = read_pictures(shown.results(), results).await?;
    let info = run.clone();
    let made = tokio::task::spawn_blocking(move || {
        let summary = Summary::new(&info, planned, &super_classes, &numbers);
        let report = report_html(&summary, shown, &pictures).into_bytes();
        (summary, report)
    });
    let (summary, report) = made.await.expect("making the report does not panic");
    let mut objects = Vec::new();
    for key in std::iter::once(keys::RUN.to_owned()).chain(redrives(results).await?.into_values()) {
        objects.push(ObjectEntry::new(key.clone(), &results.get(&key).await?));
    }
    for (mut file, end) in files.into_iter().zip(ends) {
        file.write(end).await?;
        objects.push(file.finish().await?);
    }
    for (key, bytes) in [(keys::SUMMARY, format::json(&summary)), (keys::REPORT, report)] {
        objects.push(ObjectEntry::new(key.into(), &bytes));
        results.put(key, bytes).await?;
    }
    results.put(keys::MANIFEST, format::json(&Manifest::new(run.clone(), summary.images, objects))).await?;
    Ok(Written { summary, failures, winners })
}

/// Writes the rows and lines of all records, but for the ends of the files.
async fn tabulate(walk: Walk, files: &mut [File], mut look: impl FnMut(&ResultRecord)) -> Result<Tabulation, RunError> {
    let mut tabulation = Tabulation::with_capacity(walk.succeeded);
    let mut records = walk.records().try_chunks(ROWS).map_err(|error| error.1);
    while let Some(chunk) = records.try_next().await? {
        chunk.iter().filter_map(|finished| finished.outcome.as_ref().ok()).for_each(|record| look(record));
        let add = move || {
            let pieces = tabulation.add(chunk);
            (tabulation, pieces)
        };
        let (after, pieces): (Tabulation, Pieces) = tokio::task::spawn_blocking(add).await.expect("making rows does not panic");
        tabulation = after;
        for (file, piece) in files.iter_mut().zip(pieces) {
            file.write(piece).await?;
        }
    }
    Ok(tabulation)
}

/// An object that is written piece by piece.
struct File {
    upload: Upload,
    key: String,
    size: u64,
    digest: RunningSha256,
}

impl File {
    async fn create(key: &str, results: &Store) -> Result<File, RunError> {
        let upload = results.upload(key).await?;
        Ok(File { upload, key: key.to_owned(), size: 0, digest: RunningSha256::default() })
    }

    async fn write(&mut self, piece: Vec<u8>) -> Result<(), RunError> {
        self.size += piece.len() as u64;
        self.digest.update(&piece);
        Ok(self.upload.write(piece).await?)
    }

    async fn finish(self) -> Result<ObjectEntry, RunError> {
        self.upload.finish().await?;
        Ok(ObjectEntry { key: self.key, size: self.size, sha256: self.digest.hex() })
    }
}

/// The pictures of the images that the report shows.
async fn read_pictures(shown: &[ResultRecord], results: &Store) -> Result<HashMap<String, Pictures>, RunError> {
    let shown: Vec<_> = shown.iter().map(|r| (r.image.clone(), r.attempt.clone())).collect();
    let results = results.clone();
    let read = move |(image, attempt): (String, String)| {
        let results = results.clone();
        async move {
            let get = async |item| match results.get(&keys::item(&image, &attempt, item)).await {
                Ok(bytes) => Ok(Some(bytes.to_vec())),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            };
            let history = get(keys::Item::History).await?.and_then(|bytes| serde_json::from_slice(&bytes).ok());
            let mut pictures = Pictures { history, ..Pictures::default() };
            for (_, item) in PICTURES {
                pictures.png.extend(get(item).await?.map(|png| (item, png)));
            }
            Ok((image, pictures))
        }
    };
    stream::iter(shown).map(read).buffer_unordered(AT_ONCE).try_collect().await
}
