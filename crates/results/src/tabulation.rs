//! What is made of a run's records at its end, some records at a time: tables, lines of the manifest, numbers, and what the report
//! shows. Pure.
//!
//! It keeps some 180 bytes of each image: its numbers, for medians, and who won, for the sweep.

use proto::{Failure, ResultRecord};

use crate::export::{Export, Piece};
use crate::manifest::{Lines, ObjectEntry};
use crate::report::Shown;
use crate::run::Outcome;
use crate::summary::Numbers;
use crate::sweep::Winners;

/// A record, and the object that it was read from.
pub struct Finished {
    pub outcome: Result<Box<ResultRecord>, Box<Failure>>,
    pub marker: ObjectEntry,
}

impl Finished {
    fn outcome(&self) -> Outcome<'_> {
        self.outcome.as_ref().map(|record| &**record).map_err(|failure| &**failure)
    }
}

#[derive(Default)]
pub struct Tabulation {
    export: Export,
    lines: Lines,
    numbers: Numbers,
    shown: Shown,
    winners: Winners,
}

/// Next bytes of `results.csv`, `results.parquet` and `objects.jsonl.gz`.
pub type Pieces = [Vec<u8>; 3];

impl Tabulation {
    /// With room for this number of results.
    pub fn with_capacity(results: usize) -> Tabulation {
        let (numbers, winners) = (Numbers::with_capacity(results), Winners::with_capacity(results));
        Tabulation { numbers, winners, ..Tabulation::default() }
    }

    /// Takes in images in the order of their names, after those of the calls before.
    pub fn add(&mut self, images: Vec<Finished>) -> Pieces {
        let Piece { csv, parquet } = self.export.add(images.iter().map(Finished::outcome).collect());
        for Finished { outcome, marker } in images {
            self.lines.add(&marker);
            match outcome {
                Ok(record) => {
                    ObjectEntry::of(&record).for_each(|object| self.lines.add(&object));
                    self.numbers.result(&record);
                    self.winners.add(&record);
                    self.shown.result(*record);
                }
                Err(failure) => {
                    self.numbers.failure(&failure);
                    self.shown.failure(*failure);
                }
            }
        }
        [csv, parquet, self.lines.take()]
    }

    /// The ends of the files, and what else was collected.
    pub fn finish(self) -> (Pieces, Numbers, Shown, Winners) {
        let Piece { csv, parquet } = self.export.finish();
        ([csv, parquet, self.lines.finish()], self.numbers, self.shown, self.winners)
    }
}
