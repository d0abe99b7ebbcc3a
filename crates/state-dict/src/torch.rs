//! torch's two containers around pickles (torch `serialization.py`: `_legacy_save`, `_save`).

use std::collections::BTreeMap;
use std::io::Cursor;

use zip::{CompressionMethod, ZipArchive};

use crate::pickle::{Pickle, Value};
use crate::{Error, Input, Output, Zip, npz, shown, zip_error};

const PROTOCOL: i64 = 1001;

/// Until 1.6: pickles of the magic number, the protocol, the machine, the object and the storages' keys; then for each key, in
/// that order, the number of its elements (i64) and the elements.
pub fn read_legacy(input: Input<'_>, after_magic: usize, out: &mut Output<'_>) -> Result<(), Error> {
    let mut rest = &input.bytes[after_magic..];
    match Pickle::load(input, &mut rest)?.root {
        Value::Int(PROTOCOL) => {}
        _ => return Err(input.refused(format!("a protocol of torch.save other than {PROTOCOL}"))),
    }
    let machine = Pickle::load(input, &mut rest)?;
    if !matches!(machine.get(machine.root, "little_endian"), Some(Value::Bool(true))) {
        return Err(big_endian(input));
    }
    let object = Pickle::load(input, &mut rest)?;
    let keys = Pickle::load(input, &mut rest)?;

    let mut data = BTreeMap::new();
    for &key in keys.items(keys.root).ok_or_else(|| input.damaged("the list of storages is not a list"))? {
        let Value::Str(key) = key else { return Err(input.damaged("a storage's key is not a string")) };
        let &(dtype, numel) =
            object.storages.get(key).ok_or_else(|| input.damaged(format!("no tensor names the storage {}", shown(key))))?;
        let storage = || {
            let (count, after) = rest.split_first_chunk::<8>()?;
            let same = u64::from_le_bytes(*count) == numel as u64;
            after.split_at_checked(numel.checked_mul(dtype.size())?).filter(|_| same)
        };
        let (elements, after) =
            storage().ok_or_else(|| input.damaged(format!("the storage {} does not have its {numel} elements", shown(key))))?;
        rest = after;
        if data.insert(key, elements).is_some() {
            return Err(input.refused(format!("the storage {}, which occurs twice", shown(key))));
        }
    }
    if !rest.is_empty() {
        return Err(input.damaged(format!("{} bytes follow the last storage", rest.len())));
    }
    object.flatten(&data, out)
}

/// Any zip: torch's since 1.6 if it has a `data.pkl` (with `data/<key>` and, newer, `byteorder` beside it), else NumPy's.
pub fn read_zip(input: Input<'_>, out: &mut Output<'_>) -> Result<(), Error> {
    let damaged = |e| zip_error(input, "", e);
    let mut zip = ZipArchive::new(Cursor::new(input.bytes)).map_err(damaged)?;
    if zip.has_duplicate_names() {
        return Err(input.refused("a zip with two entries of one name"));
    }
    if zip.has_overlapping_entries().map_err(damaged)? {
        return Err(input.refused("a zip whose entries overlap"));
    }
    let mut folders = Vec::new();
    for name in zip.file_names() {
        let name = name.map_err(damaged)?;
        let folder = name.strip_suffix("data.pkl").filter(|folder| folder.is_empty() || folder.ends_with('/'));
        folders.extend(folder.map(str::to_owned));
    }
    match &folders[..] {
        [] if zip.file_names().any(|name| name.is_ok_and(|name| name.ends_with(".npy"))) => npz::read(input, &mut zip, out),
        [] => Err(input.unknown("a zip with neither a data.pkl (torch) nor .npy files (NumPy)")),
        [folder] => read_torch(input, &mut zip, folder, out),
        _ => Err(input.refused("a zip with several data.pkl")),
    }
}

fn read_torch(input: Input<'_>, zip: &mut Zip<'_>, folder: &str, out: &mut Output<'_>) -> Result<(), Error> {
    let order = format!("{folder}byteorder");
    if zip.index_for_name(&order).is_some() && entry(input, zip, &order)? != b"little" {
        return Err(big_endian(input));
    }
    let mut bytes = entry(input, zip, &format!("{folder}data.pkl"))?;
    let object = Pickle::load(input, &mut bytes)?;
    let mut data = BTreeMap::new();
    for (&key, &(dtype, numel)) in &object.storages {
        let elements = entry(input, zip, &format!("{folder}data/{key}"))?;
        if numel.checked_mul(dtype.size()) != Some(elements.len()) {
            let held = elements.len();
            return Err(input.damaged(format!("the storage {} has {held} bytes, not {numel} elements of {dtype:?}", shown(key))));
        }
        data.insert(key, elements);
    }
    object.flatten(&data, out)
}

/// The bytes of a stored entry, borrowed from the file. Checks its checksum.
fn entry<'a>(input: Input<'a>, zip: &mut Zip<'_>, name: &str) -> Result<&'a [u8], Error> {
    let mut entry = zip.by_name(name).map_err(|e| zip_error(input, name, e))?;
    if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
        return Err(input.refused(format!("entry {} of the zip, which is compressed: torch.save stores", shown(name))));
    }
    let length = std::io::copy(&mut entry, &mut std::io::sink()).map_err(|e| zip_error(input, name, e.into()))?;
    let bytes = || {
        let start = usize::try_from(entry.data_start()?).ok()?;
        input.bytes.get(start..)?.get(..usize::try_from(length).ok()?)
    };
    bytes().ok_or_else(|| input.damaged(format!("entry {} of the zip lies outside the file", shown(name))))
}

fn big_endian(input: Input<'_>) -> Error {
    input.refused("a big-endian file, or one without its byte order; save it again on a little-endian machine")
}
