//! Where models come from (*io*): one that is loaded already, or the home of a fleet through a cache on this machine.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::{DecodeError, Job, ModelManifest, Object, RunningSha256, chain, hex_sha256, keys};
use store::{ErrorKind, Store};

use crate::cache::{Cache, Slot};
use crate::files::ModelError;
use crate::weights::{self, LoadedModel};

/// Between two looks whether another process has copied a model here.
const PAUSE: Duration = Duration::from_millis(200);
/// A model that is damaged in the home is not copied again for this time, in which other runs get their images.
const DAMAGE_HOLDS: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum SupplyError {
    #[error("the job needs model {wanted}, and this worker has {loaded}")]
    Model { wanted: String, loaded: String },
    #[error("cannot read model {model}")]
    ModelStore { model: String, source: store::Error },
    /// A file of the model is missing in the home, or differs from the one that the run was planned with.
    #[error("model {model} is damaged in the home: {problem}")]
    Damaged {
        model: String,
        /// Which file, what is wrong with it, and what mends it.
        problem: String,
    },
    #[error("the model's name {model:?} {problem}")]
    ModelName { model: String, problem: &'static str },
    #[error("cannot read model.json of model {model}")]
    Manifest { model: String, source: DecodeError },
    #[error("cannot load model {model}")]
    Weights { model: String, source: Box<ModelError> },
    #[error("cannot use the model cache {}: choose another folder with --model-cache or BASIN_MODEL_CACHE", dir.display())]
    Cache { dir: std::path::PathBuf, source: std::io::Error },
}

pub enum Models {
    /// The one model of this process.
    One(Box<LoadedModel>),
    /// `models/<model>/` of a home, copied to `<digest>/` in a cache once for all workers of this machine.
    Home { home: Store, cache: Cache },
}

impl Models {
    /// Whether the cache can be used.
    pub fn check(&self) -> Result<(), SupplyError> {
        let Models::Home { cache, .. } = self else { return Ok(()) };
        let dir = &cache.dir;
        let probed = std::fs::create_dir_all(dir).and_then(|()| tempfile::tempfile_in(dir));
        probed.map(drop).map_err(|source| SupplyError::Cache { dir: dir.clone(), source })
    }
}

pub struct Supply {
    /// The model that is loaded already, until it is taken.
    one: Option<Box<LoadedModel>>,
    home: Option<(Store, Cache)>,
    manifests: HashMap<String, Arc<ModelManifest>>,
    /// When a model was found damaged in the home, and how.
    damaged: HashMap<String, (Instant, String)>,
}

impl Supply {
    pub fn new(models: Models) -> Supply {
        let (one, home) = match models {
            Models::One(model) => (Some(model), None),
            Models::Home { home, cache } => (None, Some((home, cache))),
        };
        let known = one.iter().map(|model| (model.reference.digest.clone(), Arc::new(model.manifest.clone())));
        Supply { manifests: known.collect(), one, home, damaged: HashMap::new() }
    }

    /// The manifest of the job's model.
    pub async fn manifest(&mut self, job: &Job) -> Result<Arc<ModelManifest>, SupplyError> {
        if let Some((when, problem)) = self.damaged.get(&job.model_digest)
            && when.elapsed() < DAMAGE_HOLDS
        {
            return Err(SupplyError::Damaged { model: job.model.clone(), problem: problem.clone() });
        }
        if let Some(manifest) = self.manifests.get(&job.model_digest) {
            return Ok(manifest.clone());
        }
        let Some((home, _)) = &self.home else {
            let loaded = self.manifests.keys().next().cloned().unwrap_or_default();
            return Err(SupplyError::Model { wanted: job.model_digest.clone(), loaded });
        };
        let manifest = Arc::new(manifest(home, &job.model, &job.model_digest).await?);
        self.manifests.insert(job.model_digest.clone(), manifest.clone());
        Ok(manifest)
    }

    /// The job's model, ready to compute.
    pub async fn load(&mut self, job: &Job) -> Result<LoadedModel, SupplyError> {
        let Some((home, cache)) = &self.home else {
            let none = || SupplyError::Model { wanted: job.model_digest.clone(), loaded: "none".into() };
            return self.one.take().map(|model| *model).ok_or_else(none);
        };
        let loaded = cached(home, cache, &job.model, &job.model_digest, &job.params.object).await;
        if let Err(SupplyError::Damaged { problem, .. }) = &loaded {
            self.damaged.insert(job.model_digest.clone(), (Instant::now(), problem.clone()));
        }
        loaded
    }
}

async fn manifest(home: &Store, model: &str, digest: &str) -> Result<ModelManifest, SupplyError> {
    let key = format!("{}/model.json", keys::model_prefix(model));
    let bytes = home.get(&key).await.map_err(|source| unreadable(model, source))?;
    let found = hex_sha256(&bytes);
    if found != digest {
        let problem = format!("{key} has SHA-256 {found}, and the job says {digest}: it is damaged or was replaced");
        return Err(SupplyError::Damaged { model: model.to_owned(), problem });
    }
    let parsed = ModelManifest::parse(&bytes).map_err(|source| SupplyError::Manifest { model: model.to_owned(), source })?;
    Ok(parsed.0)
}

fn unreadable(model: &str, source: store::Error) -> SupplyError {
    match source.kind() {
        ErrorKind::NotFound => damaged(model, &source),
        _ => SupplyError::ModelStore { model: model.to_owned(), source },
    }
}

fn damaged(model: &str, error: &dyn std::error::Error) -> SupplyError {
    let problem = format!("{}; repair it with `basin push` of the model folder", chain(error));
    SupplyError::Damaged { model: model.to_owned(), problem }
}

/// The model from the cache. It is copied there if it is not there, and again if it was damaged there.
pub async fn cached(home: &Store, cache: &Cache, model: &str, digest: &str, object: &Object) -> Result<LoadedModel, SupplyError> {
    let cache_error = |source| SupplyError::Cache { dir: cache.dir.clone(), source };
    let (mut fresh, mut waits) = (false, false);
    loop {
        let (there, name) = (cache.clone(), digest.to_owned());
        let held = match blocking(move || there.open(&name)).await.map_err(cache_error)? {
            Slot::There(held) => held,
            Slot::Missing(blank) => {
                copy(home, cache, model, digest, &blank.dir()).await?;
                blank.keep().map_err(cache_error)?;
                fresh = true;
                continue;
            }
            Slot::Busy => {
                if !waits {
                    tracing::info!(model, dir = %cache.dir.display(), "another process copies the model: waiting for it");
                    waits = true;
                }
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (dir, expected, object) = (held.dir(), digest.to_owned(), object.clone());
        match blocking(move || load(&dir, &object, expected)).await {
            Ok(loaded) => return Ok(LoadedModel { _held: Some(held), ..loaded }),
            Err(error @ (ModelError::Read { .. } | ModelError::Manifest { .. } | ModelError::Hash { .. })) => {
                if fresh {
                    // It was whole when it was copied.
                    return Err(cache_error(io::Error::other(error)));
                }
                tracing::warn!(model, dir = %held.dir().display(), "a cached model is damaged: it is copied again");
                if !held.discard().map_err(cache_error)? {
                    return Err(cache_error(io::Error::other("a model in it is damaged, and other workers use that")));
                }
            }
            Err(source) => return Err(SupplyError::Weights { model: model.to_owned(), source: Box::new(source) }),
        }
    }
}

fn load(dir: &Path, object: &Object, expected: String) -> Result<LoadedModel, ModelError> {
    let loaded = weights::load_for(dir, object)?;
    if loaded.reference.digest != expected {
        return Err(ModelError::Hash { path: dir.join("model.json"), found: loaded.reference.digest, expected });
    }
    Ok(loaded)
}

/// Copies the model's files to `dir`, each checked while it is written.
async fn copy(home: &Store, cache: &Cache, model: &str, digest: &str, dir: &Path) -> Result<(), SupplyError> {
    keys::check_run(model).map_err(|problem| SupplyError::ModelName { model: model.to_owned(), problem })?;
    let store_error = |source| unreadable(model, source);
    let manifest = manifest(home, model, digest).await?;
    let prefix = keys::model_prefix(model);
    let objects = home.list(&format!("{prefix}/")).map_err(store_error)?.all().await.map_err(store_error)?;
    let (room, bytes) = (cache.clone(), objects.iter().map(|object| object.size).sum());
    let cache_error = |source| SupplyError::Cache { dir: cache.dir.clone(), source };
    if !blocking(move || room.make_room(bytes)).await.map_err(cache_error)? {
        tracing::warn!(model, bytes, "the models in use exceed the limit of the cache");
    }
    let files = manifest.sha256.iter().map(|(file, digest)| (file.as_str(), digest.as_str()));
    for (file, expected) in files.chain([("model.json", digest)]) {
        let key = format!("{prefix}/{file}");
        let mut download = home.download(&key).await.map_err(store_error)?;
        let mut written = (File::create(dir.join(file)).map_err(cache_error)?, RunningSha256::default());
        while let Some(piece) = download.next().await.map_err(store_error)? {
            let append = move || {
                written.1.update(&piece);
                written.0.write_all(&piece).map(|()| written)
            };
            written = blocking(append).await.map_err(cache_error)?;
        }
        let found = written.1.hex();
        if found != expected {
            return Err(damaged(model, &ModelError::Hash { path: key.into(), found, expected: expected.to_owned() }));
        }
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("the work does not panic")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use harness::{Home, push_model};

    use super::*;

    fn cache(home: &Home) -> Cache {
        Cache { dir: home.dir.path().join("cache"), max_bytes: 1 << 30 }
    }

    /// The model's folder in the cache.
    fn copied(home: &Home) -> PathBuf {
        cache(home).dir.join(&home.model.digest)
    }

    async fn load(home: &Home) -> Result<LoadedModel, SupplyError> {
        cached(&home.store, &cache(home), &home.model.name, &home.model.digest, &Object::default()).await
    }

    #[tokio::test]
    async fn a_model_that_was_damaged_in_the_home_is_copied_again_after_a_while() {
        let home = Home::open().await;
        home.damage("home/models/fashion32");
        let job = home.job("run", &home.model).await;
        let mut supply = Supply::new(Models::Home { home: home.store.clone(), cache: cache(&home) });
        assert!(supply.manifest(&job).await.is_ok());
        assert!(matches!(supply.load(&job).await, Err(SupplyError::Damaged { .. })));
        push_model(home.dir.path(), "fashion32");
        assert!(matches!(supply.manifest(&job).await, Err(SupplyError::Damaged { .. })));
        for (when, _) in supply.damaged.values_mut() {
            *when = when.checked_sub(DAMAGE_HOLDS).unwrap();
        }
        assert!(supply.manifest(&job).await.is_ok());
        assert!(supply.load(&job).await.is_ok());
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_used_is_named_with_the_cause_and_the_way_out() {
        let home = Home::open().await;
        let text = |error: SupplyError| chain(&error);
        let below_a_file = Cache { dir: home.dir.path().join("data/bag.png/cache"), max_bytes: 1 };
        let models = Models::Home { home: home.store.clone(), cache: below_a_file };
        let found = text(models.check().unwrap_err());
        for part in ["data/bag.png/cache", "--model-cache", "BASIN_MODEL_CACHE", "Not a directory"] {
            assert!(found.contains(part), "{found}");
        }
        // As on a full disk.
        let full = home.dir.path().join("full");
        fs::create_dir_all(cache(&home).dir).unwrap();
        fs::create_dir(&full).unwrap();
        std::os::unix::fs::symlink("/dev/full", full.join("generator.safetensors")).unwrap();
        let failed = copy(&home.store, &cache(&home), "fashion32", &home.model.digest, &full).await;
        let found = text(failed.unwrap_err());
        for part in [cache(&home).dir.to_str().unwrap(), "--model-cache", "BASIN_MODEL_CACHE", "No space left"] {
            assert!(found.contains(part), "{found}");
        }
    }

    #[tokio::test]
    async fn a_model_is_copied_once_and_again_when_the_copy_is_damaged() {
        let home = Home::open().await;
        let loaded = load(&home).await.unwrap();
        assert_eq!(loaded.reference, home.model);
        // From here on it comes from the cache.
        let away = home.dir.path().join("away");
        fs::rename(home.dir.path().join("home"), &away).unwrap();
        drop((loaded, load(&home).await.unwrap()));
        fs::rename(&away, home.dir.path().join("home")).unwrap();
        home.damage(&format!("cache/{}", home.model.digest));
        assert_eq!(load(&home).await.unwrap().reference, home.model);
        fs::remove_file(copied(&home).join("perceptual.json")).unwrap();
        assert_eq!(load(&home).await.unwrap().reference, home.model);
    }

    #[tokio::test]
    async fn a_damaged_copy_that_others_use_is_left_to_them() {
        let home = Home::open().await;
        let other = load(&home).await.unwrap();
        home.damage(&format!("cache/{}", home.model.digest));
        assert!(matches!(load(&home).await, Err(SupplyError::Cache { .. })));
        assert!(copied(&home).exists());
        drop(other);
        assert!(load(&home).await.is_ok());
    }

    #[tokio::test]
    async fn a_file_that_is_not_the_models_is_named_and_not_kept() {
        let home = Home::open().await;
        let place = home.dir.path().join("home/models/fashion32");
        let found = async |part: &str| {
            let error = load(&home).await.err().unwrap();
            let text = chain(&error);
            assert!(matches!(error, SupplyError::Damaged { .. }) && text.contains(part), "{text}");
            assert!(!copied(&home).exists() && fs::read_dir(cache(&home).dir).unwrap().count() == 1, "only the lock is left");
            text
        };
        home.damage("home/models/fashion32");
        assert!(found("models/fashion32/generator.safetensors has SHA-256").await.contains("basin push"));
        fs::remove_file(place.join("generator.safetensors")).unwrap();
        assert!(found("models/fashion32/generator.safetensors").await.contains("basin push"));
        fs::write(place.join("model.json"), "{}").unwrap();
        found("models/fashion32/model.json has SHA-256").await;
    }
}
