//! A run's place in the store (*io*): what it is, what is done, and what is left.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, SystemTime};

use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt, stream};
use proto::keys::{Kind, Marker};
use proto::{CrashPoint, Failure, FailureReason, JobId, Params, RedriveRecord, ResultRecord, RunRecord, chain, keys};
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
    #[error(
        "{url} holds a run with another {what}: choose another place (--out) or name, or the same {what} ({there} there, {here} asked for)"
    )]
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
    #[error("there is no model {model} in {url}: basin push FOLDER puts a model folder there")]
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
    /// A redrive has nothing to do.
    #[error("run {run} has nothing that this selects: nothing is redriven")]
    NothingMeant {
        /// Name of the run.
        run: String,
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

/// A run as its store and its data set show it, and what is to be projected again. Nothing of it has changed yet.
pub struct Seen {
    entries: Vec<Entry>,
    seeds: Seeds,
    /// What images have that stay as they are, by place.
    settled: HashMap<String, Marker>,
    /// Images that are redriven with another seed now.
    redriven: Option<RedriveRecord>,
    /// Places of results of another seed than their image's.
    stale: HashSet<String>,
    /// Keys of failures that are tried again, or that the data set knows no image of.
    again: Vec<String>,
    /// Failures that stay.
    failures: Vec<Failure>,
    notes: Vec<String>,
}

/// Reads and plans, records what cannot be a job, and returns what is left. Notes are for people.
pub async fn prepare(
    spec: &RunSpec,
    redrive: Option<&Redrive>,
    dataset: &Store,
    results: &Store,
) -> Result<(Plan, Vec<String>), Error> {
    see(spec, redrive, true, dataset, results).await?.plan(spec, results).await
}

/// Reads the data set and what there is of the run, which begins if there is nothing. `goes_on`: images where the data set did not
/// answer are tried again.
pub async fn see(
    spec: &RunSpec,
    redrive: Option<&Redrive>,
    goes_on: bool,
    dataset: &Store,
    results: &Store,
) -> Result<Seen, Error> {
    if dataset.contains(results) {
        return Err(Error::OutInside { out: results.url(), dataset: dataset.url() });
    }
    let annotations: Annotations = spec.record.annotations.parse().expect("any text names annotations");
    let dataset = dataset::read(dataset, &annotations, &spec.record.params.object).await?;
    results.check_writable().await?;
    begin(&spec.record, results).await?;
    let markers = Markers::list(results).await?;
    let known = markers.of(&dataset.entries);
    let all = dataset.entries.len();
    let entries = match spec.record.limit {
        Some(limit) => spread(dataset.entries, limit),
        None => dataset.entries,
    };
    let of = if entries.len() < all { format!(" of {all}") } else { String::new() };
    let mut notes = dataset.notes;
    notes.insert(0, format!("read {}{of} images from {}", entries.len(), dataset.source));

    let planned = markers.of(&entries);
    let mut seeds = read_seeds(&spec.record, results).await?;
    let (ours, strangers): (Vec<String>, Vec<String>) = markers.failures.into_iter().partition(|place| known.contains(place));
    let key = |place: &String| keys::marker_at(place, Marker::Failure);
    let failures: Vec<(Failure, Object)> = read_each(results, ours.iter().map(key).collect()).try_collect().await?;
    let mut redriven = None;
    if let Some(redrive) = redrive
        && let Some(seed) = redrive.seed()
    {
        let mut images = meant(redrive, seed, &planned, &markers.results, results).await?;
        let meant = failures.iter().filter(|(f, _)| redrive.wants_failure(f) && planned.contains(&keys::place(&f.image)));
        images.extend(meant.map(|(failure, _)| failure.image.clone()));
        images.sort();
        if !images.is_empty() {
            seeds.redriven.extend(images.iter().map(|image| (image.clone(), seed)));
            redriven = Some(RedriveRecord { format: 1, wheres: redrive.wheres(), seed, images });
        }
    }
    let stale = stale(&seeds, &known, &markers.results, results).await?;
    let (mut again, mut stay): (Vec<String>, Vec<Failure>) = (strangers.iter().map(key).collect(), Vec::new());
    let mut settled: HashMap<String, Marker> = markers.results.into_iter().map(|place| (place, Marker::Result)).collect();
    settled.retain(|place, _| !stale.contains(place));
    let jobs = redriven_jobs(spec, &entries, &seeds);
    for (place, (failure, object)) in ours.into_iter().zip(failures) {
        let of_another_seed = jobs.get(&failure.image).is_some_and(|job| failure.job.as_ref().is_some_and(|j| j != job));
        let wanted = redrive.is_some_and(|r| r.wants_failure(&failure));
        if failure.reason == FailureReason::Unavailable && goes_on || of_another_seed || wanted {
            again.push(object.key);
        } else {
            if planned.contains(&place) {
                stay.push(failure);
            }
            settled.insert(place, Marker::Failure);
        }
    }
    Ok(Seen { entries, seeds, settled, redriven, stale, again, failures: stay, notes })
}

impl Seen {
    /// Images that have neither a result nor a failure that stays.
    pub fn left(&self) -> usize {
        self.entries.iter().filter(|entry| !self.settled.contains_key(&keys::place(entry.image()))).count()
    }

    /// Takes away what is to be projected again, records what cannot be a job, and returns what is left. Notes are for people.
    pub async fn plan(self, spec: &RunSpec, results: &Store) -> Result<(Plan, Vec<String>), Error> {
        if self.left() > 0 {
            // It says that the tables are whole.
            results.delete(keys::MANIFEST).await?;
        }
        // Before anything is deleted: whoever goes on knows what was meant.
        if let Some(record) = &self.redriven {
            record_redrive(record, results).await?;
        }
        if !self.stale.is_empty() {
            // No snapshot outlives a result that it counts, and no failure comes to light when its result goes.
            results.delete(keys::SNAPSHOT).await?;
            for marker in [Marker::Failure, Marker::Result] {
                delete_each(results, self.stale.iter().map(|place| keys::marker_at(place, marker)).collect()).await?;
            }
        }
        delete_each(results, self.again).await?;
        let plan = Plan { settled_failures: self.failures, ..plan(self.entries, spec, &self.settled, &self.seeds) };
        for failures in plan.failures.chunks(AT_ONCE) {
            let writes = failures.iter().map(|failure| write_failure(results, failure));
            futures_util::future::try_join_all(writes).await?;
        }
        Ok((plan, self.notes))
    }
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

    /// Places of those of `entries` that have a marker.
    fn of(&self, entries: &[Entry]) -> HashSet<String> {
        let marked: HashSet<&String> = self.results.iter().chain(&self.failures).collect();
        if marked.is_empty() {
            return HashSet::new();
        }
        entries.iter().map(|entry| keys::place(entry.image())).filter(|place| marked.contains(place)).collect()
    }
}

/// Images whose results a redrive with another seed means.
async fn meant(
    redrive: &Redrive,
    seed: u64,
    planned: &HashSet<String>,
    places: &[String],
    results: &Store,
) -> Result<Vec<String>, Error> {
    let mut images = Vec::new();
    let keys = places.iter().filter(|place| planned.contains(*place)).map(|place| keys::marker_at(place, Marker::Result));
    let mut records = read_each::<ResultRecord>(results, keys.collect());
    while let Some((record, _)) = records.try_next().await? {
        if redrive.wants_result(&record) && record.seed != image_seed(seed, &record.image) {
            images.push(record.image);
        }
    }
    Ok(images)
}

async fn record_redrive(record: &RedriveRecord, results: &Store) -> Result<(), Error> {
    let bytes = serde_json::to_vec_pretty(record).expect("a record serialises");
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

/// Places of results of another seed than their image's: they are none any more, and their objects are swept at the end of the run.
async fn stale(seeds: &Seeds, known: &HashSet<String>, places: &[String], results: &Store) -> Result<HashSet<String>, Error> {
    let redriven: HashSet<String> = seeds.redriven.keys().map(|image| keys::place(image)).collect();
    let ours = places.iter().filter(|place| redriven.contains(*place) && known.contains(*place));
    let mut records = read_each::<ResultRecord>(results, ours.map(|place| keys::marker_at(place, Marker::Result)).collect());
    let mut stale = HashSet::new();
    while let Some((record, _)) = records.try_next().await? {
        if record.seed != seeds.of(&record.image) {
            stale.insert(keys::place(&record.image));
        }
    }
    Ok(stale)
}

/// The jobs of redriven images. A failure of another job is of an earlier seed.
fn redriven_jobs(spec: &RunSpec, entries: &[Entry], seeds: &Seeds) -> HashMap<String, JobId> {
    if seeds.redriven.is_empty() {
        return HashMap::new();
    }
    let redriven = entries.iter().filter(|entry| seeds.redriven.contains_key(entry.image()));
    let planned = plan(redriven.cloned().collect(), spec, &HashMap::new(), seeds).images;
    planned.into_iter().map(|planned| (planned.image.to_string(), spec.job(&planned).id())).collect()
}

/// Every n-th entry, `limit` of them.
pub fn spread<T>(entries: Vec<T>, limit: usize) -> Vec<T> {
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
    check_same(&read_json(results, keys::RUN).await?, record, results)
}

/// Whether `there`, the run of a store, is of the same data set, model, parameters and seed as `record`.
pub fn check_same(there: &RunRecord, record: &RunRecord, results: &Store) -> Result<(), Error> {
    let differs = |what, there: String, here: String| Err(Error::OtherRun { url: results.url(), what, there, here });
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

/// An image that was given up may have got its result just now: what is beside it stays.
async fn without_late(lost: Vec<String>, winners: &HashMap<String, &str>, results: &Store) -> Result<Vec<String>, Error> {
    let mut late: HashMap<String, bool> = HashMap::new();
    for key in &lost {
        if let Some(Kind::Item(place, ..)) = keys::parse(key)
            && !winners.contains_key(place)
            && !late.contains_key(place)
        {
            let committed = results.exists(&keys::marker_at(place, Marker::Result)).await?;
            late.insert(place.to_owned(), committed);
        }
    }
    let stays = |key: &String| matches!(keys::parse(key), Some(Kind::Item(place, ..)) if late.get(place) == Some(&true));
    Ok(lost.into_iter().filter(|key| !stays(key)).collect())
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
            let lost = without_late(lost, &winners, results).await?;
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
