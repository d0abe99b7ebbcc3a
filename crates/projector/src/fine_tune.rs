//! Fine-tuning (paper, Section 3.5, Equation 6): after the search, Adam on the generator's own weights.
//!
//! `min over theta of L(T_phi(y), G_theta(z, c)) + lambda R(theta - theta_0)`, for the best seed of one image. z, c and phi
//! can change, too. Only this module takes gradients of weights; each image has a copy of them, on the CPU between two parts, so
//! that any device can continue.

use proto::{DeltaCodec, FineTune, Params, Regulariser, SeedResult, Transform};
use tch::{Device, Kind, Tensor};

use crate::delta::Delta;
use crate::descent;
use crate::generator::Generator;
use crate::lanes::{Model, Pictures, Rendered, View};
use crate::rows::{rows, to_rows};
use crate::target::Target;
use crate::transform::Space;

/// First relative error of each layer with `auto`. It is halved while the image is worse.
const TOLERANCE: f64 = 0.4;
/// Limit of halvings. The last error is smaller than that of eight bits.
const HALVINGS: u32 = 7;

/// The tuned generator of an image.
#[derive(Debug)]
pub struct Tuned {
    /// The stored weight delta, with z, c and phi.
    pub delta: Delta,
    /// Steps of Adam.
    pub steps: u32,
    /// LPIPS of the transformed target, weighted as in the loss: after the search, and with the stored delta.
    pub lpips: (f64, f64),
    /// Distances of the generator with the stored delta.
    pub distances: SeedResult,
    /// Its pictures.
    pub pictures: Pictures,
    /// PSNR between its image and the one before the delta was stored, in dB; infinite if they are the same.
    pub psnr: f64,
}

/// Why the result of fine-tuning was dropped; the projection of the search stays.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum Dropped {
    /// The loss became infinite or undefined.
    #[error("the loss became infinite or undefined at step {step}")]
    Diverged {
        /// Step, from 0.
        step: u32,
    },
    /// The search had reached the goal.
    #[error("the target's LPIPS had reached the goal before fine-tuning")]
    Needless,
    /// The tuned generator is not closer to the target.
    #[error("fine-tuning did not reduce the loss: {before:.4} before, {after:.4} after")]
    Worse {
        /// Training loss after the search.
        before: f64,
        /// Training loss of the tuned generator.
        after: f64,
    },
}

/// Fine-tuning of one image between two parts. Plain tensors on the CPU.
#[derive(Debug)]
pub(crate) struct Tuning {
    z: Vec<f32>,
    c: Vec<f32>,
    transform: Option<Transform>,
    /// The tensors that change, in the order of `Leaves`: value and Adam's two moments. Empty before the first part.
    state: Vec<[Tensor; 3]>,
    /// Training loss after the search.
    before: f64,
    /// LPIPS after the search, weighted as in the loss.
    lpips_before: f64,
    pub steps: u32,
    /// Loss with the regulariser before each step.
    pub curve: Vec<f64>,
    pub finished: bool,
}

impl Tuning {
    /// Starts from the search's best seed and its training loss.
    pub fn new(z: Vec<f32>, c: Vec<f32>, transform: Option<Transform>, before: f64) -> Tuning {
        Tuning { z, c, transform, state: vec![], before, lpips_before: f64::NAN, steps: 0, curve: vec![], finished: false }
    }

    /// Loss of the last step.
    pub fn loss(&self) -> f64 {
        self.curve.last().copied().unwrap_or(self.before)
    }
}

/// The tensors that change, with their learning rates.
struct Leaves {
    generator: Box<dyn Generator>,
    /// theta, then z and c, then phi as a vector of the search's space.
    tensors: Vec<Tensor>,
    rates: Vec<f64>,
}

impl Leaves {
    fn new(model: &Model, device: Device, params: &Params, tuning: &Tuning) -> Leaves {
        let generator = model.generator.replicate(device);
        let mut tensors: Vec<Tensor> = generator.weights().into_iter().map(|(_, weight)| weight).collect();
        let theta = tensors.len();
        let space = params.transform.as_ref().map(Space::new);
        tensors.extend([&tuning.z, &tuning.c].map(|row| rows([row], device)));
        if let (Some(space), Some(transform)) = (&space, &tuning.transform) {
            tensors.push(Tensor::from_slice(&space.vector(transform)).to_device(device));
        }
        for (tensor, [value, ..]) in tensors.iter_mut().zip(&tuning.state) {
            tensor.copy_(value);
        }
        let FineTune { lr, lr_latents, lr_transform, .. } = *tune(params);
        let rates = std::iter::repeat_n(lr, theta).chain([lr_latents, lr_latents, lr_transform]);
        Leaves { generator, rates: rates.take(tensors.len()).collect(), tensors }
    }

    /// z and c, and phi if there is one. theta is zipped with the base's weights.
    fn latents(&self, base: &[(String, Tensor)]) -> (&Tensor, &Tensor, Option<&Tensor>) {
        let latents = &self.tensors[base.len()..];
        (&latents[0], &latents[1], latents.get(2))
    }
}

fn tune(params: &Params) -> &FineTune {
    params.fine_tune.as_ref().expect("fine-tuning has parameters")
}

/// At most `steps` more steps on one device.
pub(crate) fn advance(model: &Model, device: Device, params: &Params, target: &Target, mut tuning: Tuning, steps: u32) -> Tuning {
    let _no_grad = tch::no_grad_guard();
    let tune = tune(params);
    let leaves = Leaves::new(model, device, params, &tuning);
    let base = model.generator.weights();
    let (z, c, phi) = leaves.latents(&base);
    let moving: Vec<usize> = (0..leaves.tensors.len()).filter(|i| leaves.rates[*i] > 0.0).collect();
    let mut moments: Vec<[Tensor; 2]> = match tuning.state.is_empty() {
        true => leaves.tensors.iter().map(|t| [t.zeros_like(), t.zeros_like()]).collect(),
        false => tuning.state.iter().map(|[_, m, v]| [m.to_device(device), v.to_device(device)]).collect(),
    };
    for &i in &moving {
        let _ = leaves.tensors[i].set_requires_grad(true);
    }
    let view = View::new(model, device, params, target, &tuning.transform.clone().into());
    let space = params.transform.as_ref().map(Space::new).filter(|_| tune.lr_transform > 0.0);
    for _ in 0..steps {
        let _ = z.detach().clamp_(-params.descent.limit, params.descent.limit);
        let (total, lpips) = tch::with_grad(|| {
            let images = leaves.generator.generate(z, c);
            let (l1, lpips) = match (&space, phi) {
                (Some(space), Some(phi)) => view.terms_under(&model.lpips, params, &images, &space.tensors(phi)),
                _ => view.terms(&model.lpips, &images),
            };
            let penalty = penalty(tune.regulariser, &leaves.tensors, &base);
            ((l1 + &lpips * params.loss.beta).sum(Kind::Float) + penalty * tune.lambda, lpips)
        });
        let (loss, lpips) = (total.double_value(&[]), lpips.double_value(&[0]));
        if tuning.curve.is_empty() {
            tuning.lpips_before = lpips;
        }
        tuning.curve.push(loss);
        tuning.finished = !loss.is_finite() || lpips <= tune.lpips_goal;
        if tuning.finished {
            break;
        }
        let wanted: Vec<&Tensor> = moving.iter().map(|i| &leaves.tensors[*i]).collect();
        let gradients = Tensor::run_backward(&[&total], &wanted, false, false);
        tuning.steps += 1;
        for (&i, gradient) in moving.iter().zip(gradients) {
            let [m, v] = &mut moments[i];
            let update = descent::update(m, v, &gradient, &descent::corrections(tuning.steps));
            let _ = leaves.tensors[i].detach().g_sub_(&(update * leaves.rates[i]));
        }
        if tuning.steps >= tune.steps {
            tuning.finished = true;
            break;
        }
    }
    let kept =
        leaves.tensors.iter().zip(moments).map(|(value, [m, v])| [value, &m, &v].map(|t| t.detach().to_device(Device::Cpu)));
    tuning.state = kept.collect();
    if let (Some(space), Some(phi)) = (&space, phi) {
        let phi: Vec<f64> = Vec::try_from(phi.detach().to_device(Device::Cpu)).expect("a vector");
        tuning.transform = Some(space.transform(&phi));
    }
    tuning
}

/// Measures the tuned generator, and encodes its weight delta.
pub(crate) fn finish(model: &Model, device: Device, params: &Params, target: &Target, tuning: &Tuning) -> Result<Tuned, Dropped> {
    let _no_grad = tch::no_grad_guard();
    if !tuning.loss().is_finite() {
        return Err(Dropped::Diverged { step: tuning.steps });
    }
    if tuning.steps == 0 {
        return Err(Dropped::Needless);
    }
    let leaves = Leaves::new(model, device, params, tuning);
    let base = model.generator.weights();
    let view = View::new(model, device, params, target, &tuning.transform.clone().into());
    let (z, c, _) = leaves.latents(&base);
    let z = descent::clamp(z, params.descent.limit);
    let exact = leaves.generator.generate(&z, c);
    let render = |images: &Tensor| view.render(&model.lpips, params, images, &[1]).rendered.remove(0);
    let after = render(&exact).distances.loss;
    // NaN is not an improvement.
    if !matches!(after.partial_cmp(&tuning.before), Some(std::cmp::Ordering::Less)) {
        return Err(Dropped::Worse { before: tuning.before, after });
    }
    let differences: Vec<(String, Tensor)> =
        base.into_iter().zip(&leaves.tensors).map(|((n, old), new)| (n, new - old)).collect();
    let Packed { mut delta, images, psnr } = pack(&*model.generator, &differences, (&z, c), &exact, &tune(params).delta);
    let Rendered { distances, pictures } = render(&images);
    let pictures = pictures.expect("one lane has the least loss");
    let first = |t: &Tensor| to_rows(t).remove(0);
    (delta.z, delta.c, delta.transform) = (first(&z), first(c), tuning.transform.clone());
    let lpips = (tuning.lpips_before, view.terms(&model.lpips, &images).1.double_value(&[0]));
    Ok(Tuned { delta, steps: tuning.steps, lpips, distances, pictures, psnr })
}

/// A change of weights as it is stored, and what it does.
pub struct Packed {
    /// Without z, c and phi.
    pub delta: Delta,
    /// Images of the generator with it.
    pub images: Tensor,
    /// Between them and those of the change itself, in dB.
    pub psnr: f64,
}

/// Encodes `theta - theta_0` of `base`; `exact` are the images of theta at the latents `[n, ...]`, on the generator's device.
pub fn pack(
    base: &dyn Generator,
    differences: &[(String, Tensor)],
    (z, c): (&Tensor, &Tensor),
    exact: &Tensor,
    codec: &DeltaCodec,
) -> Packed {
    let _no_grad = tch::no_grad_guard();
    let (mut tolerance, mut halvings) = (TOLERANCE, 0);
    loop {
        let delta = Delta::encode(differences, codec, tolerance);
        let generator = base.replicate(exact.device());
        delta.apply(&*generator);
        let images = generator.generate(z, c);
        let psnr = psnr(&images, exact);
        match codec {
            DeltaCodec::Auto { psnr: wanted } if psnr < *wanted && halvings < HALVINGS => {
                (tolerance, halvings) = (tolerance / 2.0, halvings + 1);
            }
            _ => return Packed { delta, images, psnr },
        }
    }
}

/// The regulariser R(theta - theta_0).
fn penalty(regulariser: Regulariser, theta: &[Tensor], base: &[(String, Tensor)]) -> Tensor {
    let squares = theta.iter().zip(base).map(|(new, (_, old))| {
        let square = (new - old).square();
        match regulariser {
            Regulariser::MeanSquares => square.mean(Kind::Float),
            Regulariser::Norm | Regulariser::SquaredNorm => square.sum(Kind::Float),
        }
    });
    let sum = Tensor::stack(&squares.collect::<Vec<_>>(), 0).sum(Kind::Float);
    // The norm has no gradient at theta_0: it is taken to be zero.
    if regulariser == Regulariser::Norm { (sum + 1e-24).sqrt() } else { sum }
}

/// Peak signal-to-noise ratio of images in [-1, 1], in dB.
fn psnr(a: &Tensor, b: &Tensor) -> f64 {
    10.0 * (4.0 / (a - b).square().mean(Kind::Double).double_value(&[])).log10()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::nn::Weights;
    use crate::nn::biggan_deep::BigganDeep;
    use crate::nn::lpips::{Config, Layer, Lpips};

    fn golden(name: &str) -> HashMap<String, Tensor> {
        let path = format!("{}/tests/golden/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
        Tensor::read_safetensors(path).expect("golden").into_iter().collect()
    }

    /// The reference's generator, and any perceptual network: it has no weight here.
    fn model(tensors: &HashMap<String, Tensor>) -> Model {
        let weights = tensors.iter().filter(|(name, _)| !name.starts_with("test."));
        let weights = Weights::new(weights.map(|(name, tensor)| (name.clone(), tensor.shallow_clone())));
        let config = serde_json::from_str(include_str!("../tests/golden/biggan_deep.config.json")).expect("config");
        let generator = weights.build(|weights| BigganDeep::load(&config, weights, 1.0)).expect("loads");
        let layers = vec![Layer::Conv { index: 0, channels: 2, kernel: 3, stride: 1, padding: 1, tap: true }];
        let ones = |name: &str, shape: &[i64]| (name.to_owned(), Tensor::ones(shape, (Kind::Float, Device::Cpu)));
        let mut weights = Weights::new([
            ones("features.0.weight", &[2, 3, 3, 3]),
            ones("features.0.bias", &[2]),
            ones("lin0.model.1.weight", &[1, 2, 1, 1]),
        ]);
        let lpips = Lpips::load(&Config { shift: [0.0; 3], scale: [1.0; 3], layers }, &mut weights).expect("loads");
        Model { generator: Box::new(generator), lpips, encoder: None }
    }

    #[test]
    fn steps_of_equation_6_are_those_of_torch() {
        let (tests, expected) = (golden("biggan_deep"), golden("fine_tune"));
        let model = model(&tests);
        let loss = proto::Loss { beta: 0.0, background: 1.0, ..Params::paper().loss };
        let fine_tune = Some(FineTune { steps: 6, lr: 1e-3, ..FineTune::default() });
        let params = Params { loss, transform: None, fine_tune, ..Params::paper() };
        let row = |tensor: &Tensor| Vec::<f32>::try_from(tensor.get(0)).expect("floats");
        let image = tests["test.output"].get(1);
        let target = Target { image, bbox: None, mask: None, class: 0, likely: vec![], seed: 0 };
        let mut tuning = Tuning::new(row(&expected["test.z"]), row(&tests["test.c"]), None, f64::INFINITY);
        // In two parts, as between two checkpoints.
        tuning = advance(&model, Device::Cpu, &params, &target, tuning, 2);
        tuning = advance(&model, Device::Cpu, &params, &target, tuning, 100);
        assert!(tuning.finished && tuning.steps == 6);
        let losses = Vec::<f64>::try_from(expected["test.losses"].to_kind(Kind::Double)).expect("numbers");
        for (step, (ours, theirs)) in tuning.curve.iter().zip(&losses).enumerate() {
            let error = (ours - theirs).abs() / theirs;
            println!("step {step}: {ours:.6}, {error:.1e}");
            // Float32 differs from float64 by 2e-7 at most, and no value comes near a corner in any step (`make_nn.py`).
            assert!(error < 2e-6, "step {step}: {ours} and {theirs}");
        }
        let tuned = finish(&model, Device::Cpu, &params, &target, &tuning).expect("it is closer");
        let ours = Tensor::from_slice(&tuned.pictures.generated).view([1, 3, 32, 32]);
        let noise = psnr(&ours, &expected["test.image"]);
        println!("image: {noise:.1} dB, stored with {:.1} dB", tuned.psnr);
        assert!(noise > tuned.psnr.min(45.0) - 1.0, "only what storing loses: {noise} dB");
    }
}
