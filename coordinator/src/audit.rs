//! The log of changes in the home (*io*): who did what. One object for each entry, whose key sorts by time: entries need no lock and no
//! read before a write, and one that is damaged or lost takes no other with it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{StreamExt, TryStreamExt, stream};
use proto::{chain, keys};
use store::{PutNew, Store};

use crate::Error;
use client::api::{LogEntry, LogQuery};

/// Tries to write an entry, and the pause between them.
const TRIES: usize = 3;
const PAUSE: Duration = Duration::from_secs(1);
/// Entries that are read at a time.
const READS: usize = 32;

/// Writes an entry with the time of now, to the home and to the coordinator's own log. An entry that cannot be written to the home is
/// only in the latter.
pub(crate) async fn record(home: &Store, mut entry: LogEntry) {
    let micros = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    entry.time = micros.try_into().unwrap_or(u64::MAX);
    let LogEntry { action, run, who, address, detail, .. } = &entry;
    tracing::info!(action, run, who, address, detail, "change");
    for n in 0..TRIES {
        match write(home, &mut entry).await {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!(error = chain(&error), run = entry.run, "a change cannot be written to the log in the home")
            }
        }
        if n + 1 < TRIES {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// If there is an entry of the same time already, this one gets a later time.
async fn write(home: &Store, entry: &mut LogEntry) -> Result<(), Error> {
    loop {
        let key = keys::log_entry(entry.time, &entry.action, &entry.run);
        let bytes = serde_json::to_vec_pretty(entry).expect("plain fields serialise");
        match home.put_new(&key, bytes).await? {
            PutNew::Created => return Ok(()),
            PutNew::Exists => entry.time += 1,
        }
    }
}

/// The newest entries, the newest first.
pub(crate) async fn read(home: &Store, query: &LogQuery) -> Result<Vec<LogEntry>, Error> {
    let wanted = |key: &str| {
        let entry = keys::parse_log_entry(key);
        entry.is_some_and(|(_, _, run)| query.run.as_ref().is_none_or(|wanted| wanted == run))
    };
    let limit = if query.limit == 0 { LogQuery::LIMIT } else { query.limit.min(LogQuery::MOST) };
    let mut keys: Vec<String> = home.list(keys::LOG)?.all().await?.into_iter().map(|object| object.key).collect();
    keys.retain(|key| wanted(key));
    let newest = keys.into_iter().rev().take(limit);
    let read = newest.map(|key| async move {
        let bytes = home.get(&key).await?;
        let entry = serde_json::from_slice::<LogEntry>(&bytes);
        Ok::<_, Error>(entry.inspect_err(|error| tracing::warn!(key, %error, "an entry of the log is damaged")).ok())
    });
    let entries: Vec<Option<LogEntry>> = stream::iter(read).buffered(READS).try_collect().await?;
    Ok(entries.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn entries_are_read_newest_first_and_by_run_and_none_takes_anothers_place() {
        let dir = tempfile::tempdir().expect("a folder");
        let home = Store::open(&dir.path().to_string_lossy()).await.expect("a store");
        let entry = |run: &str, action: &str| LogEntry {
            time: 0,
            action: action.into(),
            run: run.into(),
            who: "token".into(),
            address: Some("10.0.0.1".into()),
            detail: String::new(),
        };
        for (run, action) in [("a", "submit"), ("a.b", "submit"), ("a", "pause"), ("a", "resume")] {
            record(&home, entry(run, action)).await;
        }
        let mut twice = [entry("a", "cancel"), entry("a", "cancel")].map(|entry| LogEntry { time: u64::MAX - 9, ..entry });
        for entry in &mut twice {
            write(&home, entry).await.expect("writable");
        }
        home.put(&keys::log_entry(3, "odd", "a"), "{").await.expect("writable");
        let read = async |run: Option<&str>, limit| {
            let query = LogQuery { run: run.map(str::to_owned), limit };
            let entries = read(&home, &query).await.expect("readable");
            entries.into_iter().map(|entry| entry.action).collect::<Vec<_>>()
        };
        assert_eq!(read(Some("a"), 0).await, ["cancel", "cancel", "resume", "pause", "submit"]);
        assert_eq!((read(Some("a.b"), 0).await.len(), read(None, 3).await.len(), read(Some("b"), 0).await.len()), (1, 3, 0));
    }
}
