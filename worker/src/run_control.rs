//! Whether a run is to be computed (*io*): `control/<run>.json` in the fleet's home says so.
//!
//! The coordinator broadcasts what it writes there, so that all workers know it at once, whatever their number. A broadcast may be
//! lost. So the file is read again now and then, too; and what must not go wrong, such as a commit, always reads it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use proto::{Control, ControlWritten, RunState, chain, keys};
use queue::Listener;
use store::{ErrorKind, Runs, Store};
use tokio::sync::Notify;

/// How long it is believed that a run is not to be computed. Its jobs go back meanwhile.
pub(crate) const HOLDS: Duration = Duration::from_secs(2);
/// How long it is believed that a run is to be computed, if no broadcast says otherwise: with 10,000 workers, 333 requests each second.
const POLL: Duration = Duration::from_secs(30);
/// The share of [`POLL`] by which it is longer or shorter at random, so that workers do not all ask at once.
const JITTER: f64 = 0.25;

/// Clones share what they know.
#[derive(Clone)]
pub(crate) struct RunControl {
    /// `None`: there is one run, which is always computed.
    home: Option<Store>,
    known: Arc<Mutex<Known>>,
    heard: Arc<Notify>,
}

#[derive(Default)]
struct Known {
    runs: HashMap<String, Order>,
    /// The failure that lasts was logged.
    warned: bool,
}

/// What is known of a run.
#[derive(Clone, Copy)]
struct Order {
    /// `None`: there is no file, or it was never read.
    control: Option<Control>,
    /// When the last broadcast came.
    broadcast: Option<Instant>,
    /// The file is read again after this.
    until: Instant,
}

impl Order {
    fn may_compute(&self) -> bool {
        self.control.is_none_or(|control| control.state.may_compute())
    }

    /// Takes in an order. One of an earlier epoch is that of a coordinator which has lost its lead, and is ignored.
    fn take(&mut self, control: Control) {
        if self.control.is_none_or(|last| control.epoch >= last.epoch) {
            self.control = Some(control);
        }
    }

    /// `luck`: from 0 to 1.
    fn hold(&mut self, now: Instant, luck: f64) {
        let holds = if self.may_compute() { POLL.mul_f64(1.0 - JITTER + 2.0 * JITTER * luck) } else { HOLDS };
        self.until = now + holds;
    }
}

impl RunControl {
    pub fn new(runs: &Runs) -> RunControl {
        let home = match runs {
            Runs::One(_) => None,
            Runs::Home(home) => Some(home.clone()),
        };
        RunControl { home, known: Arc::default(), heard: Arc::default() }
    }

    /// Whether jobs of `run` are to be computed now. While the home does not answer the last answer counts; without one they are.
    pub async fn may_compute(&self, run: &str) -> bool {
        if self.home.is_none() {
            return true;
        }
        let known = self.lock().runs.get(run).copied();
        if let Some(known) = known
            && Instant::now() < known.until
        {
            return known.may_compute();
        }
        self.state(run).await;
        let mut known = self.lock();
        let order = known.order(run);
        order.hold(Instant::now(), rand::random());
        order.may_compute()
    }

    /// Whether the run is known to have ended: nothing is to be written for it any more.
    pub async fn is_closed(&self, run: &str) -> bool {
        self.state(run).await.is_some_and(RunState::is_closed)
    }

    /// Takes in broadcasts until the queue is closed.
    pub async fn listen(self, mut listener: Listener) {
        while let Some(message) = listener.next().await {
            match serde_json::from_slice::<ControlWritten>(&message) {
                Ok(ControlWritten { run, control }) => {
                    let now = Instant::now();
                    let mut known = self.lock();
                    // Of other runs nothing needs to be known.
                    if let Some(order) = known.runs.get_mut(&run) {
                        order.take(control);
                        order.broadcast = Some(now);
                        order.hold(now, rand::random());
                    }
                    drop(known);
                    self.heard.notify_one();
                }
                Err(error) => tracing::debug!(error = chain(&error), "a broadcast cannot be read"),
            }
        }
    }

    /// Waits for a broadcast, but not longer than an answer holds that a run is not to be computed.
    pub async fn changed(&self) {
        let _ = tokio::time::timeout(HOLDS, self.heard.notified()).await;
    }

    /// Reads the file. `None`: the home has no answer.
    async fn state(&self, run: &str) -> Option<RunState> {
        let home = self.home.as_ref()?;
        let began = Instant::now();
        let problem = match home.get(&keys::control(run)).await {
            Ok(bytes) => match serde_json::from_slice::<Control>(&bytes) {
                Ok(control) => {
                    let mut known = self.lock();
                    known.warned = false;
                    let order = known.order(run);
                    let newest = order.control.filter(|last| last.epoch > control.epoch).unwrap_or(control);
                    // What was broadcast meanwhile is newer than what was read.
                    if order.broadcast.is_none_or(|when| when < began) {
                        order.take(control);
                    }
                    return Some(newest.state);
                }
                Err(error) => chain(&error),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => chain(&error),
        };
        if !std::mem::replace(&mut self.lock().warned, true) {
            tracing::warn!(run, error = problem, "cannot read the run's control file; its last known state is used");
        }
        None
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("nothing panics while it holds the lock")
    }
}

impl Known {
    fn order(&mut self, run: &str) -> &mut Order {
        let new = || Order { control: None, broadcast: None, until: Instant::now() };
        self.runs.entry(run.to_owned()).or_insert_with(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_order_of_an_earlier_epoch_is_ignored() {
        let dir = tempfile::tempdir().expect("writable");
        let home = Store::open(&dir.path().to_string_lossy()).await.expect("a folder");
        let control = RunControl::new(&Runs::Home(home.clone()));
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

    /// Writes an order to the home, and returns it as it is broadcast.
    async fn write(home: &Store, state: RunState, epoch: u64) -> Vec<u8> {
        let control = Control { state, epoch, ..Control::default() };
        home.put(&keys::control("r"), serde_json::to_vec(&control).expect("a record")).await.expect("writable");
        serde_json::to_vec(&ControlWritten { run: "r".into(), control }).expect("a message")
    }

    #[tokio::test]
    async fn a_broadcast_is_followed_at_once_and_without_one_the_file_is_read_rarely() {
        let dir = tempfile::tempdir().expect("writable");
        let home = Store::open(&dir.path().to_string_lossy()).await.expect("a folder");
        let queue = queue::Queue::open("embedded:").await.expect("a queue");
        let control = RunControl::new(&Runs::Home(home.clone()));
        let listening = tokio::spawn(control.clone().listen(queue.listen()));
        write(&home, RunState::Running, 2).await;
        assert!(control.may_compute("r").await);
        let paused = write(&home, RunState::Paused, 2).await;
        assert!(control.may_compute("r").await, "the file is not read each time");
        let running = write(&home, RunState::Running, 2).await;
        let stale = Control { state: RunState::Paused, epoch: 1, ..Control::default() };
        let stale = serde_json::to_vec(&ControlWritten { run: "r".into(), control: stale }).expect("a message");
        for (message, may) in [(paused, false), (running, true), (stale, true)] {
            // What is no order at all does no harm.
            queue.broadcast(b"{".to_vec()).await.expect("sent");
            queue.broadcast(message).await.expect("sent");
            control.heard.notified().await;
            assert_eq!(control.may_compute("r").await, may);
        }
        listening.abort();
    }

    #[test]
    fn the_file_is_read_at_different_times_and_soon_while_jobs_go_back() {
        let mut known = Known::default();
        let order = known.order("r");
        order.take(Control::default());
        let now = Instant::now();
        for luck in [0.0, 0.5, 1.0] {
            order.hold(now, luck);
            let seconds = (order.until - now).as_secs_f64();
            assert!((22.5..=37.5).contains(&seconds) && (seconds - (22.5 + 15.0 * luck)).abs() < 1e-6, "{seconds}");
        }
        order.take(Control { state: RunState::Paused, ..Control::default() });
        order.hold(now, 1.0);
        assert_eq!(order.until - now, HOLDS, "jobs of a run that goes on must not go back for long");
    }
}
