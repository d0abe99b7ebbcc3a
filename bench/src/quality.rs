//! Profiles against the paper's, and each of their ingredients left out, paired over real images, by one yardstick. Cases are kept: a
//! second start resumes.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use engine::judge::network;
use engine::{Devices, LoadedModel};
use projector::lanes::Model;
use projector::{Lanes, Solution, Target};
use proto::Transform;
use results::bootstrap::{Interval, interval};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::Device;

use crate::cases::{Cases, mean, project};
use crate::page::Record;
use crate::samples::targets;
use crate::variants::{Comparison, Variant};
use crate::yardstick::{Distances, Yardstick};

const BATCH: usize = 4;
/// Images of each kind on which the profiles are timed.
const TIMED: usize = 4;

/// The kinds of images, as their file names have them.
const KINDS: [&str; 2] = ["centred", "offcentre"];

/// The answer of a search: the seed that the method itself chose.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Case {
    image: String,
    transform: Option<Transform>,
    z: Vec<f32>,
    c: Vec<f32>,
    lane_steps: u64,
}

impl Case {
    fn new(image: &str, solution: &Solution) -> Case {
        let Solution { transform, best, z, c, lane_steps, .. } = solution;
        let (transform, lane_steps) = (transform.clone(), *lane_steps);
        Case { image: image.into(), transform, z: z[*best].clone(), c: c[*best].clone(), lane_steps }
    }
}

/// Where images come from, and how many of each kind are taken.
pub struct Images<'a> {
    /// A folder with a data set for each kind; none of them was used for tuning.
    pub held_out: &'a Path,
    /// Most images of each kind.
    pub most: usize,
}

/// Folders of perceptual networks that no profile minimises.
pub struct Judges<'a> {
    pub first: &'a Path,
    pub second: Option<&'a Path>,
}

/// What is measured before the page is written.
#[derive(PartialEq)]
pub enum Measured {
    Everything,
    /// One variant, without the times.
    Only(String),
    Nothing,
}

#[derive(Serialize, Deserialize)]
pub struct Quality {
    model: String,
    judge: String,
    /// A second judge, which searches of a table of their own minimise; `None`: there was none.
    second_judge: Option<String>,
    tables: Vec<Table>,
    times: Vec<Time>,
}

/// A comparison on one kind of images.
#[derive(Serialize, Deserialize)]
struct Table {
    title: String,
    about: String,
    kind: String,
    images: usize,
    /// The first is the reference.
    rows: Vec<Row>,
}

#[derive(Serialize, Deserialize)]
struct Row {
    name: String,
    /// Mean of the images.
    lane_steps: f64,
    distances: Vec<Distances>,
}

/// Seconds for an image, all variants in turns on the same images.
#[derive(Serialize, Deserialize)]
struct Time {
    name: String,
    seconds: f64,
}

/// The generator with the second judge as the perceptual network of the loss.
struct BySecondJudge {
    lanes: Lanes,
    /// Digest of the judge.
    digest: String,
}

impl BySecondJudge {
    fn new(model: &LoadedModel, judge: &Path) -> Result<BySecondJudge> {
        let (lpips, digest) = network(judge)?;
        let model = Model { lpips, ..model.model.replicate(Device::Cpu) };
        Ok(BySecondJudge { lanes: Lanes::new(&model, &Devices::automatic().0), digest })
    }
}

/// Everything that a measurement needs.
struct Bench<'a> {
    model: &'a LoadedModel,
    lanes: Lanes,
    by_second_judge: Option<BySecondJudge>,
    yardstick: Yardstick<'a>,
    work: &'a Path,
    measured: Measured,
}

/// Runs the cases that are left of what is `measured`. Rows without all of their cases are left out.
pub fn run(model: &LoadedModel, judges: &Judges, images: &Images, work: &Path, measured: Measured) -> Result<Quality> {
    let lanes = Lanes::new(&model.model, &Devices::automatic().0);
    let by_second_judge = judges.second.map(|judge| BySecondJudge::new(model, judge)).transpose()?;
    let yardstick = Yardstick::new(model, judges.first, judges.second)?;
    let bench = Bench { model, lanes, by_second_judge, yardstick, work, measured };
    let mut tables = Vec::new();
    let can = |variant: &Variant| !variant.by_second_judge || bench.by_second_judge.is_some();
    for comparison in crate::variants::comparisons().into_iter().filter(|all| all.variants.iter().all(can)) {
        for kind in KINDS {
            let all = load(model, images, &comparison, kind)?;
            let mut rows = Vec::new();
            for variant in &comparison.variants {
                rows.extend(bench.row(variant, kind, &all)?);
            }
            let Comparison { title, about, .. } = &comparison;
            let (title, about, kind) = ((*title).into(), (*about).into(), kind.into());
            tables.push(Table { title, about, kind, images: all.len(), rows });
        }
    }
    let times = if bench.measured == Measured::Everything { bench.times(images)? } else { vec![] };
    let name = |folder: &Path| folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let (judge, second_judge) = (name(judges.first), judges.second.map(name));
    Ok(Quality { model: model.reference.name.clone(), judge, second_judge, tables, times })
}

fn load(model: &LoadedModel, images: &Images, comparison: &Comparison, kind: &str) -> Result<Vec<(String, Target)>> {
    let all = targets(model, &images.held_out.join(kind), |file| file.contains(&format!("_{kind}")))?;
    // Evenly over the classes, by which the names are sorted.
    let most = images.most.min(comparison.most).min(all.len());
    let wanted: Vec<usize> = (0..most).map(|k| k * all.len() / most).collect();
    Ok(all.into_iter().enumerate().filter(|(i, _)| wanted.contains(i)).map(|(_, image)| image).collect())
}

impl Bench<'_> {
    /// `None`: a case is missing.
    fn row(&self, variant: &Variant, kind: &str, all: &[(String, Target)]) -> Result<Option<Row>> {
        let cases = self.cases(variant, kind, all)?;
        if cases.len() < all.len() {
            return Ok(None);
        }
        let measure = |(case, (_, target)): (&Case, &(String, Target))| {
            self.yardstick.measure(target, case.transform.as_ref(), &case.z, &case.c)
        };
        let distances = cases.iter().zip(all).map(measure).collect();
        let lane_steps = mean(&cases.iter().map(|case| case.lane_steps as f64).collect::<Vec<_>>());
        Ok(Some(Row { name: variant.name.clone(), lane_steps, distances }))
    }

    /// The cases of `all` in their order; those that are not there are run first.
    fn cases(&self, variant: &Variant, kind: &str, all: &[(String, Target)]) -> Result<Vec<Case>> {
        // Other parameters have another file.
        let second = self.by_second_judge.as_ref().filter(|_| variant.by_second_judge);
        let key = variant.key() + second.map_or("", |second| &second.digest);
        let lanes = second.map_or(&self.lanes, |second| &second.lanes);
        let digest = proto::hex_sha256(key.as_bytes());
        let mut cases = Cases::<Case>::open(self.work, &format!("quality-{}", &digest[..8]), self.model)?;
        let measured = match &self.measured {
            Measured::Everything => true,
            Measured::Only(name) => *name == variant.name,
            Measured::Nothing => false,
        };
        if measured {
            let fixed = variant.transforms_of.as_deref().map(|of| self.cases(of, kind, all)).transpose()?;
            let transforms: Option<BTreeMap<&str, Transform>> = fixed.as_ref().map(|fixed| {
                let pairs = fixed.iter().filter_map(|case| Some((case.image.as_str(), case.transform.clone()?)));
                pairs.collect()
            });
            let known: Vec<&str> = cases.values().map(|case| case.image.as_str()).collect();
            let left: Vec<&(String, Target)> = all.iter().filter(|(name, _)| !known.contains(&name.as_str())).collect();
            for (done, batch) in left.chunks(BATCH).enumerate() {
                let fixed = transforms.as_ref().map(|each| {
                    let of = |(name, _): &&(String, Target)| each.get(name.as_str()).cloned().context("a transform is missing");
                    batch.iter().map(of).collect::<Result<Vec<_>>>()
                });
                let targets = batch.iter().map(|(_, target)| target.shallow_clone()).collect();
                let solutions = project(self.model, lanes, &variant.params, targets, fixed.transpose()?.as_deref())?;
                for ((name, _), solution) in batch.iter().zip(&solutions) {
                    cases.push(Case::new(name, solution))?;
                }
                eprintln!("{} ({kind}): {} of {} images", variant.name, (done * BATCH + batch.len()).min(left.len()), left.len());
            }
        }
        let found = |(name, _): &(String, Target)| cases.values().find(|case| case.image == *name).cloned();
        Ok(all.iter().filter_map(found).collect())
    }

    /// Times the profiles in turns on a few images, one batch after the other.
    fn times(&self, images: &Images) -> Result<Vec<Time>> {
        let Some(profiles) = crate::variants::comparisons().into_iter().next() else { return Ok(vec![]) };
        let few = Images { most: TIMED, ..*images };
        let each = KINDS.iter().map(|kind| load(self.model, &few, &profiles, kind)).collect::<Result<Vec<_>>>()?;
        let all: Vec<(String, Target)> = each.into_iter().flatten().collect();
        let mut seconds = vec![0.0; profiles.variants.len()];
        for batch in all.chunks(BATCH) {
            for (seconds, variant) in seconds.iter_mut().zip(&profiles.variants) {
                let begun = Instant::now();
                let targets = batch.iter().map(|(_, target)| target.shallow_clone()).collect();
                project(self.model, &self.lanes, &variant.params, targets, None)?;
                *seconds += begun.elapsed().as_secs_f64();
            }
        }
        let time = |(variant, seconds): (&Variant, f64)| Time { name: variant.name.clone(), seconds: seconds / all.len() as f64 };
        Ok(profiles.variants.iter().zip(seconds).map(time).collect())
    }
}

impl Record for Quality {
    const NAME: &'static str = "quality";
    const PAGE: &'static str = include_str!("../pages/quality.md");

    fn derived(&self) -> Value {
        let table = |table: &Table| {
            let first = table.rows.first();
            let rows: Vec<Value> = table.rows.iter().filter_map(|row| Some(row.against(first?))).collect();
            let Table { title, about, kind, images, .. } = table;
            json!({ "title": title, "about": about, "kind": kind, "images": images, "rows": rows })
        };
        json!({ "filled": self.tables.iter().map(table).collect::<Vec<_>>() })
    }
}

impl Row {
    fn against(&self, first: &Row) -> Value {
        let measures: [fn(&Distances) -> Option<f64>; 4] =
            [|d| Some(d.inverted), |d| Some(d.l1), |d| Some(d.judge), |d| d.second_judge];
        let losses = measures.iter().filter_map(|measure| {
            let of = |row: &Row| row.distances.iter().map(measure).collect::<Option<Vec<f64>>>();
            let (values, reference) = (of(self)?, of(first)?);
            Some((mean(&values), relative(&values, &reference)))
        });
        let losses: Vec<_> = losses.collect();
        let class_moved = mean(&self.distances.iter().map(|d| d.class_moved).collect::<Vec<_>>());
        let kept: Option<Vec<f64>> = self.distances.iter().map(|d| d.class_kept.map(|kept| f64::from(u8::from(kept)))).collect();
        let class_kept = kept.map(|kept| 100.0 * mean(&kept));
        let Row { name, lane_steps, .. } = self;
        json!({ "name": name, "lane_steps": lane_steps, "losses": losses, "class_moved": class_moved, "class_kept": class_kept })
    }
}

/// Mean of the differences over the mean of the reference, in percent, with its interval.
fn relative(values: &[f64], reference: &[f64]) -> Option<Interval> {
    let scale = 100.0 / mean(reference);
    interval(&values.iter().zip(reference).map(|(a, b)| scale * (a - b)).collect::<Vec<_>>())
}
