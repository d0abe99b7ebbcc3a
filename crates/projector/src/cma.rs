//! CMA-ES with pycma's defaults: active covariance update, cumulative step-size adaptation, ask and tell.
//!
//! Source: N. Hansen, "The CMA Evolution Strategy: A Tutorial", arXiv 1604.00772; equation numbers and symbols are its
//! own. Where pycma 4.5.0 differs from it, pycma is followed and the line says so. `tests/cma_parity.rs` holds both
//! against each other.
//!
//! Told points need not be asked ones. As in pycma, a point that the last `ask` did not produce (a refined one) is
//! shortened to the Mahalanobis length sqrt(N) + 2N/(N+2) about the old mean; an asked one is taken as it is, however
//! long. Negative weights apply to both.
//!
//! Not here: stopping rules, restarts, bounds, and what pycma does only outside our range: mirrored sampling (lambda <
//! 6), two-point step-size adaptation (N >= 300), change of coordinates (condition > 1e8, sigma > 1e9 sigma_0).

#![allow(non_snake_case)] // symbols of the paper

use nalgebra::{DMatrix, DVector};
use rand::Rng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};

/// Spread of the initial variances, over all coordinates (pycma: no two eigenvalues shall be equal).
const INITIAL_SPREAD: f64 = 1e-4;
/// Share of the time scale of C, times N, after which B and D are renewed (pycma: `lazy_update_gap`).
const LAZINESS: f64 = 0.1;
/// Largest change of ln(sigma) in one generation (pycma: `max_delta_log_sigma`).
const MAX_DELTA_LOG_SIGMA: f64 = 1.0;
/// Up to this dimension pycma has E||N(0, I)|| exactly.
const CHI_EXACT: usize = 100;

/// A search distribution N(m, sigma^2 C) and what it remembers of its past.
///
/// Serialised it is its whole state: read back, it goes on bit for bit, except that the strategy parameters are
/// computed anew.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "State", into = "State")]
pub struct Cma {
    parameters: Parameters,
    state: State,
}

/// Strategy parameters: functions of N and lambda alone.
#[derive(Clone, Debug, PartialEq)]
struct Parameters {
    /// Dimension.
    N: usize,
    /// Weights in order of rank, lambda of them. The first mu are positive and sum to one, the last are negative.
    w: Vec<f64>,
    /// Variance effective selection mass of the positive weights.
    mu_eff: f64,
    /// Learning rate of p_sigma, and damping of sigma.
    c_sigma: f64,
    d_sigma: f64,
    /// Learning rate of p_c.
    c_c: f64,
    /// Learning rates of C, rank one and rank mu.
    c_1: f64,
    c_mu: f64,
    /// E||N(0, I)||.
    chi_N: f64,
    /// Generations from one eigendecomposition to the next.
    lazy_gap: f64,
    /// Mahalanobis length to which points that were not asked are shortened.
    longest: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct State {
    /// Population size.
    lambda: usize,
    /// Mean.
    m: DVector<f64>,
    /// Step size.
    sigma: f64,
    /// Evolution path of sigma, in isotropic coordinates.
    p_sigma: DVector<f64>,
    /// Evolution path of C.
    p_c: DVector<f64>,
    /// Covariance matrix, exactly symmetric.
    C: DMatrix<f64>,
    /// Eigenvectors (columns) and roots of the eigenvalues of C, as C was in generation `g_eigen`.
    B: DMatrix<f64>,
    D: DVector<f64>,
    /// Generations told.
    g: u64,
    g_eigen: u64,
    /// Points asked since the last tell.
    asked: Vec<Vec<f64>>,
}

impl Parameters {
    fn new(N: usize, lambda: usize) -> Self {
        let n = N as f64;
        let w_raw: Vec<f64> = (1..=lambda).map(|i| ((lambda as f64 + 1.0) / 2.0).ln() - (i as f64).ln()).collect(); // (49)
        let mass = |w: &[f64]| w.iter().sum::<f64>().powi(2) / w.iter().map(|w| w * w).sum::<f64>();
        let (positive, others) = w_raw.split_at(lambda / 2);
        let mu_eff = mass(positive); // (8)
        let mu_eff_minus = mass(others);

        // (55) has mu_eff + 5; pycma mu_eff + 3, and at most one half.
        let c_sigma = ((mu_eff + 2.0) / (n + mu_eff + 3.0)).min(0.5);
        // (55); the inner factor is pycma's.
        let inner = (3.0 * (1.0 - 0.5f64.powf(n / 9.0))).max(1.0);
        let d_sigma = 1.0 + 2.0 * (inner * ((mu_eff - 1.0) / (n + 1.0)).sqrt() - 1.0).max(0.0) + c_sigma;
        let c_c = (4.0 + mu_eff / n) / (n + 4.0 + 2.0 * mu_eff / n); // (56)
        // (57); the factor for small populations is pycma's.
        let c_1 = (lambda as f64 / 6.0).min(1.0) * 2.0 / ((n + 1.3).powi(2) + mu_eff);
        let c_mu = (1.0 - c_1).min(2.0 * (0.25 + mu_eff + 1.0 / mu_eff - 2.0) / ((n + 2.0).powi(2) + mu_eff)); // (58)

        let alpha_mu = 1.0 + c_1 / c_mu; // (50)
        let alpha_mu_eff = 1.0 + 2.0 * mu_eff_minus / (mu_eff + 2.0); // (51)
        let alpha_pos_def = (1.0 - c_1 - c_mu) / (n * c_mu); // (52)
        let alpha = alpha_mu.min(alpha_mu_eff).min(alpha_pos_def);
        let (sum_positive, sum_others) = (positive.iter().sum::<f64>(), others.iter().sum::<f64>().abs());
        let w = w_raw.iter().map(|&w| if w > 0.0 { w / sum_positive } else { alpha * w / sum_others }).collect(); // (53)

        Self {
            N,
            w,
            mu_eff,
            c_sigma,
            d_sigma,
            c_c,
            c_1,
            c_mu,
            chi_N: chi(N),
            lazy_gap: LAZINESS / (c_1 + c_mu) / n,
            longest: n.sqrt() + 2.0 * n / (n + 2.0),
        }
    }
}

/// E||N(0, I)|| in N dimensions.
fn chi(N: usize) -> f64 {
    if N > CHI_EXACT {
        let n = N as f64;
        return n.sqrt() * (1.0 - 1.0 / (4.0 * n) + 1.0 / (32.0 * n * n)); // pycma; the tutorial has 21
    }
    (1..N).fold((2.0 / std::f64::consts::PI).sqrt(), |chi, k| k as f64 / chi) // chi_k chi_{k+1} = k
}

impl State {
    fn new(m: Vec<f64>, sigma: f64, lambda: usize) -> Self {
        let N = m.len();
        let variances = DVector::from_fn(N, |i, _| (INITIAL_SPREAD * i as f64 / N as f64).exp());
        Self {
            lambda,
            m: m.into(),
            sigma,
            p_sigma: DVector::zeros(N),
            p_c: DVector::zeros(N),
            C: DMatrix::from_diagonal(&variances),
            B: DMatrix::identity(N, N),
            D: variances.map(f64::sqrt),
            g: 0,
            g_eigen: 0,
            asked: vec![],
        }
    }

    fn check(&self) -> Result<(), &'static str> {
        let N = self.m.len();
        let finite = |values: &[f64]| values.iter().all(|v| v.is_finite());
        let square = [&self.C, &self.B].iter().all(|a| a.shape() == (N, N) && finite(a.as_slice()));
        let vectors = [&self.m, &self.p_sigma, &self.p_c, &self.D].iter().all(|v| v.len() == N && finite(v.as_slice()));
        if N == 0 {
            Err("the dimension is zero")
        } else if self.lambda < 3 {
            Err("the population is smaller than three")
        } else if !(self.sigma > 0.0 && self.sigma.is_finite()) {
            Err("sigma is not a positive number")
        } else if !(square && vectors && self.asked.iter().all(|x| x.len() == N)) {
            Err("a vector or matrix has the wrong shape or is not finite")
        } else if self.D.min() <= 0.0 || self.g_eigen > self.g {
            Err("the eigendecomposition is not one")
        } else {
            Ok(())
        }
    }

    /// Renews B and D if they are too old.
    fn update_eigensystem(&mut self, lazy_gap: f64) {
        if (self.g as f64) < self.g_eigen as f64 + lazy_gap {
            return;
        }
        loop {
            let eigen = self.C.clone().symmetric_eigen();
            if eigen.eigenvalues.min() > 0.0 {
                (self.B, self.D) = (eigen.eigenvectors, eigen.eigenvalues.map(f64::sqrt));
                break;
            }
            // Rounding can do that. As pycma, raise all variances by the smallest that was known to be positive.
            let epsilon = self.D.min().powi(2);
            self.C.set_diagonal(&self.C.diagonal().add_scalar(epsilon));
            self.D.apply(|d| *d = (*d * *d + epsilon).sqrt());
        }
        self.g_eigen = self.g;
    }

    /// C^{1/2} z.
    fn root(&self, z: &DVector<f64>) -> DVector<f64> {
        &self.B * self.B.tr_mul(z).component_mul(&self.D)
    }

    /// C^{-1/2} y.
    fn inverse_root(&self, y: &DVector<f64>) -> DVector<f64> {
        &self.B * self.B.tr_mul(y).component_div(&self.D)
    }

    /// Mahalanobis length of y, ||C^{-1/2} y||.
    fn length(&self, y: &DVector<f64>) -> f64 {
        self.B.tr_mul(y).component_div(&self.D).norm()
    }
}

impl TryFrom<State> for Cma {
    type Error = &'static str;

    fn try_from(state: State) -> Result<Self, Self::Error> {
        state.check()?;
        Ok(Self { parameters: Parameters::new(state.m.len(), state.lambda), state })
    }
}

impl From<Cma> for State {
    fn from(cma: Cma) -> Self {
        cma.state
    }
}

impl Cma {
    /// A search that starts at N(mean, sigma^2 I). The population is 4 + floor(3 ln N) unless given (48).
    ///
    /// # Panics
    /// If `mean` is empty or not finite, `sigma` is not positive, or the population is smaller than three.
    pub fn new(mean: Vec<f64>, sigma: f64, population: Option<usize>) -> Self {
        let lambda = population.unwrap_or(4 + (3.0 * (mean.len() as f64).ln()) as usize);
        Self::try_from(State::new(mean, sigma, lambda)).unwrap_or_else(|why| panic!("cannot start CMA-ES: {why}"))
    }

    /// Dimension N.
    pub fn dim(&self) -> usize {
        self.parameters.N
    }

    /// Population size lambda: points that `ask` gives and `tell` expects.
    pub fn population(&self) -> usize {
        self.state.lambda
    }

    /// Mean m.
    pub fn mean(&self) -> &[f64] {
        self.state.m.as_slice()
    }

    /// Step size sigma.
    pub fn sigma(&self) -> f64 {
        self.state.sigma
    }

    /// Covariance matrix C, without sigma^2, row after row.
    pub fn covariance(&self) -> &[f64] {
        self.state.C.as_slice()
    }

    /// Generations told so far.
    pub fn generation(&self) -> u64 {
        self.state.g
    }

    /// Draws a population.
    pub fn ask(&mut self, rng: &mut (impl Rng + ?Sized)) -> Vec<Vec<f64>> {
        let mut normal = || StandardNormal.sample(&mut *rng);
        let z: Vec<Vec<f64>> = (0..self.population()).map(|_| (0..self.dim()).map(|_| normal()).collect()).collect(); // (38)
        self.ask_from_normals(&z)
    }

    /// `ask` with given standard normal draws, one row per point.
    ///
    /// The tutorial has y = B D z. Here y = B D B^T z, the same distribution, because it does not depend on the signs
    /// and the order that an eigendecomposition happens to give: equal draws are equal points with any solver.
    ///
    /// # Panics
    /// If a row has not N numbers.
    pub fn ask_from_normals(&mut self, normals: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (N, state) = (self.dim(), &mut self.state);
        state.update_eigensystem(self.parameters.lazy_gap);
        let point = |z: &Vec<f64>| {
            assert_eq!(z.len(), N, "a row of normals has as many numbers as the search has dimensions");
            let y = state.root(&DVector::from_column_slice(z)); // (39)
            (&state.m + state.sigma * y).as_slice().to_vec() // (40)
        };
        let points: Vec<Vec<f64>> = normals.iter().map(point).collect();
        state.asked.extend_from_slice(&points);
        points
    }

    /// Learns from one value (lower is better) for each of lambda points, asked or not.
    ///
    /// A value that is not finite, minus infinity too, ranks last, as does a point that is not finite, which also
    /// counts as lying on the mean: it pulls nowhere. (pycma replaces NaN by the median and refuses such points.) Equal
    /// values rank in the order given.
    ///
    /// # Panics
    /// If there are not lambda points and values, or a point has not N coordinates.
    pub fn tell(&mut self, points: &[Vec<f64>], values: &[f64]) {
        let Self { parameters, state } = self;
        let &Parameters { N, mu_eff, c_sigma, d_sigma, c_c, c_1, c_mu, chi_N, lazy_gap, longest, .. } = &*parameters;
        let (n, w) = (N as f64, &parameters.w);
        assert_eq!(points.len(), state.lambda, "as many points are told as the population has");
        assert_eq!(values.len(), state.lambda, "each point has a value");
        state.update_eigensystem(lazy_gap); // for points told without an ask

        // Selection and recombination.
        let mut asked = std::mem::take(&mut state.asked);
        let mut ranked: Vec<(f64, DVector<f64>)> = Vec::with_capacity(points.len());
        for (x, &value) in points.iter().zip(values) {
            assert_eq!(x.len(), N, "a point has as many coordinates as the search has dimensions");
            let mut y = (DVector::from_column_slice(x) - &state.m) / state.sigma;
            if !y.iter().all(|y| y.is_finite()) {
                ranked.push((f64::INFINITY, DVector::zeros(N)));
                continue;
            }
            match asked.iter().position(|a| a == x) {
                Some(known) => drop(asked.swap_remove(known)),
                None => y /= (state.length(&y) / longest).max(1.0), // pycma: repair_genotype
            }
            ranked.push((if value.is_finite() { value } else { f64::INFINITY }, y));
        }
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
        let y: Vec<DVector<f64>> = ranked.into_iter().map(|(_, y)| y).collect();
        let mut y_w = DVector::zeros(N);
        for (&w_i, y_i) in w.iter().zip(&y).filter(|(w_i, _)| **w_i > 0.0) {
            y_w.axpy(w_i, y_i, 1.0); // (41)
        }
        state.m.axpy(state.sigma, &y_w, 1.0); // (42), c_m = 1
        state.g += 1;

        // Step-size control.
        state.p_sigma *= 1.0 - c_sigma;
        state.p_sigma += (c_sigma * (2.0 - c_sigma) * mu_eff).sqrt() * state.inverse_root(&y_w); // (43)
        let delta_log_sigma = c_sigma / d_sigma * (state.p_sigma.norm() / chi_N - 1.0);
        state.sigma *= delta_log_sigma.clamp(-MAX_DELTA_LOG_SIGMA, MAX_DELTA_LOG_SIGMA).exp(); // (44)
        state.sigma = state.sigma.clamp(f64::MIN_POSITIVE, f64::MAX);

        // Covariance matrix adaptation.
        let age = 1.0 - (1.0 - c_sigma).powf(2.0 * state.g as f64);
        let h_sigma = state.p_sigma.norm_squared() / age / n < 2.0 + 4.0 / (n + 1.0);
        let (h_sigma, delta_h) = if h_sigma { (1.0, 0.0) } else { (0.0, c_c * (2.0 - c_c)) };
        state.p_c *= 1.0 - c_c;
        state.p_c += h_sigma * (c_c * (2.0 - c_c) * mu_eff).sqrt() * y_w; // (45)
        state.C *= 1.0 + c_1 * delta_h - c_1 - c_mu * w.iter().sum::<f64>(); // (47)
        state.C.syger(c_1, &state.p_c, &state.p_c, 1.0);
        for (&w_i, y_i) in w.iter().zip(&y) {
            let w_i = if w_i >= 0.0 { w_i } else { w_i * n / (state.length(y_i) + 1e-9).powi(2) }; // (46), 1e-9 of pycma
            state.C.syger(c_mu * w_i, y_i, y_i, 1.0);
        }
        state.C.fill_upper_triangle_with_lower_triangle();
    }
}
