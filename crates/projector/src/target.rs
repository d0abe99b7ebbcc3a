//! An image to project.

use proto::Box2d;
use tch::Tensor;

/// A target in the generator's resolution, with its annotations.
#[derive(Debug)]
pub struct Target {
    /// `[3, r, r]`, float in [-1, 1].
    pub image: Tensor,
    /// Box of the object in pixels of `image`; `None`: the whole image.
    pub bbox: Option<Box2d>,
    /// The object's pixels, `[r, r]`, float on the CPU: one inside, zero outside; `None`: the pixels of the box.
    pub mask: Option<Tensor>,
    /// Index of the class.
    pub class: i64,
    /// The classes that it may be, most likely first, with their probabilities; empty: `class` is known.
    pub likely: Vec<(i64, f64)>,
    /// Seed of all random numbers of this image's projection.
    pub seed: u64,
}

impl Target {
    /// Another handle to the same image.
    pub fn shallow_clone(&self) -> Target {
        let mask = self.mask.as_ref().map(Tensor::shallow_clone);
        let Target { bbox, class, seed, .. } = *self;
        Target { image: self.image.shallow_clone(), bbox, mask, class, likely: self.likely.clone(), seed }
    }
}
