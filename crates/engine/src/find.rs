//! Finds the class and the object in an image before it is projected (paper, Section 3.4). Computes; no I/O.
//!
//! The rule is that of the authors' first code (branch `legacy`, `demo.py`): the detections come by falling score, the crop of
//! each box is classified, and the first one whose class is a kind of what the detector calls it is the object. Without such a
//! detection the object is the whole image, with its own class. Where the class is known already, the first detection of that kind is the object.

use projector::ObjectStatistics;
use projector::nn::efficientnet_lite;
use projector::nn::mask_rcnn::{COCO_CATEGORIES, Detections, MaskRcnn};
use proto::{Box2d, ClassSource, Detected, Found, Job, MaskSource};
use tch::{Device, Kind, Tensor};

use crate::LoadedModel;
use crate::codec::{self, Bitmap, Decoded, Photo};
use crate::finder::{Classifier, Finder};

/// A crop of more pixels than this is shrunk before it is classified: ImageNet's photographs are smaller.
const LARGEST_CROP: i64 = 1 << 20;

impl Classifier {
    /// Logits `[1, classes]` of an image `[1, 3, h, w]` in [-1, 1] of any size, on the network's device.
    pub(crate) fn logits(&self, model: &LoadedModel, image: &Tensor) -> Tensor {
        match self {
            Classifier::ResNext(net) => net.logits(&bounded(image)),
            Classifier::EfficientNetLite(net) => net.logits(&efficientnet_lite::prepare(image)),
            Classifier::Perceptual => {
                let head = model.head.as_ref().expect("loading checked that the model has one");
                let size = i64::from(model.reference.resolution);
                let image = image.to_device(Device::Cpu).internal_upsample_bilinear2d_aa([size; 2], false, None, None);
                head.logits(&model.model.lpips, &image)
            }
        }
    }
}

/// A class counts as likely from this probability on, and no more than so many are taken.
const LIKELY: (f64, usize) = (0.05, 5);

pub struct Sighting {
    pub class: u32,
    /// The classes that the classifier finds likely, the first one first; empty: it was not asked.
    pub likely: Vec<(u32, f64)>,
    pub found: Found,
    /// The image around a detection; `None`: as it was framed without one.
    pub frame: Option<Decoded>,
}

/// Looks at `photo`, which was framed as `framed` by what the data set says.
pub fn find(model: &LoadedModel, finder: &Finder, job: &Job, photo: &Photo, framed: &Decoded) -> Sighting {
    let _no_grad = tch::no_grad_guard();
    let object = &job.params.object;
    let open = object.class.is_predicted();
    // Only classes of the data set's category, if the job says so.
    let among: Option<Vec<i64>> = matches!(object.class, ClassSource::Category).then(|| kinds(model, job));
    let classify = |bbox: Option<Box2d>| {
        let classifier = finder.classifier.as_ref().expect("the job was checked against the model");
        let image = match classifier {
            Classifier::Perceptual => usual(photo, bbox, &model.statistics),
            _ => tensor(photo, bbox),
        };
        Guess::new(likely(&classifier.logits(model, &image.unsqueeze(0).to_device(finder.device)), among.as_deref()))
    };
    if !object.mask.is_detected() {
        return classify(framed.object).sighting(model, None, None);
    }
    let detector = finder.detector.as_ref().expect("the job was checked against the model");
    let detections = detector.detect(&tensor(photo, None).to_device(finder.device));
    let boxes: Vec<(&str, Box2d)> = detections.found.iter().map(|d| (COCO_CATEGORIES[d.label], d.bbox)).collect();
    let known = (!open).then_some(job.class);
    let (chosen, guess) = match choose(&boxes, &model.manifest.categories, known, |bbox| classify(Some(bbox))) {
        Some((detection, guess)) => (Some(detection), guess),
        None if open => (None, classify(None)),
        None => (None, Guess::known(job.class)),
    };
    let framed = chosen.and_then(|i| frame(job, detector, &detections, i, photo, model.reference.resolution));
    let detection = chosen
        .filter(|_| framed.is_some())
        .map(|i| Detected { label: boxes[i].0.to_owned(), score: f64::from(detections.found[i].score) });
    guess.sighting(model, detection, framed)
}

/// What is known about the class.
struct Guess {
    class: u32,
    /// As [`Sighting::likely`].
    likely: Vec<(u32, f64)>,
}

impl Guess {
    fn new(likely: Vec<(u32, f64)>) -> Guess {
        Guess { class: likely[0].0, likely }
    }

    fn known(class: u32) -> Guess {
        Guess { class, likely: vec![] }
    }

    fn sighting(self, model: &LoadedModel, detection: Option<Detected>, frame: Option<Decoded>) -> Sighting {
        let Guess { class, likely } = self;
        let name = |&(class, probability): &(u32, f64)| (model.manifest.classes[class as usize].clone(), probability);
        let names = if likely.len() > 1 { likely.iter().map(name).collect() } else { vec![] };
        let probability = likely.first().map(|(_, probability)| *probability);
        Sighting { class, likely, found: Found { probability, likely: names, detection }, frame }
    }
}

/// The pixels that are true in a mask `[h, w]`.
pub(crate) fn bitmap(inside: &Tensor) -> Bitmap {
    let (height, width) = inside.size2().expect("a mask is two-dimensional");
    let flags = inside.to_kind(Kind::Uint8).to_device(Device::Cpu).contiguous().flatten(0, -1);
    Bitmap { width: width as u32, height: height as u32, inside: Vec::try_from(flags).expect("a row of bytes") }
}

/// The image around one of the detections; none if that has no pixel of the image.
fn frame(
    job: &Job,
    detector: &MaskRcnn,
    detections: &Detections,
    index: usize,
    photo: &Photo,
    resolution: u32,
) -> Option<Decoded> {
    let mask =
        matches!(job.params.object.mask, MaskSource::DetectorMask).then(|| bitmap(&detector.mask(detections, index).ge(0.5)));
    // A mask that is nowhere more likely than not has no pixel: the box is what is known then.
    let mask = mask.filter(|mask| mask.extent().is_some());
    codec::frame(photo, Some(detections.found[index].bbox), mask.as_ref(), resolution).ok()
}

/// The first detection that fits, of label and box by falling score: the class is `known`, or `classify` finds it in the crop.
fn choose(
    detections: &[(&str, Box2d)],
    categories: &[String],
    known: Option<u32>,
    classify: impl Fn(Box2d) -> Guess,
) -> Option<(usize, Guess)> {
    detections.iter().enumerate().find_map(|(detection, (label, bbox))| {
        let mut guess = known.map_or_else(|| classify(*bbox), Guess::known);
        let fits = |class: u32| categories.get(class as usize).is_some_and(|category| category.eq_ignore_ascii_case(label));
        // Another class may be likely, too, but not another kind of thing.
        guess.likely.retain(|(class, _)| fits(*class));
        fits(guess.class).then_some((detection, guess))
    })
}

/// The classes of the data set's category.
fn kinds(model: &LoadedModel, job: &Job) -> Vec<i64> {
    let category = job.category.as_deref().unwrap_or_default();
    let is_kind = |(_, name): &(i64, &String)| name.eq_ignore_ascii_case(category);
    (0..).zip(&model.manifest.categories).filter(is_kind).map(|(i, _)| i).collect()
}

/// The likely classes by the logits `[1, classes]`, most likely first, with their probabilities; if `among` is given, of those classes
/// only. At least one.
pub(crate) fn likely(logits: &Tensor, among: Option<&[i64]>) -> Vec<(u32, f64)> {
    let logits = logits.to_device(Device::Cpu).flatten(0, -1);
    let asked = match among {
        Some(classes) => logits.index_select(0, &Tensor::from_slice(classes)),
        None => logits,
    };
    let probabilities = Vec::<f64>::try_from(asked.softmax(0, Kind::Double)).expect("a vector of numbers");
    let mut index: Vec<usize> = (0..probabilities.len()).collect();
    index.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
    let (least, most) = LIKELY;
    let mut likely: Vec<(u32, f64)> =
        index.iter().map(|&i| (among.map_or(i as i64, |classes| classes[i]) as u32, probabilities[i])).take(most).collect();
    let kept = likely.iter().skip(1).take_while(|(_, probability)| *probability >= least).count();
    likely.truncate(1 + kept);
    likely
}

/// The image with its object where the generator has its own, `[3, r, r]`: what a network saw that was trained on such images.
/// What would lie beyond the edge is as the edge. No box: the image as it is.
fn usual(photo: &Photo, bbox: Option<Box2d>, statistics: &ObjectStatistics) -> Tensor {
    let Some(Box2d { x, y, width, height }) = bbox else { return tensor(photo, None) };
    let (unit, r) = (statistics.at(1.0), statistics.resolution);
    let side = (height / unit.size.0).max(width / unit.size.1);
    // For each axis, the part that is visible: in pixels of the image, and in pixels of the result.
    let axis = |start: f64, length: f64, center: f64, size: u32| {
        let from = start + length / 2.0 - center * side;
        let visible = (from.max(0.0), (from + side).min(f64::from(size)));
        let place = |at: f64| ((at - from) / side * r).round().clamp(0.0, r) as i64;
        let (first, last) = (place(visible.0).min(r as i64 - 1), place(visible.1));
        (visible, [first, r as i64 - last.max(first + 1)])
    };
    let (across, columns) = axis(x, width, unit.center.1, photo.width());
    let (down, rows) = axis(y, height, unit.center.0, photo.height());
    let part = Box2d { x: across.0, y: down.0, width: across.1 - across.0, height: down.1 - down.0 };
    let size = [r as i64 - rows[0] - rows[1], r as i64 - columns[0] - columns[1]];
    let small = tensor(photo, Some(part)).unsqueeze(0).internal_upsample_bilinear2d_aa(size, false, None, None);
    small.replication_pad2d([columns[0], columns[1], rows[0], rows[1]]).squeeze_dim(0)
}

/// The image, shrunk if it has very many pixels.
fn bounded(image: &Tensor) -> Tensor {
    let (_, _, height, width) = image.size4().expect("images are four-dimensional");
    let ratio = (LARGEST_CROP as f64 / (height * width) as f64).sqrt();
    if ratio >= 1.0 {
        return image.shallow_clone();
    }
    let small = |n: i64| ((n as f64 * ratio) as i64).max(1);
    image.internal_upsample_bilinear2d_aa([small(height), small(width)], false, None, None)
}

/// An image, or a box of it, as `[3, h, w]` in [-1, 1]. A box is rounded outwards to whole pixels, and holds one at least.
pub(crate) fn tensor(photo: &Photo, bbox: Option<Box2d>) -> Tensor {
    let (width, height) = (i64::from(photo.width()), i64::from(photo.height()));
    let bytes = Tensor::from_slice(photo).view([height, width, 3]);
    let part = match bbox {
        Some(Box2d { x, y, width: w, height: h }) => {
            let range = |start: f64, length: f64, size: i64| {
                let first = (start.floor() as i64).clamp(0, size - 1);
                (first, ((start + length).ceil() as i64).clamp(first + 1, size) - first)
            };
            let ((left, columns), (top, rows)) = (range(x, w, width), range(y, h, height));
            bytes.narrow(0, top, rows).narrow(1, left, columns)
        }
        None => bytes,
    };
    part.permute([2, 0, 1]).to_kind(Kind::Float) / 127.5 - 1.0
}

#[cfg(test)]
mod tests {
    use harness::root;
    use image::Rgb;
    use projector::nn::{mask_rcnn, resnet};
    use proto::Object;

    use super::*;

    const BOX: Box2d = Box2d { x: 0.0, y: 0.0, width: 1.0, height: 1.0 };

    fn at(x: f64) -> Box2d {
        Box2d { x, ..BOX }
    }

    fn categories() -> Vec<String> {
        ["dog", "dog", "cat", ""].map(String::from).into()
    }

    #[test]
    fn the_best_detection_whose_class_is_a_kind_of_its_label_is_the_object() {
        let detections = [("person", at(0.0)), ("cat", at(1.0)), ("dog", at(2.0)), ("cat", at(3.0))];
        // What the classifier says of each crop: nothing of a category, a dog, the other dog, a cat.
        let classes = [3, 0, 1, 2];
        // Each time something else is nearly as likely.
        let classify = |bbox: Box2d| Guess::new(vec![(classes[bbox.x as usize], 0.5), (0, 0.3), (2, 0.2)]);
        let (detection, guess) = choose(&detections, &categories(), None, classify).expect("one fits");
        assert_eq!((detection, guess.class, guess.likely), (2, 1, vec![(1, 0.5), (0, 0.3)]), "a cat is no kind of dog");
        assert!(choose(&detections[..2], &categories(), None, classify).is_none(), "a cat that looks like a dog is neither");
    }

    #[test]
    fn a_known_class_takes_the_best_detection_of_its_kind_and_asks_nobody() {
        let detections = [("dog", at(0.0)), ("cat", at(1.0)), ("cat", at(2.0))];
        let never = |_| unreachable!("the class is known");
        let (detection, guess) = choose(&detections, &categories(), Some(2), never).expect("there is a cat");
        assert_eq!((detection, guess.class, guess.likely), (1, 2, vec![]));
        assert!(choose(&detections, &categories(), Some(3), never).is_none(), "no label is its category");
    }

    /// A tiny detector with random weights.
    fn detector() -> MaskRcnn {
        let body = resnet::Config { blocks: [1, 1, 1, 1], planes: 4, groups: 1, width_per_group: 4 };
        let config = mask_rcnn::Config { body, channels: 4, hidden: 8, labels: 5, shorter: 64, longer: 128 };
        let tensors = seeded::detector::tensors(seeded::detector::mask_rcnn(&config));
        MaskRcnn::load(&config, &mut projector::nn::Weights::new(tensors)).expect("loads")
    }

    #[test]
    fn the_image_is_framed_around_the_detection_and_all_of_it_is_taken_where_none_fits() {
        let mut model = crate::load(&root().join("models/fashion32")).expect("the bundled model");
        let finder = Finder { device: Device::Cpu, classifier: Some(Classifier::Perceptual), detector: Some(detector()) };
        let bytes = std::fs::read(root().join("samples/images/bag_00_centred.png")).expect("a sample");
        let photo = codec::read(&bytes).expect("a PNG");
        let whole = codec::frame(&photo, None, None, 32).expect("a frame");
        let detections = finder.detector.as_ref().expect("it has one").detect(&tensor(&photo, None));
        let best = detections.found.first().expect("random weights see something");
        let label = COCO_CATEGORIES[best.label];

        let object = Object { class: ClassSource::Annotation, mask: MaskSource::DetectorBox };
        let mut job = Job { params: proto::Params { object, ..proto::Params::fast() }, ..harness::job() };
        model.manifest.categories = vec!["no such label".into(); 10];
        let none = find(&model, &finder, &job, &photo, &whole);
        assert!(none.class == 8 && none.frame.is_none() && none.found == Found::default());
        model.manifest.categories[8] = label.to_uppercase();
        let seen = find(&model, &finder, &job, &photo, &whole);
        let frame = seen.frame.expect("a detection of the category");
        assert_eq!((frame.object, frame.mask), (Some(best.bbox), None));
        assert_eq!(seen.found.detection.map(|d| d.label), Some(label.to_owned()));

        job.params.object = Object { class: ClassSource::Classifier, mask: MaskSource::DetectorMask };
        let predicted = find(&model, &finder, &job, &photo, &whole);
        assert!(predicted.found.probability.is_some());
        if let Some(frame) = predicted.frame {
            let mask = frame.mask.expect("of the detection");
            assert!(mask.iter().all(|v| [0.0, 1.0].contains(v)));
        }
    }

    #[test]
    fn within_a_category_the_likeliest_of_its_classes_is_taken() {
        let logits = Tensor::from_slice(&[1.0f32, 3.0, 9.0, 2.0]).view([1, 4]);
        assert_eq!(likely(&logits, None).iter().map(|(class, _)| *class).collect::<Vec<_>>(), [2], "it is sure");
        let both = likely(&logits, Some(&[0, 1]));
        assert_eq!(both.iter().map(|(class, _)| *class).collect::<Vec<_>>(), [1, 0]);
        assert!((both[0].1 - 1.0 / (1.0 + (-2.0f64).exp())).abs() < 1e-6, "{both:?}");
    }

    #[test]
    fn an_object_is_shown_where_the_generator_has_its_own() {
        let inside = |x: u32, y: u32| (4..6).contains(&x) && (1..5).contains(&y);
        let photo = Photo::from_fn(10, 6, |x, y| Rgb([if inside(x, y) { 255 } else { 0 }; 3]));
        let bbox = Box2d { x: 4.0, y: 1.0, width: 2.0, height: 4.0 };
        // Half as high as the image, and in its middle.
        let statistics = ObjectStatistics { resolution: 32.0, center: (16.0, 16.0), size: (16.0, 16.0) };
        let seen = usual(&photo, Some(bbox), &statistics);
        assert_eq!(seen.size(), [3, 32, 32]);
        let bright = |x: i64, y: i64| seen.double_value(&[0, y, x]) > 0.0;
        // Beyond the image, which is 24 of 32 pixels high there, is as its edge.
        let (across, down): (Vec<i64>, Vec<i64>) =
            ((0..32).filter(|&x| bright(x, 16)).collect(), (0..32).filter(|&y| bright(16, y)).collect());
        assert_eq!((across, down), ((12..20).collect(), (8..24).collect()));
        let dot = ObjectStatistics { size: (0.01, 0.01), ..statistics };
        assert_eq!(usual(&photo, Some(bbox), &dot).size(), [3, 32, 32], "and no more, however small objects are");
        assert_eq!(usual(&photo, None, &statistics).size(), [3, 6, 10]);
    }

    #[test]
    fn a_crop_is_the_pixels_that_the_box_touches() {
        let photo = Photo::from_raw(4, 3, (0..4 * 3 * 3).collect()).expect("three bytes for each pixel");
        let crop = tensor(&photo, Some(Box2d { x: 1.2, y: 1.0, width: 1.0, height: 1.0 }));
        assert_eq!(crop.size(), [3, 1, 2]);
        let first = (crop.double_value(&[0, 0, 0]) + 1.0) * 127.5;
        assert!((first - f64::from((4 + 1) * 3)).abs() < 1e-4, "{first}");
        assert_eq!(tensor(&photo, Some(Box2d { x: 9.0, y: -5.0, width: 0.1, height: 0.1 })).size(), [3, 1, 1]);
    }
}
