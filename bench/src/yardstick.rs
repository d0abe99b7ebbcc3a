//! The measure that profiles are compared by, whatever they minimise themselves: in the target's frame, inside the object, with the target's
//! own pixels around it, so that nothing but the object counts.

use std::path::Path;

use anyhow::Result;
use engine::judge::network;
use engine::{LoadedModel, ModelError};
use projector::loss::LossTarget;
use projector::nn::lpips::Lpips;
use projector::{Generator, Target, mask, transform};
use proto::{Params, Transform};
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

/// How far a projection is from its target.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Distances {
    /// The inverted loss (Equation 4) of the paper's weights, under the model's perceptual network.
    pub inverted: f64,
    /// Its first term: sum over channels, mean over the object's pixels.
    pub l1: f64,
    /// LPIPS under a network that no search minimises.
    pub judge: f64,
    /// LPIPS under another such network, if there is one.
    pub second_judge: Option<f64>,
    /// How far the class vector is from that of the image's class.
    pub class_moved: f64,
    /// Whether the model's classifier takes the generated image for the image's class; `None`: the model has none.
    pub class_kept: Option<bool>,
}

/// Generator, perceptual network and judge.
pub struct Yardstick<'a> {
    model: &'a LoadedModel,
    judge: Lpips,
    second_judge: Option<Lpips>,
    loss: proto::Loss,
    limit: f64,
    align_corners: bool,
}

impl Yardstick<'_> {
    /// The judges are folders with a perceptual network.
    pub fn new<'a>(model: &'a LoadedModel, judge: &Path, second_judge: Option<&Path>) -> Result<Yardstick<'a>> {
        let load = |folder: &Path| Ok::<_, ModelError>(network(folder)?.0);
        let (judge, second_judge) = (load(judge)?, second_judge.map(load).transpose()?);
        let paper = Params::paper();
        let align_corners = paper.align_corners();
        Ok(Yardstick { model, judge, second_judge, loss: paper.loss, limit: paper.descent.limit, align_corners })
    }

    /// Measures z and c under a transform; without one the image is as the generator made it.
    pub fn measure(&self, target: &Target, transform: Option<&Transform>, z: &[f32], c: &[f32]) -> Distances {
        let _no_grad = tch::no_grad_guard();
        let generator: &dyn Generator = &*self.model.model.generator;
        let row = |values: &[f32]| Tensor::from_slice(values).view([1, -1]);
        let generated = generator.generate(&row(z).clamp(-self.limit, self.limit), &row(c));
        let class_kept = self
            .model
            .head
            .as_ref()
            .map(|head| head.logits(&self.model.model.lpips, &generated).argmax(1, false).int64_value(&[0]) == target.class);
        let inverted = match transform {
            Some(transform) => transform::invert(&generated, std::slice::from_ref(transform), self.align_corners),
            None => generated,
        };
        let (image, inside) = (target.image.unsqueeze(0), mask::of(target, generator.resolution()));
        let compared = &inverted * &inside + &image * (1.0 - &inside);
        let terms = |network: &Lpips| {
            let (l1, lpips) = LossTarget::new(network, &self.loss, &image, &inside).terms(network, &compared);
            (l1.double_value(&[0]), lpips.double_value(&[0]))
        };
        let ((l1, lpips), (_, judge)) = (terms(&self.model.model.lpips), terms(&self.judge));
        let second_judge = self.second_judge.as_ref().map(|network| terms(network).1);
        let class_moved = (row(c) - generator.embed(target.class).to_device(Device::Cpu)).square().sum(tch::Kind::Double).sqrt();
        let class_moved = class_moved.double_value(&[]);
        Distances { inverted: l1 + self.loss.beta * lpips, l1, judge, second_judge, class_moved, class_kept }
    }
}

#[cfg(test)]
mod tests {
    use proto::Box2d;

    use super::*;

    #[test]
    fn only_the_object_counts() {
        let model = engine::load(&harness::root().join("models/fashion32")).unwrap();
        let yardstick = Yardstick::new(&model, &harness::root().join("models/fashion32-vgg"), None).unwrap();
        let generator = &*model.model.generator;
        let (z, class) = (vec![0.3; generator.latent_dim() as usize], 4);
        let c: Vec<f32> = Vec::try_from(generator.embed(class)).unwrap();
        let row = |values: &[f32]| Tensor::from_slice(values).view([1, -1]);
        let image = tch::no_grad(|| generator.generate(&row(&z), &row(&c))).squeeze_dim(0);
        let bbox = Some(Box2d { x: 8.0, y: 6.0, width: 16.0, height: 20.0 });
        let inside = mask::binary(bbox, 32).squeeze_dim(0);
        let noise = (Tensor::arange(3 * 32 * 32, (tch::Kind::Float, Device::Cpu)) * 1.3).sin().view([3, 32, 32]);
        let target = |image: Tensor| Target { image, bbox, mask: None, class, likely: vec![], seed: 0 };
        // The same object among other things: no distance at all.
        let elsewhere = target(&image * &inside + &noise * (1.0 - &inside));
        let same = yardstick.measure(&elsewhere, None, &z, &c);
        assert!(same.inverted < 1e-5 && same.l1 == 0.0 && same.judge < 1e-6 && same.class_moved == 0.0, "{same:?}");
        // Another object: all of them see it.
        let other = yardstick.measure(&target(&image * (1.0 - &inside) + &noise * &inside), None, &z, &c);
        assert!(other.inverted > 1.0 && other.l1 > 0.1 && other.judge > 0.01, "{other:?}");
        // A transform that moves the object away leaves grey inside the box, not the target.
        let away = Transform { shift: [1.0, 1.0], ..Transform::IDENTITY };
        assert!(yardstick.measure(&elsewhere, Some(&away), &z, &c).l1 > 0.1);
    }
}
