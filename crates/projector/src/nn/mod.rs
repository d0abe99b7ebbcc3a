//! Networks, one file each. Parameter paths are those of the public checkpoints.

pub mod biggan;
pub mod biggan_deep;
mod biggan_folded;
pub mod detection;
pub mod efficientnet_lite;
pub mod encoder;
mod layers;
pub mod lpips;
pub mod mask_rcnn;
pub mod resnet;

use std::collections::HashMap;

use tch::{Kind, Tensor};

/// Largest size in a configuration: no network comes near, and products of sizes do not overflow.
const LARGEST: i64 = 1 << 15;

/// Why tensors do not make the network. Every `load` refuses a missing or misshapen tensor and values that are not finite, before or after
/// folding; [`Weights::finish`] refuses the spare ones that it leaves.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A tensor is missing.
    #[error("tensor {0} is missing")]
    Missing(String),
    /// A tensor does not belong to the network.
    #[error("tensor {0} does not belong to the network")]
    Spare(String),
    /// A tensor has another shape.
    #[error("tensor {name} has shape {found:?} instead of {expected:?}")]
    Shape {
        /// Name of the tensor.
        name: String,
        /// Shape of the tensor.
        found: Vec<i64>,
        /// Shape by the configuration.
        expected: Vec<i64>,
    },
    /// A tensor has NaN or infinity.
    #[error("tensor {0} contains values that are not finite")]
    NotFinite(String),
    /// The configuration contradicts itself.
    #[error("configuration: {0}")]
    Config(String),
}

/// Fails, naming the tensor, unless all of its values are finite.
fn finite(tensor: Tensor, name: &str) -> Result<Tensor, LoadError> {
    match tensor.isfinite().all().int64_value(&[]) {
        0 => Err(LoadError::NotFinite(name.to_owned())),
        _ => Ok(tensor),
    }
}

/// Tensors by name, taken out one by one, so that an error can name the tensors left over.
pub struct Weights(HashMap<String, Tensor>);

impl Weights {
    /// Takes over named tensors; they become float32.
    pub fn new(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Weights {
        Weights(tensors.into_iter().collect())
    }

    /// Names of the tensors that are not taken yet.
    pub fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// Builds a network from all of the tensors; fails if `load` leaves any.
    pub fn build<T>(mut self, load: impl FnOnce(&mut Weights) -> Result<T, LoadError>) -> Result<T, LoadError> {
        let network = load(&mut self)?;
        self.finish().map(|()| network)
    }

    /// Removes and returns a tensor, checking shape and values.
    pub fn take(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, LoadError> {
        let tensor = self.0.remove(name).ok_or_else(|| LoadError::Missing(name.to_owned()))?;
        if tensor.size() != shape {
            let (name, found) = (name.to_owned(), tensor.size());
            return Err(LoadError::Shape { name, found, expected: shape.to_vec() });
        }
        finite(tensor.to_kind(Kind::Float), name)
    }

    /// Removes and returns a tensor with one element, of any shape, as `[]`.
    pub(crate) fn take_scalar(&mut self, name: &str) -> Result<Tensor, LoadError> {
        let dims = self.0.get(name).map_or(0, |t| if t.numel() == 1 { t.dim() } else { 0 });
        Ok(self.take(name, &vec![1; dims])?.reshape([0i64; 0]))
    }

    /// Removes a tensor that does not take part in inference, if it is there.
    pub(crate) fn discard(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Removes and returns a tensor of any shape with `dims` dimensions.
    pub fn take_any(&mut self, name: &str, dims: usize) -> Result<Tensor, LoadError> {
        let shape = self.0.get(name).map(Tensor::size).ok_or_else(|| LoadError::Missing(name.to_owned()))?;
        if shape.len() != dims {
            return Err(LoadError::Shape { name: name.to_owned(), found: shape, expected: vec![-1; dims] });
        }
        self.take(name, &shape)
    }

    /// Removes and returns the tensor that has one of these names: publishers renamed some. The first is the one named if none is there.
    pub(crate) fn take_either(&mut self, names: &[String], shape: &[i64]) -> Result<Tensor, LoadError> {
        let name = names.iter().find(|name| self.0.contains_key(*name)).unwrap_or(&names[0]);
        self.take(name, shape)
    }

    /// Fails if tensors are left.
    pub fn finish(self) -> Result<(), LoadError> {
        match self.0.into_keys().min() {
            Some(name) => Err(LoadError::Spare(name)),
            None => Ok(()),
        }
    }

    /// `W_orig / sigma` with `sigma = u^T W v` from the stored vectors, as torch's spectral norm in evaluation mode.
    pub(crate) fn take_spectral(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, LoadError> {
        let orig = self.take(&format!("{name}.weight_orig"), shape)?;
        let u = self.take(&format!("{name}.weight_u"), &shape[..1])?;
        let v = self.take(&format!("{name}.weight_v"), &[shape[1..].iter().product()])?;
        let sigma = u.dot(&orig.reshape([shape[0], -1]).mv(&v));
        finite(orig / sigma, &format!("{name}.weight_orig over its spectral norm"))
    }

    /// `W / sigma` with sigma from one power step on the stored `u0`, as the `SN` of ajbrock/BigGAN-PyTorch in evaluation mode:
    /// `v = normalise(u W)`, `sigma = v W^T normalise(W v)`.
    pub fn take_power(&mut self, name: &str, shape: &[i64], eps: f64) -> Result<Tensor, LoadError> {
        let weight = self.take(&format!("{name}.weight"), shape)?;
        let u = self.take(&format!("{name}.u0"), &[1, shape[0]])?.squeeze_dim(0);
        // The last singular value, which that code keeps for its logs.
        self.discard(&format!("{name}.sv0"));
        let matrix = weight.reshape([shape[0], -1]);
        let normalise = |x: Tensor| &x / x.norm().clamp_min(eps);
        let v = normalise(matrix.tr().mv(&u));
        let image = matrix.mv(&v);
        let sigma = image.dot(&normalise(image.shallow_clone()));
        finite(weight / sigma, &format!("{name}.weight over its spectral norm"))
    }
}
