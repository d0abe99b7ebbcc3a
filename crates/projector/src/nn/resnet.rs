//! ResNet and ResNeXt with bottleneck blocks (He et al. 2016, Xie et al. 2017) in torchvision's layout, for inference.
//!
//! Batch normalisation is folded into the convolution before it. The detector uses the body; with the average pool and
//! `fc` on top it is a classifier.

use tch::{Device, Kind, Tensor};

use super::layers::{Convolution, Layer, Scaling};
use super::{LARGEST, LoadError, Weights};

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

struct Block {
    convs: [Convolution; 3],
    downsample: Option<Convolution>,
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

    fn copy(&self, device: Device) -> Block {
        Block {
            convs: self.convs.each_ref().map(|conv| conv.copy(device)),
            downsample: self.downsample.as_ref().map(|conv| conv.copy(device)),
        }
    }
}

/// The body: everything but `fc`.
pub struct ResNet {
    stem: Convolution,
    layers: [Vec<Block>; 4],
}

impl ResNet {
    /// Builds the body from `{prefix}conv1.weight`, `{prefix}layer1.0.bn1.running_var` and so on; `eps` is that of the batch
    /// normalisation. `num_batches_tracked` is taken and dropped where it is there.
    pub fn load(config: &Config, weights: &mut Weights, prefix: &str, eps: f64) -> Result<ResNet, LoadError> {
        config.check()?;
        let _no_grad = tch::no_grad_guard();
        let planes = config.planes;
        let stem = (&*format!("{prefix}conv1"), &*format!("{prefix}bn1"));
        let stem = Convolution::load(weights, stem, [planes, 3, 7, 7], (2, 1), eps)?;
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
                    Convolution::load(weights, names, shape, (stride, groups), eps)
                };
                let convs = [
                    conv("conv1", "bn1", [width, input, 1, 1], 1, 1)?,
                    conv("conv2", "bn2", [width, width / config.groups, 3, 3], stride, config.groups)?,
                    conv("conv3", "bn3", [output, width, 1, 1], 1, 1)?,
                ];
                let downsample = || conv("downsample.0", "downsample.1", [output, input, 1, 1], stride, 1);
                let downsample = (block == 0).then(downsample).transpose()?;
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
        let blocks = |blocks: &Vec<Block>| blocks.iter().map(|block| block.copy(device)).collect();
        ResNet { stem: self.stem.copy(device), layers: self.layers.each_ref().map(blocks) }
    }
}

/// An ImageNet classifier, such as torchvision's `resnext101_32x8d`.
pub struct Classifier {
    scaling: Scaling,
    body: ResNet,
    fc: Layer,
}

impl Classifier {
    /// Builds the classifier from the keys of torchvision's checkpoint, with `classes` classes.
    pub fn load(config: &Config, classes: i64, weights: &mut Weights) -> Result<Classifier, LoadError> {
        let body = ResNet::load(config, weights, "", BATCH_NORM_EPS)?;
        let fc = Layer::load(weights, "fc", &[classes, config.channels()[3]])?;
        Ok(Classifier { scaling: Scaling::imagenet(), body, fc })
    }

    /// Scores before the softmax, `[n, classes]`, for images `[n, 3, h, w]` in [-1, 1] of any size. Nothing is resized or cropped.
    pub fn logits(&self, images: &Tensor) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let [.., last] = self.body.stages(&self.scaling.apply(images));
        self.fc.linear(&last.mean_dim(&[2i64, 3][..], false, Kind::Float))
    }

    /// A copy on a device.
    pub fn replicate(&self, device: Device) -> Classifier {
        Classifier {
            scaling: self.scaling.copy(device),
            body: self.body.replicate(device),
            fc: self.fc.copy(device, Kind::Float),
        }
    }
}
