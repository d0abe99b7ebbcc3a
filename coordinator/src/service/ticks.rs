//! The live updates of the dashboard.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::live::Standing;
use super::outages::Ongoing;
use crate::drive::Driver;
use client::api::RunStatus;

/// Shortest time between two updates.
pub(super) const TELL_EVERY: Duration = Duration::from_millis(200);

pub(super) struct Ticks {
    live: watch::Sender<Option<Arc<Standing>>>,
    told: Instant,
}

impl Ticks {
    pub(super) fn new(live: watch::Sender<Option<Arc<Standing>>>) -> Ticks {
        Ticks { live, told: Instant::now() }
    }

    /// Whether there is a watcher and the time has come. The next update is due [`TELL_EVERY`] later.
    pub(super) fn due(&mut self) -> bool {
        let late = self.told.elapsed().as_secs_f64() / TELL_EVERY.as_secs_f64();
        if self.live.receiver_count() == 0 {
            // The next watcher must not get an old update.
            self.live.send_if_modified(|told| told.take().is_some());
            return false;
        }
        if late < 1.0 {
            return false;
        }
        // By the clock, and not by when the last one was ready.
        self.told += TELL_EVERY.mul_f64(late.floor());
        true
    }

    /// Shows how runs and workers stand, if that has changed.
    pub(super) fn tell(&self, driver: &Driver, runs: &[RunStatus], outages: &[Ongoing]) {
        let runs = runs.iter().map(|run| (run.name.as_str(), run));
        let workers = driver.present().map(|(name, last)| (name.as_str(), last.heard, &last.alive));
        // Without their times, which change with every update.
        let outages: Vec<&str> = outages.iter().map(|outage| outage.what).collect();
        let before = self.live.borrow().clone().unwrap_or_default();
        let now = before.next(runs, workers, outages);
        self.live.send_if_modified(|told| {
            let changed = told.is_none() || now != *before;
            if changed {
                *told = Some(Arc::new(now));
            }
            changed
        });
    }
}
