//! Errors by class of a run's results. Pure: each result counts once, whether its event, its record or a snapshot tells it first,
//! and however often.

use std::collections::{BTreeMap, HashSet};

use proto::{ClassSums, ResultRecord, Snapshot};

use crate::summary::Metric;

/// Errors of a result: of its best seed. NaN where there is no number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Errors {
    /// Training loss.
    pub loss: f64,
    /// L1 inside the box after inversion.
    pub l1: f64,
    /// LPIPS of the same.
    pub lpips: f64,
}

impl Errors {
    /// Of a record.
    pub fn of(record: &ResultRecord) -> Errors {
        let number = |metric: Metric| metric.best_seed(record).unwrap_or(f64::NAN);
        Errors { loss: number(Metric::Loss), l1: number(Metric::L1), lpips: number(Metric::Lpips) }
    }

    /// Whether every number is there. An event of which one is not may come from somebody who only found the result.
    pub fn are_known(&self) -> bool {
        [self.loss, self.l1, self.lpips].iter().all(|v| v.is_finite())
    }
}

/// Sums over the results of a run, and which results those are. A job is remembered by the first eight bytes of its id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    counted: HashSet<u64>,
    classes: BTreeMap<u32, ClassSums>,
    /// Results whose errors nobody told: the image of each job.
    unread: BTreeMap<u64, String>,
}

impl Tally {
    /// Goes on from a snapshot. `results`: job and image of every result that there is. A snapshot that counts any other is worth
    /// nothing: what it has too much cannot be taken out of its sums.
    pub fn resume(snapshot: Option<Snapshot>, results: impl IntoIterator<Item = (String, String)>) -> Tally {
        let mut unread: BTreeMap<u64, String> = results.into_iter().map(|(job, image)| (short(&job), image)).collect();
        let whole = |s: &Snapshot| s.jobs.iter().all(|job| unread.contains_key(job));
        let Snapshot { jobs, classes } = snapshot.filter(whole).unwrap_or_default();
        jobs.iter().for_each(|job| drop(unread.remove(job)));
        Tally { counted: jobs.into_iter().collect(), classes, unread }
    }

    /// A job has a result with these errors.
    pub fn count(&mut self, job: &str, class: u32, errors: Errors) {
        self.add(short(job), class, errors);
    }

    /// A job has a result, and its errors are to be read.
    pub fn want(&mut self, job: &str, image: &str) {
        if !self.counted.contains(&short(job)) {
            self.unread.insert(short(job), image.to_owned());
        }
    }

    /// Whether the errors of a job's result are to be read.
    pub fn wants(&self, job: &str) -> bool {
        self.unread.contains_key(&short(job))
    }

    /// Up to `n` jobs whose results are to be read, with their images.
    pub fn unread(&self, n: usize) -> Vec<(u64, String)> {
        self.unread.iter().take(n).map(|(job, image)| (*job, image.clone())).collect()
    }

    /// What was read of a job that [`Tally::unread`] named; `None`: there is nothing to be read.
    pub fn read(&mut self, job: u64, found: Option<(u32, Errors)>) {
        if self.unread.remove(&job).is_some()
            && let Some((class, errors)) = found
        {
            self.add(job, class, errors);
        }
    }

    fn add(&mut self, job: u64, class: u32, errors: Errors) {
        self.unread.remove(&job);
        if self.counted.insert(job) {
            let sums = self.classes.entry(class).or_default();
            sums.images += 1;
            sums.loss.add(errors.loss);
            sums.l1.add(errors.l1);
            sums.lpips.add(errors.lpips);
        }
    }

    /// What a later start can go on from.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { jobs: self.counted.iter().copied().collect(), classes: self.classes.clone() }
    }

    /// By index of the class.
    pub fn classes(&self) -> &BTreeMap<u32, ClassSums> {
        &self.classes
    }

    /// Results that count.
    pub fn counted(&self) -> usize {
        self.counted.len()
    }

    /// Results that are to be read.
    pub fn left(&self) -> usize {
        self.unread.len()
    }
}

/// The first eight bytes of a job's id. Strangers' ids may be anything; they are of no job that is asked about.
fn short(job: &str) -> u64 {
    job.get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or_default()
}
