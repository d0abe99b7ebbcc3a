//! What people ask of the service, and why it is not done.

use proto::chain;
use results::RunError;

use crate::Error;

/// Why something is not done.
#[derive(Clone, Debug)]
pub enum Refusal {
    /// No such run.
    NotFound(String),
    /// It contradicts what is there.
    Conflict(String),
    /// It makes no sense.
    Invalid(String),
    /// Whoever asks may not.
    Forbidden(String),
    /// Whoever asks does so too often.
    TooMany(String),
    /// Not now.
    Unavailable(String),
}

impl Refusal {
    /// For people.
    pub fn message(&self) -> &str {
        match self {
            Refusal::NotFound(m) | Refusal::Conflict(m) | Refusal::Invalid(m) => m,
            Refusal::Forbidden(m) | Refusal::TooMany(m) | Refusal::Unavailable(m) => m,
        }
    }
}

impl From<RunError> for Refusal {
    fn from(error: RunError) -> Refusal {
        Error::from(error).into()
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        let message = chain(&error);
        match error {
            _ if error.store().is_some_and(store::Error::is_retryable) => Refusal::Unavailable(message),
            Error::NothingMeant { .. } => Refusal::Conflict(message),
            _ => Refusal::Invalid(message),
        }
    }
}
