//! Proves that a run is complete (*io*).

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt, stream};
use proto::keys::{Item, Kind, Marker};
use proto::{Failure, ResultRecord, hex_sha256, keys};
use store::{ErrorKind, Store};

use crate::dataset::{self, Annotations};
use crate::manifest::{Manifest, Object};
use crate::run::{AT_ONCE, Error, read_each, read_json, read_run, read_seeds, spread};

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

/// Compares the run with its data set: every image has one result, of its seed, or one failure, and every object of a result is
/// there with its size; `deep`: and its digest, and so is what the manifest names.
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
    let (mut succeeded, mut failed) = (Vec::new(), Vec::new());
    for (place, its) in markers {
        if !expected.contains_key(&place) {
            found.problems.push(format!("{place:?} is no image of the data set any more"));
        }
        match its.iter().find(|(marker, _)| *marker == Marker::Result) {
            Some((_, key)) => succeeded.push(key.clone()),
            None => failed.extend(its.into_iter().map(|(_, key)| key)),
        }
    }
    (found.succeeded, found.failed) = (succeeded.len(), failed.len());
    let mut failures = read_each::<Failure>(results, failed);
    while failures.try_next().await?.is_some() {}
    let seeds = &read_seeds(&run, results).await?;
    let records = read_each::<ResultRecord>(results, succeeded).map(|read| {
        let there = match &read {
            Ok((record, _)) => objects.remove(&(keys::place(&record.image), record.attempt.clone())).unwrap_or_default(),
            Err(_) => BTreeMap::new(),
        };
        async move {
            let (record, _) = read?;
            let mut problems = check(&record, &there, results, deep).await?;
            if record.seed != seeds.of(&record.image) {
                problems.push(format!("the result of {:?} is of another seed than the run gives it", record.image));
            }
            Ok::<_, Error>(problems)
        }
    });
    let problems: Vec<Vec<String>> = records.buffered(AT_ONCE).try_collect().await?;
    found.problems.extend(problems.into_iter().flatten());
    for (image, attempt) in objects.keys() {
        found.problems.push(format!("attempt {attempt} at {image:?} left objects and is not the one that counts"));
    }
    for prefix in [keys::ATTEMPTS, keys::CHECKPOINTS] {
        let left = results.list(prefix)?.all().await?.len();
        if left > 0 {
            found.problems.push(format!("{left} objects are left in {prefix}"));
        }
    }
    if deep {
        found.problems.extend(check_manifest(results).await?);
    }
    Ok(found)
}

/// What is wrong with the objects of a result.
async fn check(
    record: &ResultRecord,
    there: &BTreeMap<&'static str, u64>,
    results: &Store,
    deep: bool,
) -> Result<Vec<String>, Error> {
    let mut problems = Vec::new();
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
    Ok(problems)
}

/// Which of the objects beside the manifest are not as it says; a run that has not ended may have no manifest.
async fn check_manifest(results: &Store) -> Result<Vec<String>, Error> {
    let manifest: Manifest = match read_json(results, keys::MANIFEST).await {
        Err(Error::Store(error)) if error.kind() == ErrorKind::NotFound => return Ok(vec![]),
        other => other?,
    };
    let checks = manifest.objects.into_iter().map(async |object| match results.get(&object.key).await {
        Ok(bytes) if Object::new(object.key.clone(), &bytes) == object => Ok(None),
        Ok(_) => Ok(Some(format!("{} is not what {} says", object.key, keys::MANIFEST))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Some(format!("{} is missing", object.key))),
        Err(error) => Err(error),
    });
    let problems: Vec<Option<String>> = stream::iter(checks).buffered(AT_ONCE).try_collect().await?;
    Ok(problems.into_iter().flatten().collect())
}
