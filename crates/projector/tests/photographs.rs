//! Published networks with their real weights on real photographs: what `infra/published/setup.sh` fetches.

use std::collections::BTreeMap;

use projector::loss::LossTarget;
use projector::nn::efficientnet_lite::{EfficientNetLite, prepare};
use projector::nn::lpips::{Config, Lpips};
use proto::MaskMode;
use tch::{Device, Kind, Tensor};

mod harness;
use harness::{
    FLOAT, NamedTensors, assert_masked, assert_perceptual, assert_strict, assert_within, build, distance_and_gradient, golden,
    loss, photograph, published, relative,
};

/// The tensors of a published checkpoint.
fn checkpoint(name: &str) -> NamedTensors {
    let arrays = state_dict::read(&published().join(format!("{name}.pth"))).expect("weights");
    let tensor = |array: &state_dict::Array| {
        let shape: Vec<i64> = array.shape.iter().map(|&n| n as i64).collect();
        // Counters of batches are no floats.
        array.floats().map(|values| Tensor::from_slice(&values).view(shape.as_slice()))
    };
    arrays.iter().filter_map(|(name, array)| Some((name.clone(), tensor(array)?))).collect()
}

/// What the reference says of a photograph: class indices and logits, best first, and sum and norm of all logits.
#[derive(serde::Deserialize)]
struct Answer {
    top5: Vec<i64>,
    logits: Vec<f32>,
    sum: f64,
    norm: f64,
}

#[test]
fn efficientnet_lite0_sees_in_real_photographs_what_the_reference_sees() {
    let network = build(checkpoint("efficientnet_lite0"), EfficientNetLite::load);
    let answers: BTreeMap<String, Answer> =
        serde_json::from_str(include_str!("golden/efficientnet_lite0_photographs.json")).expect("answers");
    assert_eq!(answers.len(), 10);
    for (name, answer) in answers {
        let logits = network.logits(&prepare(&photograph(&name).unsqueeze(0))).squeeze_dim(0);
        let (values, indices) = logits.topk(5, 0, true, true);
        let found = Vec::<i64>::try_from(indices).expect("indices");
        assert_eq!(found, answer.top5, "{name}");
        // The reference reads JPEG with another decoder, whose pixels differ by a level here and there.
        let limit = if name.ends_with(".jpg") { 1e-2 } else { 1e-4 };
        let top = relative(&values, &Tensor::from_slice(&answer.logits));
        let norm = (logits.norm().double_value(&[]) / answer.norm - 1.0).abs();
        let sum = (logits.sum(Kind::Double).double_value(&[]) - answer.sum).abs() / answer.norm;
        println!("{name}: logits {top:.1e}, norm {norm:.1e}, sum {sum:.1e}");
        assert!(top.max(norm).max(sum) <= limit, "{name}: logits differ by {top:.1e}, norm {norm:.1e}, sum {sum:.1e}");
    }
}

/// Configuration and published checkpoint of each ST-LPIPS.
const ST_LPIPS: [(&str, &str); 2] = [("st-alex", "st-lpips-alex"), ("st-vgg16", "st-lpips-vgg")];

/// Its configuration, and its tensors under the names of a model folder.
fn st_lpips((name, file): (&str, &str)) -> (Config, NamedTensors) {
    let renamed = |name: String| match name.strip_prefix("net.slice") {
        Some(layer) => format!("features.{}", &layer["1.".len()..]),
        None => name,
    };
    let tensors = checkpoint(file).into_iter().filter(|(name, _)| !name.starts_with("scaling_layer."));
    (Config::named(name).expect("is known"), tensors.map(|(name, tensor)| (renamed(name), tensor)).collect())
}

#[test]
fn st_lpips_gives_the_distances_and_gradients_of_its_package() {
    for network in ST_LPIPS {
        let (config, tensors) = st_lpips(network);
        let lpips = build(tensors, |weights| Lpips::load(&config, weights));
        let (_, tests) = golden(&format!("lpips_{}", network.0));
        assert_perceptual(network.0, &lpips, &tests);
        assert_masked(network.0, &lpips, &tests);
        let rounded = lpips.replicate(Device::Cpu, Kind::BFloat16).map(&tests["x"], &tests["y"]);
        // The package's own network in bfloat16 differs by 6e-3.
        assert_within(&format!("{}: map in bfloat16", network.0), &rounded, &tests["map"], 3e-2);
    }
}

#[test]
fn an_st_lpips_with_a_missing_spare_or_misshapen_tensor_is_refused_by_name() {
    let (config, tensors) = st_lpips(ST_LPIPS[0]);
    assert_strict(&tensors, &|weights| Lpips::load(&config, weights).map(drop));
}

/// What the package says of a crop against the same photograph a pixel further, and against the next photograph.
#[derive(serde::Deserialize)]
struct Measured {
    distances: [f64; 2],
    /// Norms of both gradients.
    norms: [f64; 2],
    /// Their sums with three tensors of noise.
    along_noise: [[f64; 3]; 2],
}

#[test]
fn st_lpips_measures_between_real_photographs_what_its_package_measures() {
    const SIDE: i64 = 96;
    let crop = |name: &str, further: i64| photograph(name).narrow(1, 150 + further, SIDE).narrow(2, 260 + further, SIDE);
    let noises = [2000, 2001, 2002].map(|k| seeded::noise(k, &[2, 3, SIDE, SIDE]));
    let answers: BTreeMap<String, BTreeMap<String, Measured>> =
        serde_json::from_str(include_str!("golden/st_lpips_photographs.json")).expect("answers");
    for network in ST_LPIPS {
        let (config, tensors) = st_lpips(network);
        let lpips = build(tensors, |weights| Lpips::load(&config, weights));
        let photographs = &answers[network.0];
        assert_eq!(photographs.len(), 4);
        let next = photographs.keys().cycle().skip(1);
        for ((name, measured), next) in photographs.iter().zip(next) {
            let x = Tensor::stack(&[crop(name, 0), crop(name, 0)], 0);
            let y = Tensor::stack(&[crop(name, 1), crop(next, 0)], 0);
            let ones = Tensor::ones([2, 1, SIDE, SIDE], FLOAT);
            let target = LossTarget::new(&lpips, &loss(MaskMode::DownsampleMask), &y, &ones);
            let (distances, gradients) = distance_and_gradient(&lpips, &target, &x);
            for k in 0..2 {
                let gradient = gradients.get(k as i64);
                let distance = (distances.double_value(&[k as i64]) / measured.distances[k] - 1.0).abs();
                let along = noises.iter().zip(measured.along_noise[k]);
                let along =
                    along.map(|(noise, value)| (&gradient * noise.get(k as i64)).sum(Kind::Double).double_value(&[]) - value);
                let norm = gradient.norm().double_value(&[]) - measured.norms[k];
                let worst = along.chain([norm]).map(f64::abs).fold(0.0, f64::max) / measured.norms[k];
                println!("{} {name} {k}: distance {distance:.1e}, gradient {worst:.1e}", network.0);
                assert!(distance <= 1e-4, "{} {name} {k}: the distance differs by {distance:.1e}", network.0);
                // Among so many values some come near a corner; float32 differs from float64 by 6e-4 for that.
                assert!(worst <= 3e-2, "{} {name} {k}: the gradient differs by {worst:.1e}", network.0);
            }
        }
    }
}
