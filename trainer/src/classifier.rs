//! A small convolutional classifier. It predicts the class, and its feature maps serve as perceptual network.
//!
//! 3x3 convolutions with batch normalisation, which is folded into the convolutions at export: the exported network is
//! `features.{i}.{weight,bias}` (convolution, ReLU, max-pooling, as in torchvision's AlexNet) and `classifier.{weight,bias}`.

use anyhow::Result;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use tch::kind::INT64_CPU;
use tch::nn::{self, ModuleT, OptimizerConfig};
use tch::{Kind, Tensor, no_grad};

use crate::data::{SIZE, Split};

pub type Stack = &'static [Conv];

/// A 3x3 convolution of a stack.
pub struct Conv {
    pub channels: i64,
    /// Whether a 2x2 max-pooling follows.
    pub pool: bool,
    /// Whether LPIPS compares its output.
    pub tap: bool,
}

/// The bundled model's layers: as in AlexNet, each convolution is compared.
pub const MODEL: Stack = &[compared(16, true), compared(48, true), compared(96, false), compared(96, true), compared(128, false)];
/// The judge's layers: as in VGG, pairs of convolutions, of which the second is compared.
pub const JUDGE: Stack = &[
    Conv { channels: 16, pool: false, tap: false },
    compared(16, true),
    Conv { channels: 32, pool: false, tap: false },
    compared(32, true),
    Conv { channels: 64, pool: false, tap: false },
    compared(64, true),
];

const fn compared(channels: i64, pool: bool) -> Conv {
    Conv { channels, pool, tap: true }
}

/// Values of the last feature map.
fn outputs(stack: Stack) -> i64 {
    let pools = stack.iter().filter(|conv| conv.pool).count();
    stack.last().map_or(3, |conv| conv.channels) * (SIZE >> pools).pow(2)
}

const LEARNING_RATE: f64 = 4e-3;
const WEIGHT_DECAY: f64 = 5e-2;
const BATCH: usize = 128;
/// tch's default.
const BN_EPS: f64 = 1e-5;
const LABEL_SMOOTHING: f64 = 0.05;
const DROPOUT: f64 = 0.4;
/// The last epochs see the images as they are (flipped, not shifted).
const POLISH_RATE: f64 = 8e-4;
const POLISH_DROPOUT: f64 = 0.25;

pub struct TrainableClassifier {
    pub vars: nn::VarStore,
    pub stack: Stack,
    convs: Vec<(nn::Conv2D, nn::BatchNorm)>,
    linear: nn::Linear,
    dropout: f64,
}

impl TrainableClassifier {
    pub fn new(stack: Stack) -> TrainableClassifier {
        let vars = nn::VarStore::new(tch::Device::Cpu);
        let vs = vars.root();
        let mut input = 3;
        let convs = stack
            .iter()
            .enumerate()
            .map(|(i, &Conv { channels, .. })| {
                let config = nn::ConvConfig { padding: 1, bias: false, ..Default::default() };
                let conv = nn::conv2d(&vs / "conv" / i, input, channels, 3, config);
                input = channels;
                (conv, nn::batch_norm2d(&vs / "bn" / i, channels, Default::default()))
            })
            .collect();
        let linear = nn::linear(&vs / "classifier", outputs(stack), 10, Default::default());
        TrainableClassifier { vars, stack, convs, linear, dropout: DROPOUT }
    }

    /// `[n, 3, 32, 32]` -> logits `[n, 10]`.
    pub fn forward(&self, images: &Tensor, train: bool) -> Tensor {
        let mut x = images.shallow_clone();
        for ((conv, bn), Conv { pool, .. }) in self.convs.iter().zip(self.stack) {
            x = bn.forward_t(&x.apply(conv), train).relu();
            if *pool {
                x = x.max_pool2d_default(2);
            }
        }
        x.flatten(1, -1).dropout(self.dropout, train).apply(&self.linear)
    }

    /// The feature network's tensors by name, batch normalisation folded.
    pub fn features(&self) -> Vec<(String, Tensor)> {
        let mut tensors = Vec::new();
        let mut index = 0;
        for ((conv, bn), Conv { pool, .. }) in self.convs.iter().zip(self.stack) {
            let scale = bn.ws.as_ref().expect("affine") / (&bn.running_var + BN_EPS).sqrt();
            let weight = &conv.ws * scale.view([-1, 1, 1, 1]);
            let bias = bn.bs.as_ref().expect("affine") - &bn.running_mean * &scale;
            tensors.push((format!("features.{index}.weight"), weight.detach()));
            tensors.push((format!("features.{index}.bias"), bias.detach()));
            index += if *pool { 3 } else { 2 };
        }
        tensors
    }

    /// The class predictor's tensors by name.
    pub fn head(&self) -> [(String, Tensor); 2] {
        let bias = self.linear.bs.as_ref().expect("bias");
        [("classifier.weight".into(), self.linear.ws.detach()), ("classifier.bias".into(), bias.detach())]
    }

    /// Trains with a one-cycle learning rate, random flips and shifts. Returns the accuracy on the test images.
    pub fn train(&self, data: (&Split, &Split), epochs: u32, seed: u64) -> Result<f64> {
        self.run(data, (epochs, "train"), seed, |progress| LEARNING_RATE * one_cycle(progress), 2)
    }

    /// Goes on from `train` with a falling learning rate and less noise.
    pub fn polish(&mut self, data: (&Split, &Split), epochs: u32, seed: u64) -> Result<f64> {
        self.dropout = POLISH_DROPOUT;
        self.run(data, (epochs, "polish"), seed + 1, |progress| POLISH_RATE * (1.0 - progress), 0)
    }

    fn run(
        &self,
        (train, test): (&Split, &Split),
        (epochs, phase): (u32, &str),
        seed: u64,
        rate: impl Fn(f64) -> f64,
        shift: i64,
    ) -> Result<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut optimizer = nn::adamw(0.9, 0.999, WEIGHT_DECAY).build(&self.vars, LEARNING_RATE)?;
        let steps_per_epoch = train.len() as usize / BATCH;
        let total = epochs as usize * steps_per_epoch;
        let mut order: Vec<i64> = (0..train.len()).collect();
        let mut step = 0;
        for epoch in 1..=epochs {
            order.shuffle(&mut rng);
            let mut sum = 0.0;
            for chunk in order.chunks_exact(BATCH) {
                optimizer.set_lr(rate(step as f64 / total as f64));
                let (images, labels) = train.batch(&Tensor::from_slice(chunk));
                let images = augment(&images, shift, &mut rng);
                let logits = self.forward(&images, true);
                let loss = logits.cross_entropy_loss::<Tensor>(&labels, None, tch::Reduction::Mean, -100, LABEL_SMOOTHING);
                optimizer.backward_step(&loss);
                sum += loss.double_value(&[]);
                step += 1;
            }
            let accuracy = accuracy(|x| self.forward(x, false), test);
            let loss = sum / steps_per_epoch as f64;
            println!("classifier {phase} epoch {epoch} loss {loss:.4} test accuracy {accuracy:.4}");
        }
        Ok(accuracy(|x| self.forward(x, false), test))
    }
}

/// Share of `split` that `logits` classifies correctly.
pub fn accuracy(logits: impl Fn(&Tensor) -> Tensor, split: &Split) -> f64 {
    let right = |index: &Tensor| {
        let (images, labels) = split.batch(index);
        logits(&images).argmax(-1, false).eq_tensor(&labels).sum(Kind::Int64).int64_value(&[])
    };
    let whole = Tensor::arange(split.len(), INT64_CPU);
    no_grad(|| whole.split(500, 0).iter().map(right).sum::<i64>()) as f64 / split.len() as f64
}

fn one_cycle(progress: f64) -> f64 {
    const WARM_UP: f64 = 0.2;
    if progress < WARM_UP { progress / WARM_UP } else { (1.0 - progress) / (1.0 - WARM_UP) }.max(1e-3)
}

/// Flips half the batch and shifts the whole batch by up to `shift` pixels.
fn augment(images: &Tensor, shift: i64, rng: &mut ChaCha8Rng) -> Tensor {
    use rand::RngExt;
    let n = images.size()[0];
    let half = images.narrow(0, 0, n / 2).flip([3]);
    let images = Tensor::cat(&[half, images.narrow(0, n / 2, n - n / 2)], 0);
    let (dy, dx) = (rng.random_range(-shift..=shift), rng.random_range(-shift..=shift));
    images.roll([dy, dx], [2, 3])
}
