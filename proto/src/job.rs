//! A job: one image to project.

use prost::Message;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::wire::mask::{File, Kind, Polygon, Polygons, Runs};
use crate::{Box2d, DecodeError, Params, wire};

const VERSION: u32 = 1;

/// Digest of everything that decides a job's answer: 32 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobId(String);

impl JobId {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its number; see [`job_number`].
    pub fn number(&self) -> u64 {
        job_number(&self.0)
    }
}

/// The first eight bytes of a job's id; 0 of an id that is not hexadecimal, which no job has.
pub fn job_number(id: &str) -> u64 {
    id.get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or_default()
}

impl std::fmt::Display for JobId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// In the place of a class that a worker is to find in the image.
pub const OPEN_CLASS: u32 = u32::MAX;

/// Which pixels of an image are the object's, where the box does not say it all.
#[derive(Clone, Debug, PartialEq)]
pub enum Mask {
    /// Outlines, x and y in turn, in pixels of the image: what any of them holds is inside (COCO).
    Polygons(Vec<Vec<f64>>),
    /// Lengths of runs that are outside and inside in turn, column by column (COCO's RLE).
    Runs {
        /// Height of the image in pixels.
        height: u32,
        /// Width of the image in pixels.
        width: u32,
        /// Together height times width.
        lengths: Vec<u32>,
    },
    /// A grey image of the data set: what is at least half bright is inside.
    File {
        /// Key of the image in the data set.
        key: String,
        /// What the store says of its bytes.
        identity: String,
    },
}

impl Mask {
    /// What is wrong with it, if anything.
    pub fn problem(&self) -> Option<&'static str> {
        let polygon = |p: &Vec<f64>| p.len() >= 6 && p.len().is_multiple_of(2) && p.iter().all(|v| v.is_finite());
        match self {
            Mask::Polygons(polygons) if polygons.is_empty() || !polygons.iter().all(polygon) => {
                Some("has a polygon that is not at least three finite points")
            }
            Mask::Runs { height, width, lengths } => {
                let pixels: u64 = lengths.iter().map(|n| u64::from(*n)).sum();
                (pixels != u64::from(*height) * u64::from(*width)).then_some("has runs that do not fill the image")
            }
            Mask::File { key, .. } if key.is_empty() => Some("has a file without a key"),
            _ => None,
        }
    }
}

/// One image to project. Self-sufficient: the same job gives the same answer anywhere.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Name of the run; results go under it. Not part of the id.
    pub run: String,
    /// Key of the image in the data set.
    pub image: String,
    /// What the data set's store says of the bytes: an ETag, or size and time of change.
    pub identity: String,
    /// URL of the store that the image is read from. Not part of the id.
    pub dataset: String,
    /// Index into the model's classes; `OPEN_CLASS`: the worker finds it in the image.
    pub class: u32,
    /// Name of that class; empty if the class is open.
    pub class_name: String,
    /// The data set's category, where the worker is to find the class among those of that kind.
    pub category: Option<String>,
    /// The data set's box of the object in pixels of the image; `None`: the whole image.
    pub bbox: Option<Box2d>,
    /// The data set's mask, if the parameters ask for one.
    pub mask: Option<Mask>,
    /// Name of the model. Not part of the id.
    pub model: String,
    /// SHA-256 of the model's files.
    pub model_digest: String,
    /// What to compute.
    pub params: Params,
    /// Everything random follows from it.
    pub seed: u64,
    /// Number of the last redrive that names the image; 0: there was none. A worker copies it into all that it writes about the job,
    /// so that what is left of an earlier try does not count for a later one. Not part of the id: a job that is tried again is the
    /// same job and has the same answer, so that its checkpoint, and a result that comes late, are as good as before.
    pub generation: u64,
}

impl Job {
    /// Digest over what decides the answer.
    pub fn id(&self) -> JobId {
        let mut hash = Sha256::new();
        let mut field = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        field(self.image.as_bytes());
        field(self.identity.as_bytes());
        if self.params.object.class.is_predicted() {
            // The class follows from the rest; a worker puts it in when it has found it.
            field(&OPEN_CLASS.to_be_bytes());
        } else {
            field(&self.class.to_be_bytes());
        }
        match self.bbox {
            Some(b) => [b.x, b.y, b.width, b.height].iter().for_each(|v| field(&v.to_be_bytes())),
            None => field(b"whole"),
        }
        if let Some(mask) = self.wire_mask() {
            field(&mask.encode_to_vec());
        }
        if let Some(category) = &self.category {
            field(category.as_bytes());
        }
        field(self.model_digest.as_bytes());
        field(self.params.to_json().as_bytes());
        field(&self.seed.to_be_bytes());
        JobId(hash.finalize()[..16].iter().map(|b| format!("{b:02x}")).collect())
    }

    /// The bytes of the message.
    pub fn encode(&self) -> Vec<u8> {
        wire::Job {
            version: VERSION,
            id: self.id().0,
            run: self.run.clone(),
            image: self.image.clone(),
            identity: self.identity.clone(),
            dataset: self.dataset.clone(),
            class: self.class,
            class_name: self.class_name.clone(),
            r#box: self.bbox,
            model: self.model.clone(),
            model_digest: self.model_digest.clone(),
            params: self.params.to_json(),
            seed: self.seed,
            mask: self.wire_mask(),
            category: self.category.clone(),
            generation: self.generation,
        }
        .encode_to_vec()
    }

    fn wire_mask(&self) -> Option<wire::Mask> {
        let kind = match self.mask.clone()? {
            Mask::Polygons(polygons) => {
                Kind::Polygons(Polygons { polygons: polygons.into_iter().map(|points| Polygon { points }).collect() })
            }
            Mask::Runs { height, width, lengths } => Kind::Runs(Runs { height, width, lengths }),
            Mask::File { key, identity } => Kind::File(File { key, identity }),
        };
        Some(wire::Mask { kind: Some(kind) })
    }

    /// Reads and validates a message.
    pub fn decode(bytes: &[u8]) -> Result<Job, DecodeError> {
        let message = "job";
        let wire = wire::Job::decode(bytes).map_err(|source| DecodeError::Malformed { message, source })?;
        if wire.version != VERSION {
            return Err(DecodeError::Version { message, found: wire.version, known: VERSION });
        }
        let field = |field, problem: &str| DecodeError::Field { message, field, problem: problem.to_owned() };
        for (name, value) in [("run", &wire.run), ("image", &wire.image)] {
            if value.is_empty() {
                return Err(field(name, "is empty"));
            }
        }
        let has_area = |b: Box2d| [b.x, b.y, b.width, b.height].iter().all(|v| v.is_finite()) && b.width > 0.0 && b.height > 0.0;
        if wire.r#box.is_some_and(|b| !has_area(b)) {
            return Err(field("box", "has no area"));
        }
        let mask = wire.mask.map(|mask| mask_of(mask).ok_or_else(|| field("mask", "is of no known kind"))).transpose()?;
        if let Some(problem) = mask.as_ref().and_then(Mask::problem) {
            return Err(field("mask", problem));
        }
        let job = Job {
            run: wire.run,
            image: wire.image,
            identity: wire.identity,
            dataset: wire.dataset,
            class: wire.class,
            class_name: wire.class_name,
            category: wire.category,
            bbox: wire.r#box,
            mask,
            model: wire.model,
            model_digest: wire.model_digest,
            params: Params::from_json(&wire.params)?,
            seed: wire.seed,
            generation: wire.generation,
        };
        if job.id().0 != wire.id {
            return Err(field("id", "is not the digest of the job"));
        }
        Ok(job)
    }
}

fn mask_of(mask: wire::Mask) -> Option<Mask> {
    Some(match mask.kind? {
        Kind::Polygons(all) => Mask::Polygons(all.polygons.into_iter().map(|polygon| polygon.points).collect()),
        Kind::Runs(Runs { height, width, lengths }) => Mask::Runs { height, width, lengths },
        Kind::File(File { key, identity }) => Mask::File { key, identity },
    })
}
