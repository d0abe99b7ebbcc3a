//! Deletes runs that have ended (*io*).
//!
//! The order of the run says first that it is deleted, its entry in the index goes last: a coordinator that starts in between goes on.
//! The order itself stays, so that a worker which was stopped before the run's end writes nothing when it wakes up.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use proto::{Control, RunState, chain, keys};
use results::run::AT_ONCE;
use store::{Runs, Store};

use super::change::{being_changed, being_read};
use super::{Done, HomeRuns, RETRY_STORE, Then, control_of};
use crate::Error;
use crate::clock::now;
use crate::drive::Driver;
use crate::service::handle::Reply;
use crate::service::lead::Lead;
use crate::service::refusal::Refusal;
use client::api::RunStatus;
use results::format::duration;

/// How often old runs are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Objects that are deleted between two checks of the lead.
const PAGE: usize = 200;

/// Runs that are being deleted, and how many of their objects are gone.
#[derive(Default)]
pub(super) struct Deleting {
    runs: HashMap<String, Arc<AtomicUsize>>,
    looked: Option<Instant>,
}

impl Deleting {
    pub(super) fn progress(&self, name: &str) -> Option<usize> {
        self.runs.get(name).map(|deleted| deleted.load(Ordering::Relaxed))
    }

    /// An error if the run is being deleted.
    pub(super) fn refuse(&self, name: &str) -> Result<(), Refusal> {
        match self.runs.contains_key(name) {
            true => Err(Refusal::Conflict(format!("run {name} is being deleted: choose another name"))),
            false => Ok(()),
        }
    }
}

impl HomeRuns {
    /// Has the run marked as deleted; the reply follows when it is.
    pub(in crate::service) fn delete(&mut self, driver: &Driver, name: &str, reply: Reply<String>) {
        if self.deleting.runs.contains_key(name) {
            return drop(reply.send(Ok(being_deleted(name))));
        }
        match self.deletable(driver, name) {
            Ok(control) => self.write(name, Control { deleted: true, ..control }, Then::Delete(Some(reply))),
            Err(refusal) => drop(reply.send(Err(refusal))),
        }
    }

    /// The control of a run that has ended, and that nothing writes to any more.
    fn deletable(&self, driver: &Driver, name: &str) -> Result<Control, Refusal> {
        self.deleting.refuse(name)?;
        if self.preparing.contains(name) {
            return Err(being_read(name));
        }
        let active = driver.fleet.control(name);
        let control = active.or_else(|| self.closed.get(name).map(control_of)).ok_or_else(|| Refusal::no_run(name))?;
        if !control.state.is_closed() {
            return Err(Refusal::Conflict(format!("run {name} has not ended: cancel it first, with `basin runs cancel {name}`")));
        }
        // A cancelled run has its tables when its last jobs are given back.
        let open = active.is_some() && !driver.fleet.at_rest(name)
            || active.is_some() && control.state == RunState::Cancelled && !self.cancelled.contains_key(name);
        let writing = self.finishing.contains(name)
            || self.spending.is_saving(name)
            || self.saved.get(name).is_some_and(|saved| saved.writing);
        if open || writing || self.changing.contains(name) {
            return Err(being_changed(name));
        }
        Ok(control)
    }

    /// The run's control says that it is deleted.
    pub(super) fn begin_deleting(&mut self, driver: &mut Driver, name: &str, reply: Option<Reply<String>>) {
        let status = driver.fleet.brief(name, driver.now()).or_else(|| self.closed.remove(name)).unwrap_or_default();
        let (name_of, classes, super_classes) = (name.to_owned(), vec![], vec![]);
        let status = RunStatus { name: name_of, classes, super_classes, deleting: Some(0), problem: None, ..status };
        driver.fleet.remove(name);
        driver.fleet.forget_spending(name);
        self.saved.remove(name);
        self.cancelled.remove(name);
        self.problems.remove(name);
        self.tables.forget(name);
        self.closed.insert(name.to_owned(), status);
        match reply {
            Some(reply) => drop(reply.send(Ok(being_deleted(name)))),
            None => self.log("delete", name, "it ended longer ago than runs are kept (--keep-runs)"),
        }
        self.delete_objects(name.to_owned());
    }

    /// Deletes the objects of a run beside the loop, however long it takes.
    pub(super) fn delete_objects(&mut self, name: String) {
        let deleted = Arc::new(AtomicUsize::new(0));
        self.deleting.runs.insert(name.clone(), deleted.clone());
        let lead = self.lead.clone();
        tracing::info!(run = name, "the run is being deleted");
        self.beside.spawn(async move {
            while let Err(error) = delete_all(&lead, &name, &deleted).await {
                tracing::warn!(run = name, error = chain(&error), "the run cannot be deleted now; tried again");
                tokio::time::sleep(RETRY_STORE).await;
            }
            Done::Deleted(name)
        });
    }

    /// Everything of the run is gone.
    pub(super) fn deleted(&mut self, driver: &mut Driver, name: &str) {
        let objects = self.deleting.progress(name);
        self.deleting.runs.remove(name);
        self.closed.remove(name);
        self.spending.forget(name);
        self.telling.forget(name);
        driver.fleet.forget_spending(name);
        tracing::info!(run = name, objects, "run deleted");
    }

    /// Deletes a run that ended too long ago, one at a time.
    pub(super) fn delete_old(&mut self, driver: &Driver) {
        let Some(keep) = self.config.keep_runs else { return };
        if !self.deleting.runs.is_empty() || self.deleting.looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY) {
            return;
        }
        self.deleting.looked = Some(Instant::now());
        let names = driver.fleet.names().chain(self.closed.keys());
        let old = |name: &&String| self.deletable(driver, name).is_ok_and(|control| is_old(&control, keep, now()));
        let Some((name, control)) = names.filter(old).find_map(|name| Some((name.clone(), self.deletable(driver, name).ok()?)))
        else {
            return;
        };
        tracing::info!(run = name, kept = duration(keep.as_secs_f64()), "the run ended longer ago than runs are kept");
        self.write(&name, Control { deleted: true, ..control }, Then::Delete(None));
    }
}

fn being_deleted(name: &str) -> String {
    format!("run {name} is being deleted")
}

/// Whether a run ended longer ago than `keep`. A run whose end has no time is kept. Pure.
fn is_old(control: &Control, keep: Duration, now: u64) -> bool {
    control.state.is_closed() && control.ended.is_some_and(|ended| now.saturating_sub(ended) >= keep.as_secs())
}

/// Deletes every object of a run, and its entry in the index last.
async fn delete_all(lead: &Lead, name: &str, deleted: &AtomicUsize) -> Result<(), Error> {
    let home = &lead.home;
    delete_under(lead, &Runs::Home(home.clone()).of(name)?, "", deleted).await?;
    delete_under(lead, home, &keys::notices(name), deleted).await?;
    lead.check().await?;
    home.delete(&keys::usage(name)).await?;
    home.delete(&keys::index(name)).await?;
    Ok(())
}

/// Deletes what is under a prefix, until nothing is.
async fn delete_under(lead: &Lead, place: &Store, prefix: &str, deleted: &AtomicUsize) -> Result<(), Error> {
    loop {
        let Some(page) = place.list(prefix)?.with_page_size(PAGE).next_page().await? else { return Ok(()) };
        // A coordinator that was stopped must not delete a later run of the same name.
        lead.check().await?;
        let delete = |object: store::ObjectInfo| async move {
            place.delete(&object.key).await?;
            deleted.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Error>(())
        };
        stream::iter(page.into_iter().map(delete)).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_run_that_ended_long_ago_is_old() {
        let day = Duration::from_secs(86_400);
        let old = |state, ended| is_old(&Control { state, ended, ..Control::default() }, day, 200_000);
        assert!(old(RunState::Finished, Some(113_600)) && old(RunState::Cancelled, Some(0)));
        assert!(!old(RunState::Finished, Some(113_601)) && !old(RunState::Finished, None) && !old(RunState::Running, Some(0)));
    }
}
