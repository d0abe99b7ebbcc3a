//! Residual networks and Mask R-CNN against numbers made by torchvision (`golden/make_detector.py`), with seeded random weights.

use projector::nn::detection::{Pyramid, anchors, clip, decode, large, paste, suppress, suppress_by_group};
use projector::nn::mask_rcnn::{self, COCO_CATEGORIES, Detection, MaskRcnn};
use projector::nn::resnet::{self, Classifier};
use projector::nn::{LoadError, Weights};
use proto::Box2d;
use seeded::detector::{noise, tensors};
use tch::{Device, Kind, Tensor};

mod harness;
use harness::{FLOAT, NamedTensors, assert_close, assert_contradictions, assert_within, build, golden, photograph};

type Keys = Vec<(String, Vec<i64>)>;

fn integers(tensor: &Tensor) -> Vec<i64> {
    Vec::try_from(tensor).expect("integers")
}

#[test]
fn resnext_gives_the_scores_of_torchvision_for_images_of_two_sizes() {
    let config = resnet::Config::resnext101_32x8d();
    let load = |weights: &mut Weights| Classifier::load(&config, 1000, weights);
    let classifier = build(tensors(seeded::detector::classifier(&config, 1000)), load);
    let (_, expected) = golden("detector_classifier");
    for (name, shape) in [("square", [2, 3, 64, 64]), ("oblong", [1, 3, 97, 130])] {
        assert_close(name, &classifier.logits(&noise(name, &shape)), &expected[name]);
    }
}

/// Weights of a detector that takes more for background.
fn shy(config: &mask_rcnn::Config, background: f64) -> NamedTensors {
    let tensors = tensors(seeded::detector::mask_rcnn(config));
    let (_, bias) = tensors.iter().find(|(name, _)| name == "roi_heads.box_predictor.cls_score.bias").expect("is there");
    let _ = bias.get(0).fill_(background);
    tensors
}

fn detector(config: &mask_rcnn::Config, tensors: NamedTensors) -> MaskRcnn {
    build(tensors, |weights| MaskRcnn::load(config, weights))
}

/// Intersection over union.
fn overlap(a: &Box2d, b: &Box2d) -> f64 {
    let across = |a: f64, width_a: f64, b: f64, width_b: f64| ((a + width_a).min(b + width_b) - a.max(b)).max(0.0);
    let common = across(a.x, a.width, b.x, b.width) * across(a.y, a.height, b.y, b.height);
    common / (a.width * a.height + b.width * b.height - common)
}

#[test]
fn the_detector_finds_the_boxes_labels_scores_and_masks_of_torchvision_on_eight_photographs() {
    let (_, expected) = golden("detector");
    let names = ["astronaut", "camera", "chelsea", "coffee", "coins", "ihc", "motorcycle_left", "motorcycle_right"];
    let published = mask_rcnn::Config::coco();
    let quick = mask_rcnn::Config { shorter: 320, longer: 533, ..published.clone() };
    let small = detector(&quick, tensors(seeded::detector::mask_rcnn(&quick)));
    for name in names.map(|name| format!("{name}.png")) {
        let full = (name == "coffee.png").then(|| detector(&published, shy(&published, 14.0)));
        let detector = full.as_ref().unwrap_or(&small);
        let detections = detector.detect(&photograph(&name));
        let part = |part: &str| &expected[&format!("{name}.{part}")];
        let labels = integers(part("labels"));
        let scores = Vec::<f32>::try_from(part("scores")).expect("scores");
        let boxes = Vec::<f32>::try_from(part("boxes").flatten(0, 1)).expect("boxes");
        assert_eq!(detections.found.len(), labels.len(), "{name}");
        let (mut worst_overlap, mut worst_score) = (1.0f64, 0.0f32);
        let mut unmatched: Vec<&Detection> = detections.found.iter().collect();
        let mut places = Vec::new();
        for (i, sides) in boxes.chunks_exact(4).enumerate() {
            let [x, y, right, bottom] = std::array::from_fn(|side| f64::from(sides[side]));
            let bbox = Box2d { x, y, width: right - x, height: bottom - y };
            let same = |d: &&Detection| d.label as i64 == labels[i] && overlap(&d.bbox, &bbox) > 0.99;
            let place = unmatched.iter().position(same).unwrap_or_else(|| panic!("{name} lacks {i}: {} {bbox:?}", labels[i]));
            let detection = unmatched.remove(place);
            worst_overlap = worst_overlap.min(overlap(&detection.bbox, &bbox));
            worst_score = worst_score.max((detection.score - scores[i]).abs());
            places.push(detections.found.iter().position(|d| d == detection).expect("it came from there"));
        }
        println!("{name}: least overlap {worst_overlap:.6}, largest difference of scores {worst_score:.1e}");
        assert!(worst_score < 1e-3, "{name}: scores differ by {worst_score}");
        assert!(detections.found.is_sorted_by(|a, b| a.score >= b.score));
        let Some(masks) = expected.get(&format!("{name}.masks")) else { continue };
        for (row, place) in [0, 7, 50].into_iter().enumerate() {
            let mask = detector.mask(&detections, places[place]);
            let (height, width) = mask.size2().expect("a picture");
            assert_eq!([3, height, width], photograph(&name).size()[..]);
            let thin = mask.slice(0, 0, height, 4).slice(1, 0, width, 4);
            let difference = (thin - masks.get(row as i64)).abs().max().double_value(&[]);
            let mean = (mask.mean(Kind::Float) - part("mask_means").get(row as i64)).abs().double_value(&[]);
            println!("{name}: mask {place}: {difference:.1e}, in the mean {mean:.1e}");
            assert!(difference < 1e-3 && mean < 1e-4, "{name}: mask {place} differs by {difference}, in the mean by {mean}");
        }
    }
}

/// The detector with few channels and blocks.
fn thin() -> mask_rcnn::Config {
    let body = resnet::Config { blocks: [2, 1, 1, 1], planes: 4, groups: 2, width_per_group: 2 };
    mask_rcnn::Config { body, channels: 4, hidden: 8, labels: 5, shorter: 64, longer: 128 }
}

#[test]
fn a_detector_or_classifier_with_any_one_key_missing_or_misshapen_or_one_too_many_is_refused_by_its_name() {
    let config = thin();
    let detector = |weights: &mut Weights| MaskRcnn::load(&config, weights).map(drop);
    let classifier = |weights: &mut Weights| Classifier::load(&config.body, 5, weights).map(drop);
    type Load<'a> = &'a dyn Fn(&mut Weights) -> Result<(), LoadError>;
    let cases: [(Keys, Load); 2] =
        [(seeded::detector::mask_rcnn(&config), &detector), (seeded::detector::classifier(&config.body, 5), &classifier)];
    for (keys, load) in cases {
        let refused = |change: &dyn Fn(&mut NamedTensors)| -> String {
            let mut tensors: NamedTensors = keys.iter().map(|(n, s)| (n.clone(), Tensor::ones(s, FLOAT))).collect();
            change(&mut tensors);
            Weights::new(tensors).build(load).expect_err("must be refused").to_string()
        };
        for (i, (name, shape)) in keys.iter().enumerate() {
            assert_eq!(refused(&|t| drop(t.remove(i))), format!("tensor {} is missing", old_name(name)));
            let misshapen = refused(&|t| t[i].1 = t[i].1.unsqueeze(0));
            assert_eq!(misshapen, format!("tensor {name} has shape [1, {} instead of {shape:?}", &format!("{shape:?}")[1..]));
            let spare = refused(&|t| t.push((format!("{name}.more"), Tensor::from(0.0f32))));
            assert_eq!(spare, format!("tensor {name}.more does not belong to the network"));
        }
    }
}

/// The name that a key of the detector had in 2019.
fn old_name(name: &str) -> String {
    let Some((module, part)) = name.rsplit_once('.') else { return name.to_owned() };
    if let Some(i) = module.strip_prefix("roi_heads.mask_head.").and_then(|m| m.strip_suffix(".0")) {
        return format!("roi_heads.mask_head.mask_fcn{}.{part}", i.parse::<usize>().expect("a number") + 1);
    }
    let module = match module {
        "rpn.head.conv.0.0" => "rpn.head.conv",
        _ if module.starts_with("backbone.fpn.") => module.strip_suffix(".0").expect("is there"),
        _ => module,
    };
    format!("{module}.{part}")
}

#[test]
fn the_key_names_of_2019_and_counts_of_batches_are_accepted() {
    let config = thin();
    let image = noise("image", &[3, 40, 60]);
    let find = |tensors: NamedTensors| detector(&config, tensors).detect(&image).found;
    let new = tensors(seeded::detector::mask_rcnn(&config));
    let mut old: Vec<_> = new.iter().map(|(name, t)| (old_name(name), t.shallow_clone())).collect();
    assert!(old.iter().zip(&new).filter(|(old, new)| old.0 != new.0).count() == 2 * (8 + 1 + 4));
    let counts = new.iter().filter_map(|(name, _)| name.strip_suffix("running_var"));
    old.extend(counts.map(|name| (format!("{name}num_batches_tracked"), Tensor::from(7i64))));
    let found = find(new);
    assert!(!found.is_empty());
    assert_eq!(find(old), found);
}

#[test]
fn a_detector_without_variance_is_refused_and_a_classifier_with_a_negative_one() {
    let config = thin();
    for variance in [0.0, -1.0] {
        let with = |keys: Keys, name: &str| {
            let mut tensors = tensors(keys);
            let found = tensors.iter_mut().find(|(n, _)| n == name).expect("is there");
            found.1 = found.1.full_like(variance);
            Weights::new(tensors)
        };
        let name = "backbone.body.layer2.0.bn2.running_var";
        let mut weights = with(seeded::detector::mask_rcnn(&config), name);
        let error = MaskRcnn::load(&config, &mut weights).err().expect("must be refused");
        assert!(matches!(&error, LoadError::NotFinite(what) if what.contains(name)), "{error}");

        // The classifier adds torchvision's usual 1e-5.
        let mut weights = with(seeded::detector::classifier(&config.body, 5), "layer2.0.bn2.running_var");
        let loaded = Classifier::load(&config.body, 5, &mut weights);
        assert_eq!(loaded.is_ok(), variance == 0.0);
    }
}

#[test]
fn sizes_that_make_no_network_are_refused() {
    assert_contradictions(
        &thin(),
        &[
            (|c| c.body.blocks[2] = 0, "residual network"),
            (|c| c.body.planes = -4, "residual network"),
            (|c| c.body.groups = 1 << 40, "residual network"),
            (|c| c.channels = 0, "detector"),
            (|c| c.labels = 1, "detector"),
            (|c| c.shorter = i64::MAX, "detector"),
        ],
        MaskRcnn::load,
    );
}

#[test]
fn an_image_without_objects_gives_no_detections_and_one_thinner_than_a_pixel_when_resized_is_no_error() {
    let config = thin();
    let detector = detector(&config, shy(&config, 1e4));
    for shape in [[3, 40, 60], [3, 1, 1000], [3, 1, 1]] {
        assert!(detector.detect(&Tensor::zeros(shape, FLOAT)).found.is_empty());
    }
}

#[test]
fn a_replica_finds_the_same() {
    let config = thin();
    let detector = detector(&config, tensors(seeded::detector::mask_rcnn(&config)));
    let image = noise("image", &[3, 40, 60]);
    let (replica, found) = (detector.replicate(Device::Cpu), detector.detect(&image));
    let again = replica.detect(&image);
    assert!(again.found == found.found && !found.found.is_empty());
    let last = found.found.len() - 1;
    assert_within("mask", &replica.mask(&again, last), &detector.mask(&found, last), 0.0);
}

#[test]
fn every_label_has_a_name_as_coco_numbers_them() {
    let names = [(0, "__background__"), (1, "person"), (17, "cat"), (18, "dog"), (44, "bottle"), (90, "toothbrush")];
    for (label, name) in names.into_iter().chain([12, 26, 66, 83].map(|unused| (unused, "N/A"))) {
        assert_eq!(COCO_CATEGORIES[label], name);
    }
}

#[test]
fn boxes_are_read_from_the_pyramid_as_torchvision_reads_them_over_borders_and_without_area() {
    let (_, ops) = golden("detector_ops");
    let maps: Vec<Tensor> = (0..4).map(|i| ops[&format!("align.map{i}")].shallow_clone()).collect();
    let boxes = &ops["align.boxes"];
    assert_within("levels", &Pyramid::new(&maps, 2).align(boxes, 7), &ops["align.levels"], 1e-6);
    assert_within("one map", &Pyramid::new(&maps[..1], 2).align(boxes, 14), &ops["align.one"], 1e-6);
    assert_eq!(Pyramid::new(&maps, 2).align(&boxes.narrow(0, 0, 0), 7).size(), [0, 3, 7, 7]);
}

#[test]
fn suppression_keeps_the_boxes_that_torchvision_keeps() {
    let (_, ops) = golden("detector_ops");
    let (boxes, scores) = (&ops["nms.boxes"], &ops["nms.scores"]);
    for threshold in [0.3, 0.5, 0.7] {
        let kept = suppress(boxes, scores, threshold);
        assert_eq!(integers(&kept), integers(&ops[&format!("nms.kept_{threshold}")]));
    }
    let kept = suppress_by_group(boxes, scores, &ops["nms.groups"], 0.5);
    assert_eq!(integers(&kept), integers(&ops["nms.kept_by_group"]));
    let none = |t: &Tensor| t.narrow(0, 0, 0);
    assert_eq!(suppress_by_group(&none(boxes), &none(scores), &none(&ops["nms.groups"]), 0.5).size(), [0]);
}

#[test]
fn boxes_are_decoded_clipped_and_sorted_out_as_by_torchvision() {
    let (_, ops) = golden("detector_ops");
    let (changes, boxes) = (&ops["coder.changes"], &ops["align.boxes"]);
    assert_within("proposals", &decode(changes, boxes, [1.0, 1.0, 1.0, 1.0]), &ops["coder.proposals"], 1e-6);
    let objects = decode(changes, boxes, [10.0, 10.0, 5.0, 5.0]);
    assert_within("objects", &objects, &ops["coder.objects"], 1e-6);
    assert_within("clipped", &clip(&objects, (96, 160)), &ops["coder.clipped"], 1e-6);
    assert_eq!(integers(&large(&ops["coder.clipped"].select(1, 0), 6.0)), integers(&ops["coder.large"]));
}

#[test]
fn anchors_are_those_of_torchvision() {
    let anchors = |size, cells, stride| anchors(size, cells, (stride, stride), Device::Cpu);
    let both = Tensor::cat(&[anchors(32, (24, 40), 4), anchors(64, (12, 20), 8)], 0);
    assert_within("anchors", &both, &golden("detector_ops").1["anchors"], 0.0);
}

#[test]
fn masks_are_pasted_as_by_torchvision_over_borders_and_into_less_than_a_pixel() {
    let (_, ops) = golden("detector_ops");
    let masks = &ops["paste.masks"];
    for i in 0..masks.size()[0] {
        let picture = paste(&masks.get(i).get(0), &ops["paste.boxes"].get(i), (40, 60));
        assert_within(&format!("picture {i}"), &picture, &ops["paste.pictures"].get(i), 1e-6);
    }
}
