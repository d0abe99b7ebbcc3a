//! An encoder that guesses z from an image and its class: a residual network with group normalisation that the class embedding
//! conditions, as the authors' (pix2latent, branch `legacy`, `nets/encoder.py`), but small, and with a linear layer on the last 4x4
//! maps instead of their mean.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::layers::Layer;
use super::{LARGEST, LoadError, Weights};

/// Epsilon of group normalisation.
const EPS: f64 = 1e-5;
/// Width and height of the last maps.
const LAST: i64 = 4;

/// Sizes of the encoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Width and height of the images.
    pub resolution: i64,
    /// Length of the class embedding.
    pub embed_dim: i64,
    /// Length of z.
    pub latent_dim: i64,
    /// Channels after each block; the size is halved before each, down to 4.
    pub channels: Vec<i64>,
    /// Groups of each normalisation.
    pub groups: i64,
}

impl Config {
    fn check(&self) -> Result<(), LoadError> {
        let fail = |why: String| Err(LoadError::Config(why));
        let sizes = [self.resolution, self.embed_dim, self.latent_dim, self.groups];
        if !sizes.into_iter().chain(self.channels.iter().copied()).all(|n| (1..=LARGEST).contains(&n)) {
            return fail(format!("a size of the encoder is not in 1 to {LARGEST}"));
        }
        let blocks = self.channels.len() as u32;
        if blocks == 0 || LAST.checked_shl(blocks) != Some(self.resolution) {
            return fail(format!("{blocks} blocks of the encoder do not reduce {} pixels to {LAST}", self.resolution));
        }
        match self.channels.iter().find(|c| *c % self.groups != 0) {
            Some(channels) => fail(format!("{channels} channels of the encoder are not a multiple of {} groups", self.groups)),
            None => Ok(()),
        }
    }

    /// Names and shapes of the tensors.
    pub fn layout(&self) -> Result<Vec<(String, Vec<i64>)>, LoadError> {
        self.check()?;
        let mut layout = Vec::new();
        let mut pair = |name: String, shape: &[i64]| {
            layout.extend([(format!("{name}.weight"), shape.to_vec()), (format!("{name}.bias"), shape[..1].to_vec())]);
        };
        let mut input = self.channels[0];
        pair("conv".into(), &[input, 3, 3, 3]);
        for (i, &output) in self.channels.iter().enumerate() {
            for (j, (input, output)) in [(input, output), (output, output)].into_iter().enumerate() {
                pair(format!("blocks.{i}.norm{}", j + 1), &[2 * input, self.embed_dim]);
                pair(format!("blocks.{i}.conv{}", j + 1), &[output, input, 3, 3]);
            }
            if input != output {
                pair(format!("blocks.{i}.skip"), &[output, input, 1, 1]);
            }
            input = output;
        }
        pair("norm".into(), &[2 * input, self.embed_dim]);
        pair("fc".into(), &[self.latent_dim, input * LAST * LAST]);
        Ok(layout)
    }
}

/// The encoder with its weights.
pub struct Encoder {
    /// The configuration that it was built from.
    pub config: Config,
    /// Those of the configuration's layout.
    layers: Vec<Layer>,
}

impl Encoder {
    /// Builds the network from the tensors of [`Config::layout`], whose storage it shares.
    pub fn load(config: &Config, weights: &mut Weights) -> Result<Encoder, LoadError> {
        let mut tensors = config.layout()?.into_iter().map(|(name, shape)| weights.take(&name, &shape));
        let mut layers = Vec::new();
        while let (Some(weight), Some(bias)) = (tensors.next(), tensors.next()) {
            layers.push(Layer { weight: weight?, bias: bias? });
        }
        Ok(Encoder { config: config.clone(), layers })
    }

    /// A copy on a device.
    pub fn replicate(&self, device: Device) -> Encoder {
        let layers = self.layers.iter().map(|layer| layer.copy(device, Kind::Float));
        Encoder { config: self.config.clone(), layers: layers.collect() }
    }

    /// Images `[n, 3, r, r]` in [-1, 1] and class embeddings `[n, embed_dim]` -> z `[n, latent_dim]`, which may leave the search's
    /// limit.
    pub fn encode(&self, images: &Tensor, c: &Tensor) -> Tensor {
        let mut layers = self.layers.iter();
        let mut next = || layers.next().expect("the layout has every layer of the network");
        let mut x = next().convolve(images);
        let mut input = self.config.channels[0];
        for &output in &self.config.channels {
            x = x.avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>);
            let mut h = x.shallow_clone();
            for _ in 0..2 {
                h = self.normalise(&h, c, next());
                h = next().convolve(&h);
            }
            x = h + if input == output { x } else { next().convolve(&x) };
            input = output;
        }
        let x = self.normalise(&x, c, next()).flatten(1, -1);
        next().linear(&x)
    }

    /// `relu((1 + gain(c)) x + offset(c))` of normalised x.
    fn normalise(&self, x: &Tensor, c: &Tensor, norm: &Layer) -> Tensor {
        let condition = norm.linear(c).unsqueeze(-1).unsqueeze(-1).chunk(2, 1);
        let x = x.group_norm::<Tensor>(self.config.groups, None, None, EPS, false);
        (&x + condition[1].addcmul(&x, &condition[0])).relu()
    }
}
