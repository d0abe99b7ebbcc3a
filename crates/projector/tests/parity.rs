//! The networks against numbers made by the reference code (`golden/make_nn.py`).

use std::collections::HashMap;

use projector::Generator;
use projector::nn::biggan_deep::{self, BigganDeep};
use projector::nn::lpips::{self, Lpips};
use tch::Tensor;

mod harness;
use harness::{
    NamedTensors, assert_close, assert_contradictions, assert_generates, assert_masked, assert_perceptual, assert_strict, build,
    golden,
};

fn config() -> biggan_deep::Config {
    serde_json::from_str(include_str!("golden/biggan_deep.config.json")).expect("config")
}

fn biggan(truncation: f64) -> (BigganDeep, HashMap<String, Tensor>) {
    let (tensors, tests) = golden("biggan_deep");
    (build(tensors, |weights| BigganDeep::load(&config(), weights, truncation)), tests)
}

#[test]
fn biggan_deep_gives_the_images_and_gradients_of_the_reference() {
    let (generator, tests) = biggan(1.0);
    assert_generates(&generator, &tests, &tests["weighting"]);
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
    assert_strict(&golden("biggan_deep").0, &|weights| BigganDeep::load(&config(), weights, 1.0).map(drop));
}

#[test]
fn a_folded_biggan_deep_gives_the_same_images_and_is_as_strict() {
    let (generator, tests) = biggan(0.43);
    let folded = generator.folded();
    let tensors = folded.iter().map(|(n, t)| (n.clone(), t.contiguous())).collect();
    let again = build(tensors, |weights| BigganDeep::load_folded(&config(), weights));
    let (z, c) = (&tests["z"], &tests["c"]);
    assert!(again.generate(z, c) == generator.generate(z, c), "other images");
    assert!(again.embed(3) == generator.embed(3), "other classes");
    assert_strict(&folded, &|weights| BigganDeep::load_folded(&config(), weights).map(drop));
}

#[test]
fn a_configuration_that_contradicts_itself_is_refused() {
    assert_contradictions(
        &config(),
        &[
            (|c| c.output_dim = 64, "3 up-samplings make images of 32, not 64"),
            (|c| c.layers[1].2 = 4, "layer 1 ends with 4 channels and layer 2 starts with 8"),
            (|c| c.layers.clear(), "there are no layers"),
        ],
        |config, weights| BigganDeep::load(config, weights, 1.0),
    );
}

const PERCEPTUAL: [&str; 3] = ["alex", "vgg16", "squeeze"];

/// With the published heads, and trunks that are not stored.
fn lpips_tensors(name: &str) -> (NamedTensors, HashMap<String, Tensor>) {
    let (mut tensors, tests) = golden(&format!("lpips_{name}"));
    tensors.extend(seeded::seeded(name));
    (tensors, tests)
}

fn lpips(name: &str) -> (Lpips, HashMap<String, Tensor>) {
    let (tensors, tests) = lpips_tensors(name);
    let config = lpips::Config::named(name).expect("is known");
    (build(tensors, |weights| Lpips::load(&config, weights)), tests)
}

#[test]
fn lpips_gives_the_distances_and_gradients_of_the_reference() {
    for name in PERCEPTUAL {
        let (lpips, tests) = lpips(name);
        assert_perceptual(name, &lpips, &tests);
    }
}

#[test]
fn a_perceptual_network_with_a_missing_spare_or_misshapen_tensor_is_refused_by_name() {
    for name in PERCEPTUAL {
        let config = lpips::Config::named(name).expect("is known");
        let (tensors, _) = lpips_tensors(name);
        assert_strict(&tensors, &|weights| Lpips::load(&config, weights).map(drop));
    }
}

#[test]
fn the_adjoint_on_the_weights_gives_the_masked_mean_of_the_up_sampled_map() {
    let (lpips, tests) = lpips("alex");
    assert_masked("alex", &lpips, &tests);
}
