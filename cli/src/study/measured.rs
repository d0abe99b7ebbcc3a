//! The numbers of a row: those of every seed of every image, and their means. Pure.

use std::collections::BTreeMap;

use proto::ResultRecord;
use results::bootstrap::{Interval, interval};
use results::run::Records;
use results::summary::Spread;
use serde::Serialize;

/// The metrics that every result has, in the order of the tables. Those of the judges follow.
pub const METRICS: [&str; 3] = ["L1", "L2", "LPIPS"];

#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowScores {
    pub images: BTreeMap<String, Scores>,
    /// Images with a failure, or that a judge could not measure.
    pub failed: usize,
    /// Images whose object has no box: the whole image counts as the object.
    pub whole: usize,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    pub class: String,
    pub attempt: String,
    /// For each seed each metric.
    pub seeds: Vec<Vec<f64>>,
    /// The seed with the smallest training loss.
    pub answer: usize,
    pub lane_steps: u64,
    pub seconds: f64,
}

/// How the seeds of an image become one number. The paper leaves open what its "best of 18 seeds" is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Take {
    Average,
    /// Minimum over the seeds, for each metric its own.
    Best,
    /// The seed with the smallest training loss.
    Answer,
}

impl Take {
    pub const ALL: [Take; 3] = [Take::Average, Take::Best, Take::Answer];
}

impl Scores {
    /// `judged`: for each judge its distance for each seed.
    pub fn of(record: &ResultRecord, judged: &[Vec<f64>]) -> Scores {
        let seed = |(i, seed): (usize, &proto::SeedResult)| {
            [seed.l1, seed.l2, seed.lpips].into_iter().chain(judged.iter().map(|by| by[i])).collect()
        };
        Scores {
            class: record.class_name.clone(),
            attempt: record.attempt.clone(),
            seeds: record.seeds.iter().enumerate().map(seed).collect(),
            answer: record.best,
            lane_steps: record.lane_steps,
            seconds: record.seconds,
        }
    }

    /// Seeds without a finite number; averages leave them out.
    fn diverged(&self) -> usize {
        self.seeds.iter().filter(|seed| !seed.iter().all(|value| value.is_finite())).count()
    }

    /// One number of a metric, without the seeds that diverged.
    fn take(&self, take: Take, metric: usize) -> f64 {
        let values: Vec<f64> = self.seeds.iter().map(|seed| seed[metric]).filter(|value| value.is_finite()).collect();
        match take {
            Take::Average => mean(&values),
            Take::Best => values.into_iter().fold(f64::INFINITY, f64::min),
            Take::Answer => self.seeds[self.answer][metric],
        }
    }
}

impl RowScores {
    /// `judged`: for each result the judges' distances, if every judge could measure it.
    pub fn new(records: &Records, judged: &[Option<Vec<Vec<f64>>>]) -> RowScores {
        let results = &records.results;
        let judged = results.iter().zip(judged).filter_map(|(record, judged)| Some((record, judged.as_ref()?)));
        let images: BTreeMap<String, Scores> =
            judged.map(|(record, judged)| (record.image.clone(), Scores::of(record, judged))).collect();
        RowScores {
            failed: records.failures.len() + results.len() - images.len(),
            whole: results.iter().filter(|record| record.target_bbox.is_none() && !record.mask).count(),
            images,
        }
    }

    /// Mean cost of `images`, which the row must have.
    pub fn cost(&self, images: &[String], of: fn(&Scores) -> f64) -> f64 {
        mean(&images.iter().map(|image| of(&self.images[image])).collect::<Vec<_>>())
    }

    /// Seeds of `images` without a finite number.
    pub fn diverged(&self, images: &[String]) -> usize {
        images.iter().map(|image| self.images[image].diverged()).sum()
    }

    /// One number for each of `images`, which the row must have.
    pub fn values(&self, images: &[String], take: Take, metric: usize) -> Vec<f64> {
        images.iter().map(|image| self.images[image].take(take, metric)).collect()
    }
}

/// A class with the errors of its images.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ByClass {
    pub class: String,
    pub images: usize,
    /// By metric, for the seeds with the smallest training loss.
    pub errors: Vec<Spread>,
}

/// The classes of a row by the names that `named` gives them, sorted by the metric `first`, the largest error first.
pub fn by_class<'a>(
    row: &'a RowScores,
    named: impl Fn(&'a str) -> Option<&'a str>,
    metrics: usize,
    first: usize,
) -> Vec<ByClass> {
    let mut classes: BTreeMap<&str, Vec<&Scores>> = BTreeMap::new();
    for scores in row.images.values() {
        if let Some(class) = named(&scores.class) {
            classes.entry(class).or_default().push(scores);
        }
    }
    let errors = |scores: &[&Scores], metric| Spread::over(scores.iter().map(|s| s.take(Take::Answer, metric)));
    let class = |(class, scores): (&str, Vec<&Scores>)| ByClass {
        class: class.to_owned(),
        images: scores.len(),
        errors: (0..metrics).map(|metric| errors(&scores, metric)).collect(),
    };
    let mut classes: Vec<ByClass> = classes.into_iter().map(class).collect();
    let mean = |class: &ByClass| class.errors[first].mean.unwrap_or(f64::INFINITY);
    // Classes with equal errors stay in the order of their names.
    classes.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
    classes
}

/// Images with a result in every row.
pub fn common(rows: &[&RowScores]) -> Vec<String> {
    let Some((first, others)) = rows.split_first() else { return vec![] };
    first.images.keys().filter(|image| others.iter().all(|row| row.images.contains_key(*image))).cloned().collect()
}

/// The numbers of a row minus those of another, image by image.
pub fn difference(row: &RowScores, other: &RowScores, images: &[String], take: Take, metric: usize) -> Option<Interval> {
    let (a, b) = (row.values(images, take, metric), other.values(images, take, metric));
    interval(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>())
}

/// NaN without values.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(images: &[(&str, [[f64; 2]; 2])]) -> RowScores {
        let scores = |seeds: &[[f64; 2]; 2]| {
            let seeds = seeds.iter().map(|s| s.to_vec()).collect();
            Scores { seeds, answer: 1, ..Scores::default() }
        };
        RowScores {
            images: images.iter().map(|(name, seeds)| ((*name).to_owned(), scores(seeds))).collect(),
            ..RowScores::default()
        }
    }

    #[test]
    fn seeds_become_one_number_in_three_ways() {
        let row = row(&[("a", [[1.0, 8.0], [3.0, 4.0]]), ("b", [[f64::NAN, 6.0], [5.0, 2.0]])]);
        let images = common(&[&row]);
        assert_eq!(row.values(&images, Take::Average, 0), [2.0, 5.0]);
        assert_eq!(row.values(&images, Take::Best, 0), [1.0, 5.0]);
        assert_eq!(row.values(&images, Take::Answer, 0), [3.0, 5.0]);
        assert_eq!(row.values(&images, Take::Best, 1), [4.0, 2.0]);
        assert_eq!(row.diverged(&images), 1);
    }

    #[test]
    fn classes_are_sorted_by_their_error() {
        let mut row = row(&[("a", [[0.0, 0.0], [1.0, 5.0]]), ("b", [[0.0, 0.0], [3.0, 5.0]]), ("c", [[0.0, 0.0], [4.0, 6.0]])]);
        for (image, class) in [("a", "Bag"), ("b", "Bag"), ("c", "Coat")] {
            row.images.get_mut(image).expect("there").class = class.into();
        }
        let found = by_class(&row, Some, 2, 0);
        let numbers: Vec<(&str, usize, Option<f64>)> = found.iter().map(|c| (&*c.class, c.images, c.errors[0].mean)).collect();
        assert_eq!(numbers, [("Coat", 1, Some(4.0)), ("Bag", 2, Some(2.0))]);
        // Deviation sqrt(2) of two images.
        assert_eq!([found[0].errors[0].standard_error, found[1].errors[0].standard_error], [None, Some(1.0)]);
        let found = by_class(&row, |class| (class == "Bag").then_some("Accessories"), 2, 0);
        assert_eq!(found.iter().map(|c| (&*c.class, c.images)).collect::<Vec<_>>(), [("Accessories", 2)]);
    }

    #[test]
    fn rows_are_compared_image_by_image_where_both_have_a_result() {
        let a = row(&[("a", [[2.0, 0.0]; 2]), ("b", [[5.0, 0.0]; 2]), ("c", [[9.0, 0.0]; 2])]);
        let b = row(&[("b", [[6.0, 0.0]; 2]), ("a", [[3.0, 0.0]; 2])]);
        let images = common(&[&a, &b]);
        assert_eq!(images, ["a", "b"]);
        let found = difference(&a, &b, &images, Take::Best, 0);
        assert_eq!(found, Some(Interval { mean: -1.0, low: -1.0, high: -1.0 }));
        assert_eq!(difference(&a, &b, &[], Take::Best, 0), None);
    }
}
