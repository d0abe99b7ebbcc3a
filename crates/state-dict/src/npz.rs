//! NumPy's npz: a zip of `<name>.npy`, stored or deflated. Format: numpy/lib/format.py, versions 1 to 3.

use std::io::Read;

use crate::{Dtype, Error, Input, Output, View, Zip, shown, zip_error};

const MAGIC: &[u8] = b"\x93NUMPY";
/// Limit of a header in bytes. A usual one has 118; the limit leaves room for many dimensions.
const MAX_HEADER: usize = 4096;

/// Reads every member. A member that is not an array is refused.
pub fn read(input: Input<'_>, zip: &mut Zip<'_>, out: &mut Output<'_>) -> Result<(), Error> {
    for at in 0..zip.len() {
        let nameless = |e| zip_error(input, &at.to_string(), e);
        let entry = zip.name_for_index(at).expect("at is below the zip's length").map_err(nameless)?.into_owned();
        let mut member = zip.by_index(at).map_err(|e| zip_error(input, &entry, e))?;
        let Some(name) = entry.strip_suffix(".npy") else {
            return Err(input.refused(format!("entry {} of the zip: an npz holds .npy files only", shown(&entry))));
        };
        let broken = |e: std::io::Error| zip_error(input, &entry, e.into());

        let mut start = [0; 8];
        member.read_exact(&mut start).map_err(broken)?;
        let length = match (start.strip_prefix(MAGIC), start[6]) {
            (Some(_), 1) => read_array(&mut member).map(|b| usize::from(u16::from_le_bytes(b))),
            (Some(_), 2 | 3) => read_array(&mut member).map(|b| u32::from_le_bytes(b) as usize),
            _ => return Err(input.damaged(format!("{} has no npy header", shown(name)))),
        };
        let length = length.map_err(broken)?;
        if length > MAX_HEADER {
            return Err(input.refused(format!("{}: an npy header of {length} bytes, over {MAX_HEADER}", shown(name))));
        }
        let mut header = vec![0; length];
        member.read_exact(&mut header).map_err(broken)?;
        let view = parse_header(&header).map_err(|what| input.refused(format!("{}: {what}", shown(name))))?;

        let bytes = view.bytes().ok_or_else(|| input.refused(format!("{}: its shape overflows", shown(name))))?;
        out.spend(bytes)?;
        let mut data = Vec::new();
        // One byte more than the header implies reveals a longer member, and makes the zip check its checksum.
        member.by_ref().take(bytes as u64 + 1).read_to_end(&mut data).map_err(broken)?;
        if data.len() != bytes {
            return Err(input.damaged(format!("{} does not have the {bytes} bytes that its header implies", shown(name))));
        }
        out.insert(name.to_owned(), view, &data)?;
    }
    Ok(())
}

fn read_array<const N: usize>(reader: &mut impl Read) -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The header is a Python literal; NumPy writes it in one form only, and only that is read:
/// `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`
fn parse_header(header: &[u8]) -> Result<View, String> {
    let text = String::from_utf8_lossy(header);
    let unknown = || format!("the npy header {}", shown(text.trim_end()));
    let dense: String = text.split_ascii_whitespace().collect();
    let fields = || {
        let (descr, rest) = dense.strip_prefix("{'descr':'")?.split_once("','fortran_order':")?;
        let (order, rest) = rest.split_once(",'shape':(")?;
        let (shape, rest) = rest.split_once(')')?;
        (rest == "}" || rest == ",}").then_some((descr, order, shape))
    };
    let (descr, order, shape) = fields().ok_or_else(unknown)?;
    let dtype = match descr {
        "<f8" => Dtype::F64,
        "<f4" => Dtype::F32,
        "<f2" => Dtype::F16,
        "<i8" => Dtype::I64,
        "<i4" => Dtype::I32,
        "<i2" => Dtype::I16,
        "|i1" => Dtype::I8,
        "|u1" => Dtype::U8,
        "|b1" => Dtype::Bool,
        objects if objects.starts_with("|O") => return Err("an array of Python objects, which is a pickle; save numbers".into()),
        big if big.starts_with('>') => return Err(format!("the big-endian type {}; save it little-endian", shown(big))),
        other => return Err(format!("the type {}; save it as a float, an integer of 8 to 64 bits or bool", shown(other))),
    };
    let shape = match shape {
        "" => Vec::new(),
        _ => shape
            .strip_suffix(',')
            .unwrap_or(shape)
            .split(',')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map_err(|_| unknown())?,
    };
    match order {
        "False" => Ok(View::whole(dtype, shape)),
        "True" => Ok(View::whole_fortran(dtype, shape)),
        _ => Err(unknown()),
    }
}
