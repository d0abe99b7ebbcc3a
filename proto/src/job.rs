//! A job: one image to project.

use prost::Message;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{DecodeError, Params, wire};

const VERSION: u32 = 1;

/// Digest of everything that decides a job's answer: 32 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobId(String);

impl JobId {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for JobId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A rectangle in pixels, as COCO writes it: left, top, width, height.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Box2d {
    /// Left edge.
    pub x: f64,
    /// Top edge.
    pub y: f64,
    /// Positive.
    pub width: f64,
    /// Positive.
    pub height: f64,
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
    /// Index into the model's classes.
    pub class: u32,
    /// Name of that class.
    pub class_name: String,
    /// Box of the object in pixels of the image; `None`: the whole image.
    pub bbox: Option<Box2d>,
    /// Name of the model. Not part of the id.
    pub model: String,
    /// SHA-256 of the model's files.
    pub model_digest: String,
    /// What to compute.
    pub params: Params,
    /// Everything random follows from it.
    pub seed: u64,
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
        field(&self.class.to_be_bytes());
        match self.bbox {
            Some(b) => [b.x, b.y, b.width, b.height].iter().for_each(|v| field(&v.to_be_bytes())),
            None => field(b"whole"),
        }
        field(self.model_digest.as_bytes());
        field(self.params.to_json().as_bytes());
        field(&self.seed.to_be_bytes());
        JobId(hash.finalize()[..16].iter().map(|b| format!("{b:02x}")).collect())
    }

    /// The message.
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
            r#box: self.bbox.map(|b| wire::Box { x: b.x, y: b.y, width: b.width, height: b.height }),
            model: self.model.clone(),
            model_digest: self.model_digest.clone(),
            params: self.params.to_json(),
            seed: self.seed,
        }
        .encode_to_vec()
    }

    /// Reads and validates a message.
    pub fn decode(bytes: &[u8]) -> Result<Job, DecodeError> {
        let message = "job";
        let wire = wire::Job::decode(bytes).map_err(|source| DecodeError::Malformed { message, source })?;
        if wire.version != VERSION {
            return Err(DecodeError::Version { message, found: wire.version, known: VERSION });
        }
        let field = |field, problem: &str| DecodeError::Field { message, field, problem: problem.to_owned() };
        if wire.run.is_empty() {
            return Err(field("run", "is empty"));
        }
        if wire.image.is_empty() {
            return Err(field("image", "is empty"));
        }
        let bbox = wire.r#box.map(|b| Box2d { x: b.x, y: b.y, width: b.width, height: b.height });
        let has_area = |b: Box2d| [b.x, b.y, b.width, b.height].iter().all(|v| v.is_finite()) && b.width > 0.0 && b.height > 0.0;
        if bbox.is_some_and(|b| !has_area(b)) {
            return Err(field("box", "has no area"));
        }
        let job = Job {
            run: wire.run,
            image: wire.image,
            identity: wire.identity,
            dataset: wire.dataset,
            class: wire.class,
            class_name: wire.class_name,
            bbox,
            model: wire.model,
            model_digest: wire.model_digest,
            params: Params::from_json(&wire.params)?,
            seed: wire.seed,
        };
        if job.id().0 != wire.id {
            return Err(field("id", "is not the digest of the job"));
        }
        Ok(job)
    }
}
