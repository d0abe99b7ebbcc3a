//! A target on a device, with everything that its losses need.

use proto::{Frame, Params, SeedResult, Surround, Transform};
use tch::{Device, Tensor};

use super::devices::Model;
use super::request::{Pictures, Rendered, Response, Transforms};
use crate::loss::{self, LossTarget};
use crate::nn::lpips::Lpips;
use crate::rows::{to_numbers, to_rows};
use crate::target::Target;
use crate::transform::{self, Padding, Tensors};
use crate::{latent, mask};

/// The inverted loss: T^-1 of the generated images against the original, inside the object only (method: binarised weights).
struct Inverse {
    target: LossTarget,
    /// With the background's weight around the object, for a descent in the target's frame; `None`: nothing weighs the background.
    around: Option<LossTarget>,
    /// `[1 or n, 1, r, r]`: one inside the object.
    binary: Tensor,
    transforms: Option<Tensors>,
    surround: Surround,
    align_corners: bool,
}

impl Inverse {
    /// T^-1 of generated images.
    fn images(&self, generated: &Tensor, transforms: Option<&Tensors>) -> Tensor {
        match transforms {
            Some(transforms) => transform::invert_tensors(generated, transforms, self.align_corners),
            None => generated.shallow_clone(),
        }
    }

    /// Inverted images as the loss compares them.
    fn compared(&self, inverted: &Tensor) -> Tensor {
        match self.surround {
            Surround::Grey => inverted.shallow_clone(),
            Surround::Target => inverted * &self.binary + &self.target.image * (1.0 - &self.binary),
        }
    }

    /// What a descent in the target's frame minimises, `[n]`.
    fn descended(&self, lpips: &Lpips, images: &Tensor, transforms: Option<&Tensors>) -> Tensor {
        let inverted = self.images(images, transforms);
        let Some(around) = &self.around else { return self.target.loss(lpips, &self.compared(&inverted)) };
        let Some(transforms) = transforms else { return around.loss(lpips, &inverted) };
        // Where the generator's frame does not reach there is nothing to compare.
        let reached = transform::reached(&inverted, transforms, self.align_corners);
        around.loss(lpips, &self.target.image.where_self(&reached.logical_not(), &inverted))
    }
}

/// A target on a device: what its losses are taken against. With several targets, everything has a row for each lane.
pub(crate) struct View {
    /// `[1, 3, r, r]`
    image: Tensor,
    /// `[1, 1, r, r]`: one inside the object, the background's weight outside.
    weights: Tensor,
    /// The transformed target, `[1 or n, 3, r, r]`.
    pub transformed: Tensor,
    /// Loss against the transformed target, with the background's weight; `None` in the target's frame, where nothing asks for it.
    forward: Option<LossTarget>,
    inverse: Inverse,
}

impl View {
    pub fn new(model: &Model, device: Device, params: &Params, target: &Target, transforms: &Transforms) -> View {
        let lpips = &model.lpips;
        let image = target.image.to_device(device).unsqueeze(0);
        let binary = mask::of(target, model.generator.resolution()).to_device(device);
        let weights = mask::weights(&binary, params.loss.background);
        let (align_corners, surround) = (params.align_corners(), params.loss.surround);
        let transforms = transforms.of_lanes(1).map(|each| Tensors::new(&each, &image));
        let target = LossTarget::new(lpips, &params.loss, &image, &binary);
        let transformed = match &transforms {
            Some(transforms) => transform::apply_tensors(&image, transforms, align_corners, padding(surround)),
            None => image.shallow_clone(),
        };
        let forward = (params.descent.frame == Frame::Generator).then(|| match &transforms {
            None => target.weighted(lpips, &params.loss, &weights),
            Some(ts) => {
                let weights = transform::apply_tensors_to_mask(&weights, ts, align_corners);
                LossTarget::new(lpips, &params.loss, &transformed, &weights)
            }
        });
        let around = (forward.is_none() && params.loss.background > 0.0).then(|| target.weighted(lpips, &params.loss, &weights));
        let inverse = Inverse { target, around, binary, transforms, surround, align_corners };
        View { image, weights, transformed, forward, inverse }
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
        let first = &views[0].0;
        View {
            image: rows(&|view| &view.image),
            weights: rows(&|view| &view.weights),
            transformed: rows(&|view| &view.transformed),
            forward: first.forward.is_some().then(|| targets(&|view| view.forward.as_ref().expect("as the first"))),
            inverse: Inverse {
                target: targets(&|view| &view.inverse.target),
                around: (first.inverse.around.is_some())
                    .then(|| targets(&|view| view.inverse.around.as_ref().expect("as the first"))),
                binary: rows(&|view| &view.inverse.binary),
                transforms: transforms.map(|each| Tensors::new(&each, &first.image)),
                surround: first.inverse.surround,
                align_corners: first.inverse.align_corners,
            },
        }
    }

    /// The two terms of what a descent minimises (`LossTarget::terms`), for generated images `[n, 3, r, r]`.
    pub fn terms(&self, lpips: &Lpips, images: &Tensor) -> (Tensor, Tensor) {
        match &self.forward {
            Some(forward) => forward.terms(lpips, images),
            None => self.inverted_terms(lpips, images, self.inverse.transforms.as_ref()),
        }
    }

    /// [`View::terms`] under other transforms, which have gradients.
    pub fn terms_under(&self, lpips: &Lpips, params: &Params, images: &Tensor, transforms: &Tensors) -> (Tensor, Tensor) {
        if self.forward.is_none() {
            return self.inverted_terms(lpips, images, Some(transforms));
        }
        let Inverse { surround, align_corners, .. } = self.inverse;
        let target = transform::apply_tensors(&self.image, transforms, align_corners, padding(surround));
        let weights = transform::apply_tensors_to_mask(&self.weights, transforms, align_corners);
        LossTarget::new(lpips, &params.loss, &target, &weights).terms(lpips, images)
    }

    fn inverted_terms(&self, lpips: &Lpips, images: &Tensor, transforms: Option<&Tensors>) -> (Tensor, Tensor) {
        let inverted = self.inverse.images(images, transforms);
        self.inverse.target.terms(lpips, &self.inverse.compared(&inverted))
    }

    /// What a descent minimises, `[n]`.
    pub(super) fn loss(&self, lpips: &Lpips, images: &Tensor) -> Tensor {
        match &self.forward {
            Some(forward) => forward.loss(lpips, images),
            None => self.inverse.descended(lpips, images, self.inverse.transforms.as_ref()),
        }
    }

    /// What a descent in the target's frame minimises under other transforms, which have gradients.
    pub(super) fn loss_under(&self, lpips: &Lpips, images: &Tensor, transforms: &Tensors) -> Tensor {
        self.inverse.descended(lpips, images, Some(transforms))
    }

    /// The inverted loss, `[n]`, under other transforms than the view's if there are any.
    pub(super) fn inverted_loss(&self, lpips: &Lpips, images: &Tensor, transforms: Option<&Tensors>) -> Tensor {
        let inverted = self.inverse.images(images, transforms.or(self.inverse.transforms.as_ref()));
        self.inverse.target.loss(lpips, &self.inverse.compared(&inverted))
    }

    /// Losses, distances and pictures of generated images `[n, 3, r, r]`, of which consecutive ones belong together as `blocks`
    /// says. z and c of the response are empty.
    pub fn render(&self, lpips: &Lpips, params: &Params, images: &Tensor, blocks: &[usize]) -> Response {
        let inverted = self.inverse.images(images, self.inverse.transforms.as_ref());
        let compared = self.inverse.compared(&inverted);
        let metrics = proto::Loss { l1: proto::L1Scale::ChannelSum, ..params.loss.clone() };
        let inside = self.inverse.target.weighted(lpips, &metrics, &self.inverse.binary);
        let (l1, distance) = inside.terms(lpips, &compared);
        let (l1, l2, lpips_inside) = (to_numbers(&l1), to_numbers(&inside.squared(&compared)), to_numbers(&distance));
        let loss = to_numbers(&self.loss(lpips, images));
        let inverted_loss = to_numbers(&self.inverse.target.loss(lpips, &compared));
        let mut pictures: Vec<Option<Pictures>> = loss.iter().map(|_| None).collect();
        let mut first = 0;
        for &lanes in blocks {
            let best = first + latent::least(&loss[first..first + lanes]).1;
            let flat = |t: &Tensor| to_rows(&t.get(best as i64).reshape([1, -1])).remove(0);
            pictures[best] = Some(Pictures { generated: flat(images), inverted: flat(&inverted) });
            first += lanes;
        }
        let rendered = pictures.into_iter().enumerate().map(|(i, pictures)| {
            let (loss, inverted_loss) = (loss[i], inverted_loss[i]);
            let distances =
                SeedResult { loss, inverted_loss, l1: l1[i], l2: l2[i], lpips: lpips_inside[i], class: None, transform: None };
            Rendered { distances, pictures }
        });
        Response { rendered: rendered.collect(), loss, inverted: inverted_loss, ..Default::default() }
    }
}

/// What T(y) shows beyond the target.
fn padding(surround: Surround) -> Padding {
    match surround {
        Surround::Grey => Padding::Zero,
        Surround::Target => Padding::Border,
    }
}
