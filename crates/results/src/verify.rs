//! Checks that a run is complete (*io*).

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;

use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use proto::keys::{Kind, Marker};
use proto::{Failure, RedriveRecord, ResultRecord, chain, hex_sha256, keys};
use store::{Allowed, ErrorKind, Store};

use crate::manifest::{Manifest, ObjectEntry, ReadLines};
use crate::run::{
    AT_ONCE, Markers, RunError, digested, if_present, read_each, read_json, read_run, read_seeds, redrives, spread,
};
use crate::seeds::Seeds;

/// Why objects and tables may differ without harm.
const NEWER: &str = "newer than the tables, which the end of the run and basin report write again";

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verification {
    /// Images of the data set that belong to the run.
    pub images: usize,
    pub succeeded: usize,
    pub failed: usize,
    /// Sentences for people; empty if the run is complete.
    pub problems: Vec<String>,
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
    let dataset =
        dataset::read(&Store::open(&run.dataset).await?, &run.annotations, &run.params.object, &Allowed::default()).await?;
    let entries = spread(dataset.entries, run.limit);
    found.images = entries.len();

    let mut objects = Objects::new();
    let markers = Markers::list_with(results, |object| match keys::parse(&object.key) {
        Some(Kind::Item(place, attempt, item)) => {
            let attempt = objects.entry((place.to_owned(), attempt.to_owned())).or_default();
            attempt.insert(item.file(), object.size);
        }
        _ => found.problems.push(format!("{} is not an object of a run", object.key)),
    });
    let Markers { results: mut succeeded, failures: mut failed } = markers.await?;
    succeeded.sort();
    failed.sort();
    let expected: BTreeMap<String, &str> = entries.iter().map(|e| (keys::place(e.image()), e.image())).collect();
    let marked: BTreeSet<&String> = succeeded.iter().chain(&failed).collect();
    for (place, image) in &expected {
        if !marked.contains(place) {
            found.problems.push(format!("{image:?} has neither a result nor a failure"));
        }
    }
    for place in marked.into_iter().filter(|place| !expected.contains_key(*place)) {
        found.problems.push(format!("{place:?} is not an image of the data set any more"));
    }
    let mut redrives = read_each::<RedriveRecord>(results, redrives(results).await?.into_values().collect());
    let mut whole = true;
    while let Some(read) = redrives.next().await {
        whole &= sound(read, &mut found.problems)?.is_some();
    }
    // The seeds of the images are known only if every redrive can be read.
    let seeds = if whole { Some(read_seeds(&run, results).await?) } else { None };
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

async fn read_failures(places: Vec<String>, results: &Store, problems: &mut Vec<String>) -> Result<Read, RunError> {
    let keys = places.iter().map(|place| keys::marker_at(place, Marker::Failure)).collect();
    let failures = read_each::<Failure>(results, keys).zip(stream::iter(&places));
    let checks = failures.map(|(read, place)| {
        read.map(|(failure, object)| (misplaced(&failure.image, place, &object.key).into_iter().collect(), object))
    });
    gather(&places, checks, problems).await
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
    let read = gather(&places, checks.buffered(AT_ONCE), problems).await?;
    // A damaged result does not tell which attempt counts.
    objects.retain(|(place, _), _| !matches!(read.get(place), Some(None)));
    Ok(read)
}

/// The markers at `places`, each with the problems of its image.
async fn gather(
    places: &[String],
    checks: impl Stream<Item = Result<(Vec<String>, ObjectEntry), RunError>>,
    problems: &mut Vec<String>,
) -> Result<Read, RunError> {
    let (mut read, mut checks) = (Read::new(), pin!(checks.zip(stream::iter(places))));
    while let Some((checked, place)) = checks.next().await {
        let (its, object) = sound(checked, problems)?.unzip();
        problems.extend(its.into_iter().flatten());
        read.insert(place.clone(), object);
    }
    Ok(read)
}

/// The problem of a record that belongs to another place.
fn misplaced(image: &str, place: &str, key: &str) -> Option<String> {
    (keys::place(image) != place).then(|| format!("{key} is the record of another image, {image:?}"))
}

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
    let manifest = sound(if_present(read_json::<Manifest>(results, keys::MANIFEST).await), &mut found.problems)?;
    let Some(manifest) = manifest.flatten() else { return Ok(()) };
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
    let mut lines = ReadLines::default();
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
