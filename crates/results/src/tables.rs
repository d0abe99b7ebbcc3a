//! The outputs of a run as a whole (*io*): tables, summary, report and manifest from the records in the store.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use proto::{ModelRef, RunRecord, keys};
use store::{ErrorKind, Store};

use crate::export::{results_csv, results_parquet};
use crate::manifest::{Lines, Manifest, Object};
use crate::report::{Pictures, report_html, shown};
use crate::run::{AT_ONCE, Records, RunError, redrives};
use crate::summary::{RunInfo, Summary, SuperClasses};

/// Writes `results.csv`, `results.parquet`, `summary.json`, `report.html`, `objects.jsonl.gz` and `manifest.json`.
///
/// `planned`: images of the run in all, where that is known; `super_classes`: those of the model.
pub async fn write_tables(
    run: &RunRecord,
    planned: Option<usize>,
    super_classes: SuperClasses,
    records: &Arc<Records>,
    results: &Store,
) -> Result<Summary, RunError> {
    let model = ModelRef { name: run.model.clone(), digest: run.model_digest.clone(), resolution: run.resolution };
    let info = RunInfo {
        name: run.name.clone(),
        dataset: run.dataset.clone(),
        model,
        params: run.params.clone(),
        seed: run.seed,
        version: run.version.clone(),
        planned,
        super_classes,
    };
    let pictures = read_pictures(records, results).await?;
    let records = records.clone();
    let made = tokio::task::spawn_blocking(move || make(info, &records, &pictures));
    let (summary, files) = made.await.expect("making the tables does not panic");
    let mut objects = Vec::new();
    for key in std::iter::once(keys::RUN.to_owned()).chain(redrives(results).await?.into_values()) {
        objects.push(Object::new(key.clone(), &results.get(&key).await?));
    }
    for (key, bytes) in files {
        objects.push(Object::new(key.into(), &bytes));
        results.put(key, bytes).await?;
    }
    results.put(keys::MANIFEST, Manifest::new(run.clone(), summary.images, objects).to_json()).await?;
    Ok(summary)
}

type Files = [(&'static str, Vec<u8>); 5];

fn make(info: RunInfo, records: &Records, pictures: &HashMap<String, Pictures>) -> (Summary, Files) {
    let Records { results, failures, markers } = records;
    let summary = Summary::new(info, results, failures);
    let mut lines = Lines::new();
    for object in markers.iter().cloned().chain(results.iter().flat_map(Object::of)) {
        lines.add(&object);
    }
    let files = [
        ("results.csv", results_csv(results, failures)),
        ("results.parquet", results_parquet(results, failures)),
        ("summary.json", summary.to_json()),
        ("report.html", report_html(&summary, results, failures, pictures).into_bytes()),
        (keys::OBJECTS, lines.finish()),
    ];
    (summary, files)
}

/// Of the images that the report shows.
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
            let history = get(keys::Item::History).await?;
            let pictures = Pictures {
                target: get(keys::Item::Target).await?,
                transformed: get(keys::Item::Transformed).await?,
                generated: get(keys::Item::Generated).await?,
                inverted: get(keys::Item::Inverted).await?,
                tuned: get(keys::Item::Tuned).await?,
                history: history.and_then(|bytes| serde_json::from_slice(&bytes).ok()),
            };
            Ok((image, pictures))
        }
    };
    stream::iter(shown).map(read).buffer_unordered(AT_ONCE).try_collect().await
}
