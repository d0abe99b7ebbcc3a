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
    /// What was read last. An order of an earlier epoch is that of a coordinator which has lost its lead, and is ignored.
    read: HashMap<String, Control>,
    /// The failure that lasts was logged.
    warned: bool,
}

impl RunControl {
    pub fn new(runs: &Runs) -> RunControl {
        let home = match runs {
            Runs::One(_) => None,
            Runs::Home(home) => Some(home.clone()),
        };
        RunControl { home, known: HashMap::new(), read: HashMap::new(), warned: false }
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

    /// Whether the run is known to have ended: nothing is to be written for it any more.
    pub async fn is_closed(&mut self, run: &str) -> bool {
        self.state(run).await.is_some_and(RunState::is_closed)
    }

    /// `None`: the home has no answer.
    async fn state(&mut self, run: &str) -> Option<RunState> {
        let home = self.home.as_ref()?;
        let problem = match home.get(&keys::control(run)).await {
            Ok(bytes) => match serde_json::from_slice::<Control>(&bytes) {
                Ok(control) => {
                    self.warned = false;
                    return Some(newest(&mut self.read, run, control).state);
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

/// The order that counts, after this one was read.
fn newest(read: &mut HashMap<String, Control>, run: &str, control: Control) -> Control {
    let last = read.entry(run.to_owned()).or_insert(control);
    if control.epoch >= last.epoch {
        *last = control;
    }
    *last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_order_of_an_earlier_epoch_is_ignored() {
        let dir = tempfile::tempdir().expect("writable");
        let home = Store::open(&dir.path().to_string_lossy()).await.expect("a folder");
        let mut control = RunControl::new(&Runs::Home(home.clone()));
        assert!(!control.is_closed("r").await, "there is no order");
        for (epoch, state, closed) in [
            (0, RunState::Finished, true),
            (2, RunState::Running, false),
            (1, RunState::Finished, false),
            (0, RunState::Cancelled, false),
            (2, RunState::Cancelled, true),
            (3, RunState::Running, false),
        ] {
            let order = serde_json::to_vec(&Control { state, epoch, ..Control::default() }).expect("a record");
            home.put(&keys::control("r"), order).await.expect("writable");
            assert_eq!(control.is_closed("r").await, closed, "{state:?} of {epoch}");
        }
    }
}
