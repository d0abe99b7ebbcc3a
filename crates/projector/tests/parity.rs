//! The networks against numbers made by the reference code (`golden/make_nn.py`).

use std::collections::HashMap;

use projector::nn::biggan_deep::{self, BigganDeep};
use projector::nn::lpips::{self, Lpips};
use projector::nn::{LoadError, Weights};
use projector::{Generator, loss::LossTarget};
use proto::{L1Scale, MaskMode};
use tch::{Kind, Tensor};

use golden::{assert_close, golden};

mod golden;

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
fn a_folded_biggan_deep_gives_the_same_images_and_is_as_strict() {
    let (generator, tests) = biggan(0.43);
    let folded = generator.folded();
    let mut weights = Weights::new(folded.iter().map(|(n, t)| (n.clone(), t.contiguous())));
    let again = BigganDeep::load_folded(&config(), &mut weights).expect("loads");
    weights.finish().expect("every tensor is used");
    let (z, c) = (&tests["z"], &tests["c"]);
    assert!(again.generate(z, c) == generator.generate(z, c), "other images");
    assert!(again.embed(3) == generator.embed(3), "other classes");
    golden::assert_strict(&folded, &|weights| BigganDeep::load_folded(&config(), weights).map(drop));
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

const PERCEPTUAL: [&str; 3] = ["alex", "vgg16", "squeeze"];

/// With the published heads, and trunks that are not stored.
fn lpips_tensors(name: &str) -> (Vec<(String, Tensor)>, HashMap<String, Tensor>) {
    let (mut tensors, tests) = golden(&format!("lpips_{name}"));
    let alexnet =
        || seeded::alexnet().into_iter().map(|(n, shape, v)| (n.to_owned(), Tensor::from_slice(&v).view(shape))).collect();
    tensors.extend(if name == "alex" { alexnet() } else { seeded::seeded(name) });
    (tensors, tests)
}

fn lpips(name: &str) -> (Lpips, HashMap<String, Tensor>) {
    let (tensors, tests) = lpips_tensors(name);
    let mut weights = Weights::new(tensors);
    let lpips = Lpips::load(&lpips::Config::named(name).expect("is known"), &mut weights).expect("loads");
    weights.finish().expect("every tensor is used");
    (lpips, tests)
}

fn loss(mask: MaskMode) -> proto::Loss {
    proto::Loss { beta: 10.0, l1: L1Scale::ChannelSum, mask, background: 0.3 }
}

#[test]
fn lpips_gives_the_distances_and_gradients_of_the_reference() {
    for name in PERCEPTUAL {
        let (lpips, tests) = lpips(name);
        let (x, y) = (&tests["x"], &tests["y"]);
        assert_close(&format!("{name}: map"), &lpips.map(x, y), &tests["map"]);

        // With equal weights everywhere the masked distance is the mean of the map.
        let ones = Tensor::ones([1, 1, x.size()[2], x.size()[3]], (Kind::Float, tch::Device::Cpu));
        let ones = ones.expand([y.size()[0], -1, -1, -1], false);
        let target = LossTarget::new(&lpips, &loss(MaskMode::UpsampleFeatures), y, &ones);
        let mean = tests["map"].mean_dim(&[1i64, 2, 3][..], false, Kind::Float);
        assert_close(&format!("{name}: mean of the map"), &target.terms(&lpips, x).1, &mean);

        // The down-sampled mask of ones gives LPIPS without `spatial`.
        let target = LossTarget::new(&lpips, &loss(MaskMode::DownsampleMask), y, &ones);
        let gradient = |x: &Tensor| {
            let x = x.detach().set_requires_grad(true);
            let distance = target.terms(&lpips, &x).1;
            let gradient = Tensor::run_backward(&[distance.sum(Kind::Float)], &[&x], false, false).remove(0);
            (distance.detach(), gradient)
        };
        let (distance, gradient_of_x) = gradient(x);
        assert_close(&format!("{name}: distance"), &distance, &tests["distance"].flatten(0, -1));
        assert_close(&format!("{name}: gradient"), &gradient_of_x, &tests["grad_x"]);
        let flat = x.copy();
        let _ = flat.narrow(2, 0, flat.size()[2] / 2).fill_(0.25);
        assert!(gradient(&flat).1.isfinite().all().int64_value(&[]) == 1, "a flat region makes the gradient infinite");
    }
}

#[test]
fn a_perceptual_network_with_a_missing_spare_or_misshapen_tensor_is_refused_by_name() {
    for name in PERCEPTUAL {
        let config = lpips::Config::named(name).expect("is known");
        let (tensors, _) = lpips_tensors(name);
        golden::assert_strict(&tensors, &|weights| Lpips::load(&config, weights).map(drop));
    }
}

#[test]
fn the_adjoint_on_the_weights_gives_the_masked_mean_of_the_up_sampled_map() {
    let (lpips, tests) = lpips("alex");
    let (x, y) = (&tests["x"], &tests["y"]);
    let size = x.size();
    let mask = Tensor::full([size[0], 1, size[2], size[3]], 0.3, (Kind::Float, tch::Device::Cpu));
    let _ = mask.narrow(2, 10, 31).narrow(3, 5, 40).fill_(1.0);
    let target = LossTarget::new(&lpips, &loss(MaskMode::UpsampleFeatures), y, &mask);
    let sum = |t: &Tensor| t.sum_dim_intlist(&[1i64, 2, 3][..], false, Kind::Float);
    let expected = sum(&(&tests["map"] * &mask)) / sum(&mask);
    assert_close("masked distance", &target.terms(&lpips, x).1, &expected);
}
