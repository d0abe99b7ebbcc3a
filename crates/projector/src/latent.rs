//! Functions of latent vectors.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

/// The authors' random start: normal draws, `fmod` 2. (Not clamped, not drawn again: the tails are folded towards 0.)
pub fn truncated(dim: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    (0..dim).map(|_| rng.sample::<f32, _>(StandardNormal) % 2.0).collect()
}

/// Shifts and scales a vector to mean 0 and deviation 1.
pub fn standardise(z: &mut [f32]) {
    let n = z.len() as f32;
    let mean = z.iter().sum::<f32>() / n;
    let deviation = (z.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / (n - 1.0).max(1.0)).sqrt().max(1e-6);
    z.iter_mut().for_each(|v| *v = (*v - mean) / deviation);
}

/// Mean of the rows after clamping each value to [-limit, limit]; rows that are not finite are left out.
pub fn mean_clamped(rows: &[Vec<f32>], limit: f32) -> Vec<f32> {
    let finite: Vec<&Vec<f32>> = rows.iter().filter(|r| r.iter().all(|v| v.is_finite())).collect();
    let n = finite.len().max(1) as f32;
    (0..rows[0].len()).map(|d| finite.iter().map(|r| r[d].clamp(-limit, limit)).sum::<f32>() / n).collect()
}

/// The smallest finite value and its index; infinity and 0 if no value is finite.
pub fn least(values: &[f64]) -> (f64, usize) {
    let finite = values.iter().enumerate().filter(|(_, v)| v.is_finite());
    finite.fold((f64::INFINITY, 0), |best, (i, &v)| if v < best.0 { (v, i) } else { best })
}

/// f64 rows as f32 rows.
pub fn to_f32(rows: &[Vec<f64>]) -> Vec<Vec<f32>> {
    rows.iter().map(|r| r.iter().map(|&v| v as f32).collect()).collect()
}

/// f32 rows as f64 rows.
pub fn to_f64(rows: &[Vec<f32>]) -> Vec<Vec<f64>> {
    rows.iter().map(|r| r.iter().map(|&v| f64::from(v)).collect()).collect()
}
