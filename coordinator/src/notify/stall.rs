//! Runs that stand still. Pure: time is an argument, in seconds.

use std::collections::HashMap;

/// What tells progress: images that are finished, and lane-steps that the run's workers say they have done. Any change counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) finished: usize,
    pub(crate) lane_steps: u64,
}

/// A run stands still, or does so no more.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change {
    /// With its name.
    Stalled(String),
    Recovered(String),
}

#[derive(Clone, Copy, Debug)]
struct Last {
    progress: Progress,
    at: f64,
    stalled: bool,
}

/// The last progress of each running run that has images left.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stalls {
    last: HashMap<String, Last>,
}

impl Stalls {
    /// `runs`: all that are running and have images left. A run that is paused, or ends, is forgotten: its time begins anew.
    pub(crate) fn look(&mut self, runs: &[(String, Progress)], after: f64, now: f64) -> Vec<Change> {
        self.last.retain(|name, _| runs.iter().any(|(run, _)| run == name));
        let mut changes = vec![];
        for (run, progress) in runs {
            let last = self.last.entry(run.clone()).or_insert(Last { progress: *progress, at: now, stalled: false });
            if last.progress != *progress {
                if last.stalled {
                    changes.push(Change::Recovered(run.clone()));
                }
                *last = Last { progress: *progress, at: now, stalled: false };
            } else if !last.stalled && now - last.at >= after {
                last.stalled = true;
                changes.push(Change::Stalled(run.clone()));
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_without_progress_stalls_once_and_recovers_with_the_next_step() {
        let mut stalls = Stalls::default();
        let mut look = |lane_steps, finished, now| stalls.look(&[("r".to_owned(), Progress { finished, lane_steps })], 60.0, now);
        assert_eq!(look(0, 0, 0.0), []);
        assert_eq!(look(5, 0, 50.0), []);
        assert_eq!(look(5, 0, 109.0), []);
        assert_eq!(look(5, 0, 110.0), [Change::Stalled("r".into())]);
        assert_eq!(look(5, 0, 500.0), []);
        assert_eq!(look(5, 1, 510.0), [Change::Recovered("r".into())]);
        assert_eq!(look(5, 1, 569.0), []);
        assert_eq!(look(5, 1, 570.0), [Change::Stalled("r".into())]);
        // A worker that started again counts from 0.
        assert_eq!(look(1, 1, 580.0), [Change::Recovered("r".into())]);
        // A pause begins the time anew.
        assert_eq!(stalls.look(&[], 60.0, 700.0), []);
        assert_eq!(stalls.look(&[("r".to_owned(), Progress::default())], 60.0, 900.0), []);
    }
}
