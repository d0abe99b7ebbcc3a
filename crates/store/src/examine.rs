//! Whether a store does what a fleet needs.

use crate::stream::PIECE;
use crate::{Error, ErrorKind, PutNew, Store};

/// Keys that are raced for, and writers for each.
const KEYS: usize = 50;
const WRITERS: u8 = 8;
const PLACE: &str = "basin-doctor-check";

impl Store {
    /// Writes, reads, lists and deletes, and lets writers race for keys. Returns what a fleet cannot live with, for people;
    /// an error is a permission that is missing, or no store at all. What it wrote is deleted.
    pub async fn examine(&self) -> Result<Vec<String>, Error> {
        self.check_writable().await?;
        let place = self.with_prefix(PLACE)?;
        let mut problems = Vec::new();
        let found = place.examine_objects(&mut problems).await;
        let large = place.examine_large(&mut problems).await;
        let raced = place.race(KEYS).await;
        for object in place.list("")?.all().await? {
            place.delete(&object.key).await?;
        }
        found?;
        large?;
        let wrong = raced?;
        if wrong > 0 {
            problems.push(format!(
                "put-if-absent (If-None-Match: *) does not hold under a race: {wrong} of {KEYS} keys had not exactly one winner; two \
                workers could both commit an image. Use a store that honours it"
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
            problems.push("an object that was written again is read as it was before".into());
        }
        let after = self.identity("a/object").await?;
        if before == after {
            problems.push("an object that changed has the same identity (ETag)".into());
        }
        let listed = self.list("a/")?.all().await?;
        match listed.as_slice() {
            [one] if one.key == "a/object" && Some(&one.identity) == after.as_ref() => {}
            other => problems.push(format!("a listing right after the write does not show the object as it is: {other:?}")),
        }
        self.delete("a/object").await?;
        if self.exists("a/object").await? {
            problems.push("an object that was deleted is still there".into());
        }
        match self.get("a/object").await {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => problems.push(format!("a missing object is not told as missing: {error}")),
            Ok(_) => problems.push("an object that was deleted can be read".into()),
        }
        Ok(())
    }

    /// What does not fit into one piece.
    async fn examine_large(&self, problems: &mut Vec<String>) -> Result<(), Error> {
        let content = vec![7; PIECE + 1];
        self.put("large", content.clone()).await?;
        let mut download = self.download("large").await?;
        let mut read = Vec::new();
        while let Some(piece) = download.next().await? {
            read.extend_from_slice(&piece);
        }
        if read != content {
            problems.push("an object that was written in parts and read in ranges is not the same".into());
        }
        Ok(())
    }

    /// Lets writers race for each of `keys` new keys `race/<n>`; returns for how many of them not exactly one won, or another's
    /// content stayed. The keys are left behind.
    pub async fn race(&self, keys: usize) -> Result<usize, Error> {
        let mut wrong = 0;
        for key in 0..keys {
            let name = format!("race/{key}");
            let writers = (0..WRITERS).map(|writer| {
                let (store, name) = (self.clone(), name.clone());
                tokio::spawn(async move { Ok((writer, store.put_new(&name, vec![writer]).await?)) })
            });
            let mut winners = Vec::new();
            for writer in writers.collect::<Vec<_>>() {
                let (writer, put) = writer.await.expect("no writer panics")?;
                winners.extend((put == PutNew::Created).then_some(writer));
            }
            // The winner may not be told so, when the answer to its request was lost.
            let content = self.get(&name).await?;
            if content.len() != 1 || (!winners.is_empty() && content != winners) {
                wrong += 1;
            }
        }
        Ok(wrong)
    }
}
