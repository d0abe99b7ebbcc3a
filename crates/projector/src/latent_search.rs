//! Stage two (Algorithm 1, lines 13-23): Adam, L-BFGS, CMA, CMA+Adam and BasinCMA are values of `proto::LatentSearch`.
//!
//! All are the same two phases: *explore* (CMA-ES over z, with or without a short descent) and *descend* (a long descent from what
//! was found). Adam and L-BFGS have no first phase, CMA has no second.

use proto::{Converged, LastDescent, LatentSearch as Params, LatentStart, Told, Transform};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};

use crate::cma::Cma;
use crate::descent::AdamState;
use crate::lanes::{Request, Response, Transforms, Work};
use crate::latent;
use crate::lbfgs::Lbfgs;

/// Steps of a long descent in one request: the caller can stop between two requests.
const DESCENT_CHUNK: u32 = 50;

/// One vector for each lane.
pub type Rows = Vec<Vec<f32>>;

/// State of stage two for one image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LatentSearch {
    phase: Phase,
    /// Number of seeds: lanes at the start.
    seeds: usize,
    /// Class vectors that the lanes start with; `None`: that of the image's class.
    starts: Option<Rows>,
    /// Transforms that the lanes start with; `None`: phi*.
    transforms: Option<Vec<Transform>>,
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
        /// Best first; filled only if the last descent starts with them.
        best: Vec<Refined>,
    },
    Descend {
        z: Rows,
        c: Option<Rows>,
        /// Those of the lanes; `None`: phi*.
        transforms: Option<Vec<Transform>>,
        /// Which of the first lanes these are; `None`: all.
        survivors: Option<Vec<usize>>,
        adam: Option<AdamState>,
        done: u32,
    },
    /// Each lane's variables are z and its class vector minus `origins`, divided by `class_rate`.
    Lbfgs {
        lanes: Vec<Lbfgs>,
        latent_dim: usize,
        origins: Rows,
        class_rate: f64,
        done: u32,
    },
    Finished(Found),
    /// The encoder guesses where to start.
    Encode {
        latent_dim: usize,
        c0: Vec<f32>,
        class_rate: f64,
        sigma: f64,
    },
}

/// What the search found, one for each seed that is left.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Found {
    /// `[seed][latent_dim]`
    pub z: Rows,
    /// `[seed][embed_dim]`; `None`: the embedding of the image's class.
    pub c: Option<Rows>,
    /// `None`: phi*.
    pub transforms: Option<Vec<Transform>>,
    /// Which of the first seeds each one was, if they are not all of them.
    pub survivors: Option<Vec<usize>>,
}

/// A point after its short descent.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Refined {
    inverted: f64,
    z: Vec<f32>,
    c: Vec<f32>,
}

/// Class vectors that the lanes start with.
#[derive(Clone, Copy, Debug)]
pub struct ClassVectors<'a> {
    /// Embedding of the image's class.
    pub own: &'a [f32],
    /// One for each lane; `None`: `own`.
    pub each: Option<&'a Rows>,
    /// Root of the ratio of the learning rates of the class vector and of z. L-BFGS has no learning rates: in class vectors divided by
    /// this, the steepest descent goes as far for equal gradients as the rates say.
    pub rate: f64,
}

impl LatentSearch {
    /// Starts with `seeds` lanes.
    pub fn new(
        params: &Params,
        start: LatentStart,
        seeds: usize,
        latent_dim: usize,
        c: ClassVectors,
        transforms: Option<Vec<Transform>>,
        rng: &mut ChaCha8Rng,
    ) -> LatentSearch {
        let phase = match start {
            LatentStart::Encoder { sigma } => Phase::Encode { latent_dim, c0: c.own.to_vec(), class_rate: c.rate, sigma },
            LatentStart::Random => {
                let mut random = || (0..seeds).map(|_| latent::truncated(latent_dim, rng)).collect();
                let sigma = if let Params::BasinCma { sigma, .. } = params { *sigma } else { 1.0 };
                begin(params, &mut random, (&vec![0.0; latent_dim], sigma), seeds, c, transforms.clone())
            }
        };
        LatentSearch { phase, seeds, starts: c.each.cloned(), transforms, history: vec![], curves: vec![] }
    }

    /// The next work under phi*; `None` when finished.
    pub fn ask(&mut self, params: &Params, transforms: Transforms, rng: &mut ChaCha8Rng) -> Option<Request> {
        let transforms = self.transforms.clone().map_or(transforms, Transforms::Each);
        let request = |z, c, work, exact| Request { z, c, transforms, work, adam: None, exact };
        let descend = |steps, total, record| Work::Descend { steps, total, track_inverted: false, record };
        Some(match &mut self.phase {
            Phase::Explore { cma, asked, .. } => {
                *asked = cma.ask(rng);
                let work = match params {
                    Params::BasinCma { steps, .. } => descend(*steps, *steps, false),
                    _ => Work::Evaluate,
                };
                request(latent::to_f32(asked), self.starts.clone(), work, false)
            }
            Phase::Descend { z, c, transforms, adam, done, .. } => {
                let rungs = rungs(params, self.seeds);
                let next = rungs.iter().map(|rung| rung.until).find(|until| until > done);
                let steps = (next.expect("an unfinished descent has steps left") - *done).min(DESCENT_CHUNK);
                let total = rungs.last().expect("it has a next part").until;
                // The end of a descent is reported, so it is computed in float32.
                let last = total == *done + steps;
                let request = request(z.clone(), c.clone(), descend(steps, total, true), last);
                let transforms = transforms.clone().map_or(request.transforms, Transforms::Each);
                Request { adam: adam.clone(), transforms, ..request }
            }
            Phase::Lbfgs { lanes, latent_dim, origins, class_rate, .. } => {
                let points = lanes.iter().map(Lbfgs::point).zip(&*origins);
                let (z, c) = points.map(|(point, origin)| latents(&point, *latent_dim, origin, *class_rate)).unzip();
                // A line search compares losses of points that are close.
                request(z, Some(c), Work::Gradient, true)
            }
            Phase::Finished(_) => return None,
            Phase::Encode { latent_dim, .. } => {
                let mut request = request(vec![vec![0.0; *latent_dim]], None, Work::Encode, true);
                // One guess, from the image under the first seed's transform.
                if let Transforms::Each(each) = &mut request.transforms {
                    each.truncate(1);
                }
                request
            }
        })
    }

    /// Takes in the response to the last request.
    pub fn tell(&mut self, params: &Params, response: &Response, rng: &mut ChaCha8Rng) {
        match &mut self.phase {
            Phase::Explore { cma, asked, generation, best } => {
                match params {
                    Params::BasinCma { told: Told::Refined, .. } => cma.tell(&latent::to_f64(&response.z), &response.inverted),
                    _ => cma.tell(asked, &response.inverted),
                }
                self.history.push(latent::least(&response.inverted).0);
                let refined = matches!(params, Params::BasinCma { last: LastDescent::Refined, .. });
                if refined {
                    keep_best(best, response, self.seeds);
                }
                *generation += 1;
                if *generation >= rounds(params) {
                    let (z, c) = if refined {
                        let (z, c) = best.drain(..).map(|point| (point.z, point.c)).unzip();
                        (z, Some(c))
                    } else {
                        // One more draw: the long descent starts from fresh samples, not from the refined points.
                        (latent::to_f32(&cma.ask(rng)), self.starts.clone())
                    };
                    self.phase = match rungs(params, self.seeds).is_empty() {
                        true => Phase::Finished(Found { z, c, transforms: None, survivors: None }),
                        false => Phase::Descend { z, c, transforms: None, survivors: None, adam: None, done: 0 },
                    };
                }
            }
            Phase::Descend { .. } => self.descended(params, response),
            Phase::Lbfgs { lanes, latent_dim, origins, class_rate, done } => {
                self.curves.resize(lanes.len(), vec![]);
                for (i, lane) in lanes.iter_mut().enumerate() {
                    self.curves[i].push(response.loss[i] as f32);
                    let rates = std::iter::repeat_n(1.0, *latent_dim).chain(std::iter::repeat(*class_rate));
                    let gradient = response.gradient[i].iter().zip(rates).map(|(&g, rate)| f64::from(g) * rate);
                    lane.tell(response.loss[i], gradient.collect());
                }
                *done += 1;
                if *done >= rounds(params) {
                    let best = lanes.iter().map(Lbfgs::best).zip(&*origins);
                    let (z, c) = best.map(|(best, origin)| latents(best, *latent_dim, origin, *class_rate)).unzip();
                    self.phase = Phase::Finished(Found { z, c: Some(c), transforms: None, survivors: None });
                }
            }
            Phase::Finished(_) => {}
            Phase::Encode { latent_dim, c0, class_rate, sigma } => {
                let (mean, spread) = (&response.z[0], *sigma);
                let mut draw =
                    || (0..*latent_dim).map(|d| mean[d] + spread as f32 * rng.sample::<f32, _>(StandardNormal)).collect();
                let mut around = || (0..self.seeds).map(|_| draw()).collect();
                let c = ClassVectors { own: c0, each: self.starts.as_ref(), rate: *class_rate };
                self.phase = begin(params, &mut around, (mean, spread), self.seeds, c, self.transforms.clone());
            }
        }
    }

    /// Takes in a part of the long descent.
    fn descended(&mut self, params: &Params, response: &Response) {
        let Phase::Descend { z, c, transforms, survivors, adam, done } = &mut self.phase else { return };
        self.curves.resize(z.len(), vec![]);
        for (curve, new) in self.curves.iter_mut().zip(&response.curves) {
            curve.extend(new);
        }
        *z = response.z.clone();
        *c = Some(response.c.clone());
        *adam = response.adam.clone();
        if !response.transforms.is_empty() {
            *transforms = Some(response.transforms.clone());
        }
        *done += response.curves.first().map_or(0, |c| c.len() as u32);
        let rungs = rungs(params, self.seeds);
        match rungs.iter().find(|rung| rung.until > *done).filter(|_| !converged(params, &rungs, &self.curves, *done)) {
            None => {
                let (z, c) = (std::mem::take(z), c.take());
                let (transforms, survivors) = (transforms.take(), survivors.take());
                self.phase = Phase::Finished(Found { z, c, transforms, survivors });
            }
            Some(next) if next.lanes < z.len() => {
                let index = best_lanes(&response.loss, next.lanes);
                let pick = |rows: &Rows| index.iter().map(|&i| rows[i].clone()).collect::<Rows>();
                self.curves = pick(&self.curves);
                *c = c.as_ref().map(pick);
                *adam = adam.as_ref().map(|adam| adam.select(&index));
                *survivors = Some(match survivors.take() {
                    Some(first) => index.iter().map(|&i| first[i]).collect(),
                    None => index.clone(),
                });
                *transforms = transforms.as_ref().map(|each| index.iter().map(|&i| each[i].clone()).collect());
                *z = pick(z);
            }
            Some(_) => {}
        }
    }

    /// Whether the first phase is unfinished.
    pub fn explores(&self) -> bool {
        matches!(self.phase, Phase::Explore { .. } | Phase::Encode { .. })
    }

    /// Lanes that the next request has.
    pub fn lanes(&self) -> usize {
        match &self.phase {
            Phase::Descend { z, .. } => z.len(),
            _ => self.seeds,
        }
    }

    /// What was found, when finished.
    pub fn result(&self) -> Option<&Found> {
        match &self.phase {
            Phase::Finished(found) => Some(found),
            _ => None,
        }
    }
}

/// The first phase of a method. CMA-ES starts around `mean` with step size `sigma`; the other methods with what `draw` returns.
fn begin(
    params: &Params,
    draw: &mut dyn FnMut() -> Rows,
    (mean, sigma): (&[f32], f64),
    seeds: usize,
    c: ClassVectors,
    transforms: Option<Vec<Transform>>,
) -> Phase {
    match params {
        Params::Start => Phase::Finished(Found { z: draw(), c: c.each.cloned(), transforms, survivors: None }),
        Params::Adam { .. } | Params::Halving { .. } => {
            Phase::Descend { z: draw(), c: c.each.cloned(), transforms, survivors: None, adam: None, done: 0 }
        }
        Params::Lbfgs { .. } => {
            let moved = || std::iter::repeat_n(0.0, c.own.len());
            let lanes: Vec<Lbfgs> =
                draw().iter().map(|z| Lbfgs::new(z.iter().copied().map(f64::from).chain(moved()).collect())).collect();
            let origins = c.each.cloned().unwrap_or_else(|| vec![c.own.to_vec(); lanes.len()]);
            Phase::Lbfgs { lanes, latent_dim: mean.len(), origins, class_rate: c.rate, done: 0 }
        }
        Params::Cma { .. } | Params::CmaAdam { .. } | Params::BasinCma { .. } => {
            // CMA-ES needs some spread; a start without any suits a descent only.
            let cma = Cma::new(mean.iter().map(|&v| f64::from(v)).collect(), sigma.max(1e-6), Some(seeds));
            Phase::Explore { cma: Box::new(cma), asked: vec![], generation: 0, best: vec![] }
        }
    }
}

/// z and c of L-BFGS' variables.
fn latents(point: &[f64], latent_dim: usize, origin: &[f32], class_rate: f64) -> (Vec<f32>, Vec<f32>) {
    let (z, moved) = point.split_at(latent_dim);
    let c = origin.iter().zip(moved).map(|(&origin, moved)| (f64::from(origin) + class_rate * moved) as f32);
    (z.iter().map(|&v| v as f32).collect(), c.collect())
}

/// Adds a generation's refined points, and keeps the best `seeds` of all.
fn keep_best(best: &mut Vec<Refined>, response: &Response, seeds: usize) {
    let points = response.inverted.iter().zip(&response.z).zip(&response.c);
    best.extend(points.map(|((&inverted, z), c)| Refined { inverted, z: z.clone(), c: c.clone() }));
    best.retain(|point| point.inverted.is_finite());
    best.sort_by(|a, b| a.inverted.total_cmp(&b.inverted));
    best.truncate(seeds);
}

/// The lanes with the smallest losses, in their order.
fn best_lanes(losses: &[f64], lanes: usize) -> Vec<usize> {
    let mut index: Vec<usize> = (0..losses.len()).collect();
    let rank = |i: usize| if losses[i].is_finite() { losses[i] } else { f64::INFINITY };
    index.sort_by(|&a, &b| rank(a).total_cmp(&rank(b)));
    index.truncate(lanes);
    index.sort_unstable();
    index
}

/// Whether the last part of a descent may end early.
fn converged(params: &Params, rungs: &[Rung], curves: &[Vec<f32>], done: u32) -> bool {
    let Params::Halving { converged: Some(Converged { improvement, steps }), .. } = params else { return false };
    let begun = rungs.iter().rev().nth(1).map_or(0, |rung| rung.until);
    if done < begun + steps + 1 {
        return false;
    }
    let smallest = |step: u32| latent::least(&curves.iter().map(|curve| f64::from(curve[step as usize])).collect::<Vec<_>>()).0;
    smallest(done - 1) > smallest(done - 1 - steps) * (1.0 - improvement)
}

/// A part of the last descent.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rung {
    lanes: usize,
    /// Steps of the descent after which it ends.
    until: u32,
}

/// The parts of the last descent; empty: the method has none.
fn rungs(params: &Params, seeds: usize) -> Vec<Rung> {
    let (steps, halving) = match params {
        Params::Halving { steps, .. } => {
            let (mut lanes, mut until) = (seeds, 0);
            let rung = |&steps: &u32| {
                until += steps;
                let half = lanes.div_ceil(2);
                Rung { lanes: std::mem::replace(&mut lanes, half), until }
            };
            return steps.iter().map(rung).collect();
        }
        Params::Adam { steps } | Params::CmaAdam { steps, .. } => (*steps, false),
        Params::BasinCma { final_steps, last, .. } => (*final_steps, *last == LastDescent::Halving),
        Params::Start | Params::Lbfgs { .. } | Params::Cma { .. } => return vec![],
    };
    if !halving {
        return vec![Rung { lanes: seeds, until: steps }];
    }
    let total = seeds as u64 * u64::from(steps);
    let (mut left, mut lanes, mut until) = (total, seeds, 0);
    let mut rungs = Vec::new();
    for last in [false, false, true] {
        let share = if last { left } else { total / 3 };
        let steps = share / lanes as u64;
        left -= steps * lanes as u64;
        until += steps as u32;
        rungs.push(Rung { lanes, until });
        lanes = lanes.div_ceil(2);
    }
    rungs
}

/// Generations of CMA-ES, or evaluations of L-BFGS.
fn rounds(params: &Params) -> u32 {
    match params {
        Params::Cma { generations } | Params::CmaAdam { generations, .. } | Params::BasinCma { generations, .. } => *generations,
        Params::Lbfgs { evaluations } => *evaluations,
        Params::Start | Params::Adam { .. } | Params::Halving { .. } => 0,
    }
}

/// Lane-steps of stage two for `seeds` lanes: one forward (and backward) pass of one lane each.
pub fn lane_steps(params: &Params, seeds: u64) -> u64 {
    let passes = if let Params::BasinCma { steps, .. } = params { *steps } else { 1 };
    let explore = u64::from(rounds(params)) * u64::from(passes);
    let mut before = 0;
    let descend = rungs(params, seeds as usize).into_iter().map(|Rung { lanes, until }| {
        let steps = until - std::mem::replace(&mut before, until);
        lanes as u64 * u64::from(steps)
    });
    explore.saturating_mul(seeds) + descend.sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basin(final_steps: u32, last: LastDescent) -> Params {
        Params::BasinCma { generations: 30, steps: 30, final_steps, told: Told::Refined, sigma: 1.0, last }
    }

    #[test]
    fn halving_spends_as_much_on_fewer_seeds() {
        let rungs = rungs(&basin(300, LastDescent::Halving), 18);
        let rung = |lanes, until| Rung { lanes, until };
        assert_eq!(rungs, [rung(18, 100), rung(9, 300), rung(5, 660)]);
        for (seeds, steps) in [(18, 300), (18, 40), (18, 3), (3, 3), (4, 5), (7, 1000)] {
            let plain = lane_steps(&basin(steps, LastDescent::Fresh), seeds);
            let halved = lane_steps(&basin(steps, LastDescent::Halving), seeds);
            assert!(halved <= plain && plain - halved < seeds, "{seeds} seeds, {steps} steps: {halved} of {plain}");
        }
    }

    #[test]
    fn a_descent_that_has_converged_ends_in_its_last_part_only() {
        let params = |improvement| Params::Halving { steps: vec![4, 8], converged: Some(Converged { improvement, steps: 3 }) };
        // Two lanes, of which now one and now the other has the smallest loss: it falls by a tenth with every step.
        let curve = |late: u32| (0..12u32).map(|step| if step % 2 == late { 9.0 } else { 0.9f32.powi(step as i32) }).collect();
        let curves: Vec<Vec<f32>> = vec![curve(0), curve(1)];
        let ends = |improvement, done| {
            let params = params(improvement);
            converged(&params, &rungs(&params, 4), &curves, done)
        };
        // Three steps lower it by 27.1 %.
        assert!(!ends(0.27, 9) && ends(0.272, 9));
        assert!((1..8).all(|done| !ends(1.0, done)), "the last part has not had three steps to compare");
        assert!(!converged(&Params::Adam { steps: 12 }, &[], &curves, 9));
    }

    #[test]
    fn the_better_half_goes_on_in_its_order() {
        assert_eq!(best_lanes(&[3.0, f64::NAN, 1.0, 2.0, f64::INFINITY], 3), [0, 2, 3]);
    }

    #[test]
    fn the_best_refined_points_of_all_generations_are_kept() {
        let mut best = vec![];
        for inverted in [vec![3.0, 1.0], vec![f64::NAN, 2.0], vec![0.5, 9.0]] {
            let rows: Rows = inverted.iter().map(|&v| vec![v as f32]).collect();
            let response = Response { inverted, z: rows.clone(), c: rows, ..Default::default() };
            keep_best(&mut best, &response, 2);
        }
        let kept: Vec<(f64, f32, f32)> = best.iter().map(|point| (point.inverted, point.z[0], point.c[0])).collect();
        assert_eq!(kept, [(0.5, 0.5, 0.5), (1.0, 1.0, 1.0)]);
    }
}
