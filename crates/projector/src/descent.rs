//! Gradient steps on z and c (Algorithm 1, lines 8-9 and 19-20): Adam with one learning rate for each.
//!
//! All lanes are rows of one tensor, so that a step is a handful of element-wise operations. Rows do not touch each other: unlike
//! in the authors' code, a lane's steps do not depend on the lanes beside it.

use proto::Descent;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::generator::Generator;
use crate::loss::LossTarget;
use crate::nn::lpips::Lpips;
use crate::rows::{rows, to_rows};

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPS: f64 = 1e-8;

/// Adam's moments as plain numbers, one row for each lane: `[z | c]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamState {
    /// Steps done.
    pub(crate) steps: u32,
    m: Vec<Vec<f32>>,
    v: Vec<Vec<f32>>,
}

impl AdamState {
    pub(crate) fn select(&self, index: &[usize]) -> AdamState {
        let pick = |rows: &[Vec<f32>]| index.iter().map(|&i| rows[i].clone()).collect();
        AdamState { steps: self.steps, m: pick(&self.m), v: pick(&self.v) }
    }

    pub(crate) fn extend(&mut self, other: AdamState) {
        self.m.extend(other.m);
        self.v.extend(other.v);
    }

    /// Takes off the first lanes.
    pub(crate) fn take(&mut self, lanes: usize) -> AdamState {
        AdamState { steps: self.steps, m: self.m.drain(..lanes).collect(), v: self.v.drain(..lanes).collect() }
    }
}

/// Adam (Kingma and Ba 2015, Algorithm 1) on `[z | c]`.
pub(crate) struct Adam {
    steps: u32,
    m: Tensor,
    v: Tensor,
}

impl Adam {
    pub fn new(z: &Tensor, c: &Tensor) -> Adam {
        let m = Tensor::zeros([z.size()[0], z.size()[1] + c.size()[1]], (Kind::Float, z.device()));
        Adam { steps: 0, v: m.zeros_like(), m }
    }

    pub fn restore(state: &AdamState, device: Device) -> Adam {
        Adam { steps: state.steps, m: rows(&state.m, device), v: rows(&state.v, device) }
    }

    pub fn save(&self) -> AdamState {
        AdamState { steps: self.steps, m: to_rows(&self.m), v: to_rows(&self.v) }
    }

    pub fn step(&mut self, z: &mut Tensor, c: &mut Tensor, gradient: &Tensor, params: &Descent) {
        self.steps += 1;
        let update = update(&mut self.m, &mut self.v, gradient, self.steps);
        let width = z.size()[1];
        *z = &*z - update.narrow(1, 0, width) * params.lr_z;
        *c = &*c - update.narrow(1, width, c.size()[1]) * params.lr_c;
    }
}

/// Takes a gradient into the moments; returns what a step of rate one subtracts. `steps` counts this one.
pub(crate) fn update(m: &mut Tensor, v: &mut Tensor, gradient: &Tensor, steps: u32) -> Tensor {
    let _ = m.lerp_(gradient, 1.0 - BETA1);
    let _ = v.g_mul_scalar_(BETA2).addcmul_(&(gradient * (1.0 - BETA2)), gradient);
    let correction1 = 1.0 - BETA1.powi(steps as i32);
    let correction2 = 1.0 - BETA2.powi(steps as i32);
    (&*m / correction1) / ((&*v / correction2).sqrt() + EPS)
}

/// z within [-limit, limit] (Equation 2).
pub(crate) fn clamp(z: &Tensor, limit: f64) -> Tensor {
    z.clamp(-limit, limit)
}

/// Gradient `[z | c]` of the loss, the loss `[n]`, and the images, all detached.
///
/// The caller clamps z *before*, as the authors' hook does: a coordinate at the limit keeps its gradient and can come back.
pub(crate) fn gradient(
    generator: &dyn Generator,
    lpips: &Lpips,
    target: &LossTarget,
    z: &Tensor,
    c: &Tensor,
) -> (Tensor, Tensor, Tensor) {
    let z = z.detach().set_requires_grad(true);
    let c = c.detach().set_requires_grad(true);
    let (sum, loss, images) = tch::with_grad(|| {
        let images = generator.generate(&z, &c);
        let loss = target.loss(lpips, &images);
        (loss.sum(Kind::Float), loss, images)
    });
    let gradients = Tensor::run_backward(&[sum], &[&z, &c], false, false);
    (Tensor::cat(&gradients, 1), loss.detach(), images.detach())
}

#[cfg(test)]
mod tests {
    use tch::nn::{self, OptimizerConfig};

    use super::*;

    #[test]
    fn twenty_steps_are_those_of_libtorchs_adam() {
        tch::manual_seed(5);
        let float = (Kind::Float, Device::Cpu);
        let (start_z, start_c) = (Tensor::randn([3, 8], float), Tensor::randn([3, 4], float));
        let params = Descent { lr_z: 0.05, lr_c: 1e-2, limit: 2.0 };
        // A gradient that turns and shrinks, different in every coordinate.
        let gradient = |x: &Tensor| (x * 3.0).sin() * x.abs();

        let (mut z, mut c) = (start_z.shallow_clone(), start_c.shallow_clone());
        let mut ours = Adam::new(&z, &c);
        // One optimiser for each learning rate.
        let mut theirs = [(&start_z, params.lr_z), (&start_c, params.lr_c)].map(|(start, lr)| {
            let store = nn::VarStore::new(Device::Cpu);
            let variable = store.root().var_copy("x", start);
            (variable, nn::Adam::default().build(&store, lr).expect("libtorch's own"), store)
        });
        for _ in 0..20 {
            let (gz, gc) = (gradient(&z), gradient(&c));
            ours.step(&mut z, &mut c, &Tensor::cat(&[gz, gc], 1), &params);
            for (variable, optimiser, _) in &mut theirs {
                optimiser.backward_step(&(&*variable * gradient(variable).detach()).sum(Kind::Float));
            }
        }
        for (ours, (theirs, ..)) in [&z, &c].into_iter().zip(&theirs) {
            let error = (ours - theirs).abs().max().double_value(&[]);
            assert!(error < 1e-5, "{error}");
        }
    }
}
