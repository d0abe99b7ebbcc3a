//! Where a generator puts its objects (paper, Figures 3 and 4): samples of it, and the box of the object in each. No I/O.

use projector::latent;
use projector::nn::mask_rcnn::COCO_CATEGORIES;
use proto::{Box2d, ObjectsManifest};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Tensor};

use crate::LoadedModel;
use crate::find::bitmap;
use crate::finder::Finder;

/// Images that are generated at once.
const BATCH: usize = 8;
/// Least difference of the object's pixels from the background; black and white differ by 2.
const FOREGROUND: f64 = 0.2;

/// What says where the object of a generated image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The box of the detector's best detection of the class' category, or of any category for a class without one.
    DetectorBox,
    /// The box of that detection's mask.
    DetectorMask,
    /// What differs from the background, the median of the image's border: for generators of objects on plain ground.
    Foreground,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the generator makes images that are not finite")]
pub struct NotFinite;

/// Boxes of `samples` images in pixels of the generator, without those in which no object was found. z is drawn as the search
/// draws it, classes uniformly. After each batch `done` gets the number of images so far.
pub fn measure(
    model: &LoadedModel,
    finder: &Finder,
    device: Device,
    source: Source,
    (samples, seed): (usize, u64),
    done: &mut dyn FnMut(usize),
) -> Result<Vec<Box2d>, NotFinite> {
    let _no_grad = tch::no_grad_guard();
    let generator = model.model.generator.replicate(device);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut boxes = Vec::new();
    for first in (0..samples).step_by(BATCH) {
        let n = BATCH.min(samples - first);
        let z = latent::truncated(n * generator.latent_dim() as usize, &mut rng);
        let z = Tensor::from_slice(&z).view([n as i64, -1]).to_device(device);
        let classes: Vec<i64> = (0..n).map(|_| rng.random_range(0..generator.num_classes())).collect();
        let c = Tensor::stack(&classes.iter().map(|&class| generator.embed(class)).collect::<Vec<_>>(), 0);
        let images = generator.generate(&z, &c);
        if images.isfinite().all().int64_value(&[]) == 0 {
            return Err(NotFinite);
        }
        for (i, &class) in classes.iter().enumerate() {
            let image = images.get(i as i64);
            boxes.extend(match source {
                Source::Foreground => foreground(&image),
                Source::DetectorBox | Source::DetectorMask => {
                    let category = model.manifest.categories.get(class as usize).map_or("", String::as_str);
                    detected(finder, &image, category, source == Source::DetectorMask)
                }
            });
        }
        done(first + n);
    }
    Ok(boxes)
}

fn detected(finder: &Finder, image: &Tensor, category: &str, mask: bool) -> Option<Box2d> {
    let detector = finder.detector.as_ref()?;
    let detections = detector.detect(image);
    let fits = |label: usize| category.is_empty() || COCO_CATEGORIES[label].eq_ignore_ascii_case(category);
    let best = detections.found.iter().position(|d| fits(d.label))?;
    if !mask {
        return Some(detections.found[best].bbox);
    }
    bitmap(&detector.mask(&detections, best).ge(0.5)).extent()
}

/// The box of what is no background in an image `[3, h, w]`.
fn foreground(image: &Tensor) -> Option<Box2d> {
    let (_, h, w) = image.size3().expect("an image is three-dimensional");
    let rows = [image.select(1, 0), image.select(1, h - 1), image.select(2, 0), image.select(2, w - 1)];
    let (background, _) = Tensor::cat(&rows, 1).median_dim(1, false);
    extent(&(image - background.view([3, 1, 1])).abs().amax(&[0i64][..], false).gt(FOREGROUND))
}

/// The smallest box around the true pixels of a mask `[h, w]`; `None` if there are none.
pub fn extent(inside: &Tensor) -> Option<Box2d> {
    bitmap(inside).extent()
}

/// Mean centre and size; `None` without boxes.
pub fn mean(boxes: &[Box2d]) -> Option<ObjectsManifest> {
    let n = boxes.len() as f64;
    let mean = |of: fn(&Box2d) -> f64| boxes.iter().map(of).sum::<f64>() / n;
    (!boxes.is_empty()).then(|| ObjectsManifest {
        center: (mean(|b| b.y + b.height / 2.0), mean(|b| b.x + b.width / 2.0)),
        size: (mean(|b| b.height), mean(|b| b.width)),
    })
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn what_differs_from_the_border_is_the_object() {
        let image = Tensor::full([3, 10, 12], 0.5, (Kind::Float, Device::Cpu));
        assert_eq!(foreground(&image), None);
        let _ = image.narrow(1, 2, 5).narrow(2, 4, 3).fill_(0.1);
        // A corner of it reaches the border, and is no background for that.
        let _ = image.narrow(1, 9, 1).narrow(2, 4, 1).fill_(-1.0);
        assert_eq!(foreground(&image), Some(Box2d { x: 4.0, y: 2.0, width: 3.0, height: 8.0 }));
    }

    #[test]
    fn statistics_are_the_means_of_centres_and_sizes() {
        let boxes = [Box2d { x: 0.0, y: 2.0, width: 4.0, height: 6.0 }, Box2d { x: 4.0, y: 0.0, width: 8.0, height: 2.0 }];
        assert_eq!(mean(&boxes), Some(ObjectsManifest { center: (3.0, 5.0), size: (4.0, 6.0) }));
        assert_eq!(mean(&[]), None);
    }
}
