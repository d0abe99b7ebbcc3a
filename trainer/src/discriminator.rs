//! Projection discriminator (Miyato and Koyama 2018): a small residual network with spectral norm, and the standard deviation
//! within groups of samples of one class as an additional feature map, so that lost diversity is seen.

use tch::{Device, Kind, Tensor};

use crate::generator::Spectral;
use crate::vars::Vars;

const CHANNELS: [i64; 3] = [40, 80, 160];
/// Samples of one class that stand side by side in a batch.
pub const GROUP: i64 = 4;

struct Block {
    conv1: Spectral,
    conv2: Spectral,
    /// 1x1 to the next width, after pooling.
    next: Option<Spectral>,
}

/// The discriminator under training.
pub struct Discriminator {
    stem: Spectral,
    blocks: Vec<Block>,
    mix: Spectral,
    linear: Spectral,
    embed: Spectral,
}

impl Discriminator {
    /// Builds the network into `vars`.
    pub fn new(vars: &mut Vars, classes: i64) -> Discriminator {
        let blocks = (0..CHANNELS.len())
            .map(|i| {
                let c = CHANNELS[i];
                let mut conv =
                    |name: &str, o: i64, k: i64| Spectral::new(vars, &format!("blocks.{i}.{name}"), &[o, c, k, k], true);
                Block {
                    conv1: conv("conv1", c, 3),
                    conv2: conv("conv2", c, 3),
                    next: CHANNELS.get(i + 1).map(|&o| conv("next", o, 1)),
                }
            })
            .collect();
        let last = CHANNELS[CHANNELS.len() - 1];
        Discriminator {
            stem: Spectral::new(vars, "stem", &[CHANNELS[0], 12, 3, 3], true),
            blocks,
            mix: Spectral::new(vars, "mix", &[last, last + 1, 3, 3], true),
            linear: Spectral::new(vars, "linear", &[1, last], true),
            embed: Spectral::new(vars, "embed", &[classes, last], false),
        }
    }

    /// Power iteration on every weight.
    pub fn iterate(&mut self) {
        let blocks = self.blocks.iter_mut().flat_map(|b| [&mut b.conv1, &mut b.conv2].into_iter().chain(&mut b.next));
        for s in blocks.chain([&mut self.stem, &mut self.mix, &mut self.linear, &mut self.embed]) {
            s.iterate(1);
        }
    }

    /// The weights divided by their spectral norms, for any number of forward passes.
    pub fn fold(&self) -> DiscriminatorWeights<'_> {
        DiscriminatorWeights {
            net: self,
            stem: self.stem.weight(),
            blocks: self
                .blocks
                .iter()
                .map(|b| (b.conv1.weight(), b.conv2.weight(), b.next.as_ref().map(Spectral::weight)))
                .collect(),
            mix: self.mix.weight(),
            linear: self.linear.weight(),
            embed: self.embed.weight(),
        }
    }
}

/// A discriminator ready to be applied.
pub struct DiscriminatorWeights<'a> {
    net: &'a Discriminator,
    stem: Tensor,
    blocks: Vec<(Tensor, Tensor, Option<Tensor>)>,
    mix: Tensor,
    linear: Tensor,
    embed: Tensor,
}

impl DiscriminatorWeights<'_> {
    /// Images `[n, 3, 32, 32]` in groups of one class, labels `[n]` -> scores `[n]`.
    pub fn forward(&self, images: &Tensor, labels: &Tensor) -> Tensor {
        let mut x = self.net.stem.conv(&images.pixel_unshuffle(2), &self.stem);
        for (block, (w1, w2, next)) in self.net.blocks.iter().zip(&self.blocks) {
            let h = block.conv1.conv(&x.relu(), w1);
            x += block.conv2.conv(&h.relu(), w2);
            if let (Some(layer), Some(w)) = (&block.next, next) {
                x = layer.conv(&x.avg_pool2d_default(2), w);
            }
        }
        let x = x.relu();
        let (n, _, height, width) = x.size4().expect("four dimensions");
        let groups = x.view([n / GROUP, GROUP, -1]);
        let dims: &[i64] = &[-1];
        let deviation = (groups.var_dim(&[1i64][..], false, false) + 1e-8).sqrt().mean_dim(dims, false, Kind::Float);
        let deviation = deviation.repeat_interleave_self_int(GROUP, 0, None).view([n, 1, 1, 1]);
        let x = Tensor::cat(&[x, deviation.expand([n, 1, height, width], false)], 1);
        let features = self.net.mix.conv(&x, &self.mix).relu().sum_dim_intlist(&[2i64, 3][..], false, Kind::Float);
        let score = features.linear(&self.linear, self.net.linear.bias()).squeeze_dim(1);
        score + (self.embed.index_select(0, labels) * features).sum_dim_intlist(&[1i64][..], false, Kind::Float)
    }
}

/// Labels for a balanced batch of `n`, in groups of one class: `classes` random group labels.
pub fn group_labels(groups: &[i64]) -> Tensor {
    Tensor::from_slice(groups).repeat_interleave_self_int(GROUP, 0, None).to_device(Device::Cpu)
}
