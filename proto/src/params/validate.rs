//! Which values the parameters may have.

use std::fmt::Display;

use super::{ClassSource, ClassStart, DeltaCodec, LastDescent, LatentSearch, LatentStart, MaskSource, Params, SpatialTransform};
use crate::DecodeError;

impl Params {
    /// Refuses values that make no sense.
    pub fn validate(&self) -> Result<(), DecodeError> {
        in_range("loss.beta", self.loss.beta, 0.0, 1e6)?;
        in_range("loss.background", self.loss.background, 0.0, 1.0)?;
        in_range("descent.lr_z", self.descent.lr_z, 0.0, 10.0)?;
        in_range("descent.lr_c", self.descent.lr_c, 0.0, 10.0)?;
        in_range("descent.limit", self.descent.limit, 1e-3, 1e3)?;
        in_range("seeds", self.seeds, 1, 4096)?;
        if let LatentStart::Encoder { sigma } = self.start {
            in_range("start.sigma", sigma, 0.0, 10.0)?;
        }
        if matches!(&self.object.class, ClassSource::Fixed { name } if name.is_empty()) {
            return Err(problem("object.class", "names no class".into()));
        }
        if let MaskSource::File { pattern } = &self.object.mask
            && !pattern.contains("{path}")
            && !pattern.contains("{stem}")
        {
            return Err(problem("object.mask", format!("pattern {pattern:?} has neither {{path}} nor {{stem}}")));
        }
        if let Some(t) = &self.transform {
            in_range("transform.sigma", t.sigma, 1e-6, 10.0)?;
            in_range("transform.generations", t.generations, 1, 100_000)?;
            in_range("transform.steps", t.steps, 1, 100_000)?;
            if let Some(population) = t.population {
                in_range("transform.population", population, 3, 4096)?;
            }
            if t.spatial == SpatialTransform::None && t.colour.is_empty() {
                return Err(problem("transform", "has neither a spatial nor a colour part: use null".into()));
            }
            for (i, colour) in t.colour.iter().enumerate() {
                if t.colour[..i].contains(colour) {
                    return Err(problem("transform.colour", format!("has {colour:?} twice")));
                }
            }
        }
        if let Some(tune) = &self.fine_tune {
            in_range("fine_tune.steps", tune.steps, 1, 1_000_000)?;
            in_range("fine_tune.lr", tune.lr, 1e-9, 1.0)?;
            in_range("fine_tune.lr_latents", tune.lr_latents, 0.0, 1.0)?;
            in_range("fine_tune.lr_transform", tune.lr_transform, 0.0, 1.0)?;
            in_range("fine_tune.lambda", tune.lambda, 0.0, 1e9)?;
            in_range("fine_tune.lpips_goal", tune.lpips_goal, 0.0, 1e3)?;
            if tune.lr_transform > 0.0 && self.transform.is_none() {
                return Err(problem("fine_tune.lr_transform", "needs a transform search".into()));
            }
            match tune.delta {
                DeltaCodec::LowRank { rank } => in_range("fine_tune.delta.rank", rank, 1, 4096)?,
                DeltaCodec::Auto { psnr } => in_range("fine_tune.delta.psnr", psnr, 10.0, 100.0)?,
                _ => {}
            }
        }
        // Stage one and the encoder have no seeds, and need a class vector.
        if self.class_start != ClassStart::Class && (self.transform.is_some() || self.start != LatentStart::Random) {
            return Err(problem("class_start", "needs a random start of z, and no transform".into()));
        }
        match &self.latent {
            LatentSearch::Start => Ok(()),
            LatentSearch::Adam { steps } => in_range("latent.steps", *steps, 1, 1_000_000),
            LatentSearch::Lbfgs { evaluations } => in_range("latent.evaluations", *evaluations, 1, 1_000_000),
            LatentSearch::Cma { generations } => {
                in_range("latent.generations", *generations, 1, 1_000_000)?;
                in_range("seeds", self.seeds, 3, 4096)
            }
            LatentSearch::CmaAdam { generations, steps } => {
                in_range("latent.generations", *generations, 1, 1_000_000)?;
                in_range("latent.steps", *steps, 1, 1_000_000)?;
                in_range("seeds", self.seeds, 3, 4096)
            }
            LatentSearch::BasinCma { generations, steps, final_steps, sigma, last, .. } => {
                in_range("latent.generations", *generations, 1, 100_000)?;
                in_range("latent.steps", *steps, 1, 100_000)?;
                // One for each third of the lane-steps.
                let least = if *last == LastDescent::Halving { 3 } else { 1 };
                in_range("latent.final_steps", *final_steps, least, 1_000_000)?;
                in_range("latent.sigma", *sigma, 1e-6, 100.0)?;
                in_range("seeds", self.seeds, 3, 4096)
            }
        }
    }
}

pub(super) fn problem(field: &'static str, problem: String) -> DecodeError {
    DecodeError::Field { message: "params", field, problem }
}

fn in_range<T: Copy + PartialOrd + Display>(field: &'static str, value: T, low: T, high: T) -> Result<(), DecodeError> {
    if (low..=high).contains(&value) { Ok(()) } else { Err(problem(field, format!("is {value}, not in {low} to {high}"))) }
}
