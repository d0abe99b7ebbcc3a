//! CMA-ES against pycma (goldens of `golden/make_cma.py`), and properties that it must have whatever the reference does.

#![allow(non_snake_case)] // symbols of the paper

use std::collections::BTreeMap;

use projector::cma::Cma;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

/// Largest difference from pycma, relative to the largest number of the vector.
const PARITY: f64 = 1e-8;
/// Seeded runs per function, and how far their median may be from pycma's.
const RUNS: u64 = 15;
const EVALUATIONS_TOLERANCE: f64 = 0.15;

#[derive(Deserialize)]
struct Traces {
    traces: Vec<Trace>,
}

#[derive(Deserialize)]
struct Trace {
    name: String,
    told: String,
    N: usize,
    population: usize,
    start: f64,
    sigma: f64,
    states: Vec<Recorded>,
}

#[derive(Deserialize)]
struct Recorded {
    mean: Vec<f64>,
    sigma: f64,
    C: Option<Vec<Vec<f64>>>,
    C_diagonal: Option<Vec<f64>>,
    C_probe: Option<Vec<f64>>,
}

#[derive(Deserialize)]
struct Evaluations {
    N: usize,
    target: f64,
    budget: usize,
    functions: Vec<Function>,
}

#[derive(Deserialize)]
struct Function {
    function: String,
    start: f64,
    sigma: f64,
    median: f64,
}

/// The generator of `make_cma.py`: Knuth's MMIX congruence and Box-Muller.
struct Normals {
    state: u64,
    spare: Option<f64>,
}

impl Normals {
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    fn next(&mut self) -> f64 {
        self.spare.take().unwrap_or_else(|| {
            let (radius, angle) = ((-2.0 * self.uniform().ln()).sqrt(), std::f64::consts::TAU * self.uniform());
            self.spare = Some(radius * angle.sin());
            radius * angle.cos()
        })
    }

    fn matrix(&mut self, rows: usize, columns: usize) -> Vec<Vec<f64>> {
        (0..rows).map(|_| (0..columns).map(|_| self.next()).collect()).collect()
    }
}

const OPTIMUM: f64 = 0.5;

/// `objective` of `make_cma.py`.
fn skew_ellipsoid(x: &[f64]) -> f64 {
    let before = |j: usize| x[if j == 0 { x.len() - 1 } else { j - 1 }];
    (0..x.len()).map(|j| (j + 1) as f64 * (x[j] + 0.5 * before(j) - 1.5 * OPTIMUM).powi(2)).sum()
}

/// `refine` of `make_cma.py`.
fn refine(points: &mut [Vec<f64>]) {
    let population = points.len() as f64;
    for (i, x) in points.iter_mut().enumerate() {
        x.iter_mut().for_each(|x| *x += 3.0 * i as f64 / population * (OPTIMUM - *x));
    }
}

fn sphere(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum()
}

fn ellipsoid(x: &[f64]) -> f64 {
    let scale = |j: usize| 10f64.powf(6.0 * j as f64 / (x.len() - 1) as f64);
    x.iter().enumerate().map(|(j, x)| scale(j) * x * x).sum()
}

fn rosenbrock(x: &[f64]) -> f64 {
    x.windows(2).map(|x| 100.0 * (x[0] * x[0] - x[1]).powi(2) + (x[0] - 1.0).powi(2)).sum()
}

fn evaluate(f: fn(&[f64]) -> f64, points: &[Vec<f64>]) -> Vec<f64> {
    points.iter().map(|x| f(x)).collect()
}

fn step(cma: &mut Cma, f: fn(&[f64]) -> f64, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let points = cma.ask(rng);
    let values = evaluate(f, &points);
    cma.tell(&points, &values);
    values
}

/// Largest difference, relative to the largest of `expected`.
fn difference(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
    found.iter().zip(expected).map(|(a, b)| (a - b).abs() / largest).fold(0.0, f64::max)
}

/// Fails unless C is exactly symmetric and has a Cholesky factor.
fn assert_covariance(cma: &Cma) {
    let C = nalgebra::DMatrix::from_row_slice(cma.dim(), cma.dim(), cma.covariance());
    assert_eq!(C, C.transpose(), "generation {}", cma.generation());
    assert!(C.cholesky().is_some(), "generation {}: C is not positive definite", cma.generation());
    assert!(cma.sigma() > 0.0 && cma.mean().iter().all(|m| m.is_finite()));
}

fn replay(trace: &Trace) -> [f64; 3] {
    let mut cma = Cma::new(vec![trace.start; trace.N], trace.sigma, Some(trace.population));
    let mut normals = Normals { state: trace.N as u64, spare: None };
    let probe: Vec<f64> = (0..trace.N).map(|i| (i as f64).cos()).collect();
    let mut worst = [0.0f64; 3];
    for recorded in &trace.states {
        let mut points = cma.ask_from_normals(&normals.matrix(trace.population, trace.N));
        if trace.told == "refined" {
            refine(&mut points);
        }
        let values = evaluate(skew_ellipsoid, &points);
        cma.tell(&points, &values);

        let rows: Vec<&[f64]> = cma.covariance().chunks(trace.N).collect();
        let mut of_C = vec![];
        if let Some(C) = &recorded.C {
            of_C.push(difference(cma.covariance(), &C.concat()));
        }
        if let Some(diagonal) = &recorded.C_diagonal {
            let found: Vec<f64> = rows.iter().enumerate().map(|(i, row)| row[i]).collect();
            of_C.push(difference(&found, diagonal));
        }
        if let Some(product) = &recorded.C_probe {
            let found: Vec<f64> = rows.iter().map(|row| row.iter().zip(&probe).map(|(a, b)| a * b).sum()).collect();
            of_C.push(difference(&found, product));
        }
        assert!(!of_C.is_empty());
        worst[0] = worst[0].max(difference(cma.mean(), &recorded.mean));
        worst[1] = worst[1].max(difference(&[cma.sigma()], &[recorded.sigma]));
        worst[2] = of_C.into_iter().fold(worst[2], f64::max);
    }
    worst
}

#[test]
fn every_generation_equals_pycma_for_sampled_and_refined_points() {
    let Traces { traces } = serde_json::from_str(include_str!("golden/cma_traces.json")).unwrap();
    assert_eq!(traces.len(), 8);
    for trace in &traces {
        let worst = replay(trace);
        println!("{} {}: mean {:.1e} sigma {:.1e} C {:.1e}", trace.name, trace.told, worst[0], worst[1], worst[2]);
        assert!(worst.iter().all(|&w| w < PARITY), "{} {}: {worst:?}", trace.name, trace.told);
    }
}

#[test]
fn evaluations_to_the_target_are_those_of_pycma() {
    let golden: Evaluations = serde_json::from_str(include_str!("golden/cma_evaluations.json")).unwrap();
    let functions: BTreeMap<&str, fn(&[f64]) -> f64> =
        BTreeMap::from([("sphere", sphere as _), ("ellipsoid", ellipsoid as _), ("rosenbrock", rosenbrock as _)]);
    for Function { function, start, sigma, median } in &golden.functions {
        let evaluations = |seed| {
            let mut cma = Cma::new(vec![*start; golden.N], *sigma, None);
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut count = 0;
            while count < golden.budget {
                let values = step(&mut cma, functions[function.as_str()], &mut rng);
                count += values.len();
                if values.iter().any(|&value| value <= golden.target) {
                    break;
                }
            }
            count
        };
        let mut counts: Vec<usize> = (1..=RUNS).map(evaluations).collect();
        counts.sort();
        let found = counts[counts.len() / 2] as f64;
        println!("{function}: {found} evaluations, pycma {median}");
        assert!((found / median - 1.0).abs() < EVALUATIONS_TOLERANCE, "{function}: {found} instead of {median}");
    }
}

#[test]
fn a_saved_search_continues_bit_for_bit() {
    for N in [4, 128] {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut cma = Cma::new(vec![0.3; N], 0.7, None);
        for _ in 0..3 {
            step(&mut cma, skew_ellipsoid, &mut rng);
        }
        // Saved between ask and tell: the restored search still knows which points it asked.
        let mut points = cma.ask(&mut rng);
        points[0].iter_mut().for_each(|x| *x += 5.0);
        let mut restored: Cma = serde_json::from_str(&serde_json::to_string(&cma).unwrap()).unwrap();
        assert_eq!(restored, cma);

        let values = evaluate(skew_ellipsoid, &points);
        let mut rng_restored = rng.clone();
        cma.tell(&points, &values);
        restored.tell(&points, &values);
        for _ in 0..5 {
            step(&mut cma, skew_ellipsoid, &mut rng);
            step(&mut restored, skew_ellipsoid, &mut rng_restored);
        }
        assert_eq!(restored, cma);
    }
}

#[test]
fn a_state_that_contradicts_itself_is_not_read() {
    let state = serde_json::to_value(Cma::new(vec![0.0; 3], 1.0, None)).unwrap();
    for (field, value) in [("sigma", 0.0.into()), ("lambda", 1.into()), ("asked", serde_json::json!([[1.0]]))] {
        let mut broken = state.clone();
        broken[field] = value;
        assert!(serde_json::from_value::<Cma>(broken).is_err(), "{field}");
    }
    assert!(serde_json::from_value::<Cma>(state).is_ok());
}

#[test]
fn the_covariance_stays_symmetric_and_positive_definite() {
    for f in [sphere, ellipsoid, rosenbrock, |x: &[f64]| -x[0], |_: &[f64]| 1.0, |x: &[f64]| (1e9 * x[0]).sin()] {
        for N in [2, 3, 10] {
            let mut rng = ChaCha8Rng::seed_from_u64(N as u64);
            let mut cma = Cma::new(vec![1.0; N], 0.5, None);
            for _ in 0..200 {
                step(&mut cma, f, &mut rng);
                assert_covariance(&cma);
            }
        }
    }
}

#[test]
fn far_refined_points_neither_break_the_covariance_nor_carry_the_mean_away() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut cma = Cma::new(vec![0.0; 4], 0.1, None);
    for _ in 0..100 {
        let mut points = cma.ask(&mut rng);
        points.iter_mut().for_each(|x| x[0] += 1e6);
        let (m, sigma, C_00) = (cma.mean()[0], cma.sigma(), cma.covariance()[0]);
        let values = evaluate(sphere, &points);
        cma.tell(&points, &values);
        assert_covariance(&cma);
        let longest = 2.0 + 8.0 / 6.0;
        assert!((cma.mean()[0] - m).abs() <= 1.001 * longest * sigma * C_00.sqrt());
    }
}

#[test]
fn values_and_points_that_are_not_finite_rank_last() {
    let start = || Cma::new(vec![0.0; 4], 1.0, None);
    let points = start().ask(&mut ChaCha8Rng::seed_from_u64(3));
    let tell = |points: &[Vec<f64>], last: f64| {
        let mut cma = start();
        cma.ask(&mut ChaCha8Rng::seed_from_u64(3));
        let mut values: Vec<f64> = (0..points.len()).map(|i| i as f64).collect();
        *values.last_mut().unwrap() = last;
        cma.tell(points, &values);
        assert_covariance(&cma);
        cma
    };
    let worst = tell(&points, 1e9);
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(tell(&points, value), worst);
    }

    let mut diverged = points.clone();
    *diverged.last_mut().unwrap() = vec![f64::NAN; 4];
    assert_eq!(tell(&diverged, -1.0).mean(), worst.mean());
    assert_eq!(tell(&vec![vec![f64::INFINITY; 4]; points.len()], 0.0).mean(), [0.0; 4]);
}

#[test]
#[should_panic(expected = "as many points are told as the population has")]
fn another_number_of_points_than_asked_is_a_programming_error() {
    Cma::new(vec![0.0; 4], 1.0, None).tell(&[vec![0.0; 4]], &[0.0]);
}

#[test]
fn default_populations_are_those_of_the_paper() {
    let populations = [3, 4, 5, 128, 512].map(|N| Cma::new(vec![0.0; N], 1.0, None).population());
    assert_eq!(populations, [7, 8, 8, 18, 22]);
}
