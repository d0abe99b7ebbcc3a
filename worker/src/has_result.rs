//! Whether an image has a result that counts for its job (*io*).

use proto::keys::Marker;
use proto::{JobId, ResultRecord, keys};
use store::{ErrorKind, Store};

/// Whether the job, of this id and generation, has a result.
pub async fn has_result(results: &Store, image: &str, job: &JobId, generation: u64) -> Result<bool, store::Error> {
    let marker = keys::marker(image, Marker::Result);
    if generation == 0 {
        return results.exists(&marker).await;
    }
    match results.get(&marker).await {
        Ok(there) => Ok(!is_late(&there, job, generation)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// See [`ResultRecord::is_late`]. What cannot be read stays as it is.
pub fn is_late(there: &[u8], job: &JobId, generation: u64) -> bool {
    serde_json::from_slice::<ResultRecord>(there).is_ok_and(|record| record.is_late(job.as_str(), generation))
}
