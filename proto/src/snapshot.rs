//! What is known of a run's results, in a form that a restart can go on from.

use prost::Message;
use sha2::{Digest, Sha256};

use crate::{DecodeError, wire};

const VERSION: u32 = 2;
const MESSAGE: &str = "snapshot";
const DIGEST_BYTES: usize = 32;

/// What pages and tables say of each result. The results are the truth: a snapshot that is not there costs time only.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Each result once.
    pub results: Vec<KnownResult>,
}

/// What a snapshot says of a result.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KnownResult {
    /// The first eight bytes of its job's id.
    pub job: u64,
    /// Index of its class.
    pub class: u32,
    /// Errors of its best seed.
    pub errors: Errors,
}

/// Errors of the best seed of a result. NaN where there is no number.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Errors {
    /// Training loss.
    pub loss: f64,
    /// L1 inside the box after inversion.
    pub l1: f64,
    /// LPIPS inside the box after inversion.
    pub lpips: f64,
}

impl Snapshot {
    /// The bytes: the message and its SHA-256.
    pub fn encode(mut self) -> Vec<u8> {
        self.results.sort_unstable_by_key(|result| result.job);
        let of = |value: fn(&KnownResult) -> f64| self.results.iter().map(value).collect();
        let message = wire::Snapshot {
            version: VERSION,
            jobs: self.results.iter().map(|r| r.job).collect(),
            classes: self.results.iter().map(|r| r.class).collect(),
            losses: of(|r| r.errors.loss),
            l1: of(|r| r.errors.l1),
            lpips: of(|r| r.errors.lpips),
        };
        let mut bytes = message.encode_to_vec();
        let digest = Sha256::digest(&bytes);
        bytes.extend_from_slice(&digest);
        bytes
    }

    /// Reads and validates what [`Snapshot::encode`] wrote. A snapshot of version 1 holds sums only, and counts as empty.
    pub fn decode(bytes: &[u8]) -> Result<Snapshot, DecodeError> {
        let field = |field, problem: &str| DecodeError::Field { message: MESSAGE, field, problem: problem.to_owned() };
        let content = bytes.len().checked_sub(DIGEST_BYTES).map(|end| bytes.split_at(end));
        let Some((content, _)) = content.filter(|(content, digest)| Sha256::digest(content).as_slice() == *digest) else {
            return Err(field("digest", "is not that of the content"));
        };
        let malformed = |source| DecodeError::Malformed { message: MESSAGE, source };
        let wire::Snapshot { version, jobs, classes, losses, l1, lpips } = wire::Snapshot::decode(content).map_err(malformed)?;
        match version {
            1 => return Ok(Snapshot::default()),
            VERSION => {}
            found => return Err(DecodeError::Version { message: MESSAGE, found, known: VERSION }),
        }
        if !jobs.is_sorted_by(|a, b| a < b) {
            return Err(field("jobs", "are not sorted"));
        }
        if [classes.len(), losses.len(), l1.len(), lpips.len()] != [jobs.len(); 4] {
            return Err(field("results", "have not all the same fields"));
        }
        let known =
            |(i, job)| KnownResult { job, class: classes[i], errors: Errors { loss: losses[i], l1: l1[i], lpips: lpips[i] } };
        Ok(Snapshot { results: jobs.into_iter().enumerate().map(known).collect() })
    }
}
