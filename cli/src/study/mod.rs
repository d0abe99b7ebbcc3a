//! `basin study`: the paper's experiments on a data set. Each row of a table is a run like any other.
//!
//! [`rows`] (pure) says which, [`run`] (io) runs them, here or on a [`fleet`], [`measured`], [`claims`] and [`page`] (pure) make the
//! tables, [`chart`] (pure) the drawings, and [`files`] (io) writes them. [`bias`] has no rows: it compares boxes.

mod bias;
mod chart;
mod claims;
mod files;
mod fleet;
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
use proto::{RunRecord, keys};
use results::redrive::Redrive;
use results::summary::Spread;
use serde::Serialize;
use store::Store;

use self::bias::Bias;
use self::chart::Bar;
use self::files::Figure;
use self::fleet::FleetArgs;
use self::page::{About, Page, markdown};
use self::rows::{Budget, Row};
use self::run::{Done, Setting, object_of};
use crate::local::{Local, Machine};
use crate::project::{load, read_manifest};

/// Options of `basin study`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Table 1: the methods, with and without transform, colour and encoder; free batches; two proposals of ours.
    Table1(Study),
    /// Table 2: where the class vector starts.
    Table2(Study),
    /// Table 3: images that the generator was not trained on.
    Table3(Study),
    /// Figure 9: the error of each class.
    PerClass(Study),
    /// Figures 3 and 4: where the data set has its objects and where the generator has them, and how large they are.
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
    /// Folder or bucket (s3://bucket/prefix) for the runs and the tables. Studies of one data set may share it: a row that two of
    /// them have is run once.
    #[arg(long, env = "BASIN_OUT")]
    out: String,
    /// COCO JSON or CSV manifest with classes and boxes; `auto` looks for one, `none` takes the folders' names as classes.
    #[arg(long, default_value = "auto")]
    annotations: String,
    /// Generator evaluations of each seed in stage two, the same for all rows (the paper: 1200).
    #[arg(long, default_value_t = 1200, value_name = "N", value_parser = clap::value_parser!(u32).range(8..=100_000))]
    evaluations: u32,
    /// Only these rows, by the names of their folders; a wrong one lists them.
    #[arg(long, value_name = "ROW,...", value_delimiter = ',')]
    rows: Vec<String>,
    /// Seeds of an image.
    #[arg(long, default_value_t = 18, value_name = "N", value_parser = clap::value_parser!(u32).range(3..=4096))]
    seeds: u32,
    /// Everything random follows from it.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    seed: u64,
    /// Take only this many images, evenly spread over the data set.
    #[arg(long, value_name = "N")]
    limit: Option<NonZeroUsize>,
    /// Another perceptual network (a folder with perceptual.json and perceptual.safetensors) that measures all results under a name
    /// of yours, as VGG does in the paper. May be given several times.
    #[arg(long = "judge", value_name = "NAME=FOLDER", value_parser = judge)]
    judges: Vec<(String, PathBuf)>,
    /// Images of a table whose targets and results are shown as pictures, evenly spread.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    grid: u8,
    /// Try images again that failed before in any row. With a fleet: `basin runs retry`.
    #[arg(long, conflicts_with = "coordinator")]
    retry_failed: bool,
    #[command(flatten)]
    fleet: FleetArgs,
    #[command(flatten)]
    machine: Machine,
}

/// Which study.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Which {
    /// The methods.
    Table1,
    /// Where the class vector starts.
    Table2,
    /// Images that the generator was not trained on.
    Table3,
    /// The error of each class.
    PerClass,
}

impl Which {
    /// Its rows, for a model that `detects` objects of its classes or not.
    pub fn rows(self, budget: Budget, detects: bool) -> Vec<Row> {
        match self {
            Which::Table1 => rows::table1(budget),
            Which::Table2 => rows::table2(budget),
            Which::Table3 => rows::table3(budget, detects),
            Which::PerClass => rows::per_class(budget),
        }
    }

    /// Its heading.
    pub fn title(self) -> &'static str {
        match self {
            Which::Table1 => "Methods (the paper's Table 1)",
            Which::Table2 => "Class search (the paper's Table 2)",
            Which::Table3 => "Out of distribution (the paper's Table 3)",
            Which::PerClass => "Error by class (the paper's Figure 9)",
        }
    }

    /// Name of its files, without extension.
    pub fn file(self) -> &'static str {
        match self {
            Which::Table1 => "table1",
            Which::Table2 => "table2",
            Which::Table3 => "table3",
            Which::PerClass => "per-class",
        }
    }
}

/// Runs it.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
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
        let (manifest, model_digest) = read_manifest(&self.model)?;
        let budget = Budget { evaluations: self.evaluations, seeds: self.seeds };
        let detects = manifest.detector.is_some() && !manifest.categories.is_empty();
        let rows = only(which.rows(budget, detects), &self.rows)?;
        let names: BTreeSet<&String> = self.judges.iter().map(|(name, _)| name).collect();
        if names.len() < self.judges.len() {
            bail!("two judges have the same name: give each another one");
        }
        let local = Local::new(self.machine)?;
        let dataset = Store::open(&self.dataset).await.context("cannot open the data set")?;
        let out = Store::open(&self.out).await.context("cannot open --out")?;
        let fleet = self.fleet.open(&dataset).await?;
        let model = load(self.model, object_of(&rows, &manifest)).await?;
        let device = *local.devices.0.first().context("--devices names none")?;
        let mut judges = Vec::new();
        for (name, folder) in &self.judges {
            let judge = Judge::load(folder, &model, device).with_context(|| format!("cannot load judge {name}"))?;
            judges.push((name.clone(), judge));
        }
        let record = RunRecord {
            format: 1,
            name: String::new(),
            dataset: dataset.url(),
            annotations: self.annotations,
            limit: self.limit.map(Into::into),
            model: manifest.name.clone(),
            model_digest: model_digest.clone(),
            resolution: manifest.generator.resolution,
            params: proto::Params::paper(),
            seed: self.seed,
            version: env!("CARGO_PKG_VERSION").into(),
        };
        let mut about = About {
            which,
            command: command(std::env::args()),
            version: record.version.clone(),
            dataset: self.dataset.clone(),
            model: manifest.name.clone(),
            model_digest,
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
            bail!("no row could be run: model {} lacks what all of them need", manifest.name);
        }
        let page = Page::new(about, &rows, self.grid.into(), &super_classes);
        let figures: Vec<Figure> = match which {
            Which::PerClass => {
                let super_classes = class_bars(&page, "super-class", &page.super_classes);
                super_classes.into_iter().chain(class_bars(&page, "class", &page.classes)).collect()
            }
            _ => setting.grid(&page, &rows).await?.into_iter().collect(),
        };
        files::write(&out, which.file(), &page, &markdown(&page, &figures), &figures).await?;
        Ok(if interrupted {
            note!("interrupted: the tables have the rows that are finished; run the same command again to go on");
            ExitCode::from(130)
        } else if failed {
            note!("some images failed: see the reports of the rows; mended something? run again with --retry-failed");
            ExitCode::from(2)
        } else {
            ExitCode::SUCCESS
        })
    }
}

/// The rows of these names; all without any.
fn only(rows: Vec<Row>, names: &[String]) -> anyhow::Result<Vec<Row>> {
    if let Some(unknown) = names.iter().find(|name| rows.iter().all(|row| row.slug != **name)) {
        let known: Vec<&str> = rows.iter().map(|row| row.slug).collect();
        bail!("--rows names {unknown:?}; the rows are {}", known.join(", "));
    }
    Ok(rows.into_iter().filter(|row| names.is_empty() || names.iter().any(|name| name == row.slug)).collect())
}

/// The error of each class as bars.
fn class_bars(page: &Page, what: &str, classes: &[measured::ByClass]) -> Option<Figure> {
    let metric = page.class_metric();
    let bars = classes.iter().map(|measured::ByClass { class, images, errors }| {
        let Spread { mean, standard_error, .. } = errors[metric];
        Bar { name: class, images: *images, mean, standard_error }
    });
    let bars: Vec<Bar> = bars.collect();
    let alt = format!("{} by {what}, with standard errors", page.metrics[metric]);
    let bytes = chart::bars(&alt, &bars).into_bytes();
    (!bars.is_empty()).then(|| Figure { file: format!("per-{what}.svg"), alt, bytes })
}

/// What a reader must know of the rows.
fn notes(which: Which, detects: bool, rows: &[(Row, page::Ran)]) -> Vec<String> {
    let mut notes = Vec::new();
    if which == Which::Table3 {
        notes.push(
            "The class is the one that the model's classifier predicts; transform: spatial and colour (brightness).".to_owned(),
        );
        if !detects {
            notes.push(
                "The model has no detector: the masks are the data set's boxes, where the paper has Mask R-CNN's.".to_owned(),
            );
        }
        notes.push(
            "The paper's row of BasinCMA without transform cannot be read in our copy: of it, only what its Table 1 says too is \
             checked."
                .to_owned(),
        );
    }
    if which == Which::Table1 {
        notes.push("The class is the data set's. Colour is brightness.".to_owned());
    }
    let whole = rows.iter().filter_map(|(_, ran)| ran.as_ref().ok()).map(|row| row.whole).max().unwrap_or(0);
    if whole > 0 {
        let why = if detects && which == Which::Table3 { "no detection fits the class" } else { "there is no box" };
        notes.push(format!("In {whole} images {why}: all of the image counts as the object."));
    }
    notes
}

/// As a shell takes it; the program by its name.
fn command(args: impl Iterator<Item = String>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    let quoted =
        |arg: String| if !arg.is_empty() && arg.chars().all(plain) { arg } else { format!("'{}'", arg.replace('\'', "'\\''")) };
    std::iter::once("basin".to_owned()).chain(args.skip(1).map(quoted)).collect::<Vec<_>>().join(" ")
}

fn judge(text: &str) -> Result<(String, PathBuf), String> {
    let (name, folder) = text.split_once('=').ok_or("it is NAME=FOLDER")?;
    keys::check_run(name).map_err(|problem| format!("the name {name:?} {problem}"))?;
    if measured::METRICS.iter().any(|metric| metric.eq_ignore_ascii_case(name)) {
        return Err(format!("the name {name:?} is that of a metric which every result has"));
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
