//! Checks keys and prefixes.

use crate::error::{ErrorKind, Failure, Result};

/// Longest key in bytes; the limit of S3.
const MAX_BYTES: usize = 1024;

/// Names of files that are being written. No part of a key has such a name, so that a file left by a killed process is never
/// an object.
pub(crate) const TEMPORARY_PREFIX: &str = ".basin-";
pub(crate) const TEMPORARY_SUFFIX: &str = ".tmp";

/// Checks a key: parts joined by '/', none empty, `.`, `..` or reserved, and no control character.
pub(crate) fn check(key: &str) -> Result<()> {
    let problem = if key.is_empty() {
        "the key is empty"
    } else if key.len() > MAX_BYTES {
        "the key is longer than 1024 bytes"
    } else if key.chars().any(char::is_control) {
        "the key contains a control character"
    } else if key.split('/').any(str::is_empty) {
        "the key starts or ends with '/', or contains '//'"
    } else if key.split('/').any(|part| part == "." || part == "..") {
        "the key contains a '.' or '..' part"
    } else if key.split('/').any(is_temporary) {
        "the key contains a name reserved for temporary files"
    } else {
        return Ok(());
    };
    Err(Failure::new(ErrorKind::InvalidKey, problem))
}

/// Checks a prefix for listing: empty, or a key up to a '/' and then the start of a name.
pub(crate) fn check_prefix(prefix: &str) -> Result<()> {
    if let Some((parts, _)) = prefix.rsplit_once('/') {
        check(parts)?;
    }
    if prefix.len() > MAX_BYTES || prefix.chars().any(char::is_control) {
        return Err(Failure::new(ErrorKind::InvalidKey, "the prefix is too long or contains a control character"));
    }
    Ok(())
}

/// Whether a file of this name is one that is being written.
pub(crate) fn is_temporary(name: &str) -> bool {
    name.starts_with(TEMPORARY_PREFIX) && name.ends_with(TEMPORARY_SUFFIX)
}
