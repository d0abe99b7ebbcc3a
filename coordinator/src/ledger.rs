//! The states of the jobs of a run. Pure: events may come twice and in any order, the end state is the same. Time is an argument, in
//! seconds.

use std::collections::{BTreeMap, HashMap, HashSet};

use proto::{Event, What};

use crate::plan::Planned;
use crate::silence::Listed;
use dataset::SharedStr;

/// A job that is published and not finished.
#[derive(Clone, Debug, PartialEq)]
pub struct Open {
    pub image: Planned,
    /// The worker that has started it.
    pub worker: Option<String>,
    /// Time of the last event.
    pub heard: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The store has a result.
    Succeeded,
    /// The store has a failure.
    Failed,
}

/// Jobs of a run by id. Only those that are open take memory for more than an id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ledger {
    pub open: HashMap<String, Open>,
    /// Released: to be published again, before all others.
    pub returned: BTreeMap<String, Planned>,
    pub failed: HashSet<String>,
    pub succeeded: usize,
}

impl Ledger {
    pub fn publish(&mut self, job: String, image: Planned, now: f64) {
        self.returned.remove(&job);
        self.open.entry(job).or_insert(Open { image, worker: None, heard: now });
    }

    /// Takes in an event. Returns whether it settled its job. Events of unknown jobs are ignored.
    ///
    /// A settled job stays settled; a result wins over a failure, as in the store.
    pub fn apply(&mut self, event: &Event, now: f64) -> bool {
        match &event.what {
            What::Started => {
                if let Some(image) = self.returned.remove(&event.job) {
                    self.publish(event.job.clone(), image, now);
                }
                if let Some(open) = self.open.get_mut(&event.job) {
                    (open.worker, open.heard) = (Some(event.worker.clone()), now);
                }
            }
            What::Released { queued: false } => self.take_back(&event.job),
            What::Released { queued: true } => {
                if let Some(open) = self.open.get_mut(&event.job) {
                    (open.worker, open.heard) = (None, now);
                }
            }
            What::Succeeded { .. } => return self.settle(&event.job, Settled::Succeeded),
            What::Failed { .. } => return self.settle(&event.job, Settled::Failed),
            What::Alive(_) | What::Standby => {}
        }
        false
    }

    /// Takes in the outcome of a job. Returns whether it is new.
    pub fn settle(&mut self, job: &str, how: Settled) -> bool {
        let known = self.open.remove(job).is_some() | self.returned.remove(job).is_some();
        match how {
            Settled::Failed if known => drop(self.failed.insert(job.to_owned())),
            Settled::Succeeded if known || self.failed.remove(job) => self.succeeded += 1,
            _ => return false,
        }
        true
    }

    /// A published job must be published again.
    pub fn take_back(&mut self, job: &str) {
        if let Some(open) = self.open.remove(job) {
            self.returned.insert(job.to_owned(), open.image);
        }
    }

    /// Takes back every published job that no worker has started.
    pub fn withdraw(&mut self) {
        let waiting: Vec<String> = self.open.iter().filter(|(_, o)| o.worker.is_none()).map(|(id, _)| id.clone()).collect();
        waiting.iter().for_each(|id| self.take_back(id));
    }

    /// A released job, to be published again.
    pub fn next_returned(&mut self) -> Option<Planned> {
        self.returned.pop_first().map(|(_, image)| image)
    }

    /// Published jobs without an event since `before`.
    pub fn silent(&self, before: f64) -> impl Iterator<Item = (&String, &Open)> {
        self.open.iter().filter(move |(_, open)| open.heard < before)
    }

    /// `None`: the job is unknown or finished.
    pub fn image(&self, job: &str) -> Option<&SharedStr> {
        let returned = || self.returned.get(job).map(|planned| &planned.image);
        self.open.get(job).map(|open| &open.image.image).or_else(returned)
    }

    /// The job is known to be underway, though not from an event.
    pub fn hear(&mut self, job: &str, now: f64) {
        if let Some(open) = self.open.get_mut(job) {
            open.heard = now;
        }
    }

    /// Jobs that workers list in their heartbeats are underway.
    pub fn hear_listed(&mut self, listed: &Listed) {
        for (job, open) in &mut self.open {
            if let Some(heard) = listed.heard(job) {
                open.heard = heard.max(open.heard);
            }
        }
    }

    /// Jobs that a worker has started.
    pub fn started(&self) -> usize {
        self.open.values().filter(|o| o.worker.is_some()).count()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proto::Job;
    use rand::seq::SliceRandom;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    pub(crate) fn planned(image: &str) -> Planned {
        Planned { image: image.into(), identity: "1".into(), class: 0, bbox: None, more: None, seed: 0 }
    }

    pub(crate) fn event(run: &str, job: &str, what: What) -> Event {
        Event { job: job.into(), run: run.into(), image: "i".into(), class: 0, generation: 0, worker: "w".into(), what }
    }

    pub(crate) fn succeeded() -> What {
        What::Succeeded { loss: 1.0, seconds: 1.0, lane_steps: 1, l1: 0.1, lpips: 0.2, stage_seconds: Default::default() }
    }

    pub(crate) fn failed() -> What {
        What::Failed { reason: "bad_image".into(), message: "m".into() }
    }

    pub(crate) fn about(job: &Job, what: What) -> Event {
        event(&job.run, job.id().as_str(), what)
    }

    #[test]
    fn any_order_and_any_repetition_of_events_gives_the_same_counts() {
        let events = [
            event("r", "a", What::Started),
            event("r", "a", What::Released { queued: true }),
            event("r", "a", What::Released { queued: false }),
            event("r", "a", succeeded()),
            event("r", "b", What::Started),
            event("r", "b", failed()),
            event("r", "c", failed()),
            event("r", "c", succeeded()),
            event("r", "stranger", succeeded()),
        ];
        for seed in 0..500 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut stream: Vec<&Event> = events.iter().collect();
            for _ in 0..rng.random_range(0..8) {
                stream.push(&events[rng.random_range(0..events.len())]);
            }
            stream.shuffle(&mut rng);
            let mut ledger = Ledger::default();
            ["a", "b", "c", "d"].into_iter().for_each(|j| ledger.publish(j.into(), planned(j), 0.0));
            let news = stream.into_iter().filter(|e| ledger.apply(e, 1.0) && e.what == succeeded()).count();
            let counts = (ledger.succeeded, ledger.failed.len(), ledger.open.len() + ledger.returned.len(), news);
            assert_eq!(counts, (2, 1, 1, 2), "seed {seed}");
        }
    }
}
