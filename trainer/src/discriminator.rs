//! Projection discriminator (Miyato and Koyama 2018): a small residual network with spectral norm, and the standard deviation
//! within groups of samples of one class as an additional feature map, so that lost diversity is seen.

use tch::{Kind, Tensor};

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

pub struct Discriminator {
    stem: Spectral,
    blocks: Vec<Block>,
    mix: Spectral,
    linear: Spectral,
    embed: Spectral,
}

impl Discriminator {
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

    /// Images `[n, 3, 32, 32]` in groups of one class, labels `[n]` -> scores `[n]`. `weight` divides a weight by its spectral norm.
    pub fn forward(&self, images: &Tensor, labels: &Tensor, weight: fn(&Spectral) -> Tensor) -> Tensor {
        let conv = |layer: &Spectral, x: &Tensor| layer.conv(x, &weight(layer));
        let mut x = conv(&self.stem, &images.pixel_unshuffle(2));
        for block in &self.blocks {
            let h = conv(&block.conv1, &x.relu());
            x += conv(&block.conv2, &h.relu());
            if let Some(next) = &block.next {
                x = conv(next, &x.avg_pool2d_default(2));
            }
        }
        let x = x.relu();
        let (n, _, height, width) = x.size4().expect("four dimensions");
        let groups = x.view([n / GROUP, GROUP, -1]);
        let dims: &[i64] = &[-1];
        let deviation = (groups.var_dim(&[1i64][..], false, false) + 1e-8).sqrt().mean_dim(dims, false, Kind::Float);
        let deviation = deviation.repeat_interleave_self_int(GROUP, 0, None).view([n, 1, 1, 1]);
        let x = Tensor::cat(&[x, deviation.expand([n, 1, height, width], false)], 1);
        let features = conv(&self.mix, &x).relu().sum_dim_intlist(&[2i64, 3][..], false, Kind::Float);
        let score = features.linear(&weight(&self.linear), self.linear.bias.as_ref()).squeeze_dim(1);
        score + (weight(&self.embed).index_select(0, labels) * features).sum_dim_intlist(&[1i64][..], false, Kind::Float)
    }
}
