//! Proves that a run is complete (*io*).

use std::collections::BTreeMap;

use proto::keys::{Item, Kind, Marker};
use proto::{Failure, ResultRecord, hex_sha256, keys};
use store::Store;

use crate::dataset::{self, Annotations};
use crate::run::{Error, read_json, read_run, spread};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// Images of the data set that belong to the run.
    pub images: usize,
    /// With a result.
    pub succeeded: usize,
    /// With a failure.
    pub failed: usize,
    /// What is not as it should be, for people.
    pub problems: Vec<String>,
}

/// Compares the run with its data set: every image has one result or one failure, and every object of a result is there with
/// its size; `deep`: and its digest.
pub async fn verify(results: &Store, deep: bool) -> Result<Found, Error> {
    let mut found = Found::default();
    let Some(run) = read_run(results).await? else {
        found.problems.push(format!("{} holds no run (there is no run.json)", results.url()));
        return Ok(found);
    };
    let annotations: Annotations = run.annotations.parse().expect("any text names annotations");
    let entries = dataset::read(&Store::open(&run.dataset).await?, &annotations).await?.entries;
    let entries = match run.limit {
        Some(limit) => spread(entries, limit),
        None => entries,
    };
    found.images = entries.len();

    let mut markers: BTreeMap<String, Vec<(Marker, String)>> = BTreeMap::new();
    let mut objects: BTreeMap<(String, String), BTreeMap<&'static str, u64>> = BTreeMap::new();
    let mut lister = results.list(keys::IMAGES)?;
    while let Some(page) = lister.next_page().await? {
        for object in page {
            match keys::parse(&object.key) {
                Some(Kind::Marker(place, marker)) => {
                    markers.entry(place.to_owned()).or_default().push((marker, object.key.clone()));
                }
                Some(Kind::Item(place, attempt, item)) => {
                    objects.entry((place.to_owned(), attempt.to_owned())).or_default().insert(item.file(), object.size);
                }
                None => found.problems.push(format!("{} is no object of a run", object.key)),
            }
        }
    }
    let expected: BTreeMap<String, &str> = entries.iter().map(|e| (keys::place(e.image()), e.image())).collect();
    for (place, image) in &expected {
        if !markers.contains_key(place) {
            found.problems.push(format!("{image:?} has neither a result nor a failure"));
        }
    }
    for (image, its) in &markers {
        if !expected.contains_key(image) {
            found.problems.push(format!("{image:?} is no image of the data set any more"));
        }
        let result = its.iter().find(|(marker, _)| *marker == Marker::Result);
        let Some((_, key)) = result else {
            found.failed += 1;
            let _: Failure = read_json(results, &its[0].1).await?;
            continue;
        };
        found.succeeded += 1;
        let record: ResultRecord = read_json(results, key).await?;
        let there = objects.remove(&(image.clone(), record.attempt.clone())).unwrap_or_default();
        check(&record, &there, results, deep, &mut found.problems).await?;
    }
    for (image, attempt) in objects.keys() {
        found.problems.push(format!("attempt {attempt} at {image:?} left objects and is not the one that counts"));
    }
    for prefix in [keys::ATTEMPTS, keys::CHECKPOINTS] {
        let left = results.list(prefix)?.all().await?.len();
        if left > 0 {
            found.problems.push(format!("{left} objects are left in {prefix}"));
        }
    }
    Ok(found)
}

async fn check(
    record: &ResultRecord,
    there: &BTreeMap<&'static str, u64>,
    results: &Store,
    deep: bool,
    problems: &mut Vec<String>,
) -> Result<(), Error> {
    for item in Item::ALL {
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
                let bytes = results.get(&keys::item(image, &record.attempt, item)).await?;
                if hex_sha256(&bytes) != object.sha256 {
                    problems.push(format!("{} of {image:?} is damaged", item.file()));
                }
            }
            Some(_) => {}
        }
    }
    Ok(())
}
