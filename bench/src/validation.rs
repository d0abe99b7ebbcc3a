//! Whether the search finds planted transforms, and the ordering of the methods.

use std::path::Path;

use anyhow::{Context, Result};
use engine::{Devices, LoadedModel};
use projector::Lanes;
use serde::{Deserialize, Serialize};

use crate::page::{Machine, Page, Record};
use crate::{ordering, planted};

#[derive(Serialize, Deserialize)]
pub struct Validation {
    model: String,
    digest: String,
    planted: Vec<planted::Case>,
    ordering: Vec<ordering::Case>,
}

/// Runs the cases that are left of `planted` targets and `real` images; finished ones are kept in `work`.
pub fn run(model: &LoadedModel, samples: &Path, work: &Path, planted: usize, real: usize) -> Result<Validation> {
    std::fs::create_dir_all(work).with_context(|| format!("cannot create {}", work.display()))?;
    let lanes = Lanes::new(&model.model, &Devices::automatic().0);
    Ok(Validation {
        model: model.reference.name.clone(),
        digest: model.reference.digest[..12].into(),
        planted: planted::run(model, &lanes, work, planted)?,
        ordering: ordering::run(model, &lanes, samples, work, real)?,
    })
}

impl Record for Validation {
    const NAME: &'static str = "validation";

    fn page(&self, machine: &Machine) -> Page {
        let page = Page::new("Validation").text(&format!(
            "Written by `make validate` on {machine}; model {} ({}), profile `paper` unless said otherwise. Every case is a line in \
            `benchmarks/validation/`; a case that is there is not run again.",
            self.model, self.digest
        ));
        ordering::section(planted::section(page, &self.planted), &self.ordering)
    }
}
