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

/// What the report shows of a run, collected image by image; its size is the same for every large run.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    results: Vec<ResultRecord>,
    failures: Vec<Failure>,
    /// An image was fine-tuned.
    tuned: bool,
}

impl Shown {
    pub fn result(&mut self, record: ResultRecord) {
        self.tuned |= record.fine_tuned.is_some();
        self.results.push(record);
        if self.results.len() >= 2 * (WORST + BEST) {
            self.cut();
        }
    }

    pub fn failure(&mut self, failure: Failure) {
        self.failures.push(failure);
        if self.failures.len() >= 2 * failures::MOST {
            self.cut();
        }
    }

    /// Leaves what is shown in order.
    fn cut(&mut self) {
        // Without a finite loss something is wrong: first.
        let loss = |r: &ResultRecord| SeedMetric::Loss.best_seed(r).unwrap_or(f64::INFINITY);
        self.results.sort_by(|a, b| loss(b).total_cmp(&loss(a)).then_with(|| a.image.cmp(&b.image)));
        if self.results.len() > WORST + BEST {
            self.results.drain(WORST..self.results.len() - BEST);
        }
        self.failures.sort_by(|a, b| a.reason.cmp(&b.reason).then_with(|| a.image.cmp(&b.image)));
        self.failures.truncate(failures::MOST);
    }

    /// The results that the report shows, the largest loss first: all of them, or the [`WORST`] and the [`BEST`] of a large run.
    /// The caller reads their pictures.
    pub fn results(&mut self) -> &[ResultRecord] {
        self.cut();
        &self.results
    }

    /// The failures that the report lists, by reason.
    pub fn failures(&mut self) -> &[Failure] {
        self.cut();
        &self.failures
    }
}

/// The page. `pictures` by name of the image.
pub fn report_html(summary: &Summary, mut shown: Shown, pictures: &HashMap<String, Pictures>) -> String {
    shown.cut();
    let main = html! {
        (overview::header(summary))
        (overview::tiles(summary))
        div.pair {
            (errors::by_class(summary))
            (errors::overall(summary))
        }
        (errors::by_super_class(summary))
        (failures::section(summary, &shown.failures))
        (images::section(summary, &shown.results, shown.tuned, pictures))
    };
    page(&summary.run.name, &[STYLE], Some(SCRIPT), &main)
}
