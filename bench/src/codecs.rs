//! The codecs of weight deltas: bytes, what the image loses, and speed; on the bundled model and in the shapes of BigGAN-deep-256.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use projector::{Delta, Generator, Lanes, Model, ObjectStatistics, Projection, Solution, Target, fine_tune};
use proto::{DeltaCodec, FineTune, LatentSearch, Params};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::random;

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

/// Figures of one codec over generators that were tuned from the same model.
#[derive(Serialize, Deserialize)]
pub struct Codec {
    name: String,
    bytes_per_image: usize,
    /// Bytes of `float32` over its bytes.
    smaller: f64,
    /// Mean and least over the images, dB.
    psnr: f64,
    least_psnr: f64,
    encode_megabytes_per_second: f64,
    decode_megabytes_per_second: f64,
}

pub fn written(delta: &Delta) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    delta.write(DIGEST, &mut bytes)?;
    Ok(bytes)
}

/// Measures all codecs on deltas that were stored without loss.
pub fn measure(model: &Model, tuned: &[Delta]) -> Result<Vec<Codec>> {
    ensure!(!tuned.is_empty(), "fine-tuning kept no generator");
    let megabytes = model.generator.weights().iter().map(|(_, w)| w.numel() * 4).sum::<usize>() as f64 / 1e6;
    let (n, mut whole) = (tuned.len() as f64, None);
    let codecs = CODECS.iter().map(|(name, codec)| {
        let stored = tuned.iter().map(|exact| store(&*model.generator, exact, codec)).collect::<Result<Vec<_>>>()?;
        let sum = |of: fn(&Stored) -> f64| stored.iter().map(of).sum::<f64>();
        let bytes: usize = stored.iter().map(|delta| delta.bytes).sum();
        Ok(Codec {
            name: (*name).into(),
            bytes_per_image: bytes / tuned.len(),
            smaller: *whole.get_or_insert(bytes) as f64 / bytes as f64,
            psnr: sum(|delta| delta.psnr) / n,
            least_psnr: stored.iter().map(|delta| delta.psnr).fold(f64::INFINITY, f64::min),
            encode_megabytes_per_second: megabytes * n / sum(|delta| delta.encode),
            decode_megabytes_per_second: megabytes * n / sum(|delta| delta.decode),
        })
    });
    codecs.collect()
}

struct Stored {
    bytes: usize,
    /// dB.
    psnr: f64,
    /// Seconds to encode and to decode it.
    encode: f64,
    decode: f64,
}

fn store(base: &dyn Generator, exact: &Delta, codec: &DeltaCodec) -> Result<Stored> {
    let generator = base.replicate(Device::Cpu);
    exact.apply(&*generator);
    let changed = generator.weights().into_iter().zip(base.weights());
    let differences: Vec<(String, Tensor)> = changed.map(|((name, new), (_, old))| (name, new - old)).collect();
    let row = |values: &[f32]| Tensor::from_slice(values).unsqueeze(0);
    let (z, c) = (row(&exact.z), row(&exact.c));
    let image = tch::no_grad(|| generator.generate(&z, &c));
    let begun = Instant::now();
    let mut packed = fine_tune::pack(base, &differences, (&z, &c), &image, codec);
    (packed.delta.z, packed.delta.c) = (exact.z.clone(), exact.c.clone());
    let bytes = written(&packed.delta)?;
    let encode = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    Delta::read(bytes.as_slice(), DIGEST, base)?.apply(&*base.replicate(Device::Cpu));
    Ok(Stored { bytes: bytes.len(), psnr: packed.psnr, encode, decode: begun.elapsed().as_secs_f64() })
}

/// The same for a generator in the shapes of BigGAN-deep-256, with random weights, tuned to another image of its own.
pub fn measure_biggan_256() -> Result<Vec<Codec>> {
    tch::manual_seed(1);
    let model = random::model(256)?;
    let model = Model { lpips: random::small_lpips()?, ..model };
    let z = Tensor::randn([1, 128], (Kind::Float, Device::Cpu)).fmod(2.0);
    let image = tch::no_grad(|| model.generator.generate(&z, &model.generator.embed(1).unsqueeze(0)));
    let target = Target { image: image.squeeze_dim(0), bbox: None, mask: None, class: 2, likely: vec![], seed: 0 };
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
    let tuned = solution.fine_tuned.context("the parameters have fine-tuning")??;
    measure(&model, &[tuned.delta])
}
