//! A run in its store (*io*): its record, its finished images, and their records.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use dataset::{DatasetError, Entry};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt, stream};
use proto::keys::{Kind, Marker};
use proto::{CrashPoint, Failure, Params, RedriveRecord, ResultRecord, RunRecord, RunningSha256, keys};
use store::{ErrorKind, ObjectInfo, PutNew, Store};

use crate::manifest::ObjectEntry;
use crate::seeds::Seeds;

/// Objects of a run read, written or deleted at a time.
pub const AT_ONCE: usize = 32;

/// An upload that began this long ago and is not finished belongs to a process that has ended.
pub const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// Why a run cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot read the data set")]
    Dataset(#[from] DatasetError),
    #[error("the store failed")]
    Store(#[from] store::Error),
    #[error(
        "{url} holds a run with another {what} ({there}, not {here}): use the same {what}, or choose another place (--out) or name"
    )]
    OtherRun { url: String, what: &'static str, there: String, here: String },
    #[error("{key} is damaged: restore it from a backup, or delete it and lose its contents")]
    Damaged { key: String, source: serde_json::Error },
}

impl RunError {
    /// The store's error, if the store failed.
    pub fn store(&self) -> Option<&store::Error> {
        match self {
            RunError::Store(error) | RunError::Dataset(DatasetError::Store(error)) => Some(error),
            _ => None,
        }
    }

    /// Whether an object of the run is missing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, RunError::Store(error) if error.kind() == ErrorKind::NotFound)
    }
}

pub(crate) type Outcome<'a> = Result<&'a ResultRecord, &'a Failure>;

/// Key of the image in the data set.
pub(crate) fn image(outcome: Outcome<'_>) -> &str {
    outcome.map_or_else(|failure| failure.image.as_str(), |record| record.image.as_str())
}

/// Name of the image's class, if known.
pub(crate) fn class_name(outcome: Outcome<'_>) -> Option<&str> {
    outcome.map_or_else(|failure| failure.class_name.as_deref(), |record| Some(record.class_name.as_str()))
}

/// Places of images with a commit marker. An image with both a result and a failure counts as a result.
pub struct Markers {
    pub results: Vec<String>,
    pub failures: Vec<String>,
}

impl Markers {
    pub async fn list(results: &Store) -> Result<Markers, RunError> {
        Markers::list_with(results, |_| {}).await
    }

    /// `other` gets the objects that are not markers.
    pub(crate) async fn list_with(results: &Store, mut other: impl FnMut(ObjectInfo)) -> Result<Markers, RunError> {
        let mut markers = Markers { results: Vec::new(), failures: Vec::new() };
        let mut lister = results.list(keys::IMAGES)?;
        while let Some(page) = lister.next_page().await? {
            for object in page {
                match keys::parse(&object.key) {
                    Some(Kind::Marker(place, Marker::Result)) => markers.results.push(place.to_owned()),
                    Some(Kind::Marker(place, Marker::Failure)) => markers.failures.push(place.to_owned()),
                    _ => other(object),
                }
            }
        }
        let done: HashSet<&String> = markers.results.iter().collect();
        markers.failures.retain(|place| !done.contains(place));
        Ok(markers)
    }

    /// Places of the `entries` that have a marker.
    pub fn of(&self, entries: &[Entry]) -> HashSet<String> {
        let marked: HashSet<&String> = self.results.iter().chain(&self.failures).collect();
        if marked.is_empty() {
            return HashSet::new();
        }
        entries.iter().map(|entry| keys::place(entry.image())).filter(|place| marked.contains(place)).collect()
    }
}

/// Number and key of each redrive, in the order in which they apply.
pub async fn redrives(results: &Store) -> Result<BTreeMap<u64, String>, RunError> {
    let objects = results.list(keys::REDRIVES)?.all().await?;
    Ok(objects.into_iter().filter_map(|object| Some((keys::parse_redrive(&object.key)?, object.key))).collect())
}

pub async fn read_seeds(run: &RunRecord, results: &Store) -> Result<Seeds, RunError> {
    read_redrives(Seeds { run: run.seed, ..Seeds::default() }, results).await
}

/// How often each image was tried again.
pub(crate) async fn generations(results: &Store) -> Result<Seeds, RunError> {
    read_redrives(Seeds::default(), results).await
}

/// `seeds` with all redrives of the run.
async fn read_redrives(mut seeds: Seeds, results: &Store) -> Result<Seeds, RunError> {
    let keys = redrives(results).await?.into_values().collect();
    let mut records = read_each::<RedriveRecord>(results, keys);
    while let Some((record, _)) = records.try_next().await? {
        seeds.redrive(record);
    }
    Ok(seeds)
}

/// `limit` entries, evenly spread over all; without a limit all.
pub fn spread<T>(entries: Vec<T>, limit: Option<usize>) -> Vec<T> {
    let n = entries.len();
    let Some(limit) = limit.filter(|limit| *limit < n) else { return entries };
    let keep: HashSet<usize> = (0..limit).map(|i| i * n / limit).collect();
    entries.into_iter().enumerate().filter(|(i, _)| keep.contains(i)).map(|(_, e)| e).collect()
}

/// Writes `run.json`, or compares `record` with the one that exists.
pub async fn begin(record: &RunRecord, results: &Store) -> Result<(), RunError> {
    let bytes = serde_json::to_vec_pretty(record).expect("a record serialises");
    if results.put_new(keys::RUN, bytes).await? == PutNew::Created {
        CrashPoint::RunBegun.pass();
        return Ok(());
    }
    check_same(&read_json(results, keys::RUN).await?, record, results)
}

/// An error if `there`, the run of a store, has another data set, model, set of parameters or seed than `record`.
pub fn check_same(there: &RunRecord, record: &RunRecord, results: &Store) -> Result<(), RunError> {
    let differs = |what, there: String, here: String| Err(RunError::OtherRun { url: results.url(), what, there, here });
    if there.dataset != record.dataset {
        return differs("data set", there.dataset.clone(), record.dataset.clone());
    }
    if there.model_digest != record.model_digest {
        return differs("model", there.model_digest.clone(), record.model_digest.clone());
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

/// The values in which two sets of parameters differ, as text.
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

/// Writes a failure, unless one of a later generation is there.
pub async fn write_failure(results: &Store, failure: &Failure) -> Result<(), store::Error> {
    results.update(&keys::marker(&failure.image, Marker::Failure), |there| failure.over(there)).await.map(drop)
}

pub async fn read_json<T: serde::de::DeserializeOwned>(results: &Store, key: &str) -> Result<T, RunError> {
    let bytes = results.get(key).await?;
    serde_json::from_slice(&bytes).map_err(|source| RunError::Damaged { key: key.into(), source })
}

/// Whether the job, of this id and generation, has a result.
pub async fn has_result(results: &Store, image: &str, job: &str, generation: u64) -> Result<bool, RunError> {
    let marker = keys::marker(image, Marker::Result);
    if generation == 0 {
        return Ok(results.exists(&marker).await?);
    }
    match if_present(read_json::<ResultRecord>(results, &marker).await) {
        Ok(record) => Ok(record.is_some_and(|record| !record.is_late(job, generation))),
        Err(RunError::Damaged { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

/// `run.json` of a store; `None` if there is no run.
pub async fn read_run(results: &Store) -> Result<Option<RunRecord>, RunError> {
    if_present(read_json(results, keys::RUN).await)
}

/// `None` if the object is missing.
pub fn if_present<T>(read: Result<T, RunError>) -> Result<Option<T>, RunError> {
    match read {
        Err(error) if error.is_not_found() => Ok(None),
        read => read.map(Some),
    }
}

/// The object with its size and digest, read piece by piece.
pub async fn digested(key: String, store: &Store) -> Result<ObjectEntry, store::Error> {
    let mut download = store.download(&key).await?;
    let (mut size, mut digest) = (0, RunningSha256::default());
    while let Some(piece) = download.next().await? {
        size += piece.len() as u64;
        digest.update(&piece);
    }
    Ok(ObjectEntry { key, size, sha256: digest.hex() })
}

/// Reads records, [`AT_ONCE`] at a time, in the order of `keys`; each with the object that it was read from.
pub fn read_each<T: serde::de::DeserializeOwned + Send>(
    results: &Store,
    keys: Vec<String>,
) -> BoxStream<'static, Result<(T, ObjectEntry), RunError>> {
    let results = results.clone();
    let read = move |key: String| {
        let results = results.clone();
        async move {
            let bytes = results.get(&key).await?;
            match serde_json::from_slice(&bytes) {
                Ok(record) => Ok((record, ObjectEntry::new(key, &bytes))),
                Err(source) => Err(RunError::Damaged { key, source }),
            }
        }
    };
    stream::iter(keys).map(read).buffered(AT_ONCE).boxed()
}

pub async fn delete_each(results: &Store, keys: Vec<String>) -> Result<(), store::Error> {
    let results = results.clone();
    let delete = move |key: String| {
        let results = results.clone();
        async move { results.delete(&key).await }
    };
    stream::iter(keys).map(delete).buffer_unordered(AT_ONCE).try_collect().await
}

/// The results and failures of a run, in the order of their places.
#[derive(Debug, Default)]
pub struct Records {
    /// Images that have a result.
    pub results: Vec<ResultRecord>,
    /// Images that have a failure and no result.
    pub failures: Vec<Failure>,
    /// The objects that these records were read from.
    pub markers: Vec<ObjectEntry>,
}

/// Reads all records of a run into memory, some 4 kB for each result; [`crate::walk`] is for larger runs. A failure of an earlier generation
/// than its image's is left out: that image is not finished.
pub async fn read_records(results: &Store) -> Result<Records, RunError> {
    let markers = Markers::list(results).await?;
    let at = |places: &[String], marker| places.iter().map(|place| keys::marker_at(place, marker)).collect();
    let mut records = Records::default();
    let generations = generations(results).await?;
    let mut read = read_each(results, at(&markers.results, Marker::Result));
    while let Some((record, object)) = read.try_next().await? {
        records.results.push(record);
        records.markers.push(object);
    }
    let mut read = read_each::<Failure>(results, at(&markers.failures, Marker::Failure));
    while let Some((failure, object)) = read.try_next().await? {
        if failure.generation < generations.generation(&failure.image) {
            continue;
        }
        records.failures.push(failure);
        records.markers.push(object);
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use proto::{FailureReason, Job, sample};

    use super::*;

    async fn store() -> (Store, tempfile::TempDir) {
        let dir = tempfile::tempdir().expect("a folder");
        (Store::open(&dir.path().to_string_lossy()).await.expect("a store"), dir)
    }

    #[tokio::test]
    async fn a_failure_is_not_written_over_that_of_a_later_generation_and_old_ones_are_left_out() {
        let (results, _dir) = store().await;
        let failure = |generation| {
            let job = Job { generation, ..sample::job() };
            Failure::of(&job, FailureReason::Diverged, format!("try {generation}"))
        };
        for (written, expected) in [(1, 1), (0, 1), (2, 2), (2, 2), (1, 2)] {
            write_failure(&results, &failure(written)).await.expect("writable");
            let key = keys::marker(&failure(0).image, Marker::Failure);
            assert_eq!(read_json::<Failure>(&results, &key).await.expect("a failure"), failure(expected));
        }
        for (generation, left) in [(2, 1), (3, 0)] {
            let images = vec![failure(0).image];
            let record = RedriveRecord { format: 1, wheres: vec![], seed: 0, images, generation };
            results.put(&keys::redrive(generation), serde_json::to_vec(&record).expect("a record")).await.expect("writable");
            assert_eq!(read_records(&results).await.expect("readable").failures.len(), left);
        }
    }

    #[test]
    fn an_error_names_only_the_parameters_that_differ() {
        let paper = Params::paper();
        let other = Params { seeds: 3, transform: None, ..paper.clone() };
        let (there, here) = differing(&paper, &other);
        assert!(there.starts_with("seeds = 18, transform = none, transform."), "{there}");
        assert!(here.starts_with("seeds = 3, transform = null"), "{here}");
        assert!(!there.contains("descent"), "{there}");
    }
}
