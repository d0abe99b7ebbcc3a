//! The seeds of a run's images. Pure.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

/// Where the seeds of images come from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seeds {
    /// The run's.
    pub run: u64,
    /// By image, what a redrive put in its place.
    pub redriven: HashMap<String, u64>,
}

impl Seeds {
    /// Of an image: differs between images, and does not depend on which others there are.
    pub fn of(&self, image: &str) -> u64 {
        image_seed(*self.redriven.get(image).unwrap_or(&self.run), image)
    }
}

/// Seed of an image, where `seed` stands for the run.
pub fn image_seed(seed: u64, image: &str) -> u64 {
    let digest = Sha256::new().chain_update(seed.to_be_bytes()).chain_update(image.as_bytes()).finalize();
    u64::from_be_bytes(digest[..8].try_into().expect("eight bytes"))
}
