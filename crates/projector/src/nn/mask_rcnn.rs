//! Mask R-CNN on ResNet-50 and a feature pyramid (He et al. 2017, Lin et al. 2017), as torchvision's `maskrcnn_resnet50_fpn`
//! infers: boxes, labels and scores of the objects in one image, and the mask of any of them.

use std::sync::LazyLock;

use proto::Box2d;
use tch::{Device, Kind, Tensor};

use super::detection::{Pyramid, anchors, clip, decode, large, paste, suppress_by_group};
use super::layers::{Layer, Scaling};
use super::resnet::{self, ResNet};
use super::{LARGEST, LoadError, Weights};

/// `eps` of the body's normalisation under the published weights (torchvision: `overwrite_eps`).
const BATCH_NORM_EPS: f64 = 0.0;
/// The padded image's sides are multiples of it, in pixels.
const DIVISOR: i64 = 32;
/// The logarithm to base 2 of the finest map's stride in pixels.
const FINEST: i64 = 2;
/// Side of the finest map's anchors, in pixels; each coarser map has twice that of the one before.
const SMALLEST_ANCHOR: i64 = 32;
/// Anchors of a cell.
const ANCHORS: i64 = 3;
/// Limits of proposals: of each map, and of all maps together.
const PROPOSALS: i64 = 1000;
/// Smallest side of a proposal, and of a detection, in pixels.
const SMALLEST: (f64, f64) = (1e-3, 1e-2);
/// Largest overlap of two proposals of one map, and of two detections of one label.
const OVERLAP: (f64, f64) = (0.7, 0.5);
/// Units of the proposals' changes, and of the detections'.
const UNITS: ([f64; 4], [f64; 4]) = ([1.0, 1.0, 1.0, 1.0], [10.0, 10.0, 5.0, 5.0]);
/// A detection scores more.
const LEAST_SCORE: f64 = 0.05;
/// Most detections of an image.
const DETECTIONS: i64 = 100;
/// Bins that a box is read into, along each side: for its label, and for its mask.
const BINS: (i64, i64) = (7, 14);

/// COCO's names by category id (torchvision: `_COCO_CATEGORIES`); 0 is the background, and some ids were never used.
pub static COCO_CATEGORIES: LazyLock<Vec<&'static str>> = LazyLock::new(|| COCO.split(", ").collect());

const COCO: &str = "\
    __background__, person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, \
    N/A, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, N/A, \
    backpack, umbrella, N/A, N/A, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, \
    baseball glove, skateboard, surfboard, tennis racket, bottle, N/A, wine glass, cup, fork, knife, spoon, bowl, banana, \
    apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, N/A, \
    dining table, N/A, N/A, toilet, N/A, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, \
    refrigerator, N/A, book, clock, vase, scissors, teddy bear, hair drier, toothbrush";

/// Sizes of the detector and of its input.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Sizes of the body.
    pub body: resnet::Config,
    /// Channels of the pyramid and of the mask head.
    pub channels: i64,
    /// Width of the box head.
    pub hidden: i64,
    /// Labels, with the background.
    pub labels: i64,
    /// Pixels of the resized image's shorter side ...
    pub shorter: i64,
    /// ... unless its longer side would have more than this.
    pub longer: i64,
}

impl Config {
    /// torchvision's `maskrcnn_resnet50_fpn` with its COCO weights.
    pub fn coco() -> Config {
        Config { body: resnet::Config::resnet50(), channels: 256, hidden: 1024, labels: 91, shorter: 800, longer: 1333 }
    }

    fn check(&self) -> Result<(), LoadError> {
        let sizes = [self.channels, self.hidden, self.labels, self.shorter, self.longer];
        match sizes.iter().all(|n| (2..=LARGEST).contains(n)) {
            true => self.body.check(),
            false => Err(LoadError::Config(format!("a size of the detector is not in 2 to {LARGEST}: {self:?}"))),
        }
    }
}

/// A detected object.
#[derive(Clone, Debug, PartialEq)]
pub struct Detection {
    /// Index into [`COCO_CATEGORIES`].
    pub label: usize,
    /// Probability of the label.
    pub score: f32,
    /// Box in pixels of the image.
    pub bbox: Box2d,
}

/// The objects found in one image, and the state that [`MaskRcnn::mask`] needs.
pub struct Detections {
    /// Best score first.
    pub found: Vec<Detection>,
    /// `[n, 4]` in pixels of the image.
    boxes: Tensor,
    /// The same in pixels of the resized image.
    resized: Tensor,
    pyramid: Pyramid,
    /// Height and width of the image.
    size: (i64, i64),
}

/// The detector with its weights.
pub struct MaskRcnn {
    config: Config,
    scaling: Scaling,
    body: ResNet,
    inner: [Layer; 4],
    outer: [Layer; 4],
    /// Hidden layer, objectness and changes of the proposals.
    proposals: [Layer; 3],
    /// Two hidden layers, labels and changes of the boxes.
    boxes: [Layer; 4],
    /// Hidden layers of the masks.
    masks: [Layer; 4],
    /// Up-sampling and labels of the masks.
    mask_labels: [Layer; 2],
}

impl MaskRcnn {
    /// Builds the network from the keys of torchvision's checkpoint, those of 2019 or of newer versions.
    pub fn load(config: &Config, weights: &mut Weights) -> Result<MaskRcnn, LoadError> {
        config.check()?;
        let _no_grad = tch::no_grad_guard();
        let body = ResNet::load(&config.body, weights, "backbone.body.", BATCH_NORM_EPS)?;
        let Config { channels, hidden, labels, .. } = *config;
        let mut load = |names: &[&str], shape: &[i64]| -> Result<Layer, LoadError> {
            let layer = Layer::load_either(weights, names, shape)?;
            Ok(if shape.len() == 4 { layer.channels_last() } else { layer })
        };
        let mut pyramid = |part: &str, kernel: i64, input: [i64; 4]| -> Result<[Layer; 4], LoadError> {
            let mut level = |i: usize| {
                let name = format!("backbone.fpn.{part}.{i}");
                load(&[&name, &format!("{name}.0")], &[channels, input[i], kernel, kernel])
            };
            Ok([level(0)?, level(1)?, level(2)?, level(3)?])
        };
        let inner = pyramid("inner_blocks", 1, config.body.channels())?;
        let outer = pyramid("layer_blocks", 3, [channels; 4])?;
        let proposals = [
            load(&["rpn.head.conv", "rpn.head.conv.0.0"], &[channels, channels, 3, 3])?,
            load(&["rpn.head.cls_logits"], &[ANCHORS, channels, 1, 1])?,
            load(&["rpn.head.bbox_pred"], &[4 * ANCHORS, channels, 1, 1])?,
        ];
        let bins = BINS.0;
        let mut boxes = [
            load(&["roi_heads.box_head.fc6"], &[hidden, channels * bins * bins])?,
            load(&["roi_heads.box_head.fc7"], &[hidden, hidden])?,
            load(&["roi_heads.box_predictor.cls_score"], &[labels, hidden])?,
            load(&["roi_heads.box_predictor.bbox_pred"], &[4 * labels, hidden])?,
        ];
        // Cells of the pyramid have their channels last.
        let first = boxes[0].weight.view([hidden, channels, bins, bins]);
        boxes[0].weight = first.permute([0, 2, 3, 1]).flatten(1, 3);
        let mut mask = |i: usize| {
            let head = "roi_heads.mask_head";
            load(&[&format!("{head}.mask_fcn{}", i + 1), &format!("{head}.{i}.0")], &[channels, channels, 3, 3])
        };
        let masks = [mask(0)?, mask(1)?, mask(2)?, mask(3)?];
        let mask_labels = [
            // The first size of a transposed convolution is the input's, here the same as the output's.
            load(&["roi_heads.mask_predictor.conv5_mask"], &[channels, channels, 2, 2])?,
            load(&["roi_heads.mask_predictor.mask_fcn_logits"], &[labels, channels, 1, 1])?,
        ];
        let scaling = Scaling::imagenet();
        Ok(MaskRcnn { config: config.clone(), scaling, body, inner, outer, proposals, boxes, masks, mask_labels })
    }

    /// A copy on a device.
    pub fn replicate(&self, device: Device) -> MaskRcnn {
        let copy = |layer: &Layer| layer.copy(device, Kind::Float);
        MaskRcnn {
            config: self.config.clone(),
            scaling: self.scaling.copy(device),
            body: self.body.replicate(device),
            inner: self.inner.each_ref().map(copy),
            outer: self.outer.each_ref().map(copy),
            proposals: self.proposals.each_ref().map(copy),
            boxes: self.boxes.each_ref().map(copy),
            masks: self.masks.each_ref().map(copy),
            mask_labels: self.mask_labels.each_ref().map(copy),
        }
    }

    /// Finds the objects in an image `[3, h, w]` in [-1, 1], at most 100, on the network's device.
    pub fn detect(&self, image: &Tensor) -> Detections {
        let _no_grad = tch::no_grad_guard();
        let (_, height, width) = image.size3().expect("an image is three-dimensional");
        let normal = self.scaling.apply(&image.unsqueeze(0));
        let (h, w) = self.resized((height, width));
        let up = |n: i64| (n + DIVISOR - 1) / DIVISOR * DIVISOR;
        let resized = normal.upsample_bilinear2d([h, w], false, None, None);
        let padded = resized.constant_pad_nd([0, up(w) - w, 0, up(h) - h]);

        let maps = self.pyramid(&padded);
        let proposals = self.proposals(&maps, (h, w), (up(h), up(w)));
        let pyramid = Pyramid::new(&maps[..4], FINEST);
        let [resized, scores, labels] = self.label(&pyramid, &proposals, (h, w));

        // In the arithmetic of torchvision's `resize_boxes`.
        let (down, across) = (height as f32 / h as f32, width as f32 / w as f32);
        let ratios = Tensor::from_slice(&[across, down, across, down]).to_device(image.device());
        let boxes = &resized * ratios;
        let rows = Vec::<f32>::try_from(boxes.flatten(0, 1)).expect("boxes are floats");
        let scores = Vec::<f32>::try_from(scores).expect("scores are floats");
        let labels = Vec::<i64>::try_from(labels).expect("labels are integers");
        let found = rows.chunks_exact(4).zip(scores).zip(labels).map(|((sides, score), label)| {
            let [x, y, right, bottom] = std::array::from_fn(|i| f64::from(sides[i]));
            Detection { label: label as usize, score, bbox: Box2d { x, y, width: right - x, height: bottom - y } }
        });
        Detections { found: found.collect(), boxes, resized, pyramid, size: (height, width) }
    }

    /// Probability `[h, w]` that a pixel of the image belongs to detection `index`; 0 outside of its box.
    pub fn mask(&self, detections: &Detections, index: usize) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let row = index as i64;
        let mut x = detections.pyramid.align(&detections.resized.narrow(0, row, 1), BINS.1);
        for layer in &self.masks {
            x = layer.convolve(&x).relu_();
        }
        let [up, labels] = &self.mask_labels;
        x = x.conv_transpose2d(&up.weight, Some(&up.bias), [2, 2], [0, 0], [0, 0], 1, [1, 1]).relu_();
        let label = detections.found[index].label as i64;
        let label = Layer { weight: labels.weight.narrow(0, label, 1), bias: labels.bias.narrow(0, label, 1) };
        let mask = label.convolve(&x).sigmoid().view([2 * BINS.1, 2 * BINS.1]);
        paste(&mask, &detections.boxes.get(row), detections.size)
    }

    /// Height and width that an image is resized to, in the arithmetic of torchvision's `_resize_image_and_masks`; at least one
    /// pixel, where that fails on images thinner than 1 to 1333.
    fn resized(&self, (height, width): (i64, i64)) -> (i64, i64) {
        let scale = |wanted: i64, side: i64| wanted as f64 / side as f64;
        let scale = scale(self.config.shorter, height.min(width)).min(scale(self.config.longer, height.max(width)));
        let side = |n: i64| (n as f64 * scale).floor().max(1.0) as i64;
        (side(height), side(width))
    }

    /// The five maps, the finest first.
    fn pyramid(&self, image: &Tensor) -> Vec<Tensor> {
        let stages = self.body.stages(image);
        let mut maps = Vec::new();
        let mut above: Option<Tensor> = None;
        for (stage, (inner, outer)) in stages.iter().zip(self.inner.iter().zip(&self.outer)).rev() {
            let mut sum = inner.convolve(stage);
            if let Some(above) = above {
                sum += above.upsample_nearest2d(&sum.size()[2..], None, None);
            }
            maps.insert(0, outer.convolve(&sum));
            above = Some(sum);
        }
        maps.push(maps[3].max_pool2d([1, 1], [2, 2], [0, 0], [1, 1], false));
        maps
    }

    /// Boxes `[n, 4]` that may hold an object, for the maps of an image of `size` padded to `padded`.
    fn proposals(&self, maps: &[Tensor], size: (i64, i64), padded: (i64, i64)) -> Tensor {
        let [hidden_layer, objectness, changes] = &self.proposals;
        let (mut boxes, mut scores, mut levels) = (vec![], vec![], vec![]);
        for (level, map) in (0i64..).zip(maps) {
            let (_, _, h, w) = map.size4().expect("feature maps are four-dimensional");
            let hidden = hidden_layer.convolve(map).relu_();
            // By cell, then by anchor.
            let rows = |layer: &Layer, columns: i64| layer.convolve(&hidden).permute([0, 2, 3, 1]).reshape([-1, columns]);
            let logits = rows(objectness, 1).squeeze_dim(1);
            let (logits, best) = logits.topk(PROPOSALS.min(ANCHORS * h * w), 0, true, true);
            let changes = rows(changes, 4).index_select(0, &best);
            let anchors = anchors(SMALLEST_ANCHOR << level, (h, w), (padded.0 / h, padded.1 / w), map.device());
            let proposed = clip(&decode(&changes, &anchors.index_select(0, &best), UNITS.0).squeeze_dim(1), size);
            let keep = large(&proposed, SMALLEST.0);
            boxes.push(proposed.index_select(0, &keep));
            scores.push(logits.sigmoid().index_select(0, &keep));
            levels.push(Tensor::full_like(&keep, level));
        }
        let boxes = Tensor::cat(&boxes, 0);
        let keep = suppress_by_group(&boxes, &Tensor::cat(&scores, 0), &Tensor::cat(&levels, 0), OVERLAP.0);
        boxes.index_select(0, &keep.narrow(0, 0, PROPOSALS.min(keep.size()[0])))
    }

    /// Boxes `[n, 4]`, scores `[n]` and labels `[n]` of the objects among the proposals, in pixels of the resized image.
    fn label(&self, pyramid: &Pyramid, proposals: &Tensor, size: (i64, i64)) -> [Tensor; 3] {
        // As they lie in memory: the first layer was made for that.
        let mut x = pyramid.align(proposals, BINS.0).permute([0, 2, 3, 1]).flatten(1, 3);
        let [hidden @ .., labels, changes] = &self.boxes;
        for layer in hidden {
            x = layer.linear(&x).relu_();
        }
        let objects = self.config.labels - 1;
        let scores = labels.linear(&x).softmax(-1, Kind::Float).narrow(1, 1, objects);
        let boxes = clip(&decode(&changes.linear(&x), proposals, UNITS.1), size).narrow(1, 1, objects);
        let likely = scores.gt(LEAST_SCORE).nonzero();
        let (row, label) = (likely.select(1, 0), likely.select(1, 1));
        let pick = row * objects + &label;
        let found = [boxes.reshape([-1, 4]).index_select(0, &pick), scores.reshape([-1]).index_select(0, &pick), label + 1];
        let keep = large(&found[0], SMALLEST.1);
        let [boxes, scores, labels] = found.map(|t| t.index_select(0, &keep));
        let keep = suppress_by_group(&boxes, &scores, &labels, OVERLAP.1);
        let keep = keep.narrow(0, 0, DETECTIONS.min(keep.size()[0]));
        [boxes, scores, labels].map(|t| t.index_select(0, &keep))
    }
}
