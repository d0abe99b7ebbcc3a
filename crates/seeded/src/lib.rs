//! Weights from a small integer generator, bit for bit those of the golden scripts in `projector/tests/golden/`, for tests and
//! measurements without a checkpoint: AlexNet's convolutions for `lpips_alex.safetensors` (`alexnet` in `make_nn.py`), and the layouts
//! of `make_published.py` (`seeded` there).

pub mod detector;

use std::collections::BTreeMap;

use tch::Tensor;

/// torchvision's names, and shapes.
pub const ALEXNET: [(&str, &[i64]); 10] = [
    ("features.0.weight", &[64, 3, 11, 11]),
    ("features.0.bias", &[64]),
    ("features.3.weight", &[192, 64, 5, 5]),
    ("features.3.bias", &[192]),
    ("features.6.weight", &[384, 192, 3, 3]),
    ("features.6.bias", &[384]),
    ("features.8.weight", &[256, 384, 3, 3]),
    ("features.8.bias", &[256]),
    ("features.10.weight", &[256, 256, 3, 3]),
    ("features.10.bias", &[256]),
];

/// Name, shape and values (row-major) of each tensor.
pub fn alexnet() -> Vec<(&'static str, &'static [i64], Vec<f32>)> {
    let tensors = (0u32..).zip(ALEXNET);
    tensors.map(|(k, (name, shape))| (name, shape, values(k, shape))).collect()
}

/// Uniform in plus and minus the bound: sqrt(6 / fan_in) for weights, 0.1 for biases.
fn values(k: u32, shape: &[i64]) -> Vec<f32> {
    let fan_in: i64 = shape[1..].iter().product();
    let bound = if shape.len() == 1 { 0.1 } else { (6.0 / fan_in as f64).sqrt() as f32 };
    let count: i64 = shape.iter().product();
    (0..count as u32).map(|i| unit(k, i) * bound).collect()
}

/// Names and shapes of a reference's state_dict, in its order.
pub fn layout(network: &str) -> Vec<(String, Vec<i64>)> {
    let layouts = include_str!("layouts.json");
    let mut layouts: BTreeMap<String, Vec<(String, Vec<i64>)>> = serde_json::from_str(layouts).expect("layouts");
    layouts.remove(network).expect("a layout")
}

/// All tensors of a layout. Vectors: 1 + unit / 2 for variances and the factors of normalisations, unit / 10 for all others.
pub fn seeded(network: &str) -> Vec<(String, Tensor)> {
    let tensors = (0u32..).zip(layout(network)).map(|(k, (name, shape))| {
        let values: Vec<f32> = match (shape.len(), name.ends_with("weight") || name.ends_with("var")) {
            (2.., _) => values(k, &shape),
            (_, true) => (0..shape.iter().product::<i64>() as u32).map(|i| 1.0 + unit(k, i) * 0.5).collect(),
            (_, false) => (0..shape.iter().product::<i64>() as u32).map(|i| unit(k, i) * 0.1).collect(),
        };
        (name, Tensor::from_slice(&values).view(&shape[..]))
    });
    tensors.collect()
}

/// Noise in [-1, 1): tensor `k`.
pub fn noise(k: u32, shape: &[i64]) -> Tensor {
    let count: i64 = shape.iter().product();
    Tensor::from_slice(&(0..count as u32).map(|i| unit(k, i)).collect::<Vec<f32>>()).view(shape)
}

/// Element `i` of tensor `k` in [-1, 1), a multiple of 2^-23.
fn unit(k: u32, i: u32) -> f32 {
    let mut x = i.wrapping_mul(0x9E37_79B9) ^ (k + 1).wrapping_mul(0x85EB_CA6B);
    x ^= x >> 16;
    x = x.wrapping_mul(0x7FEB_352D);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846C_A68B);
    x ^= x >> 16;
    ((x >> 8) as i32 - (1 << 23)) as f32 / (1 << 23) as f32
}
