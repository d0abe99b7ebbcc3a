//! Ends the process when its devices hang (*io*): a thread inside the driver cannot be stopped in another way.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::attempt::Shared;
use crate::{Working, exit, heartbeat};

/// A step of the devices that takes longer than this counts as hanging, unless `--step-limit` says otherwise.
pub const STEP_LIMIT: Duration = Duration::from_secs(600);
/// Longest time between two looks.
const LOOK: Duration = Duration::from_secs(5);
/// What the devices have not begun goes back to the queue in this time.
const TO_GIVE_BACK: Duration = Duration::from_secs(5);

/// Whether the devices have work and have not finished a step for longer than `limit`. `None`: there is no limit.
pub fn is_hung(working: &Working, limit: Option<Duration>) -> bool {
    let since = working.computing.map(|since| since.elapsed());
    limit.is_some_and(|limit| since.is_some_and(|since| since > limit))
}

/// Watches until it is aborted, or ends the process. `heartbeats` must not say afterwards that the worker is alive.
pub async fn run(shared: Shared, working: watch::Receiver<Working>, heartbeats: AbortHandle) {
    let Some(limit) = shared.config.step_limit else { return };
    loop {
        tokio::time::sleep(LOOK.min(limit / 4)).await;
        if is_hung(&working.borrow(), Some(limit)) {
            break;
        }
    }
    let reason = format!("no device has finished a step for {} s", limit.as_secs());
    tracing::error!(reason, exit_code = exit::HUNG, "the worker ends itself");
    heartbeats.abort();
    heartbeat::leave(&shared, Some(reason)).await;
    shared.shutdown.cancel();
    tokio::time::sleep(TO_GIVE_BACK).await;
    // Not `exit`, which would wait for libtorch's threads.
    signal_hook::low_level::exit(exit::HUNG.into());
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn only_devices_with_work_hang_and_only_after_the_limit() {
        let at = |ago: Option<u64>| {
            let computing =
                ago.map(|seconds| Instant::now().checked_sub(Duration::from_secs(seconds)).expect("the machine is up"));
            Working { images: 1, computing, ..Working::default() }
        };
        let limit = Some(Duration::from_secs(3));
        assert!(!is_hung(&at(None), limit));
        assert!(!is_hung(&at(Some(1)), limit));
        assert!(is_hung(&at(Some(4)), limit));
        assert!(!is_hung(&at(Some(4)), None));
    }
}
