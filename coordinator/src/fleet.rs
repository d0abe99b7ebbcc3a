//! What a fleet should do next: several runs share the workers. Pure: time is an argument, in seconds.
//!
//! Of all runs only a window of jobs is on the queue; the rest waits here. So a pause, a cancellation or another priority acts
//! at once, and a broker that forgets everything costs nothing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

use proto::{Control, Event, Job, RunState, What};
use serde::Serialize;

use crate::ledger::{Ledger, Open, Settled};
use crate::plan::{Plan, Planned, RunSpec};

/// All runs and the window.
#[derive(Debug)]
pub struct Fleet {
    runs: BTreeMap<String, Run>,
    window: usize,
}

#[derive(Debug)]
struct Run {
    spec: RunSpec,
    control: Control,
    waiting: VecDeque<Planned>,
    ledger: Ledger,
    /// Images with a result from before.
    skipped: usize,
    /// Images with a failure from before, or that can be no job.
    early_failures: usize,
    total: usize,
    /// No job before this time, where a rate is set.
    not_before: f64,
    classes: BTreeMap<u32, Sums>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    n: usize,
    l1: f64,
    lpips: f64,
    lpips_squares: f64,
}

/// A published job that nothing was heard of for a while.
#[derive(Clone, Debug, PartialEq)]
pub struct Silent {
    /// Name of its run.
    pub run: String,
    /// Its id.
    pub job: String,
    /// Its image.
    pub image: String,
    /// The worker that has begun it.
    pub worker: Option<String>,
}

/// How a run stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunStatus {
    /// Name of the run.
    pub name: String,
    /// Whether its jobs are handed out.
    pub state: RunState,
    /// Higher comes first.
    pub priority: i32,
    /// Most jobs started each minute.
    pub per_minute: Option<f64>,
    /// Images in all.
    pub images: usize,
    /// With a result from before the coordinator started.
    pub skipped: usize,
    /// With a result, since then.
    pub succeeded: usize,
    /// With a failure.
    pub failed: usize,
    /// In a worker's hands.
    pub started: usize,
    /// On the queue, and not begun.
    pub queued: usize,
    /// Not on the queue yet.
    pub waiting: usize,
    /// By class, of the images projected since the start.
    pub classes: Vec<ClassStatus>,
    /// Why it cannot go on now.
    pub problem: Option<String>,
}

/// Errors of a class so far.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassStatus {
    /// Name of the class.
    pub class: String,
    /// Images.
    pub images: usize,
    /// Mean L1 of the best seed.
    pub l1: f64,
    /// Mean LPIPS of the best seed.
    pub lpips: f64,
    /// Standard error of that mean.
    pub lpips_standard_error: f64,
}

impl Fleet {
    /// No run yet; at most `window` jobs published and not settled.
    pub fn new(window: usize) -> Fleet {
        Fleet { runs: BTreeMap::new(), window: window.max(1) }
    }

    /// Adds a run with what is left of it, in the place of one of the same name.
    pub fn add(&mut self, spec: RunSpec, plan: Plan, control: Control) {
        let run = Run {
            total: plan.total(),
            skipped: plan.skipped() - plan.settled_failed,
            early_failures: plan.failed(),
            control,
            waiting: plan.images.into(),
            ledger: Ledger::default(),
            not_before: 0.0,
            classes: BTreeMap::new(),
            spec,
        };
        self.runs.insert(run.spec.record.name.clone(), run);
    }

    /// Names of the runs.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.runs.keys()
    }

    /// The run's description.
    pub fn spec(&self, run: &str) -> Option<&RunSpec> {
        self.runs.get(run).map(|r| &r.spec)
    }

    /// What should be done with the run.
    pub fn control(&self, run: &str) -> Option<Control> {
        self.runs.get(run).map(|r| r.control)
    }

    /// Changes what should be done with the run, from the next job on.
    pub fn set_control(&mut self, run: &str, control: Control) {
        if let Some(r) = self.runs.get_mut(run) {
            r.control = control;
        }
    }

    /// The queue has lost what waited on it.
    pub fn withdraw(&mut self) {
        self.runs.values_mut().for_each(|r| r.ledger.withdraw());
    }

    /// The next job to publish: of the runs of the highest priority the one with the fewest jobs in flight.
    pub fn next(&mut self, now: f64) -> Option<Job> {
        if self.open() >= self.window {
            return None;
        }
        let ready = |r: &&mut Run| {
            r.control.state == RunState::Running
                && r.ledger.returned() + r.waiting.len() > 0
                && (r.control.per_minute.is_none() || now >= r.not_before)
        };
        let run = self.runs.values_mut().filter(ready).max_by_key(|r| (r.control.priority, Reverse(r.ledger.open())))?;
        if let Some(per_minute) = run.control.per_minute {
            run.not_before = run.not_before.max(now) + 60.0 / per_minute;
        }
        let planned = run.ledger.next_returned().or_else(|| run.waiting.pop_front())?;
        let job = run.spec.job(&planned);
        run.ledger.publish(job.id().to_string(), planned, now);
        Some(job)
    }

    /// Takes in an event; how it settled its job, if it did.
    pub fn apply(&mut self, event: &Event, now: f64) -> Option<Settled> {
        let run = self.runs.get_mut(&event.run)?;
        let settled = run.ledger.apply(event, now);
        if let (Some(Settled::Succeeded), What::Succeeded { l1, lpips, .. }) = (settled, &event.what)
            && l1.is_finite()
            && lpips.is_finite()
        {
            let sums = run.classes.entry(event.class).or_default();
            sums.n += 1;
            sums.l1 += l1;
            sums.lpips += lpips;
            sums.lpips_squares += lpips * lpips;
        }
        settled
    }

    /// What the store says of a job.
    pub fn settle(&mut self, run: &str, job: &str, how: Settled) {
        if let Some(run) = self.runs.get_mut(run) {
            run.ledger.settle(job, how);
        }
    }

    /// The job is lost on the way: it is published again.
    pub fn take_back(&mut self, run: &str, job: &str) {
        if let Some(run) = self.runs.get_mut(run) {
            run.ledger.take_back(job);
        }
    }

    /// The job is known to be underway.
    pub fn hear(&mut self, run: &str, job: &str, now: f64) {
        if let Some(run) = self.runs.get_mut(run) {
            run.ledger.hear(job, now);
        }
    }

    /// Jobs that nothing was heard of since `before`.
    pub fn silent(&self, before: f64) -> Vec<Silent> {
        let of = |(name, run): (&String, &Run)| -> Vec<_> {
            let silent = |(job, open): (&String, &Open)| Silent {
                run: name.clone(),
                job: job.clone(),
                image: open.image.image.clone(),
                worker: open.worker.clone(),
            };
            run.ledger.silent(before).map(silent).collect()
        };
        self.runs.iter().flat_map(of).collect()
    }

    /// Whether every image of the run is settled.
    pub fn settled(&self, run: &str) -> bool {
        self.runs.get(run).is_some_and(|r| r.ledger.open() + r.ledger.returned() + r.waiting.len() == 0)
    }

    /// Jobs published and not settled.
    pub fn open(&self) -> usize {
        self.runs.values().map(|r| r.ledger.open()).sum()
    }

    /// Images that running runs still have to do: what the number of workers should follow.
    pub fn backlog(&self) -> usize {
        let running = self.runs.values().filter(|r| r.control.state == RunState::Running);
        running.map(|r| r.ledger.open() + r.ledger.returned() + r.waiting.len()).sum()
    }

    /// How a run stands.
    pub fn status(&self, run: &str) -> Option<RunStatus> {
        let r = self.runs.get(run)?;
        let started = r.ledger.started();
        Some(RunStatus {
            name: run.to_owned(),
            state: r.control.state,
            priority: r.control.priority,
            per_minute: r.control.per_minute,
            images: r.total,
            skipped: r.skipped,
            succeeded: r.ledger.succeeded(),
            failed: r.early_failures + r.ledger.failed(),
            started,
            queued: r.ledger.open() - started,
            waiting: r.waiting.len() + r.ledger.returned(),
            classes: r.classes.iter().map(|(class, sums)| sums.status(&r.spec.classes[*class as usize])).collect(),
            problem: None,
        })
    }
}

impl Sums {
    fn status(&self, class: &str) -> ClassStatus {
        let n = self.n as f64;
        let lpips = self.lpips / n;
        let variance = ((self.lpips_squares - n * lpips * lpips) / (n - 1.0).max(1.0)).max(0.0);
        ClassStatus {
            class: class.to_owned(),
            images: self.n,
            l1: self.l1 / n,
            lpips,
            lpips_standard_error: (variance / n).sqrt(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::ledger::tests::{about, failed, planned, succeeded};
    use crate::plan::tests::spec;

    fn fleet(window: usize, runs: &[(&str, usize, i32)]) -> Fleet {
        let mut fleet = Fleet::new(window);
        for &(name, images, priority) in runs {
            let images = (0..images).map(|i| planned(&format!("{i}.png"))).collect();
            fleet.add(spec(name), Plan { images, ..Plan::default() }, Control { priority, ..Control::default() });
        }
        fleet
    }

    fn fill(fleet: &mut Fleet, now: f64) -> Vec<Job> {
        std::iter::from_fn(|| fleet.next(now)).collect()
    }

    #[test]
    fn runs_of_one_priority_share_the_window_and_a_higher_priority_comes_first() {
        let mut fleet = fleet(10, &[("a", 100, 0), ("b", 100, 0), ("urgent", 4, 5)]);
        let jobs = fill(&mut fleet, 0.0);
        let of = |run: &str| jobs.iter().filter(|j| j.run == run).count();
        assert_eq!((of("urgent"), of("a"), of("b")), (4, 3, 3));
        assert!(jobs[..4].iter().all(|j| j.run == "urgent"));
        assert_eq!(fleet.backlog(), 204);
    }

    #[test]
    fn a_paused_run_hands_out_nothing_and_goes_on_where_it_was() {
        let mut fleet = fleet(10, &[("a", 5, 0)]);
        let jobs = fill(&mut fleet, 0.0);
        assert_eq!(jobs.len(), 5);
        fleet.apply(&about(&jobs[0], What::Started), 1.0);
        fleet.apply(&about(&jobs[1], What::Started), 1.0);
        fleet.set_control("a", Control { state: RunState::Paused, ..Control::default() });
        fleet.withdraw();
        assert_eq!((fill(&mut fleet, 2.0).len(), fleet.backlog()), (0, 0));
        fleet.apply(&about(&jobs[0], What::Released { queued: false }), 2.0);
        fleet.apply(&about(&jobs[1], succeeded()), 2.0);
        fleet.set_control("a", Control::default());
        let again: HashSet<String> = fill(&mut fleet, 3.0).into_iter().map(|j| j.image).collect();
        assert_eq!(again, ["0.png", "2.png", "3.png", "4.png"].map(String::from).into());
    }

    #[test]
    fn a_rate_spreads_the_jobs_over_time() {
        let mut fleet = fleet(100, &[("a", 50, 0)]);
        fleet.set_control("a", Control { per_minute: Some(60.0), ..Control::default() });
        let given: usize = (0..10).map(|second| fill(&mut fleet, f64::from(second)).len()).sum();
        assert_eq!(given, 10);
    }

    /// A broker that drops, repeats, delays and exchanges messages, workers that die, a coordinator that checks the store by
    /// timer: under any schedule every image ends once, and the run ends by itself.
    #[test]
    fn every_image_is_settled_once_under_any_schedule_of_faults() {
        for seed in 0..2000 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let images = rng.random_range(1..12);
            let mut fleet = fleet(rng.random_range(1..6), &[("r", images, 0)]);
            let mut queue: Vec<Job> = Vec::new();
            let mut events: Vec<Event> = Vec::new();
            // The store: one marker for each image; the first result stays.
            let mut store: BTreeMap<String, (Settled, usize)> = BTreeMap::new();
            let mut paused = false;
            let mut now = 0.0;
            for step in 0..10_000 {
                now += 1.0;
                queue.extend(fill(&mut fleet, now));
                match rng.random_range(0..12) {
                    // A worker takes any job: dies, gives back, or finishes.
                    0..=4 if !queue.is_empty() => {
                        let job = queue.swap_remove(rng.random_range(0..queue.len()));
                        events.push(about(&job, What::Started));
                        let id = job.id().to_string();
                        match rng.random_range(0..6) {
                            0 => queue.push(job),
                            1 if paused => events.push(about(&job, What::Released { queued: false })),
                            1 => {
                                events.push(about(&job, What::Released { queued: true }));
                                queue.push(job);
                            }
                            2 if store.get(&id).is_none_or(|m| m.0 == Settled::Failed) && job.image == "0.png" => {
                                store.insert(id, (Settled::Failed, 1));
                                events.push(about(&job, failed()));
                            }
                            _ => {
                                let commits = store.get(&id).map_or(0, |m| if m.0 == Settled::Succeeded { m.1 } else { 0 });
                                store.insert(id, (Settled::Succeeded, commits.max(1)));
                                events.push(about(&job, succeeded()));
                                if rng.random_bool(0.2) {
                                    queue.push(job);
                                }
                            }
                        }
                    }
                    5..=8 if !events.is_empty() => {
                        let event = events.swap_remove(rng.random_range(0..events.len()));
                        fleet.apply(&event, now);
                        if rng.random_bool(0.2) {
                            events.push(event);
                        }
                    }
                    // The broker loses everything.
                    9 if rng.random_bool(0.05) => {
                        queue.clear();
                        events.clear();
                    }
                    10 if step < 5000 && rng.random_bool(0.1) => {
                        paused = !paused;
                        let state = if paused { RunState::Paused } else { RunState::Running };
                        queue.clear();
                        fleet.set_control("r", Control { state, ..Control::default() });
                        fleet.withdraw();
                    }
                    _ => {}
                }
                if step == 5000 && paused {
                    paused = false;
                    fleet.set_control("r", Control::default());
                }
                // The timer: what the store knows counts, what is silent for long is published again.
                if step % 50 == 0 {
                    for Silent { run, job, .. } in fleet.silent(now - 40.0) {
                        match store.get(&job) {
                            Some(&(how, _)) => fleet.settle(&run, &job, how),
                            None => fleet.take_back(&run, &job),
                        }
                    }
                }
                if fleet.settled("r") {
                    break;
                }
            }
            assert!(fleet.settled("r"), "seed {seed}: {:?}", fleet.status("r"));
            let status = fleet.status("r").expect("there is a run");
            assert_eq!(status.succeeded + status.failed, images, "seed {seed}");
            assert_eq!(store.len(), images, "seed {seed}: every image has one marker");
        }
    }
}
