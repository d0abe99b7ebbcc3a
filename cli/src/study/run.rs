//! Runs the rows of a study (*io*), one after the other or on a fleet, and collects their numbers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use coordinator::plan::RunSpec;
use engine::LoadedModel;
use engine::judge::Judge;
use proto::keys::{self, Item};
use proto::{ModelManifest, Object, RunRecord};
use results::format::duration;
use results::redrive::Redrive;
use results::report::sheet;
use results::run::{Records, check_same, read_records, read_run};
use serde::{Deserialize, Serialize};
use store::{ErrorKind, Store};

use super::files::Figure;
use super::fleet::StudyFleet;
use super::measured::{RowScores, Scores};
use super::page::{Ran, StudyPage};
use super::rows::StudyRow;
use crate::local::{Local, LocalRun, Outcome};

pub struct Setting<'a> {
    pub local: &'a Local,
    /// Runs the rows instead of this process.
    pub fleet: Option<StudyFleet>,
    pub model: LoadedModel,
    pub dataset: Store,
    /// The study's own store: each row has a folder in it.
    pub out: Store,
    /// The record of every row's run, except for name and parameters.
    pub record: RunRecord,
    /// Images to project again in each row.
    pub redrive: Option<Redrive>,
    pub judges: Vec<(String, Judge)>,
}

pub struct Done {
    /// In their order. A row that was not reached before a signal has no entry.
    pub rows: Vec<(StudyRow, Ran)>,
    pub interrupted: bool,
}

/// The classifier and detector that the rows need together.
pub fn object_of(rows: &[StudyRow], manifest: &ModelManifest) -> Object {
    let objects = || rows.iter().filter(|row| manifest.lacks(&row.params).is_none()).map(|row| &row.params.object);
    let class = objects().map(|object| &object.class).find(|class| class.is_predicted());
    let mask = objects().map(|object| &object.mask).find(|mask| mask.is_detected());
    Object { class: class.cloned().unwrap_or_default(), mask: mask.cloned().unwrap_or_default() }
}

impl Setting<'_> {
    /// Runs every row that is not finished. Rows that the model cannot run are left out.
    pub async fn run(&self, rows: Vec<StudyRow>) -> anyhow::Result<Done> {
        let able: Vec<&StudyRow> = rows.iter().filter(|row| self.lacks(row).is_none()).collect();
        self.check(&able).await?;
        if let Some(fleet) = &self.fleet {
            fleet.finish(&able, &self.record).await?;
        }
        let mut done = Done { rows: Vec::new(), interrupted: false };
        let (count, mut spent) = (rows.len(), Spent::default());
        let work: Vec<u64> = rows.iter().map(|row| engine::lane_steps(&row.params)).collect();
        for (i, row) in rows.into_iter().enumerate() {
            if let Some(why) = self.lacks(&row) {
                note!("row {} of {count}, {}: left out, {why}", i + 1, row.slug);
                done.rows.push((row, Err(why)));
                continue;
            }
            note!("row {} of {count}, {}: {} lane-steps an image{}", i + 1, row.slug, work[i], spent.left(&work[i..]));
            let results = self.results(&row)?;
            let records = match &self.fleet {
                Some(fleet) => Arc::new(fleet.records(&row, &self.record.model_digest).await?),
                None => {
                    let begun = Instant::now();
                    let title = format!("row {} of {count}, ", i + 1);
                    let outcome = self.project(&row, &results, title).await?;
                    if outcome.interrupted {
                        done.interrupted = true;
                        return Ok(done);
                    }
                    check_results(&outcome, &results)?;
                    let left = outcome.left;
                    spent.add(work[i] * left as u64, begun.elapsed().as_secs_f64(), left);
                    Arc::new(read_records(&results).await?)
                }
            };
            let judged = self.judged(&row, &records, &results).await?;
            done.rows.push((row, Ok(RowScores::new(&records, &judged))));
        }
        Ok(done)
    }

    fn results(&self, row: &StudyRow) -> Result<Store, store::Error> {
        match &self.fleet {
            Some(fleet) => fleet.results(row),
            None => self.out.with_prefix(row.slug),
        }
    }

    /// Why the model cannot run a row.
    fn lacks(&self, row: &StudyRow) -> Option<String> {
        self.model.manifest.lacks(&row.params).map(|lack| lack.what)
    }

    fn record(&self, row: &StudyRow) -> RunRecord {
        RunRecord { name: row.slug.into(), params: row.params.clone(), ..self.record.clone() }
    }

    /// An error if another study's rows are in the place of these, before any work begins.
    async fn check(&self, rows: &[&StudyRow]) -> anyhow::Result<()> {
        if let Some(fleet) = &self.fleet {
            fleet.check(rows, &self.record).await?;
        }
        for row in rows {
            let results = self.results(row)?;
            let Some(there) = read_run(&results).await? else { continue };
            // A fleet's coordinator compares data sets; it may name this one otherwise.
            let dataset = if self.fleet.is_some() { there.dataset.clone() } else { self.record.dataset.clone() };
            let here = RunRecord { dataset, ..self.record(row) };
            check_same(&there, &here, &results).with_context(|| format!("cannot run row {} of the study", row.slug))?;
        }
        Ok(())
    }

    async fn project(&self, row: &StudyRow, results: &Store, title: String) -> anyhow::Result<Outcome> {
        let spec = RunSpec::new(self.record(row), &self.model.manifest);
        let redrive = self.redrive.clone();
        let run = LocalRun { spec, redrive, dataset: &self.dataset, results, record: None, title };
        let outcome = self.local.project(run, || self.model.copy()).await;
        outcome.with_context(|| format!("cannot run row {} of the study", row.slug))
    }

    /// The targets that a page shows, and their inverted images in each row.
    pub async fn grid(&self, page: &StudyPage, rows: &[(StudyRow, Ran)]) -> anyhow::Result<Option<Figure>> {
        let ran: Vec<(&StudyRow, &RowScores)> = rows.iter().filter_map(|(row, ran)| Some((row, ran.as_ref().ok()?))).collect();
        let Some(first) = ran.first().filter(|_| !page.shown.is_empty()) else { return Ok(None) };
        let lines = std::iter::once((first, Item::Target)).chain(ran.iter().map(|row| (row, Item::Inverted)));
        let mut pictures = Vec::new();
        for ((row, measured), item) in lines {
            let results = self.results(row)?;
            let mut line = Vec::new();
            for image in &page.shown {
                let Scores { attempt, .. } = &measured.images[image];
                let key = keys::item(image, attempt, item);
                match results.get(&key).await {
                    Ok(bytes) => line.push(bytes.to_vec()),
                    Err(error) => {
                        note!("no pictures are shown: row {} lacks one: {error}", row.slug);
                        return Ok(None);
                    }
                }
            }
            pictures.push(line);
        }
        let file = format!("{}-grid.png", page.about.which.file());
        let alt = "Targets, and their inverted images in each row".to_owned();
        Ok(Some(Figure { file, alt, bytes: sheet(&pictures) }))
    }

    /// For each result the distance of each judge for each seed, if every judge can measure it. Stored distances are not measured
    /// again.
    async fn judged(&self, row: &StudyRow, records: &Records, results: &Store) -> anyhow::Result<Vec<Option<Vec<Vec<f64>>>>> {
        let mut all = vec![Some(Vec::new()); records.results.len()];
        for (name, judge) in &self.judges {
            let key = format!("judges/{name}/{}.json", row.slug);
            let known = Opinions::read(&self.out, &key).await?.filter(|known| known.judge == judge.digest);
            let none = || Opinions { format: 1, judge: judge.digest.clone(), images: BTreeMap::new() };
            let mut opinions = known.unwrap_or_else(none);
            let mut new = 0;
            for (record, judged) in records.results.iter().zip(&mut all) {
                if opinions.images.get(&record.image).is_none_or(|known| known.attempt != record.attempt) {
                    let lpips = match judge.measure(record, results, &self.model).await {
                        Ok(lpips) => lpips,
                        Err(error) => {
                            let image = &record.image;
                            note!("{image:?} is left out: judge {name} cannot measure it in row {}: {error}", row.slug);
                            *judged = None;
                            continue;
                        }
                    };
                    // JSON has no NaN.
                    let lpips = lpips.into_iter().map(|value| Some(value).filter(|value| value.is_finite())).collect();
                    let opinion = Opinion { attempt: record.attempt.clone(), lpips };
                    opinions.images.insert(record.image.clone(), opinion);
                    new += 1;
                    if new % KEPT_EVERY == 0 {
                        self.out.put(&key, opinions.to_json()).await?;
                    }
                }
                let known = &opinions.images[&record.image];
                if known.lpips.len() != record.seeds.len() {
                    bail!("{key} is damaged: delete it, and run the command again");
                }
                if let Some(judged) = judged {
                    judged.push(known.lpips.iter().map(|lpips| lpips.unwrap_or(f64::NAN)).collect());
                }
            }
            if new % KEPT_EVERY > 0 {
                self.out.put(&key, opinions.to_json()).await?;
            }
        }
        Ok(all)
    }
}

/// An error if results would be compared with those of other images or boxes.
fn check_results(outcome: &Outcome, results: &Store) -> anyhow::Result<()> {
    let (stale, place) = (outcome.stale, results.url());
    if stale > 0 {
        bail!(
            "{stale} results in {place} are of another file, class or box than the data set has now: delete their folders under \
            images/ and run the command again, or choose another --out"
        );
    }
    let found = outcome.summary.images.total;
    if found > outcome.total as u64 {
        bail!("{place} has {found} images, and {} are asked for: choose a larger --limit or another --out", outcome.total);
    }
    Ok(())
}

/// Images between two writes of the judges' distances.
const KEPT_EVERY: usize = 64;

/// `judges/<name>/<row>.json`: a judge's distances for a row.
#[derive(Debug, Serialize, Deserialize)]
struct Opinions {
    format: u32,
    judge: String,
    images: BTreeMap<String, Opinion>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Opinion {
    /// The attempt whose latents were judged.
    attempt: String,
    lpips: Vec<Option<f64>>,
}

impl Opinions {
    fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a record serialises")
    }

    async fn read(out: &Store, key: &str) -> anyhow::Result<Option<Opinions>> {
        match out.get(key).await {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .with_context(|| format!("{key} is damaged: delete it, and run the command again")),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The work of this process so far.
#[derive(Default)]
struct Spent {
    lane_steps: u64,
    seconds: f64,
    images: usize,
}

impl Spent {
    fn add(&mut self, lane_steps: u64, seconds: f64, images: usize) {
        if images > 0 {
            self.lane_steps += lane_steps;
            self.seconds += seconds;
            self.images = images;
        }
    }

    /// Estimated time of rows with this work per image, if none of their images is finished; for a log line.
    fn left(&self, work: &[u64]) -> String {
        if self.lane_steps == 0 {
            return String::new();
        }
        let steps = work.iter().sum::<u64>() * self.images as u64;
        let seconds = steps as f64 * self.seconds / self.lane_steps as f64;
        format!(", {} left in all", duration(seconds))
    }
}
