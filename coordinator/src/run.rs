//! A run's place in the store (*io*): what it is, what is done, and what is left.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, SystemTime};

use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt, stream};
use proto::keys::{Kind, Marker};
use proto::{CrashPoint, Failure, FailureReason, Params, RedriveRecord, ResultRecord, RunRecord, chain, keys};
use store::{ErrorKind, PutNew, Store};

use crate::dataset::{self, Annotations, DatasetError, Entry};
use crate::manifest::Object;
use crate::plan::{Plan, RunSpec, Seeds, image_seed, plan};
use crate::redrive::Redrive;

/// Objects of a run read, written or deleted at a time.
pub(crate) const AT_ONCE: usize = 32;

/// An upload that began this long ago and is not finished belongs to a process that is no more.
pub const ABANDONED: Duration = Duration::from_secs(24 * 3600);

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
    /// A record in the index is of another run.
    #[error("{key} is the record of a run named {name:?}")]
    OtherName {
        /// Key of the record.
        key: String,
        /// The name in it.
        name: String,
    },
    /// The place of an export holds something else.
    #[error("{out} is not empty, and holds no export of this run: choose an empty place")]
    ExportTaken {
        /// URL of the place.
        out: String,
    },
    /// Another coordinator may act now.
    #[error("the connection that made this coordinator the acting one is lost")]
    LostLead,
    /// An object of the run cannot be read.
    #[error("{key} is damaged: put a whole one there; or delete it, and what it held is forgotten")]
    Damaged {
        /// Key of the object.
        key: String,
        /// Why.
        source: serde_json::Error,
    },
    /// An object is not the one that its result names.
    #[error("{key} is not what its result says: it is damaged (basin verify --deep lists all such)")]
    Altered {
        /// Key of the object.
        key: String,
    },
    /// There is no run.
    #[error("{url} holds no run (there is no run.json)")]
    NoRun {
        /// URL of the store.
        url: String,
    },
    /// The export would become part of the run.
    #[error("{out} lies inside the run {run}: choose a place outside of it for the export")]
    ExportInside {
        /// URL of the export.
        out: String,
        /// URL of the run.
        run: String,
    },
    /// The store lets several create a key.
    #[error(
        "{url} lets two writers create the same key, so that two workers could both commit an image: basin doctor tells more; use \
        a store that honours If-None-Match"
    )]
    BadHome {
        /// URL of the home.
        url: String,
    },
}

/// Reads and plans, records what cannot be a job, and returns what is left. Notes are for people.
pub async fn prepare(
    spec: &RunSpec,
    redrive: Option<&Redrive>,
    dataset: &Store,
    results: &Store,
) -> Result<(Plan, Vec<String>), Error> {
    if dataset.contains(results) {
        return Err(Error::OutInside { out: results.url(), dataset: dataset.url() });
    }
    let annotations: Annotations = spec.record.annotations.parse().expect("any text names annotations");
    let dataset = dataset::read(dataset, &annotations).await?;
    results.check_writable().await?;
    begin(&spec.record, results).await?;
    let known = places(&dataset.entries);
    let all = dataset.entries.len();
    let entries = match spec.record.limit {
        Some(limit) => spread(dataset.entries, limit),
        None => dataset.entries,
    };
    let mut markers = Markers::list(results).await?;
    if let Some(redrive) = redrive
        && let Some(seed) = redrive.seed()
    {
        record_redrive(redrive, seed, &places(&entries), &markers, results).await?;
    }
    let seeds = read_seeds(&spec.record, results).await?;
    remove_redriven(&seeds, &known, &mut markers, results).await?;
    let settled = settled(redrive, &known, markers, results).await?;
    let mut notes = dataset.notes;
    let of = if entries.len() < all { format!(" of {all}") } else { String::new() };
    notes.insert(0, format!("read {}{of} images from {}", entries.len(), dataset.source));
    let plan = plan(entries, spec, &settled, &seeds);
    for failures in plan.failures.chunks(AT_ONCE) {
        let writes = failures.iter().map(|failure| write_failure(results, failure));
        futures_util::future::try_join_all(writes).await?;
    }
    Ok((plan, notes))
}

fn places(entries: &[Entry]) -> HashSet<String> {
    entries.iter().map(|e| keys::place(e.image())).collect()
}

/// Places of images with a marker; where there are both, the result wins.
pub(crate) struct Markers {
    pub(crate) results: Vec<String>,
    pub(crate) failures: Vec<String>,
}

impl Markers {
    pub(crate) async fn list(results: &Store) -> Result<Markers, Error> {
        let mut markers = Markers { results: Vec::new(), failures: Vec::new() };
        let mut lister = results.list(keys::IMAGES)?;
        while let Some(page) = lister.next_page().await? {
            for object in page {
                match keys::parse(&object.key) {
                    Some(Kind::Marker(place, Marker::Result)) => markers.results.push(place.to_owned()),
                    Some(Kind::Marker(place, Marker::Failure)) => markers.failures.push(place.to_owned()),
                    _ => {}
                }
            }
        }
        let done: HashSet<&String> = markers.results.iter().collect();
        markers.failures.retain(|place| !done.contains(place));
        Ok(markers)
    }
}

/// Writes down which images a redrive with another seed means, before anything of them is deleted.
async fn record_redrive(
    redrive: &Redrive,
    seed: u64,
    planned: &HashSet<String>,
    markers: &Markers,
    results: &Store,
) -> Result<(), Error> {
    let at = |places: &[String], marker| {
        let planned = places.iter().filter(|place| planned.contains(*place));
        planned.map(|place| keys::marker_at(place, marker)).collect()
    };
    let mut images = Vec::new();
    let mut failures = read_each::<Failure>(results, at(&markers.failures, Marker::Failure));
    while let Some((failure, _)) = failures.try_next().await? {
        if redrive.wants_failure(&failure) {
            images.push(failure.image);
        }
    }
    let mut records = read_each::<ResultRecord>(results, at(&markers.results, Marker::Result));
    while let Some((record, _)) = records.try_next().await? {
        if redrive.wants_result(&record) && record.seed != image_seed(seed, &record.image) {
            images.push(record.image);
        }
    }
    if images.is_empty() {
        return Ok(());
    }
    images.sort();
    let record = RedriveRecord { format: 1, wheres: redrive.wheres(), seed, images };
    let bytes = serde_json::to_vec_pretty(&record).expect("a record serialises");
    let mut number = redrives(results).await?.last_key_value().map_or(1, |(last, _)| last + 1);
    while results.put_new(&keys::redrive(number), bytes.clone()).await? == PutNew::Exists {
        number += 1;
    }
    Ok(())
}

/// Number and key of each redrive, in the order in which they count.
pub(crate) async fn redrives(results: &Store) -> Result<BTreeMap<u64, String>, Error> {
    let objects = results.list(keys::REDRIVES)?.all().await?;
    Ok(objects.into_iter().filter_map(|object| Some((keys::parse_redrive(&object.key)?, object.key))).collect())
}

/// The seeds of a run's images.
pub(crate) async fn read_seeds(run: &RunRecord, results: &Store) -> Result<Seeds, Error> {
    let mut seeds = Seeds { run: run.seed, redriven: HashMap::new() };
    let keys = redrives(results).await?.into_values().collect();
    let mut records = read_each::<RedriveRecord>(results, keys);
    while let Some((RedriveRecord { seed, images, .. }, _)) = records.try_next().await? {
        seeds.redriven.extend(images.into_iter().map(|image| (image, seed)));
    }
    Ok(seeds)
}

/// A result of another seed than its image's is none any more; its objects are swept at the end of the run.
async fn remove_redriven(seeds: &Seeds, known: &HashSet<String>, markers: &mut Markers, results: &Store) -> Result<(), Error> {
    let redriven: HashSet<String> = seeds.redriven.keys().map(|image| keys::place(image)).collect();
    let ours = markers.results.iter().filter(|place| redriven.contains(*place) && known.contains(*place));
    let mut records = read_each::<ResultRecord>(results, ours.map(|place| keys::marker_at(place, Marker::Result)).collect());
    let mut removed = HashSet::new();
    while let Some((record, _)) = records.try_next().await? {
        if record.seed != seeds.of(&record.image) {
            removed.insert(keys::place(&record.image));
        }
    }
    if removed.is_empty() {
        return Ok(());
    }
    // No snapshot outlives a result that it counts, and no failure comes to light when its result goes.
    results.delete(keys::SNAPSHOT).await?;
    for marker in [Marker::Failure, Marker::Result] {
        delete_each(results, removed.iter().map(|place| keys::marker_at(place, marker)).collect()).await?;
    }
    markers.results.retain(|place| !removed.contains(place));
    Ok(())
}

/// Places of images with a marker. A failure is taken away where it is to be tried again, where the data set did not answer, and
/// where the data set has no such image any more.
async fn settled(
    redrive: Option<&Redrive>,
    known: &HashSet<String>,
    markers: Markers,
    results: &Store,
) -> Result<HashMap<String, Marker>, Error> {
    let mut settled: HashMap<String, Marker> = markers.results.into_iter().map(|place| (place, Marker::Result)).collect();
    let (ours, strangers): (Vec<String>, Vec<String>) = markers.failures.into_iter().partition(|place| known.contains(place));
    let key = |place: &String| keys::marker_at(place, Marker::Failure);
    let mut again: Vec<String> = strangers.iter().map(key).collect();
    let mut failures = read_each::<Failure>(results, ours.iter().map(key).collect());
    for place in ours {
        let (failure, object) = failures.try_next().await?.expect("there is one for each key");
        if failure.reason == FailureReason::Unavailable || redrive.is_some_and(|r| r.wants_failure(&failure)) {
            again.push(object.key);
        } else {
            settled.insert(place, Marker::Failure);
        }
    }
    delete_each(results, again).await?;
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
        CrashPoint::RunBegun.pass();
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

/// Reads records, some at a time, in the order of their keys; each with what it was read from.
pub(crate) fn read_each<T: serde::de::DeserializeOwned + Send>(
    results: &Store,
    keys: Vec<String>,
) -> BoxStream<'static, Result<(T, Object), Error>> {
    let results = results.clone();
    let read = move |key: String| {
        let results = results.clone();
        async move {
            let bytes = results.get(&key).await?;
            match serde_json::from_slice(&bytes) {
                Ok(record) => Ok((record, Object::new(key, &bytes))),
                Err(source) => Err(Error::Damaged { key, source }),
            }
        }
    };
    stream::iter(keys).map(read).buffered(AT_ONCE).boxed()
}

/// Deletes objects, some at a time.
async fn delete_each(results: &Store, keys: Vec<String>) -> Result<(), store::Error> {
    let results = results.clone();
    let delete = move |key: String| {
        let results = results.clone();
        async move { results.delete(&key).await }
    };
    stream::iter(keys).map(delete).buffer_unordered(AT_ONCE).try_collect().await
}

/// All results and failures of a run, in the order of their places.
#[derive(Debug, Default)]
pub struct Records {
    /// Images that have a result.
    pub results: Vec<ResultRecord>,
    /// Images that have a failure and no result.
    pub failures: Vec<Failure>,
    /// The objects that these were read from.
    pub markers: Vec<Object>,
}

/// Reads all results and failures of a run.
pub async fn read_records(results: &Store) -> Result<Records, Error> {
    let markers = Markers::list(results).await?;
    let at = |places: &[String], marker| places.iter().map(|place| keys::marker_at(place, marker)).collect();
    let mut records = Records::default();
    let mut read = read_each(results, at(&markers.results, Marker::Result));
    while let Some((record, object)) = read.try_next().await? {
        records.results.push(record);
        records.markers.push(object);
    }
    let mut read = read_each(results, at(&markers.failures, Marker::Failure));
    while let Some((failure, object)) = read.try_next().await? {
        records.failures.push(failure);
        records.markers.push(object);
    }
    Ok(records)
}

/// Deletes what attempts left that did not win, marks and checkpoints of images that are settled, and uploads that were never
/// finished; returns how many objects.
pub async fn sweep(records: &[ResultRecord], results: &Store) -> Result<usize, Error> {
    let winners: HashMap<String, &str> = records.iter().map(|r| (keys::place(&r.image), r.attempt.as_str())).collect();
    let mut swept = 0;
    for prefix in [keys::IMAGES, keys::ATTEMPTS, keys::CHECKPOINTS] {
        let mut lister = results.list(prefix)?;
        while let Some(page) = lister.next_page().await? {
            let keep = |key: &str| match keys::parse(key) {
                Some(Kind::Item(place, attempt, _)) => winners.get(place) == Some(&attempt),
                Some(Kind::Marker(..)) => true,
                None => prefix == keys::IMAGES,
            };
            let lost: Vec<String> = page.into_iter().map(|object| object.key).filter(|key| !keep(key)).collect();
            swept += lost.len();
            delete_each(results, lost).await?;
        }
    }
    match results.sweep_uploads(SystemTime::now() - ABANDONED).await {
        Ok(uploads) => swept += uploads,
        // It costs space only, and not every store allows it.
        Err(error) => tracing::warn!(error = chain(&error), "uploads that were never finished cannot be removed"),
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
