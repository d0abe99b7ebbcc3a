//! What a fleet should do next: several runs share the workers. Pure: time is an argument, in seconds.
//!
//! Of all runs only a window of jobs is on the queue; the rest waits here. So a pause, a cancellation or another priority acts
//! at once, and a broker that forgets everything costs nothing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

use proto::{Control, Errors, Event, Failure, FailureReason, Job, RunState, Snapshot, What};

use crate::ledger::{Ledger, Open, Settled};
use crate::outcomes::Outcomes;
use crate::pace::Pace;
use crate::plan::{Plan, Planned, RunSpec};
use crate::tally::{ClassSums, Tally, are_known};
use client::api::{ClassStatus, RunStatus};
use dataset::SharedStr;
use results::summary::{Metric, Spread, Summary};

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
    tally: Tally,
    pace: Pace,
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

impl Fleet {
    /// No run yet; at most `window` jobs published and not settled.
    pub fn new(window: usize) -> Fleet {
        Fleet { runs: BTreeMap::new(), window: window.max(1) }
    }

    /// Adds a run with what is left of it and what is known of its results, in the place of one of the same name.
    pub fn add(&mut self, spec: RunSpec, plan: Plan, control: Control, tally: Tally) {
        let run = Run {
            total: plan.total(),
            skipped: plan.skipped() - plan.settled_failed,
            early_failures: plan.failed(),
            control,
            waiting: plan.images.into(),
            ledger: Ledger::default(),
            not_before: 0.0,
            tally,
            pace: Pace::default(),
            spec,
        };
        self.runs.insert(run.spec.record.name.clone(), run);
    }

    /// Forgets a run.
    pub fn remove(&mut self, run: &str) {
        self.runs.remove(run);
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
            if r.control.per_minute != control.per_minute {
                // What an earlier, lower rate put off.
                r.not_before = 0.0;
            }
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
        let image = run.ledger.image(&event.job).cloned();
        let settled = run.ledger.apply(event, now);
        if event.what == What::Started {
            run.pace.begun(now);
        }
        // Not of a stranger, which is no result of this run.
        match &event.what {
            // Not of a stranger, which is no result of this run.
            What::Succeeded { loss, l1, lpips, stage_seconds, .. } if settled.is_some() || run.tally.wants(&event.job) => {
                let errors = Errors { loss: *loss, l1: *l1, lpips: *lpips };
                let image = image.unwrap_or_else(|| event.image.as_str().into());
                if are_known(&errors) {
                    run.tally.count(&event.job, image, event.class, errors);
                    run.pace.took(stage_seconds);
                } else {
                    run.tally.want(&event.job, image);
                }
            }
            What::Failed { reason, message } if settled.is_some() => {
                let class_name = run.spec.classes.get(event.class as usize).cloned();
                // A newer worker may know more reasons; the record tells at the next start.
                let reason = FailureReason::named(reason).unwrap_or(FailureReason::BadJob);
                let (job, image, message) = (None, event.image.clone(), message.clone());
                run.tally.fail(Failure { format: 1, job, image, reason, message, class_name });
            }
            _ => {}
        }
        if settled.is_some() {
            run.pace.settled(now);
        }
        settled
    }

    /// What the store says of a job that was silent; with its failure, if it has one.
    pub fn settle(&mut self, silent: &Silent, failure: Option<Failure>, now: f64) {
        let Some(run) = self.runs.get_mut(&silent.run) else { return };
        let how = if failure.is_some() { Settled::Failed } else { Settled::Succeeded };
        let image = run.ledger.image(&silent.job).cloned();
        if run.ledger.settle(&silent.job, how).is_some() {
            run.pace.settled(now);
            match failure {
                Some(failure) => run.tally.fail(failure),
                None => run.tally.want(&silent.job, image.unwrap_or_else(|| silent.image.as_str().into())),
            }
        }
    }

    /// Results that are to be read for their errors: of one run up to `n`, each with a number for its job and its image.
    pub fn unread(&self, n: usize) -> Option<(String, Vec<(u64, SharedStr)>)> {
        let (name, run) = self.runs.iter().find(|(_, run)| run.tally.left() > 0)?;
        Some((name.clone(), run.tally.unread(n)))
    }

    /// What was read of a result that [`Fleet::unread`] named; `None`: it is not there, or cannot be read.
    pub fn read(&mut self, run: &str, job: u64, found: Option<(u32, Errors)>) {
        if let Some(run) = self.runs.get_mut(run) {
            run.tally.read(job, found);
        }
    }

    /// Images of a run one by one.
    pub fn outcomes(&self, run: &str) -> Option<Outcomes<'_>> {
        let r = self.runs.get(run)?;
        Some(Outcomes { classes: &r.spec.classes, super_classes: &r.spec.super_classes, ..r.tally.outcomes() })
    }

    /// Results whose errors are known.
    pub fn counted(&self, run: &str) -> usize {
        self.runs.get(run).map_or(0, |r| r.tally.counted())
    }

    /// What is known of the results, for a later start.
    pub fn snapshot(&self, run: &str) -> Option<Snapshot> {
        self.runs.get(run).map(|r| r.tally.snapshot())
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
                image: open.image.image.to_string(),
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

    /// Whether no job of the run is published and not settled.
    pub fn at_rest(&self, run: &str) -> bool {
        self.runs.get(run).is_some_and(|r| r.ledger.open() == 0)
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

    /// How a run stands, with its errors by class.
    pub fn status(&self, run: &str, now: f64) -> Option<RunStatus> {
        let r = self.runs.get(run)?;
        let (classes, super_classes) = class_statuses(&r.spec, r.tally.classes());
        Some(RunStatus { classes, super_classes, ..self.brief(run, now)? })
    }

    /// How a run stands, without errors by class and by super-class.
    pub fn brief(&self, run: &str, now: f64) -> Option<RunStatus> {
        let r = self.runs.get(run)?;
        let started = r.ledger.started();
        let left = r.ledger.open() + r.ledger.returned() + r.waiting.len();
        let per_hour = r.pace.per_hour(now).filter(|_| left > 0 && r.control.state == RunState::Running);
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
            classes: vec![],
            super_classes: vec![],
            unread: r.tally.left(),
            per_hour,
            eta_seconds: per_hour.filter(|rate| *rate > 0.0).map(|rate| left as f64 / rate * 3600.0),
            stage_seconds: r.pace.stages(),
            cost: None,
            problem: None,
        })
    }
}

/// Of each class in their order, and of each super-class by name.
fn class_statuses(spec: &RunSpec, classes: &BTreeMap<u32, ClassSums>) -> (Vec<ClassStatus>, Vec<ClassStatus>) {
    let mut super_classes: BTreeMap<&str, ClassSums> = BTreeMap::new();
    for (class, sums) in classes {
        if let Some(name) = spec.super_classes.get(*class as usize) {
            super_classes.entry(name).or_default().join(sums);
        }
    }
    let class = |(class, sums): (&u32, &ClassSums)| {
        // A record or a message could name any class.
        let name = spec.classes.get(*class as usize).cloned().unwrap_or_else(|| class.to_string());
        class_status(name, spec.super_classes.get(*class as usize).cloned(), sums)
    };
    let super_class = |(name, sums): (&str, ClassSums)| class_status(name.to_owned(), None, &sums);
    (classes.iter().map(class).collect(), super_classes.into_iter().map(super_class).collect())
}

/// The same, as the tables of a run that is over have it.
pub(crate) fn of_summary(summary: &Summary) -> (Vec<ClassStatus>, Vec<ClassStatus>) {
    let status = |class: &str, super_class, images, error: &BTreeMap<Metric, Spread>| {
        let spread = |metric| error.get(&metric).copied().unwrap_or(Spread::over([]));
        ClassStatus {
            class: class.to_owned(),
            super_class,
            images,
            loss: spread(Metric::Loss).mean,
            l1: spread(Metric::L1).mean,
            lpips: spread(Metric::Lpips).mean,
            lpips_standard_error: spread(Metric::Lpips).standard_error,
        }
    };
    let of = summary.super_class_of();
    let classes = summary.classes.iter().map(|c| status(&c.name, of.get(&c.name).cloned(), c.images, &c.error));
    let super_classes = summary.super_classes.iter().filter(|s| s.images > 0);
    (classes.collect(), super_classes.map(|s| status(&s.name, None, s.images, &s.error)).collect())
}

fn class_status(class: String, super_class: Option<String>, sums: &ClassSums) -> ClassStatus {
    ClassStatus {
        class,
        super_class,
        images: sums.images,
        loss: sums.loss.mean(),
        l1: sums.l1.mean(),
        lpips: sums.lpips.mean(),
        lpips_standard_error: sums.lpips.standard_error(),
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

    fn failure_of(image: &str) -> Failure {
        let (image, message) = (image.to_owned(), "as the store says".into());
        Failure { format: 1, job: None, image, reason: FailureReason::BadImage, message, class_name: None }
    }

    fn fleet(window: usize, runs: &[(&str, usize, i32)]) -> Fleet {
        let mut fleet = Fleet::new(window);
        for &(name, images, priority) in runs {
            let images = (0..images).map(|i| planned(&format!("{i}.png"))).collect();
            let plan = Plan { images, ..Plan::default() };
            fleet.add(spec(name), plan, Control { priority, ..Control::default() }, Tally::default());
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
                    for silent in fleet.silent(now - 40.0) {
                        match store.get(&silent.job) {
                            Some(&(how, _)) => {
                                let failure = (how == Settled::Failed).then(|| failure_of(&silent.image));
                                fleet.settle(&silent, failure, now);
                            }
                            None => fleet.take_back(&silent.run, &silent.job),
                        }
                    }
                }
                if fleet.settled("r") {
                    break;
                }
            }
            assert!(fleet.settled("r"), "seed {seed}: {:?}", fleet.status("r", 0.0));
            let status = fleet.status("r", 0.0).expect("there is a run");
            assert_eq!(status.succeeded + status.failed, images, "seed {seed}");
            assert_eq!(store.len(), images, "seed {seed}: every image has one marker");
        }
    }

    /// What a store and the planning would say, for the next test.
    #[derive(Default)]
    struct World {
        /// Seeds of the images, which a redrive changes.
        seeds: Vec<u64>,
        /// By image: the job that made the result, and its errors. A power of two in all, so that sums are exact.
        results: BTreeMap<String, (Job, Errors)>,
        /// Some are damaged.
        snapshots: Vec<Vec<u8>>,
    }

    impl World {
        fn planned(&self) -> Vec<Planned> {
            let planned = |(i, seed): (usize, &u64)| Planned { class: i as u32 % 2, seed: *seed, ..planned(&format!("{i}.png")) };
            self.seeds.iter().enumerate().map(planned).collect()
        }

        fn commit(&mut self, job: &Job) -> Errors {
            let errors = |n: u64| Errors { loss: n as f64 / 4.0, l1: n as f64 / 8.0, lpips: n as f64 / 16.0 };
            let n = self.results.len() as u64 + job.seed * 16;
            self.results.entry(job.image.clone()).or_insert((job.clone(), errors(n))).1
        }

        /// A coordinator that starts now, with one of the snapshots or none.
        fn start(&mut self, rng: &mut ChaCha8Rng) -> Fleet {
            let (spec, all) = (spec("r"), self.planned());
            // As a start does: a result of another seed is none, and no snapshot outlives a result.
            let before = self.results.len();
            self.results.retain(|image, (job, _)| all.iter().any(|p| *p.image == **image && p.seed == job.seed));
            if self.results.len() < before {
                self.snapshots.clear();
            }
            let (settled, images): (Vec<_>, Vec<_>) = all.into_iter().partition(|p| self.results.contains_key(&*p.image));
            let choice = rng.random_range(0..=self.snapshots.len());
            let snapshot = self.snapshots.get(choice).and_then(|bytes| Snapshot::decode(bytes).ok());
            let results = settled.iter().map(|p| (spec.job(p).id().to_string(), p.image.clone()));
            let tally = Tally::resume(snapshot, results.collect::<Vec<_>>(), []);
            let mut fleet = Fleet::new(4);
            fleet.add(spec, Plan { images, settled, ..Plan::default() }, Control::default(), tally);
            fleet
        }

        /// By class, and of the one super-class.
        fn truth(&self) -> (Vec<ClassStatus>, Vec<ClassStatus>) {
            let (mut classes, mut all): (BTreeMap<u32, ClassSums>, _) = (BTreeMap::new(), ClassSums::default());
            for (job, errors) in self.results.values() {
                classes.entry(job.class).or_default().add(errors);
                all.add(errors);
            }
            let name = |class: u32| spec("r").classes[class as usize].clone();
            let class = |(class, sums): (&u32, &ClassSums)| class_status(name(*class), Some("thing".into()), sums);
            (classes.iter().map(class).collect(), vec![class_status("thing".into(), None, &all)])
        }
    }

    /// Events come twice, late or never, results are found and read, coordinators start again with old or damaged snapshots, and
    /// images are redriven: at the end every result counts once.
    #[test]
    fn errors_by_class_are_those_of_the_results_under_any_schedule() {
        for seed in 0..1000 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut world = World { seeds: vec![0; rng.random_range(1..10)], ..World::default() };
            let mut fleet = world.start(&mut rng);
            let (mut jobs, mut events): (Vec<Job>, Vec<Event>) = Default::default();
            let mut now = 0.0;
            for step in 0..5000 {
                now += 1.0;
                jobs.extend(fill(&mut fleet, now));
                match rng.random_range(0..16) {
                    0..=4 if !jobs.is_empty() => {
                        let job = jobs.swap_remove(rng.random_range(0..jobs.len()));
                        let found = world.results.contains_key(&job.image);
                        let Errors { loss, l1, lpips } = world.commit(&job);
                        // Who only finds a result knows no numbers.
                        let loss = if found { f64::NAN } else { loss };
                        let what =
                            What::Succeeded { loss, seconds: 1.0, lane_steps: 1, l1, lpips, stage_seconds: BTreeMap::new() };
                        events.push(Event::about(&job, "w", what));
                        if rng.random_bool(0.2) {
                            jobs.push(job);
                        }
                    }
                    5..=8 if !events.is_empty() => {
                        let event = events.swap_remove(rng.random_range(0..events.len()));
                        if rng.random_bool(0.8) {
                            fleet.apply(&event, now);
                        }
                        if rng.random_bool(0.3) {
                            events.push(event);
                        }
                    }
                    9 | 10 => {
                        let (_, batch) = fleet.unread(2).unwrap_or_default();
                        for (number, image) in batch {
                            fleet.read("r", number, world.results.get(&*image).map(|(job, errors)| (job.class, *errors)));
                        }
                    }
                    11 => {
                        let mut bytes = fleet.snapshot("r").expect("the run").encode();
                        if rng.random_bool(0.2) {
                            let at = rng.random_range(0..bytes.len());
                            bytes[at] ^= 1 << rng.random_range(0..8);
                        }
                        world.snapshots.push(bytes);
                    }
                    12 if step < 1000 && rng.random_bool(0.1) => fleet = world.start(&mut rng),
                    13 if step < 1000 && rng.random_bool(0.1) => {
                        let image = rng.random_range(0..world.seeds.len());
                        world.seeds[image] += 1;
                        fleet = world.start(&mut rng);
                    }
                    _ => {}
                }
                if step % 50 == 0 {
                    for silent in fleet.silent(now - 40.0) {
                        match world.results.contains_key(&silent.image) {
                            true => fleet.settle(&silent, None, now),
                            false => fleet.take_back("r", &silent.job),
                        }
                    }
                }
                if step >= 1000 && fleet.settled("r") && fleet.unread(1).is_none() {
                    break;
                }
            }
            let status = fleet.status("r", 0.0).expect("the run");
            assert_eq!((fleet.settled("r"), status.unread, world.results.len()), (true, 0, world.seeds.len()), "seed {seed}");
            assert_eq!((status.classes, status.super_classes), world.truth(), "seed {seed}");
        }
    }
}
