//! Which silent jobs the store is asked about. Pure: time is an argument, in seconds.
//!
//! A job that a living worker lists in its heartbeat is heard with it, and costs no request. So the requests follow the jobs whose
//! events or workers were lost, and not the size of the fleet. What is asked at a time has a bound, too: workers of an older
//! version list nothing.

use std::collections::HashMap;
use std::time::Duration;

use proto::{Alive, job_number};

/// How often the store is asked about silent jobs.
pub const CHECK_EVERY: Duration = Duration::from_secs(10);
/// Seconds without an event or a heartbeat that lists it after which a job is silent.
pub const SILENT: f64 = 30.0;
/// Most jobs that the store is asked about at a time.
pub const ASKED: usize = 2048;

/// A published job that was not heard of for a while.
#[derive(Clone, Debug, PartialEq)]
pub struct Silent {
    pub run: String,
    pub job: String,
    pub image: String,
    /// See `Job::generation`.
    pub generation: u64,
    /// The worker that has started it.
    pub worker: Option<String>,
    /// When it was heard of last.
    pub heard: f64,
}

/// Jobs that workers listed in their last heartbeats, by number: when the heartbeat came.
#[derive(Debug, Default)]
pub struct Listed(HashMap<u64, f64>);

impl Listed {
    /// Takes heartbeats with the times when they came.
    pub fn by<'a>(heartbeats: impl Iterator<Item = (&'a Alive, f64)>) -> Listed {
        let mut listed = HashMap::new();
        for (alive, heard) in heartbeats {
            for job in &alive.jobs {
                let last = listed.entry(*job).or_insert(heard);
                *last = heard.max(*last);
            }
        }
        Listed(listed)
    }

    /// When a job was listed last.
    pub fn heard(&self, job: &str) -> Option<f64> {
        self.0.get(&job_number(job)).copied()
    }
}

/// Cuts silent jobs into those that the store is asked about now, the longest silent first, and those that are on the queue: while
/// it is not `empty`, jobs that no worker has started are there. The others stay silent until the next time.
pub fn choose(silent: Vec<Silent>, empty: bool) -> (Vec<Silent>, Vec<Silent>) {
    let (mut asked, waiting): (Vec<Silent>, Vec<Silent>) = silent.into_iter().partition(|s| s.worker.is_some() || empty);
    asked.sort_by(|a, b| a.heard.total_cmp(&b.heard));
    asked.truncate(ASKED);
    (asked, waiting)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;
    use crate::ledger::tests::{event, planned};
    use proto::What;

    const WORKERS: usize = 10_000;
    const IMAGES: usize = 16;
    /// A job that has neither result nor failure costs two.
    const REQUESTS_OF_A_JOB: usize = 2;
    /// Seconds between two heartbeats.
    const HEARTBEAT: usize = 10;
    const MINUTES: usize = 2;

    fn id(job: usize) -> String {
        format!("{:016x}{:016x}", job + 1, 0)
    }

    /// Requests a minute for a fleet whose workers project for longer than that. `lists`: whether a worker lists its jobs.
    fn requests_per_minute(lists: impl Fn(usize) -> bool) -> usize {
        let mut ledger = Ledger::default();
        for job in 0..WORKERS * IMAGES {
            ledger.publish(id(job), planned("i"), 0.0);
            ledger.apply(&event("r", &id(job), What::Started), 0.0);
        }
        let jobs = |worker: usize| (0..IMAGES).map(move |i| (worker * IMAGES + i) as u64 + 1);
        let heartbeats: Vec<Alive> = (0..WORKERS).filter(|w| lists(*w)).map(|w| Alive::default().holding(jobs(w))).collect();
        let mut requests = 0;
        for now in (0..MINUTES * 60).step_by(CHECK_EVERY.as_secs() as usize) {
            // A heartbeat is up to ten seconds old.
            let listed = Listed::by(heartbeats.iter().enumerate().map(|(i, alive)| (alive, now as f64 - (i % HEARTBEAT) as f64)));
            ledger.hear_listed(&listed);
            let silent = ledger.silent(now as f64 - SILENT).map(|(job, open)| Silent {
                run: "r".into(),
                job: job.clone(),
                image: "i".into(),
                generation: 0,
                worker: open.worker.clone(),
                heard: open.heard,
            });
            let (asked, waiting) = choose(silent.collect(), true);
            assert!(waiting.is_empty(), "all have begun");
            requests += asked.len() * REQUESTS_OF_A_JOB;
            asked.iter().for_each(|silent| ledger.hear(&silent.job, now as f64));
        }
        requests / MINUTES
    }

    #[test]
    fn ten_thousand_workers_that_list_their_jobs_cost_no_request() {
        assert_eq!(requests_per_minute(|_| true), 0);
    }

    #[test]
    fn only_the_jobs_of_workers_that_are_gone_cost_requests() {
        let gone = 10;
        let requests = requests_per_minute(|worker| worker >= gone);
        // Each is asked about every 30 to 40 seconds.
        assert!((1..=gone * IMAGES * REQUESTS_OF_A_JOB * 2).contains(&requests), "{requests}");
    }

    #[test]
    fn a_fleet_of_workers_that_list_nothing_costs_a_bounded_number_of_requests() {
        let most = ASKED * REQUESTS_OF_A_JOB * 60 / CHECK_EVERY.as_secs() as usize;
        let requests = requests_per_minute(|_| false);
        assert!((most / 2..=most).contains(&requests), "{requests} of {most}");
    }

    #[test]
    fn those_that_are_silent_longest_come_first_and_those_on_the_queue_are_not_asked_about() {
        let silent = |job: usize, worker: Option<&str>| Silent {
            run: "r".into(),
            job: id(job),
            image: "i".into(),
            generation: 0,
            worker: worker.map(str::to_owned),
            heard: -(job as f64),
        };
        let many: Vec<Silent> = (0..ASKED + 10).map(|job| silent(job, Some("w"))).chain([silent(0, None)]).collect();
        let (asked, waiting) = choose(many.clone(), false);
        assert_eq!((asked.len(), asked[0].job.clone(), waiting.len()), (ASKED, id(ASKED + 9), 1));
        assert!(choose(many, true).1.is_empty());
    }
}
