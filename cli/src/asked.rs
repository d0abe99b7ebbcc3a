//! What a person asks of a run, the same for one machine and for a fleet.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::Context;
use proto::{ClassSource, LatentStart, MaskSource, Params, Precision};

/// Options of `basin project` and `basin submit`.
#[derive(clap::Args)]
pub struct Asked {
    /// COCO JSON or CSV manifest with classes and boxes; `auto` looks for one, `none` takes the folders' names as classes.
    #[arg(long, default_value = "auto")]
    pub annotations: String,
    /// Which method and schedule: `paper`, the authors' second code `pix2latent`, or the shorter `fast`.
    #[arg(long, value_parser = Params::PROFILES, default_value = "paper", conflicts_with = "params")]
    profile: String,
    /// Parameters from a JSON file (see `basin params`).
    #[arg(long, value_name = "FILE")]
    params: Option<PathBuf>,
    /// Where each image's class comes from: `annotation`, `category` (the annotation names a kind, such as COCO's dog, and the
    /// model's classifier chooses among the classes of it), `classifier`, or `class:NAME` for all images.
    #[arg(long, value_name = "SOURCE", value_parser = class_source)]
    class_from: Option<ClassSource>,
    /// Where each object's mask comes from: `box` or `outline` of the annotations, `detector-box` or `detector-mask` of the
    /// model's detector, `whole` for the whole image, or `file:PATTERN` for images of the data set, such as `file:masks/{stem}.png`.
    #[arg(long, value_name = "SOURCE", value_parser = mask_source)]
    mask_from: Option<MaskSource>,
    /// Where the search for z starts: `random`, or `encoder` (of the model), with another standard deviation as `encoder:0.25`.
    #[arg(long, value_name = "SOURCE", value_parser = start)]
    start_from: Option<LatentStart>,
    /// How the networks round while they search: `fp32`, `tf32` (GPUs) or `bf16`. The end of the last descent and all that is
    /// reported are fp32 always.
    #[arg(long, value_name = "PRECISION", value_parser = precision)]
    precision: Option<Precision>,
    /// Fit the generator to each image after the search, and keep what that changed: edits need it.
    #[arg(long)]
    fine_tune: bool,
    /// Everything random follows from it.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub seed: u64,
    /// Project only this many images, evenly spread over the data set.
    #[arg(long, value_name = "N")]
    limit: Option<NonZeroUsize>,
}

impl Asked {
    /// The parameters: of the profile, or from the file.
    pub fn params(&self) -> anyhow::Result<Params> {
        let mut params = match &self.params {
            None => Params::profile(&self.profile).expect("clap allows known names only"),
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
                Params::from_json(&text).with_context(|| format!("{} holds no valid parameters", path.display()))?
            }
        };
        if self.fine_tune {
            params.fine_tune.get_or_insert_default();
        }
        if let Some(class) = &self.class_from {
            params.object.class = class.clone();
        }
        if let Some(mask) = &self.mask_from {
            params.object.mask = mask.clone();
        }
        if let Some(start) = self.start_from {
            params.start = start;
        }
        if let Some(precision) = self.precision {
            params.precision = precision;
        }
        params.validate()?;
        Ok(params)
    }

    /// Images at most.
    pub fn limit(&self) -> Option<usize> {
        self.limit.map(Into::into)
    }
}

fn class_source(text: &str) -> Result<ClassSource, String> {
    match text {
        "annotation" => Ok(ClassSource::Annotation),
        "category" => Ok(ClassSource::Category),
        "classifier" => Ok(ClassSource::Classifier),
        _ => match text.strip_prefix("class:") {
            Some(name) => Ok(ClassSource::Fixed { name: name.into() }),
            None => Err("it is annotation, category, classifier or class:NAME".into()),
        },
    }
}

fn mask_source(text: &str) -> Result<MaskSource, String> {
    match text {
        "box" => Ok(MaskSource::Box),
        "outline" => Ok(MaskSource::Outline),
        "detector-box" => Ok(MaskSource::DetectorBox),
        "detector-mask" => Ok(MaskSource::DetectorMask),
        "whole" => Ok(MaskSource::Whole),
        _ => match text.strip_prefix("file:") {
            Some(pattern) => Ok(MaskSource::File { pattern: pattern.into() }),
            None => Err("it is box, outline, detector-box, detector-mask, whole or file:PATTERN".into()),
        },
    }
}

fn precision(text: &str) -> Result<Precision, String> {
    serde_json::from_value(text.into()).map_err(|_| "it is fp32, tf32 or bf16".into())
}

fn start(text: &str) -> Result<LatentStart, String> {
    match text.split_once(':') {
        None if text == "random" => Ok(LatentStart::Random),
        None if text == "encoder" => Ok(LatentStart::ENCODER),
        Some(("encoder", sigma)) => {
            let sigma = sigma.parse().map_err(|_| format!("{sigma:?} is no number"))?;
            Ok(LatentStart::Encoder { sigma })
        }
        _ => Err("it is random, encoder or encoder:SIGMA".into()),
    }
}
