//! Errors of the results of a run (*io*): from the snapshot in the home, and from results that are in no snapshot and no event.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use proto::keys::Marker;
use proto::{Errors, ResultRecord, Snapshot, chain, keys};
use store::{ErrorKind, Runs, Store};

use crate::Error;
use crate::tally;
use dataset::SharedStr;
use results::RunError;
use results::run::{self, AT_ONCE};

/// Shortest time between two snapshots of a run, and with many new results.
const EVERY: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(5);
/// New results are many from this number on, and in a large snapshot from this share of it on. So all snapshots of a run together are at
/// most nine times as large as the last one.
const MANY: usize = 10_000;
const SHARE: usize = 8;
/// Results written each second, at most, over a long time. With 30 to 35 bytes each, some 100 kB each second: the snapshot of 10^7
/// results (340 MB) is written once in 56 minutes.
const PER_SECOND: f64 = 3000.0;

/// Whether a snapshot is to be written: `new` results are not among the `counted` ones of the last, which was begun `since` then.
/// Pure.
pub(super) fn snapshot_due(counted: usize, new: usize, since: Duration) -> bool {
    let pause = EVERY.max(Duration::from_secs_f64((counted + new) as f64 / PER_SECOND));
    new > 0 && since >= pause || new >= MANY.max(counted / SHARE) && since >= SOON
}

/// The number of a job, and class and errors of its result if it can be read.
pub(super) type Found = (u64, Option<(u32, Errors)>);

/// `None` for results that are gone or damaged.
pub(super) async fn read_errors(home: &Store, name: &str, wanted: Vec<(u64, SharedStr)>) -> Result<Vec<Found>, Error> {
    let results = Runs::Home(home.clone()).of(name)?;
    let read = move |(job, image): (u64, SharedStr)| {
        let results = results.clone();
        async move {
            match run::read_json::<ResultRecord>(&results, &keys::marker(&image, Marker::Result)).await {
                Ok(record) => Ok((job, Some((record.class, tally::errors(&record))))),
                Err(error) if error.is_not_found() => Ok((job, None)),
                Err(error @ RunError::Damaged { .. }) => {
                    tracing::warn!(error = chain(&error), "a result does not count among the errors by class");
                    Ok((job, None))
                }
                Err(error) => Err(error.into()),
            }
        }
    };
    stream::iter(wanted).map(read).buffer_unordered(AT_ONCE).try_collect().await
}

/// `None`: there is no whole snapshot, and the results must be read.
pub(super) async fn read_snapshot(results: &Store) -> Option<Snapshot> {
    let bytes = match results.get(keys::SNAPSHOT).await {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(error = chain(&error), "the snapshot cannot be read");
            return None;
        }
    };
    let decoded = Snapshot::decode(&bytes);
    decoded.inspect_err(|error| tracing::warn!(at = results.url(), error = chain(error), "the snapshot is not used")).ok()
}

/// Writes a snapshot. Returns how many results count in it; `None` after an error, which costs only time at the next start.
pub(super) async fn save(home: &Store, name: &str, snapshot: Snapshot) -> Option<usize> {
    let counted = snapshot.results.len();
    let write = async {
        let bytes = tokio::task::spawn_blocking(move || snapshot.encode()).await.expect("encoding does not panic");
        Runs::Home(home.clone()).of(name)?.put(keys::SNAPSHOT, bytes).await
    };
    match write.await {
        Ok(()) => Some(counted),
        Err(error) => {
            tracing::warn!(run = name, error = chain(&error), "the snapshot cannot be written");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::KnownResult;

    use super::*;

    /// Results written in all snapshots while a run of `total` results grows by `rate` each second, and in the last one.
    fn written(total: usize, rate: usize, start: usize) -> (usize, usize) {
        let (mut counted, mut at, mut there, mut written) = (start, 0, start, 0);
        let mut now = 0;
        while there < total {
            now += 1;
            there = (there + rate).min(total);
            if snapshot_due(counted, there - counted, Duration::from_secs(now - at)) {
                (counted, at, written) = (there, now, written + there);
            }
        }
        (written, now as usize)
    }

    #[test]
    fn the_cost_of_snapshots_is_bounded_whatever_the_size_of_the_run() {
        // A large run on a large fleet, and a small one.
        for (total, rate) in [(10_000_000, 30), (1_000_000, 100), (1000, 1)] {
            let (results, seconds) = written(total, rate, 0);
            let each = results as f64 / seconds as f64;
            assert!(each <= PER_SECOND * 1.1 && results >= total * 9 / 10, "{total}: {each} results each second");
        }
        // A start without a snapshot reads the results, 100 times as fast.
        let (results, _) = written(10_000_000, 3000, 0);
        assert!(results <= 12 * 10_000_000, "{results}");
    }

    #[test]
    fn a_snapshot_is_written_only_for_something_new_and_a_small_one_each_minute() {
        let after = |counted, new, seconds| snapshot_due(counted, new, Duration::from_secs(seconds));
        assert!(!after(100, 0, 1_000_000));
        assert_eq!([59, 60].map(|seconds| after(100, 1, seconds)), [false, true]);
        assert_eq!([60, 3299, 3400].map(|seconds| after(10_000_000, 1, seconds)), [false, false, true]);
        assert_eq!([4, 5].map(|seconds| after(0, 10_000, seconds)), [false, true]);
        assert!(!after(10_000_000, 10_000, 5));
    }

    #[test]
    fn a_result_of_a_snapshot_has_35_bytes_at_most() {
        let known = |job: u64| KnownResult { job, class: 999, errors: Errors { loss: 0.1, l1: 0.2, lpips: 0.3 } };
        let results: Vec<KnownResult> = (0..1000).map(|i| known(u64::MAX / 1000 * i)).collect();
        let bytes = Snapshot { results }.encode().len();
        assert!(bytes <= 35 * 1000 + 100, "{bytes}");
    }
}
