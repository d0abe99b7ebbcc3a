//! What the tests share: goldens and photographs, and a tiny random generator with images of its own and short runs of the method.
#![allow(dead_code, reason = "not every test uses all of it")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use projector::loss::LossTarget;
use projector::nn::biggan_deep::BigganDeep;
use projector::nn::lpips::{Config, Layer, Lpips};
use projector::nn::{LoadError, Weights};
use projector::{Diverged, Generator, Lanes, Model, ObjectStatistics, Projection, Solution, Target};
use proto::{Box2d, LastDescent, LatentSearch, MaskMode, Params, Told};
use tch::{Device, Kind, Tensor};

pub const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

pub type NamedTensors = Vec<(String, Tensor)>;

/// Weights, and inputs and outputs without their `test.`.
pub fn golden(name: &str) -> (NamedTensors, HashMap<String, Tensor>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.safetensors"));
    let tensors = Tensor::read_safetensors(path).expect("golden");
    let (tests, weights): (Vec<_>, Vec<_>) = tensors.into_iter().partition(|(n, _)| n.starts_with("test."));
    (weights, tests.into_iter().map(|(n, t)| (n["test.".len()..].to_owned(), t)).collect())
}

/// What `infra/published/setup.sh` fetches.
pub fn published() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"));
    let published = target.join("published");
    assert!(published.exists(), "no {}: run infra/published/setup.sh (make test does)", published.display());
    published
}

/// `[3, h, w]` in [-1, 1].
pub fn photograph(name: &str) -> Tensor {
    let image = image::open(published().join("photographs").join(name)).expect("photograph").to_rgb8();
    let size = [i64::from(image.height()), i64::from(image.width()), 3];
    Tensor::from_slice(image.as_raw()).view(size).permute([2, 0, 1]).to_kind(Kind::Float) / 127.5 - 1.0
}

/// The network that `load` makes of all `tensors`.
pub fn build<T>(tensors: NamedTensors, load: impl FnOnce(&mut Weights) -> Result<T, LoadError>) -> T {
    Weights::new(tensors).build(load).expect("loads")
}

/// Largest difference over the largest value.
pub fn relative(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    ((a - b).abs().max() / b.abs().max()).double_value(&[])
}

/// Float32 differs from the golden scripts' float64 by 4e-6 at most; a ReLU on the other side of its corner makes 1e-3 of it, and no
/// input is near one (`corners.py`).
pub fn assert_close(name: &str, a: &Tensor, b: &Tensor) {
    assert_within(name, a, b, 1e-4);
}

/// `tolerance` is that of [`relative`].
pub fn assert_within(name: &str, a: &Tensor, b: &Tensor, tolerance: f64) {
    let error = relative(a, b);
    println!("{name}: {error:.1e}");
    assert!(error <= tolerance, "{name} differs by {error:.1e}");
}

/// The golden's images, and the gradients of their sum with `weighting`.
pub fn assert_generates(generator: &dyn Generator, tests: &HashMap<String, Tensor>, weighting: &Tensor) {
    let [z, c] = ["z", "c"].map(|name| tests[name].detach().set_requires_grad(true));
    let images = generator.generate(&z, &c);
    assert_close("images", &images.detach(), &tests["output"]);
    let sum = (&images * weighting).sum(Kind::Float);
    let gradients = Tensor::run_backward(&[sum], &[&z, &c], false, false);
    assert_close("gradient of z", &gradients[0], &tests["grad_z"]);
    assert_close("gradient of c", &gradients[1], &tests["grad_c"]);
}

pub fn loss(mask: MaskMode) -> proto::Loss {
    proto::Loss { mask, ..Params::paper().loss }
}

/// The distance `[n]` of images to a target, and the gradient of its sum.
pub fn distance_and_gradient(lpips: &Lpips, target: &LossTarget, images: &Tensor) -> (Tensor, Tensor) {
    let images = images.detach().set_requires_grad(true);
    let distance = target.terms(lpips, &images).1;
    let gradient = Tensor::run_backward(&[distance.sum(Kind::Float)], &[&images], false, false).remove(0);
    (distance.detach(), gradient)
}

/// The golden's distance maps, distances and gradients.
pub fn assert_perceptual(name: &str, lpips: &Lpips, tests: &HashMap<String, Tensor>) {
    let (x, y) = (&tests["x"], &tests["y"]);
    let map = lpips.map(x, y);
    assert_close(&format!("{name}: map"), &map, &tests["map"]);
    assert!(lpips.replicate(Device::Cpu, Kind::Float).map(x, y) == map, "{name}: the copy gives another map");

    // With equal weights everywhere the masked distance is the mean of the map.
    let ones = Tensor::ones([1, 1, x.size()[2], x.size()[3]], FLOAT);
    let ones = ones.expand([y.size()[0], -1, -1, -1], false);
    let target = LossTarget::new(lpips, &loss(MaskMode::UpsampleFeatures), y, &ones);
    let mean = tests["map"].mean_dim(&[1i64, 2, 3][..], false, Kind::Float);
    assert_close(&format!("{name}: mean of the map"), &target.terms(lpips, x).1, &mean);

    // The down-sampled mask of ones gives LPIPS without `spatial`.
    let target = LossTarget::new(lpips, &loss(MaskMode::DownsampleMask), y, &ones);
    let (distance, gradient) = distance_and_gradient(lpips, &target, x);
    assert_close(&format!("{name}: distance"), &distance, &tests["distance"].flatten(0, -1));
    assert_close(&format!("{name}: gradient"), &gradient, &tests["grad_x"]);
    let flat = x.copy();
    let _ = flat.narrow(2, 0, flat.size()[2] / 2).fill_(0.25);
    let (_, gradient) = distance_and_gradient(lpips, &target, &flat);
    assert!(gradient.isfinite().all().int64_value(&[]) == 1, "{name}: a flat region makes the gradient infinite");
}

/// The masked distance is the masked mean of the golden's up-sampled map.
pub fn assert_masked(name: &str, lpips: &Lpips, tests: &HashMap<String, Tensor>) {
    let (x, y) = (&tests["x"], &tests["y"]);
    let size = x.size();
    let mask = Tensor::full([size[0], 1, size[2], size[3]], 0.3, FLOAT);
    let _ = mask.narrow(2, size[2] / 6, size[2] / 2).narrow(3, size[3] / 12, size[3] * 5 / 8).fill_(1.0);
    let target = LossTarget::new(lpips, &loss(MaskMode::UpsampleFeatures), y, &mask);
    let sum = |t: &Tensor| t.sum_dim_intlist(&[1i64, 2, 3][..], false, Kind::Float);
    let expected = sum(&(&tests["map"] * &mask)) / sum(&mask);
    assert_close(&format!("{name}: masked distance"), &target.terms(lpips, x).1, &expected);
}

/// `load` takes all `tensors`, and refuses a spare one, and each of them missing, misshapen or infinite, by name.
pub fn assert_strict(tensors: &NamedTensors, load: &dyn Fn(&mut Weights) -> Result<(), LoadError>) {
    let load = |change: &dyn Fn(&mut HashMap<String, Tensor>)| {
        let mut map: HashMap<_, _> = tensors.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect();
        change(&mut map);
        Weights::new(map).build(load)
    };
    load(&|_| {}).expect("loads");
    let spare = load(&|t| drop(t.insert("spare".into(), Tensor::zeros([1], FLOAT))));
    assert!(matches!(&spare, Err(LoadError::Spare(n)) if n == "spare"), "{spare:?}");
    for (name, tensor) in tensors {
        let missing = load(&|t| drop(t.remove(name)));
        assert!(matches!(&missing, Err(LoadError::Missing(n)) if n == name), "{name}: {missing:?}");
        // One row more, or a vector for a single number.
        let wrong = if tensor.dim() == 0 { tensor.repeat([2]) } else { Tensor::cat(&[tensor, &tensor.narrow(0, 0, 1)], 0) };
        let misshapen = load(&|t| drop(t.insert(name.clone(), wrong.shallow_clone())));
        assert!(matches!(&misshapen, Err(LoadError::Shape { name: n, .. }) if n == name), "{name}: {misshapen:?}");
        let infinite = load(&|t| drop(t.insert(name.clone(), tensor / 0.0)));
        assert!(matches!(&infinite, Err(LoadError::NotFinite(n)) if n == name), "{name}: {infinite:?}");
    }
}

/// A change of a configuration, and a part of the reason for which it is refused.
type Case<C> = (fn(&mut C), &'static str);

/// `load` refuses each change of `config`.
pub fn assert_contradictions<C: Clone, T>(
    config: &C,
    cases: &[Case<C>],
    load: impl Fn(&C, &mut Weights) -> Result<T, LoadError>,
) {
    for (change, part) in cases {
        let mut config = config.clone();
        change(&mut config);
        let error = load(&config, &mut Weights::new([])).err().expect("must be refused");
        assert!(matches!(error, LoadError::Config(_)) && error.to_string().contains(part), "{error}");
    }
}

/// The reference's tiny generator, and a perceptual network of any fixed numbers.
pub fn model() -> Model {
    let config = serde_json::from_str(include_str!("../golden/biggan_deep.config.json")).expect("config");
    let generator = build(golden("biggan_deep").0, |weights| BigganDeep::load(&config, weights, 1.0));
    let conv = |index, channels| Layer::Conv { index, channels, kernel: 3, stride: 1, padding: 1, tap: true };
    let config = Config {
        shift: [0.0; 3],
        scale: [1.0; 3],
        layers: vec![conv(0, 8), Layer::MaxPool { kernel: 2, stride: 2, ceil: false }, conv(3, 12)],
    };
    let tensor = |shape: &[i64]| {
        let n: i64 = shape.iter().product();
        ((Tensor::arange(n, FLOAT) * 1.7).sin() * (2.0 / (n as f64 / shape[0] as f64)).sqrt()).view(shape)
    };
    let tensors = [
        ("features.0.weight", tensor(&[8, 3, 3, 3])),
        ("features.0.bias", tensor(&[8])),
        ("features.3.weight", tensor(&[12, 8, 3, 3])),
        ("features.3.bias", tensor(&[12])),
        ("lin0.model.1.weight", Tensor::ones([1, 8, 1, 1], FLOAT)),
        ("lin1.model.1.weight", Tensor::ones([1, 12, 1, 1], FLOAT)),
    ];
    let tensors = tensors.map(|(n, t)| (n.to_owned(), t)).into();
    Model { generator: Box::new(generator), lpips: build(tensors, |weights| Lpips::load(&config, weights)), encoder: None }
}

/// Images that the generator made itself, each of another class and seed.
pub fn targets(model: &Model, n: usize) -> Vec<Target> {
    let target = |i: usize| {
        let z = (Tensor::arange(8, FLOAT) * (0.9 + i as f64)).sin().view([1, 8]);
        let class = i as i64 % model.generator.num_classes();
        let image = model.generator.generate(&z, &model.generator.embed(class).unsqueeze(0)).squeeze_dim(0);
        let bbox = Some(Box2d { x: 4.0 + i as f64, y: 6.0, width: 20.0, height: 18.0 });
        Target { image, bbox, mask: None, class, likely: vec![], seed: 100 + i as u64 }
    };
    (0..n).map(target).collect()
}

pub fn short(latent: LatentSearch) -> Params {
    let paper = Params::paper();
    let transform = paper.transform.clone().map(|t| proto::TransformSearch { generations: 3, steps: 3, ..t });
    Params { transform, latent, seeds: 6, ..paper }
}

/// As `short`, without stage one.
pub fn plain(latent: LatentSearch) -> Params {
    Params { transform: None, ..short(latent) }
}

pub fn basin_cma() -> LatentSearch {
    ending_in(LastDescent::Fresh)
}

pub fn ending_in(last: LastDescent) -> LatentSearch {
    LatentSearch::BasinCma { generations: 3, steps: 3, final_steps: 8, told: Told::Refined, sigma: 1.0, last }
}

/// Halving in the target's frame, with everything that can move.
pub fn moving() -> Params {
    let fast = Params::fast();
    let transform = fast.transform.map(|t| proto::TransformSearch { rotation: Some(20.0), perspective: true, ..t });
    Params { transform, latent: LatentSearch::Halving { steps: vec![4, 3, 6], converged: None }, seeds: 6, ..fast }
}

/// The tiny model on one CPU core.
pub fn one_core() -> (Model, Lanes) {
    let model = model();
    let lanes = Lanes::new(&model, &[Device::Cpu]);
    (model, lanes)
}

pub fn projection(model: &Model, params: &Params, targets: Vec<Target>) -> Projection {
    Projection::new(params, model, &ObjectStatistics::BIGGAN, targets)
}

/// A projection of the first `n` targets that goes on from their saved states.
pub fn resumed(model: &Model, params: &Params, saved: &Projection, n: usize) -> Projection {
    let mut resumed = projection(model, params, targets(model, n));
    for i in 0..n {
        let bytes = postcard::to_stdvec(saved.checkpoint(i)).expect("serialises");
        resumed.resume(i, postcard::from_bytes(&bytes).expect("deserialises")).expect("fits");
    }
    resumed
}

/// Steps until every image is finished.
pub fn finish(mut projection: Projection, lanes: &Lanes) -> Vec<Result<Solution, Diverged>> {
    while !projection.finished() {
        projection.step(lanes).expect("device works");
    }
    let progress = projection.progress();
    assert_eq!(progress.done, progress.total, "the total was announced right");
    projection.finish(lanes).expect("device works")
}

pub fn run(model: &Model, lanes: &Lanes, params: &Params, targets: Vec<Target>) -> Vec<Solution> {
    converged(finish(projection(model, params, targets), lanes))
}

/// The projection of the first target.
pub fn solve(model: &Model, lanes: &Lanes, params: &Params) -> Solution {
    run(model, lanes, params, targets(model, 1)).remove(0)
}

pub fn converged(solutions: Vec<Result<Solution, Diverged>>) -> Vec<Solution> {
    solutions.into_iter().map(|solution| solution.expect("converges")).collect()
}
