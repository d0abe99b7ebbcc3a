//! The codecs of weight deltas: bytes, what the image loses, and speed; on the bundled model and in the shapes of BigGAN-deep-256.

use std::time::Instant;

use anyhow::{Context, Result};
use projector::nn::Weights;
use projector::nn::biggan_deep::{BigganDeep, Config};
use projector::nn::lpips::{self, Layer, Lpips};
use projector::{Delta, Lanes, Model, ObjectStatistics, Projection, Solution, Target, fine_tune};
use proto::{DeltaCodec, FineTune, LatentSearch, Params};
use tch::{Device, Kind, Tensor};

use crate::networks::biggan_deep;

const CODECS: [(&str, DeltaCodec); 8] = [
    ("`float32`", DeltaCodec::Float32),
    ("`bfloat16`", DeltaCodec::Bfloat16),
    ("`int8`", DeltaCodec::Int8),
    ("`int4`", DeltaCodec::Int4),
    ("`low_rank`, 32", DeltaCodec::LowRank { rank: 32 }),
    ("`low_rank`, 8", DeltaCodec::LowRank { rank: 8 }),
    ("`low_rank`, 2", DeltaCodec::LowRank { rank: 2 }),
    ("`auto`, 45 dB (default)", DeltaCodec::Auto { psnr: 45.0 }),
];
const DIGEST: &str = "benchmark";

/// Steps of fine-tuning in the shapes of BigGAN-deep-256, where each takes seconds on a CPU.
const STEPS: u32 = 20;

/// What a codec does to tuned generators of the same model.
#[derive(Default)]
struct Sums {
    bytes: usize,
    psnr: f64,
    least: f64,
    encode: f64,
    decode: f64,
}

/// The table for generators that were tuned, each stored without loss.
pub fn table(model: &Model, tuned: &[&Delta]) -> Result<String> {
    let base = &*model.generator;
    let theta_0 = base.weights();
    let megabytes = theta_0.iter().map(|(_, w)| w.numel() * 4).sum::<usize>() as f64 / 1e6;
    let mut text = String::from(
        "| codec | bytes an image | of `float32` | PSNR, mean | least | encode, MB/s | decode, MB/s |\n|---|---|---|---|---|---|---|\n",
    );
    let mut whole = 0;
    for (name, codec) in CODECS {
        let mut sums = Sums { least: f64::INFINITY, ..Sums::default() };
        for exact in tuned {
            let generator = base.replicate(Device::Cpu);
            exact.apply(&*generator);
            let changed = generator.weights().into_iter().zip(&theta_0);
            let differences: Vec<(String, Tensor)> = changed.map(|((name, new), (_, old))| (name, new - old)).collect();
            let row = |values: &[f32]| Tensor::from_slice(values).unsqueeze(0);
            let (z, c) = (row(&exact.z), row(&exact.c));
            let image = tch::no_grad(|| generator.generate(&z, &c));
            let begun = Instant::now();
            let mut packed = fine_tune::pack(base, &differences, (&z, &c), &image, &codec);
            (packed.delta.z, packed.delta.c) = (exact.z.clone(), exact.c.clone());
            let mut bytes = Vec::new();
            packed.delta.write(DIGEST, &mut bytes)?;
            sums.encode += begun.elapsed().as_secs_f64();
            let begun = Instant::now();
            Delta::read(bytes.as_slice(), DIGEST, base)?.apply(&*base.replicate(Device::Cpu));
            sums.decode += begun.elapsed().as_secs_f64();
            sums.bytes += bytes.len();
            sums.psnr += packed.psnr;
            sums.least = sums.least.min(packed.psnr);
        }
        let n = tuned.len();
        if whole == 0 {
            whole = sums.bytes;
        }
        text += &format!(
            "| {name} | {} | 1/{:.1} | {:.1} | {:.1} | {:.1} | {:.1} |\n",
            sums.bytes / n,
            whole as f64 / sums.bytes as f64,
            sums.psnr / n as f64,
            sums.least,
            megabytes * n as f64 / sums.encode,
            megabytes * n as f64 / sums.decode,
        );
    }
    Ok(text)
}

/// The same for a generator in the shapes of BigGAN-deep-256, with random weights, tuned to another image of its own.
pub fn biggan_256() -> Result<String> {
    tch::manual_seed(1);
    let config = biggan_deep(256);
    let generator = BigganDeep::load(&config, &mut Weights::new(random_weights(&config)), 1.0).context("random weights")?;
    let model = Model { generator: Box::new(generator), lpips: perceptual()?, encoder: None };
    let z = Tensor::randn([1, 128], (Kind::Float, Device::Cpu)).fmod(2.0);
    let image = tch::no_grad(|| model.generator.generate(&z, &model.generator.embed(1).unsqueeze(0)));
    let target = Target { image: image.squeeze_dim(0), bbox: None, mask: None, class: 2, seed: 0 };
    let tune = FineTune { steps: STEPS, delta: DeltaCodec::Float32, ..FineTune::default() };
    let latent = LatentSearch::Adam { steps: 1 };
    let params = Params { transform: None, latent, seeds: 1, fine_tune: Some(tune), ..Params::paper() };
    let lanes = Lanes::new(&model, &[Device::Cpu]);
    let mut projection = Projection::new(&params, &model, &ObjectStatistics::BIGGAN, vec![target]);
    while !projection.finished() {
        let progress = projection.step(&lanes)?;
        eprintln!("BigGAN-deep-256: {} of {} steps, loss {:.4}", progress.done, progress.total, progress.loss);
    }
    let solution: Solution = projection.finish(&lanes)?.remove(0)?;
    let tuned = solution.fine_tuned.context("it was asked for")??;
    table(&model, &[&tuned.delta])
}

/// Every tensor of a checkpoint, so that no layer grows or fades.
pub fn random_weights(config: &Config) -> Vec<(String, Tensor)> {
    let (ch, cond) = (config.channel_width, config.z_dim + config.class_embed_dim);
    let options = (Kind::Float, Device::Cpu);
    let mut all: Vec<(String, Tensor)> = Vec::new();
    let spectral = |name: &str, shape: &[i64], scale: f64| {
        let columns = shape[1..].iter().product::<i64>();
        let weight = Tensor::randn(shape, options) / (columns as f64).sqrt();
        // u W v = 1: the weight stays as it is.
        let matrix = weight.view([shape[0], columns]);
        let u = Tensor::ones([shape[0]], options);
        let v = matrix.tr().mv(&u);
        let v = &v / (v.square().sum(Kind::Float) * scale);
        vec![(format!("{name}.weight_orig"), weight), (format!("{name}.weight_u"), u), (format!("{name}.weight_v"), v)]
    };
    let zeros = |name: String, n: i64| (name, Tensor::zeros([n], options));
    all.push(("embeddings.weight".into(), Tensor::randn([config.class_embed_dim, config.num_classes], options) * 0.1));
    all.extend(spectral("generator.gen_z", &[256 * ch, cond], 1.0));
    all.push(zeros("generator.gen_z.bias".into(), 256 * ch));
    let statistics = |name: &str, n: i64| {
        let means = Tensor::zeros([config.n_stats, n], options);
        vec![(format!("{name}.running_means"), means.shallow_clone()), (format!("{name}.running_vars"), means + 1.0)]
    };
    let mut index = 0;
    for (i, &(_, input, output)) in config.layers.iter().enumerate() {
        let (input, output) = (input * ch, output * ch);
        if i == config.attention_layer_position {
            let name = format!("generator.layers.{index}");
            for (part, o, n) in [("theta", 8, 1), ("phi", 8, 1), ("g", 2, 1), ("o_conv", 1, 2)] {
                all.extend(spectral(&format!("{name}.snconv1x1_{part}"), &[input / o, input / n, 1, 1], 1.0));
            }
            all.push((format!("{name}.gamma"), Tensor::ones([1], options) * 0.5));
            index += 1;
        }
        let (name, mid) = (format!("generator.layers.{index}"), input / 4);
        for (j, n) in [input, mid, mid, mid].into_iter().enumerate() {
            let bn = format!("{name}.bn_{j}");
            all.extend(spectral(&format!("{bn}.scale"), &[n, cond], 0.1));
            all.extend(spectral(&format!("{bn}.offset"), &[n, cond], 0.1));
            all.extend(statistics(&bn, n));
        }
        for (j, shape) in [[mid, input, 1], [mid, mid, 3], [mid, mid, 3], [output, mid, 1]].into_iter().enumerate() {
            let conv = format!("{name}.conv_{j}");
            all.extend(spectral(&conv, &[shape[0], shape[1], shape[2], shape[2]], 1.0));
            all.push(zeros(format!("{conv}.bias"), shape[0]));
        }
        index += 1;
    }
    all.push(("generator.bn.weight".into(), Tensor::ones([ch], options) * 0.5));
    all.push(zeros("generator.bn.bias".into(), ch));
    all.extend(statistics("generator.bn", ch));
    all.extend(spectral("generator.conv_to_rgb", &[ch, ch, 3, 3], 1.0));
    all.push(zeros("generator.conv_to_rgb.bias".into(), ch));
    all
}

/// A few random filters.
fn perceptual() -> Result<Lpips> {
    let options = (Kind::Float, Device::Cpu);
    let layers = vec![Layer::Conv { index: 0, channels: 16, kernel: 5, stride: 2, padding: 2, tap: true }];
    let tensors = [
        ("features.0.weight", Tensor::randn([16, 3, 5, 5], options) / 75f64.sqrt()),
        ("features.0.bias", Tensor::zeros([16], options)),
        ("lin0.model.1.weight", Tensor::ones([1, 16, 1, 1], options) * 0.1),
    ];
    let mut weights = Weights::new(tensors.map(|(name, tensor)| (name.to_owned(), tensor)));
    Lpips::load(&lpips::Config { shift: [0.0; 3], scale: [1.0; 3], layers }, &mut weights).context("random filters")
}
