//! A run's place in the store (*io*): what it is, what is done, and what is left.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use proto::keys::{Kind, Marker};
use proto::{Failure, FailureReason, Params, ResultRecord, RunRecord, keys};
use store::{ErrorKind, PutNew, Store};

use crate::dataset::{self, Annotations, DatasetError};
use crate::plan::{Plan, RunSpec, plan};

/// Failure records written at a time.
const WRITES: usize = 32;

/// Why a run cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data set cannot be read.
    #[error("cannot read the data set")]
    Dataset(#[from] DatasetError),
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] store::Error),
    /// The queue failed.
    #[error("the queue failed")]
    Queue(#[from] queue::Error),
    /// The store holds another run.
    #[error("{url} holds a run with another {what}: choose another --out, or the same {what} ({there} there, {here} asked for)")]
    OtherRun {
        /// URL of the store.
        url: String,
        /// What differs.
        what: &'static str,
        /// Its value in the store.
        there: String,
        /// Its value now.
        here: String,
    },
    /// The results would become part of the data set.
    #[error("{out} lies inside the data set {dataset}: choose a place outside of it for the results")]
    OutInside {
        /// URL of the results.
        out: String,
        /// URL of the data set.
        dataset: String,
    },
    /// The home has no such model.
    #[error("there is no model {model} in {url}: copy its folder to models/{model}/ there")]
    NoModel {
        /// Name of the model.
        model: String,
        /// URL of the home.
        url: String,
    },
    /// `model.json` in the home is not valid.
    #[error("{key} is no model description")]
    BadModel {
        /// Key of the file.
        key: String,
        /// Why.
        source: proto::DecodeError,
    },
    /// Another coordinator may act now.
    #[error("the connection that made this coordinator the acting one is lost")]
    LostLead,
    /// An object of the run cannot be read.
    #[error("{key} is damaged: delete it and run again")]
    Damaged {
        /// Key of the object.
        key: String,
        /// Why.
        source: serde_json::Error,
    },
}

/// Which images with a failure are tried again.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Retry {
    /// None.
    #[default]
    Nothing,
    /// Those with one of these classes and one of these reasons; an empty list stands for all.
    Failures {
        /// Names of classes.
        classes: Vec<String>,
        /// Short names of reasons.
        reasons: Vec<String>,
    },
}

impl Retry {
    /// All of them.
    pub fn all() -> Retry {
        Retry::Failures { classes: vec![], reasons: vec![] }
    }

    fn wants(&self, failure: &Failure) -> bool {
        let Retry::Failures { classes, reasons } = self else { return false };
        let class = failure.class_name.as_deref().unwrap_or("");
        (classes.is_empty() || classes.iter().any(|c| c.eq_ignore_ascii_case(class)))
            && (reasons.is_empty() || reasons.iter().any(|r| r == failure.reason.as_str()))
    }
}

/// Reads and plans, records what cannot be a job, and returns what is left. Notes are for people.
pub async fn prepare(spec: &RunSpec, retry: &Retry, dataset: &Store, results: &Store) -> Result<(Plan, Vec<String>), Error> {
    if dataset.contains(results) {
        return Err(Error::OutInside { out: results.url(), dataset: dataset.url() });
    }
    let annotations: Annotations = spec.record.annotations.parse().expect("any text names annotations");
    let dataset = dataset::read(dataset, &annotations).await?;
    results.check_writable().await?;
    begin(&spec.record, results).await?;
    let known: HashSet<String> = dataset.entries.iter().map(|e| keys::place(e.image())).collect();
    let settled = settled(retry, &known, results).await?;
    let all = dataset.entries.len();
    let entries = match spec.record.limit {
        Some(limit) => spread(dataset.entries, limit),
        None => dataset.entries,
    };
    let mut notes = dataset.notes;
    let of = if entries.len() < all { format!(" of {all}") } else { String::new() };
    notes.insert(0, format!("read {}{of} images from {}", entries.len(), dataset.source));
    let plan = plan(entries, spec, &settled);
    for failures in plan.failures.chunks(WRITES) {
        let writes = failures.iter().map(|failure| write_failure(results, failure));
        futures_util::future::try_join_all(writes).await?;
    }
    Ok((plan, notes))
}

/// Places of images with a marker. A failure is taken away where it is to be tried again, where the data set did not answer, and
/// where the data set has no such image any more.
async fn settled(retry: &Retry, known: &HashSet<String>, results: &Store) -> Result<HashMap<String, Marker>, Error> {
    let mut settled = HashMap::new();
    let mut failed = Vec::new();
    let mut lister = results.list(keys::IMAGES)?;
    while let Some(page) = lister.next_page().await? {
        for object in page {
            match keys::parse(&object.key) {
                Some(Kind::Marker(place, Marker::Result)) => drop(settled.insert(place.to_owned(), Marker::Result)),
                Some(Kind::Marker(place, Marker::Failure)) => failed.push((place.to_owned(), object.key)),
                _ => {}
            }
        }
    }
    for (place, key) in failed {
        // A result wins.
        if settled.contains_key(&place) {
            continue;
        }
        let again = !known.contains(&place) || {
            let failure: Failure = read_json(results, &key).await?;
            failure.reason == FailureReason::Unavailable || retry.wants(&failure)
        };
        if again {
            results.delete(&key).await?;
        } else {
            settled.insert(place, Marker::Failure);
        }
    }
    Ok(settled)
}

/// Every n-th entry, `limit` of them.
pub(crate) fn spread<T>(entries: Vec<T>, limit: usize) -> Vec<T> {
    let n = entries.len();
    if limit >= n {
        return entries;
    }
    let keep: HashSet<usize> = (0..limit).map(|i| i * n / limit).collect();
    entries.into_iter().enumerate().filter(|(i, _)| keep.contains(i)).map(|(_, e)| e).collect()
}

/// Writes `run.json`, or compares with the one that is there.
pub async fn begin(record: &RunRecord, results: &Store) -> Result<(), Error> {
    let bytes = serde_json::to_vec_pretty(record).expect("a record serialises");
    if results.put_new(keys::RUN, bytes).await? == PutNew::Created {
        return Ok(());
    }
    let there: RunRecord = read_json(results, keys::RUN).await?;
    let differs = |what, there: String, here: String| Err(Error::OtherRun { url: results.url(), what, there, here });
    if there.dataset != record.dataset {
        return differs("data set", there.dataset, record.dataset.clone());
    }
    if there.model_digest != record.model_digest {
        return differs("model", there.model_digest, record.model_digest.clone());
    }
    if there.params != record.params {
        let (there, here) = differing(&there.params, &record.params);
        return differs("set of parameters", there, here);
    }
    if there.seed != record.seed {
        return differs("seed", there.seed.to_string(), record.seed.to_string());
    }
    Ok(())
}

/// The values in which two sets of parameters differ.
fn differing(there: &Params, here: &Params) -> (String, String) {
    let flat = |params: &Params| {
        let mut flat = BTreeMap::new();
        flatten("", &serde_json::to_value(params).expect("plain structs serialise"), &mut flat);
        flat
    };
    let (there, here) = (flat(there), flat(here));
    let differs = |name: &&String| there.get(*name) != here.get(*name);
    let names: BTreeSet<&String> = there.keys().chain(here.keys()).filter(differs).collect();
    let text = |values: &BTreeMap<String, String>| {
        let value = |name: &&String| format!("{name} = {}", values.get(*name).map_or("none", String::as_str));
        names.iter().map(value).collect::<Vec<_>>().join(", ")
    };
    (text(&there), text(&here))
}

fn flatten(name: &str, value: &serde_json::Value, flat: &mut BTreeMap<String, String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (field, value) in fields {
                flatten(&if name.is_empty() { field.clone() } else { format!("{name}.{field}") }, value, flat);
            }
        }
        other => drop(flat.insert(name.to_owned(), other.to_string())),
    }
}

/// Writes a failure record.
pub async fn write_failure(results: &Store, failure: &Failure) -> Result<(), store::Error> {
    let bytes = serde_json::to_vec_pretty(failure).expect("a record serialises");
    results.put(&keys::marker(&failure.image, Marker::Failure), bytes).await
}

/// Reads a record.
pub(crate) async fn read_json<T: serde::de::DeserializeOwned>(results: &Store, key: &str) -> Result<T, Error> {
    let bytes = results.get(key).await?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Damaged { key: key.into(), source })
}

/// `run.json` of a store; `None` if there is no run.
pub async fn read_run(results: &Store) -> Result<Option<RunRecord>, Error> {
    match read_json(results, keys::RUN).await {
        Ok(record) => Ok(Some(record)),
        Err(Error::Store(error)) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// All results and failures of a run, by image.
pub async fn read_records(results: &Store) -> Result<(Vec<ResultRecord>, Vec<Failure>), Error> {
    let (mut records, mut failures) = (Vec::new(), Vec::new());
    let mut failed = Vec::new();
    let mut lister = results.list(keys::IMAGES)?;
    while let Some(page) = lister.next_page().await? {
        for object in page {
            match keys::parse(&object.key) {
                Some(Kind::Marker(_, Marker::Result)) => {
                    let record: ResultRecord = read_json(results, &object.key).await?;
                    records.push(record);
                }
                Some(Kind::Marker(_, Marker::Failure)) => failed.push(object.key),
                _ => {}
            }
        }
    }
    let done: HashSet<&str> = records.iter().map(|r| r.image.as_str()).collect();
    for key in failed {
        let failure: Failure = read_json(results, &key).await?;
        // A result wins.
        if !done.contains(failure.image.as_str()) {
            failures.push(failure);
        }
    }
    Ok((records, failures))
}

/// Deletes what attempts left that did not win, and marks and checkpoints of images that are settled; returns how many objects.
pub async fn sweep(records: &[ResultRecord], results: &Store) -> Result<usize, Error> {
    let winners: HashMap<String, &str> = records.iter().map(|r| (keys::place(&r.image), r.attempt.as_str())).collect();
    let mut swept = 0;
    for prefix in [keys::IMAGES, keys::ATTEMPTS, keys::CHECKPOINTS] {
        let mut lister = results.list(prefix)?;
        while let Some(page) = lister.next_page().await? {
            for object in page {
                let keep = match keys::parse(&object.key) {
                    Some(Kind::Item(place, attempt, _)) => winners.get(place) == Some(&attempt),
                    Some(Kind::Marker(..)) => true,
                    None => prefix == keys::IMAGES,
                };
                if !keep {
                    results.delete(&object.key).await?;
                    swept += 1;
                }
            }
        }
    }
    Ok(swept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_between_parameters_is_told() {
        let paper = Params::paper();
        let other = Params { seeds: 3, transform: None, ..paper.clone() };
        let (there, here) = differing(&paper, &other);
        assert!(
            there.starts_with("seeds = 18, transform = none, transform.") && here.starts_with("seeds = 3, transform = null"),
            "{there} {here}"
        );
        assert!(!there.contains("descent"), "{there}");
    }
}
