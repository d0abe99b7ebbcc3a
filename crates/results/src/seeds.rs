//! The seeds of a run's images. Pure.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

/// The run seed, and the seeds of redriven images.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seeds {
    pub run: u64,
    /// By image, the seed of its last redrive.
    pub redriven: HashMap<String, u64>,
}

impl Seeds {
    /// The seed of an image: it differs between images and does not depend on the other images.
    pub fn of(&self, image: &str) -> u64 {
        image_seed(*self.redriven.get(image).unwrap_or(&self.run), image)
    }
}

/// Seed of an image in a run with this run seed.
pub fn image_seed(seed: u64, image: &str) -> u64 {
    let digest = Sha256::new().chain_update(seed.to_be_bytes()).chain_update(image.as_bytes()).finalize();
    u64::from_be_bytes(digest[..8].try_into().expect("eight bytes"))
}
