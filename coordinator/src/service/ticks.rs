//! What all who watch are told, as it changes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::watch;

use crate::drive::Driver;
use client::api::RunStatus;

/// Who watches is told of changes so often, at most.
pub(crate) const TELL_EVERY: Duration = Duration::from_millis(200);

/// What all who watch are told.
pub(crate) struct Ticks {
    live: watch::Sender<Arc<str>>,
    told: Instant,
}

impl Ticks {
    pub(crate) fn new(live: watch::Sender<Arc<str>>) -> Ticks {
        Ticks { live, told: Instant::now() }
    }

    /// Whether anybody watches, and it is time. The time counts from then on.
    pub(crate) fn due(&mut self) -> bool {
        let late = self.told.elapsed().as_secs_f64() / TELL_EVERY.as_secs_f64();
        if self.live.receiver_count() == 0 {
            // Whoever comes next is not told what was.
            self.live.send_if_modified(|told| !std::mem::replace(told, Arc::from("")).is_empty());
            return false;
        }
        if late < 1.0 {
            return false;
        }
        // By the clock, and not by when the last one was ready.
        self.told += TELL_EVERY.mul_f64(late.floor());
        true
    }

    /// Tells how runs and workers stand, if that has changed.
    pub(crate) fn tell(&self, driver: &Driver, runs: &[RunStatus]) {
        let workers: Vec<_> = driver.present().map(|(name, worker)| json!({ "name": name, "alive": worker.alive })).collect();
        let tick: Arc<str> = json!({ "runs": runs, "workers": workers }).to_string().into();
        self.live.send_if_modified(|told| {
            let news = *told != tick;
            *told = tick;
            news
        });
    }
}
