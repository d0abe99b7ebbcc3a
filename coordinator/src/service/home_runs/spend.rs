//! Pauses runs whose budget is spent.

use proto::{Control, RunState};

use super::{HomeRuns, Then};
use crate::budget::paused_because;
use crate::drive::Driver;

impl HomeRuns {
    /// Has the control of each running run written that has no budget left.
    pub(super) fn pause_spent(&mut self, driver: &Driver) {
        for name in driver.fleet.over_budget() {
            if self.changing.contains(&name) || self.preparing.contains(&name) {
                continue;
            }
            let Some(control) = driver.fleet.control(&name) else { continue };
            let control = Control { state: RunState::Paused, ..control };
            self.announce(driver, &name, control);
            self.write(&name, control, Then::Pause);
        }
    }

    pub(super) fn paused(&mut self, driver: &mut Driver, name: &str, control: Control) {
        driver.fleet.set_control(name, control);
        driver.withdraw();
        let why = paused_because(name, &control, driver.fleet.worker_seconds(name) / 3600.0).unwrap_or_default();
        tracing::warn!(run = name, why, "run paused");
        self.log("pause", name, &why);
    }
}
