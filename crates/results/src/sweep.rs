//! Deletes what lost attempts left in a run (*io*).

use std::collections::{BTreeSet, HashSet};
use std::time::SystemTime;

use futures_util::{StreamExt, TryStreamExt, stream};
use proto::keys::{Kind, Marker};
use proto::{ResultRecord, chain, keys};
use sha2::{Digest, Sha256};
use store::{ErrorKind, PutNew, Store};

use crate::run::{ABANDONED, AT_ONCE, RunError, delete_each, read_json};

/// The attempts whose results count, each as 16 bytes of a digest.
#[derive(Clone, Debug, Default)]
pub struct Winners(HashSet<[u8; 16]>);

impl Winners {
    /// With room for so many.
    pub fn with_capacity(results: usize) -> Winners {
        Winners(HashSet::with_capacity(results))
    }

    pub fn add(&mut self, record: &ResultRecord) {
        self.0.insert(short(&keys::place(&record.image), &record.attempt));
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn has(&self, place: &str, attempt: &str) -> bool {
        self.0.contains(&short(place, attempt))
    }
}

impl<'a> FromIterator<&'a ResultRecord> for Winners {
    fn from_iter<T: IntoIterator<Item = &'a ResultRecord>>(records: T) -> Winners {
        let mut winners = Winners::default();
        records.into_iter().for_each(|record| winners.add(record));
        winners
    }
}

fn short(place: &str, attempt: &str) -> [u8; 16] {
    let digest = Sha256::new().chain_update(place).chain_update("/").chain_update(attempt).finalize();
    digest[..16].try_into().expect("a digest has 32 bytes")
}

/// Content of a claim that a sweep has made: the attempt can never commit.
pub const SWEPT: &[u8] = b"swept";

/// Whether the objects of an attempt may be deleted: it has not committed, and either it never can or the image has another result.
///
/// A worker creates the attempt's claim before it creates the commit marker, and gives up if the claim is there already (see
/// `docs/src/adr/0015`). Here the same key is created. So exactly one of the two has it:
/// * the sweep: the attempt ends without a commit, or had committed and deleted its claim. The marker, read afterwards, tells which;
/// * the worker: it may commit at any moment, and its objects stay unless the image has the result of another attempt.
///
/// The marker is read here and not taken from records that the caller read before: they may be those of a time before a redrive.
async fn is_lost(place: &str, attempt: &str, results: &Store) -> Result<bool, RunError> {
    let claim = keys::claim_at(place, attempt);
    let fenced = match results.put_new(&claim, SWEPT).await? {
        PutNew::Created => true,
        PutNew::Exists => match results.get(&claim).await {
            Ok(there) => there == SWEPT,
            // The attempt ended just now.
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(error.into()),
        },
    };
    match read_json::<ResultRecord>(results, &keys::marker_at(place, Marker::Result)).await {
        Ok(record) => Ok(record.attempt != attempt),
        Err(error) if error.is_not_found() => Ok(fenced),
        // Nobody knows whose objects count.
        Err(RunError::Damaged { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Which of these attempts, each a place and a name, are lost.
async fn lost_attempts(attempts: BTreeSet<(String, String)>, results: &Store) -> Result<HashSet<(String, String)>, RunError> {
    let results = results.clone();
    let look = move |(place, attempt): (String, String)| {
        let results = results.clone();
        async move { Ok::<_, RunError>(is_lost(&place, &attempt, &results).await?.then_some((place, attempt))) }
    };
    let lost: Vec<Option<(String, String)>> = stream::iter(attempts).map(look).buffer_unordered(AT_ONCE).try_collect().await?;
    Ok(lost.into_iter().flatten().collect())
}

/// Deletes the objects of attempts that do not count, attempts and checkpoints of finished images, and unfinished uploads; returns the
/// number of deleted objects.
pub async fn sweep(winners: &Winners, results: &Store) -> Result<usize, RunError> {
    let of_loser = |key: &str| match keys::parse(key) {
        Some(Kind::Item(place, attempt, _)) if !winners.has(place, attempt) => Some((place.to_owned(), attempt.to_owned())),
        _ => None,
    };
    let mut swept = 0;
    let mut lister = results.list(keys::IMAGES)?;
    while let Some(page) = lister.next_page().await? {
        let lost = lost_attempts(page.iter().filter_map(|object| of_loser(&object.key)).collect(), results).await?;
        let is_lost = |key: &String| of_loser(key).is_some_and(|attempt| lost.contains(&attempt));
        let keys: Vec<String> = page.into_iter().map(|object| object.key).filter(is_lost).collect();
        swept += keys.len();
        delete_each(results, keys).await?;
    }
    // The claims of winners that ended before they could delete them. What a sweep has claimed stays: the attempt may sleep.
    let is_winners = |key: &String| keys::parse_claim(key).is_some_and(|(place, attempt)| winners.has(place, attempt));
    for (prefix, all) in [(keys::CLAIMS, false), (keys::ATTEMPTS, true), (keys::CHECKPOINTS, true)] {
        let mut lister = results.list(prefix)?;
        while let Some(page) = lister.next_page().await? {
            let keys: Vec<String> = page.into_iter().map(|object| object.key).filter(|key| all || is_winners(key)).collect();
            swept += keys.len();
            delete_each(results, keys).await?;
        }
    }
    match results.sweep_uploads(SystemTime::now() - ABANDONED).await {
        Ok(uploads) => swept += uploads,
        // It costs space only, and not every store allows it.
        Err(error) => tracing::warn!(error = chain(&error), "cannot remove unfinished uploads"),
    }
    Ok(swept)
}

#[cfg(test)]
mod tests {
    use proto::keys::Item;
    use proto::{Job, sample};

    use super::*;

    async fn store() -> (Store, tempfile::TempDir) {
        let dir = tempfile::tempdir().expect("a folder");
        (Store::open(&dir.path().to_string_lossy()).await.expect("a store"), dir)
    }

    /// The result of an attempt, which has one object.
    async fn upload(results: &Store, image: &str, attempt: &str) -> ResultRecord {
        results.put(&keys::item(image, attempt, Item::Target), "picture").await.expect("writable");
        let job = Job { image: image.into(), ..sample::job() };
        ResultRecord { attempt: attempt.into(), ..sample::result(&job, vec![]) }
    }

    async fn commit(results: &Store, record: &ResultRecord) {
        let bytes = serde_json::to_vec(record).expect("a record");
        results.put(&keys::marker(&record.image, Marker::Result), bytes).await.expect("writable");
    }

    async fn has(results: &Store, key: &str) -> bool {
        results.exists(key).await.expect("readable")
    }

    #[tokio::test]
    async fn a_sweep_deletes_only_what_can_never_commit() {
        let (results, _dir) = store().await;
        let winner = upload(&results, "a.png", "w").await;
        commit(&results, &winner).await;
        // One that lost, one that is stopped before its claim, one after it, and the claim that the winner left.
        for (image, attempt) in [("a.png", "lost"), ("b.png", "early"), ("c.png", "late")] {
            upload(&results, image, attempt).await;
        }
        for claim in [keys::claim("a.png", "w"), keys::claim("c.png", "late")] {
            results.put(&claim, "commits").await.expect("writable");
        }
        for turn in 0..2 {
            sweep(&Winners::from_iter([&winner]), &results).await.expect("it goes well");
            let kept = async |image, attempt| has(&results, &keys::item(image, attempt, Item::Target)).await;
            let left = [kept("a.png", "w").await, kept("a.png", "lost").await, kept("b.png", "early").await];
            assert_eq!((left, kept("c.png", "late").await), ([true, false, false], true), "turn {turn}");
            assert_eq!(results.get(&keys::claim("b.png", "early")).await.expect("a claim"), SWEPT);
            assert!(!has(&results, &keys::claim("a.png", "w")).await && has(&results, &keys::claim("c.png", "late")).await);
        }
    }

    /// A coordinator that was stopped since before a redrive, and has read the results of that time.
    #[tokio::test]
    async fn a_sweep_with_old_records_leaves_the_new_result_whole() {
        let (results, _dir) = store().await;
        let old = upload(&results, "a.png", "old").await;
        let new = upload(&results, "a.png", "new").await;
        commit(&results, &new).await;
        sweep(&Winners::from_iter([&old]), &results).await.expect("it goes well");
        assert!(has(&results, &keys::item("a.png", "new", Item::Target)).await);
    }
}
