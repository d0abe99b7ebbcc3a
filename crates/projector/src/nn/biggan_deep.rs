//! BigGAN-deep (Brock et al. 2019, Appendix B) in the layout of pytorch-pretrained-BigGAN, for inference.
//!
//! Everything that does not depend on the sample is folded at load: spectral norms, the batch-norm statistics of one truncation,
//! and the output channels that upstream computes and drops. All conditional normalisations become one matrix product: each is
//! `a x + b` with a and b affine in the condition `[z, c]`.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::biggan_folded::{AttentionLayout, Folded, Layout, Unfolded, upsample};
use super::layers::Layer;
use super::{LARGEST, LoadError, Weights};
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

    fn layout(&self) -> Result<Layout, LoadError> {
        self.check()?;
        let (ch, position) = (self.channel_width, self.attention_layer_position);
        let attention = self.layers.get(position).map(|&(_, input, _)| AttentionLayout {
            names: ["theta", "phi", "g", "o_conv"].map(|part| format!("layers.{position}.snconv1x1_{part}")),
            channels: ch * input,
            after: 4 * position,
        });
        let block = |(i, &(_, input, output)): (usize, &(bool, i64, i64))| {
            let (input, output, mid) = (ch * input, ch * output, ch * input / 4);
            // The attention block counts as a layer.
            let index = i + usize::from(i >= position);
            let shapes = [[mid, input, 1, 1], [mid, mid, 3, 3], [mid, mid, 3, 3], [output, mid, 1, 1]];
            shapes.into_iter().enumerate().map(move |(j, shape)| (format!("layers.{index}.conv_{j}"), shape))
        };
        let convs: Vec<_> = self.layers.iter().enumerate().flat_map(block).collect();
        Ok(Layout {
            names: ["gen_z", "bn", "conv_to_rgb"],
            classes: self.num_classes,
            embed: self.class_embed_dim,
            latent: self.z_dim,
            first: [16 * 16 * ch, self.z_dim + self.class_embed_dim],
            // One before each convolution.
            norms: convs.iter().map(|(_, [_, input, ..])| *input).collect(),
            convs,
            attention,
            last: ch,
        })
    }
}

/// The generator, folded for one truncation.
pub struct BigganDeep {
    config: Config,
    folded: Folded,
}

impl BigganDeep {
    /// Builds the network from a public checkpoint, with the statistics of `truncation` in (0, 1].
    pub fn load(config: &Config, weights: &mut Weights, truncation: f64) -> Result<BigganDeep, LoadError> {
        BigganDeep::load_folded(config, &mut Weights::new(fold(config, weights, truncation)?))
    }

    /// Builds the network from what [`BigganDeep::folded`] gave.
    pub fn load_folded(config: &Config, weights: &mut Weights) -> Result<BigganDeep, LoadError> {
        Ok(BigganDeep { config: config.clone(), folded: Folded::load(weights, config.layout()?)? })
    }

    /// All folded tensors by name, for [`BigganDeep::load_folded`]. Handles, not copies.
    pub fn folded(&self) -> Vec<(String, Tensor)> {
        self.folded.tensors()
    }
}

impl Generator for BigganDeep {
    fn generate(&self, z: &Tensor, c: &Tensor) -> Tensor {
        let cond = Tensor::cat(&[z, c], 1);
        let mut norms = self.folded.norms(&cond);
        let h = self.folded.first.linear(&cond);
        // Height, width, channels, as TensorFlow had it.
        let x = h.view([-1, 4, 4, 16 * self.config.channel_width]).permute([0, 3, 1, 2]);
        let mut x = x.to_kind(self.folded.kind());
        for (i, (&(up, input, output), convs)) in self.config.layers.iter().zip(self.folded.convs.chunks(4)).enumerate() {
            if i == self.config.attention_layer_position {
                x = self.folded.attention(&x);
            }
            let mut h = x.shallow_clone();
            for (j, conv) in convs.iter().enumerate() {
                h = norms.relu(&h);
                if j == 1 && up {
                    h = upsample(&h);
                }
                h = conv.convolve(&h);
            }
            let skip = if input == output { x } else { x.narrow(1, 0, x.size()[1] / 2) };
            x = h + if up { upsample(&skip) } else { skip };
        }
        self.folded.images(&x)
    }

    fn embeddings(&self) -> Tensor {
        self.folded.embeddings.shallow_clone()
    }

    fn latent_dim(&self) -> i64 {
        self.config.z_dim
    }

    fn latent_layer(&self) -> Tensor {
        self.folded.first.weight.narrow(1, 0, self.config.z_dim)
    }

    fn resolution(&self) -> i64 {
        self.config.output_dim
    }

    fn weights(&self) -> Vec<(String, Tensor)> {
        self.folded.weights()
    }

    fn converted(&self, device: Device, kind: Kind) -> Box<dyn Generator> {
        Box::new(BigganDeep { config: self.config.clone(), folded: self.folded.copy(device, kind) })
    }
}

/// The tensors of `BigganDeep::folded` from those of the public checkpoint.
fn fold(config: &Config, weights: &mut Weights, truncation: f64) -> Result<Vec<(String, Tensor)>, LoadError> {
    let _no_grad = tch::no_grad_guard();
    let layout = config.layout()?;
    let [_, cond] = layout.first;
    let take_moments =
        |weights: &mut Weights, name: &str, channels| take_moments(weights, name, [config.n_stats, channels], truncation);
    let embeddings = weights.take("embeddings.weight", &[config.class_embed_dim, config.num_classes])?;
    let mut folded = vec![("embeddings".to_owned(), embeddings.tr().contiguous())];
    let layer = |weights: &mut Weights, name: &str, shape: &[i64]| -> Result<Layer, LoadError> {
        let public = format!("generator.{name}");
        let weight = weights.take_spectral(&public, shape)?;
        Ok(Layer { weight, bias: weights.take(&format!("{public}.bias"), &shape[..1])? })
    };
    folded.extend(layer(weights, "gen_z", &layout.first)?.named("gen_z"));
    let mut norms = Vec::new();
    for (name, shape) in &layout.convs {
        let (bn, channels) = (format!("generator.{}", name.replace("conv", "bn")), shape[1]);
        let moments = take_moments(weights, &bn, channels)?;
        let scale = weights.take_spectral(&format!("{bn}.scale"), &[channels, cond])?;
        let offset = weights.take_spectral(&format!("{bn}.offset"), &[channels, cond])?;
        norms.push(Unfolded { moments, scale, offset });
        folded.extend(layer(weights, name, shape)?.named(name));
    }
    folded.extend(Unfolded::fold_all(norms, config.eps).named("norms"));
    if let Some(attention) = &layout.attention {
        let gamma = weights.take(&format!("generator.layers.{}.gamma", config.attention_layer_position), &[1])?;
        folded.extend(attention.fold(&gamma, |name, shape| weights.take_spectral(&format!("generator.{name}"), shape))?);
    }

    let ch = config.channel_width;
    let moments = take_moments(weights, "generator.bn", ch)?;
    let Layer { weight: scale, bias: offset } = Layer::load(weights, "generator.bn", &[ch])?;
    folded.extend(Unfolded { moments, scale, offset }.fold(config.eps).named("bn"));
    // Upstream computes all output channels and drops all but three.
    let Layer { weight, bias } = layer(weights, "conv_to_rgb", &[ch, ch, 3, 3])?;
    let to_rgb = Layer { weight: weight.narrow(0, 0, 3), bias: bias.narrow(0, 0, 3).contiguous() };
    folded.extend(to_rgb.named("conv_to_rgb"));
    Ok(folded)
}

/// Mean and variance for the truncation, of statistics of `shape`. Between two rows upstream mixes them with the two weights exchanged;
/// so do we.
fn take_moments(weights: &mut Weights, name: &str, shape: [i64; 2], truncation: f64) -> Result<(Tensor, Tensor), LoadError> {
    let step = 1.0 / (shape[0] - 1) as f64;
    let position = truncation / step;
    let row = position.floor();
    let fraction = position - row;
    let mut pick = |part: &str| -> Result<Tensor, LoadError> {
        let table = weights.take(&format!("{name}.{part}"), &shape)?;
        // Upstream tests `coef != 0.0`; what rounding leaves of a whole number counts as none here.
        if !(1e-9..=1.0 - 1e-9).contains(&fraction) {
            return Ok(table.get(position.round() as i64));
        }
        Ok(table.get(row as i64) * fraction + table.get(row as i64 + 1) * (1.0 - fraction))
    };
    Ok((pick("running_means")?, pick("running_vars")?))
}
