//! Finished cases on disk, and a projection from start to end.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
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
    done: BTreeMap<usize, T>,
}

impl<T: Serialize + DeserializeOwned> Cases<T> {
    /// Opens or creates the file `name` of this model; another model has another file.
    pub fn open(work: &Path, name: &str, model: &LoadedModel) -> Result<Cases<T>> {
        std::fs::create_dir_all(work).with_context(|| format!("cannot create {}", work.display()))?;
        let path = work.join(format!("{name}-{}.jsonl", &model.reference.digest[..12]));
        let context = || format!("cannot open {}", path.display());
        let file = OpenOptions::new().create(true).append(true).read(true).open(&path).with_context(context)?;
        // A line that a kill cut off is measured again.
        let lines = std::fs::read_to_string(&path).with_context(context)?;
        let done = lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        Ok(Cases { file, done })
    }

    /// Measures the cases below `n` that are left, `batch` at a time, and appends them to the file.
    pub fn complete(&mut self, n: usize, batch: usize, mut measure: impl FnMut(&[usize]) -> Result<Vec<T>>) -> Result<()> {
        let left: Vec<usize> = (0..n).filter(|i| !self.done.contains_key(i)).collect();
        for batch in left.chunks(batch) {
            for (&index, case) in batch.iter().zip(measure(batch)?) {
                writeln!(self.file, "{}", serde_json::to_string(&(index, &case))?)?;
                self.done.insert(index, case);
            }
        }
        Ok(())
    }

    /// Appends a case.
    pub fn push(&mut self, case: T) -> Result<()> {
        let index = self.done.last_key_value().map_or(0, |(last, _)| last + 1);
        writeln!(self.file, "{}", serde_json::to_string(&(index, &case))?)?;
        self.done.insert(index, case);
        Ok(())
    }

    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.done.values()
    }

    pub fn first(self, n: usize) -> Vec<T> {
        self.done.into_iter().take_while(|(i, _)| *i < n).map(|(_, case)| case).collect()
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

/// The mean; NaN without values.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The middle value; NaN without values.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    if n == 0 { f64::NAN } else { (values[(n - 1) / 2] + values[n / 2]) / 2.0 }
}
