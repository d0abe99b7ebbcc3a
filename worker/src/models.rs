//! Where models come from (*io*): one that is loaded already, or the home of a fleet through a cache on this machine.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proto::{Job, ModelManifest, keys};
use store::Store;

use crate::fate::LoadError;
use crate::weights::{self, LoadedModel};

/// What jobs of a model are checked against.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Width and height of the generator's images.
    pub resolution: u32,
    /// Digest of the model.
    pub digest: String,
    /// Number of classes.
    pub classes: usize,
}

/// Where models come from.
pub enum Models {
    /// The one model of this process.
    One(Box<LoadedModel>),
    /// `models/<model>/` of a home, copied to `cache/<digest>/` once for all workers of this machine.
    Home {
        /// The home.
        home: Store,
        /// A folder on this machine.
        cache: PathBuf,
    },
}

/// Hands models out by digest.
pub(crate) struct Supply {
    source: Source,
    facts: HashMap<String, Arc<Facts>>,
}

enum Source {
    One(Option<Box<LoadedModel>>),
    Home { home: Store, cache: PathBuf },
}

impl Supply {
    pub fn new(models: Models) -> Supply {
        let mut facts = HashMap::new();
        let source = match models {
            Models::One(model) => {
                let known = Facts {
                    resolution: model.reference.resolution,
                    digest: model.reference.digest.clone(),
                    classes: model.classes.len(),
                };
                facts.insert(known.digest.clone(), Arc::new(known));
                Source::One(Some(model))
            }
            Models::Home { home, cache } => Source::Home { home, cache },
        };
        Supply { source, facts }
    }

    /// What is known of the job's model.
    pub async fn facts(&mut self, job: &Job) -> Result<Arc<Facts>, LoadError> {
        if let Some(facts) = self.facts.get(&job.model_digest) {
            return Ok(facts.clone());
        }
        let Source::Home { home, .. } = &self.source else {
            let loaded = self.facts.keys().next().cloned().unwrap_or_default();
            return Err(LoadError::Model { wanted: job.model_digest.clone(), loaded });
        };
        let manifest = manifest(home, job).await?;
        let facts = Arc::new(Facts {
            resolution: manifest.generator.resolution,
            digest: job.model_digest.clone(),
            classes: manifest.classes.len(),
        });
        self.facts.insert(facts.digest.clone(), facts.clone());
        Ok(facts)
    }

    /// The job's model, ready to compute.
    pub async fn load(&mut self, job: &Job) -> Result<LoadedModel, LoadError> {
        match &mut self.source {
            Source::One(model) => {
                let loaded = || LoadError::Model { wanted: job.model_digest.clone(), loaded: "none".into() };
                model.take().map(|model| *model).ok_or_else(loaded)
            }
            Source::Home { home, cache } => {
                let dir = copy(home, cache, job).await?;
                let model = tokio::task::spawn_blocking(move || weights::load(&dir)).await.expect("loading does not panic");
                model.map_err(|source| LoadError::Weights { model: job.model.clone(), source: Box::new(source) })
            }
        }
    }
}

async fn manifest(home: &Store, job: &Job) -> Result<ModelManifest, LoadError> {
    let model_error = |source| LoadError::ModelStore { model: job.model.clone(), source };
    let bytes = home.get(&format!("{}/model.json", keys::model_prefix(&job.model))).await.map_err(model_error)?;
    let (manifest, digest) = ModelManifest::parse(&bytes)?;
    if digest != job.model_digest {
        return Err(LoadError::Model { wanted: job.model_digest.clone(), loaded: digest });
    }
    Ok(manifest)
}

/// Copies the model's files to the cache, unless another worker has; returns their folder. What is read there is checked
/// against the digests when it is loaded.
async fn copy(home: &Store, cache: &Path, job: &Job) -> Result<PathBuf, LoadError> {
    keys::check_run(&job.model).map_err(|p| LoadError::ModelName { model: job.model.clone(), problem: p })?;
    let dir = cache.join(&job.model_digest);
    if dir.join("model.json").is_file() {
        return Ok(dir);
    }
    let manifest = manifest(home, job).await?;
    let cache_error = |source| LoadError::Cache { dir: cache.to_owned(), source };
    std::fs::create_dir_all(cache).map_err(cache_error)?;
    let part = tempfile::Builder::new().prefix("part-").tempdir_in(cache).map_err(cache_error)?;
    for file in manifest.sha256.keys().map(String::as_str).chain(["model.json"]) {
        let key = format!("{}/{file}", keys::model_prefix(&job.model));
        let bytes = home.get(&key).await.map_err(|source| LoadError::ModelStore { model: job.model.clone(), source })?;
        std::fs::write(part.path().join(file), bytes).map_err(cache_error)?;
    }
    match std::fs::rename(part.path(), &dir) {
        Ok(()) => drop(part.keep()),
        // Another worker was faster.
        Err(_) if dir.join("model.json").is_file() => {}
        Err(source) => return Err(cache_error(source)),
    }
    Ok(dir)
}
