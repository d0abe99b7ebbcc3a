//! Stage two (Algorithm 1, lines 13-23): Adam, L-BFGS, CMA, CMA+Adam and BasinCMA are values of `proto::LatentSearch`.
//!
//! All are the same two phases: *explore* (CMA-ES over z, with or without a short descent) and *descend* (a long descent from what
//! was found). Adam and L-BFGS have no first phase, CMA has no second.

use proto::{LatentSearch as Params, LatentStart, Told};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};

use crate::cma::Cma;
use crate::descent::AdamState;
use crate::lanes::{Outcome, Request, Transforms, Work};
use crate::latent;
use crate::lbfgs::Lbfgs;

/// A long descent is asked for in parts of this many steps, so that the caller can stop between them.
const DESCENT_CHUNK: u32 = 50;

/// One vector for each lane.
pub type Rows = Vec<Vec<f32>>;

/// State of stage two for one image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LatentSearch {
    phase: Phase,
    /// Smallest inverted loss of each generation.
    pub history: Vec<f64>,
    /// Loss of every step of the long descent, by seed.
    pub curves: Vec<Vec<f32>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Phase {
    Explore {
        cma: Box<Cma>,
        asked: Vec<Vec<f64>>,
        generation: u32,
    },
    Descend {
        z: Vec<Vec<f32>>,
        c: Option<Vec<Vec<f32>>>,
        adam: Option<AdamState>,
        done: u32,
    },
    Lbfgs {
        lanes: Vec<Lbfgs>,
        latent_dim: usize,
        done: u32,
    },
    Finished {
        z: Vec<Vec<f32>>,
        c: Option<Vec<Vec<f32>>>,
    },
    /// The encoder is asked where to start.
    Encode {
        seeds: usize,
        latent_dim: usize,
        c0: Vec<f32>,
        sigma: f64,
    },
}

impl LatentSearch {
    /// Starts with `seeds` lanes. `c0` is the embedding of the image's class.
    pub fn new(
        params: &Params,
        start: LatentStart,
        seeds: usize,
        latent_dim: usize,
        c0: &[f32],
        rng: &mut ChaCha8Rng,
    ) -> LatentSearch {
        let phase = match start {
            LatentStart::Encoder { sigma } => Phase::Encode { seeds, latent_dim, c0: c0.to_vec(), sigma },
            LatentStart::Random => {
                let mut random = || (0..seeds).map(|_| latent::truncated(latent_dim, rng)).collect();
                let sigma = if let Params::BasinCma { sigma, .. } = params { *sigma } else { 1.0 };
                begin(params, &mut random, (&vec![0.0; latent_dim], sigma), seeds, c0)
            }
        };
        LatentSearch { phase, history: vec![], curves: vec![] }
    }

    /// The next work under phi*; `None` when finished.
    pub fn ask(&mut self, params: &Params, transforms: Transforms, rng: &mut ChaCha8Rng) -> Option<Request> {
        let request = |z, c, work| Some(Request { z, c, transforms, work });
        let descend = |steps, adam, record| Work::Descend { steps, adam, track_inverted: false, record };
        match &mut self.phase {
            Phase::Explore { cma, asked, .. } => {
                *asked = cma.ask(rng);
                let work = match params {
                    Params::BasinCma { steps, .. } => descend(*steps, None, false),
                    _ => Work::Evaluate,
                };
                request(latent::to_f32(asked), None, work)
            }
            Phase::Descend { z, c, adam, done } => {
                let steps = (descent_steps(params) - *done).min(DESCENT_CHUNK);
                request(z.clone(), c.clone(), descend(steps, adam.clone(), true))
            }
            Phase::Lbfgs { lanes, latent_dim, .. } => {
                let points: Vec<Vec<f32>> = lanes.iter().map(|l| l.point().iter().map(|&v| v as f32).collect()).collect();
                let (z, c) = points.iter().map(|p| (p[..*latent_dim].to_vec(), p[*latent_dim..].to_vec())).unzip();
                request(z, Some(c), Work::Gradient)
            }
            Phase::Finished { .. } => None,
            Phase::Encode { latent_dim, .. } => request(vec![vec![0.0; *latent_dim]], None, Work::Encode),
        }
    }

    /// Takes in what came of the last request.
    pub fn tell(&mut self, params: &Params, outcome: &Outcome, rng: &mut ChaCha8Rng) {
        match &mut self.phase {
            Phase::Explore { cma, asked, generation } => {
                match params {
                    Params::BasinCma { told: Told::Refined, .. } => cma.tell(&latent::to_f64(&outcome.z), &outcome.inverted),
                    _ => cma.tell(asked, &outcome.inverted),
                }
                self.history.push(latent::least(&outcome.inverted).0);
                *generation += 1;
                let generations = match params {
                    Params::Cma { generations } => *generations,
                    Params::CmaAdam { generations, .. } | Params::BasinCma { generations, .. } => *generations,
                    Params::Adam { .. } | Params::Lbfgs { .. } => 0,
                };
                if *generation >= generations {
                    // One more draw: the long descent starts from fresh samples, not from the refined points.
                    let z = latent::to_f32(&cma.ask(rng));
                    self.phase = if descent_steps(params) == 0 {
                        Phase::Finished { z, c: None }
                    } else {
                        Phase::Descend { z, c: None, adam: None, done: 0 }
                    };
                }
            }
            Phase::Descend { z, c, adam, done } => {
                if self.curves.is_empty() {
                    self.curves = vec![vec![]; z.len()];
                }
                for (curve, new) in self.curves.iter_mut().zip(&outcome.curves) {
                    curve.extend(new);
                }
                *z = outcome.z.clone();
                *c = Some(outcome.c.clone());
                *adam = outcome.adam.clone();
                *done += outcome.curves.first().map_or(0, |c| c.len() as u32);
                if *done >= descent_steps(params) {
                    self.phase = Phase::Finished { z: std::mem::take(z), c: c.take() };
                }
            }
            Phase::Lbfgs { lanes, latent_dim, done } => {
                if self.curves.is_empty() {
                    self.curves = vec![vec![]; lanes.len()];
                }
                for (i, lane) in lanes.iter_mut().enumerate() {
                    self.curves[i].push(outcome.loss[i] as f32);
                    lane.tell(outcome.loss[i], outcome.gradient[i].iter().map(|&g| f64::from(g)).collect());
                }
                *done += 1;
                if *done >= lbfgs_evaluations(params) {
                    let best: Vec<Vec<f32>> = lanes.iter().map(|l| l.best().iter().map(|&v| v as f32).collect()).collect();
                    let (z, c) = best.iter().map(|p| (p[..*latent_dim].to_vec(), p[*latent_dim..].to_vec())).unzip();
                    self.phase = Phase::Finished { z, c: Some(c) };
                }
            }
            Phase::Finished { .. } => {}
            Phase::Encode { seeds, latent_dim, c0, sigma } => {
                let (mean, spread) = (&outcome.z[0], *sigma);
                let mut draw =
                    || (0..*latent_dim).map(|d| mean[d] + spread as f32 * rng.sample::<f32, _>(StandardNormal)).collect();
                let mut around = || (0..*seeds).map(|_| draw()).collect();
                self.phase = begin(params, &mut around, (mean, spread), *seeds, c0);
            }
        }
    }

    /// Whether the first phase goes on.
    pub fn explores(&self) -> bool {
        matches!(self.phase, Phase::Explore { .. } | Phase::Encode { .. })
    }

    /// z and c of all seeds, when finished. No c: that of the class.
    pub fn result(&self) -> Option<(&Rows, Option<&Rows>)> {
        match &self.phase {
            Phase::Finished { z, c } => Some((z, c.as_ref())),
            _ => None,
        }
    }
}

/// The first phase of a method. Without CMA-ES it begins with what `draw` gives, with it around the mean.
fn begin(params: &Params, draw: &mut dyn FnMut() -> Rows, (mean, sigma): (&[f32], f64), seeds: usize, c0: &[f32]) -> Phase {
    match params {
        Params::Adam { .. } => Phase::Descend { z: draw(), c: None, adam: None, done: 0 },
        Params::Lbfgs { .. } => {
            let start = |z: Vec<f32>| Lbfgs::new(z.into_iter().chain(c0.iter().copied()).map(f64::from).collect());
            Phase::Lbfgs { lanes: draw().into_iter().map(start).collect(), latent_dim: mean.len(), done: 0 }
        }
        Params::Cma { .. } | Params::CmaAdam { .. } | Params::BasinCma { .. } => {
            // CMA-ES needs some spread; one start without any is a descent's.
            let cma = Cma::new(mean.iter().map(|&v| f64::from(v)).collect(), sigma.max(1e-6), Some(seeds));
            Phase::Explore { cma: Box::new(cma), asked: vec![], generation: 0 }
        }
    }
}

fn descent_steps(params: &Params) -> u32 {
    match params {
        Params::Adam { steps } | Params::CmaAdam { steps, .. } => *steps,
        Params::BasinCma { final_steps, .. } => *final_steps,
        Params::Lbfgs { .. } | Params::Cma { .. } => 0,
    }
}

fn lbfgs_evaluations(params: &Params) -> u32 {
    match params {
        Params::Lbfgs { evaluations } => *evaluations,
        _ => 0,
    }
}

/// Lane-steps of stage two for `seeds` lanes: one forward (and backward) pass of one lane each.
pub fn lane_steps(params: &Params, seeds: u64) -> u64 {
    let passes = match params {
        Params::Adam { steps } => u64::from(*steps),
        Params::Lbfgs { evaluations } => u64::from(*evaluations),
        Params::Cma { generations } => u64::from(*generations),
        Params::CmaAdam { generations, steps } => u64::from(*generations) + u64::from(*steps),
        Params::BasinCma { generations, steps, final_steps, .. } => {
            u64::from(*generations) * u64::from(*steps) + u64::from(*final_steps)
        }
    };
    passes.saturating_mul(seeds)
}
