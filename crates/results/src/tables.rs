//! Writes the outputs of a run (*io*): tables, summary, report and manifest from the records in the store.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use proto::{RunRecord, keys};
use store::{ErrorKind, Store};

use crate::export::{results_csv, results_parquet};
use crate::format;
use crate::manifest::{Lines, Manifest, ObjectEntry};
use crate::report::{PICTURES, Pictures, report_html, shown};
use crate::run::{AT_ONCE, Records, RunError, redrives};
use crate::summary::{Summary, SuperClasses};

/// Writes `results.csv`, `results.parquet`, `summary.json`, `report.html`, `objects.jsonl.gz` and `manifest.json`.
///
/// `planned`: all images of the run, where that is known; `super_classes`: those of the model.
pub async fn write_tables(
    run: &RunRecord,
    planned: Option<usize>,
    super_classes: SuperClasses,
    records: &Arc<Records>,
    results: &Store,
) -> Result<Summary, RunError> {
    let pictures = read_pictures(records, results).await?;
    let (info, records) = (run.clone(), records.clone());
    let made = tokio::task::spawn_blocking(move || {
        let summary = Summary::new(&info, planned, &super_classes, &records.results, &records.failures);
        let files = make(&summary, &records, &pictures);
        (summary, files)
    });
    let (summary, files) = made.await.expect("making the tables does not panic");
    let mut objects = Vec::new();
    for key in std::iter::once(keys::RUN.to_owned()).chain(redrives(results).await?.into_values()) {
        objects.push(ObjectEntry::new(key.clone(), &results.get(&key).await?));
    }
    for (key, bytes) in files {
        objects.push(ObjectEntry::new(key.into(), &bytes));
        results.put(key, bytes).await?;
    }
    results.put(keys::MANIFEST, format::json(&Manifest::new(run.clone(), summary.images, objects))).await?;
    Ok(summary)
}

type Files = [(&'static str, Vec<u8>); 5];

fn make(summary: &Summary, records: &Records, pictures: &HashMap<String, Pictures>) -> Files {
    let Records { results, failures, markers } = records;
    let mut lines = Lines::default();
    for object in markers.iter().cloned().chain(results.iter().flat_map(ObjectEntry::of)) {
        lines.add(&object);
    }
    [
        (keys::RESULTS_CSV, results_csv(results, failures)),
        (keys::RESULTS_PARQUET, results_parquet(results, failures)),
        (keys::SUMMARY, format::json(summary)),
        (keys::REPORT, report_html(summary, results, failures, pictures).into_bytes()),
        (keys::OBJECTS, lines.finish()),
    ]
}

/// The pictures of the images that the report shows.
async fn read_pictures(records: &Records, results: &Store) -> Result<HashMap<String, Pictures>, RunError> {
    let shown: Vec<_> = shown(&records.results).iter().map(|r| (r.image.clone(), r.attempt.clone())).collect();
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
