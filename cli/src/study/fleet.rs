//! Rows as runs of a fleet.

use std::path::PathBuf;

use anyhow::{Context, bail};
use client::api::RunRequest;
use proto::{RunRecord, hex_sha256, keys};
use results::run::{Records, read_records, read_run};
use store::{Runs, Store};

use super::rows::Row;
use crate::fleet::{Client, Coordinator, absolute, hand_in, wait};
use crate::project::run_name;

/// Which fleet runs the rows, if not this machine.
#[derive(clap::Args)]
pub struct FleetArgs {
    /// URL of a coordinator: its fleet runs the rows, all at a time, instead of this machine. The model must be in its home.
    #[arg(long, value_name = "URL", requires = "home")]
    coordinator: Option<String>,
    /// File with the coordinator's token. BASIN_TOKEN holds the token itself.
    #[arg(long, env = "BASIN_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The fleet's home, where the results are read.
    #[arg(long, env = "BASIN_HOME_URL", value_name = "URL")]
    home: Option<String>,
    /// What the runs' names begin with, before `-` and the row: the name of the data set's folder, as a rule. Studies of one data set
    /// share it: a row that two of them have is run once. Another budget needs another.
    #[arg(long, value_name = "NAME", requires = "coordinator")]
    run_names: Option<String>,
}

/// A fleet that runs the rows of a study.
pub struct Fleet {
    coordinator: Coordinator,
    home: Store,
    prefix: String,
}

impl FleetArgs {
    /// `None`: this machine.
    pub async fn open(self, dataset: &Store) -> anyhow::Result<Option<Fleet>> {
        let (Some(coordinator), Some(home)) = (self.coordinator, self.home) else { return Ok(None) };
        let home = Store::open(&home).await.context("cannot open --home")?;
        let prefix = self.run_names.unwrap_or_else(|| run_name(&dataset.url()));
        Ok(Some(Fleet { coordinator: Coordinator { coordinator, token_file: self.token_file }, home, prefix }))
    }
}

impl Fleet {
    fn run(&self, row: &Row) -> String {
        format!("{}-{}", self.prefix, row.slug)
    }

    /// Where a row's results are.
    pub fn results(&self, row: &Row) -> Result<Store, store::Error> {
        Runs::Home(self.home.clone()).of(&self.run(row))
    }

    /// Finds what the fleet would refuse, or run with another model, before it is asked to.
    pub async fn check(&self, rows: &[&Row], record: &RunRecord) -> anyhow::Result<()> {
        for row in rows {
            let name = self.run(row);
            if let Err(problem) = keys::check_run(&name) {
                bail!("a run cannot be named {name:?}, which {problem}: give another beginning with --run-names");
            }
        }
        let (model, home) = (&record.model, self.home.url());
        let manifest = self.home.get(&format!("{}/model.json", keys::model_prefix(model))).await;
        let manifest = manifest.with_context(|| format!("{home} has no model {model}: bring it there with `basin push`"))?;
        let digest = hex_sha256(&manifest);
        if digest != record.model_digest {
            bail!("model {model} in {home} is another one ({digest}) than --model's ({})", record.model_digest);
        }
        Ok(())
    }

    /// Hands in what is not there yet of the rows, and waits until all of them are finished.
    pub async fn finish(&self, rows: &[&Row], record: &RunRecord) -> anyhow::Result<()> {
        let request = |row: &&Row| -> anyhow::Result<RunRequest> {
            Ok(RunRequest {
                name: self.run(row),
                dataset: absolute(&record.dataset)?,
                annotations: record.annotations.clone(),
                model: record.model.clone(),
                profile: None,
                params: Some(row.params.clone()),
                seed: record.seed,
                limit: record.limit,
                priority: 0,
                per_minute: None,
            })
        };
        let requests = rows.iter().map(request).collect::<anyhow::Result<Vec<RunRequest>>>()?;
        let coordinator = self.coordinator.clone();
        tokio::task::spawn_blocking(move || {
            let client = Client::new(&coordinator)?;
            for request in &requests {
                note!("{}", hand_in(&client, request)?);
            }
            let names: Vec<String> = requests.into_iter().map(|request| request.name).collect();
            // Its code tells of failed images, which the tables count.
            wait(&coordinator, &names).map(|_| ())
        })
        .await?
    }

    /// What a finished row came to, if it is of the model with this digest.
    pub async fn records(&self, row: &Row, digest: &str) -> anyhow::Result<Records> {
        let results = self.results(row)?;
        let run = read_run(&results).await?;
        let run = run.with_context(|| format!("{} holds no run: is --home the home of this coordinator?", results.url()))?;
        if run.model_digest != digest {
            bail!("run {} is of another model named {} ({}) than --model's", run.name, run.model, run.model_digest);
        }
        Ok(read_records(&results).await?)
    }
}
