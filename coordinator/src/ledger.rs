//! What is known of the jobs of a run. Pure: events may come twice and in any order, the end state is the same.

use std::collections::HashMap;

use proto::{Event, What};

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum JobState {
    /// Published, or given back.
    Waiting,
    /// In a worker's hands.
    Started,
    /// A failure record is in the store.
    Failed,
    /// A result is in the store.
    Succeeded,
}

/// Jobs of a run by id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ledger {
    jobs: HashMap<String, JobState>,
    succeeded: usize,
    failed: usize,
}

impl Ledger {
    /// Adds a job that is about to be published.
    pub fn expect(&mut self, job: String) {
        self.jobs.entry(job).or_insert(JobState::Waiting);
    }

    /// Takes in an event; whether it settled a job for the first time. Events of unknown jobs are ignored.
    ///
    /// A settled job stays settled; a result wins over a failure, as in the store.
    pub fn apply(&mut self, event: &Event) -> bool {
        let Some(state) = self.jobs.get_mut(&event.job) else { return false };
        let before = *state;
        match event.what {
            What::Started if before == JobState::Waiting => *state = JobState::Started,
            What::Released if before == JobState::Started => *state = JobState::Waiting,
            What::Failed { .. } if before < JobState::Failed => {
                *state = JobState::Failed;
                self.failed += 1;
            }
            What::Succeeded { .. } if before != JobState::Succeeded => {
                *state = JobState::Succeeded;
                self.succeeded += 1;
                if before == JobState::Failed {
                    self.failed -= 1;
                }
            }
            _ => {}
        }
        before < JobState::Failed && *state >= JobState::Failed
    }

    /// Jobs with a result.
    pub fn succeeded(&self) -> usize {
        self.succeeded
    }

    /// Jobs with a failure record.
    pub fn failed(&self) -> usize {
        self.failed
    }

    /// Jobs that are not settled.
    pub fn open(&self) -> usize {
        self.jobs.len() - self.succeeded - self.failed
    }
}

#[cfg(test)]
mod tests {
    use rand::seq::SliceRandom;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn event(job: &str, what: What) -> Event {
        Event { job: job.into(), run: "r".into(), image: "i".into(), class: 0, worker: "w".into(), what }
    }

    #[test]
    fn any_order_and_any_repetition_of_events_gives_the_same_counts() {
        let succeeded = || What::Succeeded { loss: 1.0, seconds: 1.0, lane_steps: 1 };
        let failed = || What::Failed { reason: "bad_image".into(), message: "m".into() };
        let events = [
            event("a", What::Started),
            event("a", What::Released),
            event("a", succeeded()),
            event("b", What::Started),
            event("b", failed()),
            event("c", failed()),
            event("c", succeeded()),
            event("stranger", succeeded()),
        ];
        for seed in 0..200 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut stream: Vec<&Event> = events.iter().collect();
            for _ in 0..rng.random_range(0..8) {
                stream.push(&events[rng.random_range(0..events.len())]);
            }
            stream.shuffle(&mut rng);
            let mut ledger = Ledger::default();
            ["a", "b", "c", "d"].into_iter().for_each(|j| ledger.expect(j.into()));
            let settled = stream.into_iter().filter(|e| ledger.apply(e)).count();
            assert_eq!((ledger.succeeded(), ledger.failed(), ledger.open(), settled), (2, 1, 1, 3), "seed {seed}");
        }
    }
}
