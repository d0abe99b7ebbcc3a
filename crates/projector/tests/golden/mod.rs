//! What the parity tests share.
#![allow(dead_code, reason = "not every test uses all of it")]

use std::collections::HashMap;
use std::path::PathBuf;

use projector::nn::{LoadError, Weights};
use tch::{Kind, Tensor};

/// Weights, and inputs and outputs without their `test.`.
pub fn golden(name: &str) -> (Vec<(String, Tensor)>, HashMap<String, Tensor>) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.safetensors"));
    let tensors = Tensor::read_safetensors(path).expect("golden");
    let (tests, weights): (Vec<_>, Vec<_>) = tensors.into_iter().partition(|(n, _)| n.starts_with("test."));
    (weights, tests.into_iter().map(|(n, t)| (n["test.".len()..].to_owned(), t)).collect())
}

/// Largest difference over the largest value.
pub fn relative(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    ((a - b).abs().max() / b.abs().max()).double_value(&[])
}

/// Float32 differs from the golden scripts' float64 by 4e-6 at most; a ReLU on the other side of its corner makes 1e-3 of it, and no
/// input is near one (`corners.py`).
pub fn assert_close(name: &str, a: &Tensor, b: &Tensor) {
    let error = relative(a, b);
    println!("{name}: {error:.1e}");
    assert!(error <= 1e-4, "{name} differs by {error:.1e}");
}

/// `load` takes all `tensors`, and refuses a spare one, and each of them missing or misshapen, by name.
pub fn assert_strict(tensors: &[(String, Tensor)], load: &dyn Fn(&mut Weights) -> Result<(), LoadError>) {
    let load = |change: &dyn Fn(&mut HashMap<String, Tensor>)| {
        let mut map: HashMap<_, _> = tensors.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect();
        change(&mut map);
        let mut weights = Weights::new(map);
        load(&mut weights).and_then(|()| weights.finish())
    };
    load(&|_| {}).expect("loads");
    let spare = load(&|t| drop(t.insert("spare".into(), Tensor::zeros([1], (Kind::Float, tch::Device::Cpu)))));
    assert!(matches!(&spare, Err(LoadError::Spare(n)) if n == "spare"), "{spare:?}");
    for (name, tensor) in tensors {
        let missing = load(&|t| drop(t.remove(name)));
        assert!(matches!(&missing, Err(LoadError::Missing(n)) if n == name), "{name}: {missing:?}");
        // One row more, or a vector for a single number.
        let wrong = if tensor.dim() == 0 { tensor.repeat([2]) } else { Tensor::cat(&[tensor, &tensor.narrow(0, 0, 1)], 0) };
        let misshapen = load(&|t| drop(t.insert(name.clone(), wrong.shallow_clone())));
        assert!(matches!(&misshapen, Err(LoadError::Shape { name: n, .. }) if n == name), "{name}: {misshapen:?}");
    }
}
