//! BigGAN-deep (Brock et al. 2019, Appendix B) in the layout of pytorch-pretrained-BigGAN, for inference.
//!
//! Everything that does not depend on the sample is folded at load: spectral norms, the batch-norm statistics of one truncation,
//! and the output channels that upstream computes and drops. All conditional normalisations become one matrix product: each is
//! `a x + b` with a and b affine in the condition `[z, c]`.

use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use super::{LoadError, Weights, channels_last};
use crate::generator::Generator;

/// Largest size in a configuration: no network comes near, and products of sizes do not overflow.
const LARGEST: i64 = 1 << 15;

/// `config.json` of pytorch-pretrained-BigGAN.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Width and height of the images.
    pub output_dim: i64,
    /// Length of z.
    pub z_dim: i64,
    /// Length of the class embedding.
    pub class_embed_dim: i64,
    /// Channels of the last layer.
    pub channel_width: i64,
    /// Number of classes.
    pub num_classes: i64,
    /// (up-sample, channels in, channels out), channels in units of `channel_width`.
    pub layers: Vec<(bool, i64, i64)>,
    /// The attention block stands before this layer.
    pub attention_layer_position: usize,
    /// Of batch normalisation.
    pub eps: f64,
    /// Rows of the batch-norm statistics: truncations 0, 1/(n-1), ..., 1.
    pub n_stats: i64,
}

impl Config {
    fn check(&self) -> Result<(), LoadError> {
        let fail = |why: String| Err(LoadError::Config(why));
        let sizes = [self.output_dim, self.z_dim, self.class_embed_dim, self.channel_width, self.num_classes, self.n_stats];
        let factors = self.layers.iter().flat_map(|l| [l.1, l.2]);
        if !sizes.into_iter().chain(factors).all(|n| (1..=LARGEST).contains(&n)) || self.n_stats < 2 {
            return fail(format!("a size is not in 1 to {LARGEST}, or there are fewer than two rows of statistics"));
        }
        if !(self.eps.is_finite() && self.eps >= 0.0) {
            return fail(format!("eps is {}", self.eps));
        }
        let (Some(first), Some(last)) = (self.layers.first(), self.layers.last()) else {
            return fail("there are no layers".into());
        };
        if first.1 != 16 || last.2 != 1 {
            return fail(format!("layers go from {} to {} times the channel width, not from 16 to 1", first.1, last.2));
        }
        for (i, pair) in self.layers.windows(2).enumerate() {
            if pair[0].2 != pair[1].1 {
                return fail(format!("layer {i} ends with {} channels and layer {} starts with {}", pair[0].2, i + 1, pair[1].1));
            }
        }
        for (i, &(_, input, output)) in self.layers.iter().enumerate() {
            if input != output && input != 2 * output {
                return fail(format!("layer {i} goes from {input} to {output} channels; it can keep or halve them"));
            }
            if input * self.channel_width % 4 != 0 {
                return fail(format!("layer {i} has {} channels, no multiple of 4", input * self.channel_width));
            }
        }
        let ups = self.layers.iter().filter(|l| l.0).count() as u32;
        if self.output_dim != 4 << ups {
            return fail(format!("{ups} up-samplings make images of {}, not {}", 4 << ups, self.output_dim));
        }
        if self.attention_layer_position < self.layers.len() {
            let channels = self.layers[self.attention_layer_position].1 * self.channel_width;
            if channels % 8 != 0 {
                return fail(format!("attention has {channels} channels, no multiple of 8"));
            }
        }
        Ok(())
    }
}

/// `a x + b` with per-sample a and b: a slice of the product of all conditional normalisations.
struct Norm {
    start: i64,
    channels: i64,
}

struct Block {
    up: bool,
    halve: bool,
    norms: [Norm; 4],
    convs: [(Tensor, Tensor); 4],
}

struct Attention {
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    o: Tensor,
}

enum Layer {
    Block(Block),
    Attention(Attention),
}

/// The network, folded for one truncation.
pub struct BigganDeep {
    config: Config,
    /// `[classes, embed]`
    embeddings: Tensor,
    gen_z: (Tensor, Tensor),
    /// `[2 * total, z + embed]` and `[2 * total]`: all a, then all b.
    norms: (Tensor, Tensor),
    /// Sum of the channels of all conditional normalisations.
    total: i64,
    layers: Vec<Layer>,
    /// Last normalisation.
    bn: (Tensor, Tensor),
    to_rgb: (Tensor, Tensor),
}

impl BigganDeep {
    /// Builds the network from a checkpoint, with the statistics of `truncation` in (0, 1].
    ///
    /// Fails on a missing, spare or misshapen tensor and on values that are not finite.
    pub fn load(config: &Config, weights: &mut Weights, truncation: f64) -> Result<BigganDeep, LoadError> {
        config.check()?;
        let _no_grad = tch::no_grad_guard();
        let ch = config.channel_width;
        let cond = config.z_dim + config.class_embed_dim;
        let embeddings = weights.take("embeddings.weight", &[config.class_embed_dim, config.num_classes])?.tr().contiguous();
        let gen_z_name = "generator.gen_z";
        let width = 16 * 16 * ch;
        let gen_z = (weights.take_spectral(gen_z_name, &[width, cond])?, weights.take(&format!("{gen_z_name}.bias"), &[width])?);

        let statistics = Statistics { truncation, n: config.n_stats, eps: config.eps };
        let mut folding = NormFolding { statistics, cond, total: 0, a: vec![], b: vec![], bias_a: vec![], bias_b: vec![] };
        let mut layers = Vec::new();
        for (i, &(up, input, output)) in config.layers.iter().enumerate() {
            if i == config.attention_layer_position {
                let name = format!("generator.layers.{}", layers.len());
                layers.push(Layer::Attention(load_attention(weights, &name, ch * input)?));
            }
            let name = format!("generator.layers.{}", layers.len());
            layers.push(Layer::Block(load_block(weights, &mut folding, &name, (ch * input, ch * output), up)?));
        }

        let (mean, variance) = folding.statistics.take(weights, "generator.bn", ch)?;
        let scale = weights.take("generator.bn.weight", &[ch])? / (variance + config.eps).sqrt();
        let offset = weights.take("generator.bn.bias", &[ch])? - mean * &scale;
        let bn = (scale.view([1, -1, 1, 1]), offset.view([1, -1, 1, 1]));

        let to_rgb = channels_last(&weights.take_spectral("generator.conv_to_rgb", &[ch, ch, 3, 3])?.narrow(0, 0, 3));
        let to_rgb_bias = weights.take("generator.conv_to_rgb.bias", &[ch])?.narrow(0, 0, 3).contiguous();
        Ok(BigganDeep {
            config: config.clone(),
            embeddings,
            gen_z,
            total: folding.total,
            norms: folding.finish(),
            layers,
            bn,
            to_rgb: (to_rgb, to_rgb_bias),
        })
    }

    /// The configuration that it was built from.
    pub fn config(&self) -> &Config {
        &self.config
    }

    fn block(&self, block: &Block, x: &Tensor, norms: &Tensor) -> Tensor {
        let mut h = x.shallow_clone();
        for (j, (norm, (weight, bias))) in block.norms.iter().zip(&block.convs).enumerate() {
            let a = norms.narrow(1, norm.start, norm.channels);
            let b = norms.narrow(1, self.total + norm.start, norm.channels);
            h = b.addcmul(&h, &a).relu_();
            if j == 1 && block.up {
                h = upsample(&h);
            }
            let pad = weight.size()[2] / 2;
            h = h.conv2d(weight, Some(bias), [1, 1], [pad, pad], [1, 1], 1);
        }
        let skip = if block.halve { x.narrow(1, 0, x.size()[1] / 2) } else { x.shallow_clone() };
        h + if block.up { upsample(&skip) } else { skip }
    }
}

impl Generator for BigganDeep {
    fn generate(&self, z: &Tensor, c: &Tensor) -> Tensor {
        let cond = Tensor::cat(&[z, c], 1);
        let norms = cond.linear(&self.norms.0, Some(&self.norms.1)).unsqueeze(-1).unsqueeze(-1);
        let h = cond.linear(&self.gen_z.0, Some(&self.gen_z.1));
        // Height, width, channels, as TensorFlow had it.
        let mut x = h.view([-1, 4, 4, 16 * self.config.channel_width]).permute([0, 3, 1, 2]);
        for layer in &self.layers {
            x = match layer {
                Layer::Block(block) => self.block(block, &x, &norms),
                Layer::Attention(attention) => attention.forward(&x),
            };
        }
        let x = self.bn.1.addcmul(&x, &self.bn.0).relu_();
        x.conv2d(&self.to_rgb.0, Some(&self.to_rgb.1), [1, 1], [1, 1], [1, 1], 1).tanh()
    }

    fn embed(&self, class: i64) -> Tensor {
        self.embeddings.get(class)
    }

    fn latent_dim(&self) -> i64 {
        self.config.z_dim
    }

    fn embed_dim(&self) -> i64 {
        self.config.class_embed_dim
    }

    fn num_classes(&self) -> i64 {
        self.config.num_classes
    }

    fn latent_layer(&self) -> Tensor {
        self.gen_z.0.narrow(1, 0, self.config.z_dim)
    }

    fn resolution(&self) -> i64 {
        self.config.output_dim
    }

    fn weights(&self) -> Vec<(String, Tensor)> {
        let pair = |name: &str, (w, b): &(Tensor, Tensor)| {
            vec![(format!("{name}.weight"), w.shallow_clone()), (format!("{name}.bias"), b.shallow_clone())]
        };
        let layers = self.layers.iter().enumerate().flat_map(|(i, layer)| match layer {
            Layer::Block(block) => {
                let convs = block.convs.iter().enumerate();
                convs.flat_map(|(j, conv)| pair(&format!("layers.{i}.conv_{j}"), conv)).collect::<Vec<_>>()
            }
            Layer::Attention(a) => [("theta", &a.theta), ("phi", &a.phi), ("g", &a.g), ("o_conv", &a.o)]
                .map(|(part, w)| (format!("layers.{i}.snconv1x1_{part}.weight"), w.shallow_clone()))
                .into(),
        });
        let (first, last) = (pair("gen_z", &self.gen_z), pair("conv_to_rgb", &self.to_rgb));
        first.into_iter().chain(layers).chain(last).collect()
    }

    fn replicate(&self, device: Device) -> Box<dyn Generator> {
        let copy = |t: &Tensor| t.to_device(device).detach().copy();
        let pair = |(w, b): &(Tensor, Tensor)| (copy(w), copy(b));
        let layers = self
            .layers
            .iter()
            .map(|layer| match layer {
                Layer::Block(b) => Layer::Block(Block {
                    up: b.up,
                    halve: b.halve,
                    norms: std::array::from_fn(|j| Norm { start: b.norms[j].start, channels: b.norms[j].channels }),
                    convs: std::array::from_fn(|j| pair(&b.convs[j])),
                }),
                Layer::Attention(a) => {
                    Layer::Attention(Attention { theta: copy(&a.theta), phi: copy(&a.phi), g: copy(&a.g), o: copy(&a.o) })
                }
            })
            .collect();
        Box::new(BigganDeep {
            config: self.config.clone(),
            embeddings: copy(&self.embeddings),
            gen_z: pair(&self.gen_z),
            norms: pair(&self.norms),
            total: self.total,
            layers,
            bn: pair(&self.bn),
            to_rgb: pair(&self.to_rgb),
        })
    }
}

impl Attention {
    /// Self-attention (Zhang et al. 2019) without the 1/sqrt(d); gamma is folded into `o`.
    fn forward(&self, x: &Tensor) -> Tensor {
        let (n, _, h, w) = x.size4().expect("images are four-dimensional");
        let conv = |x: &Tensor, weight: &Tensor| x.conv2d::<Tensor>(weight, None, [1, 1], [0, 0], [1, 1], 1);
        let theta = conv(x, &self.theta).reshape([n, -1, h * w]);
        let phi = conv(x, &self.phi).max_pool2d_default(2).reshape([n, -1, h * w / 4]);
        let g = conv(x, &self.g).max_pool2d_default(2).reshape([n, -1, h * w / 4]);
        let attention = theta.transpose(1, 2).bmm(&phi).softmax(-1, None);
        let o = g.bmm(&attention.transpose(1, 2)).reshape([n, -1, h, w]);
        x + conv(&o, &self.o)
    }
}

fn upsample(x: &Tensor) -> Tensor {
    let size = x.size();
    x.upsample_nearest2d([size[2] * 2, size[3] * 2], None, None)
}

fn load_attention(weights: &mut Weights, name: &str, channels: i64) -> Result<Attention, LoadError> {
    let mut take = |part: &str, o: i64, i: i64| weights.take_spectral(&format!("{name}.snconv1x1_{part}"), &[o, i, 1, 1]);
    let (theta, phi) = (take("theta", channels / 8, channels)?, take("phi", channels / 8, channels)?);
    let (g, o) = (take("g", channels / 2, channels)?, take("o_conv", channels, channels / 2)?);
    let gamma = weights.take(&format!("{name}.gamma"), &[1])?;
    Ok(Attention { theta, phi, g, o: o * gamma })
}

fn load_block(
    weights: &mut Weights,
    folding: &mut NormFolding,
    name: &str,
    (input, output): (i64, i64),
    up: bool,
) -> Result<Block, LoadError> {
    let mid = input / 4;
    let mut norms = Vec::new();
    for (j, channels) in [input, mid, mid, mid].into_iter().enumerate() {
        norms.push(folding.add(weights, &format!("{name}.bn_{j}"), channels)?);
    }
    let mut convs = Vec::new();
    for (j, [o, i, k]) in [[mid, input, 1], [mid, mid, 3], [mid, mid, 3], [output, mid, 1]].into_iter().enumerate() {
        let name = format!("{name}.conv_{j}");
        convs.push((channels_last(&weights.take_spectral(&name, &[o, i, k, k])?), weights.take(&format!("{name}.bias"), &[o])?));
    }
    let four = "exactly four were pushed";
    Ok(Block { up, halve: input != output, norms: norms.try_into().ok().expect(four), convs: convs.try_into().expect(four) })
}

/// Which row of the statistics is used.
struct Statistics {
    truncation: f64,
    n: i64,
    eps: f64,
}

impl Statistics {
    /// Mean and variance for the truncation. Between two rows upstream mixes them with the two weights exchanged; so do we.
    fn take(&self, weights: &mut Weights, name: &str, channels: i64) -> Result<(Tensor, Tensor), LoadError> {
        let step = 1.0 / (self.n - 1) as f64;
        let position = self.truncation / step;
        let row = position.floor();
        let fraction = position - row;
        let mut pick = |part: &str| -> Result<Tensor, LoadError> {
            let table = weights.take(&format!("{name}.{part}"), &[self.n, channels])?;
            // Upstream tests `coef != 0.0`; what rounding leaves of a whole number counts as none here.
            if !(1e-9..=1.0 - 1e-9).contains(&fraction) {
                return Ok(table.get(position.round() as i64));
            }
            Ok(table.get(row as i64) * fraction + table.get(row as i64 + 1) * (1.0 - fraction))
        };
        Ok((pick("running_means")?, pick("running_vars")?))
    }
}

/// Collects conditional normalisations into one affine map of the condition.
///
/// `(x - m) r (1 + S cond) + O cond = a x + b`, r = 1/sqrt(v + eps):
/// `a = r + (r S) cond`, `b = -m r + (O - m r S) cond`.
struct NormFolding {
    statistics: Statistics,
    cond: i64,
    total: i64,
    a: Vec<Tensor>,
    b: Vec<Tensor>,
    bias_a: Vec<Tensor>,
    bias_b: Vec<Tensor>,
}

impl NormFolding {
    fn add(&mut self, weights: &mut Weights, name: &str, channels: i64) -> Result<Norm, LoadError> {
        let (mean, variance) = self.statistics.take(weights, name, channels)?;
        let scale = weights.take_spectral(&format!("{name}.scale"), &[channels, self.cond])?;
        let offset = weights.take_spectral(&format!("{name}.offset"), &[channels, self.cond])?;
        let r = (variance + self.statistics.eps).rsqrt();
        let a = scale * r.unsqueeze(1);
        self.b.push(offset - mean.unsqueeze(1) * &a);
        self.a.push(a);
        self.bias_b.push(-mean * &r);
        self.bias_a.push(r);
        let norm = Norm { start: self.total, channels };
        self.total += channels;
        Ok(norm)
    }

    fn finish(mut self) -> (Tensor, Tensor) {
        self.a.append(&mut self.b);
        self.bias_a.append(&mut self.bias_b);
        (Tensor::cat(&self.a, 0), Tensor::cat(&self.bias_a, 0))
    }
}
