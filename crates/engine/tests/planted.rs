//! The short form of `make validate`: an image that the generator made itself, made smaller and moved, is found where it is.

use engine::LoadedModel;
use engine::calibrate::extent;
use projector::{Lanes, Projection, Solution, Target, transform};
use proto::{Box2d, LatentSearch, Params, Transform, TransformSearch};
use tch::{Device, Kind, Tensor};

/// T^-1(G(z, c)), and black where there is nothing.
fn planted(model: &LoadedModel, truth: &Transform) -> Tensor {
    let generator = &model.model.generator;
    let z = (Tensor::arange(generator.latent_dim(), (Kind::Float, Device::Cpu)) * 1.7).sin().unsqueeze(0);
    let image = tch::no_grad(|| generator.generate(&z, &generator.embed(COAT).unsqueeze(0)));
    let truth = std::slice::from_ref(truth);
    let inside = transform::invert(&Tensor::ones_like(&image), truth, true);
    (transform::invert(&image, truth, true) * &inside + (&inside - 1.0)).squeeze_dim(0)
}

const COAT: i64 = 4;

fn project(model: &LoadedModel, params: &Params, image: &Tensor, bbox: Box2d) -> Solution {
    let lanes = Lanes::new(&model.model, &[Device::Cpu, Device::Cpu]);
    let target = Target { image: image.shallow_clone(), bbox: Some(bbox), mask: None, class: COAT, likely: vec![], seed: 3 };
    let mut projection = Projection::new(params, &model.model, &model.statistics, vec![target]);
    while !projection.finished() {
        projection.step(&lanes).expect("the devices work");
    }
    projection.finish(&lanes).expect("the devices work").remove(0).expect("it does not diverge")
}

#[test]
fn a_planted_image_is_found_where_it_is_and_better_than_without_a_transform() {
    let model = engine::load(&harness::root().join("models/fashion32")).expect("the bundled model");
    // Smaller by 1.3, and moved by (0.15, -0.1) half widths.
    let truth = Transform { scale: [1.3, 1.3], shift: [0.15, -0.1], ..Transform::IDENTITY };
    let image = planted(&model, &truth);
    // The box around what is brighter than the background.
    let bbox = extent(&image.mean_dim(&[0i64][..], false, Kind::Float).gt(-0.8)).expect("it is seen");

    let paper = Params::paper();
    let search = paper.transform.clone().map(|t| TransformSearch { generations: 12, steps: 20, ..t });
    let latent = LatentSearch::Adam { steps: 120 };
    let params = Params { profile: "test".into(), transform: search, latent, seeds: 4, ..paper };
    let found = project(&model, &params, &image, bbox);
    let without = project(&model, &Params { transform: None, ..params }, &image, bbox);

    let transform = found.transform.as_ref().expect("there was a search");
    let scale = (transform.scale[0] / truth.scale[0] - 1.0).abs();
    let shift = (0..2).map(|i| (transform.shift[i] - truth.shift[i]).abs()).fold(0.0, f64::max);
    let loss = |s: &Solution| s.seeds[s.best].inverted_loss;
    let (percent, loss, other) = (100.0 * scale, loss(&found), loss(&without));
    let told = format!("scale off by {percent:.1} %, shift by {shift:.3}, loss {loss:.3} without {other:.3}");
    println!("{told}");
    assert!(scale < 0.12 && shift < 0.1, "{told}");
    assert!(loss < other, "{told}");
}
