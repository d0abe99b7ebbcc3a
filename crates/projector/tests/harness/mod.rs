//! A tiny random generator, images of its own, and short runs of the method.
#![allow(dead_code, reason = "not every test uses all of it")]

use std::path::PathBuf;

use projector::nn::Weights;
use projector::nn::biggan_deep::BigganDeep;
use projector::nn::lpips::{Config, Layer, Lpips};
use projector::{Lanes, Model, ObjectStatistics, Projection, Solution, Target};
use proto::{Box2d, LastDescent, LatentSearch, Params, Told};
use tch::{Device, Kind, Tensor};

pub fn model() -> Model {
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/biggan_deep.safetensors");
    let tensors = Tensor::read_safetensors(golden).expect("golden").into_iter().filter(|(n, _)| !n.starts_with("test."));
    let config = serde_json::from_str(include_str!("../golden/biggan_deep.config.json")).expect("config");
    let generator = BigganDeep::load(&config, &mut Weights::new(tensors), 1.0).expect("loads");
    let conv = |index, channels| Layer::Conv { index, channels, kernel: 3, stride: 1, padding: 1, tap: true };
    let config = Config {
        shift: [0.0; 3],
        scale: [1.0; 3],
        layers: vec![conv(0, 8), Layer::MaxPool { kernel: 2, stride: 2, ceil: false }, conv(3, 12)],
    };
    // Any fixed numbers do.
    let tensor = |shape: &[i64]| {
        let n: i64 = shape.iter().product();
        ((Tensor::arange(n, (Kind::Float, Device::Cpu)) * 1.7).sin() * (2.0 / (n as f64 / shape[0] as f64)).sqrt()).view(shape)
    };
    let tensors = [
        ("features.0.weight", tensor(&[8, 3, 3, 3])),
        ("features.0.bias", tensor(&[8])),
        ("features.3.weight", tensor(&[12, 8, 3, 3])),
        ("features.3.bias", tensor(&[12])),
        ("lin0.model.1.weight", Tensor::ones([1, 8, 1, 1], (Kind::Float, Device::Cpu))),
        ("lin1.model.1.weight", Tensor::ones([1, 12, 1, 1], (Kind::Float, Device::Cpu))),
    ];
    let lpips = Lpips::load(&config, &mut Weights::new(tensors.map(|(n, t)| (n.to_owned(), t)))).expect("loads");
    Model { generator: Box::new(generator), lpips, encoder: None }
}

/// Images that the generator made itself, each of another class and seed.
pub fn targets(model: &Model, n: i64) -> Vec<Target> {
    (0..n)
        .map(|i| {
            let z = (Tensor::arange(8, (Kind::Float, Device::Cpu)) * (0.9 + i as f64)).sin().view([1, 8]);
            let class = i % model.generator.num_classes();
            let image = model.generator.generate(&z, &model.generator.embed(class).unsqueeze(0)).squeeze_dim(0);
            let bbox = Some(Box2d { x: 4.0 + i as f64, y: 6.0, width: 20.0, height: 18.0 });
            Target { image, bbox, mask: None, class, seed: 100 + i as u64 }
        })
        .collect()
}

pub fn short(latent: LatentSearch) -> Params {
    let paper = Params::paper();
    let transform = paper.transform.clone().map(|t| proto::TransformSearch { generations: 3, steps: 3, ..t });
    Params { transform, latent, seeds: 6, ..paper }
}

pub fn basin_cma() -> LatentSearch {
    ending_in(LastDescent::Fresh)
}

pub fn ending_in(last: LastDescent) -> LatentSearch {
    LatentSearch::BasinCma { generations: 3, steps: 3, final_steps: 8, told: Told::Refined, sigma: 1.0, last }
}

pub fn run(model: &Model, lanes: &Lanes, params: &Params, targets: Vec<Target>) -> Vec<Solution> {
    let mut projection = Projection::new(params, model, &ObjectStatistics::BIGGAN, targets);
    while !projection.finished() {
        projection.step(lanes).expect("device works");
    }
    let progress = projection.progress();
    assert_eq!(progress.done, progress.total, "the total was announced right");
    projection.finish(lanes).expect("device works").into_iter().map(|s| s.expect("converges")).collect()
}
