//! Published networks with seeded weights against numbers made by the reference code (`golden/make_published.py`).

use std::collections::HashMap;

use projector::Generator;
use projector::nn::Weights;
use projector::nn::biggan::{self, Biggan};
use projector::nn::efficientnet_lite::EfficientNetLite;
use tch::Tensor;

mod harness;
use harness::{FLOAT, NamedTensors, assert_close, assert_contradictions, assert_generates, assert_strict, build, golden};

fn config() -> biggan::Config {
    serde_json::from_str(include_str!("golden/biggan.config.json")).expect("config")
}

/// What is stored, and the large weights.
fn biggan_tensors() -> (NamedTensors, HashMap<String, Tensor>) {
    let (stored, tests) = golden("biggan");
    let mut tensors: HashMap<_, _> = seeded::seeded("biggan").into_iter().collect();
    tensors.extend(stored);
    (tensors.into_iter().collect(), tests)
}

fn biggan(tensors: NamedTensors) -> Biggan {
    build(tensors, |weights| Biggan::load(&config(), weights))
}

#[test]
fn biggan_gives_the_images_and_gradients_of_the_reference() {
    let (tensors, tests) = biggan_tensors();
    let generator = biggan(tensors);
    assert_generates(&generator, &tests, &seeded::noise(1000, &tests["output"].size()));
    let class = tests["class"].double_value(&[0]) as i64;
    assert_close("a class", &generator.embed(class), &tests["c"].get(0));
}

#[test]
fn a_folded_biggan_and_a_copy_give_the_same_images() {
    let (tensors, tests) = biggan_tensors();
    let generator = biggan(tensors);
    let folded = generator.folded().into_iter().map(|(n, t)| (n, t.contiguous())).collect();
    let again = build(folded, |weights| Biggan::load_folded(&config(), weights));
    let image = |g: &dyn Generator| g.generate(&tests["z"].narrow(0, 0, 1), &g.embed(3).unsqueeze(0));
    let expected = image(&generator);
    assert!(image(&again) == expected, "the folded one gives other images");
    assert!(image(&*again.replicate(tch::Device::Cpu)) == expected, "the copy gives other images");
}

#[test]
fn the_names_and_shapes_of_the_published_biggan_256_are_those_of_the_reference() {
    // Ones that take no memory.
    let one = Tensor::ones([0i64; 0], FLOAT);
    let tensors = seeded::layout("biggan_256").into_iter().map(|(n, shape)| (n, one.expand(&shape[..], false)));
    let config = biggan::Config::published(256).expect("is published");
    let generator = build(tensors.collect(), |weights| Biggan::load(&config, weights));
    assert_eq!((generator.latent_dim(), generator.embed_dim(), generator.num_classes()), (140, 128, 1000));
}

#[test]
fn a_biggan_with_a_missing_spare_or_misshapen_tensor_is_refused_by_name() {
    let (tensors, _) = biggan_tensors();
    assert_strict(&tensors, &|weights| Biggan::load(&config(), weights).map(drop));
    assert_strict(&biggan(tensors).folded(), &|weights| Biggan::load_folded(&config(), weights).map(drop));
}

#[test]
fn a_biggan_that_was_trained_with_the_reference_may_keep_its_last_singular_values() {
    let (mut tensors, _) = biggan_tensors();
    let norms: Vec<_> = tensors.iter().filter_map(|(n, _)| n.strip_suffix(".u0")).map(|n| format!("{n}.sv0")).collect();
    tensors.extend(norms.into_iter().map(|n| (n, Tensor::ones([1], FLOAT))));
    biggan(tensors);
}

#[test]
fn the_layers_of_a_biggan_that_read_z_are_those_of_the_checkpoint() {
    let (tensors, _) = biggan_tensors();
    let mut weights = Weights::new(tensors.iter().map(|(n, t)| (n.clone(), t.shallow_clone())));
    let layer = biggan(tensors).latent_layer();
    let (linear, channels, total) = (16 * 128, 128, layer.size()[0]);
    let half = (total - linear) / 2;
    // The second chunk goes to the first block, after the 12 numbers of the class.
    for (part, start) in [("gain", linear), ("bias", linear + half)] {
        let name = format!("blocks.0.0.bn1.{part}");
        let weight = weights.take_power(&name, &[channels, 12 + 4], 1e-4).expect("is there").narrow(1, 12, 4);
        assert_close(&name, &layer.narrow(0, start, channels), &weight.constant_pad_nd([4, 12]));
    }
    let weight = weights.take_power("linear", &[linear, 4], 1e-4).expect("is there");
    assert_close("linear", &layer.narrow(0, 0, linear), &weight.constant_pad_nd([0, 16]));
}

#[test]
fn every_principal_direction_of_a_biggan_stays_in_one_chunk_and_changes_the_image() {
    let (tensors, tests) = biggan_tensors();
    let generator = biggan(tensors);
    let (z, c) = (tests["z"].narrow(0, 0, 1), generator.embed(0).unsqueeze(0));
    let image = generator.generate(&z, &c);
    let mut chunks = vec![];
    for direction in projector::edit::principal(&generator, 12) {
        let energy: Vec<f32> = direction.chunks(4).map(|chunk| chunk.iter().map(|x| x * x).sum()).collect();
        let chunk = (0..5).max_by(|a, b| energy[*a].total_cmp(&energy[*b])).expect("five chunks");
        assert!(energy[chunk] > 0.999, "{energy:?}");
        chunks.push(chunk);
        let moved = generator.generate(&(&z + Tensor::from_slice(&direction).unsqueeze(0)), &c);
        let change = (moved - &image).abs().max().double_value(&[]);
        assert!(change > 0.01, "a direction of chunk {chunk} changes the image by {change:.4}");
    }
    assert!(chunks.iter().any(|c| *c != chunks[0]), "all directions are of chunk {}", chunks[0]);
}

#[test]
fn a_biggan_configuration_that_contradicts_itself_is_refused() {
    assert_contradictions(
        &config(),
        &[
            (|c| c.resolution = 96, "no BigGAN has 96 pixels"),
            (|c| c.dim_z = 21, "z of 21 does not split into 5 chunks"),
            (|c| c.attention = 128, "attention at 128 pixels, but no block ends with that size"),
            (|c| c.ch = 3, "attention has 12 channels"),
            (|c| c.ch = 0, "a size is not in 1"),
            (|c| c.bn_eps = f64::NAN, "the eps are NaN"),
        ],
        Biggan::load,
    );
}

#[test]
fn efficientnet_lite_gives_the_logits_of_the_reference() {
    let network = build(seeded::seeded("efficientnet_lite0"), EfficientNetLite::load);
    // The reference's images are already normalised.
    let images = (seeded::noise(1000, &[2, 3, 224, 224]) * 128.0 - 0.5) / 127.5;
    assert_close("logits", &network.logits(&images), &golden("efficientnet_lite").1["logits"]);
    assert!(network.replicate(tch::Device::Cpu).logits(&images) == network.logits(&images), "the copy gives other logits");
}

#[test]
fn an_efficientnet_lite_with_a_missing_spare_or_misshapen_tensor_is_refused_by_name() {
    assert_strict(&seeded::seeded("efficientnet_lite0"), &|weights| EfficientNetLite::load(weights).map(drop));
}
