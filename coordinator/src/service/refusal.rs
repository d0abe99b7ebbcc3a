//! Why a request is refused.

use proto::chain;

use crate::Error;

/// Each holds the message for people.
#[derive(Clone, Debug)]
pub enum Refusal {
    NotFound(String),
    /// It contradicts the state of a run.
    Conflict(String),
    /// The request itself is wrong.
    Invalid(String),
    Forbidden(String),
    /// The client asks too often.
    TooMany(String),
    /// A later try may succeed.
    Unavailable(String),
}

impl Refusal {
    pub(super) fn no_run(name: &str) -> Refusal {
        Refusal::NotFound(format!("there is no run {name}"))
    }

    pub fn message(&self) -> &str {
        match self {
            Refusal::NotFound(m) | Refusal::Conflict(m) | Refusal::Invalid(m) => m,
            Refusal::Forbidden(m) | Refusal::TooMany(m) | Refusal::Unavailable(m) => m,
        }
    }
}

impl<E: Into<Error>> From<E> for Refusal {
    fn from(error: E) -> Refusal {
        let error = error.into();
        let message = chain(&error);
        match error {
            _ if error.store().is_some_and(store::Error::is_retryable) => Refusal::Unavailable(message),
            Error::NoMatch { .. } => Refusal::Conflict(message),
            Error::LostLead => Refusal::Unavailable(message),
            _ => Refusal::Invalid(message),
        }
    }
}
