//! The parameters of the method. Defaults exist here and nowhere else. The doc comments are the reference
//! (`docs/src/reference/parameters.md`, written by `basin reference`).
//!
//! The paper is Huh et al. 2020; "legacy" and "master" are the branches of the authors' code, minyoungg/pix2latent.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::DecodeError;
use validate::problem;

mod profiles;
mod validate;

/// What to compute for an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Name of the profile, for people. It changes no number.
    pub profile: String,
    /// The loss that the search minimises.
    pub loss: Loss,
    /// The search for the transform; `null` keeps the image as it is.
    pub transform: Option<TransformSearch>,
    /// The search for z and c.
    pub latent: LatentSearch,
    /// Starts of the latent search, and candidates of a generation of its CMA-ES. 1 to 4096; with CMA-ES at least 3.
    pub seeds: u32,
    /// The gradient steps on z and c.
    pub descent: Descent,
    /// The object in an image, and its class. Missing: class and box of the annotation.
    #[serde(default, skip_serializing_if = "is_default")]
    pub object: Object,
    /// Where the search for z starts (`--start-from`). Missing: `random`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub start: LatentStart,
    /// Where the search for c starts. Missing: `class`. `random_class` and `gaussian` are for the paper's Table 2, without a transform
    /// search and with a random start of z.
    #[serde(default, skip_serializing_if = "is_default")]
    pub class_start: ClassStart,
    /// How generator and perceptual network round during the search (`--precision`). Missing: `fp32`. z, c, norms, losses, Adam,
    /// the end of the final descent and all reported numbers are float32 always.
    #[serde(default, skip_serializing_if = "is_default")]
    pub precision: Precision,
    /// Fits the generator to the image after the search (Equation 6). Missing in every profile; `--fine-tune` sets the values
    /// below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fine_tune: Option<FineTune>,
}

/// How the networks round during the search. z, c, norms, losses and Adam are float32 always, as are the end of the final descent
/// and all reported numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// float32.
    #[default]
    Fp32,
    /// float32 in memory; on GPUs that support it the factors of products and convolutions are rounded to ten bits. The same as
    /// `fp32` on a CPU.
    Tf32,
    /// Weights and activations of generator and perceptual network in bfloat16.
    Bf16,
}

/// The object in an image, and its class (paper, Section 3.4).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Object {
    /// Where the class comes from (`--class-from`).
    pub class: ClassSource,
    /// Where the mask comes from (`--mask-from`).
    pub mask: MaskSource,
}

/// Where the class comes from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "from", rename_all = "snake_case", deny_unknown_fields)]
pub enum ClassSource {
    /// The data set names a class of the model.
    #[default]
    Annotation,
    /// The data set names a category, such as COCO's `dog`, and the model's classifier chooses among the classes of that
    /// category.
    Category,
    /// The model's classifier decides, and the data set's classes are ignored.
    Classifier,
    /// One class for all images.
    Fixed {
        /// Name of the class in the model.
        name: String,
    },
}

/// Where the mask comes from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "from", rename_all = "snake_case", deny_unknown_fields)]
pub enum MaskSource {
    /// The data set's box; the whole image if it has none.
    #[default]
    Box,
    /// The data set's outline: COCO's polygons or run lengths. The box if it has none.
    Outline,
    /// The box of the model's detector (`crates/engine/src/find.rs` says which of several).
    DetectorBox,
    /// The mask of the model's detector.
    DetectorMask,
    /// A grey image of the data set; pixels of at least half brightness are inside.
    File {
        /// Key of the mask, with `{path}` for the image's key without extension, or `{stem}` for the last part of that.
        pattern: String,
    },
    /// The whole image.
    Whole,
}

impl ClassSource {
    /// Whether a worker finds the class in the image.
    pub fn is_predicted(&self) -> bool {
        matches!(self, ClassSource::Category | ClassSource::Classifier)
    }
}

impl MaskSource {
    /// Whether a worker finds the object in the image.
    pub fn is_detected(&self) -> bool {
        matches!(self, MaskSource::DetectorBox | MaskSource::DetectorMask)
    }
}

/// Where the search for z starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "from", rename_all = "snake_case", deny_unknown_fields)]
pub enum LatentStart {
    /// Random draws around 0.
    #[default]
    Random,
    /// Draws around the z that the model's encoder predicts from the (transformed) image and the class (Table 1; branch
    /// `legacy`).
    Encoder {
        /// Standard deviation of z, also of CMA-ES' first generation. 0 to 10 (legacy: 0.5).
        sigma: f64,
    },
}

impl LatentStart {
    /// Around the encoder's guess, as branch `legacy` has it.
    pub const ENCODER: LatentStart = LatentStart::Encoder { sigma: 0.5 };
}

/// Where the search for c starts (Table 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClassStart {
    /// The embedding of the image's class, the same for all seeds.
    #[default]
    Class,
    /// The embedding of a random class that is not the image's, drawn for each seed.
    RandomClass,
    /// A draw from N(0, I) for each seed.
    Gaussian,
    /// The embeddings of the classes that the classifier finds most likely: each class has a share of the seeds in proportion to its
    /// probability, and the result says whose seed won. Where the class is known, as `class`. Ours.
    Likely,
}

/// Equation 4: masked L1 plus beta times masked LPIPS.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Loss {
    /// Weight of LPIPS beside L1. 0 to 1e6.
    pub beta: f64,
    /// L1 over the colour channels.
    pub l1: L1Scale,
    /// How the mask weighs LPIPS.
    pub mask: MaskMode,
    /// Weight of pixels outside the object, as far as both frames reach; inside it is 1. 0 to 1.
    pub background: f64,
    /// What the perceptual network sees where one of the two frames does not reach. Missing: `grey`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub surround: Surround,
}

/// What the perceptual network sees where one of the two frames does not reach. Such pixels have no weight of their own, but the
/// network looks at the surroundings of every pixel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Surround {
    /// Middle grey (the authors' code). The step between grey and image counts as an error, which biases the scale.
    #[default]
    Grey,
    /// The target: its own pixels around the object in the inverted image, and its border repeated in the transformed target.
    /// Ours.
    Target,
}

/// L1 over the colour channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum L1Scale {
    /// Sum over channels, mean over pixels (paper, legacy).
    ChannelSum,
    /// Mean over channels and pixels, a third of `channel_sum` (master).
    ChannelMean,
}

/// Masked LPIPS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MaskMode {
    /// Distance maps are up-sampled to the image and weighted there (the authors' code).
    UpsampleFeatures,
    /// The mask is down-sampled to each feature map (paper, Section 3.2).
    DownsampleMask,
}

/// The search for the transform (stage one, Algorithm 1, lines 1-12): CMA-ES over the transform, with a short descent for each
/// candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TransformSearch {
    /// Spatial part of the transform.
    pub spatial: SpatialTransform,
    /// Turns the object, too: the standard deviation of the seeds' first angles in degrees. 0 to 180. It needs 0 generations. Missing:
    /// no rotation. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<f64>,
    /// Sees the object at an angle, too. It needs 0 generations. Missing: false. Ours.
    #[serde(default, skip_serializing_if = "is_default")]
    pub perspective: bool,
    /// Where the object's box touches the border of the image, the object may go on beyond it: with 0 generations the seeds' first scales
    /// are drawn between the initial one and this multiple of it. 1 to 100. Missing: 1. Ours.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub truncated: f64,
    /// Colour part: a list of `brightness`, `contrast`, `saturation`, `hue` and `gamma`, each at most once. They are applied
    /// after the spatial part, in this order.
    pub colour: Vec<ColourTransform>,
    /// Where the spatial part starts.
    pub initial: InitialTransform,
    /// Whether -1 and 1 are the centres of the corner pixels, or their outer edges (torch's `align_corners`).
    pub align_corners: bool,
    /// Generations of CMA-ES (n). 0 to 100,000; 0: each seed starts at a transform of its own, drawn with deviation `sigma` around
    /// the initial one, and `descent.lr_transform` moves it. With 0 an image without a box gets no transform.
    pub generations: u32,
    /// Gradient steps on z and c in each generation, for each candidate (m). 1 to 100,000.
    pub steps: u32,
    /// Standard deviation of the first generation, of the scale and of shifts in half widths. A colour factor has three times as
    /// much, hue as much in turns. 1e-6 to 10.
    pub sigma: f64,
    /// Candidates of a generation, at least 3; `null`: CMA-ES' own rule, 4 + 3 ln(number of parameters), rounded down. That is 8
    /// for `paper` and `fast`, 7 for `pix2latent`.
    pub population: Option<u32>,
    /// Where z starts in each generation.
    pub start: TransformStart,
    /// The loss that CMA-ES is told for a candidate.
    pub fitness: Fitness,
    /// The transform that the search returns.
    pub choice: TransformChoice,
}

/// Spatial degrees of freedom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SpatialTransform {
    /// No spatial part.
    None,
    /// One scale, two shifts (the authors' code).
    Isotropic,
    /// Two scales, two shifts (paper, Section 3.3).
    Anisotropic,
}

/// Global colour transforms (paper, Section 3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ColourTransform {
    /// Multiplies every value.
    Brightness,
    /// Scales the distance to the mean grey.
    Contrast,
    /// Scales the distance to the pixel's grey.
    Saturation,
    /// Turns the hue.
    Hue,
    /// Power of every value.
    Gamma,
}

/// The transform before the search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InitialTransform {
    /// The authors' formula, exact at scale one only.
    Authors,
    /// Moves the box exactly onto the generator's usual box.
    Exact,
    /// The identity.
    Identity,
}

/// Where z starts in each generation of the transform search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TransformStart {
    /// Fresh draws (paper).
    Fresh,
    /// Mean of the refined samples, clamped to [-1, 1], plus noise of deviation 0.5 (legacy).
    Mean,
    /// Moving average towards the best sample with falling noise, standardised (master).
    Best,
}

/// What CMA-ES is told for a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fitness {
    /// The smallest inverted loss over the steps (legacy).
    Minimum,
    /// The inverted loss after the last step (paper, master).
    Last,
}

/// The transform that the transform search returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TransformChoice {
    /// The mean of the distribution (paper, legacy).
    Mean,
    /// The best candidate seen (master).
    Best,
}

/// The search for z and c (stage two). It has the fields of its method and no others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "method", rename_all = "snake_case", deny_unknown_fields)]
pub enum LatentSearch {
    /// No search: the projection is the start, such as the z of the encoder.
    Start,
    /// Adam from random starts.
    Adam {
        /// Gradient steps. 1 to 1,000,000.
        steps: u32,
    },
    /// L-BFGS from random starts. It sees the class vector scaled by the root of `lr_c / lr_z`, so that the rates count as they
    /// do for Adam.
    Lbfgs {
        /// Evaluations of loss and gradient. 1 to 1,000,000.
        evaluations: u32,
    },
    /// CMA-ES without gradients. The projection is its last generation, and c stays that of the class.
    Cma {
        /// Generations. 1 to 1,000,000.
        generations: u32,
    },
    /// CMA-ES without gradients, then Adam from fresh samples of it.
    CmaAdam {
        /// Generations. 1 to 1,000,000.
        generations: u32,
        /// Gradient steps. 1 to 1,000,000.
        steps: u32,
    },
    /// CMA-ES over the starts of short descents, then a long descent: the paper's method (Algorithm 1, lines 13-23).
    BasinCma {
        /// Generations of CMA-ES (p). 1 to 100,000.
        generations: u32,
        /// Gradient steps of each generation (q). 1 to 100,000.
        steps: u32,
        /// Gradient steps of the final descent. 1 to 1,000,000; with `halving` at least 3.
        final_steps: u32,
        /// The points that CMA-ES is told.
        told: Told,
        /// Standard deviation of z in the first generation. 1e-6 to 100.
        sigma: f64,
        /// How the final descent starts and continues. Missing: `fresh`.
        #[serde(default, skip_serializing_if = "is_default")]
        last: LastDescent,
    },
    /// Adam from random starts; after each part the better half of the seeds goes on (successive halving). The result has only the
    /// survivors. Ours.
    Halving {
        /// Gradient steps of each part. 1 to 32 parts of 1 to 1,000,000.
        steps: Vec<u32>,
        /// When the last part ends early. Missing: never.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        converged: Option<Converged>,
    },
}

/// A descent has converged when its last steps lowered the smallest loss by less than a share of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Converged {
    /// The share. 0 to 1.
    pub improvement: f64,
    /// The steps. 1 to 1,000,000.
    pub steps: u32,
}

impl LatentSearch {
    /// The paper's method: CMA-ES starts with deviation 1 and is told the refined points, and the final descent starts afresh.
    pub const fn basin_cma(generations: u32, steps: u32, final_steps: u32) -> LatentSearch {
        let (told, last) = (Told::Refined, LastDescent::Fresh);
        LatentSearch::BasinCma { generations, steps, final_steps, told, sigma: 1.0, last }
    }
}

/// The final descent of BasinCMA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LastDescent {
    /// From fresh samples of CMA-ES (paper, the authors' code).
    #[default]
    Fresh,
    /// From the best refined points of all generations, with the class vectors that were refined with them. Ours.
    Refined,
    /// From fresh samples; the better half continues after a third of the lane-steps, and again the better half of these. The
    /// lane-steps are the same in all, and the result has only the survivors. Ours.
    Halving,
}

/// Points told to CMA-ES by BasinCMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// The refined points, after the descent (paper, legacy).
    Refined,
    /// The sampled points, before the descent (master).
    Sampled,
}

/// Adam on z and c.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Descent {
    /// Learning rate of z. 0 to 10.
    pub lr_z: f64,
    /// Learning rate of the class vector c. 0 to 10.
    pub lr_c: f64,
    /// Where the transform moves, the rate of c grows from 0 to `lr_c` in proportion to the steps done, so that z and the transform settle
    /// within the class before c leaves it. Missing: false. Ours.
    #[serde(default, skip_serializing_if = "is_default")]
    pub late_c: bool,
    /// z is clamped to [-limit, limit] (Equation 2). 1e-3 to 1e3.
    pub limit: f64,
    /// Where the loss compares generator and target. Missing: `generator`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub frame: Frame,
    /// Learning rate of the transform, as the vector of the search; needs the frame `target`. 0 to 1. Missing: 0.
    #[serde(default, skip_serializing_if = "is_default")]
    pub lr_transform: f64,
    /// The learning rates fall along a half cosine to this share of themselves at the end of a descent. 0 to 1. Missing: 1, which
    /// keeps them as they are.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub lr_end: f64,
}

/// The frame in which a descent compares generator and target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Frame {
    /// The generator's: G(z, c) against the transformed target (Equation 4).
    #[default]
    Generator,
    /// The target's: the inverted image against the target, inside the object. Nothing is gained by zooming into something flat,
    /// because the target stays as it is; so the transform has a gradient, too. Ours.
    Target,
}

fn one() -> f64 {
    1.0
}

fn is_one(value: &f64) -> bool {
    *value == 1.0
}

/// Equation 6: fits the generator's weights to the image, and a regulariser keeps them near the model's.
///
/// The authors' code has no fine-tuning: what the paper leaves open follows PTI (Roich et al. 2021) and the readings of Section 3.5.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FineTune {
    /// Maximum of Adam's steps. 1 to 1,000,000.
    pub steps: u32,
    /// Learning rate of the weights. 1e-9 to 1.
    pub lr: f64,
    /// Learning rate of z and c. 0 to 1; 0 keeps what the search found.
    pub lr_latents: f64,
    /// Learning rate of the transform, as the vector of the search. 0 to 1; 0 keeps what the search found.
    pub lr_transform: f64,
    /// Weight of the regulariser. 0 to 1e9 (paper: 1e3).
    pub lambda: f64,
    /// The regulariser, which keeps the weights near those of the model; d is their change.
    pub regulariser: Regulariser,
    /// Fine-tuning ends as soon as the target's LPIPS, weighted as in the loss, is not larger. 0 to 1000; 0: never.
    pub lpips_goal: f64,
    /// How the weight delta is stored.
    pub delta: DeltaCodec,
}

/// Readings of the regulariser of Equation 6, for d = theta - theta_0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Regulariser {
    /// Sum over the weight tensors of the mean of d^2 (a function of branch `master` that nothing calls).
    MeanSquares,
    /// ||d||, as printed in the paper.
    Norm,
    /// ||d||^2.
    SquaredNorm,
}

/// How a change of weights is stored.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "codec", rename_all = "snake_case", deny_unknown_fields)]
pub enum DeltaCodec {
    /// The tensor itself.
    Float32,
    /// The tensor in bfloat16.
    Bfloat16,
    /// Eight bits, a scale for each output channel.
    Int8,
    /// Four bits, a scale for each output channel.
    Int4,
    /// Two factors of each weight matrix, bfloat16.
    LowRank {
        /// Columns of the factors. 1 to 4096.
        rank: u32,
    },
    /// For each layer the fewest levels that keep the image.
    Auto {
        /// Least signal-to-noise ratio, in dB, between the image of the stored delta and that of the change itself. 10 to 100.
        psnr: f64,
    },
}

impl Params {
    /// As [`TransformSearch::align_corners`]; false without a transform.
    pub fn align_corners(&self) -> bool {
        self.transform.as_ref().is_some_and(|t| t.align_corners)
    }

    /// Reads and validates JSON.
    pub fn from_json(json: &str) -> Result<Params, DecodeError> {
        let params: Params = serde_json::from_str(json).map_err(|e| problem("json", e.to_string()))?;
        params.validate()?;
        Ok(params)
    }

    /// The one JSON form: fields in the order of declaration. Digests are taken over it.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("plain structs with string keys serialise")
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_is_valid_and_survives_json() {
        for name in Params::PROFILES {
            let params = Params::profile(name).expect("listed");
            assert_eq!(Params::from_json(&params.to_json()).expect("valid"), params);
            assert_eq!(params.profile, name);
        }
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let json = Params::paper().to_json().replacen("\"seeds\"", "\"sedes\"", 1);
        assert!(Params::from_json(&json).unwrap_err().to_string().contains("sedes"));
    }

    #[test]
    fn what_is_left_at_its_default_is_not_written_so_that_digests_stay() {
        let json = Params::paper().to_json();
        assert!(!json.contains("class_start") && !json.contains("last") && !json.contains("precision"), "{json}");
        let last = LastDescent::Halving;
        let latent = LatentSearch::BasinCma { generations: 1, steps: 1, final_steps: 3, told: Told::Refined, sigma: 1.0, last };
        let ours = Params { latent, transform: None, class_start: ClassStart::Gaussian, ..Params::paper() };
        assert_eq!(Params::from_json(&ours.to_json()).expect("valid"), ours);
        let start = Params { latent: LatentSearch::Start, ..Params::paper() };
        assert_eq!(Params::from_json(&start.to_json()).expect("valid"), start);
    }

    #[test]
    fn values_that_make_no_sense_are_refused() {
        let params = Params { seeds: 0, ..Params::paper() };
        assert_eq!(params.validate().unwrap_err().to_string(), "params: seeds is 0, not in 1 to 4096");
        let mut params = Params::paper();
        params.descent.lr_z = f64::NAN;
        assert!(params.validate().is_err());
        let params = Params { class_start: ClassStart::Gaussian, ..Params::paper() };
        assert!(params.validate().unwrap_err().to_string().contains("class_start"));
    }
}
