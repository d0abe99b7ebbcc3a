//! The model folder: `model.json` names every file with its SHA-256, so the digest of `model.json` is the digest of the model.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::DecodeError;

/// `model.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelManifest {
    /// Of this file: 1.
    pub format: u32,
    /// Name of the model.
    pub name: String,
    /// The generator.
    pub generator: GeneratorManifest,
    /// The feature network of the loss.
    pub perceptual: PerceptualManifest,
    /// Names of the classes, by index.
    pub classes: Vec<String>,
    /// Name of the super-class of each class, in their order; empty: there are none.
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
    /// `biggan_deep`.
    pub kind: String,
    /// The public `config.json`.
    pub config: String,
    /// safetensors with the public names.
    pub weights: String,
    /// Which batch-norm statistics are used, in (0, 1].
    pub truncation: f64,
    /// Width and height of the images.
    pub resolution: u32,
}

/// The perceptual network's files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerceptualManifest {
    /// Description of the layers, JSON.
    pub config: String,
    /// safetensors: `features.*` and `lin*`, and `classifier.*` if it predicts classes.
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

impl ModelManifest {
    /// Reads and validates `model.json`; also returns the model's digest.
    pub fn parse(bytes: &[u8]) -> Result<(ModelManifest, String), DecodeError> {
        let problem = |field, problem: String| DecodeError::Field { message: "model.json", field, problem };
        let manifest: ModelManifest = serde_json::from_slice(bytes).map_err(|e| problem("json", e.to_string()))?;
        if manifest.format != 1 {
            return Err(DecodeError::Version { message: "model.json", found: manifest.format, known: 1 });
        }
        if manifest.generator.kind != "biggan_deep" {
            return Err(problem("generator.kind", format!("is {}, and this program knows biggan_deep", manifest.generator.kind)));
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
        let (classes, super_classes) = (manifest.classes.len(), &manifest.super_classes);
        if !super_classes.is_empty() && super_classes.len() != classes {
            return Err(problem("super_classes", format!("has {} names for {classes} classes", super_classes.len())));
        }
        if super_classes.iter().any(String::is_empty) {
            return Err(problem("super_classes", "has an empty name".into()));
        }
        let p = &manifest.perceptual;
        for file in manifest.sha256.keys() {
            if file.is_empty() || file.contains(['/', '\\']) || file.starts_with('.') {
                return Err(problem("file", format!("name {file:?} is not a plain file name")));
            }
        }
        let files = [&manifest.generator.config, &manifest.generator.weights, &p.config, &p.weights];
        for file in files.into_iter().chain(&manifest.directions) {
            if !manifest.sha256.contains_key(file) {
                return Err(problem("sha256", format!("has no entry for {file}")));
            }
        }
        Ok((manifest, hex_sha256(bytes)))
    }
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

    /// Of all pieces, as 64 hexadecimal digits.
    pub fn hex(self) -> String {
        self.0.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }
}
