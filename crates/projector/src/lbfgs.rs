//! L-BFGS (Liu and Nocedal 1989) for one lane, as ask/tell: the caller evaluates `point` and tells loss and gradient.
//!
//! The line search bisects for the weak Wolfe conditions (Lewis and Overton 2013, Algorithm 2.6), which suits a loss with kinks
//! such as L1.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Pairs kept (torch's default is 100, the method's 10).
const HISTORY: usize = 10;
/// Wolfe's constant of sufficient decrease.
const C1: f64 = 1e-4;
/// Wolfe's constant of curvature.
const C2: f64 = 0.9;
/// Limit of the first step.
const FIRST_STEP: f64 = 1.0;
/// Bisections after which the direction is replaced by the steepest descent.
const MAX_BISECTIONS: u32 = 20;

/// State of one minimisation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Lbfgs {
    /// Last accepted point, its loss and gradient; loss is `None` before the first evaluation.
    x: Vec<f64>,
    f: Option<f64>,
    g: Vec<f64>,
    direction: Vec<f64>,
    /// Current trial step and its bracket.
    t: f64,
    low: f64,
    high: f64,
    bisections: u32,
    /// (s, y, 1 / s.y), oldest first.
    pairs: VecDeque<(Vec<f64>, Vec<f64>, f64)>,
    best: (f64, Vec<f64>),
}

impl Lbfgs {
    /// Starts at the point `x`.
    pub fn new(x: Vec<f64>) -> Lbfgs {
        Lbfgs {
            direction: vec![0.0; x.len()],
            g: vec![0.0; x.len()],
            best: (f64::INFINITY, x.clone()),
            f: None,
            t: 0.0,
            low: 0.0,
            high: f64::INFINITY,
            bisections: 0,
            pairs: VecDeque::new(),
            x,
        }
    }

    /// The next point to evaluate.
    pub fn point(&self) -> Vec<f64> {
        self.x.iter().zip(&self.direction).map(|(x, d)| x + self.t * d).collect()
    }

    /// The best point that was evaluated.
    pub fn best(&self) -> &[f64] {
        &self.best.1
    }

    /// Loss and gradient at `point`.
    pub fn tell(&mut self, loss: f64, gradient: Vec<f64>) {
        let point = self.point();
        if loss < self.best.0 {
            self.best = (loss, point.clone());
        }
        let Some(f) = self.f else {
            if loss.is_finite() {
                self.accept(point, loss, gradient);
            }
            return;
        };
        let slope = dot(&self.g, &self.direction);
        if !loss.is_finite() || loss > f + C1 * self.t * slope {
            self.high = self.t;
        } else if dot(&gradient, &self.direction) < C2 * slope {
            self.low = self.t;
        } else {
            self.remember(&point, &gradient);
            self.accept(point, loss, gradient);
            return;
        }
        self.bisections += 1;
        if self.bisections >= MAX_BISECTIONS {
            self.pairs.clear();
            if loss.is_finite() && loss < f {
                self.accept(point, loss, gradient);
            } else {
                self.search_from_here();
            }
            return;
        }
        self.t = if self.high.is_finite() { 0.5 * (self.low + self.high) } else { 2.0 * self.low };
    }

    fn accept(&mut self, x: Vec<f64>, f: f64, g: Vec<f64>) {
        (self.x, self.f, self.g) = (x, Some(f), g);
        self.search_from_here();
    }

    fn search_from_here(&mut self) {
        self.direction = self.two_loop();
        if dot(&self.direction, &self.g) >= 0.0 {
            self.pairs.clear();
            self.direction = self.g.iter().map(|g| -g).collect();
        }
        let length = self.g.iter().map(|g| g.abs()).sum::<f64>();
        self.t = if self.pairs.is_empty() { FIRST_STEP.min(1.0 / length.max(1e-12)) } else { 1.0 };
        (self.low, self.high, self.bisections) = (0.0, f64::INFINITY, 0);
    }

    fn remember(&mut self, x: &[f64], g: &[f64]) {
        let s: Vec<f64> = x.iter().zip(&self.x).map(|(a, b)| a - b).collect();
        let y: Vec<f64> = g.iter().zip(&self.g).map(|(a, b)| a - b).collect();
        let sy = dot(&s, &y);
        if sy > 1e-10 {
            if self.pairs.len() == HISTORY {
                self.pairs.pop_front();
            }
            self.pairs.push_back((s, y, 1.0 / sy));
        }
    }

    /// The two-loop recursion: minus the inverse Hessian's estimate times the gradient.
    fn two_loop(&self) -> Vec<f64> {
        let mut q = self.g.clone();
        let mut alphas = Vec::with_capacity(self.pairs.len());
        for (s, y, rho) in self.pairs.iter().rev() {
            let alpha = rho * dot(s, &q);
            add(&mut q, -alpha, y);
            alphas.push(alpha);
        }
        if let Some((_, y, rho)) = self.pairs.back() {
            let scale = 1.0 / (rho * dot(y, y));
            q.iter_mut().for_each(|v| *v *= scale);
        }
        for ((s, y, rho), alpha) in self.pairs.iter().zip(alphas.iter().rev()) {
            let beta = rho * dot(y, &q);
            add(&mut q, alpha - beta, s);
        }
        q.iter_mut().for_each(|v| *v = -*v);
        q
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(into: &mut [f64], factor: f64, b: &[f64]) {
    into.iter_mut().zip(b).for_each(|(a, b)| *a += factor * b);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minimise(x: Vec<f64>, evaluations: usize, f: impl Fn(&[f64]) -> (f64, Vec<f64>)) -> f64 {
        let mut lbfgs = Lbfgs::new(x);
        for _ in 0..evaluations {
            let (loss, gradient) = f(&lbfgs.point());
            lbfgs.tell(loss, gradient);
        }
        f(lbfgs.best()).0
    }

    #[test]
    fn rosenbrock_is_solved_within_a_hundred_evaluations() {
        let f = |x: &[f64]| {
            let (a, b) = (1.0 - x[0], x[1] - x[0] * x[0]);
            (a * a + 100.0 * b * b, vec![-2.0 * a - 400.0 * x[0] * b, 200.0 * b])
        };
        assert!(minimise(vec![-1.2, 1.0], 100, f) < 1e-10);
    }

    #[test]
    fn a_kink_does_not_stop_it() {
        let f = |x: &[f64]| {
            let loss = x.iter().enumerate().map(|(i, v)| (i + 1) as f64 * v.abs()).sum();
            (loss, x.iter().enumerate().map(|(i, v)| (i + 1) as f64 * v.signum()).collect())
        };
        assert!(minimise(vec![3.0, -2.0, 1.0], 300, f) < 1e-3);
    }

    #[test]
    fn an_infinite_loss_only_shortens_the_step() {
        let f = |x: &[f64]| {
            if x[0] < 0.0 { (f64::NAN, vec![f64::NAN]) } else { (x[0] - x[0].ln_1p(), vec![1.0 - 1.0 / (1.0 + x[0])]) }
        };
        assert!(minimise(vec![5.0], 60, f) < 1e-3);
    }
}
