//! Prepares a run (*io*): reads the data set and the run's store, plans, and deletes the outcomes that are to be projected again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::ready;

use dataset::Entry;
use futures_util::TryStreamExt;
use proto::keys::Marker;
use proto::{Failure, FailureReason, JobId, RedriveRecord, ResultRecord, keys};
use results::manifest::ObjectEntry;
use results::run::{AT_ONCE, Markers, begin, delete_each, read_each, read_seeds, redrives, spread, write_failure};
use results::seeds::{Seeds, image_seed};
use store::{Allowed, PutNew, Store};

use crate::Error;
use crate::plan::{Plan, RunSpec, plan, without_turn};
use results::redrive::Redrive;

/// A run as its store and its data set show it, and what is to be projected again. Nothing has changed yet.
pub struct Seen {
    entries: Vec<Entry>,
    seeds: Seeds,
    /// Markers that stay as they are, by place.
    settled: HashMap<String, Marker>,
    /// Images that are projected again, one record for each seed. Their numbers are not known yet.
    redriven: Vec<RedriveRecord>,
    /// Places of results whose seed is not their image's.
    stale: HashSet<String>,
    /// Keys of failures that are retried, or whose image the data set does not have.
    again: Vec<String>,
    failures: Vec<Failure>,
    notes: Vec<String>,
}

/// Reads the data set and the run, which is created if it does not exist. `retry_unavailable`: failures where the data set did not
/// answer are retried. `allowed`: which files of this machine may be read as annotations.
pub async fn see(
    spec: &RunSpec,
    redrive: Option<&Redrive>,
    retry_unavailable: bool,
    dataset: &Store,
    allowed: &Allowed,
    results: &Store,
) -> Result<Seen, Error> {
    if dataset.contains(results) {
        return Err(Error::OutInside { out: results.url(), dataset: dataset.url() });
    }
    let dataset = dataset::read(dataset, &spec.record.annotations, &spec.record.params.object, allowed).await?;
    results.check_writable().await?;
    begin(&spec.record, results).await?;
    let markers = Markers::list(results).await?;
    let known = markers.of(&dataset.entries);
    let all = dataset.entries.len();
    let entries = spread(dataset.entries, spec.record.limit);
    let of = if entries.len() < all { format!(" of {all}") } else { String::new() };
    let mut notes = dataset.notes;
    notes.insert(0, format!("read {}{of} images from {}", entries.len(), dataset.source));

    let planned = markers.of(&entries);
    let mut seeds = read_seeds(&spec.record, results).await?;
    let (ours, unknown): (Vec<String>, Vec<String>) = markers.failures.into_iter().partition(|place| known.contains(place));
    let key = |place: &String| keys::marker_at(place, Marker::Failure);
    let failures: Vec<(Failure, ObjectEntry)> = read_each(results, ours.iter().map(key).collect()).try_collect().await?;
    let mut redriven = Vec::new();
    if let Some(redrive) = redrive
        && let Some(seed) = redrive.seed()
    {
        let of_planned = markers.results.iter().filter(|place| planned.contains(*place));
        let wanted = |r: &ResultRecord| redrive.wants_result(r) && r.seed != image_seed(seed, &r.image);
        let mut images = images_where(of_planned, wanted, results).await?;
        let failed = failures.iter().filter(|(f, _)| redrive.wants_failure(f) && planned.contains(&keys::place(&f.image)));
        images.extend(failed.map(|(failure, _)| failure.image.clone()));
        images.sort();
        if !images.is_empty() {
            seeds.redriven.extend(images.iter().map(|image| (image.clone(), seed)));
            redriven.push(RedriveRecord { format: 1, wheres: redrive.wheres(), seed, images, generation: 0 });
        }
    }
    let stale = stale(&seeds, &known, &markers.results, results).await?;
    let (mut again, mut stay): (Vec<String>, Vec<Failure>) = (unknown.iter().map(key).collect(), Vec::new());
    let mut settled: HashMap<String, Marker> = markers.results.into_iter().map(|place| (place, Marker::Result)).collect();
    settled.retain(|place, _| !stale.contains(place));
    let jobs = redriven_jobs(spec, &entries, &seeds);
    // Images that keep their seed, by that seed.
    let mut retried: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for (place, (failure, object)) in ours.into_iter().zip(failures) {
        let of_another_seed = jobs.get(&failure.image).is_some_and(|job| failure.job.as_ref().is_some_and(|j| j != job));
        // What remains of a redrive that was broken off, or was written late.
        let out_of_date = of_another_seed || failure.generation < seeds.generation(&failure.image);
        let wanted = redrive.is_some_and(|r| r.wants_failure(&failure));
        let unavailable = failure.reason == FailureReason::Unavailable && retry_unavailable;
        if unavailable || out_of_date || wanted {
            let reseeded = wanted && redrive.is_some_and(|r| r.seed().is_some());
            if !out_of_date && !reseeded && planned.contains(&place) {
                retried.entry(seeds.run_seed(&failure.image)).or_default().push(failure.image);
            }
            again.push(object.key);
        } else {
            if planned.contains(&place) {
                stay.push(failure);
            }
            settled.insert(place, Marker::Failure);
        }
    }
    let wheres = redrive.map_or_else(|| vec!["reason=unavailable".to_owned()], Redrive::wheres);
    let retries = retried.into_iter().map(|(seed, mut images)| {
        images.sort();
        RedriveRecord { format: 1, wheres: wheres.clone(), seed, images, generation: 0 }
    });
    redriven.extend(retries);
    Ok(Seen { entries, seeds, settled, redriven, stale, again, failures: stay, notes })
}

impl Seen {
    /// Images that have neither a result nor a failure that stays.
    pub fn left(&self) -> usize {
        self.entries.iter().filter(|entry| !self.settled.contains_key(&keys::place(entry.image()))).count()
    }

    /// Plans the run: deletes outcomes that are to be projected again, and writes failures for images that cannot be projected. Also
    /// returns notes for people.
    pub async fn plan(mut self, spec: &RunSpec, results: &Store) -> Result<(Plan, Vec<String>), Error> {
        if self.left() > 0 {
            // The manifest says that the tables are complete.
            results.delete(keys::MANIFEST).await?;
        }
        // Before anything is deleted: a process that continues knows what to do.
        for record in std::mem::take(&mut self.redriven) {
            let record = record_redrive(record, results).await?;
            self.seeds.redrive(record);
        }
        if !self.stale.is_empty() {
            // No snapshot outlives a result that it counts, and no failure outlives the result that hid it.
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
        self.notes.extend(without_turn(&plan.images, &spec.record.params));
        Ok((plan, self.notes))
    }
}

/// Images of the results at `places` whose records are `wanted`.
async fn images_where<'a>(
    places: impl Iterator<Item = &'a String>,
    wanted: impl Fn(&ResultRecord) -> bool,
    results: &Store,
) -> Result<Vec<String>, Error> {
    let keys = places.map(|place| keys::marker_at(place, Marker::Result)).collect();
    let records = read_each::<ResultRecord>(results, keys);
    let images = records.try_filter_map(|(record, _)| ready(Ok(wanted(&record).then_some(record.image))));
    Ok(images.try_collect().await?)
}

/// Writes the record under the next number, which is the generation of its images. Returns it with that.
async fn record_redrive(mut record: RedriveRecord, results: &Store) -> Result<RedriveRecord, Error> {
    record.generation = redrives(results).await?.last_key_value().map_or(1, |(last, _)| last + 1);
    loop {
        let bytes = serde_json::to_vec_pretty(&record).expect("a record serialises");
        if results.put_new(&keys::redrive(record.generation), bytes).await? == PutNew::Created {
            return Ok(record);
        }
        record.generation += 1;
    }
}

/// Places of results whose seed is not their image's: they no longer count, and their objects are swept at the end of the run.
async fn stale(seeds: &Seeds, known: &HashSet<String>, places: &[String], results: &Store) -> Result<HashSet<String>, Error> {
    let redriven: HashSet<String> = seeds.redriven.keys().map(|image| keys::place(image)).collect();
    let ours = places.iter().filter(|place| redriven.contains(*place) && known.contains(*place));
    let images = images_where(ours, |record| record.seed != seeds.of(&record.image), results).await?;
    Ok(images.iter().map(|image| keys::place(image)).collect())
}

/// The jobs of redriven images. A failure of another job has an earlier seed.
fn redriven_jobs(spec: &RunSpec, entries: &[Entry], seeds: &Seeds) -> HashMap<String, JobId> {
    if seeds.redriven.is_empty() {
        return HashMap::new();
    }
    let redriven = entries.iter().filter(|entry| seeds.redriven.contains_key(entry.image()));
    let planned = plan(redriven.cloned().collect(), spec, &HashMap::new(), seeds).images;
    planned.into_iter().map(|planned| (planned.image.to_string(), spec.job(&planned).id())).collect()
}
