//! A fleet's home in a folder, with the bundled model, and an image beside it.

use std::fs;
use std::path::Path;

use proto::{Job, LatentSearch, ModelRef, Params, hex_sha256};
use store::Store;

use crate::root;

pub struct Home {
    /// The home, in `dir/home`.
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

    /// A short job for the image.
    pub async fn job(&self, run: &str, model: &ModelRef) -> Job {
        let dataset = self.dir.path().join("data").to_string_lossy().into_owned();
        let data = Store::open(&dataset).await.expect("a folder");
        let identity = data.identity("bag.png").await.expect("readable").expect("it is there");
        let params = Params { transform: None, latent: LatentSearch::Adam { steps: 2 }, seeds: 4, ..Params::paper() };
        let (model, model_digest) = (model.name.clone(), model.digest.clone());
        Job { run: run.into(), identity, dataset, model, model_digest, params, ..job() }
    }

    /// Flips a bit of the generator in a folder of `dir`.
    pub fn damage(&self, place: &str) {
        let file = self.dir.path().join(place).join("generator.safetensors");
        let mut bytes = fs::read(&file).expect("readable");
        bytes[5000] ^= 1;
        fs::write(file, bytes).expect("writable");
    }
}

/// Copies the bundled model to `<dir>/home/models/<name>`, under that name.
pub fn push_model(dir: &Path, name: &str) -> ModelRef {
    let place = dir.join("home/models").join(name);
    fs::create_dir_all(&place).expect("writable");
    for file in fs::read_dir(root().join("models/fashion32")).expect("the bundled model") {
        let file = file.expect("readable");
        fs::copy(file.path(), place.join(file.file_name())).expect("writable");
    }
    let manifest = fs::read_to_string(place.join("model.json")).expect("readable");
    let manifest = manifest.replace("\"fashion32\"", &format!("{name:?}"));
    fs::write(place.join("model.json"), &manifest).expect("writable");
    ModelRef { name: name.into(), digest: hex_sha256(manifest.as_bytes()), resolution: 32 }
}

/// A job for an image of a bag, without box and mask.
pub fn job() -> Job {
    Job {
        run: "r".into(),
        image: "bag.png".into(),
        identity: "i".into(),
        dataset: "/data".into(),
        class: 8,
        class_name: "Bag".into(),
        category: None,
        bbox: None,
        mask: None,
        model: "fashion32".into(),
        model_digest: "d".into(),
        params: Params::fast(),
        seed: 1,
    }
}
