//! What processes agree on: jobs, events, results, parameters and the names of objects in the store.
//!
//! Plain data. Decoding validates; a value that exists is a value that makes sense. No torch, no tokio, no I/O.

#![warn(missing_docs)]

mod crash;
mod event;
mod history;
mod job;
pub mod keys;
mod model;
mod params;
mod result;
mod run;
#[doc(hidden)]
pub mod sample;
mod snapshot;
mod stage;

pub use crash::CrashPoint;
pub use event::{Event, What};
pub use history::History;
pub use job::{Job, JobId, Mask, OPEN_CLASS, job_number};
pub use model::{
    ClassifierKind, ClassifierManifest, DetectorKind, DetectorManifest, EncoderManifest, GeneratorKind, GeneratorManifest, Lack,
    ModelManifest, ModelRef, NetworkFiles, NetworkManifest, ObjectsManifest, PerceptualManifest, RunningSha256, hex_sha256,
    relaxed,
};
pub use params::{
    ClassSource, ClassStart, ColourTransform, Converged, DeltaCodec, Descent, FineTune, Fitness, Frame, InitialTransform,
    L1Scale, LastDescent, LatentSearch, LatentStart, Loss, MaskMode, MaskSource, Object, Params, Precision, Regulariser,
    SpatialTransform, Surround, Told, TransformChoice, TransformSearch, TransformStart,
};
pub use result::{
    Detected, Failure, FailureReason, FineTuned, Found, ObjectRef, ResultRecord, SeedResult, Transform, chain, clipped,
};
pub use run::{Control, ControlWritten, Leader, RedriveRecord, RunRecord, RunState, Usage};
pub use snapshot::{Errors, KnownResult, Snapshot};
pub use stage::Stage;
pub use wire::{Alive, Box as Box2d};

/// The generated protobuf messages.
#[allow(missing_docs)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/basin.v1.rs"));
}

/// Why bytes are no message of ours.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are no protobuf message of this type.
    #[error("cannot decode {message}")]
    Malformed {
        /// Name of the message.
        message: &'static str,
        /// What prost says.
        source: prost::DecodeError,
    },
    /// Written by a newer program.
    #[error("{message} has version {found}, and this program knows version {known}: update basin")]
    Version {
        /// Name of the message.
        message: &'static str,
        /// Version in the message.
        found: u32,
        /// Newest version known here.
        known: u32,
    },
    /// A field is missing or out of range.
    #[error("{message}: {field} {problem}")]
    Field {
        /// Name of the message.
        message: &'static str,
        /// Name of the field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}
