//! The loss curves of one image: what the report draws and a person looks at when a projection went wrong.

use serde::{Deserialize, Deserializer, Serialize};

/// `history.json`. A stage that did not run is empty. One seed may diverge where others do not: JSON has no NaN, so what is not
/// finite is written as `null`, and read as NaN. For JSON only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// Best fitness of each generation of the transform search.
    #[serde(deserialize_with = "curve")]
    pub transform: Vec<f64>,
    /// Best inverted loss of each generation of the latent search.
    #[serde(deserialize_with = "curve")]
    pub latent: Vec<f64>,
    /// Training loss at each step of the final descent, one curve per seed, in the order of `ResultRecord::seeds`.
    #[serde(deserialize_with = "curves")]
    pub descent: Vec<Vec<f64>>,
    /// Training loss with the regulariser at each step of fine-tuning.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "curve")]
    pub fine_tune: Vec<f64>,
}

fn curve<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
    Ok(numbers(Vec::deserialize(deserializer)?))
}

fn curves<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<f64>>, D::Error> {
    Ok(Vec::<Vec<_>>::deserialize(deserializer)?.into_iter().map(numbers).collect())
}

fn numbers(values: Vec<Option<f64>>) -> Vec<f64> {
    values.into_iter().map(|v| v.unwrap_or(f64::NAN)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_that_diverged_does_not_spoil_the_file() {
        let history = History {
            transform: vec![],
            latent: vec![0.1 + 0.2],
            descent: vec![vec![1.5, f64::NAN], vec![2.0]],
            fine_tune: vec![],
        };
        let json = serde_json::to_string(&history).expect("plain vectors serialise");
        assert_eq!(json, r#"{"transform":[],"latent":[0.30000000000000004],"descent":[[1.5,null],[2.0]]}"#);
        let read: History = serde_json::from_str(&json).expect("our own file");
        assert_eq!((&read.latent, &read.descent[1]), (&history.latent, &history.descent[1]));
        assert!(read.descent[0][1].is_nan());
    }
}
