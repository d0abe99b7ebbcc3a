//! The state of an unfinished projection as bytes: a line of text that says what it is, then postcard, then SHA-256.

use projector::Checkpoint;
use proto::JobId;
use sha2::{Digest, Sha256};

const MAGIC: &str = "basin checkpoint 3 ";

/// What is kept of an unfinished projection.
#[derive(Clone, Debug)]
pub struct Saved {
    /// The method's state.
    pub state: Checkpoint,
    /// Seconds of device work so far.
    pub seconds: f64,
    /// Digest of what was projected, as what: a class or an object that is found otherwise is another projection.
    pub target: String,
}

/// Bytes of what is kept of `job`.
pub fn encode(job: &JobId, saved: &Saved) -> Vec<u8> {
    let mut bytes = format!("{MAGIC}{job}\n{}\n", saved.target).into_bytes();
    bytes.extend(saved.seconds.to_le_bytes());
    bytes.extend(postcard::to_stdvec(&saved.state).expect("plain data serialises"));
    let digest = Sha256::digest(&bytes);
    bytes.extend_from_slice(&digest);
    bytes
}

/// What was kept, if the bytes are whole and are of this job; a checkpoint that is not is worth nothing.
pub fn decode(job: &JobId, bytes: &[u8]) -> Option<Saved> {
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
    Some(Saved { state: postcard::from_bytes(state).ok()?, seconds, target })
}
