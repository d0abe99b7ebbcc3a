//! BigGAN-deep (Brock et al. 2019, Appendix B) in the layout of pytorch-pretrained-BigGAN, for inference.
//!
//! Everything that does not depend on the sample is folded at load: spectral norms, the batch-norm statistics of one truncation,
//! and the output channels that upstream computes and drops. All conditional normalisations become one matrix product: each is
//! `a x + b` with a and b affine in the condition `[z, c]`.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::{LARGEST, LoadError, Weights, channels_last};
use crate::generator::Generator;

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
    /// Epsilon of batch normalisation.
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

/// `relu(a x + b)` with per-sample a and b: a part of the product of all conditional normalisations.
#[derive(Clone, Copy)]
pub(super) struct Norm(usize);

/// The conditional normalisations of a network, in order: channels of each.
#[derive(Clone, Default)]
pub(super) struct Norms(Vec<i64>);

impl Norms {
    /// Adds a normalisation of `channels` channels.
    pub(super) fn next(&mut self, channels: i64) -> Norm {
        self.0.push(channels);
        Norm(self.0.len() - 1)
    }

    /// Sum of all channels.
    pub(super) fn total(&self) -> i64 {
        self.0.iter().sum()
    }

    /// Scales and shifts of all of them, of the condition `[n, cond]`. They are split in one operation, so that the gradient of all is
    /// put together in one, too.
    pub(super) fn of(&self, cond: &Tensor, (weight, bias): &(Tensor, Tensor)) -> Vec<Tensor> {
        let product = cond.linear(weight, Some(bias)).unsqueeze(-1).unsqueeze(-1);
        product.split_with_sizes(self.0.repeat(2), 1)
    }
}

impl Norm {
    /// `relu(a x + b)`, of what [`Norms::of`] gave.
    pub(super) fn relu(&self, x: &Tensor, norms: &[Tensor]) -> Tensor {
        kernels::affine_relu(x, &norms[self.0], &norms[norms.len() / 2 + self.0])
    }
}

struct Block {
    up: bool,
    halve: bool,
    norms: [Norm; 4],
    convs: [(Tensor, Tensor); 4],
}

/// Weights theta, phi, g and o of the 1x1 convolutions.
pub(super) struct Attention {
    theta: Tensor,
    phi: Tensor,
    g: Tensor,
    o: Tensor,
}

enum Layer {
    Block(Block),
    Attention(Attention),
}

/// The generator, folded for one truncation.
pub struct BigganDeep {
    config: Config,
    /// `[classes, embed]`
    embeddings: Tensor,
    gen_z: (Tensor, Tensor),
    /// `[2 * total, z + embed]` and `[2 * total]`: all a, then all b.
    norms: (Tensor, Tensor),
    channels: Norms,
    layers: Vec<Layer>,
    /// Last normalisation.
    bn: (Tensor, Tensor),
    to_rgb: (Tensor, Tensor),
}

impl BigganDeep {
    /// Builds the network from a public checkpoint, with the statistics of `truncation` in (0, 1].
    ///
    /// Fails on a missing, spare or misshapen tensor and on values that are not finite.
    pub fn load(config: &Config, weights: &mut Weights, truncation: f64) -> Result<BigganDeep, LoadError> {
        config.check()?;
        BigganDeep::load_folded(config, &mut Weights::new(fold(config, weights, truncation)?))
    }

    /// Builds the network from what [`BigganDeep::folded`] gave.
    ///
    /// Fails on a missing, spare or misshapen tensor and on values that are not finite.
    pub fn load_folded(config: &Config, weights: &mut Weights) -> Result<BigganDeep, LoadError> {
        config.check()?;
        let _no_grad = tch::no_grad_guard();
        let ch = config.channel_width;
        let cond = config.z_dim + config.class_embed_dim;
        let embeddings = weights.take("embeddings", &[config.num_classes, config.class_embed_dim])?;
        let gen_z = weights.take_pair("gen_z", &[16 * 16 * ch, cond])?;
        let (mut layers, mut channels) = (Vec::new(), Norms::default());
        for (i, &(up, input, output)) in config.layers.iter().enumerate() {
            if i == config.attention_layer_position {
                let name = format!("layers.{}.snconv1x1_", layers.len());
                layers.push(Layer::Attention(Attention::load(weights, ATTENTION.map(|p| format!("{name}{p}")), ch * input)?));
            }
            let name = format!("layers.{}", layers.len());
            let (shapes, halve) = (conv_shapes(ch * input, ch * output), input != output);
            let norms = shapes.map(|[_, input, ..]| channels.next(input));
            let mut convs = Vec::new();
            for (j, shape) in shapes.iter().enumerate() {
                let (weight, bias) = weights.take_pair(&format!("{name}.conv_{j}"), shape)?;
                convs.push((channels_last(&weight), bias));
            }
            layers.push(Layer::Block(Block { up, halve, norms, convs: convs.try_into().expect("exactly four were pushed") }));
        }
        let norms = weights.take_pair("norms", &[2 * channels.total(), cond])?;
        let bn = weights.take_pair("bn", &[ch])?;
        let to_rgb = weights.take_pair("conv_to_rgb", &[3, ch, 3, 3])?;
        Ok(BigganDeep {
            config: config.clone(),
            embeddings,
            gen_z,
            norms,
            channels,
            layers,
            bn: (bn.0.view([1, -1, 1, 1]), bn.1.view([1, -1, 1, 1])),
            to_rgb: (channels_last(&to_rgb.0), to_rgb.1),
        })
    }

    /// The folded tensors by name, for [`BigganDeep::load_folded`]: those of `weights`, `embeddings` `[classes, embed]`,
    /// `norms.{weight,bias}` `[2 * channels, z + embed]` and `[2 * channels]` (of all conditional normalisations in their order, all a,
    /// then all b, `x -> a x + b`) and `bn.{weight,bias}` `[ch]` of the last normalisation. Handles, not copies.
    pub fn folded(&self) -> Vec<(String, Tensor)> {
        let mut tensors = self.weights();
        tensors.push(("embeddings".into(), self.embeddings.shallow_clone()));
        tensors.extend(named("norms", &self.norms));
        tensors.extend(named("bn", &(self.bn.0.flatten(0, -1), self.bn.1.flatten(0, -1))));
        tensors
    }

    /// The configuration that it was built from.
    pub fn config(&self) -> &Config {
        &self.config
    }

    fn block(block: &Block, x: &Tensor, norms: &[Tensor]) -> Tensor {
        let mut h = x.shallow_clone();
        for (j, (norm, (weight, bias))) in block.norms.iter().zip(&block.convs).enumerate() {
            h = norm.relu(&h, norms);
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
        let norms = self.channels.of(&cond, &self.norms);
        let h = cond.linear(&self.gen_z.0, Some(&self.gen_z.1));
        // Height, width, channels, as TensorFlow had it.
        let x = h.view([-1, 4, 4, 16 * self.config.channel_width]).permute([0, 3, 1, 2]);
        let mut x = x.to_kind(self.to_rgb.0.kind());
        for layer in &self.layers {
            x = match layer {
                Layer::Block(block) => BigganDeep::block(block, &x, &norms),
                Layer::Attention(attention) => attention.forward(&x),
            };
        }
        let x = kernels::affine_relu(&x, &self.bn.0, &self.bn.1);
        x.conv2d(&self.to_rgb.0, Some(&self.to_rgb.1), [1, 1], [1, 1], [1, 1], 1).to_kind(Kind::Float).tanh()
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
        let layers = self.layers.iter().enumerate().flat_map(|(i, layer)| match layer {
            Layer::Block(block) => {
                let convs = block.convs.iter().enumerate();
                convs.flat_map(|(j, conv)| named(&format!("layers.{i}.conv_{j}"), conv)).collect::<Vec<_>>()
            }
            Layer::Attention(a) => a.weights(ATTENTION.map(|part| format!("layers.{i}.snconv1x1_{part}"))),
        });
        let (first, last) = (named("gen_z", &self.gen_z), named("conv_to_rgb", &self.to_rgb));
        first.into_iter().chain(layers).chain(last).collect()
    }

    fn converted(&self, device: Device, kind: Kind) -> Box<dyn Generator> {
        let copy = |t: &Tensor| t.to_device(device).detach().copy();
        let pair = |(w, b): &(Tensor, Tensor)| (copy(w), copy(b));
        let rounded = |t: &Tensor| copy(t).to_kind(kind);
        let conv = |(w, b): &(Tensor, Tensor)| (rounded(w), rounded(b));
        let layers = self
            .layers
            .iter()
            .map(|layer| match layer {
                Layer::Block(b) => Layer::Block(Block {
                    up: b.up,
                    halve: b.halve,
                    norms: b.norms,
                    convs: std::array::from_fn(|j| conv(&b.convs[j])),
                }),
                Layer::Attention(a) => Layer::Attention(a.map(rounded)),
            })
            .collect();
        Box::new(BigganDeep {
            config: self.config.clone(),
            embeddings: copy(&self.embeddings),
            gen_z: pair(&self.gen_z),
            norms: pair(&self.norms),
            channels: self.channels.clone(),
            layers,
            bn: pair(&self.bn),
            to_rgb: conv(&self.to_rgb),
        })
    }
}

impl Attention {
    /// Shapes of theta, phi, g and o.
    pub(super) fn shapes(channels: i64) -> [[i64; 4]; 4] {
        [[channels / 8, channels], [channels / 8, channels], [channels / 2, channels], [channels, channels / 2]]
            .map(|[output, input]| [output, input, 1, 1])
    }

    /// The tensors `{name}.weight`, folded.
    pub(super) fn load(weights: &mut Weights, names: [String; 4], channels: i64) -> Result<Attention, LoadError> {
        let mut parts =
            names.iter().zip(Attention::shapes(channels)).map(|(n, shape)| weights.take(&format!("{n}.weight"), &shape));
        let mut next = || parts.next().expect("four names");
        Ok(Attention { theta: next()?, phi: next()?, g: next()?, o: next()? })
    }

    pub(super) fn weights(&self, names: [String; 4]) -> Vec<(String, Tensor)> {
        let parts = [&self.theta, &self.phi, &self.g, &self.o];
        names.into_iter().zip(parts).map(|(name, w)| (format!("{name}.weight"), w.shallow_clone())).collect()
    }

    pub(super) fn map(&self, f: impl Fn(&Tensor) -> Tensor) -> Attention {
        Attention { theta: f(&self.theta), phi: f(&self.phi), g: f(&self.g), o: f(&self.o) }
    }

    /// Self-attention (Zhang et al. 2019) without the 1/sqrt(d); gamma is folded into `o`.
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
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

/// Nearest neighbour, twice the size.
pub(super) fn upsample(x: &Tensor) -> Tensor {
    let size = x.size();
    x.upsample_nearest2d([size[2] * 2, size[3] * 2], None, None)
}

/// `{name}.weight` and `{name}.bias`.
pub(super) fn named(name: &str, (weight, bias): &(Tensor, Tensor)) -> [(String, Tensor); 2] {
    [(format!("{name}.weight"), weight.shallow_clone()), (format!("{name}.bias"), bias.shallow_clone())]
}

const ATTENTION: [&str; 4] = ["theta", "phi", "g", "o_conv"];

fn conv_shapes(input: i64, output: i64) -> [[i64; 4]; 4] {
    let mid = input / 4;
    [[mid, input, 1, 1], [mid, mid, 3, 3], [mid, mid, 3, 3], [output, mid, 1, 1]]
}

/// The tensors of `BigganDeep::folded` from those of the public checkpoint.
fn fold(config: &Config, weights: &mut Weights, truncation: f64) -> Result<Vec<(String, Tensor)>, LoadError> {
    let _no_grad = tch::no_grad_guard();
    let ch = config.channel_width;
    let cond = config.z_dim + config.class_embed_dim;
    let statistics = Statistics { truncation, n: config.n_stats };
    let mut norms = NormFolding::default();
    let mut folded = Vec::new();
    let embeddings = weights.take("embeddings.weight", &[config.class_embed_dim, config.num_classes])?;
    folded.push(("embeddings".to_owned(), embeddings.tr().contiguous()));
    let convolution = |weights: &mut Weights, name: String, shape: &[i64]| -> Result<_, LoadError> {
        let public = format!("generator.{name}");
        Ok((weights.take_spectral(&public, shape)?, weights.take(&format!("{public}.bias"), &shape[..1])?))
    };
    let gen_z = convolution(weights, "gen_z".into(), &[16 * 16 * ch, cond])?;
    folded.extend(named("gen_z", &gen_z));

    let mut index = 0;
    for (i, &(_, input, output)) in config.layers.iter().enumerate() {
        if i == config.attention_layer_position {
            let gamma = weights.take(&format!("generator.layers.{index}.gamma"), &[1])?;
            for (part, shape) in ATTENTION.into_iter().zip(Attention::shapes(ch * input)) {
                let name = format!("layers.{index}.snconv1x1_{part}");
                let weight = weights.take_spectral(&format!("generator.{name}"), &shape)?;
                folded.push((format!("{name}.weight"), if part == "o_conv" { weight * &gamma } else { weight }));
            }
            index += 1;
        }
        for (j, shape) in conv_shapes(ch * input, ch * output).iter().enumerate() {
            let (bn, channels) = (format!("generator.layers.{index}.bn_{j}"), shape[1]);
            let moments = statistics.take(weights, &bn, channels)?;
            let scale = weights.take_spectral(&format!("{bn}.scale"), &[channels, cond])?;
            let offset = weights.take_spectral(&format!("{bn}.offset"), &[channels, cond])?;
            norms.add(moments, config.eps, scale, offset);
            let name = format!("layers.{index}.conv_{j}");
            folded.extend(named(&name, &convolution(weights, name.clone(), shape)?));
        }
        index += 1;
    }
    folded.extend(named("norms", &norms.finish()));

    let moments = statistics.take(weights, "generator.bn", ch)?;
    let (scale, offset) = (weights.take("generator.bn.weight", &[ch])?, weights.take("generator.bn.bias", &[ch])?);
    folded.extend(named("bn", &fold_norm(moments, config.eps, scale, offset)));
    // Upstream computes all output channels and drops all but three.
    let (weight, bias) = convolution(weights, "conv_to_rgb".into(), &[ch, ch, 3, 3])?;
    folded.extend(named("conv_to_rgb", &(weight.narrow(0, 0, 3), bias.narrow(0, 0, 3).contiguous())));
    Ok(folded)
}

/// `(x - m) / sqrt(v + eps) scale + offset` as one scale and one offset.
pub(super) fn fold_norm((mean, variance): (Tensor, Tensor), eps: f64, scale: Tensor, offset: Tensor) -> (Tensor, Tensor) {
    let scale = scale / (variance + eps).sqrt();
    let offset = offset - mean * &scale;
    (scale, offset)
}

/// Which row of the statistics is used.
struct Statistics {
    truncation: f64,
    n: i64,
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
#[derive(Default)]
pub(super) struct NormFolding {
    a: Vec<Tensor>,
    b: Vec<Tensor>,
    bias_a: Vec<Tensor>,
    bias_b: Vec<Tensor>,
}

impl NormFolding {
    /// Appends one: mean and variance `[channels]`, scale S and offset O `[channels, cond]`.
    pub(super) fn add(&mut self, (mean, variance): (Tensor, Tensor), eps: f64, scale: Tensor, offset: Tensor) {
        let r = (variance + eps).rsqrt();
        let a = scale * r.unsqueeze(1);
        self.b.push(offset - mean.unsqueeze(1) * &a);
        self.a.push(a);
        self.bias_b.push(-mean * &r);
        self.bias_a.push(r);
    }

    /// `[2 * total, cond]` and `[2 * total]`: all a, then all b.
    pub(super) fn finish(mut self) -> (Tensor, Tensor) {
        self.a.append(&mut self.b);
        self.bias_a.append(&mut self.bias_b);
        (Tensor::cat(&self.a, 0), Tensor::cat(&self.bias_a, 0))
    }
}
