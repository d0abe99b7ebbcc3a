//! Gradient steps on z and c (Algorithm 1, lines 8-9 and 19-20): Adam with one learning rate for each. In the target's frame the
//! transform may move, too.
//!
//! All lanes are rows of one tensor, so that a step is a handful of element-wise operations. Rows do not touch each other: unlike
//! in the authors' code, a lane's steps do not depend on the lanes beside it.

use proto::Descent;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::rows::{rows, to_rows};

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPS: f64 = 1e-8;

/// Adam's moments as plain numbers, one row for each lane: `[z | c]` or `[z | c | phi]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamState {
    /// Steps that each lane has done.
    steps: Vec<u32>,
    m: Vec<Vec<f32>>,
    v: Vec<Vec<f32>>,
}

impl AdamState {
    pub(crate) fn select(&self, index: &[usize]) -> AdamState {
        let pick = |rows: &[Vec<f32>]| index.iter().map(|&i| rows[i].clone()).collect();
        AdamState { steps: index.iter().map(|&i| self.steps[i]).collect(), m: pick(&self.m), v: pick(&self.v) }
    }

    pub(crate) fn extend(&mut self, other: AdamState) {
        self.steps.extend(other.steps);
        self.m.extend(other.m);
        self.v.extend(other.v);
    }

    /// Takes off the first lanes.
    pub(crate) fn take(&mut self, lanes: usize) -> AdamState {
        let front = |rows: &mut Vec<Vec<f32>>| rows.drain(..lanes).collect();
        AdamState { steps: self.steps.drain(..lanes).collect(), m: front(&mut self.m), v: front(&mut self.v) }
    }
}

/// What a descent moves, one row for each lane.
pub(crate) struct Point {
    /// `[n, latent_dim]`
    pub z: Tensor,
    /// `[n, embed_dim]`
    pub c: Tensor,
    /// Vectors of the transforms, `[n, dim]`; `None`: the transforms stay.
    pub phi: Option<Tensor>,
}

impl Point {
    fn variables(&self) -> impl Iterator<Item = &Tensor> {
        [&self.z, &self.c].into_iter().chain(&self.phi)
    }

    /// The same numbers as leaves of a new graph, z within [-limit, limit] (Equation 2).
    ///
    /// z is clamped *before* the loss, as the authors' hook does: a coordinate at the limit keeps its gradient and can come back.
    pub fn leaves(&self, limit: f64) -> Point {
        let leaf = |t: &Tensor| t.detach().set_requires_grad(true);
        Point { z: leaf(&clamp(&self.z, limit)), c: leaf(&self.c), phi: self.phi.as_ref().map(leaf) }
    }

    /// Gradient `[z | c | phi]` of the lanes' losses `[n]` at these leaves.
    pub fn gradient(&self, loss: &Tensor) -> Tensor {
        let sum = tch::with_grad(|| loss.sum(Kind::Float));
        Tensor::cat(&Tensor::run_backward(&[sum], &self.variables().collect::<Vec<_>>(), false, false), 1)
    }
}

/// Adam (Kingma and Ba 2015, Algorithm 1) on the rows of a point.
pub(crate) struct Adam {
    steps: Vec<u32>,
    m: Tensor,
    v: Tensor,
}

impl Adam {
    pub fn new(point: &Point) -> Adam {
        let (lanes, width) = (point.z.size()[0], point.variables().map(|t| t.size()[1]).sum());
        let m = Tensor::zeros([lanes, width], (Kind::Float, point.z.device()));
        Adam { steps: vec![0; lanes as usize], v: m.zeros_like(), m }
    }

    pub fn restore(state: &AdamState, device: Device) -> Adam {
        Adam { steps: state.steps.clone(), m: rows(&state.m, device), v: rows(&state.v, device) }
    }

    pub fn save(&self) -> AdamState {
        AdamState { steps: self.steps.clone(), m: to_rows(&self.m), v: to_rows(&self.v) }
    }

    /// One step of a descent of `total` steps.
    pub fn step(&mut self, point: &mut Point, gradient: &Tensor, params: &Descent, total: u32) {
        self.steps.iter_mut().for_each(|steps| *steps += 1);
        let device = gradient.device();
        let column = |of: &dyn Fn(u32) -> f64| {
            let values: Vec<f32> = self.steps.iter().map(|&steps| of(steps) as f32).collect();
            Tensor::from_slice(&values).view([-1, 1]).to_device(device)
        };
        let corrections = [BETA1, BETA2].map(|beta| column(&|steps| correction(beta, steps)));
        let mut update = update(&mut self.m, &mut self.v, gradient, &corrections);
        if params.lr_end < 1.0 {
            update *= column(&|steps| rate(params.lr_end, steps, total));
        }
        let (z, c) = (point.z.size()[1], point.c.size()[1]);
        point.z = &point.z - update.narrow(1, 0, z) * params.lr_z;
        let mut of_c = update.narrow(1, z, c) * params.lr_c;
        if params.late_c && point.phi.is_some() {
            of_c *= column(&|steps| (f64::from(steps) / f64::from(total)).min(1.0));
        }
        point.c = &point.c - of_c;
        if let Some(phi) = &mut point.phi {
            *phi = &*phi - update.narrow(1, z + c, phi.size()[1]) * params.lr_transform;
        }
    }
}

/// What a learning rate is multiplied with at a step from 1 to `total`: a half cosine from 1 to `end` (Loshchilov and Hutter 2017,
/// Equation 5, without restarts).
fn rate(end: f64, step: u32, total: u32) -> f64 {
    let done = f64::from(step.saturating_sub(1)) / f64::from(total.max(1));
    end + (1.0 - end) * 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos())
}

/// The bias correction of a moment after `steps` steps.
pub(crate) fn correction(beta: f64, steps: u32) -> f64 {
    1.0 - beta.powi(steps as i32)
}

/// Takes a gradient into the moments; returns what a step of rate one subtracts. `corrections` are those of both moments.
pub(crate) fn update(m: &mut Tensor, v: &mut Tensor, gradient: &Tensor, corrections: &[Tensor; 2]) -> Tensor {
    let _ = m.lerp_(gradient, 1.0 - BETA1);
    let _ = v.g_mul_scalar_(BETA2).addcmul_(&(gradient * (1.0 - BETA2)), gradient);
    (&*m / &corrections[0]) / ((&*v / &corrections[1]).sqrt() + EPS)
}

/// Corrections for a tensor all of whose numbers have done `steps` steps.
pub(crate) fn corrections(steps: u32) -> [Tensor; 2] {
    [BETA1, BETA2].map(|beta| Tensor::from(correction(beta, steps)))
}

/// z within [-limit, limit] (Equation 2).
pub(crate) fn clamp(z: &Tensor, limit: f64) -> Tensor {
    z.clamp(-limit, limit)
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
        let params = Descent { lr_z: 0.05, lr_c: 1e-2, ..proto::Params::paper().descent };
        // A gradient that turns and shrinks, different in every coordinate.
        let gradient = |x: &Tensor| (x * 3.0).sin() * x.abs();

        let mut point = Point { z: start_z.shallow_clone(), c: start_c.shallow_clone(), phi: None };
        let mut ours = Adam::new(&point);
        // One optimiser for each learning rate.
        let mut theirs = [(&start_z, params.lr_z), (&start_c, params.lr_c)].map(|(start, lr)| {
            let store = nn::VarStore::new(Device::Cpu);
            let variable = store.root().var_copy("x", start);
            (variable, nn::Adam::default().build(&store, lr).expect("libtorch's own"), store)
        });
        for _ in 0..20 {
            let gradients = [&point.z, &point.c].map(gradient);
            ours.step(&mut point, &Tensor::cat(&gradients, 1), &params, 20);
            for (variable, optimiser, _) in &mut theirs {
                optimiser.backward_step(&(&*variable * gradient(variable).detach()).sum(Kind::Float));
            }
        }
        for (ours, (theirs, ..)) in [&point.z, &point.c].into_iter().zip(&theirs) {
            let error = (ours - theirs).abs().max().double_value(&[]);
            assert!(error < 1e-5, "{error}");
        }
    }

    #[test]
    fn beside_a_transform_that_moves_a_late_class_vector_moves_in_proportion_to_the_steps_done() {
        let float = (Kind::Float, Device::Cpu);
        let params = Descent { lr_z: 1.0, lr_c: 1.0, late_c: true, ..proto::Params::paper().descent };
        let zeros = |width| Tensor::zeros([1, width], float);
        for (phi, way) in [(Some(zeros(1)), [0.25, 0.75, 1.5, 2.5, 3.5]), (None, [1.0, 2.0, 3.0, 4.0, 5.0])] {
            let width = if phi.is_some() { 5 } else { 4 };
            let mut point = Point { z: zeros(2), c: zeros(2), phi };
            let mut adam = Adam::new(&point);
            // Adam moves by the whole rate while the gradient stays the same.
            for expected in way {
                adam.step(&mut point, &Tensor::ones([1, width], float), &params, 4);
                let moved = -point.c.double_value(&[0, 0]);
                assert!((moved - expected).abs() < 1e-4, "{moved}, not {expected}");
            }
            assert!((point.z.double_value(&[0, 0]) + 5.0).abs() < 1e-4);
        }
    }

    #[test]
    fn the_rate_falls_along_a_half_cosine() {
        let rates: Vec<f64> = (1..=5).map(|step| rate(0.1, step, 4)).collect();
        let half = 0.1 + 0.9 * 0.5;
        let quarter = 0.9 * 0.5 * 0.5f64.sqrt();
        for (rate, expected) in rates.iter().zip([1.0, half + quarter, half, half - quarter, 0.1]) {
            assert!((rate - expected).abs() < 1e-12, "{rates:?}");
        }
        assert_eq!(rate(1.0, 3, 4), 1.0);
    }
}
