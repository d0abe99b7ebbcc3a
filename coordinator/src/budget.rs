//! The budget of a run in worker hours, and what of it is spent. Pure: time is an argument, in seconds.
//!
//! What counts is the time that workers have images of the run, from heartbeat to heartbeat: also that of images that fail, or that a
//! worker loses. The sum of the results' own times would miss those. A heartbeat that comes twice adds nothing, since only the time
//! since the one before counts.

use std::collections::HashMap;

use proto::{Control, RunState};

/// The most that one heartbeat adds, in seconds. They come every ten seconds; a worker that was silent for longer counts for this.
const MOST: f64 = 30.0;

/// What a heartbeat adds to the time of its run. `before`: the time of the worker's heartbeat before.
pub(crate) fn added(before: Option<f64>, now: f64) -> f64 {
    before.map_or(0.0, |before| (now - before).clamp(0.0, MOST))
}

/// Worker seconds by run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spent(HashMap<String, f64>);

impl Spent {
    pub(crate) fn add(&mut self, run: &str, seconds: f64) {
        *self.0.entry(run.to_owned()).or_default() += seconds;
    }

    /// Takes in what an earlier coordinator had counted.
    pub(crate) fn resume(&mut self, run: &str, seconds: f64) {
        let spent = self.0.entry(run.to_owned()).or_default();
        *spent = spent.max(seconds);
    }

    pub(crate) fn forget(&mut self, run: &str) {
        self.0.remove(run);
    }

    pub(crate) fn seconds(&self, run: &str) -> f64 {
        self.0.get(run).copied().unwrap_or(0.0)
    }
}

/// Whether nothing is left of the budget.
pub(crate) fn is_spent(control: &Control, hours: f64) -> bool {
    control.budget_hours.is_some_and(|budget| hours >= budget)
}

/// Why the coordinator has paused a run; `None`: a client did, or it is not paused.
pub(crate) fn paused_because(run: &str, control: &Control, hours: f64) -> Option<String> {
    let budget = control.budget_hours?;
    let paused = control.state == RunState::Paused && is_spent(control, hours);
    let how = format!("raise it with `basin runs budget {run} HOURSh`, then `basin runs resume {run}`");
    paused.then(|| format!("its budget of {budget} worker hours is spent ({hours:.2} are measured): {how}"))
}

/// Whether a client can set this budget; 0 stands for none.
pub(crate) fn check(hours: Option<f64>) -> Result<(), String> {
    match hours.is_none_or(|hours| hours.is_finite() && hours >= 0.0) {
        true => Ok(()),
        false => Err("budget_hours must be a number ≥ 0".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heartbeats_add_the_time_between_them_once() {
        let mut spent = Spent::default();
        let mut before = None;
        for now in [0.0, 10.0, 20.0, 20.0, 20.0, 1000.0] {
            spent.add("r", added(before, now));
            before = Some(now);
        }
        assert_eq!(spent.seconds("r"), 50.0);
        spent.resume("r", 40.0);
        assert_eq!(spent.seconds("r"), 50.0);
        spent.resume("r", 3600.0);
        assert_eq!((spent.seconds("r"), spent.seconds("other")), (3600.0, 0.0));
    }

    #[test]
    fn only_a_paused_run_without_budget_left_says_why() {
        let control = |state, budget_hours| Control { state, budget_hours, ..Control::default() };
        let why = |state, budget| paused_because("r", &control(state, budget), 2.0);
        assert!(why(RunState::Paused, Some(2.0)).is_some_and(|why| why.contains("budget of 2 worker hours")));
        assert_eq!(
            [why(RunState::Paused, Some(2.1)), why(RunState::Paused, None), why(RunState::Running, Some(1.0))],
            [None, None, None]
        );
        assert!(check(Some(0.0)).is_ok() && check(None).is_ok());
        assert!([-1.0, f64::NAN, f64::INFINITY].iter().all(|hours| check(Some(*hours)).is_err()));
    }
}
