//! safetensors, by its own crate; what is added is the refusal of what that crate lets pass.

use std::collections::BTreeSet;
use std::path::Path;

use ::safetensors::tensor::{Dtype as Theirs, SafeTensors, TensorView};
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

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
    let mut json = serde_json::Deserializer::from_slice(header(input.bytes).unwrap_or_default());
    let unique = json.deserialize_map(UniqueNames).and_then(|()| json.end());
    unique.map_err(|e| input.damaged(format!("the header: {}", quoted(&e))))?;
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
    let failed = |e| Error::Io(path.display().to_string(), "write", std::io::Error::other(e));
    let views = arrays
        .iter()
        .map(|(name, array)| Ok((name, TensorView::new(theirs(array.dtype), array.shape.clone(), &array.data)?)))
        .collect::<Result<Vec<_>, ::safetensors::SafeTensorError>>()
        .map_err(failed)?;
    ::safetensors::serialize_to_file(views, None, path).map_err(failed)
}

fn ours(dtype: Theirs) -> Option<Dtype> {
    use Dtype::*;
    [F64, F32, F16, Bf16, I64, I32, I16, I8, U8, Bool].into_iter().find(|&ours| theirs(ours) == dtype)
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

/// Visits an object of JSON, and fails if a key is there twice: the crate keeps the last of several equal names.
struct UniqueNames;

impl<'de> Visitor<'de> for UniqueNames {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = BTreeSet::new();
        while let Some((name, _)) = map.next_entry::<String, IgnoredAny>()? {
            if let Some(name) = seen.replace(name) {
                return Err(A::Error::custom(format!("{} is there twice", shown(&name))));
            }
        }
        Ok(())
    }
}
