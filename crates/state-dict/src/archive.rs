//! Zip archives in memory, which torch and NumPy write.

use std::io::Cursor;

use zip::ZipArchive;
use zip::result::ZipError;

use crate::{Error, Input, quoted, shown};

/// A zip in memory.
pub type Zip<'a> = ZipArchive<Cursor<&'a [u8]>>;

/// The zip library's error about an entry; about the whole zip if `entry` is empty.
pub fn zip_error(input: Input<'_>, entry: &str, error: ZipError) -> Error {
    let what = format!("entry {} of the zip: {}", shown(entry), quoted(&error));
    match error {
        ZipError::UnsupportedArchive(_) | ZipError::CompressionMethodNotSupported(_) => input.refused(what),
        _ => input.damaged(what),
    }
}
