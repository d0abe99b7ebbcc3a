//! Edits of a projection (paper, "Image Edits"): another class, directions of the latent space, truncation.

use tch::{Kind, Tensor};

use crate::generator::Generator;

/// An edit of z and c. The default changes nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Edit {
    /// Another class and its share a: `c' = a W c_new + (1 - a) c` (the authors' `edit/editor.py`).
    pub class: Option<(i64, f64)>,
    /// Directions u of z, each with a distance a: `z' = z + a u`.
    pub moves: Vec<(Vec<f32>, f64)>,
    /// Factor of z after the moves: towards 0 the image becomes more typical and less like the target.
    pub truncation: f64,
}

impl Default for Edit {
    fn default() -> Edit {
        Edit { class: None, moves: vec![], truncation: 1.0 }
    }
}

impl Edit {
    /// The edited latents `[1, latent_dim]` and `[1, embed_dim]`, on the generator's device. z may exceed the search's limit.
    pub fn latents(&self, generator: &dyn Generator, z: &[f32], c: &[f32]) -> (Tensor, Tensor) {
        let _no_grad = tch::no_grad_guard();
        let device = generator.embed(0).device();
        let row = |values: &[f32]| Tensor::from_slice(values).unsqueeze(0).to_device(device);
        let (mut z, mut c) = (row(z), row(c));
        for (direction, far) in &self.moves {
            z += row(direction) * *far;
        }
        if let Some((class, a)) = self.class {
            c = generator.embed(class).unsqueeze(0) * a + c * (1.0 - a);
        }
        (z * self.truncation, c)
    }
}

/// The directions of z that change the generator's first layer most, `[count, latent_dim]`, each of length one, strongest first.
///
/// GANSpace (Härkönen et al. 2020) finds them as principal components of that layer's values over samples of z; the layer is linear
/// and z is normal, so they are the right singular vectors of its weight: exact, and the same for all classes. Each points to where
/// its largest coordinate is positive.
pub fn principal(generator: &dyn Generator, count: usize) -> Vec<Vec<f32>> {
    let _no_grad = tch::no_grad_guard();
    // V of a tall matrix from the small one, W^T W = V S^2 V^T; eigenvalues come in rising order.
    let weight = generator.latent_layer().to_kind(Kind::Double).to_device(tch::Device::Cpu);
    let (_, vectors) = weight.tr().matmul(&weight).linalg_eigh("L");
    let last = vectors.size()[1] - 1;
    (0..(count as i64).min(last + 1))
        .map(|k| {
            let direction = vectors.select(1, last - k);
            let largest = direction.get(direction.abs().argmax(0, false).int64_value(&[]));
            Vec::try_from((direction * largest.sign()).to_kind(Kind::Float)).expect("a vector")
        })
        .collect()
}
