//! What others publish is read: files that torch, NumPy and safetensors wrote (fixtures/make.py), and ours.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use state_dict::{Array, Dtype, StateDict, parse, read, write_safetensors};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn of(name: &str) -> StateDict {
    read(&fixture(name)).unwrap()
}

/// Name, type, shape and values of what make.py calls weights().
fn weights() -> Vec<(&'static str, Dtype, Vec<usize>, Vec<f64>)> {
    let base = |i: usize| i as f64 / 4.0 - 1.0;
    vec![
        ("bfloat16", Dtype::Bf16, vec![2], vec![1.5, -3.0e38]),
        ("bool", Dtype::Bool, vec![2], vec![1.0, 0.0]),
        ("conv.weight", Dtype::F32, vec![3, 4], (0..12).map(base).collect()),
        ("double", Dtype::F64, vec![1], vec![0.1]),
        ("empty", Dtype::F32, vec![0, 3], vec![]),
        ("half", Dtype::F16, vec![4], vec![1.5, -2.0, 65504.0, 2f64.powi(-24)]),
        ("int16", Dtype::I16, vec![1], vec![-300.0]),
        ("int32", Dtype::I32, vec![1], vec![-70000.0]),
        ("int8", Dtype::I8, vec![1], vec![-3.0]),
        ("num_batches_tracked", Dtype::I64, vec![], vec![-7.0]),
        ("parameter", Dtype::F32, vec![1, 1], vec![0.5]),
        ("repeated", Dtype::F32, vec![2, 3], vec![1.0, 1.0, 1.0, 2.0, 2.0, 2.0]),
        ("shared.tail", Dtype::F32, vec![2], vec![4.0, 5.0]),
        ("shared.whole", Dtype::F32, vec![6], (0..6).map(f64::from).collect()),
        ("strided", Dtype::F32, vec![2, 2, 2], vec![4.0, 6.0, 8.0, 10.0, 16.0, 18.0, 20.0, 22.0]),
        ("transposed", Dtype::F32, vec![4, 3], (0..12).map(|i| 2.0 * base(i % 3 * 4 + i / 3)).collect()),
        ("uint8", Dtype::U8, vec![1], vec![200.0]),
    ]
}

fn values(array: &Array) -> Vec<f64> {
    fn all<const N: usize>(data: &[u8], of: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        data.chunks_exact(N).map(|b| of(b.try_into().unwrap())).collect()
    }
    match array.dtype {
        Dtype::F64 => all(&array.data, f64::from_le_bytes),
        Dtype::I64 => all(&array.data, |b| i64::from_le_bytes(b) as f64),
        Dtype::I32 => all(&array.data, |b| i32::from_le_bytes(b).into()),
        Dtype::I16 => all(&array.data, |b| i16::from_le_bytes(b).into()),
        Dtype::I8 => all(&array.data, |b| i8::from_le_bytes(b).into()),
        Dtype::U8 | Dtype::Bool => all(&array.data, |[b]| b.into()),
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 => array.floats().unwrap().into_iter().map(f64::from).collect(),
    }
}

fn assert_weights(read: &StateDict) {
    assert_eq!(read.keys().collect::<Vec<_>>(), weights().iter().map(|w| w.0).collect::<Vec<_>>());
    for (name, dtype, shape, expected) in weights() {
        let array = &read[name];
        assert_eq!((array.dtype, &array.shape, array.data.len()), (dtype, &shape, expected.len() * dtype.size()), "{name}");
        let got = values(array);
        // 8 bits of a bfloat16 cannot hold -3e38.
        let near = |(a, b): (&f64, &f64)| (a - b).abs() <= if dtype == Dtype::Bf16 { b.abs() / 256.0 } else { 0.0 };
        assert!(got.iter().zip(&expected).all(near), "{name}: {got:?}, not {expected:?}");
    }
}

#[test]
fn every_kind_of_tensor_is_read_from_the_old_torch_format() {
    assert_weights(&of("weights.legacy.pth"));
}

#[test]
fn every_kind_of_tensor_is_read_from_torchs_zip() {
    assert_weights(&of("weights.zip.pth"));
}

#[test]
fn every_kind_of_tensor_is_read_from_safetensors() {
    assert_weights(&of("weights.safetensors"));
}

#[test]
fn nested_dicts_get_dotted_names_and_what_is_no_tensor_is_left_out() {
    for name in ["nested.legacy.pth", "nested.zip.pth"] {
        let read = of(name);
        let expected = [
            ("list.0", vec![5.0]),
            ("optimizer.state.0.exp_avg", vec![0.1, 0.1]),
            ("optimizer.state.0.exp_avg_sq", vec![0.001, 0.001]),
            ("optimizer.state.0.step", vec![1.0]),
            ("optimizer.state.1.exp_avg", vec![0.1]),
            ("optimizer.state.1.exp_avg_sq", vec![0.001]),
            ("optimizer.state.1.step", vec![1.0]),
            ("state_dict.bias", vec![2.9]),
            ("state_dict.weight", vec![0.9, 1.9]),
        ];
        assert_eq!(read.keys().collect::<Vec<_>>(), expected.iter().map(|e| e.0).collect::<Vec<_>>(), "{name}");
        for (key, expected) in expected {
            let got = read[key].floats().unwrap();
            assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{name} {key}: {got:?}");
        }
    }
}

#[test]
fn arrays_are_read_from_npz_stored_or_deflated_and_from_column_major_ones() {
    let mut expected = BTreeMap::from([
        ("bool", (Dtype::Bool, vec![2], vec![1.0, 0.0])),
        ("conv/weight", (Dtype::F32, vec![3, 4], (0..12).map(|i| i as f64 / 4.0 - 1.0).collect())),
        ("double", (Dtype::F64, vec![], vec![0.1])),
        ("fortran", (Dtype::F32, vec![2, 3], vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0])),
        ("half", (Dtype::F16, vec![2], vec![1.5, -2.0])),
        ("int64", (Dtype::I64, vec![1], vec![-7.0])),
    ]);
    for name in ["stored.npz", "deflated.npz"] {
        if name == "deflated.npz" {
            expected.insert("zeros", (Dtype::F32, vec![5000], vec![0.0; 5000]));
        }
        let read = of(name);
        assert_eq!(read.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (key, (dtype, shape, numbers)) in &expected {
            assert_eq!((read[*key].dtype, &read[*key].shape), (*dtype, shape), "{name} {key}");
            assert!(values(&read[*key]) == *numbers, "{name} {key}");
        }
    }
}

#[test]
fn half_precision_becomes_f32_exactly() {
    // Every finite half, from its definition: sign, exponent - 15, fraction of 1024.
    let finite: Vec<u16> = (0..=u16::MAX).filter(|bits| bits & 0x7c00 != 0x7c00).collect();
    let array =
        Array { dtype: Dtype::F16, shape: vec![finite.len()], data: finite.iter().flat_map(|b| b.to_le_bytes()).collect() };
    for (bits, got) in finite.iter().zip(array.floats().unwrap()) {
        let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023) / 1024.0);
        let magnitude = if exponent == 0 { fraction * 2f64.powi(-14) } else { (1.0 + fraction) * 2f64.powi(exponent - 15) };
        let expected = if bits >> 15 == 1 { -magnitude } else { magnitude };
        assert_eq!(f64::from(got), expected, "{bits:#x}");
    }
}

#[test]
fn what_is_written_as_safetensors_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("converted.safetensors");
    write_safetensors(&path, &of("weights.legacy.pth")).unwrap();
    assert_weights(&read(&path).unwrap());
}

#[test]
fn an_array_that_does_not_fit_its_shape_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wrong.safetensors");
    let wrong = StateDict::from([("w".into(), Array { dtype: Dtype::F32, shape: vec![2], data: vec![0; 4] })]);
    assert!(write_safetensors(&path, &wrong).unwrap_err().to_string().contains("wrong.safetensors"));
    assert!(!path.exists());
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let message = read(Path::new("/nowhere/at-all.pth")).unwrap_err().to_string();
    assert_eq!(message, "cannot read /nowhere/at-all.pth");
}

#[test]
fn the_same_bytes_give_the_same_answer_under_any_name() {
    let bytes = std::fs::read(fixture("weights.zip.pth")).unwrap();
    assert!(parse("one", &bytes).unwrap() == parse("other.npz", &bytes).unwrap());
}
