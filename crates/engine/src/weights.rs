//! Loads a model folder (*io*): reads, checks hashes, builds the networks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use projector::mask::ObjectStatistics;
use projector::nn::biggan::{self, Biggan};
use projector::nn::biggan_deep::{self, BigganDeep};
use projector::nn::encoder::{self, Encoder};
use projector::nn::lpips::{self, Lpips};
use projector::nn::{LoadError, Weights};
use projector::{Generator, Model};
use proto::{ClassifierKind, GeneratorKind, GeneratorManifest, ModelManifest, ModelRef, Object, hex_sha256};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde::de::DeserializeOwned;
use tch::{Device, Kind, Tensor};

use crate::cache::Held;
use crate::find::Finder;

/// Samples that a check generates.
const CHECKED: i64 = 4;

/// A model ready to project, and what is known about it.
pub struct LoadedModel {
    /// The networks, on the CPU.
    pub model: Model,
    /// Name, digest and size.
    pub reference: ModelRef,
    /// What it says of itself.
    pub manifest: ModelManifest,
    /// Where the generator puts its objects.
    pub statistics: ObjectStatistics,
    /// Directions of z for edits, by name, each as long as z.
    pub directions: BTreeMap<String, Vec<f32>>,
    /// Class predictor on top of the perceptual network, if it has one.
    pub head: Option<Head>,
    /// What looks at images before the search does, as far as it was asked for.
    pub finder: Finder,
    /// Its place in this machine's cache, if it has one.
    pub(crate) _held: Option<Held>,
}

impl LoadedModel {
    /// The same model once more, for a worker to have.
    pub fn copy(&self) -> LoadedModel {
        let head = |head: &Head| Head { weight: head.weight.shallow_clone(), bias: head.bias.shallow_clone() };
        LoadedModel {
            model: self.model.replicate(Device::Cpu),
            reference: self.reference.clone(),
            manifest: self.manifest.clone(),
            statistics: self.statistics,
            directions: self.directions.clone(),
            head: self.head.as_ref().map(head),
            finder: self.finder.replicate(Device::Cpu),
            _held: None,
        }
    }

    /// Computes once with every network that is loaded: a line for each, or what is wrong.
    pub fn check(&self) -> Result<Vec<String>, String> {
        let _no_grad = tch::no_grad_guard();
        let generator = &self.model.generator;
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let z: Vec<f32> = (0..CHECKED * generator.latent_dim()).map(|_| rng.sample::<f32, _>(StandardNormal) % 2.0).collect();
        let z = Tensor::from_slice(&z).view([CHECKED, -1]);
        let classes = (0..CHECKED).map(|i| i * generator.num_classes() / CHECKED);
        let c = Tensor::stack(&classes.map(|class| generator.embed(class)).collect::<Vec<_>>(), 0);
        let images = generator.generate(&z, &c);
        let finite = |what: &str, t: &Tensor| match t.isfinite().all().int64_value(&[]) {
            0 => Err(format!("{what} of {CHECKED} samples are not all finite: the weights are no trained generator's")),
            _ => Ok(()),
        };
        finite("the images", &images)?;
        let image = images.narrow(0, 0, 1);
        let r = generator.resolution();
        let weights: usize = generator.weights().iter().map(|(_, w)| w.numel()).sum();
        let mut lines =
            vec![format!("generator: {CHECKED} images of {r} x {r} pixels; {weights} weights that fine-tuning moves")];
        let distance = self.model.lpips.map(&image, &-&image);
        finite("LPIPS", &distance)?;
        lines.push(format!("perceptual network: LPIPS {:.3} to the negative", distance.mean(Kind::Double).double_value(&[])));
        lines.extend(self.finder.check(self, &image));
        Ok(lines)
    }
}

/// A linear layer on the flattened last feature map of the perceptual network.
pub struct Head {
    weight: Tensor,
    bias: Tensor,
}

impl Head {
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

/// Loads the model folder `dir` for images that are known: without classifier and detector.
pub fn load(dir: &Path) -> Result<LoadedModel, ModelError> {
    load_for(dir, &Object::default())
}

/// Loads the model folder `dir`, with what is needed to find the `object` in an image.
pub fn load_for(dir: &Path, object: &Object) -> Result<LoadedModel, ModelError> {
    let path = dir.join("model.json");
    let bytes = read(&path)?;
    let (manifest, digest) =
        ModelManifest::parse(&bytes).map_err(|source| ModelError::Manifest { path: path.clone(), source })?;

    let generator = load_generator(dir, &manifest)?;
    let layers: lpips::Config = config(dir, &manifest.perceptual.config, &manifest)?;
    let classes = manifest.classes.len() as i64;
    let (lpips, head) = network(dir, &manifest.perceptual.weights, &manifest, |weights| {
        Ok((Lpips::load(&layers, weights)?, load_head(weights, classes)?))
    })?;

    let inconsistent = |problem: String| ModelError::Inconsistent { path: path.clone(), problem };
    if head.is_none() && manifest.classifier.as_ref().is_some_and(|c| c.kind == ClassifierKind::Perceptual) {
        return Err(inconsistent("names a classifier on the perceptual network, which has none".into()));
    }
    if generator.num_classes() != manifest.classes.len() as i64 {
        let (a, b) = (manifest.classes.len(), generator.num_classes());
        return Err(inconsistent(format!("lists {a} classes, and the generator has {b}")));
    }
    if generator.resolution() != i64::from(manifest.generator.resolution) {
        let (a, b) = (manifest.generator.resolution, generator.resolution());
        return Err(inconsistent(format!("says {a} pixels, and the generator makes {b}")));
    }
    let encoder = manifest.encoder.as_ref().map(|encoder| {
        let sizes: encoder::Config = config(dir, &encoder.config, &manifest)?;
        network(dir, &encoder.weights, &manifest, |w| Encoder::load(&sizes, w))
    });
    let encoder = encoder.transpose()?;
    if let Some(encoder) = &encoder
        && (encoder.config().latent_dim, encoder.config().embed_dim) != (generator.latent_dim(), generator.embed_dim())
    {
        let (a, b) = ((encoder.config().latent_dim, encoder.config().embed_dim), (generator.latent_dim(), generator.embed_dim()));
        return Err(inconsistent(format!("has an encoder for z and c of {a:?} values, and a generator for {b:?}")));
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
        model: Model { generator, lpips, encoder },
        reference: ModelRef { name: manifest.name.clone(), digest, resolution: manifest.generator.resolution },
        finder: Finder::load(dir, &manifest, object)?,
        manifest,
        statistics,
        directions,
        head,
        _held: None,
    })
}

fn load_generator(dir: &Path, manifest: &ModelManifest) -> Result<Box<dyn Generator>, ModelError> {
    let GeneratorManifest { kind, config: file, weights, folded, truncation, .. } = &manifest.generator;
    Ok(match kind {
        GeneratorKind::BigganDeep => {
            let config: biggan_deep::Config = config(dir, file, manifest)?;
            Box::new(network(dir, weights, manifest, |w| match folded {
                true => BigganDeep::load_folded(&config, w),
                false => BigganDeep::load(&config, w, *truncation),
            })?)
        }
        GeneratorKind::Biggan => {
            let config: biggan::Config = config(dir, file, manifest)?;
            Box::new(network(dir, weights, manifest, |w| match folded {
                true => Biggan::load_folded(&config, w),
                false => Biggan::load(&config, w),
            })?)
        }
    })
}

/// Reads one of the model's configurations.
fn config<T: DeserializeOwned>(dir: &Path, file: &str, manifest: &ModelManifest) -> Result<T, ModelError> {
    let bytes = checked(dir, file, manifest)?;
    serde_json::from_slice(&bytes).map_err(|source| ModelError::Config { path: dir.join(file), source })
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

/// Reads one of the model's networks, which uses every tensor of its file.
pub(crate) fn network<T>(
    dir: &Path,
    file: &str,
    manifest: &ModelManifest,
    load: impl FnOnce(&mut Weights) -> Result<T, LoadError>,
) -> Result<T, ModelError> {
    let (path, mut weights) = tensors(dir, file, manifest)?;
    load(&mut weights)
        .and_then(|network| weights.finish().map(|()| network))
        .map_err(|source| ModelError::Network { path, source })
}

fn load_head(weights: &mut Weights, classes: i64) -> Result<Option<Head>, LoadError> {
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
    Ok(Some(Head { weight, bias: weights.take("classifier.bias", &[classes])? }))
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
    let weights = read_tensors(&path)?;
    Ok((path, weights))
}

fn read_tensors(path: &Path) -> Result<Weights, ModelError> {
    let tensors = Tensor::read_safetensors(path).map_err(|source| ModelError::Tensors { path: path.to_owned(), source })?;
    Ok(Weights::new(tensors))
}

/// Loads a perceptual network by itself: `perceptual.json` and `perceptual.safetensors` of `dir`, whatever else there is. Also
/// returns the digest of both.
pub fn load_perceptual(dir: &Path) -> Result<(Lpips, String), ModelError> {
    let (layers, weights) = (dir.join("perceptual.json"), dir.join("perceptual.safetensors"));
    let (json, bytes) = (read(&layers)?, read(&weights)?);
    let config: lpips::Config =
        serde_json::from_slice(&json).map_err(|source| ModelError::Config { path: layers.clone(), source })?;
    let network = Lpips::load(&config, &mut read_tensors(&weights)?);
    let network = network.map_err(|source| ModelError::Network { path: weights, source })?;
    Ok((network, hex_sha256(&[json, bytes].concat())))
}
