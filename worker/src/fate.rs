//! What one error means for one job.

use proto::{DecodeError, FailureReason};
use store::ErrorKind;

use crate::codec::CodecError;

/// What is done with a job after an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// May work next time: counted, delivered again.
    Retry,
    /// Can never work: a failure record, then the dead letters.
    Reject(FailureReason),
    /// The worker cannot go on: nothing is settled, it exits.
    Crash,
}

/// Why an image could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The message is no job.
    #[error("cannot read the job")]
    Job(#[from] DecodeError),
    /// The job is for another model.
    #[error("the job is for model {wanted}, and this worker has {loaded}")]
    Model {
        /// Digest in the job.
        wanted: String,
        /// Digest of the loaded model.
        loaded: String,
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
pub fn fate(error: &LoadError) -> Fate {
    match error {
        LoadError::Job(_) | LoadError::Model { .. } => Fate::Reject(FailureReason::BadJob),
        LoadError::Class { .. } => Fate::Reject(FailureReason::UnknownClass),
        LoadError::Decode { source, .. } => Fate::Reject(source.reason()),
        LoadError::Image { source, .. } => match source.kind() {
            ErrorKind::Unavailable => Fate::Retry,
            ErrorKind::NotFound => Fate::Reject(FailureReason::MissingImage),
            ErrorKind::InvalidKey => Fate::Reject(FailureReason::BadName),
            _ => Fate::Reject(FailureReason::BadImage),
        },
        LoadError::Results(source) => results(source),
    }
}

/// An error of the store that the results go to.
pub fn results(error: &store::Error) -> Fate {
    if error.is_retryable() { Fate::Retry } else { Fate::Crash }
}

/// An error with everything that caused it, in one line, for records.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
