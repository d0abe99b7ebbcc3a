//! BigGAN (Brock et al. 2019, Appendix B) in the layout of ajbrock/BigGAN-PyTorch with its hierarchical latent, for inference: the
//! layout of the published BigGAN-128, -256 and -512 after that repository's `TFHub/converter.py`.
//!
//! z comes in chunks. The first makes the 4x4 maps; each of the others goes, after the class embedding, to the normalisations of one
//! block. As in `biggan_deep`, whatever does not depend on the sample is folded at load, and all conditional normalisations become one
//! matrix product with the whole condition `[z, c]`, zero where a normalisation does not read it. There is one set of statistics, so
//! truncation cannot be chosen.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::biggan_deep::{Attention, Norm, NormFolding, Norms, fold_norm, named, upsample};
use super::{LARGEST, LoadError, Weights, channels_last};
use crate::generator::Generator;

/// The reference hands its eps to the conditional normalisations alone; the last one keeps the default of its class.
const LAST_EPS: f64 = 1e-5;
const ATTENTION: [&str; 4] = ["theta", "phi", "g", "o"];

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

    /// Input channels, output channels and whether attention follows, for each block.
    fn blocks(&self) -> Result<Vec<(i64, i64, bool)>, LoadError> {
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
        let blocks: Vec<_> = channels
            .windows(2)
            .enumerate()
            .map(|(i, pair)| (self.ch * pair[0], self.ch * pair[1], self.attention == 8 << i))
            .collect();
        match (self.attention, blocks.iter().find(|b| b.2)) {
            (0, _) => {}
            (size, None) => return fail(format!("attention at {size} pixels, but no block ends with that size")),
            (_, Some((_, channels, _))) if channels % 8 != 0 => {
                return fail(format!("attention has {channels} channels, no multiple of 8"));
            }
            _ => {}
        }
        Ok(blocks)
    }

    fn chunk(&self) -> i64 {
        self.dim_z / self.channels().map_or(1, |c| c.len() as i64)
    }
}

struct Block {
    norms: [Norm; 2],
    conv1: (Tensor, Tensor),
    conv2: (Tensor, Tensor),
    conv_sc: (Tensor, Tensor),
    attention: Option<Attention>,
}

/// The generator, with everything folded that does not depend on the sample.
pub struct Biggan {
    config: Config,
    /// `[classes, embed]`
    embeddings: Tensor,
    /// Reads the first chunk.
    linear: (Tensor, Tensor),
    /// `[2 * total, z + embed]` and `[2 * total]`: all a, then all b.
    norms: (Tensor, Tensor),
    channels: Norms,
    blocks: Vec<Block>,
    /// Last normalisation.
    bn: (Tensor, Tensor),
    to_rgb: (Tensor, Tensor),
}

impl Biggan {
    /// Builds the network from a public checkpoint.
    ///
    /// Fails on a missing, spare or misshapen tensor and on values that are not finite. The `sv0` of a checkpoint that was trained
    /// with the reference are left aside.
    pub fn load(config: &Config, weights: &mut Weights) -> Result<Biggan, LoadError> {
        Biggan::load_folded(config, &mut Weights::new(fold(config, weights)?))
    }

    /// Builds the network from what [`Biggan::folded`] gave.
    ///
    /// Fails on a missing, spare or misshapen tensor and on values that are not finite.
    pub fn load_folded(config: &Config, weights: &mut Weights) -> Result<Biggan, LoadError> {
        let _no_grad = tch::no_grad_guard();
        let shapes = config.blocks()?;
        let embeddings = weights.take("embeddings", &[config.n_classes, config.shared_dim])?;
        let linear = weights.take_pair("linear", &[16 * shapes[0].0, config.chunk()])?;
        let (mut blocks, mut all) = (Vec::new(), Norms::default());
        for (i, &(input, output, attention)) in shapes.iter().enumerate() {
            let mut conv = |part: &str, (input, size): (i64, i64)| -> Result<(Tensor, Tensor), LoadError> {
                let (weight, bias) = weights.take_pair(&format!("blocks.{i}.0.{part}"), &[output, input, size, size])?;
                Ok((channels_last(&weight), bias))
            };
            let (conv1, conv2, conv_sc) = (conv("conv1", (input, 3))?, conv("conv2", (output, 3))?, conv("conv_sc", (input, 1))?);
            let names = ATTENTION.map(|part| format!("blocks.{i}.1.{part}"));
            let attention = attention.then(|| Attention::load(weights, names, output)).transpose()?;
            let norms = [input, output].map(|channels| all.next(channels));
            blocks.push(Block { norms, conv1, conv2, conv_sc, attention });
        }
        let norms = weights.take_pair("norms", &[2 * all.total(), config.dim_z + config.shared_dim])?;
        let last = shapes.last().expect("every resolution has blocks").1;
        let bn = weights.take_pair("output_layer.0", &[last])?;
        let to_rgb = weights.take_pair("output_layer.2", &[3, last, 3, 3])?;
        Ok(Biggan {
            config: config.clone(),
            embeddings,
            linear,
            norms,
            channels: all,
            blocks,
            bn: (bn.0.view([1, -1, 1, 1]), bn.1.view([1, -1, 1, 1])),
            to_rgb: (channels_last(&to_rgb.0), to_rgb.1),
        })
    }

    /// The folded tensors by name, for [`Biggan::load_folded`]: those of `weights`, `embeddings` `[classes, embed]`,
    /// `norms.{weight,bias}` `[2 * channels, z + embed]` and `[2 * channels]` (of all conditional normalisations in their order, all a,
    /// then all b, `x -> a x + b`) and `output_layer.0.{weight,bias}` `[ch]` of the last normalisation. Handles, not copies.
    pub fn folded(&self) -> Vec<(String, Tensor)> {
        let mut tensors = self.weights();
        tensors.push(("embeddings".into(), self.embeddings.shallow_clone()));
        tensors.extend(named("norms", &self.norms));
        tensors.extend(named("output_layer.0", &(self.bn.0.flatten(0, -1), self.bn.1.flatten(0, -1))));
        tensors
    }

    /// The configuration that it was built from.
    pub fn config(&self) -> &Config {
        &self.config
    }

    fn block(block: &Block, x: &Tensor, norms: &[Tensor]) -> Tensor {
        let conv = |x: &Tensor, (weight, bias): &(Tensor, Tensor)| {
            let pad = weight.size()[2] / 2;
            x.conv2d(weight, Some(bias), [1, 1], [pad, pad], [1, 1], 1)
        };
        let h = upsample(&block.norms[0].relu(x, norms));
        let h = conv(&h, &block.conv1);
        let h = conv(&block.norms[1].relu(&h, norms), &block.conv2);
        // A 1x1 convolution commutes with the up-sampling that the reference does before it.
        let x = h + upsample(&conv(x, &block.conv_sc));
        block.attention.as_ref().map_or_else(|| x.shallow_clone(), |a| a.forward(&x))
    }
}

impl Generator for Biggan {
    fn generate(&self, z: &Tensor, c: &Tensor) -> Tensor {
        let norms = self.channels.of(&Tensor::cat(&[z, c], 1), &self.norms);
        let h = z.narrow(1, 0, self.config.chunk()).linear(&self.linear.0, Some(&self.linear.1));
        let mut x = h.view([z.size()[0], -1, 4, 4]).to_kind(self.to_rgb.0.kind());
        for block in &self.blocks {
            x = Biggan::block(block, &x, &norms);
        }
        let x = kernels::affine_relu(&x, &self.bn.0, &self.bn.1);
        x.conv2d(&self.to_rgb.0, Some(&self.to_rgb.1), [1, 1], [1, 1], [1, 1], 1).to_kind(Kind::Float).tanh()
    }

    fn embed(&self, class: i64) -> Tensor {
        self.embeddings.get(class)
    }

    fn latent_dim(&self) -> i64 {
        self.config.dim_z
    }

    fn embed_dim(&self) -> i64 {
        self.config.shared_dim
    }

    fn num_classes(&self) -> i64 {
        self.config.n_classes
    }

    /// `linear` reads only the first chunk, so all linear layers that read z are stacked: `linear`, then the gains and the biases of
    /// the normalisations as they were before the statistics were folded in, since only those have comparable scales (each layer has a
    /// spectral norm of one). Its principal directions stay within one chunk.
    fn latent_layer(&self) -> Tensor {
        let z = self.config.dim_z;
        let half = |t: &Tensor, i: i64| t.narrow(0, i * self.channels.total(), self.channels.total());
        let (a, b) = (half(&self.norms.0, 0).narrow(1, 0, z), half(&self.norms.0, 1).narrow(1, 0, z));
        // a = r gain, b = bias - m r gain; the constant terms are r and -m r.
        let (r, mr) = (half(&self.norms.1, 0).unsqueeze(1), half(&self.norms.1, 1).unsqueeze(1));
        let gain = a / r;
        let bias = b - mr * &gain;
        let linear = self.linear.0.constant_pad_nd([0, z - self.config.chunk()]);
        Tensor::cat(&[linear, gain, bias], 0)
    }

    fn resolution(&self) -> i64 {
        self.config.resolution
    }

    fn weights(&self) -> Vec<(String, Tensor)> {
        let blocks = self.blocks.iter().enumerate().flat_map(|(i, b)| {
            let convs = [("conv1", &b.conv1), ("conv2", &b.conv2), ("conv_sc", &b.conv_sc)];
            let convs = convs.into_iter().flat_map(move |(part, conv)| named(&format!("blocks.{i}.0.{part}"), conv));
            let names = ATTENTION.map(|part| format!("blocks.{i}.1.{part}"));
            convs.chain(b.attention.iter().flat_map(move |a| a.weights(names.clone())))
        });
        let (first, last) = (named("linear", &self.linear), named("output_layer.2", &self.to_rgb));
        first.into_iter().chain(blocks).chain(last).collect()
    }

    fn converted(&self, device: Device, kind: Kind) -> Box<dyn Generator> {
        let copy = |t: &Tensor| t.to_device(device).detach().copy();
        let pair = |(w, b): &(Tensor, Tensor)| (copy(w), copy(b));
        let rounded = |t: &Tensor| copy(t).to_kind(kind);
        let conv = |(w, b): &(Tensor, Tensor)| (rounded(w), rounded(b));
        let block = |b: &Block| Block {
            norms: b.norms,
            conv1: conv(&b.conv1),
            conv2: conv(&b.conv2),
            conv_sc: conv(&b.conv_sc),
            attention: b.attention.as_ref().map(|a| a.map(rounded)),
        };
        Box::new(Biggan {
            config: self.config.clone(),
            embeddings: copy(&self.embeddings),
            linear: pair(&self.linear),
            norms: pair(&self.norms),
            channels: self.channels.clone(),
            blocks: self.blocks.iter().map(block).collect(),
            bn: pair(&self.bn),
            to_rgb: conv(&self.to_rgb),
        })
    }
}

/// The tensors of `Biggan::folded` from those of the public checkpoint.
fn fold(config: &Config, weights: &mut Weights) -> Result<Vec<(String, Tensor)>, LoadError> {
    let _no_grad = tch::no_grad_guard();
    let shapes = config.blocks()?;
    let (chunk, z, eps) = (config.chunk(), config.dim_z, config.sn_eps);
    let mut folded = vec![("embeddings".to_owned(), weights.take("shared.weight", &[config.n_classes, config.shared_dim])?)];
    let layer = |weights: &mut Weights, name: &str, shape: &[i64]| -> Result<[(String, Tensor); 2], LoadError> {
        Ok(named(name, &(weights.take_power(name, shape, eps)?, weights.take(&format!("{name}.bias"), &shape[..1])?)))
    };
    folded.extend(layer(weights, "linear", &[16 * shapes[0].0, chunk])?);
    let mut norms = NormFolding::default();
    for (i, &(input, output, attention)) in shapes.iter().enumerate() {
        for (j, channels) in [(1, input), (2, output)] {
            let name = format!("blocks.{i}.0.bn{j}");
            let moments = take_moments(weights, &name, channels)?;
            // The reference's condition is [c, chunk i + 1 of z]; ours [z, c].
            let mut part = |part: &str| -> Result<Tensor, LoadError> {
                let weight = weights.take_power(&format!("{name}.{part}"), &[channels, config.shared_dim + chunk], eps)?;
                let wide = Tensor::zeros([channels, z + config.shared_dim], (Kind::Float, weight.device()));
                wide.narrow(1, (i as i64 + 1) * chunk, chunk).copy_(&weight.narrow(1, config.shared_dim, chunk));
                wide.narrow(1, z, config.shared_dim).copy_(&weight.narrow(1, 0, config.shared_dim));
                Ok(wide)
            };
            let (gain, bias) = (part("gain")?, part("bias")?);
            norms.add(moments, config.bn_eps, gain, bias);
        }
        for (part, input, size) in [("conv1", input, 3), ("conv2", output, 3), ("conv_sc", input, 1)] {
            folded.extend(layer(weights, &format!("blocks.{i}.0.{part}"), &[output, input, size, size])?);
        }
        if attention {
            let gamma = weights.take_scalar(&format!("blocks.{i}.1.gamma"))?;
            for (part, shape) in ATTENTION.into_iter().zip(Attention::shapes(output)) {
                let name = format!("blocks.{i}.1.{part}");
                let weight = weights.take_power(&name, &shape, eps)?;
                folded.push((format!("{name}.weight"), if part == "o" { weight * &gamma } else { weight }));
            }
        }
    }
    folded.extend(named("norms", &norms.finish()));
    let last = shapes.last().expect("every resolution has blocks").1;
    let moments = take_moments(weights, "output_layer.0", last)?;
    let (gain, bias) = (weights.take("output_layer.0.gain", &[last])?, weights.take("output_layer.0.bias", &[last])?);
    folded.extend(named("output_layer.0", &fold_norm(moments, LAST_EPS, gain, bias)));
    folded.extend(layer(weights, "output_layer.2", &[3, last, 3, 3])?);
    Ok(folded)
}

fn take_moments(weights: &mut Weights, name: &str, channels: i64) -> Result<(Tensor, Tensor), LoadError> {
    Ok((weights.take(&format!("{name}.stored_mean"), &[channels])?, weights.take(&format!("{name}.stored_var"), &[channels])?))
}
