//! Which values the parameters may have.

use std::fmt::Display;

use super::{
    ClassSource, ClassStart, Converged, DeltaCodec, FineTune, Frame, LastDescent, LatentSearch, LatentStart, MaskSource, Params,
    SpatialTransform, TransformSearch,
};
use crate::DecodeError;

impl Params {
    /// Refuses values that make no sense.
    pub fn validate(&self) -> Result<(), DecodeError> {
        in_range("loss.beta", self.loss.beta, 0.0, 1e6)?;
        in_range("loss.background", self.loss.background, 0.0, 1.0)?;
        in_range("descent.lr_z", self.descent.lr_z, 0.0, 10.0)?;
        in_range("descent.lr_c", self.descent.lr_c, 0.0, 10.0)?;
        in_range("descent.limit", self.descent.limit, 1e-3, 1e3)?;
        in_range("descent.lr_transform", self.descent.lr_transform, 0.0, 1.0)?;
        in_range("descent.lr_end", self.descent.lr_end, 0.0, 1.0)?;
        if self.descent.lr_transform > 0.0
            && !(self.descends() && self.transform.is_some() && self.descent.frame == Frame::Target)
        {
            let needs = "needs a transform search, the frame `target`, and `adam` or `halving` as the search for z and c";
            return Err(problem("descent.lr_transform", needs.into()));
        }
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
        self.transform.as_ref().map_or(Ok(()), |t| self.validate_transform(t))?;
        self.fine_tune.as_ref().map_or(Ok(()), |tune| self.validate_fine_tune(tune))?;
        self.validate_class_start()?;
        self.validate_latent()
    }

    /// Whether the search for z and c is a descent alone.
    fn descends(&self) -> bool {
        matches!(self.latent, LatentSearch::Adam { .. } | LatentSearch::Halving { .. })
    }

    fn validate_transform(&self, t: &TransformSearch) -> Result<(), DecodeError> {
        in_range("transform.sigma", t.sigma, 1e-6, 10.0)?;
        in_range("transform.generations", t.generations, 0, 100_000)?;
        if t.generations == 0 && !self.descends() {
            let needs = "is 0, which needs `adam` or `halving` as the search for z and c";
            return Err(problem("transform.generations", needs.into()));
        }
        in_range("transform.steps", t.steps, 1, 100_000)?;
        if let Some(population) = t.population {
            in_range("transform.population", population, 3, 4096)?;
        }
        in_range("transform.truncated", t.truncated, 1.0, 100.0)?;
        if let Some(rotation) = t.rotation {
            in_range("transform.rotation", rotation, 0.0, 180.0)?;
        }
        if (t.rotation.is_some() || t.perspective) && (t.spatial == SpatialTransform::None || t.generations > 0) {
            let needs = "rotation and perspective need a spatial part and 0 generations: try --profile balanced";
            return Err(problem("transform", needs.into()));
        }
        if t.spatial == SpatialTransform::None && t.colour.is_empty() {
            return Err(problem("transform", "has neither a spatial nor a colour part: use null".into()));
        }
        for (i, colour) in t.colour.iter().enumerate() {
            if t.colour[..i].contains(colour) {
                return Err(problem("transform.colour", format!("has {colour:?} twice")));
            }
        }
        Ok(())
    }

    fn validate_fine_tune(&self, tune: &FineTune) -> Result<(), DecodeError> {
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
        Ok(())
    }

    fn validate_class_start(&self) -> Result<(), DecodeError> {
        // Stage one and the encoder have no seeds, and need a class vector.
        let searched = self.transform.as_ref().is_some_and(|t| t.generations > 0);
        match self.class_start {
            ClassStart::Class => {}
            ClassStart::Likely if !searched && self.descends() => {}
            ClassStart::Likely => {
                let needs =
                    "is `likely`, which needs 0 generations of a transform search, and `adam` or `halving` as the latent search";
                return Err(problem("class_start", needs.into()));
            }
            ClassStart::RandomClass | ClassStart::Gaussian => {
                if self.transform.is_some() || self.start != LatentStart::Random {
                    return Err(problem("class_start", "needs a random start of z, and no transform".into()));
                }
            }
        }
        Ok(())
    }

    fn validate_latent(&self) -> Result<(), DecodeError> {
        match &self.latent {
            LatentSearch::Start => Ok(()),
            LatentSearch::Adam { steps } => in_range("latent.steps", *steps, 1, 1_000_000),
            LatentSearch::Halving { steps, converged } => {
                in_range("latent.steps", steps.len(), 1, 32)?;
                steps.iter().try_for_each(|part| in_range("latent.steps", *part, 1, 1_000_000))?;
                if let Some(Converged { improvement, steps }) = converged {
                    in_range("latent.converged.improvement", *improvement, 0.0, 1.0)?;
                    in_range("latent.converged.steps", *steps, 1, 1_000_000)?;
                }
                Ok(())
            }
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
