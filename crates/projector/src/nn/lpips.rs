//! LPIPS (Zhang et al. 2018, version 0.1): distances between feature maps of a convolutional network.
//!
//! The network is a stack of convolution, ReLU and max-pooling, in torchvision's naming (`features.{i}`), with heads
//! `lin{k}.model.1.weight`. AlexNet and VGG16 are such stacks; so are the small classifier of the bundled model, SqueezeNet with its
//! Fire modules, and AlexNet and VGG16 of ST-LPIPS (Ghildyal and Liu 2022), whose distances change little with a shift of a pixel,
//! because a map is blurred before it is made smaller.
//!
//! Two properties of the search are used: target features are computed once, and since the weight map of a target is fixed, the
//! up-sampling of the distance maps is replaced by its adjoint on the weights, `<w, up(d)> = <up^T(w), d>`: the same number
//! without any full-size map.

use proto::MaskMode;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::layers::{self, Scaling};
use super::{LARGEST, LoadError, Weights};

/// Added to the norm of a feature vector (reference: `normalize_tensor`).
const NORM_EPS: f64 = 1e-10;
/// Below this squared norm the root has no gradient; the value is unchanged (richzhang/PerceptualSimilarity#69).
const SAFE_SQUARE: f64 = 1e-30;

/// The stack and its input scaling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Subtracted from the image in [-1, 1], by channel.
    pub shift: [f64; 3],
    /// The image is divided by it, by channel.
    pub scale: [f64; 3],
    /// The stack, from the image on.
    pub layers: Vec<Layer>,
}

/// A layer of the stack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Layer {
    /// Convolution and ReLU.
    Conv {
        /// Index in `features.{index}`.
        index: usize,
        /// Output channels.
        channels: i64,
        /// Width and height of the kernel.
        kernel: i64,
        /// Step in pixels.
        stride: i64,
        /// Zeros added at each side, in pixels.
        padding: i64,
        /// Whether the ReLU's output is compared.
        tap: bool,
    },
    /// Max-pooling.
    MaxPool {
        /// Width and height of the window.
        kernel: i64,
        /// Step in pixels.
        stride: i64,
        /// Whether an incomplete window at the end counts.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        ceil: bool,
    },
    /// SqueezeNet's Fire module (Iandola et al. 2016): a 1x1 convolution, then 1x1 and 3x3 side by side, each with ReLU.
    Fire {
        /// Index in `features.{index}.{squeeze,expand1x1,expand3x3}`.
        index: usize,
        /// Channels after the first convolution.
        squeeze: i64,
        /// Output channels, half of them from each side.
        channels: i64,
        /// Whether the output is compared.
        tap: bool,
    },
    /// Convolution without a ReLU.
    BareConv {
        /// Index in `features.{index}`.
        index: usize,
        /// Output channels.
        channels: i64,
        /// Width and height of the kernel.
        kernel: i64,
        /// Step in pixels.
        stride: i64,
        /// Zeros added at each side, in pixels.
        padding: i64,
    },
    /// ReLU.
    Relu {
        /// Whether the output is compared.
        tap: bool,
    },
    /// Blur of each channel for itself (Zhang 2019), the filters being weights. The map must be larger than `padding`.
    Blur {
        /// Index in `features.{index}.filt`.
        index: usize,
        /// Width and height of the filters.
        kernel: i64,
        /// Step in pixels.
        stride: i64,
        /// Pixels added at each side, mirrored at the outermost ones.
        padding: i64,
    },
}

impl Config {
    fn check(&self) -> Result<(), LoadError> {
        let fail = |why: String| Err(LoadError::Config(why));
        if !self.scale.iter().all(|s| s.is_finite() && *s != 0.0) || !self.shift.iter().all(|s| s.is_finite()) {
            return fail("the input scaling of the perceptual network is not finite, or divides by 0".into());
        }
        for layer in &self.layers {
            let (sizes, padding) = match *layer {
                Layer::Conv { channels, kernel, stride, padding, .. }
                | Layer::BareConv { channels, kernel, stride, padding, .. } => ([channels, kernel, stride], padding),
                Layer::MaxPool { kernel, stride, .. } => ([1, kernel, stride], 0),
                Layer::Fire { squeeze, channels, .. } => ([squeeze, channels, channels / 2], 0),
                Layer::Relu { .. } => continue,
                Layer::Blur { kernel, stride, padding, .. } => ([1, kernel, stride], padding),
            };
            if matches!(layer, Layer::Fire { channels, .. } if channels % 2 != 0) {
                return fail(format!("a Fire module has two halves, so an even number of channels: {layer:?}"));
            }
            if !sizes.iter().all(|n| (1..=LARGEST).contains(n)) || !(0..=LARGEST).contains(&padding) {
                return fail(format!("a layer of the perceptual network has a size that is not in 1 to {LARGEST}: {layer:?}"));
            }
        }
        Ok(())
    }

    /// LPIPS' own configurations, `alex`, `vgg16` or `squeeze`, and ST-LPIPS', `st-alex` or `st-vgg16`.
    pub fn named(name: &str) -> Option<Config> {
        match name {
            "alex" => Some(Config::alex()),
            "vgg16" => Some(Config::vgg16()),
            "squeeze" => Some(Config::squeeze()),
            "st-alex" => Some(Config::st_alex()),
            "st-vgg16" => Some(Config::st_vgg16()),
            _ => None,
        }
    }

    /// torchvision's AlexNet under LPIPS' input scaling.
    pub fn alex() -> Config {
        let conv = |index, channels, kernel, stride, padding| Layer::Conv { index, channels, kernel, stride, padding, tap: true };
        let pool = Layer::MaxPool { kernel: 3, stride: 2, ceil: false };
        Config::scaled(vec![
            conv(0, 64, 11, 4, 2),
            pool.clone(),
            conv(3, 192, 5, 1, 2),
            pool,
            conv(6, 384, 3, 1, 1),
            conv(8, 256, 3, 1, 1),
            conv(10, 256, 3, 1, 1),
        ])
    }

    /// ST-LPIPS' AlexNet (reference: `alexnet` in `invariant_networks.py`). Only its blurs have a step above 1.
    pub fn st_alex() -> Config {
        let conv = |index, channels, kernel, padding| Layer::Conv { index, channels, kernel, stride: 1, padding, tap: true };
        let pool = Layer::MaxPool { kernel: 3, stride: 1, ceil: false };
        Config::scaled(vec![
            Layer::BareConv { index: 0, channels: 64, kernel: 11, stride: 1, padding: 2 },
            Config::blur(1),
            Layer::Relu { tap: true },
            pool.clone(),
            Config::blur(4),
            conv(5, 192, 5, 2),
            pool,
            Config::blur(8),
            conv(9, 384, 3, 1),
            conv(11, 256, 3, 1),
            conv(13, 256, 3, 1),
        ])
    }

    /// torchvision's VGG16 under LPIPS' input scaling. Its last pooling is not reached.
    pub fn vgg16() -> Config {
        Config::vgg(|_| vec![Layer::MaxPool { kernel: 2, stride: 2, ceil: false }])
    }

    /// ST-LPIPS' VGG16 (reference: `vggnet` in `invariant_networks.py` and `make_layers` in `models_lpf/vgg.py`).
    pub fn st_vgg16() -> Config {
        Config::vgg(|index| vec![Layer::MaxPool { kernel: 2, stride: 1, ceil: false }, Config::blur(index + 1)])
    }

    /// VGG16 with the layers that `pool` puts between two stages, given the index of the first.
    fn vgg(pool: impl Fn(usize) -> Vec<Layer>) -> Config {
        let (mut layers, mut index) = (Vec::new(), 0);
        for (stage, (channels, convs)) in [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)].into_iter().enumerate() {
            if stage > 0 {
                let pool = pool(index);
                index += pool.len();
                layers.extend(pool);
            }
            for i in 1..=convs {
                layers.push(Layer::Conv { index, channels, kernel: 3, stride: 1, padding: 1, tap: i == convs });
                index += 2;
            }
        }
        Config::scaled(layers)
    }

    /// torchvision's SqueezeNet 1.1 under LPIPS' input scaling.
    pub fn squeeze() -> Config {
        let fire = |index, squeeze, channels, tap| Layer::Fire { index, squeeze, channels, tap };
        let pool = Layer::MaxPool { kernel: 3, stride: 2, ceil: true };
        Config::scaled(vec![
            Layer::Conv { index: 0, channels: 64, kernel: 3, stride: 2, padding: 0, tap: true },
            pool.clone(),
            fire(3, 16, 128, false),
            fire(4, 16, 128, true),
            pool.clone(),
            fire(6, 32, 256, false),
            fire(7, 32, 256, true),
            pool,
            fire(9, 48, 384, true),
            fire(10, 48, 384, true),
            fire(11, 64, 512, true),
            fire(12, 64, 512, true),
        ])
    }

    /// ST-LPIPS' blur (reference: `Downsample` in `models_lpf/downsample.py`, with `pad_more`).
    fn blur(index: usize) -> Layer {
        Layer::Blur { index, kernel: 3, stride: 2, padding: 2 }
    }

    fn scaled(layers: Vec<Layer>) -> Config {
        Config { shift: [-0.030, -0.088, -0.188], scale: [0.458, 0.448, 0.450], layers }
    }
}

/// The network, ready to compare images.
pub struct Lpips {
    scaling: Scaling,
    stack: Vec<Layer>,
    /// Convolutions and blurs of the stack, in order.
    convs: Vec<layers::Layer>,
    /// `[1, channels, 1, 1]` for each tap.
    heads: Vec<Tensor>,
}

/// Normalised feature maps, one for each tap: `[n, channels, h, w]`.
pub struct Features(pub(crate) Vec<Tensor>);

/// Weights of the distance maps: `[n, 1, h, w]` for each tap, so that their products' sums are the masked distance.
pub struct MapWeights(pub(crate) Vec<Tensor>);

impl Lpips {
    /// Builds the network; filters of a blur are `features.{index}.filt`, heads `lin{k}.model.1.weight`.
    pub fn load(config: &Config, weights: &mut Weights) -> Result<Lpips, LoadError> {
        let _no_grad = tch::no_grad_guard();
        config.check()?;
        let mut input = 3;
        let (mut convs, mut heads) = (Vec::new(), Vec::new());
        for layer in &config.layers {
            let mut conv = |name: String, [output, input, kernel]: [i64; 3]| -> Result<(), LoadError> {
                convs.push(layers::Layer::load_convolution(weights, &name, &[output, input, kernel, kernel])?);
                Ok(())
            };
            let (channels, tap) = match *layer {
                Layer::Conv { index, channels, kernel, tap, .. } => {
                    conv(format!("features.{index}"), [channels, input, kernel])?;
                    (channels, tap)
                }
                Layer::BareConv { index, channels, kernel, .. } => {
                    conv(format!("features.{index}"), [channels, input, kernel])?;
                    (channels, false)
                }
                Layer::MaxPool { .. } => (input, false),
                Layer::Relu { tap } => (input, tap),
                Layer::Blur { index, kernel, .. } => {
                    convs.push(layers::Layer::load_filters(weights, &format!("features.{index}"), [input, kernel])?);
                    (input, false)
                }
                Layer::Fire { index, squeeze, channels, tap } => {
                    let half = channels / 2;
                    conv(format!("features.{index}.squeeze"), [squeeze, input, 1])?;
                    conv(format!("features.{index}.expand1x1"), [half, squeeze, 1])?;
                    conv(format!("features.{index}.expand3x3"), [half, squeeze, 3])?;
                    (channels, tap)
                }
            };
            if tap {
                let head = weights.take(&format!("lin{}.model.1.weight", heads.len()), &[1, channels, 1, 1])?;
                if head.min().double_value(&[]) < 0.0 {
                    return Err(LoadError::Config(format!("head {} has negative weights", heads.len())));
                }
                heads.push(head);
            }
            input = channels;
        }
        if convs.is_empty() || heads.is_empty() {
            return Err(LoadError::Config("no convolution of the perceptual network is compared".into()));
        }
        Ok(Lpips { scaling: Scaling::new(config.shift, config.scale), stack: config.layers.clone(), convs, heads })
    }

    /// A copy on a device, whose convolutions work on numbers of this kind; distances are float32.
    pub fn replicate(&self, device: Device, kind: Kind) -> Lpips {
        Lpips {
            scaling: self.scaling.copy(device),
            stack: self.stack.clone(),
            convs: self.convs.iter().map(|conv| conv.copy(device, kind)).collect(),
            heads: self.heads.iter().map(|head| layers::copy(head, device)).collect(),
        }
    }

    /// Output of the last stage and the taps before normalisation, for images `[n, 3, h, w]` in [-1, 1].
    fn stack(&self, images: &Tensor) -> (Tensor, Vec<Tensor>) {
        let mut x = self.scaling.apply(images).to_kind(self.convs[0].weight.kind());
        let mut taps = Vec::with_capacity(self.heads.len());
        let mut convs = self.convs.iter();
        let mut conv = |x: &Tensor, stride, padding, groups| {
            let conv = convs.next().expect("loading gave each layer its convolutions");
            conv.convolve_by(x, stride, padding, groups)
        };
        for layer in &self.stack {
            let compared;
            (x, compared) = match *layer {
                Layer::Conv { stride, padding, tap, .. } => (conv(&x, stride, padding, 1).relu_(), tap),
                Layer::BareConv { stride, padding, .. } => (conv(&x, stride, padding, 1), false),
                Layer::Relu { tap } => (x.relu(), tap),
                Layer::Blur { stride, padding, .. } => (conv(&x.reflection_pad2d([padding; 4]), stride, 0, x.size()[1]), false),
                Layer::MaxPool { kernel, stride, ceil } => (x.max_pool2d([kernel; 2], [stride; 2], [0, 0], [1, 1], ceil), false),
                Layer::Fire { tap, .. } => {
                    let h = conv(&x, 1, 0, 1).relu_();
                    (Tensor::cat(&[conv(&h, 1, 0, 1), conv(&h, 1, 1, 1)], 1).relu_(), tap)
                }
            };
            if compared {
                taps.push(x.shallow_clone());
            }
        }
        (x, taps)
    }

    /// Output of the last stage `[n, channels, h, w]`, for a classifier on top.
    pub fn last(&self, images: &Tensor) -> Tensor {
        self.stack(images).0
    }

    /// Feature maps of images `[n, 3, h, w]` in [-1, 1], each vector of unit length.
    pub fn features(&self, images: &Tensor) -> Features {
        let unit = |x: Tensor| {
            let x = x.to_kind(Kind::Float);
            let square = x.square().sum_dim_intlist(&[1i64][..], true, Kind::Float);
            let norm = square.clamp_min(SAFE_SQUARE).sqrt() + NORM_EPS;
            x / norm
        };
        Features(self.stack(images).1.into_iter().map(unit).collect())
    }

    /// Turns a weight map `[n, 1, h, w]` of the images into weights of the distance maps of `features`.
    pub fn map_weights(&self, weights: &Tensor, features: &Features, mode: MaskMode) -> MapWeights {
        let (_, _, height, width) = weights.size4().expect("weight maps are four-dimensional");
        let total = total(weights);
        let small = |features: &Tensor| {
            let (_, _, h, w) = features.size4().expect("feature maps are four-dimensional");
            match mode {
                MaskMode::UpsampleFeatures => adjoint_upsample(weights, h, w) / &total,
                MaskMode::DownsampleMask if (h, w) == (height, width) => weights / &total,
                MaskMode::DownsampleMask => {
                    let small = weights.upsample_bilinear2d([h, w], false, None, None);
                    let total = self::total(&small);
                    small / total
                }
            }
        };
        MapWeights(features.0.iter().map(small).collect())
    }

    /// Masked distance of each of n images `[n, 3, h, w]` in [-1, 1] to its target, `[n]`.
    pub fn distance(&self, images: &Tensor, target: &Features, weights: &MapWeights) -> Tensor {
        let (_, taps) = self.stack(images);
        let terms: Vec<Tensor> = (0..self.heads.len())
            .map(|k| kernels::unit_distance(&taps[k], &target.0[k], &self.heads[k], &weights.0[k]))
            .collect();
        Tensor::stack(&terms, 0).sum_dim_intlist(&[0i64][..], false, Kind::Float)
    }

    /// The unmasked distance map `[n, 1, h, w]` (reference: `spatial=True`), for tests and pictures.
    pub fn map(&self, x: &Tensor, y: &Tensor) -> Tensor {
        let size = x.size();
        let (fx, fy) = (self.features(x), self.features(y));
        let map = |k: usize| {
            let d = (&fx.0[k] - &fy.0[k]).square() * &self.heads[k];
            let d = d.sum_dim_intlist(&[1i64][..], true, Kind::Float);
            d.upsample_bilinear2d([size[2], size[3]], false, None, None)
        };
        let maps: Vec<Tensor> = (0..self.heads.len()).map(map).collect();
        Tensor::stack(&maps, 0).sum_dim_intlist(&[0i64][..], false, Kind::Float)
    }
}

/// Sum of each weight map `[n, 1, h, w]`, as `[n, 1, 1, 1]`, so that it can be divided by.
pub(crate) fn total(weights: &Tensor) -> Tensor {
    weights.sum_dim_intlist(&[1i64, 2, 3][..], true, Kind::Float).clamp_min(1e-12)
}

/// Transpose of the bilinear up-sampling from `h x w` (align_corners = false), applied to `weights`.
fn adjoint_upsample(weights: &Tensor, h: i64, w: i64) -> Tensor {
    let size = weights.size();
    if (size[2], size[3]) == (h, w) {
        return weights.shallow_clone();
    }
    tch::with_grad(|| {
        let small = Tensor::zeros([size[0], 1, h, w], (Kind::Float, weights.device())).set_requires_grad(true);
        let sum = (small.upsample_bilinear2d([size[2], size[3]], false, None, None) * weights).sum(Kind::Float);
        Tensor::run_backward(&[sum], &[small], false, false).remove(0)
    })
}
