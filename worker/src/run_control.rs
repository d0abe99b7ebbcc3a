//! Whether a run is to be computed (*io*): `control/<run>.json` in the fleet's home says so, and is read again every few seconds.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use proto::{Control, RunState, chain, keys};
use store::{ErrorKind, Runs, Store};

/// How long an answer is used.
pub(crate) const HOLDS: Duration = Duration::from_secs(2);

pub(crate) struct RunControl {
    /// `None`: there is one run, which is always computed.
    home: Option<Store>,
    known: HashMap<String, (bool, Instant)>,
    /// The failure that lasts was logged.
    warned: bool,
}

impl RunControl {
    pub fn new(runs: &Runs) -> RunControl {
        let home = match runs {
            Runs::One(_) => None,
            Runs::Home(home) => Some(home.clone()),
        };
        RunControl { home, known: HashMap::new(), warned: false }
    }

    /// Whether jobs of `run` are to be computed now. While the home does not answer the last answer counts; without one they are.
    pub async fn may_compute(&mut self, run: &str) -> bool {
        if self.home.is_none() {
            return true;
        }
        let before = self.known.get(run).copied();
        if let Some((may, when)) = before
            && when.elapsed() < HOLDS
        {
            return may;
        }
        let now = self.state(run).await.map(RunState::may_compute);
        let may = now.or(before.map(|(may, _)| may)).unwrap_or(true);
        self.known.insert(run.to_owned(), (may, Instant::now()));
        may
    }

    /// Whether the run is known to be finished.
    pub async fn is_finished(&mut self, run: &str) -> bool {
        self.state(run).await == Some(RunState::Finished)
    }

    /// `None`: the home has no answer.
    async fn state(&mut self, run: &str) -> Option<RunState> {
        let home = self.home.as_ref()?;
        let problem = match home.get(&keys::control(run)).await {
            Ok(bytes) => match serde_json::from_slice::<Control>(&bytes) {
                Ok(control) => {
                    self.warned = false;
                    return Some(control.state);
                }
                Err(error) => chain(&error),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => chain(&error),
        };
        if !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(run, error = problem, "cannot read the run's control file; its last known state is used");
        }
        None
    }
}
