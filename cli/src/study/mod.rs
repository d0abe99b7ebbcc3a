//! `basin study`: the paper's experiments on a data set. Each row of a table is a run like any other.
//!
//! [`rows`] (pure) defines them, [`run`] (*io*) runs them, on this machine or on a [`fleet`], [`measured`], [`claims`] and [`page`]
//! (pure) make the numbers, [`markdown`] (pure) the text, and [`files`] (*io*) writes them. [`bias`] has no rows: it compares boxes.

mod bias;
mod claims;
mod files;
mod fleet;
mod markdown;
mod measured;
mod page;
mod rows;
mod run;

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;
use coordinator::plan::RunSpec;
use engine::judge::Judge;
use proto::{Params, RunRecord, keys};
use results::chart::{Bar, figure};
use results::redrive::Redrive;
use serde::Serialize;
use store::Store;

use self::bias::Bias;
use self::files::Figure;
use self::fleet::FleetArgs;
use self::markdown::markdown;
use self::page::{About, Provenance, StudyPage};
use self::rows::{Budget, StudyRow};
use self::run::{Done, Setting, object_of};
use crate::local::{ComputeOptions, Local};
use crate::project::{described, load};

#[derive(clap::Args)]
pub struct StudyArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Compare the methods, with and without transform, colour and encoder; also free batches and two proposals of ours (Table 1)
    Table1(Study),
    /// Compare starts of the class vector (Table 2)
    Table2(Study),
    /// Project images that the generator was not trained on (Table 3)
    Table3(Study),
    /// Measure the error of each class (Figure 9)
    PerClass(Study),
    /// Compare places and sizes of the objects in the data set and in generated images (Figures 3 and 4)
    Bias(Bias),
}

/// A study whose rows are runs.
#[derive(clap::Args)]
struct Study {
    /// Folder or bucket (s3://bucket/prefix) of the images.
    dataset: String,
    /// Model folder.
    #[arg(long, env = "BASIN_MODEL")]
    model: PathBuf,
    /// Folder or bucket (s3://bucket/prefix) for the runs and the tables. Studies of one data set may share it; a row that is part of
    /// two studies is run once.
    #[arg(long, env = "BASIN_OUT")]
    out: String,
    /// COCO JSON or CSV manifest with classes and boxes; `auto` looks for one, `none` uses the folders' names as classes.
    #[arg(long, default_value = "auto")]
    annotations: String,
    /// Generator evaluations of each seed in the latent search, the same for all rows (the paper: 1200).
    #[arg(long, default_value_t = 1200, value_name = "N", value_parser = clap::value_parser!(u32).range(8..=100_000))]
    evaluations: u32,
    /// Run only these rows, by the names of their folders. An unknown name prints all names.
    #[arg(long, value_name = "ROW,...", value_delimiter = ',')]
    rows: Vec<String>,
    /// Number of seeds of an image.
    #[arg(long, default_value_t = 18, value_name = "N", value_parser = clap::value_parser!(u32).range(3..=4096))]
    seeds: u32,
    /// Run seed: all random numbers follow from it.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    seed: u64,
    /// Use only this many images, evenly spread over the data set.
    #[arg(long, value_name = "N")]
    limit: Option<NonZeroUsize>,
    /// Also measure all results with this perceptual network (a folder with perceptual.json and perceptual.safetensors), as the paper
    /// does with VGG. Can be repeated. Example: --judge vgg=models/vgg
    #[arg(long = "judge", value_name = "NAME=FOLDER", value_parser = judge)]
    judges: Vec<(String, PathBuf)>,
    /// Number of images whose targets and inverted images are shown as pictures, evenly spread.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    grid: u8,
    /// Retry images that failed before in any row. With a fleet, use `basin runs retry`.
    #[arg(long, conflicts_with = "coordinator")]
    retry_failed: bool,
    #[command(flatten)]
    fleet: FleetArgs,
    #[command(flatten)]
    compute: ComputeOptions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Which {
    Table1,
    Table2,
    Table3,
    PerClass,
}

impl Which {
    /// `detects`: whether the model detects objects of its classes.
    pub fn rows(self, budget: Budget, detects: bool) -> Vec<StudyRow> {
        match self {
            Which::Table1 => rows::table1(budget),
            Which::Table2 => rows::table2(budget),
            Which::Table3 => rows::table3(budget, detects),
            Which::PerClass => rows::per_class(budget),
        }
    }

    pub fn title(self) -> &'static str {
        self.names().1
    }

    /// Name of the study's files, without extension.
    pub fn file(self) -> &'static str {
        self.names().0
    }

    fn names(self) -> (&'static str, &'static str) {
        match self {
            Which::Table1 => ("table1", "Methods (the paper's Table 1)"),
            Which::Table2 => ("table2", "Class search (the paper's Table 2)"),
            Which::Table3 => ("table3", "Out of distribution (the paper's Table 3)"),
            Which::PerClass => ("per-class", "Error by class (the paper's Figure 9)"),
        }
    }
}

pub async fn run(args: StudyArgs) -> anyhow::Result<ExitCode> {
    match args.what {
        What::Table1(study) => study.run(Which::Table1).await,
        What::Table2(study) => study.run(Which::Table2).await,
        What::Table3(study) => study.run(Which::Table3).await,
        What::PerClass(study) => study.run(Which::PerClass).await,
        What::Bias(bias) => bias.run().await,
    }
}

impl Study {
    async fn run(self, which: Which) -> anyhow::Result<ExitCode> {
        let (manifest, reference) = described(&self.model)?;
        let budget = Budget { evaluations: self.evaluations, seeds: self.seeds };
        let detects = manifest.detector.is_some() && !manifest.categories.is_empty();
        let rows = only(which.rows(budget, detects), &self.rows)?;
        let names: BTreeSet<&String> = self.judges.iter().map(|(name, _)| name).collect();
        if names.len() < self.judges.len() {
            bail!("two judges have the same name: give each its own name");
        }
        let local = Local::new(self.compute)?;
        let dataset = Store::open(&self.dataset).await.context("cannot open the data set")?;
        let out = Store::open(&self.out).await.context("cannot open --out")?;
        let fleet = self.fleet.open(&dataset).await?;
        let model = load(self.model, object_of(&rows, &manifest)).await?;
        let device = *local.devices.0.first().context("--devices names no device")?;
        let mut judges = Vec::new();
        for (name, folder) in &self.judges {
            let judge = Judge::load(folder, &model, device).with_context(|| format!("cannot load judge {name}"))?;
            judges.push((name.clone(), judge));
        }
        let record = RunRecord {
            annotations: self.annotations,
            limit: self.limit.map(Into::into),
            seed: self.seed,
            // Each row has a name and parameters of its own.
            ..RunRecord::new("", dataset.url(), reference.clone(), Params::paper())
        };
        let mut about = About {
            which,
            provenance: Provenance::new(self.dataset, &reference),
            evaluations: self.evaluations,
            seeds: self.seeds,
            seed: self.seed,
            judges: judges.iter().map(|(name, judge)| (name.clone(), judge.digest.clone())).collect(),
            notes: Vec::new(),
        };
        let super_classes = RunSpec::new(record.clone(), &manifest).super_class_of();
        let redrive = self.retry_failed.then(Redrive::failures);
        let setting = Setting { local: &local, fleet, model, dataset, out: out.clone(), record, redrive, judges };
        let Done { rows, interrupted } = setting.run(rows).await?;
        about.notes = notes(which, detects, &rows);
        let failed = rows.iter().filter_map(|(_, ran)| ran.as_ref().ok()).any(|row| row.failed > 0);
        if !rows.iter().any(|(_, ran)| ran.is_ok()) && !interrupted {
            bail!("no row could be run: model {} lacks a part that every row needs", manifest.name);
        }
        let page = StudyPage::new(about, &rows, self.grid.into(), &super_classes);
        let figures: Vec<Figure> = match which {
            Which::PerClass => {
                let super_classes = class_bars(&page, "super-class", &page.super_classes);
                super_classes.into_iter().chain(class_bars(&page, "class", &page.classes)).collect()
            }
            _ => setting.grid(&page, &rows).await?.into_iter().collect(),
        };
        files::write(&out, which.file(), &page, &markdown(&page, &figures), &figures).await?;
        Ok(if interrupted {
            note!("interrupted: the tables have the finished rows; run the same command again to continue");
            ExitCode::from(130)
        } else if failed {
            note!("some images failed: see the reports of the rows; after fixing the cause, run again with --retry-failed");
            ExitCode::from(2)
        } else {
            ExitCode::SUCCESS
        })
    }
}

/// The rows with these names; all rows without names.
fn only(rows: Vec<StudyRow>, names: &[String]) -> anyhow::Result<Vec<StudyRow>> {
    if let Some(unknown) = names.iter().find(|name| rows.iter().all(|row| row.slug != **name)) {
        let known: Vec<&str> = rows.iter().map(|row| row.slug).collect();
        bail!("--rows names {unknown:?}; the rows are {}", known.join(", "));
    }
    Ok(rows.into_iter().filter(|row| names.is_empty() || names.iter().any(|name| name == row.slug)).collect())
}

/// The error of each class as bars.
fn class_bars(page: &StudyPage, what: &str, classes: &[measured::ByClass]) -> Option<Figure> {
    let metric = page::class_metric(&page.metrics);
    let bars: Vec<Bar> =
        classes.iter().map(|c| Bar { name: &c.class, images: c.images as u64, spread: c.errors[metric] }).collect();
    let alt = format!("{} by {what}, with standard errors", page.metrics[metric]);
    let bytes = figure::bars(&alt, &bars).into_bytes();
    (!bars.is_empty()).then(|| Figure { file: format!("per-{what}.svg"), alt, bytes })
}

/// Sentences about all rows.
fn notes(which: Which, detects: bool, rows: &[(StudyRow, page::Ran)]) -> Vec<String> {
    let mut notes = Vec::new();
    if which == Which::Table3 {
        notes.push("The model's classifier predicts the class; the transform is spatial and colour (brightness).".to_owned());
        if !detects {
            notes.push(
                "The model has no detector: the masks are the data set's boxes; the paper's are from Mask R-CNN.".to_owned(),
            );
        }
        notes.push(
            "The paper's row of BasinCMA without transform is garbled in the copy at hand: only the claims that Table 1 repeats are \
             checked for it."
                .to_owned(),
        );
    }
    if which == Which::Table1 {
        notes.push("The class is the data set's. Colour is brightness.".to_owned());
    }
    let whole = rows.iter().filter_map(|(_, ran)| ran.as_ref().ok()).map(|row| row.whole).max().unwrap_or(0);
    if whole > 0 {
        let why = if detects && which == Which::Table3 { "no detection fits the class" } else { "there is no box" };
        notes.push(format!("In {whole} images {why}: the whole image counts as the object."));
    }
    notes
}

/// The command as a shell accepts it, with the program's plain name.
fn command(args: impl Iterator<Item = String>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    let quoted =
        |arg: String| if !arg.is_empty() && arg.chars().all(plain) { arg } else { format!("'{}'", arg.replace('\'', "'\\''")) };
    std::iter::once("basin".to_owned()).chain(args.skip(1).map(quoted)).collect::<Vec<_>>().join(" ")
}

fn judge(text: &str) -> Result<(String, PathBuf), String> {
    let (name, folder) = text.split_once('=').ok_or("expected NAME=FOLDER")?;
    keys::check_run(name).map_err(|problem| format!("the name {name:?} {problem}"))?;
    if measured::METRICS.iter().any(|metric| metric.eq_ignore_ascii_case(name)) {
        return Err(format!("the name {name:?} is the name of a metric that every result has"));
    }
    Ok((name.to_owned(), folder.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_judge_has_a_name_and_a_folder() {
        assert_eq!(judge("vgg=models/a=b"), Ok(("vgg".into(), "models/a=b".into())));
        for bad in ["models/x", "=x", "a/b=x", "lpips=x"] {
            assert!(judge(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_command_can_be_pasted_into_a_shell() {
        let args = ["/usr/bin/basin", "study", "table1", "my images", "--judge", "vgg=x", "it's"].map(String::from);
        assert_eq!(command(args.into_iter()), r"basin study table1 'my images' --judge vgg=x 'it'\''s'");
    }
}
