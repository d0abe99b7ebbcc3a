//! Charts as SVG. [`bars`] and [`curves`] take their colours from the page that they are in; [`figure`] draws files that stand alone.
//! Pure.

mod bars;
mod curves;
pub mod figure;

pub use bars::bars;
pub use curves::curves;

use crate::summary::Spread;

/// A class, or super-class, with its error.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar<'a> {
    pub name: &'a str,
    pub images: u64,
    pub spread: Spread,
}

/// Pixels of a bar and its gap.
const ROW: usize = 24;

/// The axis of bars: 0 to at least the largest mean plus its standard error, in round steps.
struct Axis {
    step: f64,
    ticks: usize,
}

impl Axis {
    fn over(bars: &[Bar]) -> Axis {
        let end = |b: &Bar| b.spread.mean.unwrap_or(0.0) + b.spread.standard_error.unwrap_or(0.0);
        let largest = bars.iter().map(end).fold(0.0, f64::max);
        let step = tick_step(largest / 4.0);
        Axis { step, ticks: if largest > 0.0 { (largest / step).ceil() as usize } else { 1 } }
    }

    /// Where a value is: 0 at the beginning of the axis, 1 at its end.
    fn at(&self, value: f64) -> f64 {
        (value / (self.step * self.ticks as f64)).clamp(0.0, 1.0)
    }

    /// Place and label of each tick.
    fn ticks(&self) -> impl Iterator<Item = (f64, String)> {
        let decimals = (-self.step.log10().floor()).max(0.0) as usize;
        (0..=self.ticks).map(move |i| {
            let value = i as f64 * self.step;
            (self.at(value), format!("{value:.decimals$}"))
        })
    }
}

/// 1, 2 or 5 times a power of ten, not below `least`.
fn tick_step(least: f64) -> f64 {
    if least <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= least * 0.999).unwrap_or(10.0 * power)
}

/// The bars that are drawn: all, or the ends of a list that is too long, with the number of those between them.
struct Drawn<'a> {
    first: &'a [Bar<'a>],
    left_out: usize,
    last: &'a [Bar<'a>],
}

impl<'a> Drawn<'a> {
    fn of(bars: &'a [Bar<'a>], first: usize, last: usize) -> Drawn<'a> {
        match bars.len().checked_sub(first + last) {
            None | Some(0) => Drawn { first: bars, left_out: 0, last: &[] },
            Some(left_out) => Drawn { first: &bars[..first], left_out, last: &bars[first + left_out..] },
        }
    }

    /// Rows of the chart, one of which may say how many are left out.
    fn rows(&self) -> usize {
        self.row_of_last() + self.last.len()
    }

    fn row_of_last(&self) -> usize {
        self.first.len() + usize::from(self.left_out > 0)
    }

    fn placed(&self) -> impl Iterator<Item = (usize, &'a Bar<'a>)> {
        let (first, last) = (self.first.iter(), self.last.iter());
        (0..).zip(first).chain((self.row_of_last()..).zip(last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        assert_eq!([0.07, 0.1, 0.13, 0.3, 0.6].map(tick_step), [0.1, 0.1, 0.2, 0.5, 1.0]);
        assert_eq!(tick_step(0.0), 1.0);
    }
}
