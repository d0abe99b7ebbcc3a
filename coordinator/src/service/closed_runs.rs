//! Closed runs, which are finished or cancelled (*io*): their tables are written, and read again for requests.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use proto::{Control, CrashPoint, keys};
use store::{ErrorKind, Runs, Store};

use super::lead::Lead;
use super::refusal::Refusal;
use super::spending::read_usage;
use crate::Error;
use crate::budget::paused_because;
use crate::fleet::summary_statuses;
use crate::outcomes::Table;
use crate::plan::RunSpec;
use client::api::RunStatus;
use results::run::{self, Markers};
use results::summary::{Counts, Summary};
use results::sweep::sweep;
use results::tables::write_tables;

/// Writes tables and report, and deletes what lost attempts left.
pub(super) async fn close(lead: &Lead, spec: &RunSpec, images: usize) -> Result<(), Error> {
    let results = Runs::Home(lead.home.clone()).of(&spec.record.name)?;
    loop {
        // A coordinator that was stopped for long must not write the tables of a time before a redrive, nor sweep.
        lead.check().await?;
        let written = write_tables(&spec.record, Some(images), spec.super_class_of(), &results, |_| {}).await?;
        CrashPoint::TablesWritten.pass();
        lead.check().await?;
        let swept = sweep(&written.winners, &results).await?;
        CrashPoint::Swept.pass();
        tracing::info!(run = spec.record.name, swept, "deleted what lost attempts left");
        // An image that was given up may have got its result after all: then the tables are old.
        if Markers::list(&results).await?.results.len() as u64 == written.summary.images.succeeded {
            return Ok(());
        }
    }
}

/// Read from the summary, if there is one.
pub(super) async fn closed_status(home: &Store, name: &str, control: Control) -> Result<RunStatus, Error> {
    let Control { state, priority, per_minute, budget_hours, ended, deleted, .. } = control;
    let deleting = deleted.then_some(0);
    let worker_hours = read_usage(home, name).await? / 3600.0;
    let status = RunStatus { name: name.to_owned(), state, priority, per_minute, budget_hours, ended, ..RunStatus::default() };
    let status = RunStatus { deleting, worker_hours, paused_because: paused_because(name, &control, worker_hours), ..status };
    let Some(summary) = read_summary(&Runs::Home(home.clone()).of(name)?).await else { return Ok(status) };
    let Counts { planned, total, succeeded, failed } = summary.images;
    let (classes, super_classes) = summary_statuses(&summary);
    Ok(RunStatus {
        images: planned.unwrap_or(total) as usize,
        succeeded: succeeded as usize,
        failed: failed as usize,
        waiting: summary.images.left() as usize,
        classes,
        super_classes,
        ..status
    })
}

async fn read_summary(results: &Store) -> Option<Summary> {
    run::read_json(results, keys::SUMMARY).await.ok()
}

type Known = (String, Arc<Table>);

/// The tables that were read last.
#[derive(Clone, Default)]
pub(super) struct Tables {
    known: Arc<Mutex<VecDeque<Known>>>,
    pub(super) reading: Arc<tokio::sync::Mutex<()>>,
}

impl Tables {
    const MOST: usize = 4;

    fn known(&self) -> MutexGuard<'_, VecDeque<Known>> {
        self.known.lock().expect("no holder of the lock panics")
    }

    pub(super) fn get(&self, run: &str) -> Option<Arc<Table>> {
        self.known().iter().find(|(name, _)| name == run).map(|(_, table)| table.clone())
    }

    pub(super) fn put(&self, run: &str, table: &Arc<Table>) {
        let mut tables = self.known();
        tables.retain(|(name, _)| name != run);
        tables.truncate(Self::MOST - 1);
        tables.push_front((run.to_owned(), table.clone()));
    }

    pub(super) fn forget(&self, run: &str) {
        self.known().retain(|(name, _)| name != run);
    }
}

/// No images where the run has no table.
pub(super) async fn read_table(home: &Store, run: &str) -> Result<Arc<Table>, Refusal> {
    let results = Runs::Home(home.clone()).of(run)?;
    let bytes = match results.get(keys::RESULTS_CSV).await {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Arc::default()),
        Err(error) => return Err(error.into()),
    };
    let super_classes = read_summary(&results).await.map(|summary| summary.super_class_of()).unwrap_or_default();
    let read = tokio::task::spawn_blocking(move || Table::read(&bytes, &super_classes)).await.expect("reading does not panic");
    read.map(Arc::new).map_err(|error| Refusal::Invalid(format!("results.csv of run {run} is damaged: {error}")))
}
