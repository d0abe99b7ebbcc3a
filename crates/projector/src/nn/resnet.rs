//! ResNet and ResNeXt with bottleneck blocks (He et al. 2016, Xie et al. 2017) in torchvision's layout, for inference.
//!
//! Batch normalisation is folded into the convolution before it. The detector uses the body; with the average pool and
//! `fc` on top it is a classifier.

use tch::{Device, Kind, Tensor};

use super::{LARGEST, LoadError, Weights, channels_last, imagenet};

/// Channels out of a block over its planes.
const EXPANSION: i64 = 4;
/// `eps` of torchvision's batch normalisation.
const BATCH_NORM_EPS: f64 = 1e-5;

/// Sizes of the body.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Blocks of the four layers.
    pub blocks: [usize; 4],
    /// Channels of the first convolution, and planes of the first layer; each layer has twice those of the one before.
    pub planes: i64,
    /// Groups of the 3 x 3 convolutions.
    pub groups: i64,
    /// Channels of a group in the first layer.
    pub width_per_group: i64,
}

impl Config {
    /// Sizes of torchvision's `resnet50`.
    pub fn resnet50() -> Config {
        Config { blocks: [3, 4, 6, 3], planes: 64, groups: 1, width_per_group: 64 }
    }

    /// Sizes of torchvision's `resnext101_32x8d`.
    pub fn resnext101_32x8d() -> Config {
        Config { blocks: [3, 4, 23, 3], planes: 64, groups: 32, width_per_group: 8 }
    }

    /// Channels out of each layer.
    pub fn channels(&self) -> [i64; 4] {
        std::array::from_fn(|layer| EXPANSION * (self.planes << layer))
    }

    pub(super) fn check(&self) -> Result<(), LoadError> {
        let sizes = [self.planes, self.groups, self.width_per_group];
        if !sizes.iter().all(|n| (1..=LARGEST / 64).contains(n)) || self.blocks.contains(&0) {
            return Err(LoadError::Config(format!("a size of the residual network is not in 1 to {}: {self:?}", LARGEST / 64)));
        }
        Ok(())
    }
}

/// A convolution with its normalisation folded in.
struct Conv {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    groups: i64,
}

impl Conv {
    /// `shape` is that of the weight; `conv` and `bn` are the paths of the two modules.
    fn load(
        weights: &mut Weights,
        (conv, bn): (&str, &str),
        shape: [i64; 4],
        (stride, groups): (i64, i64),
        eps: f64,
    ) -> Result<Conv, LoadError> {
        let weight = weights.take(&format!("{conv}.weight"), &shape)?;
        let mut part = |part: &str| weights.take(&format!("{bn}.{part}"), &shape[..1]);
        let (gamma, beta, mean, variance) = (part("weight")?, part("bias")?, part("running_mean")?, part("running_var")?);
        weights.discard(&format!("{bn}.num_batches_tracked"));
        let scale = gamma / (variance + eps).sqrt();
        if scale.isfinite().all().int64_value(&[]) == 0 {
            return Err(LoadError::NotFinite(format!("{bn}.weight over the root of {bn}.running_var")));
        }
        let bias = beta - mean * &scale;
        Ok(Conv { weight: channels_last(&(weight * scale.view([-1, 1, 1, 1]))), bias, stride, groups })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let padding = self.weight.size()[2] / 2;
        x.conv2d(&self.weight, Some(&self.bias), [self.stride; 2], [padding; 2], [1, 1], self.groups)
    }

    fn replicate(&self, device: Device) -> Conv {
        let copy = |t: &Tensor| t.to_device(device).copy();
        Conv { weight: copy(&self.weight), bias: copy(&self.bias), stride: self.stride, groups: self.groups }
    }
}

struct Block {
    convs: [Conv; 3],
    downsample: Option<Conv>,
}

impl Block {
    fn forward(&self, x: &Tensor) -> Tensor {
        let [first, second, third] = &self.convs;
        let h = third.forward(&second.forward(&first.forward(x).relu_()).relu_());
        match &self.downsample {
            Some(downsample) => (h + downsample.forward(x)).relu_(),
            None => (h + x).relu_(),
        }
    }

    fn replicate(&self, device: Device) -> Block {
        Block {
            convs: std::array::from_fn(|i| self.convs[i].replicate(device)),
            downsample: self.downsample.as_ref().map(|d| d.replicate(device)),
        }
    }
}

/// The body: everything but `fc`.
pub struct ResNet {
    stem: Conv,
    layers: [Vec<Block>; 4],
}

impl ResNet {
    /// Builds the body from `{prefix}conv1.weight`, `{prefix}layer1.0.bn1.running_var` and so on; `eps` is that of the batch
    /// normalisation. `num_batches_tracked` is taken and dropped where it is there.
    ///
    /// Fails on a missing or misshapen tensor and on values that are not finite, before or after folding.
    pub fn load(config: &Config, weights: &mut Weights, prefix: &str, eps: f64) -> Result<ResNet, LoadError> {
        config.check()?;
        let _no_grad = tch::no_grad_guard();
        let planes = config.planes;
        let stem = (&*format!("{prefix}conv1"), &*format!("{prefix}bn1"));
        let stem = Conv::load(weights, stem, [planes, 3, 7, 7], (2, 1), eps)?;
        let mut layers = [const { Vec::new() }; 4];
        let mut input = planes;
        for (i, blocks) in layers.iter_mut().enumerate() {
            let output = config.channels()[i];
            // `int(planes * (base_width / 64)) * groups` in torchvision, where the planes start at 64.
            let width = (config.width_per_group << i) * config.groups;
            for block in 0..config.blocks[i] {
                let stride = if i > 0 && block == 0 { 2 } else { 1 };
                let mut conv = |conv: &str, bn: &str, shape, stride, groups| {
                    let name = format!("{prefix}layer{}.{block}.", i + 1);
                    let names = (&*format!("{name}{conv}"), &*format!("{name}{bn}"));
                    Conv::load(weights, names, shape, (stride, groups), eps)
                };
                let convs = [
                    conv("conv1", "bn1", [width, input, 1, 1], 1, 1)?,
                    conv("conv2", "bn2", [width, width / config.groups, 3, 3], stride, config.groups)?,
                    conv("conv3", "bn3", [output, width, 1, 1], 1, 1)?,
                ];
                let downsample = match block {
                    0 => Some(conv("downsample.0", "downsample.1", [output, input, 1, 1], stride, 1)?),
                    _ => None,
                };
                blocks.push(Block { convs, downsample });
                input = output;
            }
        }
        Ok(ResNet { stem, layers })
    }

    /// Output of each layer, for normalised images `[n, 3, h, w]`: `[n, channels, h / 4, w / 4]`, then half of that each time,
    /// rounded up.
    pub fn stages(&self, images: &Tensor) -> [Tensor; 4] {
        let mut x = self.stem.forward(images).relu_().max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false);
        std::array::from_fn(|i| {
            for block in &self.layers[i] {
                x = block.forward(&x);
            }
            x.shallow_clone()
        })
    }

    /// A copy on a device.
    pub fn replicate(&self, device: Device) -> ResNet {
        ResNet {
            stem: self.stem.replicate(device),
            layers: std::array::from_fn(|i| self.layers[i].iter().map(|b| b.replicate(device)).collect()),
        }
    }
}

/// An ImageNet classifier, such as torchvision's `resnext101_32x8d`.
pub struct Classifier {
    mean: Tensor,
    deviation: Tensor,
    body: ResNet,
    fc: (Tensor, Tensor),
}

impl Classifier {
    /// Builds the classifier from the keys of torchvision's checkpoint, with `classes` classes.
    ///
    /// Fails on a missing or misshapen tensor and on values that are not finite.
    pub fn load(config: &Config, classes: i64, weights: &mut Weights) -> Result<Classifier, LoadError> {
        let body = ResNet::load(config, weights, "", BATCH_NORM_EPS)?;
        let fc = (weights.take("fc.weight", &[classes, config.channels()[3]])?, weights.take("fc.bias", &[classes])?);
        let (mean, deviation) = imagenet();
        Ok(Classifier { mean, deviation, body, fc })
    }

    /// Scores before the softmax, `[n, classes]`, for images `[n, 3, h, w]` in [-1, 1] of any size. Nothing is resized or cropped.
    pub fn logits(&self, images: &Tensor) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let [.., last] = self.body.stages(&((images - &self.mean) / &self.deviation));
        last.mean_dim(&[2i64, 3][..], false, Kind::Float).linear(&self.fc.0, Some(&self.fc.1))
    }

    /// A copy on a device.
    pub fn replicate(&self, device: Device) -> Classifier {
        let copy = |t: &Tensor| t.to_device(device).copy();
        Classifier {
            mean: copy(&self.mean),
            deviation: copy(&self.deviation),
            body: self.body.replicate(device),
            fc: (copy(&self.fc.0), copy(&self.fc.1)),
        }
    }
}
