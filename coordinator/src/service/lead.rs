//! The lead of a home, as its objects know it (*io*): each leadership has an epoch, and only the newest one can write orders.
//!
//! The queue gives the lead to one coordinator at a time. But a process that was stopped does not know that its lead was taken, and
//! when it goes on it may be in the middle of a write. So `leader.json` holds the epoch of the last leadership, and every
//! `control/<run>.json` the epoch of its writer. Both are replaced on condition that they are still what was read
//! (`docs/src/adr/0016`). A new leader first writes the orders of all open runs with its own epoch: after that no write of an
//! earlier leader succeeds, wherever it was stopped.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proto::{Control, ControlWritten, Leader, chain, keys};
use queue::Queue;
use store::Store;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::Error;
use results::{RunError, run};

/// Keys that are raced for when the home is checked, one after another.
const CHECKED_KEYS: usize = 8;
/// Longest wait for a broker to take a broadcast.
const TELL: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub(super) struct Lead {
    pub(super) home: Store,
    /// 0: this coordinator does not lead yet.
    epoch: u64,
    lost: CancellationToken,
    /// Where workers hear of what is written.
    queue: Option<Queue>,
}

impl Lead {
    /// Before a coordinator leads.
    pub(super) fn none(home: Store) -> Lead {
        Lead { home, epoch: 0, lost: CancellationToken::new(), queue: None }
    }

    /// Takes the next epoch.
    pub(super) async fn take(home: &Store) -> Result<Lead, Error> {
        let mut taken = Ok(0);
        let take = |there: Option<&[u8]>| {
            taken = there.map_or(Ok(1), next_epoch);
            let epoch = *taken.as_ref().ok()?;
            let leader = Leader { format: 1, epoch, holder: format!("process {}", std::process::id()) };
            Some(serde_json::to_vec_pretty(&leader).expect("a record serialises"))
        };
        home.update(keys::LEADER, take).await?;
        let epoch = taken.map_err(|source| RunError::Damaged { key: keys::LEADER.into(), source })?;
        tracing::info!(epoch, "this coordinator leads");
        Ok(Lead { epoch, ..Lead::none(home.clone()) })
    }

    /// Broadcasts what it writes.
    pub(super) fn telling(self, queue: &Queue) -> Lead {
        Lead { queue: Some(queue.clone()), ..self }
    }

    /// Cancelled when it is known that another coordinator leads.
    pub(super) fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    /// An error if another coordinator leads.
    pub(super) async fn check(&self) -> Result<(), Error> {
        let leader = run::if_present(run::read_json::<Leader>(&self.home, keys::LEADER).await)?;
        if leader.is_some_and(|leader| leader.epoch > self.epoch) { Err(self.give_up()) } else { Ok(()) }
    }

    /// Writes what is to be done with a run, and tells the workers.
    pub(super) async fn write(&self, run: &str, control: Control) -> Result<(), Error> {
        self.check().await?;
        let control = Control { epoch: self.epoch, ..control };
        let written = self.home.update(&keys::control(run), |there| order_over(there, control)).await?;
        if !written {
            return Err(self.give_up());
        }
        self.tell(run, control).await;
        Ok(())
    }

    /// Workers that do not hear it read the control file a little later.
    async fn tell(&self, run: &str, control: Control) {
        let Some(queue) = &self.queue else { return };
        let message = serde_json::to_vec(&ControlWritten { run: run.to_owned(), control }).expect("a message serialises");
        match timeout(TELL, queue.broadcast(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(run, error = chain(&error), "workers learn of a change only when they read it"),
            Err(_) => tracing::warn!(run, seconds = TELL.as_secs(), "workers learn of a change only when they read it"),
        }
    }

    /// Reads what is to be done with a run, and makes it an order of this epoch.
    pub(super) async fn claim(&self, run: &str) -> Result<Control, Error> {
        let key = keys::control(run);
        let mut found = Ok(Control::default());
        let claim = |there: Option<&[u8]>| {
            found = there.map_or(Ok(Control::default()), serde_json::from_slice);
            let control = *found.as_ref().ok()?;
            order_over(there, Control { epoch: self.epoch, ..control })
        };
        let written = self.home.update(&key, claim).await?;
        let control = found.map_err(|source| RunError::Damaged { key, source })?;
        if written { Ok(Control { epoch: self.epoch, ..control }) } else { Err(self.give_up()) }
    }

    fn give_up(&self) -> Error {
        self.lost.cancel();
        Error::LostLead
    }
}

fn next_epoch(leader: &[u8]) -> Result<u64, serde_json::Error> {
    serde_json::from_slice::<Leader>(leader).map(|leader| leader.epoch + 1)
}

/// The bytes of `control`, to be written over the order that is there; `None` if that one is of a later epoch. Pure.
fn order_over(there: Option<&[u8]>, control: Control) -> Option<Vec<u8>> {
    let there = there.and_then(|bytes| serde_json::from_slice::<Control>(bytes).ok());
    let later = there.is_some_and(|there| there.epoch > control.epoch);
    (!later).then(|| serde_json::to_vec_pretty(&control).expect("a record serialises"))
}

/// Refuses a home where not exactly one of several concurrent creates or replacements succeeds. The quick part of
/// [`Store::examine`].
pub(super) async fn check_home(home: &Store) -> Result<(), Error> {
    // A folder needs no more than one key.
    let keys = if home.local_path("key").is_some() { 1 } else { CHECKED_KEYS };
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let place = home.with_prefix(&format!("basin-start-check/{}-{time}", std::process::id()))?;
    let (raced, replaced) = (place.race(keys).await, place.race_to_replace(1).await);
    for object in place.list("")?.all().await? {
        place.delete(&object.key).await?;
    }
    match (raced?, replaced?) {
        (0, 0) => Ok(()),
        (0, _) => Err(Error::NoReplace { url: home.url() }),
        _ => Err(Error::BadHome { url: home.url() }),
    }
}

#[cfg(test)]
mod tests {
    use proto::RunState;

    use super::*;

    async fn home() -> (Store, tempfile::TempDir) {
        let dir = tempfile::tempdir().expect("a folder");
        (Store::open(&dir.path().to_string_lossy()).await.expect("a store"), dir)
    }

    async fn state(home: &Store) -> (RunState, u64) {
        let control: Control = run::read_json(home, &keys::control("r")).await.expect("an order");
        (control.state, control.epoch)
    }

    fn order(state: RunState) -> Control {
        Control { state, ..Control::default() }
    }

    #[tokio::test]
    async fn a_leader_whose_lead_was_taken_writes_nothing_and_knows_it() {
        let (home, _dir) = home().await;
        let first = Lead::take(&home).await.expect("the lead");
        first.write("r", order(RunState::Running)).await.expect("it leads");
        let second = Lead::take(&home).await.expect("the lead");
        assert_eq!(second.claim("r").await.expect("an order").state, RunState::Running);
        assert_eq!(state(&home).await, (RunState::Running, 2));
        let refused = first.write("r", order(RunState::Finished)).await;
        assert!(matches!(refused, Err(Error::LostLead)) && first.lost().is_cancelled());
        assert!(matches!(first.claim("r").await, Err(Error::LostLead)));
        second.write("r", order(RunState::Paused)).await.expect("it leads");
        assert_eq!((state(&home).await, second.lost().is_cancelled()), ((RunState::Paused, 2), false));
    }

    #[tokio::test]
    async fn what_a_leader_writes_is_broadcast_and_what_it_may_not_write_is_not() {
        let (home, _dir) = home().await;
        let queue = Queue::open("embedded:").await.expect("a queue");
        let mut workers = queue.listen();
        let first = Lead::take(&home).await.expect("the lead").telling(&queue);
        first.write("r", order(RunState::Paused)).await.expect("it leads");
        let second = Lead::take(&home).await.expect("the lead").telling(&queue);
        assert!(first.write("r", order(RunState::Finished)).await.is_err());
        second.write("r", order(RunState::Running)).await.expect("it leads");
        for (state, epoch) in [(RunState::Paused, 1), (RunState::Running, 2)] {
            let heard: ControlWritten = serde_json::from_slice(&workers.next().await.expect("it is open")).expect("a message");
            assert_eq!(heard, ControlWritten { run: "r".into(), control: Control { epoch, ..order(state) } });
        }
    }

    /// It was stopped between its look at the leader and its write.
    #[tokio::test]
    async fn a_write_that_began_before_the_lead_was_taken_fails_where_the_new_leader_has_claimed() {
        let (home, _dir) = home().await;
        let first = Lead::take(&home).await.expect("the lead");
        first.write("r", order(RunState::Running)).await.expect("it leads");
        let (key, second) = (keys::control("r"), Lead::take(&home).await.expect("the lead"));
        let seen = home.identity(&key).await.expect("readable").expect("an order");
        second.claim("r").await.expect("an order");
        let late = serde_json::to_vec(&Control { epoch: 1, ..order(RunState::Finished) }).expect("a record");
        assert_eq!(home.replace(&key, late, &seen).await.expect("writable"), store::Replace::Conflict);
        assert_eq!(state(&home).await, (RunState::Running, 2));
    }

    #[tokio::test]
    async fn leaders_that_start_at_once_have_different_epochs() {
        let (home, _dir) = home().await;
        let leads = (0..8).map(|_| {
            let home = home.clone();
            async move { Lead::take(&home).await.expect("the lead").epoch }
        });
        let mut epochs = leads.collect::<tokio::task::JoinSet<_>>().join_all().await;
        epochs.sort_unstable();
        epochs.dedup();
        assert_eq!(epochs.len(), 8);
    }

    #[tokio::test]
    async fn what_is_damaged_is_named_and_left_as_it_is() {
        let (home, _dir) = home().await;
        let lead = Lead::take(&home).await.expect("the lead");
        for key in [keys::control("r"), keys::LEADER.to_owned()] {
            home.put(&key, "{").await.expect("writable");
        }
        let damaged = |error: Error| matches!(error, Error::Run(RunError::Damaged { .. }));
        assert!(lead.claim("r").await.is_err_and(damaged));
        assert!(Lead::take(&home).await.is_err_and(damaged));
        assert_eq!(home.get(keys::LEADER).await.expect("it is there"), "{");
    }
}
