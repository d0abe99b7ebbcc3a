//! Reads the files of a model folder and checks their digests (*io*).

use std::path::{Path, PathBuf};

use projector::nn::{LoadError, Weights};
use proto::{ModelManifest, hex_sha256};
use serde::de::DeserializeOwned;
use tch::Tensor;

#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a valid model description")]
    Manifest { path: PathBuf, source: proto::DecodeError },
    #[error("{path} has SHA-256 {found}, and model.json says {expected}: the file is damaged or was replaced")]
    Hash { path: PathBuf, found: String, expected: String },
    #[error("cannot parse {path}")]
    Config { path: PathBuf, source: serde_json::Error },
    #[error("cannot read tensors from {path}")]
    Tensors { path: PathBuf, source: tch::TchError },
    #[error("the tensors of {path} do not fit the network")]
    Network { path: PathBuf, source: LoadError },
    #[error("{path}: {problem}")]
    Inconsistent { path: PathBuf, problem: String },
}

/// Reads `model.json` of the model folder `dir`; also returns the model's digest.
pub fn read_manifest(dir: &Path) -> Result<(ModelManifest, String), ModelError> {
    let path = dir.join("model.json");
    let bytes = read(&path)?;
    ModelManifest::parse(&bytes).map_err(|source| ModelError::Manifest { path, source })
}

/// Reads one of the model's configurations.
pub(crate) fn config<T: DeserializeOwned>(dir: &Path, file: &str, manifest: &ModelManifest) -> Result<T, ModelError> {
    parse(&dir.join(file), &checked(dir, file, manifest)?)
}

pub(crate) fn parse<T: DeserializeOwned>(path: &Path, json: &[u8]) -> Result<T, ModelError> {
    serde_json::from_slice(json).map_err(|source| ModelError::Config { path: path.to_owned(), source })
}

/// Reads one of the model's networks, which uses every tensor of its file.
pub(crate) fn network<T>(
    dir: &Path,
    file: &str,
    manifest: &ModelManifest,
    load: impl FnOnce(&mut Weights) -> Result<T, LoadError>,
) -> Result<T, ModelError> {
    checked(dir, file, manifest)?;
    fit(&dir.join(file), |weights| weights.build(load))
}

/// Builds something from the tensors of a file.
pub(crate) fn fit<T>(path: &Path, load: impl FnOnce(Weights) -> Result<T, LoadError>) -> Result<T, ModelError> {
    let tensors = Tensor::read_safetensors(path).map_err(|source| ModelError::Tensors { path: path.to_owned(), source })?;
    load(Weights::new(tensors)).map_err(|source| ModelError::Network { path: path.to_owned(), source })
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, ModelError> {
    std::fs::read(path).map_err(|source| ModelError::Read { path: path.to_owned(), source })
}

pub(crate) fn checked(dir: &Path, file: &str, manifest: &ModelManifest) -> Result<Vec<u8>, ModelError> {
    let path = dir.join(file);
    let bytes = read(&path)?;
    let expected = manifest.sha256.get(file).expect("parsing checked that every file has a digest").clone();
    let found = hex_sha256(&bytes);
    if found != expected {
        return Err(ModelError::Hash { path, found, expected });
    }
    Ok(bytes)
}
