//! Checks that a run is complete (*io*).

use std::collections::{BTreeMap, HashSet};

use dataset::Annotations;
use futures_util::{StreamExt, TryStreamExt, stream};
use proto::keys::{Kind, Marker};
use proto::{Failure, RedriveRecord, ResultRecord, RunningSha256, chain, hex_sha256, keys};
use store::{ErrorKind, Store};

use crate::manifest::{Manifest, ObjectEntry, ReadLines};
use crate::run::{AT_ONCE, RunError, read_each, read_json, read_run, read_seeds, redrives, spread};
use crate::seeds::Seeds;

/// Why objects and tables may differ without harm.
const NEWER: &str = "newer than the tables, which the end of the run and basin report write again";

/// The state of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verification {
    /// Images of the data set that belong to the run.
    pub images: usize,
    /// Images with a result.
    pub succeeded: usize,
    /// Images with a failure.
    pub failed: usize,
    /// Sentences for people; empty if the run is complete.
    pub problems: Vec<String>,
}

/// The objects of the images, as the store lists them.
#[derive(Default)]
struct Listed {
    /// The marker that counts, by place: a result before a failure.
    markers: BTreeMap<String, Marker>,
    objects: Objects,
}

/// Sizes of an attempt's files, by place and attempt.
type Objects = BTreeMap<(String, String), BTreeMap<&'static str, u64>>;

/// The markers that count, by place; `None` for one that is damaged.
type Read = BTreeMap<String, Option<ObjectEntry>>;

/// Compares the run with its data set: every image has one result, with its seed, or one failure; every object of a result exists with
/// its size; the tables count the same images. `deep` also compares the digests of all objects that results, manifest and its lines
/// name.
///
/// A damaged object is a problem; an error means that something could not be read.
pub async fn verify(results: &Store, deep: bool) -> Result<Verification, RunError> {
    let mut found = Verification::default();
    let Some(run) = sound(read_run(results).await, &mut found.problems)? else { return Ok(found) };
    let Some(run) = run else {
        // A missing bucket or folder is an error.
        results.list("")?.next_page().await?;
        found.problems.push(format!("{} holds no run (there is no run.json)", results.url()));
        return Ok(found);
    };
    let annotations: Annotations = run.annotations.parse().expect("any text names annotations");
    let entries = dataset::read(&Store::open(&run.dataset).await?, &annotations, &run.params.object).await?.entries;
    let entries = match run.limit {
        Some(limit) => spread(entries, limit),
        None => entries,
    };
    found.images = entries.len();

    let Listed { markers, mut objects } = list(results, &mut found.problems).await?;
    let expected: BTreeMap<String, &str> = entries.iter().map(|e| (keys::place(e.image()), e.image())).collect();
    for (place, image) in &expected {
        if !markers.contains_key(place) {
            found.problems.push(format!("{image:?} has neither a result nor a failure"));
        }
    }
    for place in markers.keys().filter(|place| !expected.contains_key(*place)) {
        found.problems.push(format!("{place:?} is not an image of the data set any more"));
    }
    let mut redrives = read_each::<RedriveRecord>(results, redrives(results).await?.into_values().collect());
    let mut whole = true;
    while let Some(read) = redrives.next().await {
        whole &= sound(read, &mut found.problems)?.is_some();
    }
    // The seeds of the images are known only if every redrive can be read.
    let seeds = if whole { Some(read_seeds(&run, results).await?) } else { None };
    let (succeeded, failed): (Vec<_>, Vec<_>) = markers.into_iter().partition(|(_, marker)| *marker == Marker::Result);
    let [succeeded, failed] = [succeeded, failed].map(|markers| markers.into_iter().map(|(place, _)| place).collect::<Vec<_>>());
    (found.succeeded, found.failed) = (succeeded.len(), failed.len());
    let mut read = read_failures(failed, results, &mut found.problems).await?;
    read.extend(check_results(succeeded, &mut objects, seeds.as_ref(), results, deep, &mut found.problems).await?);
    for (place, attempt) in objects.keys() {
        found.problems.push(format!("attempt {attempt} at {place:?} left objects, and another attempt counts"));
    }
    for prefix in [keys::ATTEMPTS, keys::CHECKPOINTS] {
        let left = results.list(prefix)?.all().await?.len();
        if left > 0 {
            found.problems.push(format!("{left} objects are left in {prefix}"));
        }
    }
    check_tables(read, results, deep, &mut found).await?;
    Ok(found)
}

/// The record that was read; `None`, and a problem, if it is damaged or was deleted after the listing.
fn sound<T>(read: Result<T, RunError>, problems: &mut Vec<String>) -> Result<Option<T>, RunError> {
    match read {
        Ok(read) => return Ok(Some(read)),
        Err(error) if error.is_not_found() => problems.push(error.to_string()),
        Err(error @ RunError::Damaged { .. }) => problems.push(chain(&error)),
        Err(error) => return Err(error),
    }
    Ok(None)
}

async fn list(results: &Store, problems: &mut Vec<String>) -> Result<Listed, RunError> {
    let mut listed = Listed::default();
    let mut lister = results.list(keys::IMAGES)?;
    while let Some(page) = lister.next_page().await? {
        for object in page {
            match keys::parse(&object.key) {
                Some(Kind::Marker(place, Marker::Result)) => drop(listed.markers.insert(place.to_owned(), Marker::Result)),
                Some(Kind::Marker(place, Marker::Failure)) => {
                    listed.markers.entry(place.to_owned()).or_insert(Marker::Failure);
                }
                Some(Kind::Item(place, attempt, item)) => {
                    let attempt = listed.objects.entry((place.to_owned(), attempt.to_owned())).or_default();
                    attempt.insert(item.file(), object.size);
                }
                None => problems.push(format!("{} is not an object of a run", object.key)),
            }
        }
    }
    Ok(listed)
}

async fn read_failures(places: Vec<String>, results: &Store, problems: &mut Vec<String>) -> Result<Read, RunError> {
    let keys = places.iter().map(|place| keys::marker_at(place, Marker::Failure)).collect();
    let mut failures = read_each::<Failure>(results, keys);
    let mut objects = Read::new();
    for place in places {
        let read = failures.next().await.expect("there is one for each key");
        let object = sound(read, problems)?.map(|(failure, object)| {
            problems.extend(misplaced(&failure.image, &place, &object.key));
            object
        });
        objects.insert(place, object);
    }
    Ok(objects)
}

/// Removes the objects of the attempts that count from `objects`.
async fn check_results(
    places: Vec<String>,
    objects: &mut Objects,
    seeds: Option<&Seeds>,
    results: &Store,
    deep: bool,
    problems: &mut Vec<String>,
) -> Result<Read, RunError> {
    let keys = places.iter().map(|place| keys::marker_at(place, Marker::Result)).collect();
    let records = read_each::<ResultRecord>(results, keys).zip(stream::iter(&places));
    let checks = records.map(|(read, place)| {
        let there = match &read {
            Ok((record, _)) => objects.remove(&(place.clone(), record.attempt.clone())).unwrap_or_default(),
            Err(_) => BTreeMap::new(),
        };
        async move {
            let (record, object) = read?;
            if let Some(problem) = misplaced(&record.image, place, &object.key) {
                return Ok((vec![problem], object));
            }
            let mut problems = check(&record, &there, results, deep).await?;
            if seeds.is_some_and(|seeds| record.seed != seeds.of(&record.image)) {
                problems.push(format!("the result of {:?} has another seed than the run gives it", record.image));
            }
            Ok::<_, RunError>((problems, object))
        }
    });
    let checks: Vec<Result<(Vec<String>, ObjectEntry), RunError>> = checks.buffered(AT_ONCE).collect().await;
    let mut read = Read::new();
    for (place, checked) in places.into_iter().zip(checks) {
        let checked = sound(checked, problems)?;
        read.insert(
            place,
            checked.map(|(its, object)| {
                problems.extend(its);
                object
            }),
        );
    }
    // A damaged result does not tell which attempt counts.
    let damaged: HashSet<&String> = read.iter().filter(|(_, object)| object.is_none()).map(|(place, _)| place).collect();
    objects.retain(|(place, _), _| !damaged.contains(place));
    Ok(read)
}

/// The problem of a record that belongs to another place.
fn misplaced(image: &str, place: &str, key: &str) -> Option<String> {
    (keys::place(image) != place).then(|| format!("{key} is the record of another image, {image:?}"))
}

/// The problems of a result's objects.
async fn check(
    record: &ResultRecord,
    there: &BTreeMap<&'static str, u64>,
    results: &Store,
    deep: bool,
) -> Result<Vec<String>, RunError> {
    let mut problems = Vec::new();
    for item in record.items() {
        let image = &record.image;
        let Some(object) = record.objects.iter().find(|o| o.file == item.file()) else {
            problems.push(format!("the result of {image:?} does not name its {}", item.file()));
            continue;
        };
        match there.get(item.file()) {
            None => problems.push(format!("{} of {image:?} is missing", item.file())),
            Some(size) if *size != object.size => {
                problems.push(format!("{} of {image:?} has {size} bytes instead of {}", item.file(), object.size));
            }
            Some(_) if deep => {
                let bytes = results.get(&keys::item(image, &record.attempt, item)).await.map_err(RunError::from);
                if sound(bytes, &mut problems)?.is_some_and(|bytes| hex_sha256(&bytes) != object.sha256) {
                    problems.push(format!("{} of {image:?} is damaged", item.file()));
                }
            }
            Some(_) => {}
        }
    }
    Ok(problems)
}

/// Compares the images with the manifest; a run that has not ended may have none.
async fn check_tables(read: Read, results: &Store, deep: bool, found: &mut Verification) -> Result<(), RunError> {
    let manifest = match read_json::<Manifest>(results, keys::MANIFEST).await {
        Err(error) if error.is_not_found() => return Ok(()),
        read => sound(read, &mut found.problems)?,
    };
    let Some(manifest) = manifest else { return Ok(()) };
    let (succeeded, failed) = (manifest.images.succeeded, manifest.images.failed);
    if (succeeded, failed) != (found.succeeded as u64, found.failed as u64) {
        found.problems.push(format!(
            "{} counts {succeeded} results and {failed} failures: some were lost, or the objects are {NEWER}",
            keys::MANIFEST
        ));
    }
    if deep {
        found.problems.extend(check_objects(manifest.objects, results).await?);
        found.problems.extend(check_lines(read, results).await?);
    }
    Ok(())
}

/// The problems of the objects beside the manifest.
async fn check_objects(objects: Vec<ObjectEntry>, results: &Store) -> Result<Vec<String>, RunError> {
    let checks = objects.into_iter().map(async |object| match digested(object.key.clone(), results).await {
        Ok(there) if there == object => Ok(None),
        Ok(_) => Ok(Some(format!("{} differs from its entry in {}", object.key, keys::MANIFEST))),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidKey) => {
            Ok(Some(format!("{} is missing", object.key)))
        }
        Err(error) => Err(error),
    });
    let problems: Vec<Option<String>> = stream::iter(checks).buffered(AT_ONCE).try_collect().await?;
    Ok(problems.into_iter().flatten().collect())
}

async fn digested(key: String, results: &Store) -> Result<ObjectEntry, store::Error> {
    let mut download = results.download(&key).await?;
    let (mut size, mut digest) = (0, RunningSha256::default());
    while let Some(piece) = download.next().await? {
        size += piece.len() as u64;
        digest.update(&piece);
    }
    Ok(ObjectEntry { key, size, sha256: digest.hex() })
}

/// The problems of the markers among the manifest's lines. The other lines repeat the results, which are compared already.
async fn check_lines(mut read: Read, results: &Store) -> Result<Vec<String>, RunError> {
    let mut problems = Vec::new();
    let mut download = match results.download(keys::OBJECTS).await {
        // The manifest names it, so its absence is a problem already.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(problems),
        download => download?,
    };
    let unknown = |object: &ObjectEntry| format!("{} is not in {}: it is {NEWER}", object.key, keys::OBJECTS);
    let damaged = |error| format!("{} is damaged: {error}", keys::OBJECTS);
    let mut lines = ReadLines::new();
    while let Some(piece) = download.next().await? {
        let objects = match lines.add(&piece) {
            Ok(objects) => objects,
            Err(error) => {
                problems.push(damaged(error));
                return Ok(problems);
            }
        };
        for line in objects {
            let Some(Kind::Marker(place, _)) = keys::parse(&line.key) else { continue };
            match read.remove(place) {
                Some(Some(object)) if object.key != line.key => problems.push(unknown(&object)),
                Some(Some(object)) if object != line => {
                    problems.push(format!(
                        "{} differs from its line in {}: it was altered, or is {NEWER}",
                        line.key,
                        keys::OBJECTS
                    ));
                }
                Some(_) => {}
                None => problems.push(format!("{} is missing: it was lost, or the objects are {NEWER}", line.key)),
            }
        }
    }
    if let Err(error) = lines.finish() {
        problems.push(damaged(error));
        return Ok(problems);
    }
    problems.extend(read.values().flatten().map(unknown));
    Ok(problems)
}
