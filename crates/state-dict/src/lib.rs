//! Reads checkpoint files that others published into named arrays, without running anything in them.
//!
//! Four containers, told apart by content: torch's first one (before 1.6: pickles, then raw data), torch's zip, NumPy's npz and
//! safetensors. A pickle is a program; `pickle.rs` runs the small part of that language which builds dicts and tensors, and
//! refuses by name every opcode and every global outside it.
//!
//! What every container keeps:
//! * Nested dicts are flattened with '.' (`state_dict.conv1.weight`), lists with the index; what is no tensor is left out.
//! * Arrays are row-major, contiguous and little-endian, whatever the strides were. Big-endian files are refused.
//! * Floats are finite, names are unique, printable and lead out of no directory.
//! * Nothing is allocated because a header says so. What is read is at most [`MAX_GROWTH`] times the file (compression, views
//!   that repeat elements, tensors under several names), or [`SMALL`], and never more than [`MAX_BYTES`].
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
use std::path::Path;

pub use array::{Array, Dtype};
use array::{View, gather, is_finite};
pub use safetensors::write_safetensors;

/// Named arrays, by name.
pub type StateDict = BTreeMap<String, Array>;

/// What is read may be this many times as large as the file.
pub const MAX_GROWTH: u64 = 16;
/// What is read may always be as large as this, in bytes.
pub const SMALL: u64 = 16 << 20;
/// The largest file that is read, and the most that is made of one, in bytes.
pub const MAX_BYTES: u64 = 16 << 30;
/// The longest name, in bytes; torch's are a tenth of it.
const MAX_NAME: usize = 512;
/// What a name costs beside its bytes and data: an entry of the map, a shape.
const ENTRY: usize = 64;

const LEGACY_MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
const ZIP_MAGIC: &[u8] = b"PK\x03\x04";

/// Why a checkpoint was not read. Every message names the file, and the key, opcode or global where there is one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error("cannot {doing} {file}")]
    Io {
        /// "read" or "write".
        doing: &'static str,
        /// The file.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// None of the four containers.
    #[error("{file} is no checkpoint that can be read: {what}")]
    Unknown {
        /// The file.
        file: String,
        /// What it is instead, and what to do.
        what: String,
    },
    /// A known container that contradicts itself, most often because it was cut: fetch it again.
    #[error("{file} is damaged: {what}; fetch it again")]
    Damaged {
        /// The file.
        file: String,
        /// Where, and how.
        what: String,
    },
    /// Outside what is read: it would run code, or it is a kind of tensor or layout that is not known here.
    #[error("{file}: refused {what}")]
    Refused {
        /// The file.
        file: String,
        /// The opcode, global or key, and what to do.
        what: String,
    },
    /// A weight is not a number, or infinite.
    #[error("{file}: {key} holds NaN or infinity; these weights cannot be used")]
    NotFinite {
        /// The file.
        file: String,
        /// The tensor.
        key: String,
    },
    /// More memory would be needed than the file's own size accounts for.
    #[error("{file} is too large: {what}")]
    TooLarge {
        /// The file.
        file: String,
        /// Which limit.
        what: String,
    },
}

/// Reads a checkpoint. Errors as [`parse`], and what the file system refuses.
pub fn read(path: &Path) -> Result<StateDict, Error> {
    let file = path.display().to_string();
    let io = |source| Error::Io { doing: "read", file: file.clone(), source };
    let length = std::fs::metadata(path).map_err(io)?.len();
    if length > MAX_BYTES {
        let what = format!("{length} bytes, where {MAX_BYTES} are read at most");
        return Err(Error::TooLarge { file, what });
    }
    parse(&file, &std::fs::read(path).map_err(io)?)
}

/// Reads the checkpoint that these bytes are. `name` is for messages only.
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
            [0x80, ..] => "a pickle without torch's magic number; save the state_dict with torch.save or as safetensors",
            [0x89, b'H', b'D', b'F', ..] => "HDF5; save its arrays with np.savez",
            _ => "neither torch.save's formats, npz nor safetensors (is it a page that says why there is no file?)",
        }));
    }
    if out.arrays.is_empty() {
        return Err(input.refused("a checkpoint without tensors"));
    }
    Ok(out.arrays)
}

/// The file that is read: its name for messages, and all of it.
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

/// What was read so far, and how much more may be.
struct Output<'a> {
    input: Input<'a>,
    arrays: StateDict,
    limit: u64,
    /// Bytes.
    left: u64,
}

impl<'a> Output<'a> {
    fn new(input: Input<'a>) -> Self {
        let limit = (input.bytes.len() as u64).saturating_mul(MAX_GROWTH).clamp(SMALL, MAX_BYTES);
        Output { input, arrays: StateDict::new(), limit, left: limit }
    }

    /// Takes from what may still be made, before it is made.
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

    /// Adds a view of `storage` (the whole storage, little-endian) under `name`.
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
            return Err(self.input.refused(format!("{name}: it is there twice")));
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

/// What a library says of the file, and may quote from it: without control characters, cut.
fn quoted(message: &impl std::fmt::Display) -> String {
    message.to_string().chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A string of the file for a message: quoted, without control characters, cut.
fn shown(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}
