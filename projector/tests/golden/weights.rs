//! The trunk of `lpips_alex.safetensors`: AlexNet's convolutions from a small integer generator, the same as `alexnet` in
//! `make_nn.py`, bit for bit.

/// Names (torchvision's) and shapes.
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
