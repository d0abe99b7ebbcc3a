//! Loads a model folder (*io*): reads, checks hashes, builds the networks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use projector::mask::ObjectStatistics;
use projector::nn::biggan_deep::{self, BigganDeep};
use projector::nn::lpips::{self, Lpips};
use projector::nn::{LoadError, Weights};
use projector::{Generator, Model};
use proto::{ModelManifest, ModelRef, hex_sha256};
use tch::Tensor;

use crate::cache::Held;

/// A model ready to project, and what is known about it.
pub struct LoadedModel {
    /// The networks, on the CPU.
    pub model: Model,
    /// Name, digest and size.
    pub reference: ModelRef,
    /// Names of the classes, by index.
    pub classes: Vec<String>,
    /// Where the generator puts its objects.
    pub statistics: ObjectStatistics,
    /// Directions of z for edits, by name, each as long as z.
    pub directions: BTreeMap<String, Vec<f32>>,
    /// Class predictor on top of the perceptual network, if the model has one.
    pub classifier: Option<Classifier>,
    /// Its place in this machine's cache, if it has one.
    pub(crate) _held: Option<Held>,
}

/// A linear layer on the flattened last feature map of the perceptual network.
pub struct Classifier {
    weight: Tensor,
    bias: Tensor,
}

impl Classifier {
    /// Logits `[n, classes]` of images `[n, 3, r, r]` in [-1, 1].
    pub fn logits(&self, lpips: &Lpips, images: &Tensor) -> Tensor {
        tch::no_grad(|| lpips.last(images).flatten(1, -1).linear(&self.weight, Some(&self.bias)))
    }
}

/// Why a model folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// `model.json` is not valid.
    #[error("{path} is no model description")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why.
        source: proto::DecodeError,
    },
    /// A file is not the one that `model.json` names.
    #[error("{path} has SHA-256 {found}, and model.json says {expected}: the file is damaged or was replaced")]
    Hash {
        /// The file.
        path: PathBuf,
        /// Digest of the file.
        found: String,
        /// Digest in `model.json`.
        expected: String,
    },
    /// A configuration is no JSON of the expected form.
    #[error("cannot parse {path}")]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A file is no safetensors file.
    #[error("cannot read tensors from {path}")]
    Tensors {
        /// The file.
        path: PathBuf,
        /// Why.
        source: tch::TchError,
    },
    /// The tensors are not those of the network.
    #[error("{path} does not fit")]
    Network {
        /// The file.
        path: PathBuf,
        /// Why.
        source: LoadError,
    },
    /// The parts do not belong together.
    #[error("{path}: {problem}")]
    Inconsistent {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        problem: String,
    },
}

/// Loads the model folder `dir`.
pub fn load(dir: &Path) -> Result<LoadedModel, ModelError> {
    let path = dir.join("model.json");
    let bytes = read(&path)?;
    let (manifest, digest) =
        ModelManifest::parse(&bytes).map_err(|source| ModelError::Manifest { path: path.clone(), source })?;

    let config_path = dir.join(&manifest.generator.config);
    let config: biggan_deep::Config = serde_json::from_slice(&checked(dir, &manifest.generator.config, &manifest)?)
        .map_err(|source| ModelError::Config { path: config_path, source })?;
    let (weights_path, mut weights) = tensors(dir, &manifest.generator.weights, &manifest)?;
    let generator = BigganDeep::load(&config, &mut weights, manifest.generator.truncation)
        .and_then(|g| weights.finish().map(|()| g))
        .map_err(|source| ModelError::Network { path: weights_path.clone(), source })?;

    let config_path = dir.join(&manifest.perceptual.config);
    let config: lpips::Config = serde_json::from_slice(&checked(dir, &manifest.perceptual.config, &manifest)?)
        .map_err(|source| ModelError::Config { path: config_path, source })?;
    let (weights_path, mut weights) = tensors(dir, &manifest.perceptual.weights, &manifest)?;
    let load = |weights: &mut Weights| {
        let lpips = Lpips::load(&config, weights)?;
        let classifier = load_classifier(weights, manifest.classes.len() as i64)?;
        Ok((lpips, classifier))
    };
    let (lpips, classifier) = load(&mut weights)
        .and_then(|parts| weights.finish().map(|()| parts))
        .map_err(|source| ModelError::Network { path: weights_path, source })?;

    let inconsistent = |problem: String| ModelError::Inconsistent { path: path.clone(), problem };
    if generator.num_classes() != manifest.classes.len() as i64 {
        let (a, b) = (manifest.classes.len(), generator.num_classes());
        return Err(inconsistent(format!("lists {a} classes, and the generator has {b}")));
    }
    if generator.resolution() != i64::from(manifest.generator.resolution) {
        let (a, b) = (manifest.generator.resolution, generator.resolution());
        return Err(inconsistent(format!("says {a} pixels, and the generator makes {b}")));
    }
    let directions = match &manifest.directions {
        Some(file) => load_directions(dir, file, &manifest, generator.latent_dim())?,
        None => BTreeMap::new(),
    };
    let statistics = ObjectStatistics {
        resolution: f64::from(manifest.generator.resolution),
        center: manifest.objects.center,
        size: manifest.objects.size,
    };
    Ok(LoadedModel {
        model: Model { generator: Box::new(generator), lpips },
        reference: ModelRef { name: manifest.name, digest, resolution: manifest.generator.resolution },
        classes: manifest.classes,
        statistics,
        directions,
        classifier,
        _held: None,
    })
}

fn load_directions(
    dir: &Path,
    file: &str,
    manifest: &ModelManifest,
    latent_dim: i64,
) -> Result<BTreeMap<String, Vec<f32>>, ModelError> {
    let path = dir.join(file);
    checked(dir, file, manifest)?;
    let tensors = Tensor::read_safetensors(&path).map_err(|source| ModelError::Tensors { path: path.clone(), source })?;
    let mut weights = Weights::new(tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())));
    let directions = tensors.iter().map(|(name, _)| {
        let direction = weights.take(name, &[latent_dim])?;
        Ok((name.clone(), Vec::try_from(direction).expect("a vector of floats")))
    });
    directions.collect::<Result<_, LoadError>>().map_err(|source| ModelError::Network { path, source })
}

fn load_classifier(weights: &mut Weights, classes: i64) -> Result<Option<Classifier>, LoadError> {
    let weight = match weights.take_any("classifier.weight", 2) {
        Ok(weight) => weight,
        Err(LoadError::Missing(_)) => return Ok(None),
        Err(e) => return Err(e),
    };
    let features = weight.size()[1];
    if weight.size()[0] != classes {
        let (name, found) = ("classifier.weight".into(), weight.size());
        return Err(LoadError::Shape { name, found, expected: vec![classes, features] });
    }
    Ok(Some(Classifier { weight, bias: weights.take("classifier.bias", &[classes])? }))
}

fn read(path: &Path) -> Result<Vec<u8>, ModelError> {
    std::fs::read(path).map_err(|source| ModelError::Read { path: path.to_owned(), source })
}

fn checked(dir: &Path, file: &str, manifest: &ModelManifest) -> Result<Vec<u8>, ModelError> {
    let path = dir.join(file);
    let bytes = read(&path)?;
    let expected = manifest.sha256.get(file).expect("parsing checked that every file has a digest").clone();
    let found = hex_sha256(&bytes);
    if found != expected {
        return Err(ModelError::Hash { path, found, expected });
    }
    Ok(bytes)
}

fn tensors(dir: &Path, file: &str, manifest: &ModelManifest) -> Result<(PathBuf, Weights), ModelError> {
    let path = dir.join(file);
    checked(dir, file, manifest)?;
    let tensors = Tensor::read_safetensors(&path).map_err(|source| ModelError::Tensors { path: path.clone(), source })?;
    Ok((path, Weights::new(tensors)))
}
