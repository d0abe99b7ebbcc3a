//! What a person asks of a run, the same for one machine and for a fleet.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::Context;
use proto::Params;

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
        Ok(params)
    }

    /// Images at most.
    pub fn limit(&self) -> Option<usize> {
        self.limit.map(Into::into)
    }
}
