//! Networks, one file each. Parameter paths are those of the public checkpoints.

pub mod biggan_deep;
pub mod lpips;

use std::collections::HashMap;

use tch::{Kind, Tensor};

/// Why tensors are not the network that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A tensor is not there.
    #[error("tensor {0} is missing")]
    Missing(String),
    /// A tensor that the network does not have.
    #[error("tensor {0} does not belong to the network")]
    Spare(String),
    /// A tensor has another shape.
    #[error("tensor {name} has shape {found:?} instead of {expected:?}")]
    Shape {
        /// Name of the tensor.
        name: String,
        /// Its shape.
        found: Vec<i64>,
        /// The shape that the configuration asks for.
        expected: Vec<i64>,
    },
    /// NaN or infinity.
    #[error("tensor {0} contains values that are not finite")]
    NotFinite(String),
    /// The configuration contradicts itself.
    #[error("configuration: {0}")]
    Config(String),
}

/// The same numbers in memory as (out, height, width, in): what convolutions on a CPU work on without re-ordering.
pub(crate) fn channels_last(weight: &Tensor) -> Tensor {
    weight.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

/// Tensors by name, taken out one by one, so that what is left over can be named.
pub struct Weights(HashMap<String, Tensor>);

impl Weights {
    /// Takes over named tensors; they become float32.
    pub fn new(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Weights {
        Weights(tensors.into_iter().collect())
    }

    /// Removes and returns a tensor, checking shape and values.
    pub fn take(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, LoadError> {
        let tensor = self.0.remove(name).ok_or_else(|| LoadError::Missing(name.to_owned()))?;
        if tensor.size() != shape {
            let (name, found) = (name.to_owned(), tensor.size());
            return Err(LoadError::Shape { name, found, expected: shape.to_vec() });
        }
        let tensor = tensor.to_kind(Kind::Float);
        if tensor.isfinite().all().int64_value(&[]) == 0 {
            return Err(LoadError::NotFinite(name.to_owned()));
        }
        Ok(tensor)
    }

    /// Removes and returns a tensor of any shape with `dims` dimensions.
    pub fn take_any(&mut self, name: &str, dims: usize) -> Result<Tensor, LoadError> {
        let shape = self.0.get(name).map(Tensor::size).ok_or_else(|| LoadError::Missing(name.to_owned()))?;
        if shape.len() != dims {
            return Err(LoadError::Shape { name: name.to_owned(), found: shape, expected: vec![-1; dims] });
        }
        self.take(name, &shape)
    }

    /// Fails if tensors are left.
    pub fn finish(self) -> Result<(), LoadError> {
        match self.0.into_keys().min() {
            Some(name) => Err(LoadError::Spare(name)),
            None => Ok(()),
        }
    }

    /// `W_orig / sigma` with `sigma = u^T W v` from the stored vectors, as torch's spectral norm in evaluation mode.
    pub fn take_spectral(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, LoadError> {
        let orig = self.take(&format!("{name}.weight_orig"), shape)?;
        let u = self.take(&format!("{name}.weight_u"), &shape[..1])?;
        let v = self.take(&format!("{name}.weight_v"), &[shape[1..].iter().product()])?;
        let sigma = u.dot(&orig.reshape([shape[0], -1]).mv(&v));
        let weight = orig / sigma;
        if weight.isfinite().all().int64_value(&[]) == 0 {
            return Err(LoadError::NotFinite(format!("{name}.weight_orig over its spectral norm")));
        }
        Ok(weight)
    }
}
