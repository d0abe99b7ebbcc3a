//! The model folder: `model.json` names every file with its SHA-256, so the digest of `model.json` is the digest of the model.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{ClassSource, DecodeError, LatentStart, Params};

/// `model.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelManifest {
    /// Version of this format: 1.
    pub format: u32,
    /// Name of the model.
    pub name: String,
    /// The generator.
    pub generator: GeneratorManifest,
    /// The feature network of the loss.
    pub perceptual: PerceptualManifest,
    /// The network that predicts the class of an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classifier: Option<ClassifierManifest>,
    /// The network that finds objects in an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detector: Option<DetectorManifest>,
    /// The network that guesses z from an image and its class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder: Option<EncoderManifest>,
    /// Names of the classes, by index.
    pub classes: Vec<String>,
    /// The category of each class, in the words of the detector and of data sets; "": the class has none. Empty: unknown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub categories: Vec<String>,
    /// Name of the super-class of each class, in their order. Empty: the model has no super-classes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub super_classes: Vec<String>,
    /// safetensors with directions of z for edits, each `[z_dim]` under the name that people use; one unit is a small step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directions: Option<String>,
    /// Where the generator puts its objects, in pixels of its images.
    pub objects: ObjectsManifest,
    /// SHA-256 of every other file, hexadecimal.
    pub sha256: BTreeMap<String, String>,
}

/// The generator's files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeneratorManifest {
    /// Which network it is.
    pub kind: GeneratorKind,
    /// Sizes of the network, JSON.
    pub config: String,
    /// safetensors with the public names; if folded, with ours.
    pub weights: String,
    /// Whether spectral norms and the statistics of the truncation are folded into the weights (`basin models convert`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub folded: bool,
    /// Which batch-norm statistics are used, in (0, 1].
    pub truncation: f64,
    /// Width and height of the images.
    pub resolution: u32,
}

/// Which generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GeneratorKind {
    /// BigGAN-deep in the layout of pytorch-pretrained-BigGAN.
    BigganDeep,
    /// BigGAN in the layout of ajbrock/BigGAN-PyTorch.
    Biggan,
}

/// The classifier's file.
pub type ClassifierManifest = NetworkManifest<ClassifierKind>;

/// Which classifier. Its classes are the model's, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClassifierKind {
    /// torchvision's ResNeXt-101 32x8d (paper, Section 3.4).
    #[serde(rename = "resnext101_32x8d")]
    ResNext101,
    /// EfficientNet-Lite0: small, for machines without a GPU.
    #[serde(rename = "efficientnet_lite0")]
    EfficientNetLite0,
    /// A linear layer on the perceptual network: `classifier.*` among its weights.
    #[serde(rename = "perceptual")]
    Perceptual,
}

/// The detector's file.
pub type DetectorManifest = NetworkManifest<DetectorKind>;

/// A published network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkManifest<Kind> {
    /// Which network it is.
    pub kind: Kind,
    /// safetensors with the public names.
    pub weights: String,
}

/// Which detector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DetectorKind {
    /// torchvision's Mask R-CNN with ResNet-50-FPN, trained on COCO (paper, Section 3.4).
    #[serde(rename = "mask_rcnn_resnet50_fpn")]
    MaskRcnn,
}

/// The encoder's files.
pub type EncoderManifest = NetworkFiles;

/// The perceptual network's files; tensors `features.*` and `lin*`, and `classifier.*` if it predicts classes.
pub type PerceptualManifest = NetworkFiles;

/// A network that its configuration describes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkFiles {
    /// Sizes and layers, JSON.
    pub config: String,
    /// safetensors.
    pub weights: String,
}

/// Statistics of the generator's objects (paper, Figures 3 and 4).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectsManifest {
    /// (y, x) of the usual centre.
    pub center: (f64, f64),
    /// (height, width) of the usual box.
    pub size: (f64, f64),
}

/// A model, as runs and results name it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelRef {
    /// Name of the model folder.
    pub name: String,
    /// SHA-256 over its files.
    pub digest: String,
    /// Width and height of its images.
    pub resolution: u32,
}

impl ModelManifest {
    /// `digest` is that of `model.json`.
    pub fn reference(&self, digest: &str) -> ModelRef {
        ModelRef { name: self.name.clone(), digest: digest.to_owned(), resolution: self.generator.resolution }
    }

    /// Reads and validates `model.json`; also returns the model's digest.
    pub fn parse(bytes: &[u8]) -> Result<(ModelManifest, String), DecodeError> {
        let problem = |field, problem: String| DecodeError::Field { message: "model.json", field, problem };
        let manifest: ModelManifest = serde_json::from_slice(bytes).map_err(|e| problem("json", e.to_string()))?;
        if manifest.format != 1 {
            return Err(DecodeError::Version { message: "model.json", found: manifest.format, known: 1 });
        }
        if !(manifest.generator.truncation > 0.0 && manifest.generator.truncation <= 1.0) {
            return Err(problem("generator.truncation", "is not in (0, 1]".into()));
        }
        let (resolution, objects) = (f64::from(manifest.generator.resolution), manifest.objects);
        let inside = |v: f64| v > 0.0 && v <= resolution;
        if ![objects.center.0, objects.center.1, objects.size.0, objects.size.1].into_iter().all(inside) {
            return Err(problem("objects", format!("center and size are not all above 0 and at most {resolution} pixels")));
        }
        if manifest.classes.is_empty() {
            return Err(problem("classes", "is empty".into()));
        }
        let classes = manifest.classes.len();
        for (field, names) in [("super_classes", &manifest.super_classes), ("categories", &manifest.categories)] {
            if !names.is_empty() && names.len() != classes {
                return Err(problem(field, format!("has {} names for {classes} classes", names.len())));
            }
        }
        if manifest.super_classes.iter().any(String::is_empty) {
            return Err(problem("super_classes", "has an empty name".into()));
        }
        let plain = |file: &str| !file.is_empty() && !file.contains(['/', '\\']) && !file.starts_with('.');
        if let Some(file) = manifest.sha256.keys().find(|file| !plain(file)) {
            return Err(problem("file", format!("name {file:?} is not a plain file name")));
        }
        if let Some(file) = manifest.files().into_iter().find(|file| !manifest.sha256.contains_key(*file)) {
            return Err(problem("sha256", format!("has no entry for {file}")));
        }
        Ok((manifest, hex_sha256(bytes)))
    }

    /// The files that the manifest names.
    fn files(&self) -> Vec<&String> {
        let ModelManifest { generator, perceptual, .. } = self;
        let mut files = vec![&generator.config, &generator.weights, &perceptual.config, &perceptual.weights];
        files.extend(&self.directions);
        files.extend(self.classifier.iter().map(|classifier| &classifier.weights));
        files.extend(self.detector.iter().map(|detector| &detector.weights));
        files.extend(self.encoder.iter().flat_map(|encoder| [&encoder.config, &encoder.weights]));
        files
    }

    /// What the parameters ask for and the model lacks, if anything.
    pub fn lacks(&self, params: &Params) -> Option<Lack> {
        let Params { object, start, .. } = params;
        let lack = |part: &str, from| Some(Lack { what: format!("model {} has no {part}", self.name), from });
        match &object.class {
            class if class.is_predicted() && self.classifier.is_none() => return lack("classifier", "class"),
            ClassSource::Category if self.categories.is_empty() => return lack("categories", "class"),
            ClassSource::Fixed { name } if !self.classes.iter().any(|class| relaxed(class) == relaxed(name)) => {
                return lack(&format!("class {name:?}"), "class");
            }
            _ => {}
        }
        match (object.mask.is_detected(), self.detector.is_some(), self.categories.is_empty()) {
            (true, false, _) => lack("detector", "mask"),
            (true, true, true) => lack("categories", "mask"),
            _ if matches!(start, LatentStart::Encoder { .. }) && self.encoder.is_none() => lack("encoder", "start"),
            _ => None,
        }
    }
}

/// What a model lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// A sentence for people.
    pub what: String,
    /// The beginning of the option, before `-from`, that asks for it.
    from: &'static str,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, which --{}-from asks for", self.what, self.from)
    }
}

/// A class' name without case, and with `_`, `-`, `/` and spaces as one: what people may write in its place.
pub fn relaxed(name: &str) -> String {
    let words: Vec<&str> = name.split(['_', '-', '/', ' ']).filter(|word| !word.is_empty()).collect();
    words.join(" ").to_lowercase()
}

/// SHA-256 as 64 hexadecimal digits.
pub fn hex_sha256(bytes: &[u8]) -> String {
    let mut running = RunningSha256::default();
    running.update(bytes);
    running.hex()
}

/// SHA-256 of what comes in pieces.
#[derive(Clone, Default)]
pub struct RunningSha256(Sha256);

impl RunningSha256 {
    /// The next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all pieces, as 64 hexadecimal digits.
    pub fn hex(self) -> String {
        self.0.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }
}
