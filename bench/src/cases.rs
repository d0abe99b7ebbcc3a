//! Finished cases on disk, and a projection from start to end.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use anyhow::{Context, Result};
use engine::LoadedModel;
use projector::{Lanes, Projection, Solution, Target};
use proto::{Params, Transform};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Cases by number; a file of JSON lines.
pub struct Cases<T> {
    file: File,
    /// By number.
    pub done: BTreeMap<usize, T>,
}

impl<T: Serialize + DeserializeOwned + Clone> Cases<T> {
    /// Opens or creates the file `name` of this model; another model has another file.
    pub fn open(work: &Path, name: &str, model: &LoadedModel) -> Result<Cases<T>> {
        let path = work.join(format!("{name}-{}.jsonl", &model.reference.digest[..12]));
        let context = || format!("cannot open {}", path.display());
        let file = OpenOptions::new().create(true).append(true).read(true).open(&path).with_context(context)?;
        let mut done = BTreeMap::new();
        for line in BufReader::new(File::open(&path).with_context(context)?).lines() {
            // A line that a kill cut off is measured again.
            if let Ok((index, case)) = serde_json::from_str::<(usize, T)>(&line?) {
                done.insert(index, case);
            }
        }
        Ok(Cases { file, done })
    }

    pub fn push(&mut self, index: usize, case: T) -> Result<()> {
        writeln!(self.file, "{}", serde_json::to_string(&(index, &case))?)?;
        self.file.flush()?;
        self.done.insert(index, case);
        Ok(())
    }
}

/// Projects targets side by side; with `fixed` transforms stage one is skipped.
pub fn project(
    model: &LoadedModel,
    lanes: &Lanes,
    params: &Params,
    targets: Vec<Target>,
    fixed: Option<&[Transform]>,
) -> Result<Vec<Solution>> {
    let mut projection = Projection::new(params, &model.model, &model.statistics, targets);
    for (i, transform) in fixed.unwrap_or_default().iter().enumerate() {
        projection.fix_transform(i, transform.clone());
    }
    while !projection.finished() {
        projection.step(lanes)?;
    }
    projection.finish(lanes)?.into_iter().map(|s| Ok(s?)).collect()
}

/// The middle value.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    if n == 0 { f64::NAN } else { (values[(n - 1) / 2] + values[n / 2]) / 2.0 }
}
