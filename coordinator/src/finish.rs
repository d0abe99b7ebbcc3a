//! The outputs of a run as a whole (*io*): tables, summary and report from the records in the store.

use std::collections::HashMap;

use proto::{ModelRef, RunRecord, keys};
use store::{ErrorKind, Store};

use crate::export::{results_csv, results_parquet};
use crate::report::{Pictures, report_html, shown};
use crate::run::{Error, read_records};
use crate::summary::{RunInfo, Summary};

/// Reads every record and writes `results.csv`, `results.parquet`, `summary.json` and `report.html`.
///
/// `planned`: images of the run in all, where that is known.
pub async fn finish(run: &RunRecord, planned: Option<usize>, results: &Store) -> Result<Summary, Error> {
    let (records, failures) = read_records(results).await?;
    let model = ModelRef { name: run.model.clone(), digest: run.model_digest.clone(), resolution: run.resolution };
    let info = RunInfo {
        name: run.name.clone(),
        dataset: run.dataset.clone(),
        model,
        params: run.params.clone(),
        seed: run.seed,
        version: run.version.clone(),
        planned,
    };
    let summary = Summary::new(info, &records, &failures);
    let mut pictures = HashMap::new();
    for record in shown(&records) {
        let get = async |item| match results.get(&keys::item(&record.image, &record.attempt, item)).await {
            Ok(bytes) => Ok(Some(bytes.to_vec())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        let history = get(keys::Item::History).await?;
        pictures.insert(
            record.image.clone(),
            Pictures {
                target: get(keys::Item::Target).await?,
                transformed: get(keys::Item::Transformed).await?,
                generated: get(keys::Item::Generated).await?,
                inverted: get(keys::Item::Inverted).await?,
                history: history.and_then(|bytes| serde_json::from_slice(&bytes).ok()),
            },
        );
    }
    results.put("results.csv", results_csv(&records, &failures)).await?;
    results.put("results.parquet", results_parquet(&records, &failures)).await?;
    results.put("summary.json", summary.to_json()).await?;
    results.put("report.html", report_html(&summary, &records, &failures, &pictures)).await?;
    Ok(summary)
}
