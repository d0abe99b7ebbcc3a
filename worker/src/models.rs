//! Where models come from (*io*): one that is loaded already, or the home of a fleet through a cache on this machine.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use proto::{Job, ModelManifest, RunningSha256, keys};
use store::Store;

use crate::cache::{Cache, Entry};
use crate::fate::LoadError;
use crate::weights::{self, LoadedModel, ModelError};

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
    /// `models/<model>/` of a home, copied to `<digest>/` in a cache once for all workers of this machine.
    Home {
        /// The home.
        home: Store,
        /// On this machine.
        cache: Cache,
    },
}

impl Models {
    /// Whether the cache can be used.
    pub(crate) fn check(&self) -> Result<(), LoadError> {
        let Models::Home { cache, .. } = self else { return Ok(()) };
        let dir = cache.dir();
        let probed = std::fs::create_dir_all(dir).and_then(|()| tempfile::tempfile_in(dir));
        probed.map(drop).map_err(|source| LoadError::Cache { dir: dir.to_owned(), source })
    }
}

/// Hands models out by digest.
pub(crate) struct Supply {
    source: Source,
    facts: HashMap<String, Arc<Facts>>,
}

enum Source {
    One(Option<Box<LoadedModel>>),
    Home { home: Store, cache: Cache },
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
        let manifest = manifest(home, &job.model, &job.model_digest).await?;
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
            Source::Home { home, cache } => cached(home, cache, &job.model, &job.model_digest).await,
        }
    }
}

async fn manifest(home: &Store, model: &str, digest: &str) -> Result<ModelManifest, LoadError> {
    let store_error = |source| LoadError::ModelStore { model: model.to_owned(), source };
    let bytes = home.get(&format!("{}/model.json", keys::model_prefix(model))).await.map_err(store_error)?;
    let (manifest, found) = ModelManifest::parse(&bytes)?;
    if found != digest {
        return Err(LoadError::Model { wanted: digest.to_owned(), loaded: found });
    }
    Ok(manifest)
}

/// The model from the cache. It is copied there if it is not there, and again if it was damaged there.
async fn cached(home: &Store, cache: &Cache, model: &str, digest: &str) -> Result<LoadedModel, LoadError> {
    let cache_error = |source| LoadError::Cache { dir: cache.dir().to_owned(), source };
    let mut fresh = false;
    loop {
        let (there, name) = (cache.clone(), digest.to_owned());
        let held = match blocking(move || there.open(&name)).await.map_err(cache_error)? {
            Entry::There(held) => held,
            Entry::Missing(blank) => {
                copy(home, cache, (model, digest), &blank.dir()).await?;
                blank.keep().map_err(cache_error)?;
                fresh = true;
                continue;
            }
        };
        let (dir, expected) = (held.dir(), digest.to_owned());
        match blocking(move || load(&dir, expected)).await {
            Ok(loaded) => return Ok(LoadedModel { _held: Some(held), ..loaded }),
            Err(ModelError::Read { .. } | ModelError::Manifest { .. } | ModelError::Hash { .. }) if !fresh => {
                tracing::warn!(model, dir = %held.dir().display(), "a cached model is damaged: it is copied again");
                if !held.discard().map_err(cache_error)? {
                    return Err(cache_error(io::Error::other("a model there is damaged, and other workers use it")));
                }
            }
            Err(source) => return Err(LoadError::Weights { model: model.to_owned(), source: Box::new(source) }),
        }
    }
}

fn load(dir: &Path, expected: String) -> Result<LoadedModel, ModelError> {
    let loaded = weights::load(dir)?;
    if loaded.reference.digest != expected {
        return Err(ModelError::Hash { path: dir.join("model.json"), found: loaded.reference.digest, expected });
    }
    Ok(loaded)
}

/// Copies the model's files to `dir`, each checked while it is written.
async fn copy(home: &Store, cache: &Cache, (model, digest): (&str, &str), dir: &Path) -> Result<(), LoadError> {
    keys::check_run(model).map_err(|problem| LoadError::ModelName { model: model.to_owned(), problem })?;
    let store_error = |source| LoadError::ModelStore { model: model.to_owned(), source };
    let manifest = manifest(home, model, digest).await?;
    let prefix = keys::model_prefix(model);
    let objects = home.list(&format!("{prefix}/")).map_err(store_error)?.all().await.map_err(store_error)?;
    let (room, bytes) = (cache.clone(), objects.iter().map(|object| object.size).sum());
    let cache_error = |source| LoadError::Cache { dir: cache.dir().to_owned(), source };
    if !blocking(move || room.make_room(bytes)).await.map_err(cache_error)? {
        tracing::warn!(model, bytes, "the models in use take more than the cache should");
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
            let source = ModelError::Hash { path: key.into(), found, expected: expected.to_owned() };
            return Err(LoadError::Weights { model: model.to_owned(), source: Box::new(source) });
        }
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("it does not panic")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use proto::{ModelRef, hex_sha256};

    use super::*;

    /// A home with the bundled model, in folders.
    struct Home {
        home: Store,
        cache: Cache,
        model: ModelRef,
        dir: tempfile::TempDir,
    }

    impl Home {
        async fn open() -> Home {
            let dir = tempfile::tempdir().unwrap();
            let place = dir.path().join("home/models/fashion32");
            fs::create_dir_all(&place).unwrap();
            let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/fashion32");
            for file in fs::read_dir(bundled).unwrap() {
                let file = file.unwrap();
                fs::copy(file.path(), place.join(file.file_name())).unwrap();
            }
            let digest = hex_sha256(&fs::read(place.join("model.json")).unwrap());
            let home = Store::open(dir.path().join("home").to_str().unwrap()).await.unwrap();
            let cache = Cache::new(dir.path().join("cache"), 1 << 30);
            Home { home, cache, model: ModelRef { name: "fashion32".into(), digest, resolution: 32 }, dir }
        }

        async fn load(&self) -> Result<LoadedModel, LoadError> {
            cached(&self.home, &self.cache, &self.model.name, &self.model.digest).await
        }

        fn damage(&self, place: &str) {
            let file = self.dir.path().join(place).join("generator.safetensors");
            let mut bytes = fs::read(&file).unwrap();
            bytes[5000] ^= 1;
            fs::write(file, bytes).unwrap();
        }

        fn cached(&self) -> PathBuf {
            self.cache.dir().join(&self.model.digest)
        }
    }

    #[tokio::test]
    async fn a_model_is_copied_once_and_again_when_the_copy_is_damaged() {
        let home = Home::open().await;
        let loaded = home.load().await.unwrap();
        assert_eq!(loaded.reference, home.model);
        // From here on it comes from the cache.
        let away = home.dir.path().join("away");
        fs::rename(home.dir.path().join("home"), &away).unwrap();
        drop((loaded, home.load().await.unwrap()));
        fs::rename(&away, home.dir.path().join("home")).unwrap();
        home.damage(&format!("cache/{}", home.model.digest));
        assert_eq!(home.load().await.unwrap().reference, home.model);
        fs::remove_file(home.cached().join("perceptual.json")).unwrap();
        assert_eq!(home.load().await.unwrap().reference, home.model);
    }

    #[tokio::test]
    async fn a_damaged_copy_that_others_use_is_left_to_them() {
        let home = Home::open().await;
        let other = home.load().await.unwrap();
        home.damage(&format!("cache/{}", home.model.digest));
        assert!(matches!(home.load().await, Err(LoadError::Cache { .. })));
        assert!(home.cached().exists());
        drop(other);
        assert!(home.load().await.is_ok());
    }

    #[tokio::test]
    async fn a_file_that_is_not_the_models_is_named_and_not_kept() {
        let home = Home::open().await;
        home.damage("home/models/fashion32");
        let error = home.load().await.err().unwrap();
        let text = proto::chain(&error);
        assert!(matches!(error, LoadError::Weights { .. }), "{text}");
        assert!(text.contains("fashion32") && text.contains("generator.safetensors has SHA-256"), "{text}");
        assert!(!home.cached().exists() && fs::read_dir(home.cache.dir()).unwrap().count() == 1, "only the lock is left");
    }
}
