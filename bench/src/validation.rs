//! Whether the search finds planted transforms, and the ordering of the methods.

use std::path::Path;

use anyhow::Result;
use engine::{Devices, LoadedModel};
use projector::Lanes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::page::Record;
use crate::{ordering, planted};

#[derive(Serialize, Deserialize)]
pub struct Validation {
    model: String,
    digest: String,
    planted: Vec<planted::Planted>,
    ordering: Vec<ordering::OrderingCase>,
}

/// Runs the cases that are left of at most `planted` targets of each kind and `real` images; finished ones are kept in `work`.
pub fn run(model: &LoadedModel, samples: &Path, work: &Path, planted: usize, real: usize) -> Result<Validation> {
    let lanes = Lanes::new(&model.model, &Devices::automatic().0);
    Ok(Validation {
        model: model.reference.name.clone(),
        digest: model.reference.digest[..12].into(),
        planted: planted::plantings()
            .iter()
            .map(|planting| planted::run(model, &lanes, work, planting, planted))
            .collect::<Result<_>>()?,
        ordering: ordering::run(model, &lanes, samples, work, real)?,
    })
}

impl Record for Validation {
    const NAME: &'static str = "validation";
    const PAGE: &'static str = include_str!("../pages/validation.md");

    fn derived(&self) -> Value {
        let planting: Vec<Value> = self.planted.iter().map(planted::derived).collect();
        json!({ "planting": planting, "ranking": ordering::derived(&self.ordering) })
    }
}
