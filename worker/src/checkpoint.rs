//! The state of an unfinished projection as bytes: a line of text that says what it is, then postcard, then SHA-256.

use projector::Checkpoint;
use proto::JobId;
use sha2::{Digest, Sha256};

const MAGIC: &str = "basin checkpoint 1 ";

/// Bytes of a checkpoint of `job`.
pub fn encode(job: &JobId, checkpoint: &Checkpoint) -> Vec<u8> {
    let mut bytes = format!("{MAGIC}{job}\n").into_bytes();
    bytes.extend(postcard::to_stdvec(checkpoint).expect("plain data serialises"));
    let digest = Sha256::digest(&bytes);
    bytes.extend_from_slice(&digest);
    bytes
}

/// The checkpoint, if the bytes are whole and are of this job; a checkpoint that is not is worth nothing.
pub fn decode(job: &JobId, bytes: &[u8]) -> Option<Checkpoint> {
    let (content, digest) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
    if Sha256::digest(content).as_slice() != digest {
        return None;
    }
    let state = content.strip_prefix(format!("{MAGIC}{job}\n").as_bytes())?;
    postcard::from_bytes(state).ok()
}
