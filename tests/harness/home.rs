//! The home of a fleet in a folder, with a copy of the bundled model and one image.

use std::fs;
use std::path::{Path, PathBuf};

use proto::{Job, LatentSearch, ModelRef, Params, hex_sha256, sample};
use store::Store;

use crate::{copy_folder, root};

/// A home with the bundled model, and an image, in folders.
pub struct Home {
    pub store: Store,
    pub model: ModelRef,
    pub dir: tempfile::TempDir,
}

impl Home {
    pub async fn open() -> Home {
        let dir = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(dir.path().join("data")).expect("writable");
        fs::copy(root().join("samples/images/bag_00_centred.png"), dir.path().join("data/bag.png")).expect("a sample");
        let model = push_model(dir.path(), "fashion32");
        let store = Store::open(&dir.path().join("home").to_string_lossy()).await.expect("a folder");
        Home { store, model, dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A short job for the image.
    pub async fn job(&self, run: &str, model: &ModelRef) -> Job {
        let dataset = self.path("data").to_string_lossy().into_owned();
        let data = Store::open(&dataset).await.expect("a folder");
        let identity = data.identity("bag.png").await.expect("readable").expect("it is there");
        let ModelRef { name: model, digest: model_digest, .. } = model.clone();
        let params = Params { transform: None, seeds: 4, ..sample::params(LatentSearch::Adam { steps: 2 }) };
        Job { run: run.into(), image: "bag.png".into(), identity, dataset, model, model_digest, params, ..sample::job() }
    }

    /// Changes a byte of the generator in the model folder at `place`.
    pub fn damage(&self, place: &str) {
        crate::damage(&self.path(place).join("generator.safetensors"));
    }
}

/// Copies the bundled model to `<dir>/home/models/<name>`, under that name.
pub fn push_model(dir: &Path, name: &str) -> ModelRef {
    let place = dir.join("home/models").join(name);
    copy_folder(&root().join("models/fashion32"), &place);
    let manifest = fs::read_to_string(place.join("model.json")).expect("readable");
    let manifest = manifest.replace("\"fashion32\"", &format!("{name:?}"));
    fs::write(place.join("model.json"), &manifest).expect("writable");
    ModelRef { name: name.into(), digest: hex_sha256(manifest.as_bytes()), resolution: 32 }
}
