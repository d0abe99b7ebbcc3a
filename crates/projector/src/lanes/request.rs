//! A request to compute lanes of one image, and its response: plain data.

use proto::{SeedResult, Transform};

use crate::descent::AdamState;

/// A request to compute the lanes of one image.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where z starts, `[lane][latent_dim]`.
    pub z: Vec<Vec<f32>>,
    /// Class embeddings, `[lane][embed_dim]`; `None`: the embedding of the image's class.
    pub c: Option<Vec<Vec<f32>>>,
    /// The transforms of the target.
    pub transforms: Transforms,
    /// The computation.
    pub work: Work,
    /// Moments that a descent continues with; `None`: zero.
    pub adam: Option<AdamState>,
    /// Computes in float32, whatever the precision of the parameters.
    pub exact: bool,
}

/// The transforms of a request's lanes.
#[derive(Clone, Debug)]
pub enum Transforms {
    /// No stage one: the image as it is.
    None,
    /// The same for all lanes.
    Shared(Transform),
    /// One for each lane.
    Each(Vec<Transform>),
}

/// A computation from z and c.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Work {
    /// Adam on z and c, and on the transforms if the parameters give these a learning rate.
    Descend {
        /// Gradient steps.
        steps: u32,
        /// Steps of the whole descent that these are a part of. The moments know how many are done.
        total: u32,
        /// Takes the inverted loss at every step and returns its minimum.
        track_inverted: bool,
        /// Returns the loss of every step, and that after the last one.
        record: bool,
    },
    /// The losses at z and c.
    Evaluate,
    /// The loss and its gradient at z and c.
    Gradient,
    /// Losses, metrics and images at z and c.
    Render,
    /// The model's encoder guesses z from the transformed target and c.
    Encode,
}

/// The result of a request. All vectors have one entry for each lane, or none.
#[derive(Debug, Default)]
pub struct Response {
    /// z after the work, not clamped.
    pub z: Vec<Vec<f32>>,
    /// c after the work.
    pub c: Vec<Vec<f32>>,
    /// The transforms after a descent that moved them.
    pub transforms: Vec<Transform>,
    /// What a descent minimises, at these z (clamped) and c.
    pub loss: Vec<f64>,
    /// Inverted loss inside the box at these z and c; with `track_inverted` its minimum over the steps.
    pub inverted: Vec<f64>,
    /// Adam's moments after a descent.
    pub adam: Option<AdamState>,
    /// Loss before each step of a descent, `[lane][step]`.
    pub curves: Vec<Vec<f32>>,
    /// Gradients `[z | c]`, for `Work::Gradient`.
    pub gradient: Vec<Vec<f32>>,
    /// Pictures and distances, for `Work::Render`.
    pub rendered: Vec<Rendered>,
}

/// A lane's distances and pictures.
#[derive(Debug)]
pub struct Rendered {
    /// Distances from the target.
    pub distances: SeedResult,
    /// Pictures. Only the lane with the least loss of its block has them: copies of the others would be thrown away.
    pub pictures: Option<Pictures>,
}

/// A lane's pictures: `[3, r, r]` flat, in [-1, 1].
#[derive(Debug)]
pub struct Pictures {
    /// G(z, c).
    pub generated: Vec<f32>,
    /// The inverted image.
    pub inverted: Vec<f32>,
}

impl Request {
    /// Whether lanes of both can be rows of one batch.
    pub(super) fn fits_with(&self, other: &Request) -> bool {
        let plain = |transforms: &Transforms| matches!(transforms, Transforms::None);
        let same = self.work == other.work && self.work != Work::Encode && self.adam.is_some() == other.adam.is_some();
        same && self.exact == other.exact && plain(&self.transforms) == plain(&other.transforms)
    }
}

impl From<Option<Transform>> for Transforms {
    fn from(transform: Option<Transform>) -> Transforms {
        transform.map_or(Transforms::None, Transforms::Shared)
    }
}

impl Transforms {
    /// One transform for each lane; `None`: the image as it is.
    pub(super) fn of_lanes(&self, lanes: usize) -> Option<Vec<Transform>> {
        match self {
            Transforms::None => None,
            Transforms::Shared(transform) => Some(vec![transform.clone(); lanes]),
            Transforms::Each(each) => Some(each.clone()),
        }
    }
}
