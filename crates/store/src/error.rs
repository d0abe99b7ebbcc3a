//! Errors: which operation failed on which object, and why.

use std::error::Error as StdError;
use std::io;

/// Why an operation failed; one variant for each case that callers treat differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// No such object, directory or bucket.
    NotFound,
    /// The object is larger than the caller allowed.
    TooLarge,
    /// The key or prefix cannot name objects.
    InvalidKey,
    /// The URL does not name a store.
    InvalidUrl,
    /// Not allowed: permissions, a read-only file system, credentials, or a link that leads out of the store.
    Denied,
    /// No space or no quota left.
    NoSpace,
    /// The object was replaced while it was read; read it again.
    Changed,
    /// The store does not respond or is overloaded; retry later.
    Unavailable,
    /// Any other reason; see the message.
    Other,
}

/// A failed operation. The message names the operation, the object and the reason; the source has the details.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {object}: {detail}")]
pub struct Error {
    doing: &'static str,
    object: String,
    kind: ErrorKind,
    detail: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// The kind of failure.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// An error of that kind, for tests of what a caller does about it.
    pub fn example(kind: ErrorKind) -> Error {
        Failure::new(kind, "an example").into_error("read", "an object".into())
    }

    /// Whether the same operation may work later.
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind, ErrorKind::Unavailable | ErrorKind::Changed)
    }
}

/// The result of a back-end; the handle adds the operation and the object.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

#[derive(Debug)]
pub(crate) struct Failure {
    kind: ErrorKind,
    detail: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Failure {
    pub(crate) fn new(kind: ErrorKind, detail: impl Into<String>) -> Failure {
        Failure { kind, detail: detail.into(), source: None }
    }

    pub(crate) fn with_source(self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Failure {
        Failure { source: Some(source.into()), ..self }
    }

    pub(crate) fn too_large(size: u64, max_bytes: u64) -> Failure {
        Failure::new(ErrorKind::TooLarge, format!("it has {size} bytes, and at most {max_bytes} are allowed"))
    }

    pub(crate) fn changed() -> Failure {
        Failure::new(ErrorKind::Changed, "it was replaced while it was read")
    }

    pub(crate) fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub(crate) fn into_error(self, doing: &'static str, object: String) -> Error {
        let object = object.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] });
        Error { doing, object: object.collect(), kind: self.kind, detail: self.detail, source: self.source }
    }
}

impl From<io::Error> for Failure {
    fn from(source: io::Error) -> Failure {
        use io::ErrorKind as Io;
        let (kind, detail) = match source.kind() {
            Io::NotFound => (ErrorKind::NotFound, "not found"),
            Io::PermissionDenied => (ErrorKind::Denied, "permission denied"),
            Io::ReadOnlyFilesystem => (ErrorKind::Denied, "the file system is read-only"),
            Io::StorageFull => (ErrorKind::NoSpace, "no space left on the device"),
            Io::QuotaExceeded => (ErrorKind::NoSpace, "the disk quota is used up"),
            Io::FileTooLarge => (ErrorKind::NoSpace, "the file is too large for the file system"),
            Io::InvalidFilename => (ErrorKind::InvalidKey, "the file system does not allow this name, or it is too long"),
            Io::NotADirectory | Io::IsADirectory | Io::DirectoryNotEmpty => {
                (ErrorKind::Other, "in a directory, one key cannot be the first part of another (`a` and `a/b`)")
            }
            Io::TimedOut | Io::Interrupted | Io::ResourceBusy | Io::StaleNetworkFileHandle | Io::WouldBlock => {
                (ErrorKind::Unavailable, "the file system does not respond")
            }
            _ if matches!(os_code(&source), Some(TOO_MANY_FILES | TOO_MANY_FILES_IN_SYSTEM)) => {
                (ErrorKind::Unavailable, "too many files are open")
            }
            _ => (ErrorKind::Other, "the file system failed"),
        };
        Failure { kind, detail: detail.into(), source: Some(source.into()) }
    }
}

/// The system's number for `error`, which tempfile wraps to add the path.
fn os_code(error: &io::Error) -> Option<i32> {
    let inner = || error.get_ref()?.source()?.downcast_ref::<io::Error>()?.raw_os_error();
    error.raw_os_error().or_else(inner)
}

/// EMFILE and ENFILE, for which `io::ErrorKind` has no name; the same number on all Unix systems.
const TOO_MANY_FILES: i32 = 24;
const TOO_MANY_FILES_IN_SYSTEM: i32 = 23;
