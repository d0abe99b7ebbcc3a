//! What is known of a run's results, in a form that a restart can go on from.

use std::collections::BTreeMap;

use prost::Message;
use sha2::{Digest, Sha256};

use crate::{DecodeError, wire};

const VERSION: u32 = 1;
const MESSAGE: &str = "snapshot";
const DIGEST_BYTES: usize = 32;

/// Sums over results, and over which ones. The results are the truth: a snapshot that is not there costs time only.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The results that are in the sums: the first eight bytes of their jobs' ids, each once.
    pub jobs: Vec<u64>,
    /// By index of the class.
    pub classes: BTreeMap<u32, ClassSums>,
}

/// Sums over the results of a class, of their best seeds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ClassSums {
    /// Results.
    pub images: u64,
    /// Training loss.
    pub loss: Sum,
    /// L1 inside the box after inversion.
    pub l1: Sum,
    /// LPIPS of the same.
    pub lpips: Sum,
}

/// A sum of finite numbers, and of their squares.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sum {
    /// How many.
    pub n: u64,
    /// Their sum.
    pub sum: f64,
    /// The sum of their squares.
    pub squares: f64,
}

impl Sum {
    /// Adds a number, if it is one.
    pub fn add(&mut self, value: f64) {
        if value.is_finite() {
            self.n += 1;
            self.sum += value;
            self.squares += value * value;
        }
    }

    /// Their mean, if there are any.
    pub fn mean(&self) -> Option<f64> {
        (self.n > 0).then(|| self.sum / self.n as f64)
    }

    /// Standard error of the mean, if there are two.
    pub fn standard_error(&self) -> Option<f64> {
        let n = self.n as f64;
        let mean = self.mean().filter(|_| self.n > 1)?;
        Some(((self.squares - n * mean * mean).max(0.0) / (n - 1.0) / n).sqrt())
    }
}

impl Snapshot {
    /// The bytes: the message and its SHA-256.
    pub fn encode(mut self) -> Vec<u8> {
        self.jobs.sort_unstable();
        let sum = |s: Sum| Some(wire::Sum { n: s.n, sum: s.sum, squares: s.squares });
        let class = |(class, s): (u32, ClassSums)| wire::ClassSums {
            class,
            images: s.images,
            loss: sum(s.loss),
            l1: sum(s.l1),
            lpips: sum(s.lpips),
        };
        let classes = self.classes.into_iter().map(class).collect();
        let mut bytes = wire::Snapshot { version: VERSION, jobs: self.jobs, classes }.encode_to_vec();
        let digest = Sha256::digest(&bytes);
        bytes.extend_from_slice(&digest);
        bytes
    }

    /// Reads and validates what [`Snapshot::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Snapshot, DecodeError> {
        let field = |field, problem: &str| DecodeError::Field { message: MESSAGE, field, problem: problem.to_owned() };
        let content = bytes.len().checked_sub(DIGEST_BYTES).map(|end| bytes.split_at(end));
        let Some((content, _)) = content.filter(|(content, digest)| Sha256::digest(content).as_slice() == *digest) else {
            return Err(field("digest", "is not that of the content"));
        };
        let malformed = |source| DecodeError::Malformed { message: MESSAGE, source };
        let wire::Snapshot { version, jobs, classes } = wire::Snapshot::decode(content).map_err(malformed)?;
        if version != VERSION {
            return Err(DecodeError::Version { message: MESSAGE, found: version, known: VERSION });
        }
        let sum = |s: Option<wire::Sum>| s.map_or(Sum::default(), |s| Sum { n: s.n, sum: s.sum, squares: s.squares });
        let class =
            |s: wire::ClassSums| (s.class, ClassSums { images: s.images, loss: sum(s.loss), l1: sum(s.l1), lpips: sum(s.lpips) });
        let classes: BTreeMap<u32, ClassSums> = classes.into_iter().map(class).collect();
        if !jobs.is_sorted_by(|a, b| a < b) {
            return Err(field("jobs", "are not sorted"));
        }
        if classes.values().map(|c| c.images).sum::<u64>() != jobs.len() as u64 {
            return Err(field("classes", "have another number of images than there are jobs"));
        }
        Ok(Snapshot { jobs, classes })
    }
}
