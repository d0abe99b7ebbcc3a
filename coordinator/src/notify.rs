//! Notifications: what operators are told when a run ends, is paused or stands still, or when store or broker are away.
//!
//! [`notice`] (pure) says what is told and signs it; [`send`] (io) sends it to a URL or a program; [`outbox`] (io) keeps what must not
//! be lost; [`stall`] (pure) finds runs that stand still. `service` decides when.

pub mod notice;
pub(crate) mod outbox;
pub mod send;
pub(crate) mod stall;

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use store::Store;

use notice::Notice;
use send::Target;

/// Pauses before the second and each further try, in seconds: about nine hours in all.
const PAUSES: [u64; 8] = [5, 30, 120, 600, 1800, 3600, 7200, 18_000];
/// Notices that are sent at a time.
const AT_ONCE: usize = 4;

/// Whom to tell, and when.
#[derive(Clone)]
pub struct Notify {
    pub targets: Vec<Target>,
    /// A running run with images left that makes no progress for this long has stalled.
    pub stalled_after: Duration,
    /// Pauses before the second and each further try; after the last try a notice is given up.
    pub pauses: Vec<Duration>,
}

impl Notify {
    pub fn new(targets: Vec<Target>, stalled_after: Duration) -> Notify {
        Notify { targets, stalled_after, pauses: PAUSES.map(Duration::from_secs).to_vec() }
    }

    /// Tells nobody.
    pub fn nobody() -> Notify {
        Notify::new(vec![], Duration::MAX)
    }
}

/// Sends notices beside the loop, each until it is delivered or given up.
#[derive(Clone)]
pub(crate) struct Post {
    pub(crate) notify: Arc<Notify>,
    home: Store,
    room: Arc<tokio::sync::Semaphore>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Ids of the notices that are being sent.
    sending: HashSet<String>,
    /// By run: why a notice of it is not delivered.
    problems: BTreeMap<String, String>,
}

impl Post {
    pub(crate) fn new(notify: Notify, home: Store) -> Post {
        let room = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
        Post { notify: Arc::new(notify), home, room, state: Arc::default() }
    }

    /// Whether there is nobody to tell.
    pub(crate) fn is_idle(&self) -> bool {
        self.notify.targets.is_empty()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the lock panics")
    }

    /// Why a notice of the run is not delivered.
    pub(crate) fn problem(&self, run: &str) -> Option<String> {
        self.state().problems.get(run).cloned()
    }

    /// Forgets a run that is deleted.
    pub(crate) fn forget(&self, run: &str) {
        self.state().problems.remove(run);
    }

    /// Sends a notice until each target has it or the tries are used up, and takes it out of the outbox. A notice that is being sent
    /// is not sent again.
    pub(crate) async fn deliver(self, notice: Notice) {
        if self.is_idle() || !self.state().sending.insert(notice.id.clone()) {
            return;
        }
        let mut undelivered = self.notify.targets.clone();
        let mut pauses = self.notify.pauses.iter();
        loop {
            let (left, why) = self.try_all(undelivered, &notice).await;
            undelivered = left;
            if undelivered.is_empty() {
                tracing::info!(id = notice.id, kind = notice.kind.as_str(), run = notice.data.run, "notification delivered");
                self.settle(&notice, None);
                break;
            }
            let Some(pause) = pauses.next() else {
                tracing::error!(id = notice.id, kind = notice.kind.as_str(), run = notice.data.run, why, "notification given up");
                self.settle(&notice, Some(format!("{} was not delivered and is given up: {why}", notice.kind.as_str())));
                break;
            };
            let (id, kind) = (&notice.id, notice.kind.as_str());
            tracing::warn!(id, kind, run = notice.data.run, why, "notification not delivered; tried again");
            self.settle(&notice, Some(format!("{kind} is not delivered yet; tried again: {why}")));
            tokio::time::sleep(*pause).await;
        }
        outbox::take(&self.home, &notice).await;
        self.state().sending.remove(&notice.id);
    }

    /// Tries each target once. Returns those that do not have the notice, and why.
    async fn try_all(&self, targets: Vec<Target>, notice: &Notice) -> (Vec<Target>, String) {
        let (mut left, mut why) = (vec![], vec![]);
        for target in targets {
            let _room = self.room.acquire().await.expect("it is never closed");
            if let Err(error) = target.send(notice).await {
                why.push(error);
                left.push(target);
            }
        }
        (left, why.join("; "))
    }

    fn settle(&self, notice: &Notice, problem: Option<String>) {
        let Some(run) = &notice.data.run else { return };
        match problem {
            Some(problem) => drop(self.state().problems.insert(run.clone(), problem)),
            None => drop(self.state().problems.remove(run)),
        }
    }
}
