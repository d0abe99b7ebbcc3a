//! Decides which job is published next: several runs share the workers. Pure: time is an argument, in seconds.
//!
//! Only a window of jobs is on the queue; the rest waits here. So a pause, a cancellation or another priority acts at once, and a
//! broker that loses everything costs nothing.

mod pace;

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};

use proto::{Control, Errors, Event, Failure, FailureReason, Job, RunState, Snapshot, What};

use crate::budget::{self, Spent};
use crate::ledger::{Ledger, Open, Settled};
use crate::outcomes::Outcomes;
use crate::plan::{Plan, Planned, RunSpec};
use crate::silence::{Listed, Silent};
use crate::tally::{ClassSums, Tally, are_known};
use client::api::{ClassStatus, RunStatus};
use dataset::SharedStr;
use pace::Pace;
use results::summary::{ClassSummary, SeedMetric, Spread, Summary, SuperClassSummary};

#[derive(Debug)]
pub struct Fleet {
    runs: BTreeMap<String, Run>,
    window: usize,
    spent: Spent,
}

#[derive(Debug)]
struct Run {
    spec: RunSpec,
    control: Control,
    waiting: VecDeque<Planned>,
    ledger: Ledger,
    /// Images with a result from before.
    skipped: usize,
    /// Images that failed before, or that cannot be planned.
    early_failures: usize,
    total: usize,
    /// With a rate limit: the earliest time of the next job.
    not_before: f64,
    tally: Tally,
    pace: Pace,
    /// By image, its generation where that is not 0.
    generations: HashMap<String, u64>,
}

impl Run {
    /// Images that are not finished.
    fn left(&self) -> usize {
        self.ledger.open.len() + self.ledger.returned.len() + self.waiting.len()
    }

    fn generation(&self, image: &str) -> u64 {
        self.generations.get(image).copied().unwrap_or(0)
    }
}

impl Fleet {
    /// `window`: most jobs that are published and not finished.
    pub fn new(window: usize) -> Fleet {
        Fleet { runs: BTreeMap::new(), window: window.max(1), spent: Spent::default() }
    }

    /// Adds a run. A run of the same name is replaced.
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
            generations: plan.generations,
            spec,
        };
        self.runs.insert(run.spec.record.name.clone(), run);
    }

    pub fn remove(&mut self, run: &str) {
        self.runs.remove(run);
    }

    /// Workers have had images of the run for so many seconds more.
    pub fn spend(&mut self, run: &str, seconds: f64) {
        if self.runs.contains_key(run) {
            self.spent.add(run, seconds);
        }
    }

    /// Takes in the worker seconds that an earlier coordinator has counted.
    pub fn resume_spending(&mut self, run: &str, seconds: f64) {
        self.spent.resume(run, seconds);
    }

    /// Forgets what a deleted run has cost.
    pub fn forget_spending(&mut self, run: &str) {
        self.spent.forget(run);
    }

    /// Seconds that workers had images of the run.
    pub fn worker_seconds(&self, run: &str) -> f64 {
        self.spent.seconds(run)
    }

    /// Running runs with images left whose budget is spent.
    pub fn over_budget(&self) -> Vec<String> {
        let over = |(name, run): &(&String, &Run)| {
            let hours = self.spent.seconds(name) / 3600.0;
            run.control.state == RunState::Running && run.left() > 0 && budget::is_spent(&run.control, hours)
        };
        self.runs.iter().filter(over).map(|(name, _)| name.clone()).collect()
    }

    /// The last redrive of the run; 0: there was none.
    pub fn redrives(&self, run: &str) -> u64 {
        self.runs.get(run).and_then(|r| r.generations.values().max().copied()).unwrap_or(0)
    }

    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.runs.keys()
    }

    pub fn spec(&self, run: &str) -> Option<&RunSpec> {
        self.runs.get(run).map(|r| &r.spec)
    }

    pub fn control(&self, run: &str) -> Option<Control> {
        self.runs.get(run).map(|r| r.control)
    }

    pub fn set_control(&mut self, run: &str, control: Control) {
        if let Some(r) = self.runs.get_mut(run) {
            if r.control.per_minute != control.per_minute {
                // A lower rate before may have put the next job off.
                r.not_before = 0.0;
            }
            r.control = control;
        }
    }

    /// The queue is emptied: jobs that no worker has started wait here again.
    pub fn withdraw(&mut self) {
        self.runs.values_mut().for_each(|r| r.ledger.withdraw());
    }

    /// The next job to publish: of the runs with the highest priority, the one with the fewest open jobs comes first.
    pub fn next(&mut self, now: f64) -> Option<Job> {
        if self.open() >= self.window {
            return None;
        }
        let ready = |r: &&mut Run| {
            r.control.state == RunState::Running
                && r.ledger.returned.len() + r.waiting.len() > 0
                && (r.control.per_minute.is_none() || now >= r.not_before)
        };
        let run = self.runs.values_mut().filter(ready).max_by_key(|r| (r.control.priority, Reverse(r.ledger.open.len())))?;
        if let Some(per_minute) = run.control.per_minute {
            run.not_before = run.not_before.max(now) + 60.0 / per_minute;
        }
        let planned = run.ledger.next_returned().or_else(|| run.waiting.pop_front())?;
        let job = Job { generation: run.generation(&planned.image), ..run.spec.job(&planned) };
        run.ledger.publish(job.id().to_string(), planned, now);
        Some(job)
    }

    /// The generation of an image. Jobs, events and failures of another one are out of date. `None`: there is no such run.
    pub fn generation(&self, run: &str, image: &str) -> Option<u64> {
        self.runs.get(run).map(|r| r.generation(image))
    }

    /// Takes in an event. Returns whether it settled its job. An event of another generation than its image's changes nothing: the
    /// image is with another worker, or waits for one.
    pub fn apply(&mut self, event: &Event, now: f64) -> bool {
        let Some(run) = self.runs.get_mut(&event.run) else { return false };
        if event.generation != run.generation(&event.image) {
            return false;
        }
        let image = run.ledger.image(&event.job).cloned();
        let settled = run.ledger.apply(event, now);
        if event.what == What::Started {
            run.pace.begun(now);
        }
        match &event.what {
            // Events of unknown jobs do not count.
            What::Succeeded { loss, l1, lpips, stage_seconds, .. } if settled || run.tally.wants(&event.job) => {
                let errors = Errors { loss: *loss, l1: *l1, lpips: *lpips };
                let image = image.unwrap_or_else(|| event.image.as_str().into());
                if are_known(&errors) {
                    run.tally.count(&event.job, image, event.class, errors);
                    run.pace.took(stage_seconds);
                } else {
                    run.tally.want(&event.job, image);
                }
            }
            What::Failed { reason, message } if settled => {
                let class_name = run.spec.classes.get(event.class as usize).cloned();
                // A newer worker may know more reasons; the record tells at the next start.
                let reason = FailureReason::named(reason).unwrap_or(FailureReason::BadJob);
                run.tally.fail(Failure::without_job(&event.image, reason, message.clone(), class_name));
            }
            _ => {}
        }
        if settled {
            run.pace.settled(now);
        }
        settled
    }

    /// Takes in the outcome of a silent job, which the store has. Returns whether it is new.
    pub fn settle(&mut self, silent: &Silent, failure: Option<Failure>, now: f64) -> bool {
        // The image may have been tried again since the store was asked.
        if self.generation(&silent.run, &silent.image).is_some_and(|current| current != silent.generation) {
            return false;
        }
        let Some(run) = self.runs.get_mut(&silent.run) else { return false };
        let how = if failure.is_some() { Settled::Failed } else { Settled::Succeeded };
        let image = run.ledger.image(&silent.job).cloned();
        let settled = run.ledger.settle(&silent.job, how);
        if settled {
            run.pace.settled(now);
            match failure {
                Some(failure) => run.tally.fail(failure),
                None => run.tally.want(&silent.job, image.unwrap_or_else(|| silent.image.as_str().into())),
            }
        }
        settled
    }

    /// Up to `n` results of one run whose errors must be read: the number of each job, and its image.
    pub fn unread(&self, n: usize) -> Option<(String, Vec<(u64, SharedStr)>)> {
        let (name, run) = self.runs.iter().find(|(_, run)| run.tally.left() > 0)?;
        Some((name.clone(), run.tally.unread(n)))
    }

    /// Takes in class and errors of a result of [`Fleet::unread`]; `None`: it is gone, or cannot be read.
    pub fn read(&mut self, run: &str, job: u64, found: Option<(u32, Errors)>) {
        if let Some(run) = self.runs.get_mut(run) {
            run.tally.read(job, found);
        }
    }

    pub fn outcomes(&self, run: &str) -> Option<Outcomes<'_>> {
        let r = self.runs.get(run)?;
        Some(Outcomes { classes: &r.spec.classes, super_classes: &r.spec.super_classes, ..r.tally.outcomes() })
    }

    /// Results whose errors are known.
    pub fn counted(&self, run: &str) -> usize {
        self.runs.get(run).map_or(0, |r| r.tally.counted())
    }

    pub fn snapshot(&self, run: &str) -> Option<Snapshot> {
        self.runs.get(run).map(|r| r.tally.snapshot())
    }

    /// The job is lost: it is published again.
    pub fn take_back(&mut self, run: &str, job: &str) {
        if let Some(run) = self.runs.get_mut(run) {
            run.ledger.take_back(job);
        }
    }

    /// The job is known to be on the queue or with a worker.
    pub fn hear(&mut self, run: &str, job: &str, now: f64) {
        if let Some(run) = self.runs.get_mut(run) {
            run.ledger.hear(job, now);
        }
    }

    /// Jobs that workers list in their heartbeats are with them.
    pub fn hear_listed(&mut self, listed: &Listed) {
        self.runs.values_mut().for_each(|run| run.ledger.hear_listed(listed));
    }

    /// Jobs that were not heard of since `before`.
    pub fn silent(&self, before: f64) -> Vec<Silent> {
        let of = |(name, run): (&String, &Run)| -> Vec<_> {
            let silent = |(job, open): (&String, &Open)| Silent {
                run: name.clone(),
                job: job.clone(),
                image: open.image.image.to_string(),
                generation: run.generation(&open.image.image),
                worker: open.worker.clone(),
                heard: open.heard,
            };
            run.ledger.silent(before).map(silent).collect()
        };
        self.runs.iter().flat_map(of).collect()
    }

    /// Whether a job that was silent still is: published, with the same worker, and without an event since `before`.
    pub fn is_silent(&self, silent: &Silent, before: f64) -> bool {
        let open = self.runs.get(&silent.run).and_then(|run| run.ledger.open.get(&silent.job));
        open.is_some_and(|open| open.worker == silent.worker && open.heard < before)
    }

    /// Whether every image of the run is finished.
    pub fn settled(&self, run: &str) -> bool {
        self.runs.get(run).is_some_and(|r| r.left() == 0)
    }

    /// Whether the run has no open job.
    pub fn at_rest(&self, run: &str) -> bool {
        self.runs.get(run).is_some_and(|r| r.ledger.open.is_empty())
    }

    /// Jobs that are published and not finished.
    pub fn open(&self) -> usize {
        self.runs.values().map(|r| r.ledger.open.len()).sum()
    }

    /// Images of running runs that are not finished: the number of workers should follow it.
    pub fn backlog(&self) -> usize {
        self.runs.values().filter(|r| r.control.state == RunState::Running).map(Run::left).sum()
    }

    /// With errors by class and by super-class.
    pub fn status(&self, run: &str, now: f64) -> Option<RunStatus> {
        let r = self.runs.get(run)?;
        let (classes, super_classes) = class_statuses(&r.spec, &r.tally.classes);
        Some(RunStatus { classes, super_classes, ..self.brief(run, now)? })
    }

    /// Without errors by class and by super-class.
    pub fn brief(&self, run: &str, now: f64) -> Option<RunStatus> {
        let r = self.runs.get(run)?;
        let started = r.ledger.started();
        let left = r.left();
        let hours = self.spent.seconds(run) / 3600.0;
        let per_hour = r.pace.per_hour(now).filter(|_| left > 0 && r.control.state == RunState::Running);
        Some(RunStatus {
            name: run.to_owned(),
            state: r.control.state,
            priority: r.control.priority,
            per_minute: r.control.per_minute,
            images: r.total,
            skipped: r.skipped,
            succeeded: r.ledger.succeeded,
            failed: r.early_failures + r.ledger.failed.len(),
            started,
            queued: r.ledger.open.len() - started,
            waiting: r.waiting.len() + r.ledger.returned.len(),
            unread: r.tally.left(),
            per_hour,
            eta_seconds: per_hour.filter(|rate| *rate > 0.0).map(|rate| left as f64 / rate * 3600.0),
            stage_seconds: r.pace.stages(),
            worker_hours: hours,
            budget_hours: r.control.budget_hours,
            paused_because: budget::paused_because(run, &r.control, hours),
            ended: r.control.ended,
            ..RunStatus::default()
        })
    }
}

/// Classes in their order, and super-classes by name.
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
        class_status(name, spec.super_classes.get(*class as usize).cloned(), sums.images, sums.spreads())
    };
    let super_class = |(name, sums): (&str, ClassSums)| class_status(name.to_owned(), None, sums.images, sums.spreads());
    (classes.iter().map(class).collect(), super_classes.into_iter().map(super_class).collect())
}

/// Errors by class and by super-class of a closed run.
pub(crate) fn summary_statuses(summary: &Summary) -> (Vec<ClassStatus>, Vec<ClassStatus>) {
    let spreads = |error: &BTreeMap<SeedMetric, Spread>| {
        [SeedMetric::Loss, SeedMetric::L1, SeedMetric::Lpips].map(|metric| error.get(&metric).copied().unwrap_or_default())
    };
    let super_classes = summary.super_class_of();
    let class = |c: &ClassSummary| class_status(c.name.clone(), super_classes.get(&c.name).cloned(), c.images, spreads(&c.error));
    let super_class = |s: &SuperClassSummary| class_status(s.name.clone(), None, s.images, spreads(&s.error));
    let with_images = summary.super_classes.iter().filter(|s| s.images > 0);
    (summary.classes.iter().map(class).collect(), with_images.map(super_class).collect())
}

fn class_status(class: String, super_class: Option<String>, images: u64, [loss, l1, lpips]: [Spread; 3]) -> ClassStatus {
    let (loss, l1) = (loss.mean, l1.mean);
    ClassStatus { class, super_class, images, loss, l1, lpips: lpips.mean, lpips_standard_error: lpips.standard_error }
}

#[cfg(test)]
pub(crate) mod tests;
