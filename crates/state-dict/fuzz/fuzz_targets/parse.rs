//! `parse` never panics, never hangs and never takes more memory than it says, whatever the bytes are.
#![no_main]

use std::io::{Cursor, Write};

use libfuzzer_sys::fuzz_target;
use zip::write::{SimpleFileOptions, ZipWriter};

fuzz_target!(|bytes: &[u8]| {
    // Checksums and offsets keep mutations out of a zip; so what these prefixes tell is put into a valid one here.
    match bytes.split_first_chunk::<4>() {
        Some((b"pkl:", pickle)) => check(&zip(&[("a/data.pkl", pickle), ("a/data/0", &[0; 64]), ("a/data/1", &[1; 8])])),
        Some((b"npy:", member)) => check(&zip(&[("a.npy", member)])),
        _ => check(bytes),
    }
});

fn check(bytes: &[u8]) {
    let Ok(arrays) = state_dict::parse("fuzz", bytes) else { return };
    let total: u64 = arrays.values().map(|array| array.data.len() as u64).sum();
    assert!(total <= (bytes.len() as u64 * state_dict::MAX_GROWTH).max(state_dict::SMALL));
    for array in arrays.values() {
        assert_eq!(array.shape.iter().product::<usize>() * array.dtype.size(), array.data.len());
        assert!(array.floats().is_none_or(|floats| array.dtype == state_dict::Dtype::F64 || floats.iter().all(|x| x.is_finite())));
    }
}

fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}
