//! safetensors, by its own crate; what is added is the refusal of what that crate lets pass.

use std::collections::BTreeSet;
use std::path::Path;

use ::safetensors::tensor::{Dtype as Theirs, SafeTensors, TensorView};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::{Dtype, Error, Input, Output, StateDict, View, quoted, shown};

/// The length of the header, and its first brace.
pub fn is_safetensors(bytes: &[u8]) -> bool {
    header(bytes).is_some_and(|header| header.starts_with(b"{"))
}

fn header(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    rest.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?)
}

/// Reads every tensor.
pub fn read(input: Input<'_>, out: &mut Output<'_>) -> Result<(), Error> {
    // The crate keeps the last of several equal names.
    serde_json::from_slice::<UniqueNames>(header(input.bytes).unwrap_or_default())
        .map_err(|e| input.damaged(format!("the header: {}", quoted(&e))))?;
    let file = SafeTensors::deserialize(input.bytes).map_err(|e| input.damaged(format!("the header: {}", quoted(&e))))?;
    for (name, tensor) in file.iter() {
        let dtype = ours(tensor.dtype()).ok_or_else(|| {
            input.refused(format!("{}: the type {}; save it as a float or integer", shown(name), tensor.dtype()))
        })?;
        out.insert(name.to_owned(), View::whole(dtype, tensor.shape().to_vec()), tensor.data())?;
    }
    Ok(())
}

/// Writes a safetensors file in place of what was there. Errors when an array's data does not fit its shape, and what the file
/// system refuses.
pub fn write_safetensors(path: &Path, arrays: &StateDict) -> Result<(), Error> {
    let io = |source| Error::Io { doing: "write", file: path.display().to_string(), source };
    let views = arrays
        .iter()
        .map(|(name, array)| Ok((name, TensorView::new(theirs(array.dtype), array.shape.clone(), &array.data)?)))
        .collect::<Result<Vec<_>, ::safetensors::SafeTensorError>>()
        .map_err(|e| io(std::io::Error::other(e)))?;
    ::safetensors::serialize_to_file(views, None, path).map_err(|e| io(std::io::Error::other(e)))
}

fn ours(dtype: Theirs) -> Option<Dtype> {
    Some(match dtype {
        Theirs::F64 => Dtype::F64,
        Theirs::F32 => Dtype::F32,
        Theirs::F16 => Dtype::F16,
        Theirs::BF16 => Dtype::Bf16,
        Theirs::I64 => Dtype::I64,
        Theirs::I32 => Dtype::I32,
        Theirs::I16 => Dtype::I16,
        Theirs::I8 => Dtype::I8,
        Theirs::U8 => Dtype::U8,
        Theirs::BOOL => Dtype::Bool,
        _ => return None,
    })
}

fn theirs(dtype: Dtype) -> Theirs {
    match dtype {
        Dtype::F64 => Theirs::F64,
        Dtype::F32 => Theirs::F32,
        Dtype::F16 => Theirs::F16,
        Dtype::Bf16 => Theirs::BF16,
        Dtype::I64 => Theirs::I64,
        Dtype::I32 => Theirs::I32,
        Dtype::I16 => Theirs::I16,
        Dtype::I8 => Theirs::I8,
        Dtype::U8 => Theirs::U8,
        Dtype::Bool => Theirs::BOOL,
    }
}

/// An object of JSON in which no key is there twice.
struct UniqueNames;

impl<'de> Deserialize<'de> for UniqueNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = UniqueNames;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueNames, A::Error> {
                let mut seen = BTreeSet::new();
                while let Some((name, _)) = map.next_entry::<String, IgnoredAny>()? {
                    if let Some(name) = seen.replace(name) {
                        return Err(serde::de::Error::custom(format!("{} is there twice", shown(&name))));
                    }
                }
                Ok(UniqueNames)
            }
        }
        deserializer.deserialize_map(Names)
    }
}
