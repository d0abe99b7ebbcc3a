//! The numbers of a run: `summary.json`. Pure.
//!
//! The paper's tables say "average of 18 seeds" and "best of 18 seeds" and leave open whether the best is one seed or
//! one seed per metric, so a [`MetricSummary`] has all three. Only finite numbers count; a value without any is `null`.

use std::collections::BTreeMap;

use proto::{Failure, FailureReason, ModelRef, Params, ResultRecord, RunRecord, SeedResult};
use serde::{Deserialize, Serialize};

/// `run` in `summary.json`: the part of a [`RunRecord`] that describes the run to people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunDescription {
    pub name: String,
    /// URL of the data set, without credentials.
    pub dataset: String,
    pub model: ModelRef,
    pub params: Params,
    pub seed: u64,
    pub version: String,
}

impl From<&RunRecord> for RunDescription {
    fn from(run: &RunRecord) -> RunDescription {
        RunDescription {
            name: run.name.clone(),
            dataset: run.dataset.clone(),
            model: ModelRef { name: run.model.clone(), digest: run.model_digest.clone(), resolution: run.resolution },
            params: run.params.clone(),
            seed: run.seed,
            version: run.version.clone(),
        }
    }
}

/// Super-class of each class, by name; empty where the model has none.
pub type SuperClasses = BTreeMap<String, String>;

/// `summary.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Version of the file's format: 1.
    pub format: u32,
    pub run: RunDescription,
    pub images: Counts,
    /// Failures by reason; reasons that did not occur are absent.
    pub failures: BTreeMap<FailureReason, u64>,
    /// Over all images that succeeded.
    pub overall: BTreeMap<SeedMetric, MetricSummary>,
    /// Over the images of each class, by index of the class (Figure 9).
    pub classes: Vec<ClassSummary>,
    /// Over the images of each super-class, by name; empty where the model has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub super_classes: Vec<SuperClassSummary>,
    /// Forward and backward passes of one lane, over all images.
    pub lane_steps: u64,
    /// Seconds of device work: the sum of `ResultRecord::seconds`.
    pub seconds: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// All images of the run; `null` if that is not known.
    pub planned: Option<u64>,
    /// Images with a result or a failure.
    pub total: u64,
    pub succeeded: u64,
    pub failed: u64,
}

/// One metric of many images, three ways to make one number of an image's seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricSummary {
    /// The seed with the smallest training loss, which is the result.
    pub best_seed: Spread,
    /// Mean over the seeds ("average of 18").
    pub seeds_mean: Spread,
    /// Minimum over the seeds, for each metric its own ("best of 18").
    pub seeds_min: Spread,
}

/// One number per image, over images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// `null` without images.
    pub mean: Option<f64>,
    /// Standard error of the mean: sample deviation / sqrt(n). `null` with fewer than two images.
    pub standard_error: Option<f64>,
    /// `null` without images.
    pub median: Option<f64>,
}

/// The images of one class that succeeded, each with the numbers of its best seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassSummary {
    pub class: u32,
    pub name: String,
    pub images: u64,
    pub error: BTreeMap<SeedMetric, Spread>,
}

/// The images of one super-class that succeeded, each with the numbers of its best seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SuperClassSummary {
    pub name: String,
    /// Names of its classes, with and without images.
    pub classes: Vec<String>,
    pub images: u64,
    pub error: BTreeMap<SeedMetric, Spread>,
}

/// A number that is measured for each seed; the field of [`SeedResult`] with the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeedMetric {
    Loss,
    InvertedLoss,
    L1,
    L2,
    Lpips,
}

impl SeedMetric {
    /// All metrics, in the order of the outputs.
    pub const ALL: [SeedMetric; 5] =
        [SeedMetric::Loss, SeedMetric::InvertedLoss, SeedMetric::L1, SeedMetric::L2, SeedMetric::Lpips];

    /// The name in JSON and in columns, the name for people, and the field.
    fn facts(self) -> (&'static str, &'static str, fn(&SeedResult) -> f64) {
        match self {
            SeedMetric::Loss => ("loss", "Loss", |seed| seed.loss),
            SeedMetric::InvertedLoss => ("inverted_loss", "Inverted loss", |seed| seed.inverted_loss),
            SeedMetric::L1 => ("l1", "L1", |seed| seed.l1),
            SeedMetric::L2 => ("l2", "L2", |seed| seed.l2),
            SeedMetric::Lpips => ("lpips", "LPIPS", |seed| seed.lpips),
        }
    }

    /// The name used in JSON and in columns.
    pub fn as_str(self) -> &'static str {
        self.facts().0
    }

    pub fn label(self) -> &'static str {
        self.facts().1
    }

    /// The number of a seed, if it is finite.
    fn of(self, seed: &SeedResult) -> Option<f64> {
        Some((self.facts().2)(seed)).filter(|value| value.is_finite())
    }

    pub fn best_seed(self, record: &ResultRecord) -> Option<f64> {
        record.seeds.get(record.best).and_then(|s| self.of(s))
    }

    pub fn seeds_mean(self, record: &ResultRecord) -> Option<f64> {
        mean(&record.seeds.iter().filter_map(|s| self.of(s)).collect::<Vec<_>>())
    }

    pub fn seeds_min(self, record: &ResultRecord) -> Option<f64> {
        record.seeds.iter().filter_map(|s| self.of(s)).min_by(f64::total_cmp)
    }
}

impl Counts {
    /// Images that are not finished; 0 if their number is not known.
    pub fn left(&self) -> u64 {
        self.planned.map_or(0, |planned| planned.saturating_sub(self.total))
    }
}

impl Spread {
    /// Over `values`, one per image.
    pub fn over(values: impl IntoIterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.into_iter().filter(|v| v.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let n = values.len();
        let mean = mean(&values);
        let standard_error = mean.filter(|_| n > 1).map(|mean| {
            let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
            (squares / (n - 1) as f64 / n as f64).sqrt()
        });
        let median = (n > 0).then(|| (values[(n - 1) / 2] + values[n / 2]) / 2.0);
        Spread { mean, standard_error, median }
    }
}

/// What a summary needs of each image, collected image by image; 136 bytes each.
#[derive(Debug, Default)]
pub struct Numbers {
    results: Vec<Row>,
    /// Number of each class in [`Row::class`], by its index and name.
    classes: BTreeMap<(u32, String), u32>,
    failures: BTreeMap<FailureReason, u64>,
    lane_steps: u64,
}

/// The numbers of a result; not a number where it has none.
#[derive(Clone, Copy, Debug)]
struct Row {
    class: u32,
    seconds: f64,
    best_seed: [f64; 5],
    seeds_mean: [f64; 5],
    seeds_min: [f64; 5],
}

impl Numbers {
    /// With room for this many results.
    pub fn with_capacity(results: usize) -> Numbers {
        Numbers { results: Vec::with_capacity(results), ..Numbers::default() }
    }

    pub fn result(&mut self, record: &ResultRecord) {
        let next = self.classes.len() as u32;
        let class = *self.classes.entry((record.class, record.class_name.clone())).or_insert(next);
        let all = |of: fn(SeedMetric, &ResultRecord) -> Option<f64>| SeedMetric::ALL.map(|m| of(m, record).unwrap_or(f64::NAN));
        let (best_seed, seeds_mean) = (all(SeedMetric::best_seed), all(SeedMetric::seeds_mean));
        let seeds_min = all(SeedMetric::seeds_min);
        self.results.push(Row { class, seconds: record.seconds, best_seed, seeds_mean, seeds_min });
        self.lane_steps += record.lane_steps;
    }

    pub fn failure(&mut self, failure: &Failure) {
        *self.failures.entry(failure.reason).or_insert(0) += 1;
    }

    /// Each metric over the best seeds of these results.
    fn spreads(&self, rows: &[u32]) -> BTreeMap<SeedMetric, Spread> {
        let values = |i: usize| rows.iter().map(move |row| self.results[*row as usize].best_seed[i]);
        SeedMetric::ALL.into_iter().enumerate().map(|(i, metric)| (metric, Spread::over(values(i)))).collect()
    }

    fn overall(&self) -> BTreeMap<SeedMetric, MetricSummary> {
        let over = |of: fn(&Row) -> &[f64; 5], i: usize| Spread::over(self.results.iter().map(move |row| of(row)[i]));
        let metric = |(i, metric)| {
            let (best_seed, seeds_mean) = (over(|row| &row.best_seed, i), over(|row| &row.seeds_mean, i));
            (metric, MetricSummary { best_seed, seeds_mean, seeds_min: over(|row| &row.seeds_min, i) })
        };
        SeedMetric::ALL.into_iter().enumerate().map(metric).collect()
    }

    /// The results of each class, by its number.
    fn by_class(&self) -> Vec<Vec<u32>> {
        let mut rows = vec![Vec::new(); self.classes.len()];
        for (i, row) in (0..).zip(&self.results) {
            rows[row.class as usize].push(i);
        }
        rows
    }

    fn super_classes(&self, super_class_of: &SuperClasses, by_class: &[Vec<u32>]) -> Vec<SuperClassSummary> {
        let mut super_classes: BTreeMap<&str, (Vec<String>, Vec<u32>)> = BTreeMap::new();
        for (class, super_class) in super_class_of {
            super_classes.entry(super_class).or_default().0.push(class.clone());
        }
        for ((_, name), number) in &self.classes {
            if let Some((_, rows)) = super_class_of.get(name).and_then(|name| super_classes.get_mut(name.as_str())) {
                rows.extend(&by_class[*number as usize]);
            }
        }
        let summary = |(name, (classes, rows)): (&str, (Vec<String>, Vec<u32>))| {
            let (name, images, error) = (name.to_owned(), rows.len() as u64, self.spreads(&rows));
            SuperClassSummary { name, classes, images, error }
        };
        super_classes.into_iter().map(summary).collect()
    }
}

impl Summary {
    /// Over all finished images; their order changes nothing. `planned`: all images of the run, where that is known.
    pub fn new(run: &RunRecord, planned: Option<usize>, super_classes: &SuperClasses, numbers: &Numbers) -> Summary {
        let (succeeded, failed) = (numbers.results.len() as u64, numbers.failures.values().sum::<u64>());
        let by_class = numbers.by_class();
        let class = |((class, name), number): (&(u32, String), &u32)| {
            let rows = &by_class[*number as usize];
            ClassSummary { class: *class, name: name.clone(), images: rows.len() as u64, error: numbers.spreads(rows) }
        };
        Summary {
            format: 1,
            run: run.into(),
            images: Counts { planned: planned.map(|n| n as u64), total: succeeded + failed, succeeded, failed },
            failures: numbers.failures.clone(),
            overall: numbers.overall(),
            classes: numbers.classes.iter().map(class).collect(),
            super_classes: numbers.super_classes(super_classes, &by_class),
            lane_steps: numbers.lane_steps,
            seconds: sorted_sum(numbers.results.iter().map(|row| row.seconds)),
        }
    }

    /// Super-class of each class, by name.
    pub fn super_class_of(&self) -> SuperClasses {
        let of = |s: &SuperClassSummary| s.classes.iter().map(|class| (class.clone(), s.name.clone())).collect::<Vec<_>>();
        self.super_classes.iter().flat_map(of).collect()
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    mean.is_finite().then_some(mean)
}

/// Floating-point sums depend on the order; a summary must not. The sum of no values is 0, where `Iterator::sum` gives -0.
fn sorted_sum(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.filter(|v| v.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    values.iter().fold(0.0, |sum, value| sum + value)
}

#[cfg(test)]
pub(crate) mod tests {
    pub use proto::sample::failure;
    use proto::{Job, sample};

    use super::*;
    use crate::format;

    pub fn seed(loss: f64, l1: f64, lpips: f64) -> SeedResult {
        SeedResult { loss, inverted_loss: 2.0 * loss, l1, l2: l1 / 2.0, lpips, class: None, transform: None }
    }

    pub fn record(image: &str, class: u32, class_name: &str, best: usize, seeds: Vec<SeedResult>) -> ResultRecord {
        let job = Job { image: image.into(), class, class_name: class_name.into(), ..sample::job() };
        ResultRecord { best, ..sample::result(&job, seeds) }
    }

    pub fn run(name: &str) -> RunRecord {
        RunRecord::new(name, "file:///samples".into(), sample::model(), Params::fast())
    }

    fn summarise(planned: Option<usize>, results: &[ResultRecord], failures: &[Failure]) -> Summary {
        Summary::new(&run("demo"), planned, &SuperClasses::new(), &numbers(results, failures))
    }

    pub fn numbers(results: &[ResultRecord], failures: &[Failure]) -> Numbers {
        let mut numbers = Numbers::with_capacity(results.len());
        results.iter().for_each(|record| numbers.result(record));
        failures.iter().for_each(|failure| numbers.failure(failure));
        numbers
    }

    fn spread(mean: f64, standard_error: f64, median: f64) -> Spread {
        Spread { mean: Some(mean), standard_error: Some(standard_error), median: Some(median) }
    }

    #[test]
    fn the_best_seed_the_mean_and_the_minimum_over_seeds_are_three_numbers() {
        let results = [
            record("a", 0, "bag", 0, vec![seed(1.0, 0.5, 0.25), seed(2.0, 0.25, 0.75)]),
            record("b", 0, "bag", 1, vec![seed(5.0, 1.0, 1.5), seed(3.0, 1.5, 1.25)]),
        ];
        let summary = summarise(None, &results, &[]);
        // Two values x, y: mean (x + y) / 2, standard error |x - y| / 2.
        assert_eq!(summary.overall[&SeedMetric::L1].best_seed, spread(1.0, 0.5, 1.0));
        assert_eq!(summary.overall[&SeedMetric::L1].seeds_mean, spread(0.8125, 0.4375, 0.8125));
        assert_eq!(summary.overall[&SeedMetric::L1].seeds_min, spread(0.625, 0.375, 0.625));
        assert_eq!(summary.overall[&SeedMetric::L2].best_seed, spread(0.5, 0.25, 0.5));
        assert_eq!(summary.overall[&SeedMetric::Loss].best_seed, summary.overall[&SeedMetric::Loss].seeds_min);
        assert_eq!(summary.overall[&SeedMetric::InvertedLoss].best_seed, spread(4.0, 2.0, 4.0));
        assert_eq!((summary.lane_steps, summary.seconds), (200, 3.0));
    }

    #[test]
    fn classes_are_apart_and_one_image_has_no_standard_error() {
        let results = [
            record("c", 3, "shirt", 0, vec![seed(1.0, 1.0, 0.5)]),
            record("a", 1, "bag", 0, vec![seed(1.0, 1.0, 0.25)]),
            record("d", 3, "shirt", 0, vec![seed(1.0, 1.0, 0.75)]),
            record("e", 3, "shirt", 0, vec![seed(1.0, 1.0, 1.75)]),
        ];
        let summary = summarise(None, &results, &[]);
        let [bag, shirt] = &summary.classes[..] else { panic!("two classes") };
        assert_eq!((bag.class, bag.name.as_str(), bag.images), (1, "bag", 1));
        assert_eq!(bag.error[&SeedMetric::Lpips], Spread { mean: Some(0.25), standard_error: None, median: Some(0.25) });
        // 0.5, 0.75, 1.75: mean 1, squares 0.25 + 0.0625 + 0.5625 = 0.875, variance 0.4375.
        let expected = spread(1.0, (0.4375f64 / 3.0).sqrt(), 0.75);
        assert_eq!((shirt.images, shirt.error[&SeedMetric::Lpips]), (3, expected));
    }

    #[test]
    fn failures_are_counted_by_reason() {
        let failures = [
            failure("x", FailureReason::BadImage, "empty"),
            failure("y", FailureReason::BadImage, "truncated"),
            failure("z", FailureReason::UnknownClass, "sock"),
        ];
        let summary = summarise(None, &[record("a", 0, "bag", 0, vec![seed(1.0, 1.0, 1.0)])], &failures);
        assert_eq!(summary.images, Counts { planned: None, total: 4, succeeded: 1, failed: 3 });
        let json: serde_json::Value = serde_json::from_slice(&format::json(&summary)).expect("JSON");
        assert_eq!(json["failures"], serde_json::json!({ "bad_image": 2, "unknown_class": 1 }));
    }

    #[test]
    fn what_is_left_is_known_if_the_number_of_images_is() {
        let results = [record("a", 0, "bag", 0, vec![seed(1.0, 1.0, 1.0)])];
        let left = |planned| summarise(planned, &results, &[]).images.left();
        assert_eq!([None, Some(1), Some(5)].map(left), [0, 0, 4]);
    }

    #[test]
    fn what_has_no_value_is_null_and_the_file_can_be_read_back() {
        let odd = record("nan", 0, "bag", 0, vec![seed(f64::NAN, f64::INFINITY, f64::NAN)]);
        let out_of_range = record("short", 0, "bag", 9, vec![]);
        for results in [vec![], vec![odd, out_of_range]] {
            let summary = summarise(None, &results, &[]);
            let json = String::from_utf8(format::json(&summary)).expect("UTF-8");
            assert!(!json.contains("NaN") && !json.contains("inf,") && !json.contains("-0"), "{json}");
            let lpips = &summary.overall[&SeedMetric::Lpips];
            assert_eq!(lpips.best_seed, Spread::default());
            assert_eq!(serde_json::from_str::<Summary>(&json).expect("our own file"), summary);
        }
    }

    #[test]
    fn the_order_of_the_results_changes_nothing() {
        let mut results: Vec<ResultRecord> = (0..20)
            .map(|i| {
                let x = f64::from(i).sin() + 2.0;
                let seeds = vec![seed(x, x / 3.0, x / 7.0)];
                ResultRecord { seconds: x / 11.0, ..record(&i.to_string(), i as u32 % 3, "c", 0, seeds) }
            })
            .collect();
        let forward = format::json(&summarise(None, &results, &[]));
        results.reverse();
        assert_eq!(format::json(&summarise(None, &results, &[])), forward);
    }
}
