//! Errors of the results of a run (*io*): from the snapshot in the home, and from results that are in no snapshot and no event.

use futures_util::{StreamExt, TryStreamExt, stream};
use proto::keys::Marker;
use proto::{Errors, ResultRecord, Snapshot, chain, keys};
use store::{ErrorKind, Runs, Store};

use crate::Error;
use crate::tally;
use dataset::SharedStr;
use results::RunError;
use results::run::{self, AT_ONCE};

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
