//! The interface of a generator.

use tch::{Device, Kind, Tensor};

/// A class-conditional generator `G(z, c)` with frozen weights.
pub trait Generator: Send {
    /// z `[n, latent_dim]` and class embeddings c `[n, embed_dim]` -> images `[n, 3, r, r]` in [-1, 1].
    fn generate(&self, z: &Tensor, c: &Tensor) -> Tensor;
    /// The embeddings `W` of the classes, `[classes, embed_dim]` (Equation 1).
    fn embeddings(&self) -> Tensor;
    /// Length of z.
    fn latent_dim(&self) -> i64;
    /// Weight of the linear layer that reads z, `[features, latent_dim]`.
    fn latent_layer(&self) -> Tensor;
    /// Width and height r of the images.
    fn resolution(&self) -> i64;
    /// The weights theta that fine-tuning changes, by name: all except embeddings and normalisations. Handles, not copies.
    fn weights(&self) -> Vec<(String, Tensor)>;
    /// A copy with its own weights on a device, whose convolutions compute in `kind`. Values that depend on z and c alone, and the
    /// images, are float32.
    fn converted(&self, device: Device, kind: Kind) -> Box<dyn Generator>;

    /// The embedding `W c~` of a class, `[embed_dim]`.
    fn embed(&self, class: i64) -> Tensor {
        self.embeddings().get(class)
    }

    /// Length of the class embedding.
    fn embed_dim(&self) -> i64 {
        self.embeddings().size()[1]
    }

    /// Number of classes.
    fn num_classes(&self) -> i64 {
        self.embeddings().size()[0]
    }

    /// A copy with its own weights on a device.
    fn replicate(&self, device: Device) -> Box<dyn Generator> {
        self.converted(device, Kind::Float)
    }
}
