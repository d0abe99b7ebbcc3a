//! The stages of a job, whose times are measured.

use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantArray};

/// A part of a job. Declared in the order in which an image meets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, IntoStaticStr, VariantArray)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Stage {
    /// Reads the image, the mask and the checkpoint, and decodes them.
    Fetch,
    /// Looks for the class or the object in the image.
    Find,
    /// CMA-ES over the transform (Algorithm 1, stage one).
    TransformSearch,
    /// The search over the latents that precedes the descent.
    LatentSearch,
    /// The last descent of all seeds.
    FinalDescent,
    /// Fits the generator's weights to the image (Equation 6).
    FineTune,
    /// Writes the result's objects and its commit marker.
    Publish,
}

impl Stage {
    /// The name in events, metrics, spans and JSON.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The place of a stage's name among all. Names that this version does not know come last.
    pub fn rank(name: &str) -> usize {
        Stage::VARIANTS.iter().position(|stage| stage.as_str() == name).unwrap_or(Stage::VARIANTS.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_json_and_sort_as_the_stages_follow_each_other() {
        for (place, stage) in Stage::VARIANTS.iter().enumerate() {
            assert_eq!(serde_json::to_value(stage).expect("a name"), stage.as_str());
            assert_eq!(Stage::rank(stage.as_str()), place);
        }
        assert_eq!(Stage::rank("a stage of tomorrow"), Stage::VARIANTS.len());
    }
}
