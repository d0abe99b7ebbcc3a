//! A checkpoint as bytes: a line of text that says what it is, then postcard, then SHA-256.

use projector::Checkpoint;
use proto::JobId;
use sha2::{Digest, Sha256};

const MAGIC: &str = "basin checkpoint 5 ";

/// The checkpoint of a job: the search's own, and what the worker knows beside it.
#[derive(Clone, Debug)]
pub struct JobCheckpoint {
    pub state: Checkpoint,
    pub seconds: f64,
    /// Digest of class, pixels and mask. When another class or object is found in the image, the checkpoint does not fit any more.
    pub target: String,
}

pub fn encode(job: &JobId, checkpoint: &JobCheckpoint) -> Vec<u8> {
    let mut bytes = format!("{MAGIC}{job}\n{}\n", checkpoint.target).into_bytes();
    bytes.extend(checkpoint.seconds.to_le_bytes());
    bytes.extend(postcard::to_stdvec(&checkpoint.state).expect("plain data serialises"));
    let digest = Sha256::digest(&bytes);
    bytes.extend_from_slice(&digest);
    bytes
}

/// `None`: the bytes are damaged, or belong to another job or another version.
pub fn decode(job: &JobId, bytes: &[u8]) -> Option<JobCheckpoint> {
    let (content, digest) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
    if Sha256::digest(content).as_slice() != digest {
        return None;
    }
    let rest = content.strip_prefix(format!("{MAGIC}{job}\n").as_bytes())?;
    let line = rest.iter().position(|byte| *byte == b'\n')?;
    let target = String::from_utf8(rest[..line].to_vec()).ok()?;
    let (seconds, state) = rest[line + 1..].split_at_checked(8)?;
    let seconds = f64::from_le_bytes(seconds.try_into().ok()?);
    let seconds = if seconds.is_finite() { seconds } else { 0.0 };
    Some(JobCheckpoint { state: postcard::from_bytes(state).ok()?, seconds, target })
}
