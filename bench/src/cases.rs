//! Finished cases on disk, and a projection from start to end.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use engine::LoadedModel;
use projector::{Lanes, Projection, Solution, Target};
use proto::{Params, Transform};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Cases by number; a file of JSON lines.
pub struct Cases<T> {
    path: PathBuf,
    done: BTreeMap<usize, T>,
}

impl<T: Serialize + DeserializeOwned> Cases<T> {
    /// Reads the file `name` of this model, if it is there; another model has another file.
    pub fn open(work: &Path, name: &str, model: &LoadedModel) -> Result<Cases<T>> {
        let path = work.join(format!("{name}-{}.jsonl", &model.reference.digest[..12]));
        let lines = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            lines => lines.with_context(|| format!("cannot read {}", path.display()))?,
        };
        // A line that a kill cut off is measured again.
        let done = lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        Ok(Cases { path, done })
    }

    /// Measures the cases below `n` that are left, `batch` at a time, and appends them to the file.
    pub fn complete(&mut self, n: usize, batch: usize, mut measure: impl FnMut(&[usize]) -> Result<Vec<T>>) -> Result<()> {
        let left: Vec<usize> = (0..n).filter(|i| !self.done.contains_key(i)).collect();
        for batch in left.chunks(batch) {
            for (&index, case) in batch.iter().zip(measure(batch)?) {
                self.insert(index, case)?;
            }
        }
        Ok(())
    }

    /// Appends a case.
    pub fn push(&mut self, case: T) -> Result<()> {
        let index = self.done.last_key_value().map_or(0, |(last, _)| last + 1);
        self.insert(index, case)
    }

    /// Keeps a case, on disk first.
    fn insert(&mut self, index: usize, case: T) -> Result<()> {
        let context = || format!("cannot write {}", self.path.display());
        self.path.parent().map_or(Ok(()), std::fs::create_dir_all).with_context(context)?;
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path).with_context(context)?;
        writeln!(file, "{}", serde_json::to_string(&(index, &case))?).with_context(context)?;
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
