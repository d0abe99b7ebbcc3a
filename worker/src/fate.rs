//! What one error means for one job.

use proto::{DecodeError, FailureReason};
use store::ErrorKind;

use engine::SupplyError;
use engine::codec::CodecError;

/// What is done with a job after an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// May work next time: counted, delivered again after a pause.
    Retry,
    /// Can never work: a failure record, then the dead letters.
    Reject(FailureReason),
    /// The worker cannot go on: nothing is settled, it exits.
    Crash,
}

/// Why an image could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The message is no job.
    #[error("cannot read the job")]
    Job(#[from] DecodeError),
    /// The model cannot be had.
    #[error(transparent)]
    Model(#[from] SupplyError),
    /// The image is another than when the run was planned.
    #[error("image {image} has changed since the run was planned ({planned} then, {found} now)")]
    Changed {
        /// Key.
        image: String,
        /// Identity in the job.
        planned: String,
        /// Identity now.
        found: String,
    },
    /// Too many attempts began and never ended.
    #[error("{attempts} attempts at image {image} began and neither ended nor saved anything: it seems to kill its worker")]
    Quarantined {
        /// Key.
        image: String,
        /// How many.
        attempts: usize,
    },
    /// The class is not one of the model's.
    #[error("class {class} is not one of the model's {classes}")]
    Class {
        /// Index in the job.
        class: u32,
        /// Number of classes.
        classes: usize,
    },
    /// The image cannot be read from the data set.
    #[error("cannot read image {image}")]
    Image {
        /// Key.
        image: String,
        /// What the store says.
        source: store::Error,
    },
    /// This machine cannot see the data set.
    #[error("cannot see the data set {dataset} from this machine: is it mounted, and may this user read it?")]
    Dataset {
        /// Its URL.
        dataset: String,
        /// What the store says of an image.
        source: store::Error,
    },
    /// The model lacks what the parameters ask for.
    #[error("{0}")]
    Lacks(String),
    /// The mask's file cannot be read from the data set.
    #[error("cannot read the mask {mask}")]
    Mask {
        /// Its key.
        mask: String,
        /// What the store says.
        source: store::Error,
    },
    /// The mask's bytes are no image.
    #[error("mask {mask} {source}")]
    DecodeMask {
        /// Its key.
        mask: String,
        /// What is wrong.
        source: CodecError,
    },
    /// The bytes are no image.
    #[error("image {image} {source}")]
    Decode {
        /// Key.
        image: String,
        /// What is wrong.
        source: CodecError,
    },
    /// The run's store failed.
    #[error("cannot use the results' store")]
    Results(#[source] store::Error),
}

/// The one place that decides.
pub fn fate(error: &FetchError) -> Fate {
    match error {
        FetchError::Job(_) | FetchError::Lacks(_) => Fate::Reject(FailureReason::BadJob),
        FetchError::Model(error) => model(error),
        FetchError::Dataset { .. } => Fate::Crash,
        FetchError::Changed { .. } => Fate::Reject(FailureReason::ChangedImage),
        FetchError::Quarantined { .. } => Fate::Reject(FailureReason::Quarantined),
        FetchError::Class { .. } => Fate::Reject(FailureReason::UnknownClass),
        FetchError::Decode { source, .. } => Fate::Reject(source.reason()),
        FetchError::DecodeMask { .. } => Fate::Reject(FailureReason::BadMask),
        FetchError::Mask { source, .. } if source.kind() == ErrorKind::Unavailable => Fate::Retry,
        FetchError::Mask { .. } => Fate::Reject(FailureReason::BadMask),
        FetchError::Image { source, .. } => match source.kind() {
            ErrorKind::Unavailable => Fate::Retry,
            ErrorKind::NotFound => Fate::Reject(FailureReason::MissingImage),
            ErrorKind::InvalidKey => Fate::Reject(FailureReason::BadName),
            _ => Fate::Reject(FailureReason::BadImage),
        },
        FetchError::Results(source) => results(source),
    }
}

fn model(error: &SupplyError) -> Fate {
    match error {
        SupplyError::Model { .. }
        | SupplyError::ModelName { .. }
        | SupplyError::Manifest { .. }
        | SupplyError::Weights { .. } => Fate::Reject(FailureReason::BadJob),
        SupplyError::ModelStore { source, .. } if source.kind() == ErrorKind::InvalidKey => Fate::Reject(FailureReason::BadJob),
        // No fault of the images, and none of this machine: a crash would stop the other runs too. After minutes the image becomes
        // `unavailable`, which is tried again by `basin runs retry`.
        SupplyError::ModelStore { .. } | SupplyError::Damaged { .. } => Fate::Retry,
        SupplyError::Cache { .. } => Fate::Crash,
    }
}

/// An error of the store that the results go to.
pub fn results(error: &store::Error) -> Fate {
    if error.is_retryable() { Fate::Retry } else { Fate::Crash }
}
