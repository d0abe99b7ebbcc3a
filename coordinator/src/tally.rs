//! The finished images of a run, one by one and by class. Pure: each counts once, whether its event, its record or a snapshot comes
//! first, and however often.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use proto::{Errors, Failure, KnownResult, ResultRecord, Snapshot, job_number};

use crate::outcomes::{Failed, Outcomes, Succeeded};
use dataset::SharedStr;
use results::summary::{SeedMetric, Spread};

/// Errors of the best seed; not a number where the record has none.
pub fn errors(record: &ResultRecord) -> Errors {
    let number = |metric: SeedMetric| metric.best_seed(record).unwrap_or(f64::NAN);
    Errors { loss: number(SeedMetric::Loss), l1: number(SeedMetric::L1), lpips: number(SeedMetric::Lpips) }
}

/// Whether every number is there. An event without numbers comes from a worker that only found the result.
pub fn are_known(errors: &Errors) -> bool {
    [errors.loss, errors.l1, errors.lpips].iter().all(|v| v.is_finite())
}

/// Sums over the best seeds of the results of a class.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ClassSums {
    pub images: u64,
    pub loss: Sum,
    /// L1 inside the box after inversion.
    pub l1: Sum,
    /// LPIPS inside the box after inversion.
    pub lpips: Sum,
}

impl ClassSums {
    pub fn add(&mut self, errors: &Errors) {
        self.images += 1;
        self.loss.add(errors.loss);
        self.l1.add(errors.l1);
        self.lpips.add(errors.lpips);
    }

    pub fn join(&mut self, other: &ClassSums) {
        self.images += other.images;
        self.loss.join(other.loss);
        self.l1.join(other.l1);
        self.lpips.join(other.lpips);
    }

    /// Loss, L1 and LPIPS.
    pub fn spreads(&self) -> [Spread; 3] {
        [self.loss, self.l1, self.lpips].map(Sum::spread)
    }
}

/// A sum of finite numbers, and of their squares.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sum {
    n: u64,
    sum: f64,
    squares: f64,
}

impl Sum {
    /// Ignores what is not finite.
    pub fn add(&mut self, value: f64) {
        if value.is_finite() {
            self.n += 1;
            self.sum += value;
            self.squares += value * value;
        }
    }

    fn join(&mut self, other: Sum) {
        self.n += other.n;
        self.sum += other.sum;
        self.squares += other.squares;
    }

    /// Without the median, which sums do not tell.
    fn spread(self) -> Spread {
        let n = self.n as f64;
        let mean = (self.n > 0).then(|| self.sum / n);
        let error = |mean: f64| ((self.squares - n * mean * mean).max(0.0) / (n - 1.0) / n).sqrt();
        Spread { mean, standard_error: mean.filter(|_| self.n > 1).map(error), median: None }
    }
}

/// A job is remembered by the first eight bytes of its id.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    results: BTreeMap<u64, Succeeded>,
    failures: BTreeMap<Box<str>, Failed>,
    /// By index of the class.
    pub(crate) classes: BTreeMap<u32, ClassSums>,
    /// Results whose errors must be read: the image of each job.
    unread: BTreeMap<u64, SharedStr>,
}

impl Tally {
    /// Starts from a snapshot. `results`: job and image of every result; `failures`: every failure. A snapshot with any other result
    /// is not used: it is out of date.
    pub fn resume(
        snapshot: Option<Snapshot>,
        results: impl IntoIterator<Item = (String, SharedStr)>,
        failures: impl IntoIterator<Item = Failure>,
    ) -> Tally {
        let unread: BTreeMap<u64, SharedStr> = results.into_iter().map(|(job, image)| (job_number(&job), image)).collect();
        let mut tally = Tally { unread, ..Tally::default() };
        let whole = |s: &Snapshot| s.results.iter().all(|result| tally.unread.contains_key(&result.job));
        for KnownResult { job, class, errors } in snapshot.filter(whole).unwrap_or_default().results {
            tally.read(job, Some((class, errors)));
        }
        failures.into_iter().for_each(|failure| tally.fail(failure));
        tally
    }

    /// A job has a result with these errors.
    pub fn count(&mut self, job: &str, image: SharedStr, class: u32, errors: Errors) {
        self.unread.remove(&job_number(job));
        self.add(job_number(job), image, class, errors);
    }

    /// A job has a result, and its errors must be read.
    pub fn want(&mut self, job: &str, image: SharedStr) {
        if !self.results.contains_key(&job_number(job)) {
            self.failures.remove(&*image);
            self.unread.insert(job_number(job), image);
        }
    }

    /// Whether the errors of the job's result must be read.
    pub fn wants(&self, job: &str) -> bool {
        self.unread.contains_key(&job_number(job))
    }

    /// Up to `n` jobs whose results must be read, with their images.
    pub fn unread(&self, n: usize) -> Vec<(u64, SharedStr)> {
        self.unread.iter().take(n).map(|(job, image)| (*job, image.clone())).collect()
    }

    /// Takes in class and errors of a result of [`Tally::unread`]; `None`: it cannot be read.
    pub fn read(&mut self, job: u64, found: Option<(u32, Errors)>) {
        if let Some(image) = self.unread.remove(&job)
            && let Some((class, errors)) = found
        {
            self.add(job, image, class, errors);
        }
    }

    fn add(&mut self, job: u64, image: SharedStr, class: u32, errors: Errors) {
        self.failures.remove(&*image);
        if let Entry::Vacant(place) = self.results.entry(job) {
            place.insert(Succeeded { image, class, errors });
            self.classes.entry(class).or_default().add(&errors);
        }
    }

    pub fn fail(&mut self, failure: Failure) {
        let Failure { image, reason, message, class_name, .. } = failure;
        self.failures.insert(image.into(), Failed { reason, message: message.into(), class: class_name.map(Into::into) });
    }

    pub fn snapshot(&self) -> Snapshot {
        let known = |(job, result): (&u64, &Succeeded)| KnownResult { job: *job, class: result.class, errors: result.errors };
        Snapshot { results: self.results.iter().map(known).collect() }
    }

    pub fn outcomes(&self) -> Outcomes<'_> {
        let failures = self.failures.iter().map(|(image, failed)| (&**image, failed)).collect();
        Outcomes { results: self.results.values().collect(), failures, ..Outcomes::default() }
    }

    /// Results whose errors are known.
    pub fn counted(&self) -> usize {
        self.results.len()
    }

    /// Results whose errors must be read.
    pub fn left(&self) -> usize {
        self.unread.len()
    }
}
