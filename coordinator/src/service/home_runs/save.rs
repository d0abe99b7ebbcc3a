//! Has written what the next start would otherwise have to find out, or could not know: snapshots, and what runs have cost.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::{Done, HomeRuns};
use crate::drive::Driver;
use crate::service::snapshots::{save, snapshot_due};
use crate::service::spending::save_usage;

/// A coordinator that stops waits this long for its last snapshots.
const SNAPSHOT_LAST: Duration = Duration::from_secs(10);

/// The last snapshot of a run.
pub(super) struct Saved {
    pub(super) at: Instant,
    /// Results that count in it.
    pub(super) counted: usize,
    pub(super) writing: bool,
}

impl HomeRuns {
    pub(super) fn save_snapshots(&mut self, driver: &Driver) {
        for (name, saved) in &mut self.saved {
            let new = driver.fleet.counted(name).abs_diff(saved.counted);
            if saved.writing || !snapshot_due(saved.counted, new, saved.at.elapsed()) {
                continue;
            }
            let Some(snapshot) = driver.fleet.snapshot(name) else { continue };
            (saved.at, saved.writing) = (Instant::now(), true);
            let (home, name) = (self.config.home.clone(), name.clone());
            self.beside.spawn(async move {
                let counted = save(&home, &name, snapshot).await;
                Done::SnapshotSaved(name, counted)
            });
        }
    }

    /// Writes what is new in snapshots and worker times, before the end.
    pub(in crate::service) async fn save_last(&self, driver: &Driver) {
        let new = self.saved.iter().filter(|(name, saved)| driver.fleet.counted(name) != saved.counted);
        let snapshots = new.filter_map(|(name, _)| Some((name, driver.fleet.snapshot(name)?)));
        let saves = join_all(snapshots.map(|(name, snapshot)| save(&self.config.home, name, snapshot)));
        let spent = self.spending.unsaved(&driver.fleet);
        let spent = join_all(spent.iter().map(|(name, seconds)| save_usage(&self.config.home, name, *seconds)));
        let _ = tokio::time::timeout(SNAPSHOT_LAST, async { tokio::join!(saves, spent) }).await;
    }

    pub(super) fn save_spending(&mut self, driver: &Driver) {
        for (name, seconds) in self.spending.due(&driver.fleet) {
            let home = self.config.home.clone();
            self.beside.spawn(async move {
                let written = save_usage(&home, &name, seconds).await;
                Done::UsageSaved(name, seconds, written)
            });
        }
    }
}
