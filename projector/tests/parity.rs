//! The networks against numbers made by the reference code (`golden/make_nn.py`).

use std::collections::HashMap;
use std::path::PathBuf;

use projector::nn::biggan_deep::{self, BigganDeep};
use projector::nn::lpips::{self, Lpips};
use projector::nn::{LoadError, Weights};
use projector::{Generator, loss::LossTarget};
use proto::{L1Scale, MaskMode};
use tch::{Kind, Tensor};

#[path = "golden/weights.rs"]
mod weights;

fn golden(name: &str) -> (Vec<(String, Tensor)>, HashMap<String, Tensor>) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.safetensors"));
    let tensors = Tensor::read_safetensors(path).expect("golden");
    let (tests, weights): (Vec<_>, Vec<_>) = tensors.into_iter().partition(|(n, _)| n.starts_with("test."));
    (weights, tests.into_iter().map(|(n, t)| (n["test.".len()..].to_owned(), t)).collect())
}

fn config() -> biggan_deep::Config {
    serde_json::from_str(include_str!("golden/biggan_deep.config.json")).expect("config")
}

fn biggan(truncation: f64) -> (BigganDeep, HashMap<String, Tensor>) {
    let (tensors, tests) = golden("biggan_deep");
    let mut weights = Weights::new(tensors);
    let generator = BigganDeep::load(&config(), &mut weights, truncation).expect("loads");
    weights.finish().expect("every tensor is used");
    (generator, tests)
}

/// Largest difference over the largest value.
fn relative(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    ((a - b).abs().max() / b.abs().max()).double_value(&[])
}

fn assert_close(name: &str, a: &Tensor, b: &Tensor) {
    let error = relative(a, b);
    println!("{name}: {error:.1e}");
    assert!(error <= 1e-4, "{name} differs by {error:.1e}");
}

#[test]
fn biggan_deep_gives_the_images_and_gradients_of_the_reference() {
    let (generator, tests) = biggan(1.0);
    let z = tests["z"].detach().set_requires_grad(true);
    let c = tests["c"].detach().set_requires_grad(true);
    let images = generator.generate(&z, &c);
    assert_close("images", &images.detach(), &tests["output"]);
    let sum = (&images * &tests["weighting"]).sum(Kind::Float);
    let gradients = Tensor::run_backward(&[sum], &[&z, &c], false, false);
    assert_close("gradient of z", &gradients[0], &tests["grad_z"]);
    assert_close("gradient of c", &gradients[1], &tests["grad_c"]);
}

#[test]
fn biggan_deep_mixes_the_statistics_of_two_truncations_as_the_reference_does() {
    for (truncation, name) in [(0.43, "output_truncation_043"), (0.437, "output_truncation_0437")] {
        let (generator, tests) = biggan(truncation);
        assert_close(name, &generator.generate(&tests["z"], &tests["c"]), &tests[name]);
    }
}

#[test]
fn a_checkpoint_with_a_missing_spare_misshapen_or_infinite_tensor_is_refused_by_name() {
    type Tensors = Vec<(String, Tensor)>;
    let load = |change: &dyn Fn(&mut Tensors)| -> String {
        let (mut tensors, _) = golden("biggan_deep");
        change(&mut tensors);
        let mut weights = Weights::new(tensors);
        let loaded = BigganDeep::load(&config(), &mut weights, 1.0).and_then(|_| weights.finish());
        loaded.expect_err("must be refused").to_string()
    };
    let name = "generator.layers.2.conv_1.weight_orig";
    let position = |t: &Tensors| t.iter().position(|(n, _)| n == name).expect("is there");
    assert_eq!(load(&|t| drop(t.remove(position(t)))), format!("tensor {name} is missing"));
    assert_eq!(
        load(&|t| t.push(("generator.extra".into(), Tensor::zeros([1], (Kind::Float, tch::Device::Cpu))))),
        "tensor generator.extra does not belong to the network"
    );
    let misshapen = load(&|t| {
        let i = position(t);
        t[i].1 = t[i].1.narrow(0, 0, 1);
    });
    assert!(misshapen.starts_with(&format!("tensor {name} has shape [1, ")), "{misshapen}");
    let infinite = load(&|t| {
        let i = position(t);
        t[i].1 = &t[i].1 / 0.0;
    });
    assert_eq!(infinite, format!("tensor {name} contains values that are not finite"));
}

#[test]
fn a_configuration_that_contradicts_itself_is_refused() {
    for (change, part) in [
        ((|c| c.output_dim = 64) as fn(&mut biggan_deep::Config), "3 up-samplings make images of 32, not 64"),
        (|c| c.layers[1].2 = 4, "layer 1 ends with 4 channels and layer 2 starts with 8"),
        (|c| c.layers.clear(), "there are no layers"),
    ] {
        let mut config = config();
        change(&mut config);
        let error = BigganDeep::load(&config, &mut Weights::new([]), 1.0).err().expect("must be refused");
        assert!(matches!(error, LoadError::Config(_)) && error.to_string().contains(part), "{error}");
    }
}

fn lpips_alex() -> (Lpips, HashMap<String, Tensor>) {
    let (heads, tests) = golden("lpips_alex");
    let trunk = weights::alexnet().into_iter().map(|(n, shape, v)| (n.to_owned(), Tensor::from_slice(&v).view(shape)));
    let mut weights = Weights::new(heads.into_iter().chain(trunk));
    let lpips = Lpips::load(&lpips::Config::alex(), &mut weights).expect("loads");
    weights.finish().expect("every tensor is used");
    (lpips, tests)
}

fn loss(mask: MaskMode) -> proto::Loss {
    proto::Loss { beta: 10.0, l1: L1Scale::ChannelSum, mask, background: 0.3 }
}

#[test]
fn lpips_gives_the_distances_and_gradients_of_the_reference() {
    let (lpips, tests) = lpips_alex();
    let (x, y) = (&tests["x"], &tests["y"]);
    assert_close("map", &lpips.map(x, y), &tests["map"]);

    // With equal weights everywhere the masked distance is the mean of the map.
    let ones = Tensor::ones([1, 1, x.size()[2], x.size()[3]], (Kind::Float, tch::Device::Cpu));
    let target = LossTarget::new(&lpips, &loss(MaskMode::UpsampleFeatures), y, &ones.expand([y.size()[0], -1, -1, -1], false));
    let mean = tests["map"].mean_dim(&[1i64, 2, 3][..], false, Kind::Float);
    assert_close("mean of the map", &target.terms(&lpips, x).1, &mean);

    // The down-sampled mask of ones gives LPIPS without `spatial`.
    let target = LossTarget::new(&lpips, &loss(MaskMode::DownsampleMask), y, &ones.expand([y.size()[0], -1, -1, -1], false));
    let x = x.detach().set_requires_grad(true);
    let distance = target.terms(&lpips, &x).1;
    assert_close("distance", &distance.detach(), &tests["distance"].flatten(0, -1));
    let gradients = Tensor::run_backward(&[distance.sum(Kind::Float)], &[&x], false, false);
    assert!(gradients[0].isfinite().all().int64_value(&[]) == 1, "a flat region makes the gradient infinite");
    if let Some(expected) = tests.get("grad_x") {
        assert_close("gradient", &gradients[0], expected);
    }
}

#[test]
fn the_adjoint_on_the_weights_gives_the_masked_mean_of_the_up_sampled_map() {
    let (lpips, tests) = lpips_alex();
    let (x, y) = (&tests["x"], &tests["y"]);
    let size = x.size();
    let mask = Tensor::full([size[0], 1, size[2], size[3]], 0.3, (Kind::Float, tch::Device::Cpu));
    let _ = mask.narrow(2, 10, 31).narrow(3, 5, 40).fill_(1.0);
    let target = LossTarget::new(&lpips, &loss(MaskMode::UpsampleFeatures), y, &mask);
    let sum = |t: &Tensor| t.sum_dim_intlist(&[1i64, 2, 3][..], false, Kind::Float);
    let expected = sum(&(&tests["map"] * &mask)) / sum(&mask);
    assert_close("masked distance", &target.terms(&lpips, x).1, &expected);
}
