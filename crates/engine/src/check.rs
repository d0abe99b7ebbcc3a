//! Whether a loaded model computes.

use projector::latent;
use projector::nn::mask_rcnn::COCO_CATEGORIES;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use crate::LoadedModel;
use crate::find::likely;

/// Samples that a check generates.
const CHECKED: i64 = 4;

impl LoadedModel {
    /// Computes once with every loaded network. Returns a line for each, or what is wrong.
    pub fn check(&self) -> Result<Vec<String>, String> {
        let _no_grad = tch::no_grad_guard();
        let generator = &self.model.generator;
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let z = latent::truncated((CHECKED * generator.latent_dim()) as usize, &mut rng);
        let z = Tensor::from_slice(&z).view([CHECKED, -1]);
        let classes = (0..CHECKED).map(|i| i * generator.num_classes() / CHECKED);
        let c = Tensor::stack(&classes.map(|class| generator.embed(class)).collect::<Vec<_>>(), 0);
        let images = generator.generate(&z, &c);
        let finite = |what: &str, t: &Tensor| match t.isfinite().all().int64_value(&[]) {
            0 => Err(format!("{what} of {CHECKED} samples are not all finite: these are not the weights of a trained generator")),
            _ => Ok(()),
        };
        finite("the images", &images)?;
        let image = images.narrow(0, 0, 1);
        let r = generator.resolution();
        let weights: usize = generator.weights().iter().map(|(_, w)| w.numel()).sum();
        let mut lines =
            vec![format!("generator: {CHECKED} images of {r} x {r} pixels; {weights} weights that fine-tuning moves")];
        let distance = self.model.lpips.map(&image, &-&image);
        finite("LPIPS", &distance)?;
        lines.push(format!("perceptual network: LPIPS {:.3} to the negative", distance.mean(Kind::Double).double_value(&[])));
        lines.extend(look(self, &image));
        Ok(lines)
    }
}

/// Looks at an image `[1, 3, r, r]`: a line for each network.
fn look(model: &LoadedModel, image: &Tensor) -> Vec<String> {
    let class = model.finder.classifier.as_ref().map(|classifier| {
        let (class, probability) = likely(&classifier.logits(model, image), None)[0];
        let name = &model.manifest.classes[class as usize];
        format!("classifier: takes the image of class 0 for {name} (probability {probability:.3})")
    });
    let objects = model.finder.detector.as_ref().map(|detector| {
        let found = detector.detect(&image.squeeze_dim(0)).found.len();
        let known = |category: &&String| COCO_CATEGORIES.iter().any(|label| label.eq_ignore_ascii_case(category));
        let named = model.manifest.categories.iter().filter(known).count();
        format!("detector: {found} detections in that image; {named} classes are of a category that it knows")
    });
    class.into_iter().chain(objects).collect()
}
