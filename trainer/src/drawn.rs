//! A generator that draws its images, for tests.

use std::sync::Arc;

use projector::Generator;
use tch::kind::FLOAT_CPU;
use tch::{Device, Kind, Tensor};

type Draw = dyn Fn(&Tensor, &Tensor) -> Tensor + Send + Sync;

#[derive(Clone)]
pub struct Drawn {
    pub latent_dim: i64,
    /// The embedding of a class is a unit vector.
    pub classes: i64,
    pub resolution: i64,
    /// z and c -> images, as `Generator::generate`.
    pub draw: Arc<Draw>,
}

impl Generator for Drawn {
    fn generate(&self, z: &Tensor, c: &Tensor) -> Tensor {
        (self.draw)(z, c)
    }
    fn embeddings(&self) -> Tensor {
        Tensor::eye(self.classes, FLOAT_CPU)
    }
    fn latent_dim(&self) -> i64 {
        self.latent_dim
    }
    fn latent_layer(&self) -> Tensor {
        Tensor::eye(self.latent_dim, FLOAT_CPU)
    }
    fn resolution(&self) -> i64 {
        self.resolution
    }
    fn weights(&self) -> Vec<(String, Tensor)> {
        vec![]
    }
    fn converted(&self, _: Device, _: Kind) -> Box<dyn Generator> {
        Box::new(self.clone())
    }
}
