"""Goldens of tests/cma_parity.rs from pycma 4.5.0: `pip install cma==4.5.0 numpy`, then `python make_cma.py`.

cma_traces.json: mean, sigma and C after every generation of short runs, from draws that both sides compute themselves.
cma_evaluations.json: evaluations that pycma needs to the target, median over seeded runs.
"""

import json
import math
import pathlib
import statistics
import warnings

warnings.simplefilter("ignore")

import cma  # noqa: E402
import numpy as np  # noqa: E402

HERE = pathlib.Path(__file__).parent
OPTIMUM = 0.5
# Name, N, population, generations, start, sigma. BasinCMA has N = 128, mean 0, sigma 1; the transform N = 3 or 4. In "march"
# sigma is far too small and the population large: the paths grow long (h_sigma = 0) and the damping is not at its lower limit.
TRACES = [
    ("transform", 3, 7, 10, 1.5, 0.3),
    ("colour", 4, 8, 10, 1.5, 0.3),
    ("basin", 128, 18, 4, 0.0, 1.0),
    ("march", 10, 40, 8, 20.0, 0.1),
]
RUNS = 101
TARGET = 1e-8
BUDGET = 50_000


class Normals:
    """A 64-bit linear congruential generator (Knuth, MMIX) and Box-Muller."""

    def __init__(self, seed):
        self.state = seed
        self.spare = None

    def uniform(self):
        self.state = (6364136223846793005 * self.state + 1442695040888963407) % 2**64
        return ((self.state >> 11) + 0.5) / 2**53

    def next(self):
        if self.spare is not None:
            spare, self.spare = self.spare, None
            return spare
        radius, angle = math.sqrt(-2 * math.log(self.uniform())), 2 * math.pi * self.uniform()
        self.spare = radius * math.sin(angle)
        return radius * math.cos(angle)

    def matrix(self, rows, columns):
        return np.array([[self.next() for _ in range(columns)] for _ in range(rows)])


def objective(x):
    """An ellipsoid of condition N in coordinates that are not the axes."""
    return sum((j + 1) * (a + 0.5 * x[j - 1] - 1.5 * OPTIMUM) ** 2 for j, a in enumerate(x))


def refine(x, i, population):
    """Candidate i moves towards the optimum: the first not at all, so that it stays known; the last ones far beyond."""
    return x + 3 * i / population * (OPTIMUM - x)


def trace(name, N, population, generations, start, sigma, told):
    normals = Normals(N)
    # pycma draws y = B D z, basin y = B D B^T z: the same distribution, and with z' = B^T z the same points.
    draw = lambda rows, columns: normals.matrix(rows, columns) @ es.sm.B
    es = cma.CMAEvolutionStrategy(N * [start], sigma, {"verbose": -9, "popsize": population, "randn": draw, "seed": np.nan})
    probe = np.cos(np.arange(N))
    longest = N**0.5 + 2 * N / (N + 2)
    states, stalled = [], 0
    for _ in range(generations):
        points = es.ask()
        if told == "refined":
            points = [refine(x, i, len(points)) for i, x in enumerate(points)]
        long = sum(es.mahalanobis_norm(x - es.mean) > longest for x in points[1:])
        es.tell(points, [objective(x) for x in points])
        stalled += not es.adapt_sigma.hsig(es)
        state = {"long": long, "mean": es.mean.tolist(), "sigma": float(es.sigma)}
        if N <= 4:
            state["C"] = es.sm.C.tolist()
        else:
            state |= {"C_diagonal": np.diag(es.sm.C).tolist(), "C_probe": (es.sm.C @ probe).tolist()}
        states.append(state)
    long = [s["long"] for s in states]
    print(name, told, "longer than the limit", long, "eigendecompositions", es.sm.count_eigen, "h_sigma = 0", stalled)
    assert told == "sampled" or 0 < sum(long) < generations * (population - 1)
    assert name != "march" or stalled
    return {"name": name, "told": told, "N": N, "population": population, "start": start, "sigma": sigma, "states": states}


def sphere(x):
    return float(np.sum(x**2))


def ellipsoid(x):
    return float(np.sum(10.0 ** (6 * np.arange(len(x)) / (len(x) - 1)) * x**2))


def rosenbrock(x):
    return float(np.sum(100 * (x[:-1] ** 2 - x[1:]) ** 2 + (x[:-1] - 1) ** 2))


def evaluations(f, start, sigma, seed):
    rng = np.random.default_rng(seed)
    draw = lambda rows, columns: rng.standard_normal((rows, columns))
    es = cma.CMAEvolutionStrategy(10 * [start], sigma, {"verbose": -9, "randn": draw, "seed": np.nan})
    while es.countevals < BUDGET:
        points = es.ask()
        values = [f(x) for x in points]
        es.tell(points, values)
        if min(values) <= TARGET:
            return es.countevals
    return BUDGET


def median_evaluations(f, start, sigma):
    counts = [evaluations(f, start, sigma, seed) for seed in range(1, RUNS + 1)]
    print(f.__name__, "median", statistics.median(counts), "quartiles", statistics.quantiles(counts))
    return {"function": f.__name__, "start": start, "sigma": sigma, "median": statistics.median(counts)}


def write(name, **golden):
    golden = {"source": f"make_cma.py, cma {cma.__version__}, numpy {np.__version__}", **golden}
    (HERE / name).write_text(json.dumps(golden, separators=(",", ":")) + "\n")


write("cma_traces.json", traces=[trace(*t, told) for t in TRACES for told in ("sampled", "refined")])
settings = [(sphere, 3.0, 0.5), (ellipsoid, 3.0, 0.5), (rosenbrock, 0.1, 0.5)]
write("cma_evaluations.json", N=10, target=TARGET, budget=BUDGET, runs=RUNS, functions=[median_evaluations(*s) for s in settings])
