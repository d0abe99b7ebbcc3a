//! The objects of a run, or of an export of one, with sizes and digests. Pure.
//!
//! `manifest.json` is small and names the objects beside it. One of those is `objects.jsonl.gz` with a line for each object of an
//! image, since a large run has millions. The same objects make the same bytes.

use std::io::{Error, ErrorKind, Write};

use flate2::Compression;
use flate2::write::{GzDecoder, GzEncoder};
use proto::{ResultRecord, RunRecord, hex_sha256, keys};
use serde::{Deserialize, Serialize};

use crate::summary::Counts;

/// `manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the file's format: 1.
    pub format: u32,
    /// Version of basin that wrote it.
    pub basin: String,
    pub run: RunRecord,
    pub images: Counts,
    pub objects: Vec<ObjectEntry>,
}

impl Manifest {
    pub fn new(run: RunRecord, images: Counts, objects: Vec<ObjectEntry>) -> Manifest {
        Manifest { format: 1, basin: env!("CARGO_PKG_VERSION").into(), run, images, objects }
    }
}

/// An object as it must be, in `manifest.json` or a line of `objects.jsonl.gz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectEntry {
    /// In the store of the run or the export.
    pub key: String,
    pub size: u64,
    pub sha256: String,
}

impl ObjectEntry {
    pub fn new(key: String, bytes: &[u8]) -> ObjectEntry {
        ObjectEntry { key, size: bytes.len() as u64, sha256: hex_sha256(bytes) }
    }

    /// The objects that a result names.
    pub fn of(record: &ResultRecord) -> impl Iterator<Item = ObjectEntry> {
        let prefix = keys::items(&record.image, &record.attempt);
        let entry = move |o: &proto::ObjectRef| ObjectEntry {
            key: format!("{prefix}{}", o.file),
            size: o.size,
            sha256: o.sha256.clone(),
        };
        record.objects.iter().map(entry)
    }
}

/// Writes `objects.jsonl.gz`, line by line.
#[derive(Debug)]
pub struct Lines(GzEncoder<Vec<u8>>);

const TAKES: &str = "a Vec takes every write";

impl Default for Lines {
    fn default() -> Lines {
        // Digests hardly shrink: the fast way is as good.
        Lines(GzEncoder::new(Vec::new(), Compression::fast()))
    }
}

impl Lines {
    pub fn add(&mut self, line: &impl Serialize) {
        let mut json = serde_json::to_vec(line).expect("plain structs serialise");
        json.push(b'\n');
        self.0.write_all(&json).expect(TAKES);
    }

    /// The bytes that are ready.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(self.0.get_mut())
    }

    /// The bytes that were not taken.
    pub fn finish(self) -> Vec<u8> {
        self.0.finish().expect(TAKES)
    }
}

/// Reads `objects.jsonl.gz`, piece by piece.
#[derive(Debug)]
pub struct ReadLines(GzDecoder<Vec<u8>>);

impl Default for ReadLines {
    fn default() -> ReadLines {
        ReadLines(GzDecoder::new(Vec::new()))
    }
}

impl ReadLines {
    /// The entries whose lines end in this piece.
    pub fn add(&mut self, piece: &[u8]) -> Result<Vec<ObjectEntry>, Error> {
        self.0.write_all(piece)?;
        self.0.flush()?;
        let text = self.0.get_mut();
        let end = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let lines: Vec<u8> = text.drain(..end).collect();
        Ok(serde_json::Deserializer::from_slice(&lines).into_iter().collect::<Result<_, _>>()?)
    }

    /// An error if the file does not end after the last piece.
    pub fn finish(self) -> Result<(), Error> {
        if self.0.finish()?.is_empty() { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_in_pieces_and_only_whole_ones_count() {
        let objects: Vec<ObjectEntry> = (0..100_u32).map(|i| ObjectEntry::new(format!("images/{i}"), &i.to_be_bytes())).collect();
        let mut lines = Lines::default();
        objects.iter().for_each(|object| lines.add(object));
        let bytes = lines.finish();
        let read = |bytes: &[u8]| {
            let (mut reader, mut read) = (ReadLines::default(), Vec::new());
            for piece in bytes.chunks(7) {
                read.extend(reader.add(piece)?);
            }
            reader.finish().map(|()| read)
        };
        assert_eq!(read(&bytes).expect("it is whole"), objects);
        for end in [0, 5, bytes.len() / 2, bytes.len() - 1] {
            assert!(read(&bytes[..end]).is_err(), "{end}");
        }
        for at in [0, bytes.len() / 2, bytes.len() - 6] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(read(&damaged).is_err(), "{at}");
        }
        let mut cut = GzEncoder::new(Vec::new(), Compression::fast());
        cut.write_all(br#"{"key":"#).expect(TAKES);
        assert!(read(&cut.finish().expect(TAKES)).is_err());
    }
}
