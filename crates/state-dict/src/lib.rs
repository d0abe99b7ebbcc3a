//! Reads published checkpoint files into named arrays, without running anything in them.
//!
//! Four containers, recognised by content: torch's first one (before 1.6: pickles, then raw data), torch's zip, NumPy's npz and
//! safetensors. A pickle is a program; `pickle.rs` runs the small part of that language which builds dicts and tensors, and
//! refuses by name every opcode and every global outside it.
//!
//! For every container:
//! * Nested dicts are flattened with '.' (`state_dict.conv1.weight`), lists with the index; values other than tensors are skipped.
//! * Arrays are row-major, contiguous and little-endian, whatever the strides were. Big-endian files are refused.
//! * Floats are finite; names are unique, printable and lead out of no directory.
//! * A header alone never causes an allocation. The arrays have at most [`MAX_GROWTH`] times the bytes of the file (compression,
//!   views that repeat elements, tensors under several names) or [`SMALL`], and never more than [`MAX_BYTES`].
//!
//! Limits: a file is held in memory beside its arrays. Not read: TorchScript, torch files older than 0.2 (tar), pickle protocols
//! other than 2, sparse, quantised and complex tensors, and npz members that are objects (pickles again).

#![warn(missing_docs)]

mod array;
mod npz;
mod pickle;
mod safetensors;
mod torch;

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;

use zip::ZipArchive;
use zip::result::ZipError;

pub use array::{Array, Dtype};
use array::{View, gather, is_finite};
pub use safetensors::write_safetensors;

/// Named arrays, by name.
pub type StateDict = BTreeMap<String, Array>;

/// Limit of the arrays' bytes over the file's bytes.
pub const MAX_GROWTH: u64 = 16;
/// Bytes of arrays that are always allowed, however small the file is.
pub const SMALL: u64 = 16 << 20;
/// Limit of the file, and of its arrays, in bytes.
pub const MAX_BYTES: u64 = 16 << 30;
/// Limit of a name in bytes; torch's names have a tenth of it.
const MAX_NAME: usize = 512;
/// Bytes counted for each array beside its name and data: an entry of the map, a shape.
const ENTRY: usize = 64;

const LEGACY_MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
const ZIP_MAGIC: &[u8] = b"PK\x03\x04";

/// Why a checkpoint cannot be read or written. Every variant begins with the file's path or name; the message names the key,
/// opcode or global where there is one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refuses to `read` or `write`.
    #[error("cannot {1} {0}")]
    Io(String, &'static str, #[source] std::io::Error),
    /// The file has none of the four containers: what it is instead, and what to do.
    #[error("cannot read {0} as a checkpoint: {1}")]
    Unknown(String, String),
    /// The container contradicts itself, most often because the file was cut: the place and the contradiction.
    #[error("{0} is damaged: {1}; fetch it again")]
    Damaged(String, String),
    /// Not supported: an opcode, global or key that would run code, or an unsupported kind of tensor or layout.
    #[error("{0}: refused {1}")]
    Refused(String, String),
    /// A weight of this tensor is NaN or infinite.
    #[error("{0}: {1} holds NaN or infinity; these weights cannot be used")]
    NotFinite(String, String),
    /// The arrays would need more memory than the size of the file justifies: the size and the limit.
    #[error("{0} is too large: {1}")]
    TooLarge(String, String),
}

/// Reads a checkpoint file. Fails as [`parse`], and if the file cannot be read.
pub fn read(path: &Path) -> Result<StateDict, Error> {
    let file = path.display().to_string();
    let io = |source| Error::Io(file.clone(), "read", source);
    let length = std::fs::metadata(path).map_err(io)?.len();
    if length > MAX_BYTES {
        return Err(Error::TooLarge(file, format!("it has {length} bytes, and at most {MAX_BYTES} are read")));
    }
    parse(&file, &std::fs::read(path).map_err(io)?)
}

/// Reads a checkpoint from bytes. `name` is for messages only.
pub fn parse(name: &str, bytes: &[u8]) -> Result<StateDict, Error> {
    let input = Input { name, bytes };
    let mut out = Output::new(input);
    if bytes.starts_with(LEGACY_MAGIC) {
        torch::read_legacy(input, LEGACY_MAGIC.len(), &mut out)?;
    } else if bytes.starts_with(ZIP_MAGIC) {
        torch::read_zip(input, &mut out)?;
    } else if safetensors::is_safetensors(bytes) {
        safetensors::read(input, &mut out)?;
    } else {
        return Err(input.unknown(match bytes {
            [] => "it is empty",
            [0x80, ..] => "it is a pickle without torch's magic number; save the state_dict with torch.save or as safetensors",
            [0x89, b'H', b'D', b'F', ..] => "it is HDF5; save its arrays with np.savez",
            _ => "it is neither a file of torch.save, npz nor safetensors (perhaps a web page with an error message)",
        }));
    }
    if out.arrays.is_empty() {
        return Err(input.refused("a checkpoint without tensors"));
    }
    Ok(out.arrays)
}

/// The file: its name for messages, and its bytes.
#[derive(Clone, Copy, Default)]
struct Input<'a> {
    name: &'a str,
    bytes: &'a [u8],
}

impl Input<'_> {
    fn unknown(&self, what: impl Into<String>) -> Error {
        Error::Unknown(self.name.into(), what.into())
    }

    fn damaged(&self, what: impl Into<String>) -> Error {
        Error::Damaged(self.name.into(), what.into())
    }

    fn refused(&self, what: impl Into<String>) -> Error {
        Error::Refused(self.name.into(), what.into())
    }
}

type Zip<'a> = ZipArchive<Cursor<&'a [u8]>>;

/// The zip library's error about an entry; about the whole zip if `entry` is empty.
fn zip_error(input: Input<'_>, entry: &str, error: ZipError) -> Error {
    let what = format!("entry {} of the zip: {}", shown(entry), quoted(&error));
    match error {
        ZipError::UnsupportedArchive(_) | ZipError::CompressionMethodNotSupported(_) => input.refused(what),
        _ => input.damaged(what),
    }
}

/// The arrays read so far, and how many more bytes are allowed.
struct Output<'a> {
    input: Input<'a>,
    arrays: StateDict,
    limit: u64,
    /// Bytes that are still allowed.
    left: u64,
}

impl<'a> Output<'a> {
    fn new(input: Input<'a>) -> Self {
        let limit = (input.bytes.len() as u64).saturating_mul(MAX_GROWTH).clamp(SMALL, MAX_BYTES);
        Output { input, arrays: StateDict::new(), limit, left: limit }
    }

    /// Counts bytes against the limit, before they are allocated.
    fn spend(&mut self, bytes: usize) -> Result<(), Error> {
        self.left = self.left.checked_sub(bytes as u64).ok_or_else(|| {
            let what = format!(
                "its {} bytes would become more than {} in memory ({MAX_GROWTH} times the file, within {SMALL} and {MAX_BYTES})",
                self.input.bytes.len(),
                self.limit
            );
            Error::TooLarge(self.input.name.into(), what)
        })?;
        Ok(())
    }

    /// Adds a view of the whole, little-endian `storage` under `name`.
    fn insert(&mut self, name: String, view: View, storage: &[u8]) -> Result<(), Error> {
        self.check_name(&name)?;
        let bytes = view.bytes().ok_or_else(|| self.input.refused(format!("{name}: its shape overflows")))?;
        self.spend(ENTRY)?;
        self.spend(name.len())?;
        self.spend(bytes)?;
        let data = gather(&view, storage).ok_or_else(|| {
            self.input.damaged(format!("{name} reaches past the end of its storage of {} bytes", storage.len()))
        })?;
        if !is_finite(view.dtype, &data) {
            return Err(Error::NotFinite(self.input.name.into(), name));
        }
        if self.arrays.contains_key(&name) {
            return Err(self.input.refused(format!("{name}: it occurs twice")));
        }
        self.arrays.insert(name, Array { dtype: view.dtype, shape: view.shape, data });
        Ok(())
    }

    fn check_name(&self, name: &str) -> Result<(), Error> {
        let out_of_directory = || name.starts_with('/') || name.split(['/', '\\']).any(|part| part == "..");
        if name.is_empty() {
            Err(self.input.refused("a tensor without a name; save a dict of tensors"))
        } else if name.len() > MAX_NAME || name.chars().any(char::is_control) || out_of_directory() {
            let problem = format!("over {MAX_NAME} bytes, unprintable, or a path out of its directory");
            Err(self.input.refused(format!("the name {}: {problem}", shown(name))))
        } else {
            Ok(())
        }
    }
}

/// A library's message, which may quote the file: without control characters, cut to 200.
fn quoted(message: &impl std::fmt::Display) -> String {
    message.to_string().chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A string of the file for a message: quoted, control characters escaped, cut to 80.
fn shown(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}
