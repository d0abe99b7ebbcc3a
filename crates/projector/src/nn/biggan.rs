//! BigGAN (Brock et al. 2019, Appendix B) in the layout of ajbrock/BigGAN-PyTorch with its hierarchical latent, for inference: the
//! layout of the published BigGAN-128, -256 and -512 after that repository's `TFHub/converter.py`.
//!
//! z comes in chunks. The first makes the 4x4 maps; each of the others goes, after the class embedding, to the normalisations of one
//! block. As in `biggan_deep`, all conditional normalisations become one matrix product with the whole condition `[z, c]`, zero where
//! a normalisation does not read it. There is one set of statistics, so truncation cannot be chosen.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::biggan_folded::{AttentionLayout, Folded, Layout, Unfolded, upsample};
use super::layers::Layer;
use super::{LARGEST, LoadError, Weights};
use crate::generator::Generator;

/// The reference hands its eps to the conditional normalisations alone; the last one keeps the default of its class.
const LAST_EPS: f64 = 1e-5;
/// The arguments of the reference's `Generator` that the published networks set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Width and height of the images: 32, 64, 128, 256 or 512. It decides the blocks (`G_arch`).
    pub resolution: i64,
    /// Unit of the channels (`G_ch`).
    pub ch: i64,
    /// Length of z: a chunk for the first layer and one for each block.
    pub dim_z: i64,
    /// Length of the class embedding.
    pub shared_dim: i64,
    /// Number of classes.
    pub n_classes: i64,
    /// The attention block stands after the block that ends with this size (`G_attn`); 0 for none.
    pub attention: i64,
    /// Epsilon of the conditional normalisations (`BN_eps`).
    pub bn_eps: f64,
    /// Epsilon of the power iterations (`SN_eps`).
    pub sn_eps: f64,
}

impl Config {
    /// The published BigGAN of 128, 256 or 512 pixels (`get_config` of the converter).
    pub fn published(resolution: i64) -> Option<Config> {
        let (dim_z, attention) = match resolution {
            128 => (120, 64),
            256 => (140, 128),
            512 => (128, 64),
            _ => return None,
        };
        let (bn_eps, sn_eps) = (1e-4, 1e-4);
        Some(Config { resolution, ch: 96, dim_z, shared_dim: 128, n_classes: 1000, attention, bn_eps, sn_eps })
    }

    /// Channels before the first block and after each, in units of `ch` (`G_arch`).
    fn channels(&self) -> Option<&'static [i64]> {
        Some(match self.resolution {
            32 => &[4, 4, 4, 4],
            64 => &[16, 16, 8, 4, 2],
            128 => &[16, 16, 8, 4, 2, 1],
            256 => &[16, 16, 8, 8, 4, 2, 1],
            512 => &[16, 16, 8, 8, 4, 2, 1, 1],
            _ => return None,
        })
    }

    /// Whether attention follows block i.
    fn attends(&self, i: usize) -> bool {
        self.attention == 8 << i
    }

    fn layout(&self) -> Result<Layout, LoadError> {
        let fail = |why: String| Err(LoadError::Config(why));
        let Some(channels) = self.channels() else {
            return fail(format!("no BigGAN has {} pixels; it has 32, 64, 128, 256 or 512", self.resolution));
        };
        let sizes = [self.ch, self.dim_z, self.shared_dim, self.n_classes];
        if !sizes.into_iter().all(|n| (1..=LARGEST).contains(&n)) {
            return fail(format!("a size is not in 1 to {LARGEST}"));
        }
        if ![self.bn_eps, self.sn_eps].into_iter().all(|e| e.is_finite() && e >= 0.0) {
            return fail(format!("the eps are {} and {}", self.bn_eps, self.sn_eps));
        }
        let chunks = channels.len() as i64;
        if self.dim_z % chunks != 0 {
            return fail(format!("z of {} does not split into {chunks} chunks", self.dim_z));
        }
        let blocks: Vec<_> = channels.windows(2).map(|pair| (self.ch * pair[0], self.ch * pair[1])).collect();
        let attention = blocks.iter().enumerate().find(|(i, _)| self.attends(*i)).map(|(i, &(_, channels))| AttentionLayout {
            names: ["theta", "phi", "g", "o"].map(|part| format!("blocks.{i}.1.{part}")),
            channels,
            after: 3 * (i + 1),
        });
        match (self.attention, &attention) {
            (0, _) => {}
            (size, None) => return fail(format!("attention at {size} pixels, but no block ends with that size")),
            (_, Some(AttentionLayout { channels, .. })) if channels % 8 != 0 => {
                return fail(format!("attention has {channels} channels, no multiple of 8"));
            }
            _ => {}
        }
        let convs = blocks.iter().enumerate().flat_map(|(i, &(input, output))| {
            [("conv1", input, 3), ("conv2", output, 3), ("conv_sc", input, 1)]
                .map(|(part, input, size)| (format!("blocks.{i}.0.{part}"), [output, input, size, size]))
        });
        Ok(Layout {
            names: ["linear", "output_layer.0", "output_layer.2"],
            classes: self.n_classes,
            embed: self.shared_dim,
            latent: self.dim_z,
            first: [16 * blocks[0].0, self.chunk()],
            convs: convs.collect(),
            attention,
            norms: blocks.iter().flat_map(|&(input, output)| [input, output]).collect(),
            last: blocks.last().expect("every resolution has blocks").1,
        })
    }

    fn chunk(&self) -> i64 {
        self.dim_z / self.channels().map_or(1, |c| c.len() as i64)
    }
}

/// The generator, with everything folded that does not depend on the sample.
pub struct Biggan {
    config: Config,
    folded: Folded,
}

impl Biggan {
    /// Builds the network from a public checkpoint. The `sv0` of one that was trained with the reference are left aside.
    pub fn load(config: &Config, weights: &mut Weights) -> Result<Biggan, LoadError> {
        Biggan::load_folded(config, &mut Weights::new(fold(config, weights)?))
    }

    /// Builds the network from what [`Biggan::folded`] gave.
    pub fn load_folded(config: &Config, weights: &mut Weights) -> Result<Biggan, LoadError> {
        Ok(Biggan { config: config.clone(), folded: Folded::load(weights, config.layout()?)? })
    }

    /// All folded tensors by name, for [`Biggan::load_folded`]. Handles, not copies.
    pub fn folded(&self) -> Vec<(String, Tensor)> {
        self.folded.tensors()
    }
}

impl Generator for Biggan {
    fn generate(&self, z: &Tensor, c: &Tensor) -> Tensor {
        let mut norms = self.folded.norms(&Tensor::cat(&[z, c], 1));
        let h = self.folded.first.linear(&z.narrow(1, 0, self.config.chunk()));
        let mut x = h.view([z.size()[0], -1, 4, 4]).to_kind(self.folded.kind());
        for (i, convs) in self.folded.convs.chunks(3).enumerate() {
            let h = convs[0].convolve(&upsample(&norms.relu(&x)));
            let h = convs[1].convolve(&norms.relu(&h));
            // A 1x1 convolution commutes with the up-sampling that the reference does before it.
            x = h + upsample(&convs[2].convolve(&x));
            if self.config.attends(i) {
                x = self.folded.attention(&x);
            }
        }
        self.folded.images(&x)
    }

    fn embeddings(&self) -> Tensor {
        self.folded.embeddings.shallow_clone()
    }

    fn latent_dim(&self) -> i64 {
        self.config.dim_z
    }

    /// `linear` reads only the first chunk, so all linear layers that read z are stacked: `linear`, then the gains and the biases of
    /// the normalisations as they were before the statistics were folded in, since only those have comparable scales (each layer has a
    /// spectral norm of one). Its principal directions stay within one chunk.
    fn latent_layer(&self) -> Tensor {
        let (z, norms) = (self.config.dim_z, &self.folded.norms);
        let weights = norms.weight.narrow(1, 0, z).chunk(2, 0);
        // a = r gain, b = bias - m r gain; the constant terms are r and -m r.
        let constants = norms.bias.unsqueeze(1).chunk(2, 0);
        let gain = &weights[0] / &constants[0];
        let bias = &weights[1] - &constants[1] * &gain;
        let linear = self.folded.first.weight.constant_pad_nd([0, z - self.config.chunk()]);
        Tensor::cat(&[linear, gain, bias], 0)
    }

    fn resolution(&self) -> i64 {
        self.config.resolution
    }

    fn weights(&self) -> Vec<(String, Tensor)> {
        self.folded.weights()
    }

    fn converted(&self, device: Device, kind: Kind) -> Box<dyn Generator> {
        Box::new(Biggan { config: self.config.clone(), folded: self.folded.copy(device, kind) })
    }
}

/// The tensors of `Biggan::folded` from those of the public checkpoint.
fn fold(config: &Config, weights: &mut Weights) -> Result<Vec<(String, Tensor)>, LoadError> {
    let _no_grad = tch::no_grad_guard();
    let layout = config.layout()?;
    let (chunk, z, embed, eps) = (config.chunk(), config.dim_z, config.shared_dim, config.sn_eps);
    let mut folded = vec![("embeddings".to_owned(), weights.take("shared.weight", &[config.n_classes, embed])?)];
    let layer = |weights: &mut Weights, name: &str, shape: &[i64]| -> Result<[(String, Tensor); 2], LoadError> {
        let weight = weights.take_power(name, shape, eps)?;
        Ok(Layer { weight, bias: weights.take(&format!("{name}.bias"), &shape[..1])? }.named(name))
    };
    folded.extend(layer(weights, "linear", &layout.first)?);
    let mut norms = Vec::new();
    for (i, &channels) in layout.norms.iter().enumerate() {
        let block = i as i64 / 2;
        let name = format!("blocks.{block}.0.bn{}", i % 2 + 1);
        let moments = take_moments(weights, &name, channels)?;
        // The reference's condition is [c, chunk block + 1 of z]; ours [z, c].
        let mut part = |part: &str| -> Result<Tensor, LoadError> {
            let weight = weights.take_power(&format!("{name}.{part}"), &[channels, embed + chunk], eps)?;
            let wide = Tensor::zeros([channels, z + embed], (Kind::Float, weight.device()));
            wide.narrow(1, (block + 1) * chunk, chunk).copy_(&weight.narrow(1, embed, chunk));
            wide.narrow(1, z, embed).copy_(&weight.narrow(1, 0, embed));
            Ok(wide)
        };
        norms.push(Unfolded { scale: part("gain")?, offset: part("bias")?, moments });
    }
    folded.extend(Unfolded::fold_all(norms, config.bn_eps).named("norms"));
    for (name, shape) in &layout.convs {
        folded.extend(layer(weights, name, shape)?);
    }
    if let Some(attention) = &layout.attention {
        let gamma = weights.take_scalar(&format!("blocks.{}.1.gamma", attention.after / 3 - 1))?;
        folded.extend(attention.fold(&gamma, |name, shape| weights.take_power(name, shape, eps))?);
    }
    let (name, last) = ("output_layer.0", layout.last);
    let moments = take_moments(weights, name, last)?;
    let mut part = |part: &str| weights.take(&format!("{name}.{part}"), &[last]);
    folded.extend(Unfolded { scale: part("gain")?, offset: part("bias")?, moments }.fold(LAST_EPS).named(name));
    folded.extend(layer(weights, "output_layer.2", &[3, last, 3, 3])?);
    Ok(folded)
}

fn take_moments(weights: &mut Weights, name: &str, channels: i64) -> Result<(Tensor, Tensor), LoadError> {
    let mut part = |part: &str| weights.take(&format!("{name}.{part}"), &[channels]);
    Ok((part("stored_mean")?, part("stored_var")?))
}
