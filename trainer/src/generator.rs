//! BigGAN-deep for training: spectral norm with power iteration, batch statistics, parameter names of pytorch-pretrained-BigGAN.
//!
//! `projector::nn::biggan_deep` is the same network for inference, with everything folded.

pub use projector::nn::biggan_deep::Config;
use tch::kind::FLOAT_CPU;
use tch::{Tensor, no_grad};

use crate::vars::{Vars, matrix};

pub fn fashion32() -> Config {
    Config {
        output_dim: 32,
        z_dim: 64,
        class_embed_dim: 64,
        channel_width: 16,
        num_classes: 10,
        layers: vec![(false, 16, 16), (true, 16, 8), (false, 8, 8), (true, 8, 4), (false, 4, 4), (true, 4, 2), (false, 2, 1)],
        attention_layer_position: 4,
        eps: 1e-4,
        n_stats: 51,
    }
}

/// Batch-norm input statistics in layer order: (name, mean, variance).
pub type Statistics = Vec<(String, Tensor, Tensor)>;

/// A weight under spectral norm: `W = W_orig / sigma`, sigma from the vectors u and v, which power iteration keeps up to date.
pub struct Spectral {
    name: String,
    orig: Tensor,
    pub bias: Option<Tensor>,
    u: Tensor,
    v: Tensor,
}

impl Spectral {
    /// A weight of `shape` (output channels first), orthogonal at the start.
    pub fn new(vars: &mut Vars, name: &str, shape: &[i64], bias: bool) -> Spectral {
        let orig = vars.parameter(&format!("{name}.weight_orig"), orthogonal(shape));
        let bias = bias.then(|| vars.parameter(&format!("{name}.bias"), Tensor::zeros(&shape[..1], FLOAT_CPU)));
        let [u, v] = vars.spectral(name, &orig);
        Spectral { name: name.to_owned(), orig, bias, u, v }
    }

    /// `W_orig / sigma`, differentiable.
    pub fn weight(&self) -> Tensor {
        let sigma = self.u.dot(&matrix(&self.orig).mv(&self.v));
        &self.orig / sigma
    }

    /// `W_orig / sigma`, a constant.
    pub fn constant_weight(&self) -> Tensor {
        no_grad(|| self.weight())
    }

    /// Convolution with `weight`, padded to keep the size.
    pub fn conv(&self, x: &Tensor, weight: &Tensor) -> Tensor {
        let pad = weight.size()[2] / 2;
        x.conv2d(weight, self.bias.as_ref(), [1, 1], [pad, pad], [1, 1], 1)
    }
}

fn orthogonal(shape: &[i64]) -> Tensor {
    let columns = shape[1..].iter().product::<i64>();
    let tall = shape[0] >= columns;
    let g = Tensor::randn(if tall { [shape[0], columns] } else { [columns, shape[0]] }, FLOAT_CPU);
    let (q, _) = Tensor::linalg_qr(&g, "reduced");
    if tall { q } else { q.tr() }.contiguous().view(shape)
}

struct ConditionalNorm {
    name: String,
    scale: Spectral,
    offset: Spectral,
}

impl ConditionalNorm {
    fn new(vars: &mut Vars, name: String, channels: i64, cond: i64) -> ConditionalNorm {
        ConditionalNorm {
            scale: Spectral::new(vars, &format!("{name}.scale"), &[channels, cond], false),
            offset: Spectral::new(vars, &format!("{name}.offset"), &[channels, cond], false),
            name,
        }
    }

    fn forward(&self, x: &Tensor, cond: &Tensor, pass: &mut Pass) -> Tensor {
        let scale = cond.matmul(&pass.weight(&self.scale).tr()) + 1.0;
        let offset = cond.matmul(&pass.weight(&self.offset).tr());
        let normal = pass.normalise(x, &self.name);
        offset.unsqueeze(-1).unsqueeze(-1).addcmul(&normal, &scale.unsqueeze(-1).unsqueeze(-1))
    }
}

/// A forward pass, and what it leaves.
struct Pass {
    eps: f64,
    /// Weights divided by their spectral norm, by name, for the average.
    folded: Vec<(String, Tensor)>,
    /// Noted where they are wanted.
    statistics: Option<Statistics>,
}

impl Pass {
    fn weight(&mut self, spectral: &Spectral) -> Tensor {
        let weight = spectral.weight();
        self.folded.push((format!("{}.weight_orig", spectral.name), weight.shallow_clone()));
        weight
    }

    fn conv(&mut self, x: &Tensor, spectral: &Spectral) -> Tensor {
        spectral.conv(x, &self.weight(spectral))
    }

    /// Batch normalisation with the statistics of the batch.
    fn normalise(&mut self, x: &Tensor, name: &str) -> Tensor {
        if let Some(statistics) = &mut self.statistics {
            let dims: &[i64] = &[0, 2, 3];
            statistics.push((name.to_owned(), x.mean_dim(dims, false, None), x.var_dim(dims, false, false)));
        }
        x.batch_norm::<Tensor>(None, None, None, None, true, 0.0, self.eps, false)
    }
}

struct Block {
    up: bool,
    input: i64,
    output: i64,
    norms: [ConditionalNorm; 4],
    convs: [Spectral; 4],
}

impl Block {
    fn new(vars: &mut Vars, name: &str, input: i64, output: i64, cond: i64, up: bool) -> Block {
        let mid = input / 4;
        Block {
            up,
            input,
            output,
            norms: [(0, input), (1, mid), (2, mid), (3, mid)]
                .map(|(j, channels)| ConditionalNorm::new(vars, format!("{name}.bn_{j}"), channels, cond)),
            convs: [(0, mid, input, 1), (1, mid, mid, 3), (2, mid, mid, 3), (3, output, mid, 1)]
                .map(|(j, o, i, k)| Spectral::new(vars, &format!("{name}.conv_{j}"), &[o, i, k, k], true)),
        }
    }

    fn forward(&self, x: &Tensor, cond: &Tensor, pass: &mut Pass) -> Tensor {
        let mut h = x.shallow_clone();
        for (j, (bn, conv)) in self.norms.iter().zip(&self.convs).enumerate() {
            h = bn.forward(&h, cond, pass).relu();
            if j == 1 && self.up {
                h = upsample(&h);
            }
            h = pass.conv(&h, conv);
        }
        let skip = if self.input == self.output { x.shallow_clone() } else { x.narrow(1, 0, self.input / 2) };
        h + if self.up { upsample(&skip) } else { skip }
    }
}

fn upsample(x: &Tensor) -> Tensor {
    let size = x.size();
    x.upsample_nearest2d([size[2] * 2, size[3] * 2], None, None)
}

struct Attention {
    theta: Spectral,
    phi: Spectral,
    g: Spectral,
    o: Spectral,
    gamma: Tensor,
}

impl Attention {
    fn new(vars: &mut Vars, name: &str, channels: i64) -> Attention {
        let mut conv =
            |part: &str, o: i64, i: i64| Spectral::new(vars, &format!("{name}.snconv1x1_{part}"), &[o, i, 1, 1], false);
        Attention {
            theta: conv("theta", channels / 8, channels),
            phi: conv("phi", channels / 8, channels),
            g: conv("g", channels / 2, channels),
            o: conv("o_conv", channels, channels / 2),
            gamma: vars.parameter(&format!("{name}.gamma"), Tensor::zeros([1], FLOAT_CPU)),
        }
    }

    fn forward(&self, x: &Tensor, pass: &mut Pass) -> Tensor {
        let (n, c, h, w) = x.size4().expect("four dimensions");
        let theta = pass.conv(x, &self.theta).view([n, c / 8, h * w]);
        let phi = pass.conv(x, &self.phi).max_pool2d_default(2).view([n, c / 8, h * w / 4]);
        let g = pass.conv(x, &self.g).max_pool2d_default(2).view([n, c / 2, h * w / 4]);
        let attention = theta.transpose(1, 2).bmm(&phi).softmax(-1, None);
        let o = g.bmm(&attention.transpose(1, 2)).view([n, c / 2, h, w]);
        x + pass.conv(&o, &self.o) * &self.gamma
    }
}

pub struct TrainableGenerator {
    config: Config,
    embeddings: Tensor,
    gen_z: Spectral,
    blocks: Vec<Block>,
    /// Before the block of the config's position.
    attention: Option<Attention>,
    bn_weight: Tensor,
    bn_bias: Tensor,
    to_rgb: Spectral,
}

impl TrainableGenerator {
    pub fn new(vars: &mut Vars, config: &Config) -> TrainableGenerator {
        let ch = config.channel_width;
        let cond = config.z_dim + config.class_embed_dim;
        let embeddings =
            vars.parameter("embeddings.weight", Tensor::randn([config.class_embed_dim, config.num_classes], FLOAT_CPU) * 0.5);
        let gen_z = Spectral::new(vars, "generator.gen_z", &[16 * 16 * ch, cond], true);
        let (mut blocks, mut attention) = (Vec::new(), None);
        for (i, &(up, input, output)) in config.layers.iter().enumerate() {
            let name = |index: usize| format!("generator.layers.{index}");
            if i == config.attention_layer_position {
                attention = Some(Attention::new(vars, &name(i), ch * input));
            }
            blocks.push(Block::new(vars, &name(i + usize::from(attention.is_some())), ch * input, ch * output, cond, up));
        }
        TrainableGenerator {
            embeddings,
            gen_z,
            blocks,
            attention,
            bn_weight: vars.parameter("generator.bn.weight", Tensor::ones([ch], FLOAT_CPU)),
            bn_bias: vars.parameter("generator.bn.bias", Tensor::zeros([ch], FLOAT_CPU)),
            to_rgb: Spectral::new(vars, "generator.conv_to_rgb", &[ch, ch, 3, 3], true),
            config: config.clone(),
        }
    }

    /// z `[n, z_dim]`, labels `[n]` -> images `[n, 3, s, s]` in [-1, 1] and the folded weights that made them.
    pub fn forward(&self, z: &Tensor, labels: &Tensor) -> (Tensor, Vec<(String, Tensor)>) {
        let mut pass = Pass { eps: self.config.eps, folded: vec![], statistics: None };
        (self.run(z, labels, &mut pass), pass.folded)
    }

    /// The statistics of every normalisation over a batch.
    pub fn statistics(&self, z: &Tensor, labels: &Tensor) -> Statistics {
        let mut pass = Pass { eps: self.config.eps, folded: vec![], statistics: Some(vec![]) };
        let _ = no_grad(|| self.run(z, labels, &mut pass));
        pass.statistics.unwrap_or_default()
    }

    fn run(&self, z: &Tensor, labels: &Tensor, pass: &mut Pass) -> Tensor {
        let c = self.embeddings.tr().index_select(0, labels);
        let cond = Tensor::cat(&[z, &c], 1);
        let h = cond.linear(&pass.weight(&self.gen_z), self.gen_z.bias.as_ref());
        let mut x = h.view([-1, 4, 4, 16 * self.config.channel_width]).permute([0, 3, 1, 2]).contiguous();
        for (i, block) in self.blocks.iter().enumerate() {
            if let Some(attention) = self.attention.as_ref().filter(|_| i == self.config.attention_layer_position) {
                x = attention.forward(&x, pass);
            }
            x = block.forward(&x, &cond, pass);
        }
        let x = pass.normalise(&x, "generator.bn");
        let x = (x * self.bn_weight.view([1, -1, 1, 1]) + self.bn_bias.view([1, -1, 1, 1])).relu();
        // Only the first three output channels are used, as upstream; sigma is that of all of them.
        pass.conv(&x, &self.to_rgb).narrow(1, 0, 3).tanh()
    }
}
