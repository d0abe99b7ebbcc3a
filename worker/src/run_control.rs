//! What a fleet wants done with a run (*io*): the home says, and is asked again every few seconds.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use proto::{Control, RunState, keys};
use store::{Runs, Store};

/// How long an answer holds.
pub(crate) const HOLDS: Duration = Duration::from_secs(2);

/// Asks whether runs may be computed.
pub(crate) struct Controls {
    /// `None`: there is one run, and it may.
    home: Option<Store>,
    known: HashMap<String, (bool, Instant)>,
}

impl Controls {
    pub fn new(runs: &Runs) -> Controls {
        let home = match runs {
            Runs::One(_) => None,
            Runs::Home(home) => Some(home.clone()),
        };
        Controls { home, known: HashMap::new() }
    }

    /// Whether jobs of `run` are to be computed now. Where the home does not answer, the last answer stands, and else they are.
    pub async fn may_compute(&mut self, run: &str) -> bool {
        let Some(home) = &self.home else { return true };
        let before = self.known.get(run).copied();
        if let Some((may, when)) = before
            && when.elapsed() < HOLDS
        {
            return may;
        }
        let asked = state(home, run).await.map(RunState::may_compute);
        let may = asked.or(before.map(|(may, _)| may)).unwrap_or(true);
        self.known.insert(run.to_owned(), (may, Instant::now()));
        may
    }

    /// Whether the run has ended by now.
    pub async fn is_finished(&self, run: &str) -> bool {
        let Some(home) = &self.home else { return false };
        state(home, run).await == Some(RunState::Finished)
    }
}

async fn state(home: &Store, run: &str) -> Option<RunState> {
    let bytes = home.get(&keys::control(run)).await.ok()?;
    serde_json::from_slice::<Control>(&bytes).ok().map(|control| control.state)
}
