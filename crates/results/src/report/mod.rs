//! `report.html`: a run as one page for a person. Pure: records and pictures in, HTML out.
//!
//! It reads without JavaScript; the script only sorts and filters. [`crate::html`] makes the page safe.

mod album;
mod errors;
mod failures;
mod images;
mod overview;
mod sheet;
#[cfg(test)]
mod tests;
mod transform;

use std::collections::HashMap;

use maud::html;
use proto::keys::Item;
use proto::{Failure, History, ResultRecord};

use crate::html::{STYLE, page};
use crate::summary::{SeedMetric, Summary};

pub use sheet::sheet;

const SCRIPT: &str = include_str!("report.js");

/// Images with the largest loss that the report shows.
pub const WORST: usize = 200;
/// Images with the smallest loss that the report shows.
pub const BEST: usize = 50;

/// The columns of pictures; the last one only after fine-tuning.
pub(crate) const PICTURES: [(&str, Item); 5] = [
    ("Target", Item::Target),
    ("Transformed", Item::Transformed),
    ("Projection", Item::Generated),
    ("Inverted", Item::Inverted),
    ("Fine-tuned", Item::Tuned),
];

/// The pictures and the loss curves of one image, as the store has them; a missing one is left blank.
#[derive(Clone, Debug, Default)]
pub struct Pictures {
    pub png: HashMap<Item, Vec<u8>>,
    pub history: Option<History>,
}

/// The results that the report shows, the largest loss first: all of them, or the [`WORST`] and the [`BEST`] of a large run.
/// The caller reads their pictures.
pub fn shown(results: &[ResultRecord]) -> Vec<&ResultRecord> {
    let mut shown: Vec<&ResultRecord> = results.iter().collect();
    // Without a finite loss something is wrong: first.
    let loss = |r: &ResultRecord| SeedMetric::Loss.best_seed(r).unwrap_or(f64::INFINITY);
    shown.sort_by(|a, b| loss(b).total_cmp(&loss(a)).then_with(|| a.image.cmp(&b.image)));
    if shown.len() > WORST + BEST {
        shown.drain(WORST..shown.len() - BEST);
    }
    shown
}

/// The page. `pictures` by name of the image.
pub fn report_html(
    summary: &Summary,
    results: &[ResultRecord],
    failures: &[Failure],
    pictures: &HashMap<String, Pictures>,
) -> String {
    let main = html! {
        (overview::header(summary))
        (overview::tiles(summary))
        div.pair {
            (errors::by_class(summary))
            (errors::overall(summary))
        }
        (errors::by_super_class(summary))
        (failures::section(summary, failures))
        (images::section(results, pictures))
    };
    page(&summary.run.name, &[STYLE], Some(SCRIPT), &main)
}
