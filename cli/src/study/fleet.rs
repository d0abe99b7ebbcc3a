//! Runs rows as runs of a fleet (*io*).

use std::path::PathBuf;

use anyhow::{Context, bail};
use client::api::RunRequest;
use proto::{RunRecord, hex_sha256, keys};
use results::run::{Records, read_records, read_run};
use store::{Runs, Store};

use super::rows::StudyRow;
use crate::connection::Connection;
use crate::project::run_name;
use crate::runs::absolute;
use crate::wait::wait;

/// The fleet that runs the rows; without one this machine does.
#[derive(clap::Args)]
pub struct FleetArgs {
    /// URL of a coordinator, whose fleet runs all rows at the same time instead of this machine. The model must be in its home.
    #[arg(long, value_name = "URL", requires = "home")]
    coordinator: Option<String>,
    /// File with the coordinator's token. Without it, BASIN_TOKEN holds the token itself.
    #[arg(long, env = "BASIN_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Folder or bucket of the fleet's home, from which the results are read.
    #[arg(long, env = "BASIN_HOME_URL", value_name = "URL")]
    home: Option<String>,
    /// Prefix of the runs' names, before `-` and the row. Default: the name of the data set's folder. Studies with the same prefix
    /// share rows; a study with another budget needs another prefix.
    #[arg(long, value_name = "NAME", requires = "coordinator")]
    run_names: Option<String>,
}

pub struct StudyFleet {
    connection: Connection,
    home: Store,
    prefix: String,
}

impl FleetArgs {
    /// `None` if this machine runs the rows.
    pub async fn open(self, dataset: &Store) -> anyhow::Result<Option<StudyFleet>> {
        let (Some(coordinator), Some(home)) = (self.coordinator, self.home) else { return Ok(None) };
        let home = Store::open(&home).await.context("cannot open --home")?;
        let prefix = self.run_names.unwrap_or_else(|| run_name(&dataset.url()));
        Ok(Some(StudyFleet { connection: Connection { coordinator, token_file: self.token_file }, home, prefix }))
    }
}

impl StudyFleet {
    fn run(&self, row: &StudyRow) -> String {
        format!("{}-{}", self.prefix, row.slug)
    }

    pub fn results(&self, row: &StudyRow) -> Result<Store, store::Error> {
        Runs::Home(self.home.clone()).of(&self.run(row))
    }

    /// An error if the fleet would refuse a row or run it with another model.
    pub async fn check(&self, rows: &[&StudyRow], record: &RunRecord) -> anyhow::Result<()> {
        for row in rows {
            let name = self.run(row);
            if let Err(problem) = keys::check_run(&name) {
                bail!("the run's name {name:?} {problem}: choose another prefix with --run-names");
            }
        }
        let (model, home) = (&record.model, self.home.url());
        let manifest = self.home.get(&format!("{}/model.json", keys::model_prefix(model))).await;
        let manifest = manifest.with_context(|| format!("{home} has no model {model}: copy it there with `basin push`"))?;
        let digest = hex_sha256(&manifest);
        if digest != record.model_digest {
            bail!("model {model} in {home} ({digest}) differs from --model's ({})", record.model_digest);
        }
        Ok(())
    }

    /// Submits the rows that the fleet does not have yet, and waits until all are finished.
    pub async fn finish(&self, rows: &[&StudyRow], record: &RunRecord) -> anyhow::Result<()> {
        let request = |row: &&StudyRow| -> anyhow::Result<RunRequest> {
            Ok(RunRequest {
                annotations: record.annotations.clone(),
                params: Some(row.params.clone()),
                seed: record.seed,
                limit: record.limit,
                ..RunRequest::new(&self.run(row), &absolute(&record.dataset)?, &record.model)
            })
        };
        let requests = rows.iter().map(request).collect::<anyhow::Result<Vec<RunRequest>>>()?;
        let connection = self.connection.clone();
        tokio::task::spawn_blocking(move || {
            let client = connection.client(client::LONG)?;
            for request in &requests {
                note!("{}", client.submit(request)?);
            }
            let names: Vec<String> = requests.into_iter().map(|request| request.name).collect();
            // The tables count failed images, so the exit code is not needed.
            wait(&connection, &names).map(|_| ())
        })
        .await?
    }

    /// The records of a finished row, which must have the model with this digest.
    pub async fn records(&self, row: &StudyRow, digest: &str) -> anyhow::Result<Records> {
        let results = self.results(row)?;
        let run = read_run(&results).await?;
        let run = run.with_context(|| format!("{} holds no run: is --home the home of this coordinator?", results.url()))?;
        if run.model_digest != digest {
            bail!("run {} has another model named {} ({}) than --model's", run.name, run.model, run.model_digest);
        }
        Ok(read_records(&results).await?)
    }
}
