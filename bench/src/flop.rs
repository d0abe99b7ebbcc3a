//! Floating-point operations that follow from the shapes, two for a multiplication with its addition, without biases and norms; and the most
//! that a machine does each second.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use engine::LoadedModel;
use projector::nn::biggan_deep::Config;
use projector::nn::lpips::{self, Layer};
use proto::Precision;
use tch::{Device, Kind, Tensor};

/// FLOP of one image forward through the folded generator (three output channels).
pub fn generator(config: &Config) -> f64 {
    let ch = config.channel_width;
    let cond = config.z_dim + config.class_embed_dim;
    let (mut size, mut channels, mut products) = (4i64, 0, 16 * 16 * ch * cond);
    for (i, &(up, input, output)) in config.layers.iter().enumerate() {
        let (input, output) = (ch * input, ch * output);
        if i == config.attention_layer_position {
            let (pixels, keys) = (size * size, size * size / 4);
            products += pixels * input * (input / 8 * 2 + input / 2 * 2) + pixels * keys * (input / 8 + input / 2);
        }
        let mid = input / 4;
        channels += input + 3 * mid;
        products += size * size * input * mid;
        size *= if up { 2 } else { 1 };
        products += size * size * (2 * 9 * mid * mid + mid * output);
    }
    products += 2 * channels * cond + size * size * 9 * ch * 3;
    2.0 * products as f64
}

/// FLOP of one square image of `size` pixels forward through the perceptual network.
pub fn perceptual(config: &lpips::Config, mut size: i64) -> f64 {
    let (mut input, mut products) = (3, 0);
    for layer in &config.layers {
        match *layer {
            Layer::Conv { channels, kernel, stride, padding, .. } | Layer::BareConv { channels, kernel, stride, padding, .. } => {
                size = (size + 2 * padding - kernel) / stride + 1;
                products += size * size * channels * input * kernel * kernel;
                input = channels;
            }
            Layer::MaxPool { kernel, stride, ceil } => size = (size - kernel + if ceil { stride - 1 } else { 0 }) / stride + 1,
            Layer::Relu { .. } => {}
            Layer::Blur { kernel, stride, padding, .. } => {
                size = (size + 2 * padding - kernel) / stride + 1;
                products += size * size * input * kernel * kernel;
            }
            Layer::Fire { squeeze, channels, .. } => {
                products += size * size * squeeze * (input + channels / 2 * 10);
                input = channels;
            }
        }
    }
    2.0 * products as f64
}

/// FLOP of a lane-step: both forward, and backward to z and c with frozen weights.
pub fn lane_step(generator: f64, perceptual: f64) -> f64 {
    2.0 * (generator + perceptual)
}

/// FLOP of a lane-step of the model in `folder`.
pub fn of_model(model: &LoadedModel, folder: &Path) -> Result<f64> {
    let read = |name: &str| std::fs::read(folder.join(name)).with_context(|| format!("cannot read {name}"));
    let config: Config = serde_json::from_slice(&read(&model.manifest.generator.config)?)?;
    let lpips: lpips::Config = serde_json::from_slice(&read(&model.manifest.perceptual.config)?)?;
    Ok(lane_step(generator(&config), perceptual(&lpips, config.output_dim)))
}

/// FLOP/s of a product of large matrices in this precision, on all devices at the same time.
pub fn matrix_rate(devices: &[Device], precision: Precision) -> Result<f64> {
    kernels::allow_tf32(precision == Precision::Tf32);
    let kind = if precision == Precision::Bf16 { Kind::BFloat16 } else { Kind::Float };
    let rate = |device: Device| {
        let (size, turns) = if matches!(device, Device::Cuda(_)) { (8192i64, 20) } else { (2048, 8) };
        tch::set_num_threads(1);
        let a = Tensor::randn([size, size], (Kind::Float, device)).to_kind(kind);
        // Reading a number waits for the device.
        let wait = |t: &Tensor| t.narrow(0, 0, 1).narrow(1, 0, 1).to_kind(Kind::Float).double_value(&[0, 0]);
        wait(&a.matmul(&a));
        let began = Instant::now();
        let mut product = a.matmul(&a);
        for _ in 1..turns {
            product = a.matmul(&a);
        }
        wait(&product);
        f64::from(turns) * 2.0 * (size as f64).powi(3) / began.elapsed().as_secs_f64()
    };
    let rates = std::thread::scope(|scope| {
        let threads: Vec<_> = devices.iter().map(|&device| scope.spawn(move || rate(device))).collect();
        threads.into_iter().map(|thread| thread.join().ok()).collect::<Option<Vec<f64>>>()
    });
    Ok(rates.context("a device failed")?.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_those_of_the_published_shapes() {
        // Counted by another program, layer by layer.
        let close = |flop: f64, giga: f64| assert!((flop / 1e9 / giga - 1.0).abs() < 0.01, "{flop} instead of {giga} GFLOP");
        close(generator(&crate::random::biggan_deep(256)), 58.8);
        close(generator(&crate::random::biggan_deep(128)), 17.9);
        let named = |name| lpips::Config::named(name).expect("published");
        close(perceptual(&named("alex"), 256), 1.74);
        close(perceptual(&named("vgg16"), 256), 40.1);
    }
}
