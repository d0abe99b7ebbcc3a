//! Stage one (Algorithm 1, lines 1-12): CMA-ES over the transform. Each candidate is judged by a short descent on z and c.

use proto::{Fitness, Transform, TransformChoice, TransformSearch as Params, TransformStart};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};

use crate::cma::Cma;
use crate::lanes::{Request, Response, Transforms, Work};
use crate::latent;
use crate::transform::Space;

/// Deviation of the noise around the mean start (legacy `propagate_z`).
const MEAN_NOISE: f32 = 0.5;
/// The refined samples are clamped to this before they are averaged (legacy).
const MEAN_LIMIT: f32 = 1.0;
/// Weight of the past in the moving average towards the best sample (master).
const BEST_MEMORY: f32 = 0.5;

/// State of stage one for one image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TransformSearch {
    cma: Cma,
    generation: u32,
    /// Candidates of the current generation, as CMA-ES drew them.
    asked: Vec<Vec<f64>>,
    /// Where z starts from, after the first generation.
    z: Option<Vec<f32>>,
    /// Smallest fitness so far and its candidate.
    best: (f64, Vec<f64>),
    /// Smallest fitness of each generation.
    pub history: Vec<f64>,
}

impl TransformSearch {
    /// Starts at phi_0.
    pub fn new(params: &Params, initial: &Transform) -> TransformSearch {
        let mean = Space::new(params).vector(initial);
        TransformSearch {
            cma: Cma::new(mean.clone(), params.sigma, params.population.map(|n| n as usize)),
            generation: 0,
            asked: Vec::new(),
            z: None,
            best: (f64::INFINITY, mean),
            history: Vec::new(),
        }
    }

    /// Candidates of a generation.
    pub fn lanes(&self) -> usize {
        self.cma.population()
    }

    /// Lines 4-9: the next candidates, each with its start.
    pub fn ask(&mut self, params: &Params, latent_dim: usize, rng: &mut ChaCha8Rng) -> Request {
        self.asked = self.cma.ask(rng);
        let space = Space::new(params);
        let z = (0..self.asked.len()).map(|_| self.start(params, latent_dim, rng)).collect();
        Request {
            z,
            c: None,
            transforms: Transforms::Each(self.asked.iter().map(|v| space.transform(v)).collect()),
            work: Work::Descend {
                steps: params.steps,
                total: params.steps,
                track_inverted: params.fitness == Fitness::Minimum,
                record: false,
            },
            adam: None,
            exact: false,
        }
    }

    fn start(&self, params: &Params, latent_dim: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
        let Some(z) = &self.z else {
            return latent::truncated(latent_dim, rng);
        };
        let noise = if params.start == TransformStart::Mean {
            MEAN_NOISE
        } else {
            1.0 - self.generation as f32 / params.generations as f32
        };
        let mut z: Vec<f32> = z.iter().map(|&m| m + noise * rng.sample::<f32, _>(StandardNormal)).collect();
        if params.start == TransformStart::Best {
            latent::standardise(&mut z);
        }
        z
    }

    /// Lines 10-11: updates the distribution by the inverted losses. Where the descent moved the candidates, CMA-ES is told where they
    /// are now.
    pub fn tell(&mut self, params: &Params, response: &Response) {
        if !response.transforms.is_empty() {
            let space = Space::new(params);
            self.asked = response.transforms.iter().map(|t| space.vector(t)).collect();
        }
        self.cma.tell(&self.asked, &response.inverted);
        let (least, index) = latent::least(&response.inverted);
        if least < self.best.0 {
            self.best = (least, self.asked[index].clone());
        }
        self.history.push(least);
        self.generation += 1;
        self.z = match params.start {
            TransformStart::Fresh => None,
            TransformStart::Mean => Some(latent::mean_clamped(&response.z, MEAN_LIMIT)),
            TransformStart::Best => {
                let best = &response.z[index];
                Some(match &self.z {
                    Some(z) => z.iter().zip(best).map(|(z, b)| BEST_MEMORY * z + (1.0 - BEST_MEMORY) * b).collect(),
                    None => best.clone(),
                })
            }
        };
    }

    /// Whether all generations are done.
    pub fn finished(&self, params: &Params) -> bool {
        self.generation >= params.generations
    }

    /// phi* (line 12).
    pub fn transform(&self, params: &Params) -> Transform {
        let vector = match params.choice {
            TransformChoice::Mean => self.cma.mean().to_vec(),
            TransformChoice::Best => self.best.1.clone(),
        };
        Space::new(params).transform(&vector)
    }
}
