//! What a fleet needs of its home before it acts (*io*).

use std::time::{SystemTime, UNIX_EPOCH};

use store::Store;

use crate::Error;

/// Keys that are raced for, one after another.
const KEYS: usize = 8;

/// Refuses a home where of several who create a key not exactly one wins. The quick part of [`Store::examine`].
pub async fn check(home: &Store) -> Result<(), Error> {
    // A folder needs no more than a look.
    let keys = if home.local_path("key").is_some() { 1 } else { KEYS };
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let place = home.with_prefix(&format!("basin-start-check/{}-{time}", std::process::id()))?;
    let raced = place.race(keys).await;
    for object in place.list("")?.all().await? {
        place.delete(&object.key).await?;
    }
    match raced? {
        0 => Ok(()),
        _ => Err(Error::BadHome { url: home.url() }),
    }
}
