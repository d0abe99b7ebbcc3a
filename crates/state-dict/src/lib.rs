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

mod archive;
mod array;
mod npz;
mod pickle;
mod safetensors;
mod torch;

use std::collections::BTreeMap;
use std::path::Path;

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

/// Why a checkpoint cannot be read. Every message names the file, and the key, opcode or global where there is one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read or written.
    #[error("cannot {doing} {file}")]
    Io {
        /// `read` or `write`.
        doing: &'static str,
        /// Path or name of the file.
        file: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file has none of the four containers.
    #[error("cannot read {file} as a checkpoint: {what}")]
    Unknown {
        /// Path or name of the file.
        file: String,
        /// What the file is instead, and what to do.
        what: String,
    },
    /// The container contradicts itself, most often because the file was cut.
    #[error("{file} is damaged: {what}; fetch it again")]
    Damaged {
        /// Path or name of the file.
        file: String,
        /// The place and the contradiction.
        what: String,
    },
    /// Not supported: it would run code, or has an unsupported kind of tensor or layout.
    #[error("{file}: refused {what}")]
    Refused {
        /// Path or name of the file.
        file: String,
        /// The opcode, global or key, and what to do.
        what: String,
    },
    /// A weight is NaN or infinite.
    #[error("{file}: {key} holds NaN or infinity; these weights cannot be used")]
    NotFinite {
        /// Path or name of the file.
        file: String,
        /// Name of the tensor.
        key: String,
    },
    /// The arrays would need more memory than the size of the file justifies.
    #[error("{file} is too large: {what}")]
    TooLarge {
        /// Path or name of the file.
        file: String,
        /// The size and the limit.
        what: String,
    },
}

/// Reads a checkpoint file. Fails as [`parse`], and if the file cannot be read.
pub fn read(path: &Path) -> Result<StateDict, Error> {
    let file = path.display().to_string();
    let io = |source| Error::Io { doing: "read", file: file.clone(), source };
    let length = std::fs::metadata(path).map_err(io)?.len();
    if length > MAX_BYTES {
        let what = format!("it has {length} bytes, and at most {MAX_BYTES} are read");
        return Err(Error::TooLarge { file, what });
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
#[derive(Clone, Copy)]
struct Input<'a> {
    name: &'a str,
    bytes: &'a [u8],
}

impl Input<'_> {
    fn unknown(&self, what: impl Into<String>) -> Error {
        Error::Unknown { file: self.name.into(), what: what.into() }
    }

    fn damaged(&self, what: impl Into<String>) -> Error {
        Error::Damaged { file: self.name.into(), what: what.into() }
    }

    fn refused(&self, what: impl Into<String>) -> Error {
        Error::Refused { file: self.name.into(), what: what.into() }
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
        self.left = self.left.checked_sub(bytes as u64).ok_or_else(|| Error::TooLarge {
            file: self.input.name.into(),
            what: format!(
                "its {} bytes would become more than {} in memory ({MAX_GROWTH} times the file, within {SMALL} and {MAX_BYTES})",
                self.input.bytes.len(),
                self.limit
            ),
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
            return Err(Error::NotFinite { file: self.input.name.into(), key: name });
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
            Err(self
                .input
                .refused(format!("the name {}: over {MAX_NAME} bytes, unprintable, or a path out of its directory", shown(name))))
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
