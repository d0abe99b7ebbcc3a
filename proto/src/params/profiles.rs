//! The named profiles, and what `--fine-tune` does where nothing else is said.

use super::*;

impl Default for FineTune {
    fn default() -> FineTune {
        FineTune {
            steps: 300,
            lr: 1e-4,
            lr_latents: 0.0,
            lr_transform: 0.0,
            lambda: 1e3,
            regulariser: Regulariser::MeanSquares,
            lpips_goal: 0.0,
            delta: DeltaCodec::Auto { psnr: 45.0 },
        }
    }
}

impl Params {
    /// Name of the profile, and whether something was changed since: `fast` or `fast (changed)`.
    pub fn described(&self) -> String {
        let changed = Params::profile(&self.profile).is_some_and(|named| named != *self);
        format!("{}{}", self.profile, if changed { " (changed)" } else { "" })
    }

    /// The paper's method in the semantics of the authors' first code (branch `legacy`).
    pub fn paper() -> Params {
        Params {
            profile: "paper".into(),
            loss: Loss {
                beta: 10.0,
                l1: L1Scale::ChannelSum,
                mask: MaskMode::UpsampleFeatures,
                background: 0.3,
                surround: Surround::Grey,
            },
            transform: Some(TransformSearch {
                spatial: SpatialTransform::Isotropic,
                rotation: None,
                perspective: false,
                truncated: 1.0,
                colour: vec![ColourTransform::Brightness],
                initial: InitialTransform::Authors,
                align_corners: true,
                generations: 30,
                steps: 30,
                sigma: 0.05,
                population: None,
                start: TransformStart::Mean,
                fitness: Fitness::Minimum,
                choice: TransformChoice::Mean,
            }),
            latent: LatentSearch::basin_cma(30, 30, 300),
            seeds: 18,
            descent: Descent {
                lr_z: 0.05,
                lr_c: 1e-4,
                late_c: false,
                limit: 2.0,
                frame: Frame::Generator,
                lr_transform: 0.0,
                lr_end: 1.0,
            },
            object: Object::default(),
            start: LatentStart::Random,
            class_start: ClassStart::Class,
            precision: Precision::Fp32,
            fine_tune: None,
        }
    }

    /// The authors' second code (branch `master`): another method under the same name.
    pub fn pix2latent() -> Params {
        let paper = Params::paper();
        let (told, last) = (Told::Sampled, LastDescent::Fresh);
        Params {
            profile: "pix2latent".into(),
            loss: Loss { l1: L1Scale::ChannelMean, ..paper.loss },
            transform: paper.transform.map(|search| TransformSearch {
                colour: vec![],
                align_corners: false,
                generations: 50,
                steps: 10,
                sigma: 0.1,
                start: TransformStart::Best,
                fitness: Fitness::Last,
                choice: TransformChoice::Best,
                ..search
            }),
            latent: LatentSearch::BasinCma { generations: 30, steps: 30, final_steps: 300, told, sigma: 1.0, last },
            descent: Descent { lr_c: 0.01, ..paper.descent },
            ..paper
        }
    }

    /// Halving in the target's frame with a quarter of the paper's lane-steps. The default.
    pub fn balanced() -> Params {
        Params::halving("balanced", 36, &[35, 60, 100, 150, 300, 500, 1000])
    }

    /// The same with as many lane-steps as the paper's method.
    pub fn best() -> Params {
        Params::halving("best", 96, &[60, 100, 160, 250, 400, 600, 900, 1200])
    }

    /// The same with a tenth of them, for a first look.
    pub fn fast() -> Params {
        Params::halving("fast", 18, &[25, 40, 70, 130, 300, 400])
    }

    /// Each seed starts with a transform of its own, and moves z, c and its transform together, by the loss of the inverted image. After
    /// each part of `steps` the better half of the seeds goes on. `make bench-quality` says what each ingredient is worth.
    fn halving(profile: &str, seeds: u32, steps: &[u32]) -> Params {
        let paper = Params::paper();
        Params {
            profile: profile.into(),
            loss: Loss { background: 0.1, surround: Surround::Target, ..paper.loss },
            transform: paper.transform.map(|t| TransformSearch {
                initial: InitialTransform::Exact,
                generations: 0,
                steps: 1,
                sigma: 0.1,
                truncated: 2.0,
                ..t
            }),
            latent: LatentSearch::Halving {
                steps: steps.to_vec(),
                converged: Some(Converged { improvement: 0.002, steps: 100 }),
            },
            seeds,
            class_start: ClassStart::Likely,
            descent: Descent {
                lr_z: 0.2,
                lr_c: 0.01,
                late_c: true,
                frame: Frame::Target,
                lr_transform: 0.02,
                lr_end: 0.05,
                ..paper.descent
            },
            ..paper
        }
    }

    /// The profile of this name.
    pub fn profile(name: &str) -> Option<Params> {
        match name {
            "balanced" => Some(Params::balanced()),
            "best" => Some(Params::best()),
            "fast" => Some(Params::fast()),
            "paper" => Some(Params::paper()),
            "pix2latent" => Some(Params::pix2latent()),
            _ => None,
        }
    }

    /// The profile of a run that names none.
    pub const DEFAULT_PROFILE: &str = "balanced";

    /// Names that `profile` knows.
    pub const PROFILES: [&str; 5] = ["balanced", "best", "fast", "paper", "pix2latent"];
}
