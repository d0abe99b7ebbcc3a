//! Weights of torchvision's residual networks and detector from the same generator, as `value` in `make_detector.py` makes them, bit for
//! bit. Names and shapes are stated here independently, so that they test the loader.

use projector::nn::{mask_rcnn, resnet};
use tch::Tensor;

use crate::{element, tensor};

/// Names and shapes of the body under `prefix`, with `num_batches_tracked` left out.
fn body(prefix: &str, config: &resnet::Config) -> Vec<(String, Vec<i64>)> {
    let mut keys = Vec::new();
    let mut normed = |conv: String, bn: String, shape: [i64; 4]| {
        keys.push((format!("{prefix}{conv}.weight"), shape.to_vec()));
        let parts = ["weight", "bias", "running_mean", "running_var"];
        keys.extend(parts.map(|part| (format!("{prefix}{bn}.{part}"), vec![shape[0]])));
    };
    normed("conv1".into(), "bn1".into(), [config.planes, 3, 7, 7]);
    let mut input = config.planes;
    for (layer, blocks) in (1..).zip(config.blocks) {
        let planes = config.planes << (layer - 1);
        let width = (config.width_per_group << (layer - 1)) * config.groups;
        for block in 0..blocks {
            let name = format!("layer{layer}.{block}");
            let shapes = [[width, input, 1, 1], [width, width / config.groups, 3, 3], [4 * planes, width, 1, 1]];
            for (i, shape) in (1..).zip(shapes) {
                normed(format!("{name}.conv{i}"), format!("{name}.bn{i}"), shape);
            }
            if block == 0 {
                normed(format!("{name}.downsample.0"), format!("{name}.downsample.1"), [4 * planes, input, 1, 1]);
            }
            input = 4 * planes;
        }
    }
    keys
}

/// Names and shapes of the classifier.
pub fn classifier(config: &resnet::Config, classes: i64) -> Vec<(String, Vec<i64>)> {
    let mut keys = body("", config);
    keys.extend([("fc.weight".into(), vec![classes, 32 * config.planes]), ("fc.bias".into(), vec![classes])]);
    keys
}

/// Names (those of torchvision since 0.13) and shapes of the detector.
pub fn mask_rcnn(config: &mask_rcnn::Config) -> Vec<(String, Vec<i64>)> {
    let mut keys = body("backbone.body.", &config.body);
    let mut layer = |name: String, shape: &[i64]| {
        let outputs = if name.ends_with("conv5_mask") { shape[1] } else { shape[0] };
        keys.extend([(format!("{name}.weight"), shape.to_vec()), (format!("{name}.bias"), vec![outputs])]);
    };
    let (c, hidden, labels) = (config.channels, config.hidden, config.labels);
    for i in 0..4 {
        layer(format!("backbone.fpn.inner_blocks.{i}.0"), &[c, (4 * config.body.planes) << i, 1, 1]);
        layer(format!("backbone.fpn.layer_blocks.{i}.0"), &[c, c, 3, 3]);
        layer(format!("roi_heads.mask_head.{i}.0"), &[c, c, 3, 3]);
    }
    layer("rpn.head.conv.0.0".into(), &[c, c, 3, 3]);
    layer("rpn.head.cls_logits".into(), &[3, c, 1, 1]);
    layer("rpn.head.bbox_pred".into(), &[12, c, 1, 1]);
    layer("roi_heads.box_head.fc6".into(), &[hidden, 49 * c]);
    layer("roi_heads.box_head.fc7".into(), &[hidden, hidden]);
    layer("roi_heads.box_predictor.cls_score".into(), &[labels, hidden]);
    layer("roi_heads.box_predictor.bbox_pred".into(), &[4 * labels, hidden]);
    layer("roi_heads.mask_predictor.conv5_mask".into(), &[c, c, 2, 2]);
    layer("roi_heads.mask_predictor.mask_fcn_logits".into(), &[labels, c, 1, 1]);
    keys
}

/// Factors of the bounds of weights, by the start of the name.
const GAINS: [(&str, f64); 5] = [
    ("backbone.fpn", 0.42),
    ("rpn.head.bbox_pred", 0.3),
    ("roi_heads.box_predictor.cls_score", 3.75),
    ("roi_heads.box_predictor.bbox_pred", 2.0),
    ("roi_heads.mask_predictor.mask_fcn_logits", 2.0),
];

/// Tensors in which every odd input cancels the whole of the one before it, instead of half.
const HEADS: [&str; 3] = ["backbone.fpn", "rpn", "roi_heads"];

/// The tensors with these names and shapes.
pub fn tensors(keys: Vec<(String, Vec<i64>)>) -> Vec<(String, Tensor)> {
    keys.into_iter().map(|(name, shape)| (name.clone(), seeded(&name, &shape))).collect()
}

fn seeded(name: &str, shape: &[i64]) -> Tensor {
    let seed = seed(name);
    if let [_, inputs, inner @ ..] = shape {
        let gain = GAINS.iter().find(|(start, _)| name.starts_with(start)).map_or(1.0, |gain| gain.1);
        let bound = (gain * (9.0 / shape[1..].iter().product::<i64>() as f64).sqrt()) as f32;
        let cancelled = if HEADS.iter().any(|start| name.starts_with(start)) { 1.0 } else { 0.5 };
        let inner = inner.iter().product::<i64>() as u32;
        return tensor(shape, |i| match i / inner % *inputs as u32 % 2 {
            0 => element(seed, i) * bound,
            _ => element(seed, i - inner) * bound * -cancelled,
        });
    }
    tensor(shape, |i| match name {
        _ if name.ends_with("running_var") => element(seed, i) * 0.5 + 1.0,
        _ if name.ends_with("bn3.weight") => (element(seed, i) * 0.5 + 1.0) * 0.25,
        _ if name.ends_with("weight") => element(seed, i) * 0.5 + 1.0,
        _ => element(seed, i) * 0.1,
    })
}

/// Noise in [-1, 1) by the tensor's name.
pub fn noise(name: &str, shape: &[i64]) -> Tensor {
    let seed = seed(name);
    tensor(shape, |i| element(seed, i))
}

/// Hash by FNV-1a.
fn seed(name: &str) -> u32 {
    name.bytes().fold(0x811C_9DC5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
