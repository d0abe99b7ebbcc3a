//! What a run, or an export of one, consists of, with sizes and digests. Pure.
//!
//! `manifest.json` is small and names the objects beside it. One of those is `objects.jsonl.gz` with a line for each object of an
//! image, since a large run has millions. The same objects make the same bytes.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use proto::{ResultRecord, RunRecord, hex_sha256, keys};
use serde::{Deserialize, Serialize};

use crate::summary::Counts;

/// `manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Of this file: 1.
    pub format: u32,
    /// Version of basin that wrote it.
    pub basin: String,
    /// The run.
    pub run: RunRecord,
    /// How many images have which end.
    pub images: Counts,
    /// The objects beside this one.
    pub objects: Vec<Object>,
}

impl Manifest {
    /// By this version of basin.
    pub fn new(run: RunRecord, images: Counts, objects: Vec<Object>) -> Manifest {
        Manifest { format: 1, basin: env!("CARGO_PKG_VERSION").into(), run, images, objects }
    }

    /// The bytes of `manifest.json`.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self).expect("plain structs serialise");
        json.push(b'\n');
        json
    }
}

/// An object as it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Name in the store of the run or the export.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
}

impl Object {
    /// With this content.
    pub fn new(key: String, bytes: &[u8]) -> Object {
        Object { key, size: bytes.len() as u64, sha256: hex_sha256(bytes) }
    }

    /// Those of a result, which its record names.
    pub fn of(record: &ResultRecord) -> impl Iterator<Item = Object> {
        let prefix = keys::items(&record.image, &record.attempt);
        record.objects.iter().map(move |o| Object { key: format!("{prefix}{}", o.file), size: o.size, sha256: o.sha256.clone() })
    }
}

/// `objects.jsonl.gz`, line by line.
#[derive(Debug)]
pub struct Lines(GzEncoder<Vec<u8>>);

const TAKES: &str = "a Vec takes every write";

impl Lines {
    /// None yet.
    pub fn new() -> Lines {
        // Digests hardly shrink: the fast way is as good.
        Lines(GzEncoder::new(Vec::new(), Compression::fast()))
    }

    /// One more.
    pub fn add(&mut self, line: &impl Serialize) {
        let mut json = serde_json::to_vec(line).expect("plain structs serialise");
        json.push(b'\n');
        self.0.write_all(&json).expect(TAKES);
    }

    /// The bytes.
    pub fn finish(self) -> Vec<u8> {
        self.0.finish().expect(TAKES)
    }
}

impl Default for Lines {
    fn default() -> Lines {
        Lines::new()
    }
}
