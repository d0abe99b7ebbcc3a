//! Weights from a small integer generator, bit for bit those of the golden scripts in `projector/tests/golden/`, for tests and
//! measurements without a checkpoint: the layouts of `make_published.py` (`seeded` there), which are those of published networks, and
//! AlexNet's convolutions for `lpips_alex.safetensors` (`alexnet` in `make_nn.py`).

pub mod detector;

use std::collections::BTreeMap;

use tch::Tensor;

/// Names and shapes of a reference's state_dict, in its order.
pub fn layout(network: &str) -> Vec<(String, Vec<i64>)> {
    let layouts = include_str!("layouts.json");
    let mut layouts: BTreeMap<String, Vec<(String, Vec<i64>)>> = serde_json::from_str(layouts).expect("layouts");
    layouts.remove(network).expect("a layout")
}

/// All tensors of a layout. Kernels and matrices: within sqrt(6 / fan_in). Vectors: 1 + unit / 2 for variances and the factors of
/// normalisations, unit / 10 for all others.
pub fn seeded(network: &str) -> Vec<(String, Tensor)> {
    let tensors = (0u32..).zip(layout(network)).map(|(k, (name, shape))| {
        let fan_in: i64 = shape.iter().skip(1).product();
        let bound = (6.0 / fan_in as f64).sqrt() as f32;
        let value = |unit: f32| match (shape.len(), name.ends_with("weight") || name.ends_with("var")) {
            (2.., _) => unit * bound,
            (_, true) => 1.0 + unit * 0.5,
            (_, false) => unit * 0.1,
        };
        let tensor = tensor(&shape, |i| value(unit(k, i)));
        (name, tensor)
    });
    tensors.collect()
}

/// Noise in [-1, 1): tensor `k`.
pub fn noise(k: u32, shape: &[i64]) -> Tensor {
    tensor(shape, |i| unit(k, i))
}

/// The tensor whose element `i` (row-major) is `value(i)`.
fn tensor(shape: &[i64], value: impl Fn(u32) -> f32) -> Tensor {
    let count = shape.iter().product::<i64>() as u32;
    Tensor::from_slice(&(0..count).map(value).collect::<Vec<f32>>()).view(shape)
}

/// Element `i` of tensor `k` in [-1, 1).
fn unit(k: u32, i: u32) -> f32 {
    element((k + 1).wrapping_mul(0x85EB_CA6B), i)
}

/// Element `i` in [-1, 1), a multiple of 2^-23.
fn element(seed: u32, i: u32) -> f32 {
    let mut x = i.wrapping_mul(0x9E37_79B9) ^ seed;
    x ^= x >> 16;
    x = x.wrapping_mul(0x7FEB_352D);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846C_A68B);
    x ^= x >> 16;
    ((x >> 8) as i32 - (1 << 23)) as f32 / (1 << 23) as f32
}
