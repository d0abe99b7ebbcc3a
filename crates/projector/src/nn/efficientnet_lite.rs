//! EfficientNet-Lite0 (Tan and Le 2019; Google's Lite variant without squeeze-and-excitation, with ReLU6) in the layout of
//! efficientnet_lite_pytorch, as a classifier into ImageNet's 1000 classes.
//!
//! Batch normalisation is folded into the convolutions at load. Dropout and drop-connect do nothing in evaluation.

use tch::{Device, Kind, Tensor};

use super::layers::{Convolution, Layer};
use super::{LoadError, Weights};

/// Width and height of the network's images: the middle of an image whose shorter side is `SHORTER_SIDE`, as in training (224 of 256,
/// bicubic).
pub const RESOLUTION: i64 = 224;
/// Length of the shorter side before the middle is cut out.
const SHORTER_SIDE: i64 = 256;
/// ImageNet's classes.
pub const CLASSES: i64 = 1000;
/// Epsilon of batch normalisation.
const EPS: f64 = 1e-3;
/// Channels after the first convolution, and before the linear layer.
const STEM: i64 = 32;
const HEAD: i64 = 1280;
/// Repetitions, kernel, stride of the first, expansion, output channels.
const STAGES: [(usize, i64, i64, i64, i64); 7] = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
];

struct Block {
    /// Expansion, if there is any, depthwise convolution and projection.
    convs: Vec<Convolution>,
    skip: bool,
}

/// The network's images of one picture `[1, 3, h, w]` in [-1, 1]: its shorter side made 256 by anti-aliased bicubic interpolation,
/// clipped, and the middle 224 x 224 cut out, `[1, 3, 224, 224]`; as torchvision's `resize` and `center_crop` of tensors.
pub fn prepare(picture: &Tensor) -> Tensor {
    let (_, _, h, w) = picture.size4().expect("pictures are four-dimensional");
    let long = |side: i64| SHORTER_SIDE * side / h.min(w);
    let x = picture.internal_upsample_bicubic2d_aa([long(h), long(w)], false, None, None).clamp(-1.0, 1.0);
    let start = |side: i64| (((side - RESOLUTION) as f64) / 2.0).round_ties_even() as i64;
    x.narrow(2, start(long(h)), RESOLUTION).narrow(3, start(long(w)), RESOLUTION)
}

/// The classifier, with batch normalisation folded.
pub struct EfficientNetLite {
    stem: Convolution,
    blocks: Vec<Block>,
    head: Convolution,
    fc: Layer,
}

impl EfficientNetLite {
    /// Builds the network from the published state_dict; its `num_batches_tracked` may be there or not.
    pub fn load(weights: &mut Weights) -> Result<EfficientNetLite, LoadError> {
        let _no_grad = tch::no_grad_guard();
        let conv = |weights: &mut Weights, names: (&str, &str), [output, input, kernel]: [i64; 3], stride: i64| {
            // Only a depthwise convolution has one input channel for each output.
            let groups = if input == 1 { output } else { 1 };
            Convolution::load(weights, names, [output, input, kernel, kernel], (stride, groups), EPS)
        };
        let stem = conv(weights, ("_conv_stem", "_bn0"), [STEM, 3, 3], 2)?;
        let (mut blocks, mut input) = (Vec::new(), STEM);
        for (repeats, kernel, stride, expansion, output) in STAGES {
            for repeat in 0..repeats {
                let name = format!("_blocks.{}", blocks.len());
                let stride = if repeat == 0 { stride } else { 1 };
                let mid = input * expansion;
                let parts = [
                    ("_expand_conv", "_bn0", [mid, input, 1], 1),
                    ("_depthwise_conv", "_bn1", [mid, 1, kernel], stride),
                    ("_project_conv", "_bn2", [output, mid, 1], 1),
                ];
                let convs = parts.into_iter().skip(usize::from(expansion == 1)).map(|(part, bn, shape, stride)| {
                    conv(weights, (&format!("{name}.{part}"), &format!("{name}.{bn}")), shape, stride)
                });
                blocks.push(Block { convs: convs.collect::<Result<_, _>>()?, skip: stride == 1 && input == output });
                input = output;
            }
        }
        let head = conv(weights, ("_conv_head", "_bn1"), [HEAD, input, 1], 1)?;
        Ok(EfficientNetLite { stem, blocks, head, fc: Layer::load(weights, "_fc", &[CLASSES, HEAD])? })
    }

    /// A copy on a device.
    pub fn replicate(&self, device: Device) -> EfficientNetLite {
        let block = |b: &Block| Block { convs: b.convs.iter().map(|conv| conv.copy(device)).collect(), skip: b.skip };
        EfficientNetLite {
            stem: self.stem.copy(device),
            blocks: self.blocks.iter().map(block).collect(),
            head: self.head.copy(device),
            fc: self.fc.copy(device, Kind::Float),
        }
    }

    /// Images `[n, 3, 224, 224]` in [-1, 1] -> logits `[n, 1000]`, in the order of ImageNet's synsets.
    pub fn logits(&self, images: &Tensor) -> Tensor {
        // Values of 0 to 255, less 127, over 128: as the weights were trained (Google's lite builder). The package's example shows
        // ImageNet's mean and deviation, which belong to other weights of its.
        let x = images * (127.5 / 128.0) + 0.5 / 128.0;
        let mut x = convolve(&self.stem, &x).relu6();
        for block in &self.blocks {
            let (project, before) = block.convs.split_last().expect("every block has a projection");
            let h = before.iter().fold(x.shallow_clone(), |h, conv| convolve(conv, &h).relu6());
            let h = convolve(project, &h);
            x = if block.skip { h + x } else { h };
        }
        let x = convolve(&self.head, &x).relu6().mean_dim(&[2i64, 3][..], false, None);
        self.fc.linear(&x)
    }
}

/// With TensorFlow's "same" padding for sizes that the stride divides: `kernel - stride`, the odd one at the end.
fn convolve(conv: &Convolution, x: &Tensor) -> Tensor {
    let pad = conv.kernel() - conv.stride;
    let (before, after) = (pad / 2, pad - pad / 2);
    match before == after {
        true => conv.forward_by(x, before),
        false => conv.forward_by(&x.constant_pad_nd([before, after, before, after]), 0),
    }
}
