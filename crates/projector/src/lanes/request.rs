//! A request to compute lanes of one image, and its response: plain data.

use proto::{Precision, Transform};
use serde::{Deserialize, Serialize};

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
    /// Computes in float32, whatever the method's precision.
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
#[derive(Clone, Debug)]
pub enum Work {
    /// Adam on z and c.
    Descend {
        /// Gradient steps.
        steps: u32,
        /// Moments to continue with; `None`: zero.
        adam: Option<AdamState>,
        /// Takes the inverted loss at every step and returns its minimum.
        track_inverted: bool,
        /// Returns the loss of every step.
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// z after the work, not clamped.
    pub z: Vec<Vec<f32>>,
    /// c after the work.
    pub c: Vec<Vec<f32>>,
    /// Loss against the transformed target at these z (clamped) and c.
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

/// A lane's pictures and distances.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rendered {
    /// G(z, c): `[3, r, r]` flat, in [-1, 1].
    pub generated: Vec<f32>,
    /// The inverted image, `[3, r, r]` flat, in [-1, 1].
    pub inverted: Vec<f32>,
    /// Inverted image against the target inside the box: sum over channels, mean over pixels.
    pub l1: f64,
    /// As `l1`, squared.
    pub l2: f64,
    /// LPIPS inside the box.
    pub lpips: f64,
}

/// The part of `Params` that every batch needs.
#[derive(Clone, Debug)]
pub struct Method {
    /// Weights of Equation 4.
    pub loss: proto::Loss,
    /// Learning rates and the limit of z.
    pub descent: proto::Descent,
    /// As in `proto::TransformSearch`.
    pub align_corners: bool,
    /// Precision of the networks where a request is not exact.
    pub precision: Precision,
}

impl Request {
    /// Whether lanes of both can be rows of one batch.
    pub(super) fn fits_with(&self, other: &Request) -> bool {
        let plain = |transforms: &Transforms| matches!(transforms, Transforms::None);
        let same = match (&self.work, &other.work) {
            (
                Work::Descend { steps, adam, track_inverted, record },
                Work::Descend { steps: other_steps, adam: other_adam, track_inverted: other_track, record: other_record },
            ) => {
                let age = |adam: &Option<AdamState>| adam.as_ref().map(AdamState::steps);
                (steps, age(adam), track_inverted, record) == (other_steps, age(other_adam), other_track, other_record)
            }
            (Work::Evaluate, Work::Evaluate) | (Work::Gradient, Work::Gradient) | (Work::Render, Work::Render) => true,
            _ => false,
        };
        same && self.exact == other.exact && plain(&self.transforms) == plain(&other.transforms)
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
