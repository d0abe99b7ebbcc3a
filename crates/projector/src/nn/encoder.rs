//! An encoder that guesses z from an image and its class: a residual network with group normalisation that the class embedding
//! conditions, as the authors' (pix2latent, branch `legacy`, `nets/encoder.py`), but small, and with a linear layer on the last 4x4
//! maps instead of their mean.

use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

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

/// Weight and bias of a layer.
type Pair = (Tensor, Tensor);

struct Block {
    norms: [Pair; 2],
    convs: [Pair; 2],
    skip: Option<Pair>,
}

/// The encoder with its weights.
pub struct Encoder {
    config: Config,
    conv: Pair,
    blocks: Vec<Block>,
    norm: Pair,
    fc: Pair,
}

impl Encoder {
    /// Builds the network from the tensors of [`Config::layout`], whose storage it shares.
    ///
    /// Fails on a missing or misshapen tensor and on values that are not finite; spare ones are left in `weights`.
    pub fn load(config: &Config, weights: &mut Weights) -> Result<Encoder, LoadError> {
        let layout = config.layout()?;
        let mut tensors = layout.iter().map(|(name, shape)| weights.take(name, shape));
        let mut pair = || -> Result<Pair, LoadError> {
            let mut next = || tensors.next().expect("the layout has every tensor of the network");
            Ok((next()?, next()?))
        };
        let conv = pair()?;
        let (mut blocks, mut input) = (Vec::new(), config.channels[0]);
        for &output in &config.channels {
            let (norm1, conv1, norm2, conv2) = (pair()?, pair()?, pair()?, pair()?);
            let skip = (input != output).then(&mut pair).transpose()?;
            blocks.push(Block { norms: [norm1, norm2], convs: [conv1, conv2], skip });
            input = output;
        }
        Ok(Encoder { config: config.clone(), conv, blocks, norm: pair()?, fc: pair()? })
    }

    /// The configuration that it was built from.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// A copy on a device.
    pub fn replicate(&self, device: Device) -> Encoder {
        let copy = |(w, b): &Pair| (w.detach().to_device(device).copy(), b.detach().to_device(device).copy());
        let block = |b: &Block| Block {
            norms: b.norms.each_ref().map(copy),
            convs: b.convs.each_ref().map(copy),
            skip: b.skip.as_ref().map(copy),
        };
        Encoder {
            config: self.config.clone(),
            conv: copy(&self.conv),
            blocks: self.blocks.iter().map(block).collect(),
            norm: copy(&self.norm),
            fc: copy(&self.fc),
        }
    }

    /// Images `[n, 3, r, r]` in [-1, 1] and class embeddings `[n, embed_dim]` -> z `[n, latent_dim]`, which may leave the search's
    /// limit.
    pub fn encode(&self, images: &Tensor, c: &Tensor) -> Tensor {
        let conv = |x: &Tensor, (weight, bias): &Pair| {
            let pad = weight.size()[2] / 2;
            x.conv2d(weight, Some(bias), [1, 1], [pad, pad], [1, 1], 1)
        };
        let mut x = conv(images, &self.conv);
        for block in &self.blocks {
            x = x.avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>);
            let h = conv(&self.normalise(&x, c, &block.norms[0]), &block.convs[0]);
            let h = conv(&self.normalise(&h, c, &block.norms[1]), &block.convs[1]);
            x = h + block.skip.as_ref().map_or_else(|| x.shallow_clone(), |skip| conv(&x, skip));
        }
        self.normalise(&x, c, &self.norm).flatten(1, -1).linear(&self.fc.0, Some(&self.fc.1))
    }

    /// `relu((1 + gain(c)) x + offset(c))` of normalised x.
    fn normalise(&self, x: &Tensor, c: &Tensor, (weight, bias): &Pair) -> Tensor {
        let condition = c.linear(weight, Some(bias)).unsqueeze(-1).unsqueeze(-1).chunk(2, 1);
        let x = x.group_norm::<Tensor>(self.config.groups, None, None, EPS, false);
        (&x + condition[1].addcmul(&x, &condition[0])).relu()
    }
}
