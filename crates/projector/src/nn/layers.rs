//! What the networks are made of: layers that are read from a checkpoint, and copied to a device.

use tch::{Device, Kind, Tensor};

use super::{LoadError, Weights, finite};

/// A copy on a device.
pub(crate) fn copy(tensor: &Tensor, device: Device) -> Tensor {
    tensor.to_device(device).detach().copy()
}

/// The same numbers in memory as (out, height, width, in): what convolutions on a CPU work on without re-ordering.
pub(crate) fn channels_last(weight: &Tensor) -> Tensor {
    weight.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

/// Weight and bias of a convolution, a linear layer or a normalisation.
pub(crate) struct Layer {
    pub weight: Tensor,
    pub bias: Tensor,
}

impl Layer {
    /// `{name}.weight` of `shape` and `{name}.bias` of its first size.
    pub fn load(weights: &mut Weights, name: &str, shape: &[i64]) -> Result<Layer, LoadError> {
        Layer::load_either(weights, &[name], shape)
    }

    /// As [`Layer::load`], under the first of the names that is there: publishers renamed some.
    pub fn load_either(weights: &mut Weights, names: &[&str], shape: &[i64]) -> Result<Layer, LoadError> {
        let mut take = |part: &str, shape: &[i64]| {
            let names: Vec<String> = names.iter().map(|name| format!("{name}.{part}")).collect();
            weights.take_either(&names, shape)
        };
        Ok(Layer { weight: take("weight", shape)?, bias: take("bias", &shape[..1])? })
    }

    /// As [`Layer::load`], for a convolution.
    pub fn load_convolution(weights: &mut Weights, name: &str, shape: &[i64]) -> Result<Layer, LoadError> {
        Layer::load(weights, name, shape).map(Layer::channels_last)
    }

    /// Square filters, one for each channel: `{name}.filt` `[channels, 1, kernel, kernel]`, with biases of 0.
    pub fn load_filters(weights: &mut Weights, name: &str, [channels, kernel]: [i64; 2]) -> Result<Layer, LoadError> {
        let weight = weights.take(&format!("{name}.filt"), &[channels, 1, kernel, kernel])?;
        let bias = Tensor::zeros([channels], (Kind::Float, Device::Cpu));
        Ok(Layer { weight, bias }.channels_last())
    }

    /// The same convolution for maps that have their channels last in memory.
    pub fn channels_last(self) -> Layer {
        Layer { weight: channels_last(&self.weight), bias: self.bias }
    }

    /// A copy on a device, in numbers of this kind.
    pub fn copy(&self, device: Device, kind: Kind) -> Layer {
        let copy = |tensor| copy(tensor, device).to_kind(kind);
        Layer { weight: copy(&self.weight), bias: copy(&self.bias) }
    }

    /// Handles to both tensors, as `{name}.weight` and `{name}.bias`.
    pub fn named(&self, name: &str) -> [(String, Tensor); 2] {
        let named = |part: &str, tensor: &Tensor| (format!("{name}.{part}"), tensor.shallow_clone());
        [named("weight", &self.weight), named("bias", &self.bias)]
    }

    /// A linear layer.
    pub fn linear(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, Some(&self.bias))
    }

    /// A convolution of stride 1 that keeps the size.
    pub fn convolve(&self, x: &Tensor) -> Tensor {
        self.convolve_by(x, 1, self.weight.size()[2] / 2, 1)
    }

    /// A convolution.
    pub fn convolve_by(&self, x: &Tensor, stride: i64, padding: i64, groups: i64) -> Tensor {
        x.conv2d(&self.weight, Some(&self.bias), [stride; 2], [padding; 2], [1, 1], groups)
    }
}

/// A convolution with the batch normalisation that follows it folded in.
pub(crate) struct Convolution {
    layer: Layer,
    pub stride: i64,
    groups: i64,
}

impl Convolution {
    /// `{conv}.weight` of `shape`, and the normalisation's tensors under `bn`; its `num_batches_tracked` may be there or not.
    pub fn load(
        weights: &mut Weights,
        (conv, bn): (&str, &str),
        shape: [i64; 4],
        (stride, groups): (i64, i64),
        eps: f64,
    ) -> Result<Convolution, LoadError> {
        let weight = weights.take(&format!("{conv}.weight"), &shape)?;
        let mut part = |part: &str| weights.take(&format!("{bn}.{part}"), &shape[..1]);
        let (gamma, beta, mean, variance) = (part("weight")?, part("bias")?, part("running_mean")?, part("running_var")?);
        weights.discard(&format!("{bn}.num_batches_tracked"));
        let scale = gamma / (variance + eps).sqrt();
        let bias = beta - mean * &scale;
        let what = format!("{conv}.weight by {bn}.weight over the root of {bn}.running_var");
        let weight = finite(weight * scale.view([-1, 1, 1, 1]), &what)?;
        Ok(Convolution { layer: Layer { weight, bias }.channels_last(), stride, groups })
    }

    /// Width and height of the kernel.
    pub fn kernel(&self) -> i64 {
        self.layer.weight.size()[2]
    }

    /// With half a kernel of zeros at each side.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.forward_by(x, self.kernel() / 2)
    }

    /// With this many zeros at each side.
    pub fn forward_by(&self, x: &Tensor, padding: i64) -> Tensor {
        self.layer.convolve_by(x, self.stride, padding, self.groups)
    }

    /// A copy on a device.
    pub fn copy(&self, device: Device) -> Convolution {
        Convolution { layer: self.layer.copy(device, Kind::Float), ..*self }
    }
}

/// The mean and deviation of ImageNet's photographs that torchvision's networks were trained with, for images in [0, 1].
const IMAGENET: ([f64; 3], [f64; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

/// How a network's images are scaled by channel: `(x - shift) / scale`.
pub(crate) struct Scaling {
    /// `[1, 3, 1, 1]`
    shift: Tensor,
    scale: Tensor,
}

impl Scaling {
    /// Shift and scale of red, green and blue.
    pub fn new(shift: [f64; 3], scale: [f64; 3]) -> Scaling {
        let channels = |values: [f64; 3]| Tensor::from_slice(&values).to_kind(Kind::Float).view([1, 3, 1, 1]);
        Scaling { shift: channels(shift), scale: channels(scale) }
    }

    /// Does to images in [-1, 1] what ImageNet's mean and deviation do to images in [0, 1].
    pub fn imagenet() -> Scaling {
        let Scaling { shift, scale } = Scaling::new(IMAGENET.0, IMAGENET.1);
        Scaling { shift: shift * 2.0 - 1.0, scale: scale * 2.0 }
    }

    pub fn apply(&self, images: &Tensor) -> Tensor {
        (images - &self.shift) / &self.scale
    }

    /// A copy on a device.
    pub fn copy(&self, device: Device) -> Scaling {
        Scaling { shift: copy(&self.shift, device), scale: copy(&self.scale, device) }
    }
}
