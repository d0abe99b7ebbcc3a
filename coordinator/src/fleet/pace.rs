//! The speed of a run. Pure: time is an argument, in seconds.

use std::collections::{BTreeMap, VecDeque};

/// The rate is the mean over this many seconds.
const LATELY: f64 = 600.0;
/// Seconds between two marks.
const MARK: f64 = 5.0;
/// Seconds before there is a rate.
const LEAST: f64 = 10.0;

#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    settled: usize,
    /// Times, and how many images had finished before.
    marks: VecDeque<(f64, usize)>,
    /// Images whose stages are known, and the sums of their seconds.
    stages: (u64, BTreeMap<String, f64>),
}

impl Pace {
    /// A job has started: time counts from the first one.
    pub(super) fn begun(&mut self, now: f64) {
        if self.marks.is_empty() {
            self.marks.push_back((now, 0));
        }
    }

    pub(super) fn settled(&mut self, now: f64) {
        if self.marks.back().is_none_or(|(when, _)| now - when >= MARK) {
            self.marks.push_back((now, self.settled));
        }
        while self.marks.len() > 1 && self.marks[1].0 <= now - LATELY {
            self.marks.pop_front();
        }
        self.settled += 1;
    }

    /// `seconds`: of each stage of an image.
    pub(super) fn took(&mut self, seconds: &BTreeMap<String, f64>) {
        // The message may be hostile.
        if seconds.is_empty() || seconds.len() > 16 || !seconds.values().all(|s| s.is_finite()) {
            return;
        }
        self.stages.0 += 1;
        for (stage, seconds) in seconds {
            *self.stages.1.entry(stage.clone()).or_default() += seconds;
        }
    }

    pub(super) fn per_hour(&self, now: f64) -> Option<f64> {
        let from = now - LATELY;
        let since = self.marks.iter().find(|(when, _)| *when >= from).or(self.marks.back());
        let &(when, before) = since?;
        let seconds = now - when.max(from);
        let images = if when < from { 0 } else { self.settled - before };
        (seconds >= LEAST).then(|| images as f64 / seconds * 3600.0)
    }

    /// Mean seconds of each stage.
    pub(super) fn stages(&self) -> BTreeMap<String, f64> {
        let (images, sums) = &self.stages;
        sums.iter().map(|(stage, sum)| (stage.clone(), sum / *images as f64)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_of_the_last_minutes_and_falls_when_nothing_comes() {
        let mut pace = Pace::default();
        assert_eq!(pace.per_hour(100.0), None);
        // What the first images took counts.
        let mut batch = Pace::default();
        batch.begun(0.0);
        (0..4).for_each(|_| batch.settled(60.0));
        assert_eq!(batch.per_hour(60.0), Some(240.0));
        for second in 0..1000 {
            pace.settled(f64::from(second));
        }
        let rate = pace.per_hour(1000.0).expect("a rate");
        assert!((rate - 3600.0).abs() < 40.0, "{rate}");
        for second in 0..600 {
            pace.settled(1000.0 + f64::from(second) * 10.0);
        }
        let rate = pace.per_hour(7000.0).expect("a rate");
        assert!((rate - 360.0).abs() < 10.0, "{rate}");
        assert!(pace.marks.len() < 130, "{}", pace.marks.len());
        let later = pace.per_hour(7300.0).expect("a rate");
        assert!(later < 0.6 * rate, "{later}");
        assert_eq!(pace.per_hour(9000.0), Some(0.0));
    }

    #[test]
    fn stages_are_means_and_nonsense_does_not_count() {
        let mut pace = Pace::default();
        let of = |fetch: f64| BTreeMap::from([("fetch".to_owned(), fetch)]);
        [of(1.0), of(3.0), of(f64::NAN), BTreeMap::new()].iter().for_each(|stages| pace.took(stages));
        assert_eq!(pace.stages(), of(2.0));
    }
}
