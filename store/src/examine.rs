//! Whether a store does what a fleet needs.

use std::collections::BTreeSet;

use crate::{Error, ErrorKind, PutNew, Store};

/// Keys that are raced for, and writers for each.
const KEYS: usize = 50;
const WRITERS: usize = 8;
const PLACE: &str = "basin-doctor-check";

impl Store {
    /// Writes, reads, lists and deletes, and lets writers race for keys. Returns what a fleet cannot live with, for people;
    /// an error is a permission that is missing, or no store at all. What it wrote is deleted.
    pub async fn examine(&self) -> Result<Vec<String>, Error> {
        self.check_writable().await?;
        let place = self.with_prefix(PLACE)?;
        let mut problems = Vec::new();
        let found = place.examine_objects(&mut problems).await;
        let raced = place.race(&mut problems).await;
        for object in place.list("")?.all().await? {
            place.delete(&object.key).await?;
        }
        found?;
        raced?;
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

    /// Of all who create a key one must win, and its content must stay.
    async fn race(&self, problems: &mut Vec<String>) -> Result<(), Error> {
        let mut wrong = BTreeSet::new();
        for key in 0..KEYS {
            let name = format!("race/{key}");
            let writers = (0..WRITERS).map(|w| {
                let (store, name) = (self.clone(), name.clone());
                tokio::spawn(async move { (w, store.put_new(&name, vec![w as u8; 64]).await) })
            });
            let mut winners = Vec::new();
            for writer in writers.collect::<Vec<_>>() {
                match writer.await.expect("no writer panics") {
                    (w, Ok(PutNew::Created)) => winners.push(w),
                    (_, Ok(PutNew::Exists)) => {}
                    (_, Err(error)) => return Err(error),
                }
            }
            let content = self.get(&name).await?;
            if winners.len() != 1 || content.first() != winners.first().map(|&w| w as u8).as_ref() {
                wrong.insert(key);
            }
        }
        if !wrong.is_empty() {
            problems.push(format!(
                "put-if-absent (If-None-Match: *) does not hold under a race: {} of {KEYS} keys had not exactly one winner; two workers \
                could both commit an image. Use a store that honours it",
                wrong.len()
            ));
        }
        Ok(())
    }
}
