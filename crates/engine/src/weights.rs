//! Loads a model folder (*io*): builds its networks.

use std::collections::BTreeMap;
use std::path::Path;

use projector::mask::ObjectStatistics;
use projector::nn::biggan::{self, Biggan};
use projector::nn::biggan_deep::{self, BigganDeep};
use projector::nn::encoder::{self, Encoder};
use projector::nn::lpips::{self, Lpips};
use projector::nn::{LoadError, Weights};
use projector::{Generator, Model};
use proto::{ClassifierKind, GeneratorKind, GeneratorManifest, ModelManifest, ModelRef, Object};
use tch::{Device, Tensor};

use crate::cache::Held;
use crate::files::{ModelError, config, network, read_manifest};
use crate::finder::Finder;

/// A model ready to project, and what is known about it.
pub struct LoadedModel {
    /// The networks, on the CPU.
    pub model: Model,
    pub reference: ModelRef,
    pub manifest: ModelManifest,
    /// Where the generator puts its objects.
    pub statistics: ObjectStatistics,
    /// Directions of z for edits, by name, each as long as z.
    pub directions: BTreeMap<String, Vec<f32>>,
    /// Class predictor on top of the perceptual network, if it has one.
    pub head: Option<Head>,
    pub finder: Finder,
    /// Its folder in this machine's cache, if it comes from there.
    pub(crate) _held: Option<Held>,
}

impl LoadedModel {
    /// The same model for one more worker.
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

/// Loads the model folder `dir` for images that are known: without classifier and detector.
pub fn load(dir: &Path) -> Result<LoadedModel, ModelError> {
    load_for(dir, &Object::default())
}

/// Loads the model folder `dir`, with what is needed to find the `object` in an image.
pub fn load_for(dir: &Path, object: &Object) -> Result<LoadedModel, ModelError> {
    let path = dir.join("model.json");
    let (manifest, digest) = read_manifest(dir)?;
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
    if generator.num_classes() != classes {
        return Err(inconsistent(format!("lists {classes} classes, and the generator has {}", generator.num_classes())));
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
        && (encoder.config.latent_dim, encoder.config.embed_dim) != (generator.latent_dim(), generator.embed_dim())
    {
        let (a, b) = ((encoder.config.latent_dim, encoder.config.embed_dim), (generator.latent_dim(), generator.embed_dim()));
        return Err(inconsistent(format!("has an encoder for z and c of {a:?} values, and a generator for {b:?}")));
    }
    let directions = manifest.directions.as_ref();
    let directions = directions.map(|file| load_directions(dir, file, &manifest, generator.latent_dim())).transpose()?;
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
        directions: directions.unwrap_or_default(),
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

fn load_directions(
    dir: &Path,
    file: &str,
    manifest: &ModelManifest,
    latent_dim: i64,
) -> Result<BTreeMap<String, Vec<f32>>, ModelError> {
    network(dir, file, manifest, |weights| {
        let names = weights.names().into_iter();
        let direction = |name: String| {
            let direction = weights.take(&name, &[latent_dim])?;
            Ok((name, Vec::try_from(direction).expect("a vector of floats")))
        };
        names.map(direction).collect()
    })
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
