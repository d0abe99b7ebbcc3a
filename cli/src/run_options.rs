//! The options of a run, the same on one machine and on a fleet.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::Context;
use proto::{ClassSource, LatentStart, MaskSource, ModelRef, Params, Precision, RunRecord};

/// Options of `basin project`, `basin submit` and `basin plan`.
#[derive(clap::Args)]
pub struct RunOptions {
    /// Key of the COCO JSON or CSV manifest that lists classes and boxes. `auto` looks for one; `none` takes the names of the folders
    /// as classes.
    #[arg(long, default_value = "auto")]
    pub annotations: String,
    /// Profile, a named set of parameters: a search with a quarter of the paper's work (`balanced`), the same with all of it (`best`) or
    /// a tenth (`fast`), the paper's method (`paper`), or the authors' second code (`pix2latent`).
    #[arg(long, value_parser = Params::PROFILES, default_value = Params::DEFAULT_PROFILE, conflicts_with = "params")]
    profile: String,
    /// Turn the objects, too. The seeds start at angles with this standard deviation. Images without a box are not
    /// turned. Not with `paper` and `pix2latent`.
    #[arg(long, value_name = "DEGREES", num_args = 0..=1, default_missing_value = "30")]
    rotate: Option<f64>,
    /// See the objects at an angle, too, in images with a box. Not with `paper` and `pix2latent`.
    #[arg(long)]
    perspective: bool,
    /// Read all parameters from a JSON file instead (see `basin params`).
    #[arg(long, value_name = "FILE")]
    params: Option<PathBuf>,
    /// Take each image's class from its `annotation`, from its `category` (the annotation names a category such as COCO's dog, and
    /// the model's classifier chooses one of its classes), from the `classifier`, or use `class:NAME` for all images. Default: as in
    /// the parameters.
    #[arg(long, value_name = "SOURCE", value_parser = class_source)]
    class_from: Option<ClassSource>,
    /// Take each object's mask from the annotation's `box` or `outline`, from the model's detector (`detector-box` or
    /// `detector-mask`), from files of the data set (`file:PATTERN`, such as `file:masks/{stem}.png`), or use the `whole` image.
    /// Default: as in the parameters.
    #[arg(long, value_name = "SOURCE", value_parser = mask_source)]
    mask_from: Option<MaskSource>,
    /// Start the search for z at `random`, or around the answer of the model's `encoder`; `encoder:0.25` also sets the standard
    /// deviation. Default: as in the parameters.
    #[arg(long, value_name = "SOURCE", value_parser = start)]
    start_from: Option<LatentStart>,
    /// Precision of the networks during the search: `fp32`, `tf32` (GPUs) or `bf16`. The end of the final descent and all reported
    /// numbers are always fp32. Default: as in the parameters.
    #[arg(long, value_name = "PRECISION", value_parser = precision)]
    precision: Option<Precision>,
    /// Fine-tune the generator to each image after the search and store the weight delta, which edits use.
    #[arg(long)]
    fine_tune: bool,
    /// Run seed: all random numbers of the run follow from it.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub seed: u64,
    /// Project only N images, evenly spread over the data set. Default: all.
    #[arg(long, value_name = "N")]
    limit: Option<NonZeroUsize>,
}

impl RunOptions {
    /// The parameters of the profile or of the file, with the options' changes.
    pub fn params(&self) -> anyhow::Result<Params> {
        let mut params = match &self.params {
            None => Params::profile(&self.profile).expect("clap allows known names only"),
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
                Params::from_json(&text).with_context(|| {
                    format!("{} does not hold valid parameters (`basin params` prints an example)", path.display())
                })?
            }
        };
        if self.fine_tune {
            params.fine_tune.get_or_insert_default();
        }
        if let Some(transform) = &mut params.transform {
            transform.rotation = self.rotate.or(transform.rotation);
            transform.perspective |= self.perspective;
        }
        params.object.class = self.class_from.clone().unwrap_or(params.object.class);
        params.object.mask = self.mask_from.clone().unwrap_or(params.object.mask);
        params.start = self.start_from.unwrap_or(params.start);
        params.precision = self.precision.unwrap_or(params.precision);
        params.validate()?;
        Ok(params)
    }

    pub fn limit(&self) -> Option<usize> {
        self.limit.map(Into::into)
    }

    /// The record of a run with these options and `params`.
    pub fn record(&self, name: &str, dataset: String, model: ModelRef, params: Params) -> RunRecord {
        let (annotations, limit, seed) = (self.annotations.clone(), self.limit(), self.seed);
        RunRecord { annotations, limit, seed, ..RunRecord::new(name, dataset, model, params) }
    }
}

fn class_source(text: &str) -> Result<ClassSource, String> {
    match (text, text.strip_prefix("class:")) {
        ("annotation", _) => Ok(ClassSource::Annotation),
        ("category", _) => Ok(ClassSource::Category),
        ("classifier", _) => Ok(ClassSource::Classifier),
        (_, Some(name)) => Ok(ClassSource::Fixed { name: name.into() }),
        _ => Err("expected annotation, category, classifier or class:NAME".into()),
    }
}

fn mask_source(text: &str) -> Result<MaskSource, String> {
    match (text, text.strip_prefix("file:")) {
        ("box", _) => Ok(MaskSource::Box),
        ("outline", _) => Ok(MaskSource::Outline),
        ("detector-box", _) => Ok(MaskSource::DetectorBox),
        ("detector-mask", _) => Ok(MaskSource::DetectorMask),
        ("whole", _) => Ok(MaskSource::Whole),
        (_, Some(pattern)) => Ok(MaskSource::File { pattern: pattern.into() }),
        _ => Err("expected box, outline, detector-box, detector-mask, whole or file:PATTERN".into()),
    }
}

fn precision(text: &str) -> Result<Precision, String> {
    serde_json::from_value(text.into()).map_err(|_| "expected fp32, tf32 or bf16".into())
}

fn start(text: &str) -> Result<LatentStart, String> {
    match text.split_once(':') {
        None if text == "random" => Ok(LatentStart::Random),
        None if text == "encoder" => Ok(LatentStart::ENCODER),
        Some(("encoder", sigma)) => {
            let sigma = sigma.parse().map_err(|_| format!("{sigma:?} is not a number"))?;
            Ok(LatentStart::Encoder { sigma })
        }
        _ => Err("expected random, encoder or encoder:SIGMA".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Args {
        #[command(flatten)]
        options: RunOptions,
    }

    fn params(args: &[&str]) -> anyhow::Result<Params> {
        Args::try_parse_from([&["basin"], args].concat())?.options.params()
    }

    #[test]
    fn without_options_the_profile_is_the_default_one() {
        assert_eq!(params(&[]).unwrap(), Params::balanced());
    }

    #[test]
    fn objects_are_turned_by_thirty_degrees_unless_another_number_is_given() {
        let rotation = |args: &[&str]| params(args).unwrap().transform.unwrap().rotation;
        assert_eq!(rotation(&[]), None);
        assert_eq!(rotation(&["--rotate"]), Some(30.0));
        assert_eq!(rotation(&["--rotate", "12.5", "--profile", "fast"]), Some(12.5));
        assert!(params(&["--perspective"]).unwrap().transform.unwrap().perspective);
    }

    #[test]
    fn a_profile_that_cannot_turn_objects_says_which_one_can() {
        for option in ["--rotate", "--perspective"] {
            let error = params(&["--profile", "paper", option]).unwrap_err().to_string();
            assert!(error.contains("rotation") && error.contains("--profile balanced"), "{error}");
        }
        let error = params(&["--rotate", "-5"]).err().map(|error| error.to_string());
        assert!(error.is_some(), "a negative angle is refused");
    }
}
