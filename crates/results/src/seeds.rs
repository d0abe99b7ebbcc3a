//! The seeds of a run's images, and how often each was tried again. Pure.

use std::collections::HashMap;

use proto::RedriveRecord;
use sha2::{Digest, Sha256};

/// The run seed, and what the redrives say of their images.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seeds {
    pub run: u64,
    /// By image, the seed of its last redrive. Only of images that had another one than the run's at some time.
    pub redriven: HashMap<String, u64>,
    /// By image, the number of its last redrive. See `Job::generation`.
    pub generations: HashMap<String, u64>,
}

impl Seeds {
    /// The seed of an image: it differs between images and does not depend on the other images.
    pub fn of(&self, image: &str) -> u64 {
        image_seed(self.run_seed(image), image)
    }

    /// The run seed that counts for an image.
    pub fn run_seed(&self, image: &str) -> u64 {
        *self.redriven.get(image).unwrap_or(&self.run)
    }

    /// Number of the last redrive that names the image; 0: none does.
    pub fn generation(&self, image: &str) -> u64 {
        self.generations.get(image).copied().unwrap_or(0)
    }

    /// Takes in the next redrive, in the order of their numbers.
    pub fn redrive(&mut self, record: RedriveRecord) {
        for image in record.images {
            if self.run_seed(&image) != record.seed {
                self.redriven.insert(image.clone(), record.seed);
            }
            match record.generation {
                0 => drop(self.generations.remove(&image)),
                generation => drop(self.generations.insert(image, generation)),
            }
        }
    }
}

/// Seed of an image in a run with this run seed.
pub fn image_seed(seed: u64, image: &str) -> u64 {
    let digest = Sha256::new().chain_update(seed.to_be_bytes()).chain_update(image.as_bytes()).finalize();
    u64::from_be_bytes(digest[..8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_redrive_of_an_image_counts_and_a_retry_changes_no_seed() {
        let redrive = |generation, seed, images: &[&str]| RedriveRecord {
            format: 1,
            wheres: vec![],
            seed,
            images: images.iter().map(|image| (*image).to_owned()).collect(),
            generation,
        };
        let mut seeds = Seeds { run: 7, ..Seeds::default() };
        // A retry of the run's own seed.
        seeds.redrive(redrive(1, 7, &["a", "b"]));
        assert_eq!((seeds.redriven.len(), seeds.generation("a"), seeds.generation("c")), (0, 1, 0));
        seeds.redrive(redrive(2, 5, &["b"]));
        seeds.redrive(redrive(3, 5, &["b"]));
        assert_eq!((seeds.of("b"), seeds.generation("b")), (image_seed(5, "b"), 3));
        // Back to the first seed, which results must then have.
        seeds.redrive(redrive(4, 7, &["b"]));
        assert_eq!((seeds.of("b"), seeds.redriven.len(), seeds.generation("b")), (image_seed(7, "b"), 1, 4));
        // By a version of basin whose jobs have no generation.
        seeds.redrive(redrive(0, 9, &["a"]));
        assert_eq!((seeds.of("a"), seeds.generation("a"), seeds.of("c")), (image_seed(9, "a"), 0, image_seed(7, "c")));
    }
}
