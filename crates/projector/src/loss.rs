//! Equation 4: masked L1 plus beta times masked LPIPS.

use proto::L1Scale;
use tch::{Kind, Tensor};

use crate::nn::lpips::{Features, Lpips, MapWeights, total};

/// A target with its features, which stay fixed during a descent: one for all lanes, or one for each.
pub struct LossTarget {
    /// `[1 or n, 3, r, r]`
    pub(crate) image: Tensor,
    /// `[1 or n, 1, r, r]`, divided by its sum (and by three for the mean over channels).
    weights: Tensor,
    features: Features,
    map_weights: MapWeights,
    beta: f64,
}

impl LossTarget {
    /// Computes the target's features once, with gradients where these are on.
    ///
    /// `image` `[k, 3, r, r]` in [-1, 1], `weights` `[k, 1, r, r]` not negative; k is 1 or the number of lanes.
    pub fn new(lpips: &Lpips, params: &proto::Loss, image: &Tensor, weights: &Tensor) -> LossTarget {
        LossTarget::of_features(lpips, params, image, lpips.features(image), weights)
    }

    /// The same image under other parameters or weights.
    pub(crate) fn weighted(&self, lpips: &Lpips, params: &proto::Loss, weights: &Tensor) -> LossTarget {
        let features = Features(self.features.0.iter().map(Tensor::shallow_clone).collect());
        LossTarget::of_features(lpips, params, &self.image, features, weights)
    }

    fn of_features(lpips: &Lpips, params: &proto::Loss, image: &Tensor, features: Features, weights: &Tensor) -> LossTarget {
        let map_weights = lpips.map_weights(weights, &features, params.mask);
        let channels = match params.l1 {
            L1Scale::ChannelSum => 1.0,
            L1Scale::ChannelMean => 3.0,
        };
        let weights = weights / (total(weights) * channels);
        LossTarget { image: image.shallow_clone(), weights, features, map_weights, beta: params.beta }
    }

    /// Joins several targets, each with its number of lanes: one row for each lane.
    pub(crate) fn beside(targets: &[(&LossTarget, usize)]) -> LossTarget {
        let cat = |of: &dyn Fn(&LossTarget) -> &Tensor| {
            Tensor::cat(&targets.iter().map(|(target, lanes)| repeat(of(target), *lanes)).collect::<Vec<_>>(), 0)
        };
        let first = targets[0].0;
        let features = (0..first.features.0.len()).map(|k| cat(&|target| &target.features.0[k]));
        let map_weights = (0..first.map_weights.0.len()).map(|k| cat(&|target| &target.map_weights.0[k]));
        LossTarget {
            image: cat(&|target| &target.image),
            weights: cat(&|target| &target.weights),
            features: Features(features.collect()),
            map_weights: MapWeights(map_weights.collect()),
            beta: first.beta,
        }
    }

    /// Loss of each lane `[n]` for generated images `[n, 3, r, r]`.
    pub fn loss(&self, lpips: &Lpips, images: &Tensor) -> Tensor {
        let (l1, distance) = self.terms(lpips, images);
        l1 + distance * self.beta
    }

    /// The two terms of the loss: weighted L1 and LPIPS (without beta), each `[n]`.
    pub fn terms(&self, lpips: &Lpips, images: &Tensor) -> (Tensor, Tensor) {
        let distance = lpips.distance(images, &self.features, &self.map_weights);
        let l1 = ((images - &self.image).abs() * &self.weights).sum_dim_intlist(&[1i64, 2, 3][..], false, Kind::Float);
        (l1, distance)
    }

    /// Weighted squared difference of each lane, `[n]`, in the scale of the L1 term.
    pub fn squared(&self, images: &Tensor) -> Tensor {
        ((images - &self.image).square() * &self.weights).sum_dim_intlist(&[1i64, 2, 3][..], false, Kind::Float)
    }
}

/// `[1 or lanes, ...]` as `[lanes, ...]`.
pub(crate) fn repeat(t: &Tensor, lanes: usize) -> Tensor {
    let mut size = t.size();
    size[0] = lanes as i64;
    t.expand(size, false)
}
