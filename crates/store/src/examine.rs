//! Checks that a store does what a fleet needs.

use tokio::task::JoinSet;

use crate::{Error, ErrorKind, PIECE, PutNew, Replace, Store};

/// Keys that are raced for, and writers for each.
const KEYS: usize = 50;
const WRITERS: u8 = 8;
const PLACE: &str = "basin-doctor-check";

impl Store {
    /// Writes, reads, lists and deletes objects, and lets writers race for keys. Returns the problems that rule the store out
    /// for a fleet, for people; fails if there is no store or a permission is missing. Deletes what it wrote.
    pub async fn examine(&self) -> Result<Vec<String>, Error> {
        self.check_writable().await?;
        let place = self.with_prefix(PLACE)?;
        let mut problems = Vec::new();
        let found = place.examine_objects(&mut problems).await;
        let large = place.examine_large(&mut problems).await;
        let raced = place.race(KEYS).await;
        let replaced = place.race_to_replace(KEYS).await;
        for object in place.list("")?.all().await? {
            place.delete(&object.key).await?;
        }
        found?;
        large?;
        let wrong = raced?;
        if wrong > 0 {
            problems.push(format!(
                "create-if-absent (If-None-Match: *) fails under concurrency: {wrong} of {KEYS} keys did not have exactly one winner, \
                so two workers could both commit an image. Use a store that supports conditional writes"
            ));
        }
        let wrong = replaced?;
        if wrong > 0 {
            problems.push(format!(
                "conditional replace (If-Match) fails: {wrong} of {KEYS} objects were not replaced by exactly one of several writers, \
                so a coordinator that was stopped could overwrite the orders of its successor. Use a store that supports If-Match for \
                writes"
            ));
        }
        Ok(problems)
    }

    async fn examine_objects(&self, problems: &mut Vec<String>) -> Result<(), Error> {
        let (first, second) = (b"first".as_slice(), b"second, longer".as_slice());
        self.put("a/object", first).await?;
        let before = self.identity("a/object").await?;
        self.put("a/object", second).await?;
        if self.get("a/object").await? != second {
            problems.push("an overwritten object still reads as its old content".into());
        }
        let after = self.identity("a/object").await?;
        if before == after {
            problems.push("an object keeps its identity (ETag) when it changes".into());
        }
        let listed = self.list("a/")?.all().await?;
        match listed.as_slice() {
            [one] if one.key == "a/object" && Some(&one.identity) == after.as_ref() => {}
            other => problems.push(format!("a listing right after a write does not show the object as written: {other:?}")),
        }
        self.delete("a/object").await?;
        if self.exists("a/object").await? {
            problems.push("a deleted object still exists".into());
        }
        match self.get("a/object").await {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => problems.push(format!("reading a missing object fails with another error than \"not found\": {error}")),
            Ok(_) => problems.push("a deleted object can still be read".into()),
        }
        Ok(())
    }

    /// Writes and reads an object larger than one piece.
    async fn examine_large(&self, problems: &mut Vec<String>) -> Result<(), Error> {
        let content = vec![7; PIECE + 1];
        self.put("large", content.clone()).await?;
        let mut download = self.download("large").await?;
        let mut read = Vec::new();
        while let Some(piece) = download.next().await? {
            read.extend_from_slice(&piece);
        }
        if read != content {
            problems.push("an object written in parts and read in ranges differs from the original".into());
        }
        Ok(())
    }

    /// Lets writers race for each of `keys` new keys `race/<n>`. Returns the number of keys that did not have exactly one winner,
    /// or whose content is not the winner's. Leaves the keys behind.
    pub async fn race(&self, keys: usize) -> Result<usize, Error> {
        let mut wrong = 0;
        for key in 0..keys {
            let name = format!("race/{key}");
            let writers = (0..WRITERS).map(|writer| {
                let (store, name) = (self.clone(), name.clone());
                async move { store.put_new(&name, vec![writer]).await.map(|put| (put == PutNew::Created).then_some(writer)) }
            });
            let winners = writers.collect::<JoinSet<_>>().join_all().await.into_iter();
            let winners: Vec<u8> = winners.filter_map(Result::transpose).collect::<Result<_, _>>()?;
            // The winner may get `Exists`, if the response to its request was lost.
            let content = self.get(&name).await?;
            if content.len() != 1 || (!winners.is_empty() && content != winners) {
                wrong += 1;
            }
        }
        Ok(wrong)
    }

    /// Lets writers race to replace each of `keys` objects `replace/<n>`. Returns the number of objects that did not have exactly one
    /// winner, or whose content is not the winner's, or that the server refused to replace. Leaves the objects behind.
    pub async fn race_to_replace(&self, keys: usize) -> Result<usize, Error> {
        let mut wrong = 0;
        for key in 0..keys {
            let name = format!("replace/{key}");
            self.put(&name, vec![WRITERS]).await?;
            let before = self.identity(&name).await?.unwrap_or_default();
            let writers = (0..WRITERS).map(|writer| {
                let (store, name, before) = (self.clone(), name.clone(), before.clone());
                async move {
                    let replaced = store.replace(&name, vec![writer], &before).await;
                    replaced.map(|replaced| (replaced == Replace::Replaced).then_some(writer))
                }
            });
            let answers = writers.collect::<JoinSet<_>>().join_all().await.into_iter();
            let winners: Result<Vec<u8>, Error> = answers.filter_map(Result::transpose).collect();
            let content = self.get(&name).await?;
            let right = match winners {
                // The winner may get `Conflict`, if the response to its request was lost.
                Ok(winners) => content.len() == 1 && content[0] < WRITERS && (winners.is_empty() || content == winners),
                Err(error) if error.kind() == ErrorKind::Other => false,
                Err(error) => return Err(error),
            };
            if !right {
                wrong += 1;
            }
        }
        Ok(wrong)
    }
}
