//! What a change makes of a run's control. Pure.

use proto::{Control, RunState};

use crate::budget;
use crate::service::refusal::Refusal;
use client::api::Change;

/// The control of a run after a change. `hours`: worker hours that it has cost; `now`: seconds since 1970.
pub(super) fn changed(name: &str, before: Control, change: Change, hours: f64, now: u64) -> Result<Control, Refusal> {
    if matches!(before.state, RunState::Cancelled | RunState::Finished) {
        return Err(Refusal::Conflict(format!("run {name} has ended: it cannot be changed")));
    }
    if change.state == Some(RunState::Finished) {
        return Err(Refusal::Invalid("state must be running, paused or cancelled".into()));
    }
    if change.per_minute.is_some_and(|r| !(r.is_finite() && r >= 0.0)) {
        return Err(Refusal::Invalid("per_minute must be a number ≥ 0".into()));
    }
    budget::check(change.budget_hours).map_err(Refusal::Invalid)?;
    let state = change.state.unwrap_or(before.state);
    let after = Control {
        state,
        priority: change.priority.unwrap_or(before.priority),
        per_minute: change.per_minute.map_or(before.per_minute, |r| (r > 0.0).then_some(r)),
        budget_hours: change.budget_hours.map_or(before.budget_hours, |hours| (hours > 0.0).then_some(hours)),
        ended: (state == RunState::Cancelled).then_some(now),
        ..before
    };
    if change.state == Some(RunState::Running) && budget::is_spent(&after, hours) {
        let text =
            format!("run {name} has used {hours:.2} worker hours of its budget: raise it with `basin runs budget {name}` first");
        return Err(Refusal::Conflict(text));
    }
    Ok(after)
}

pub(super) fn being_changed(name: &str) -> Refusal {
    Refusal::Conflict(format!("run {name} is being changed: try again in a moment"))
}

pub(super) fn being_read(name: &str) -> Refusal {
    Refusal::Conflict(format!("run {name} is being read: try again in a moment"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_whose_budget_is_spent_resumes_after_the_budget_is_raised() {
        let before = Control { state: RunState::Paused, budget_hours: Some(2.0), ..Control::default() };
        let resume = Change { state: Some(RunState::Running), ..Change::default() };
        let refused = changed("r", before, resume, 2.5, 7).expect_err("nothing is left");
        assert!(refused.message().contains("basin runs budget r"), "{}", refused.message());
        let raised = changed("r", before, Change { budget_hours: Some(3.0), ..Change::default() }, 2.5, 7).expect("a change");
        assert_eq!((raised.state, raised.budget_hours), (RunState::Paused, Some(3.0)));
        assert_eq!(changed("r", raised, resume, 2.5, 7).expect("a change").state, RunState::Running);
        let removed = changed("r", before, Change { budget_hours: Some(0.0), ..resume }, 2.5, 7).expect("a change");
        assert_eq!((removed.state, removed.budget_hours), (RunState::Running, None));
        assert!(changed("r", before, Change { budget_hours: Some(f64::NAN), ..Change::default() }, 0.0, 7).is_err());
    }

    #[test]
    fn only_an_end_has_a_time() {
        let to = |state| Change { state: Some(state), ..Change::default() };
        assert_eq!(changed("r", Control::default(), to(RunState::Paused), 0.0, 7).expect("a change").ended, None);
        assert_eq!(changed("r", Control::default(), to(RunState::Cancelled), 0.0, 7).expect("a change").ended, Some(7));
    }
}
