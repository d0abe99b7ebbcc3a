//! Confidence intervals of means: the bootstrap (Efron 1979), with the percentiles of 10,000 resamples. Pure.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

pub const RESAMPLES: usize = 10_000;

/// A mean with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    pub mean: f64,
    /// 2.5 % of the resamples' means are below.
    pub low: f64,
    /// 2.5 % of the resamples' means are above.
    pub high: f64,
}

/// The mean of `values` with its interval; `None` without values. Equally many values are resampled in the same way.
pub fn interval(values: &[f64]) -> Option<Interval> {
    let n = values.len();
    if n == 0 {
        return None;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mean = |sum: f64| sum / n as f64;
    let mut means: Vec<f64> = (0..RESAMPLES).map(|_| mean((0..n).map(|_| values[rng.random_range(0..n)]).sum::<f64>())).collect();
    means.sort_by(f64::total_cmp);
    let tail = RESAMPLES / 40;
    Some(Interval { mean: mean(values.iter().sum::<f64>()), low: means[tail], high: means[RESAMPLES - tail - 1] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_many_values_is_that_of_the_normal_distribution() {
        // Deviation 1 / sqrt(12) of a uniform distribution, 1.96 standard errors.
        let values: Vec<f64> = (0..400).map(|i| (f64::from(i) + 0.5) / 400.0).collect();
        let Interval { mean, low, high } = interval(&values).expect("values");
        let half = 1.96 / (12.0f64 * 400.0).sqrt();
        assert!((mean - 0.5).abs() < 1e-12, "{mean}");
        assert!((low - (0.5 - half)).abs() < 0.002 && (high - (0.5 + half)).abs() < 0.002, "{low} {high}");
    }

    #[test]
    fn one_value_has_no_spread_and_no_values_have_no_mean() {
        assert_eq!(interval(&[2.0]), Some(Interval { mean: 2.0, low: 2.0, high: 2.0 }));
        assert_eq!(interval(&[]), None);
    }
}
