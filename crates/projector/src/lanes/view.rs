//! A target on a device, with everything that its losses need.

use proto::{Params, SeedResult, Transform};
use tch::{Device, Tensor};

use super::devices::Model;
use super::request::{Rendered, Response, Transforms};
use crate::loss::{self, LossTarget};
use crate::nn::lpips::Lpips;
use crate::rows::{to_numbers, to_rows};
use crate::target::Target;
use crate::{mask, transform};

/// The inverted loss: T^-1 of the generated images against the original, inside the box only (method: binarised weights).
pub(crate) struct Inverse {
    target: LossTarget,
    transforms: Option<Vec<Transform>>,
    align_corners: bool,
}

impl Inverse {
    fn images(&self, generated: &Tensor) -> Tensor {
        match &self.transforms {
            Some(transforms) => transform::invert(generated, transforms, self.align_corners),
            None => generated.shallow_clone(),
        }
    }

    pub(super) fn loss(&self, lpips: &Lpips, generated: &Tensor) -> Tensor {
        self.target.loss(lpips, &self.images(generated))
    }
}

/// A target on a device: what its losses are taken against. With several targets, everything has a row for each lane.
pub(crate) struct View {
    /// `[1, 3, r, r]`
    pub image: Tensor,
    /// `[1, 1, r, r]`: one inside the box, the background's weight outside.
    pub weights: Tensor,
    /// `[1, 1, r, r]`: one inside the box.
    binary: Tensor,
    /// Loss against the transformed target, with the background's weight: what the descent minimises.
    pub forward: LossTarget,
    /// Loss of the inverted image, inside the box.
    pub(super) inverse: Inverse,
}

impl View {
    pub fn new(model: &Model, device: Device, params: &Params, target: &Target, transforms: &Transforms) -> View {
        let lpips = &model.lpips;
        let image = target.image.to_device(device).unsqueeze(0);
        let binary = mask::of(target, model.generator.resolution()).to_device(device);
        let weights = mask::weights(&binary, params.loss.background);
        let (transforms, align_corners) = (transforms.of_lanes(1), params.align_corners());
        let forward = match &transforms {
            None => LossTarget::new(lpips, &params.loss, &image, &weights),
            Some(ts) => {
                let moved = transform::apply(&image, ts, align_corners);
                LossTarget::new(lpips, &params.loss, &moved, &transform::apply_to_mask(&weights, ts, align_corners))
            }
        };
        let target = LossTarget::new(lpips, &params.loss, &image, &binary);
        let inverse = Inverse { target, transforms, align_corners };
        View { image, weights, binary, forward, inverse }
    }

    /// Joins the views of several images, each with its number of lanes.
    pub(super) fn beside(mut views: Vec<(View, usize)>, transforms: Option<Vec<Transform>>) -> View {
        if views.len() == 1 {
            return views.remove(0).0;
        }
        let rows = |of: &dyn Fn(&View) -> &Tensor| {
            let each: Vec<Tensor> = views.iter().map(|(view, lanes)| loss::repeat(of(view), *lanes)).collect();
            Tensor::cat(&each, 0)
        };
        let targets = |of: &dyn Fn(&View) -> &LossTarget| {
            LossTarget::beside(&views.iter().map(|(view, lanes)| (of(view), *lanes)).collect::<Vec<_>>())
        };
        View {
            image: rows(&|view| &view.image),
            weights: rows(&|view| &view.weights),
            binary: rows(&|view| &view.binary),
            forward: targets(&|view| &view.forward),
            inverse: Inverse {
                target: targets(&|view| &view.inverse.target),
                transforms,
                align_corners: views[0].0.inverse.align_corners,
            },
        }
    }

    /// Losses, distances and pictures of generated images `[n, 3, r, r]`. z and c of the response are empty.
    pub fn render(&self, lpips: &Lpips, params: &Params, images: &Tensor) -> Response {
        let inverted = self.inverse.images(images);
        let metrics = proto::Loss { l1: proto::L1Scale::ChannelSum, ..params.loss.clone() };
        let inside = LossTarget::new(lpips, &metrics, &self.image, &self.binary);
        let (l1, distance) = inside.terms(lpips, &inverted);
        let (l1, l2, lpips_inside) = (to_numbers(&l1), to_numbers(&inside.squared(&inverted)), to_numbers(&distance));
        let loss = to_numbers(&self.forward.loss(lpips, images));
        let inverted_loss = to_numbers(&self.inverse.loss(lpips, images));
        let pictures = to_rows(&images.flatten(1, -1)).into_iter().zip(to_rows(&inverted.flatten(1, -1)));
        let rendered = pictures.enumerate().map(|(i, (generated, inverted))| {
            let (loss, inverted_loss) = (loss[i], inverted_loss[i]);
            let distances = SeedResult { loss, inverted_loss, l1: l1[i], l2: l2[i], lpips: lpips_inside[i] };
            Rendered { generated, inverted, distances }
        });
        Response { rendered: rendered.collect(), loss, inverted: inverted_loss, ..Default::default() }
    }
}
