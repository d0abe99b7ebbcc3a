//! Notices about the end of runs that are still to be delivered (*io*). They are written before the end itself, so that a coordinator
//! which dies in between loses none: the next one finds them.

use proto::{Control, RunState, chain, keys};
use results::{RunError, run};
use store::Store;

use super::notice::{Kind, Notice};
use crate::Error;

/// Keeps a notice until [`take`].
pub(crate) async fn put(home: &Store, notice: &Notice) -> Result<(), Error> {
    match &notice.data.run {
        Some(run) if is_kept(notice.kind) => Ok(home.put(&keys::notice(run, &notice.id), notice.body()).await?),
        _ => Ok(()),
    }
}

/// A notice that stays there is sent once more by the next coordinator.
pub(crate) async fn take(home: &Store, notice: &Notice) {
    if let Some(run) = &notice.data.run
        && is_kept(notice.kind)
        && let Err(error) = home.delete(&keys::notice(run, &notice.id)).await
    {
        tracing::warn!(id = notice.id, error = chain(&error), "a notification that is done with stays in the outbox");
    }
}

/// Whether notices of this kind are kept: only those that follow from the state of a run.
fn is_kept(kind: Kind) -> bool {
    state(kind).is_some()
}

/// The state that a run gets when this happens.
fn state(kind: Kind) -> Option<RunState> {
    match kind {
        Kind::Finished => Some(RunState::Finished),
        Kind::Cancelled => Some(RunState::Cancelled),
        Kind::OverBudget => Some(RunState::Paused),
        Kind::Stalled | Kind::Recovered | Kind::OutageBegan | Kind::OutageEnded => None,
    }
}

/// What an earlier coordinator has not delivered. A notice of an end that did not come is deleted: it is made again when the end comes.
pub(crate) async fn pending(home: &Store) -> Result<Vec<Notice>, Error> {
    let mut pending = vec![];
    for object in home.list(keys::NOTICES)?.all().await? {
        let Ok(notice) = serde_json::from_slice::<Notice>(&home.get(&object.key).await?) else {
            tracing::warn!(key = object.key, "a notification in the outbox cannot be read; it is left there");
            continue;
        };
        let Some(name) = notice.data.run.as_deref().filter(|name| keys::check_run(name).is_ok()) else { continue };
        match run::if_present(run::read_json::<Control>(home, &keys::control(name)).await) {
            Ok(Some(control)) if has_come(notice.kind, control) => pending.push(notice),
            Ok(_) => home.delete(&object.key).await?,
            // The run itself is named as damaged elsewhere.
            Err(RunError::Damaged { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(pending)
}

/// Whether what a notice tells of is on record. Pure.
fn has_come(kind: Kind, control: Control) -> bool {
    state(kind) == Some(control.state) && !control.deleted
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::api::RunStatus;

    #[tokio::test]
    async fn only_what_has_come_and_is_not_delivered_is_pending() {
        let dir = tempfile::tempdir().expect("a folder");
        let home = Store::open(&dir.path().to_string_lossy()).await.expect("a store");
        let notice = |kind, run: &str| Notice::of_run(kind, &RunStatus { name: run.into(), ..RunStatus::default() }, "", "1", 7);
        let runs = [("done", RunState::Finished, false), ("again", RunState::Running, false), ("gone", RunState::Finished, true)];
        for (run, state, deleted) in runs {
            let control = serde_json::to_vec(&Control { state, deleted, ..Control::default() }).expect("a record");
            home.put(&keys::control(run), control).await.expect("writable");
            put(&home, &notice(Kind::Finished, run)).await.expect("writable");
        }
        put(&home, &notice(Kind::Cancelled, "unknown")).await.expect("writable");
        let found = pending(&home).await.expect("readable");
        assert_eq!(found, [notice(Kind::Finished, "done")]);
        take(&home, &found[0]).await;
        assert_eq!(pending(&home).await.expect("readable"), []);
        assert_eq!(home.list(keys::NOTICES).expect("a prefix").all().await.expect("readable").len(), 0);
    }
}
