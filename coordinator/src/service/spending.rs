//! What runs have cost in worker time, kept in the home (*io*).

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use proto::{Usage, chain, keys};
use results::{RunError, run};
use store::Store;

use crate::Error;
use crate::fleet::Fleet;

/// How often it is written.
const EVERY: Duration = Duration::from_secs(60);

/// What was written last.
#[derive(Default)]
pub(super) struct Spending {
    saved: HashMap<String, f64>,
    /// Runs whose worker seconds are being written.
    saving: HashSet<String>,
    looked: Option<Instant>,
}

impl Spending {
    /// Runs whose worker seconds are to be written now, at most once in [`EVERY`].
    pub(super) fn due(&mut self, fleet: &Fleet) -> Vec<(String, f64)> {
        if self.looked.is_some_and(|looked| looked.elapsed() < EVERY) {
            return vec![];
        }
        self.looked = Some(Instant::now());
        let mut due = self.unsaved(fleet);
        due.retain(|(name, _)| self.saving.insert(name.clone()));
        due
    }

    pub(super) fn is_saving(&self, run: &str) -> bool {
        self.saving.contains(run)
    }

    /// Runs that have cost more than what was written.
    pub(super) fn unsaved(&self, fleet: &Fleet) -> Vec<(String, f64)> {
        let spent = fleet.names().map(|name| (name.clone(), fleet.worker_seconds(name)));
        spent.filter(|(name, seconds)| *seconds > self.saved.get(name).copied().unwrap_or(0.0)).collect()
    }

    /// `written`: whether the home has it now.
    pub(super) fn saved(&mut self, run: String, seconds: f64, written: bool) {
        self.saving.remove(&run);
        if written {
            self.saved.insert(run, seconds);
        }
    }

    pub(super) fn forget(&mut self, run: &str) {
        self.saved.remove(run);
    }
}

/// Worker seconds so far; 0 for a run of an older version.
pub(super) async fn read_usage(home: &Store, name: &str) -> Result<f64, Error> {
    match run::if_present(run::read_json::<Usage>(home, &keys::usage(name)).await) {
        Ok(usage) => Ok(usage.map_or(0.0, |usage| usage.worker_seconds)),
        // It must not stop the run.
        Err(error @ RunError::Damaged { .. }) => {
            tracing::warn!(run = name, error = chain(&error), "the run's worker time is counted from 0 again");
            Ok(0.0)
        }
        Err(error) => Err(error.into()),
    }
}

/// Writes worker seconds, unless more are on record already. Returns whether they are; an error costs only what a later start does not
/// know.
pub(super) async fn save_usage(home: &Store, name: &str, worker_seconds: f64) -> bool {
    let usage = Usage { format: 1, worker_seconds };
    let written = home.update(&keys::usage(name), |there| more(there, usage)).await;
    written
        .inspect_err(|error| tracing::warn!(run = name, error = chain(error), "the run's worker time cannot be written"))
        .is_ok()
}

/// The bytes of `usage`, if it is more than what is there. Pure.
fn more(there: Option<&[u8]>, usage: Usage) -> Option<Vec<u8>> {
    let there = there.and_then(|bytes| serde_json::from_slice::<Usage>(bytes).ok());
    let is_more = there.is_none_or(|there| usage.worker_seconds > there.worker_seconds);
    is_more.then(|| serde_json::to_vec_pretty(&usage).expect("a record serialises"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_late_writer_does_not_make_a_run_cheaper() {
        let dir = tempfile::tempdir().expect("a folder");
        let home = Store::open(&dir.path().to_string_lossy()).await.expect("a store");
        assert_eq!(read_usage(&home, "r").await.expect("readable"), 0.0);
        for (seconds, kept) in [(50.0, 50.0), (20.0, 50.0), (70.0, 70.0)] {
            assert!(save_usage(&home, "r", seconds).await);
            assert_eq!(read_usage(&home, "r").await.expect("readable"), kept);
        }
    }
}
