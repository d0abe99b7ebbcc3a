//! The paper's claims about the order of its rows, and whether the numbers support them. Pure.

use results::bootstrap::Interval;
use serde::Serialize;

use super::Which;
use super::measured::METRICS;

/// Two rows are close if their difference is less than this part of the second one.
const CLOSE: f64 = 0.05;
const LPIPS: usize = 2;
/// Below this number of images a claim is always undecided: the bootstrap of few images makes intervals too narrow.
pub const FEWEST_IMAGES: usize = 8;

/// A claim of the paper about two rows, best of the seeds.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    pub text: &'static str,
    /// Index of the metric.
    pub metric: usize,
    /// Slugs of the rows.
    pub rows: (&'static str, &'static str),
    pub order: Order,
}

/// The claimed order of two rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The first is lower.
    Lower,
    /// Their difference is small.
    Close,
}

/// Whether the numbers support a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// All of the interval agrees.
    Holds,
    /// All of the interval disagrees.
    DoesNotHold,
    /// A part of the interval agrees, or there are too few images.
    Undecided,
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Holds => "holds",
            Verdict::DoesNotHold => "does not hold",
            Verdict::Undecided => "undecided",
        }
    }
}

impl Order {
    /// `difference`: the first row minus the second; `second`: mean of the second row over this number of `images`.
    pub fn verdict(self, difference: Interval, second: f64, images: usize) -> Verdict {
        if images < FEWEST_IMAGES {
            return Verdict::Undecided;
        }
        let Interval { low, high, .. } = difference;
        let close = CLOSE * second.abs();
        let (agrees, disagrees) = match self {
            Order::Lower => (high < 0.0, low > 0.0),
            Order::Close => (low > -close && high < close, low > close || high < -close),
        };
        match (agrees, disagrees) {
            (true, _) => Verdict::Holds,
            (_, true) => Verdict::DoesNotHold,
            _ => Verdict::Undecided,
        }
    }
}

/// The claims about a study with this number of judges.
pub fn claims(which: Which, judges: usize) -> Vec<Claim> {
    let on = |metrics: Vec<usize>, text, rows, order| metrics.into_iter().map(move |metric| Claim { text, metric, rows, order });
    let lower = |text, rows| on(vec![LPIPS], text, rows, Order::Lower);
    let close = |text, rows| on(vec![0, LPIPS], text, rows, Order::Close);
    // Without the network whose distance is minimised, which the paper finds higher.
    let others = || [0, 1].into_iter().chain(METRICS.len()..METRICS.len() + judges).collect::<Vec<_>>();
    let transformed = |text, rows| on(others(), text, rows, Order::Lower);
    match which {
        Which::Table1 => [
            lower("BasinCMA is below CMA+Adam", ("basincma", "cma-adam")).collect::<Vec<_>>(),
            lower("CMA+Adam is below Adam", ("cma-adam", "adam")).collect(),
            lower("Adam is below L-BFGS", ("adam", "lbfgs")).collect(),
            transformed("the spatial transform lowers Adam's error", ("adam-spatial", "adam")).collect(),
            transformed("the spatial transform lowers BasinCMA's error", ("basincma-spatial", "basincma")).collect(),
            lower("it raises the LPIPS that is minimised", ("basincma", "basincma-spatial")).collect(),
            close("colour changes little for Adam", ("adam-colour", "adam")).collect(),
            close("colour changes little for BasinCMA", ("basincma-colour", "basincma")).collect(),
            close("the encoder does not change BasinCMA's result", ("basincma-encoder", "basincma")).collect(),
        ]
        .concat(),
        Which::Table2 => [
            close("the predicted class is as good as the true one", ("class-predicted", "adam")).collect::<Vec<_>>(),
            lower("the true class is below a random class", ("adam", "class-random")).collect(),
            lower("a random class is below random numbers", ("class-random", "class-gaussian")).collect(),
        ]
        .concat(),
        Which::Table3 => [
            transformed("the transform lowers Adam's error", ("ood-adam-transform", "ood-adam")).collect::<Vec<_>>(),
            transformed("the transform lowers BasinCMA's error", ("ood-basincma-transform", "ood-basincma")).collect(),
            lower("BasinCMA is below Adam", ("ood-basincma", "ood-adam")).collect(),
        ]
        .concat(),
        Which::PerClass => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::rows::Budget;

    #[test]
    fn the_interval_decides() {
        let verdict = |order: Order, low, high| order.verdict(Interval { mean: (low + high) / 2.0, low, high }, 1.0, 8);
        use Order::{Close, Lower};
        use Verdict::{DoesNotHold, Holds, Undecided};
        let found = [(Lower, -0.2, -0.1), (Lower, -0.1, 0.1), (Lower, 0.1, 0.2)].map(|(o, l, h)| verdict(o, l, h));
        assert_eq!(found, [Holds, Undecided, DoesNotHold]);
        let found = [(Close, -0.04, 0.04), (Close, -0.04, 0.06), (Close, -0.2, -0.06), (Close, 0.06, 0.2)];
        assert_eq!(found.map(|(o, l, h)| verdict(o, l, h)), [Holds, Undecided, DoesNotHold, DoesNotHold]);
        assert_eq!(Lower.verdict(Interval { mean: -0.2, low: -0.2, high: -0.2 }, 1.0, 7), Undecided);
    }

    #[test]
    fn every_claim_is_about_existing_rows_and_metrics() {
        for which in [Which::Table1, Which::Table2, Which::Table3, Which::PerClass] {
            let rows = which.rows(Budget { evaluations: 1200, seeds: 18 }, false);
            for claim in claims(which, 2) {
                for slug in [claim.rows.0, claim.rows.1] {
                    assert!(rows.iter().any(|row| row.slug == slug), "{slug}");
                }
                assert!(claim.metric < METRICS.len() + 2);
            }
        }
    }
}
