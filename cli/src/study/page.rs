//! The numbers of a study, as `<study>.json` has them. Pure.

use std::collections::BTreeMap;

use proto::{LatentStart, ModelRef, SpatialTransform};
use results::bootstrap::Interval;
use results::run::spread;
use results::summary::SuperClasses;
use serde::Serialize;

use super::Which;
use super::claims::{Claim, Verdict, claims};
use super::measured::{ByClass, METRICS, RowScores, Take, by_class, common, difference, mean};
use super::rows::{PaperNumbers, StudyRow, stage_one, stage_two};

/// What numbers of a study come from.
#[derive(Clone, Debug, Serialize)]
pub struct Provenance {
    /// The command that repeats it.
    pub command: String,
    pub version: String,
    /// The data set, as the command names it.
    pub dataset: String,
    pub model: String,
    pub model_digest: String,
}

impl Provenance {
    pub fn new(dataset: String, model: &ModelRef) -> Provenance {
        let (model, model_digest) = (model.name.clone(), model.digest.clone());
        let version = env!("CARGO_PKG_VERSION").into();
        Provenance { command: super::command(std::env::args()), version, dataset, model, model_digest }
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct About {
    pub which: Which,
    #[serde(flatten)]
    pub provenance: Provenance,
    /// Generator evaluations of each seed in stage two.
    pub evaluations: u32,
    pub seeds: u32,
    pub seed: u64,
    pub judges: Vec<(String, String)>,
    pub notes: Vec<String>,
}

/// `<study>.json`.
#[derive(Clone, Debug, Serialize)]
pub struct StudyPage {
    pub format: u32,
    pub about: About,
    /// Images with a result in every row: all means are over these.
    pub images: Vec<String>,
    /// Names of the metrics, in the order of all lists of numbers. All are measured on the inverted image, inside the object.
    pub metrics: Vec<String>,
    /// In the order of the table.
    pub rows: Vec<RowNumbers>,
    /// The paper's claims about the order of the rows.
    pub orderings: Vec<CheckedClaim>,
    /// The classes of the first row, in a study of classes.
    pub classes: Vec<ByClass>,
    /// The same by the model's super-classes, if it has any: the paper's Figure 9 has ImageNet's classes by 16 kinds of thing.
    pub super_classes: Vec<ByClass>,
    /// The `images` whose pictures are shown.
    pub shown: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct RowNumbers {
    pub slug: String,
    pub name: String,
    /// Whether it has a spatial transform, a colour transform, the encoder's start.
    pub with: [bool; 3],
    /// A difference to the paper's rows.
    pub note: Option<String>,
    /// Why there are no numbers.
    pub left_out: Option<String>,
    pub seeds: u32,
    /// Generator evaluations of each seed in stage two, counted over the seeds that began.
    pub evaluations: f64,
    /// Evaluations of each candidate of stage one, and candidates of a generation.
    pub stage_one: Option<(u64, u64)>,
    /// Mean over the images, both stages.
    pub lane_steps: Option<f64>,
    /// Mean seconds of device work over the images.
    pub seconds: Option<f64>,
    /// Images that failed, or that a judge could not measure.
    pub failed: usize,
    /// Seeds that diverged; the averages leave them out.
    pub diverged: usize,
    /// Means over the images, by metric.
    pub means: BTreeMap<Take, Vec<f64>>,
    /// The row that it is compared with.
    pub against: Option<String>,
    /// Its mean minus that row's, by metric.
    pub differences: BTreeMap<Take, Vec<Option<Interval>>>,
    pub paper: PaperNumbers,
}

impl RowNumbers {
    /// The name with the transforms and the start of the row.
    pub fn label(&self) -> String {
        let names = ["spatial", "colour", "encoder"];
        let with = names.iter().zip(self.with).filter(|(_, with)| *with).map(|(name, _)| format!(" + {name}"));
        std::iter::once(self.name.clone()).chain(with).collect()
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct CheckedClaim {
    pub text: String,
    pub metric: String,
    /// The first row minus the second, best of the seeds.
    pub difference: Interval,
    pub verdict: Verdict,
}

pub type Ran = Result<RowScores, String>;

impl StudyPage {
    /// `rows` in the order of the table. Pictures of `pictures` images are shown.
    pub fn new(about: About, rows: &[(StudyRow, Ran)], pictures: usize, super_classes: &SuperClasses) -> StudyPage {
        let ran: Vec<&RowScores> = rows.iter().filter_map(|(_, ran)| ran.as_ref().ok()).collect();
        let images = common(&ran);
        let metrics: Vec<String> =
            METRICS.iter().map(|&m| m.to_owned()).chain(about.judges.iter().map(|(name, _)| name.clone())).collect();
        let of = |slug: &str| rows.iter().find(|(row, _)| row.slug == slug).and_then(|(_, ran)| ran.as_ref().ok());
        let numbers = rows.iter().map(|(row, ran)| {
            let other = row.against.and_then(of);
            row_numbers(row, ran, other, &images, metrics.len())
        });
        let ordering = |claim: Claim| {
            let (a, b) = (of(claim.rows.0)?, of(claim.rows.1)?);
            let difference = difference(a, b, &images, Take::Best, claim.metric)?;
            let second = mean(&b.values(&images, Take::Best, claim.metric));
            let (text, metric) = (claim.text.to_owned(), metrics[claim.metric].clone());
            Some(CheckedClaim { text, metric, difference, verdict: claim.order.verdict(difference, second, images.len()) })
        };
        let orderings = claims(about.which, about.judges.len()).into_iter().filter_map(ordering).collect();
        let (count, first) = (metrics.len(), class_metric(&metrics));
        let (classes, super_classes) = match (about.which, ran.first()) {
            (Which::PerClass, Some(row)) => (
                by_class(row, Some, count, first),
                by_class(row, |class| super_classes.get(class).map(String::as_str), count, first),
            ),
            _ => (vec![], vec![]),
        };
        let shown = if about.which == Which::PerClass { vec![] } else { spread(images.clone(), Some(pictures)) };
        StudyPage { format: 1, rows: numbers.collect(), orderings, images, metrics, classes, super_classes, shown, about }
    }
}

/// The metric by which classes are sorted and drawn: the first judge, as the paper takes VGG; else LPIPS.
pub fn class_metric(metrics: &[String]) -> usize {
    METRICS.len().min(metrics.len() - 1)
}

fn row_numbers(row: &StudyRow, ran: &Ran, other: Option<&RowScores>, images: &[String], metrics: usize) -> RowNumbers {
    let measured = ran.as_ref().ok();
    let by_take = |take| {
        let mean = |measured: &RowScores| (0..metrics).map(|m| mean(&measured.values(images, take, m))).collect();
        Some((take, measured.filter(|_| !images.is_empty()).map(mean)?))
    };
    let differences = |take| {
        let (measured, other) = (measured?, other?);
        Some((take, (0..metrics).map(|m| difference(measured, other, images, take, m)).collect()))
    };
    let transform = row.params.transform.as_ref();
    RowNumbers {
        slug: row.slug.into(),
        name: row.name.into(),
        with: [
            transform.is_some_and(|t| t.spatial != SpatialTransform::None),
            transform.is_some_and(|t| !t.colour.is_empty()),
            matches!(row.params.start, LatentStart::Encoder { .. }),
        ],
        note: row.note.clone(),
        left_out: ran.as_ref().err().cloned(),
        seeds: row.params.seeds,
        evaluations: stage_two(&row.params) as f64 / f64::from(row.params.seeds),
        stage_one: stage_one(&row.params),
        lane_steps: measured.map(|m| m.cost(images, |scores| scores.lane_steps as f64)),
        seconds: measured.map(|m| m.cost(images, |scores| scores.seconds)),
        failed: measured.map_or(0, |m| m.failed),
        diverged: measured.map_or(0, |m| m.diverged(images)),
        means: Take::ALL.into_iter().filter_map(by_take).collect(),
        against: row.against.filter(|_| other.is_some()).map(str::to_owned),
        differences: Take::ALL.into_iter().filter_map(differences).collect(),
        paper: row.paper,
    }
}
