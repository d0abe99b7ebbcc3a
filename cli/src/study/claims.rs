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
    pub metric: usize,
    pub rows: (&'static str, &'static str),
    pub order: Order,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Lower,
    Close,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Holds,
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
    let on = |metrics: &[usize], text, rows, order| -> Vec<Claim> {
        metrics.iter().map(|&metric| Claim { text, metric, rows, order }).collect()
    };
    let lower = |text, rows| on(&[LPIPS], text, rows, Order::Lower);
    let close = |text, rows| on(&[0, LPIPS], text, rows, Order::Close);
    // Without the network whose distance is minimised, which the paper finds higher.
    let others: Vec<usize> = [0, 1].into_iter().chain(METRICS.len()..METRICS.len() + judges).collect();
    let transformed = |text, rows| on(&others, text, rows, Order::Lower);
    let claims = match which {
        Which::Table1 => vec![
            lower("BasinCMA is below CMA+Adam", ("basincma", "cma-adam")),
            lower("CMA+Adam is below Adam", ("cma-adam", "adam")),
            lower("Adam is below L-BFGS", ("adam", "lbfgs")),
            transformed("the spatial transform lowers Adam's error", ("adam-spatial", "adam")),
            transformed("the spatial transform lowers BasinCMA's error", ("basincma-spatial", "basincma")),
            lower("it raises the LPIPS that is minimised", ("basincma", "basincma-spatial")),
            close("colour changes little for Adam", ("adam-colour", "adam")),
            close("colour changes little for BasinCMA", ("basincma-colour", "basincma")),
            close("the encoder does not change BasinCMA's result", ("basincma-encoder", "basincma")),
        ],
        Which::Table2 => vec![
            close("the predicted class is as good as the true one", ("class-predicted", "adam")),
            lower("the true class is below a random class", ("adam", "class-random")),
            lower("a random class is below random numbers", ("class-random", "class-gaussian")),
        ],
        Which::Table3 => vec![
            transformed("the transform lowers Adam's error", ("ood-adam-transform", "ood-adam")),
            transformed("the transform lowers BasinCMA's error", ("ood-basincma-transform", "ood-basincma")),
            lower("BasinCMA is below Adam", ("ood-basincma", "ood-adam")),
        ],
        Which::PerClass => vec![],
    };
    claims.concat()
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
