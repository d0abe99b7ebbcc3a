//! The metrics of a coordinator: their names, and the last values of the gauges.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};

use proto::{FailureReason, RunState};
use telemetry::Metric;

use client::api::{ClassStatus, RunStatus};

/// Most runs with gauges: running ones first, then those that changed last.
const RUNS: usize = 32;

/// Attributes `basin.outcome`: `succeeded` or `failed`, and then `basin.reason`.
pub static IMAGES: Metric = Metric::counter("basin.images", "{image}", "Images settled");
/// Attributes `basin.run` and `basin.state`: `succeeded`, `failed`, `started`, `queued` or `waiting`.
pub static RUN_IMAGES: Metric = Metric::gauge("basin.run.images", "{image}", "Images of a run by state");
/// Attribute `basin.run`. Only of running runs with images left.
pub static RUN_PROGRESS: Metric =
    Metric::gauge("basin.run.progress.time", "s", "When an image of a running run was settled last, in Unix time");
/// Attributes `basin.run` and `basin.class`, as all metrics of classes.
pub static CLASS_IMAGES: Metric = Metric::gauge("basin.class.images", "{image}", "Images of a class with a result");
pub static CLASS_LOSS: Metric = Metric::gauge("basin.class.loss", "1", "Mean training loss of a class");
pub static CLASS_L1: Metric = Metric::gauge("basin.class.l1", "1", "Mean L1 of a class");
pub static CLASS_LPIPS: Metric = Metric::gauge("basin.class.lpips", "1", "Mean LPIPS of a class");
pub static CLASS_LPIPS_ERROR: Metric =
    Metric::gauge("basin.class.lpips.error", "1", "Standard error of the mean LPIPS of a class");
/// Attribute `messaging.destination.name`: the full name of a queue.
pub static QUEUE_DEPTH: Metric = Metric::gauge("basin.queue.depth", "{message}", "Messages that wait");
/// 0 if there is no such job.
pub static QUEUE_AGE: Metric =
    Metric::gauge("basin.queue.age", "s", "Time since the oldest job that no worker has begun was published");
pub static WORKERS: Metric = Metric::gauge("basin.workers", "{worker}", "Workers");
/// The number of workers should follow it.
pub static BACKLOG: Metric = Metric::gauge("basin.backlog", "{image}", "Images that running runs still have to do");
/// Counts jobs that are published again, too.
pub static PUBLISHED: Metric = Metric::counter("basin.jobs.published", "{message}", "Jobs published");
/// Attribute `basin.reason`: `lost` on the way, or `returned` by a worker.
pub static REPUBLISHED: Metric = Metric::counter("basin.jobs.republished", "{message}", "Jobs taken back to be published again");
pub static DEAD_LETTERS: Metric = Metric::counter("basin.dead.letters", "{message}", "Messages that were given up");

/// Attribute `basin.place`: `store` or `broker`. 0 while it is there.
pub static OUTAGE: Metric =
    Metric::gauge("basin.outage.time", "s", "How long the coordinator has waited for the store or the broker");

pub static ALL: [&Metric; 16] = [
    &IMAGES,
    &RUN_IMAGES,
    &RUN_PROGRESS,
    &CLASS_IMAGES,
    &CLASS_LOSS,
    &CLASS_L1,
    &CLASS_LPIPS,
    &CLASS_LPIPS_ERROR,
    &QUEUE_DEPTH,
    &QUEUE_AGE,
    &WORKERS,
    &BACKLOG,
    &PUBLISHED,
    &REPUBLISHED,
    &DEAD_LETTERS,
    &OUTAGE,
];

pub(crate) fn settled(failed: Option<&str>) {
    match failed {
        None => IMAGES.record(1.0, &[("basin.outcome", "succeeded")]),
        Some(reason) => {
            // The message may name any reason.
            let reason = FailureReason::named(reason).map_or("other", |reason| reason.as_str());
            IMAGES.record(1.0, &[("basin.outcome", "failed"), ("basin.reason", reason)]);
        }
    }
}

/// The state of the fleet at a moment.
#[derive(Debug, Default)]
pub struct Standing {
    pub runs: Vec<RunStatus>,
    pub workers: usize,
    pub backlog: usize,
    /// Seconds since the oldest job that no worker has started was published.
    pub age: f64,
    /// Unix time, in seconds.
    pub now: f64,
}

#[derive(Default)]
struct Seen {
    /// `None`: this coordinator does not act.
    standing: Option<Arc<Standing>>,
    /// Finished images, and the time of the last one, by run.
    progress: HashMap<String, (usize, f64)>,
    /// Waiting messages, by queue.
    depths: Vec<(String, usize)>,
    /// Seconds of each outage, by what is away.
    outages: Vec<(&'static str, f64)>,
}

static SEEN: LazyLock<Mutex<Seen>> = LazyLock::new(Mutex::default);

fn seen() -> MutexGuard<'static, Seen> {
    SEEN.lock().expect("no holder of the lock panics")
}

fn standing() -> Option<Arc<Standing>> {
    seen().standing.clone()
}

/// Ends the series of a coordinator that acts no more: another one has them now.
pub(crate) fn forget() {
    seen().forget();
}

pub(crate) fn observe(standing: Standing) {
    seen().see(standing);
}

impl Seen {
    fn see(&mut self, mut standing: Standing) {
        self.progress.retain(|name, _| standing.runs.iter().any(|run| run.name == *name));
        for run in &standing.runs {
            let settled = run.succeeded + run.failed;
            let progress = self.progress.entry(run.name.clone()).or_insert((settled, standing.now));
            if progress.0 != settled {
                *progress = (settled, standing.now);
            }
        }
        let last = |run: &RunStatus| self.progress.get(&run.name).map_or(0.0, |(_, since)| *since);
        standing.runs.sort_by(|a, b| is_active(b).cmp(&is_active(a)).then(last(b).total_cmp(&last(a))));
        standing.runs.truncate(RUNS);
        self.standing = Some(Arc::new(standing));
    }

    /// Outages are seen by a standby, too.
    fn forget(&mut self) {
        *self = Seen { outages: std::mem::take(&mut self.outages), ..Seen::default() };
    }

    /// Times at which running runs finished an image last.
    fn progress(&self) -> Vec<(String, f64)> {
        let runs = self.standing.iter().flat_map(|standing| &standing.runs).filter(|run| is_active(run));
        runs.filter_map(|run| Some((run.name.clone(), self.progress.get(&run.name)?.1))).collect()
    }
}

/// `depths`: waiting messages, by queue.
pub(crate) fn observe_depths(depths: Vec<(String, usize)>) {
    seen().depths = depths;
}

pub(crate) fn observe_outages(outages: Vec<(&'static str, f64)>) {
    seen().outages = outages;
}

fn is_active(run: &RunStatus) -> bool {
    run.state == RunState::Running && run.started + run.queued + run.waiting > 0
}

/// Sends the last values from now on, whenever metrics are sent.
pub(crate) fn watch() {
    WORKERS.observe(|see| standing().iter().for_each(|now| see(now.workers as f64, &[])));
    BACKLOG.observe(|see| standing().iter().for_each(|now| see(now.backlog as f64, &[])));
    QUEUE_AGE.observe(|see| standing().iter().for_each(|now| see(now.age, &[])));
    OUTAGE.observe(|see| {
        let outages = seen().outages.clone();
        outages.iter().for_each(|(what, seconds)| see(*seconds, &[("basin.place", what)]));
    });
    QUEUE_DEPTH.observe(|see| {
        let depths = seen().depths.clone();
        depths.iter().for_each(|(queue, depth)| see(*depth as f64, &[("messaging.destination.name", queue)]));
    });
    RUN_IMAGES.observe(|see| {
        for run in standing().iter().flat_map(|now| &now.runs) {
            let states = [
                ("succeeded", run.skipped + run.succeeded),
                ("failed", run.failed),
                ("started", run.started),
                ("queued", run.queued),
                ("waiting", run.waiting),
            ];
            for (state, images) in states {
                see(images as f64, &[("basin.run", &run.name), ("basin.state", state)]);
            }
        }
    });
    RUN_PROGRESS.observe(|see| {
        let times = seen().progress();
        times.iter().for_each(|(run, time)| see(*time, &[("basin.run", run)]));
    });
    let by_class = |metric: &'static Metric, value: fn(&ClassStatus) -> Option<f64>| {
        metric.observe(move |see| {
            for run in standing().iter().flat_map(|now| &now.runs) {
                for class in &run.classes {
                    if let Some(value) = value(class) {
                        see(value, &[("basin.run", &run.name), ("basin.class", &class.class)]);
                    }
                }
            }
        });
    };
    by_class(&CLASS_IMAGES, |class| Some(class.images as f64));
    by_class(&CLASS_LOSS, |class| class.loss);
    by_class(&CLASS_L1, |class| class.l1);
    by_class(&CLASS_LPIPS, |class| class.lpips);
    by_class(&CLASS_LPIPS_ERROR, |class| class.lpips_standard_error);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str, state: RunState) -> RunStatus {
        RunStatus { name: name.into(), state, waiting: 1, ..RunStatus::default() }
    }

    #[test]
    fn a_run_stands_still_since_its_last_image_and_only_while_it_is_active() {
        let runs = |succeeded: [usize; 2]| {
            let status = |(name, succeeded)| RunStatus { succeeded, ..run(name, RunState::Running) };
            ["a", "b"].into_iter().zip(succeeded).map(status).collect::<Vec<_>>()
        };
        let mut seen = Seen::default();
        for (now, succeeded) in [(10.0, [0, 0]), (20.0, [0, 1]), (30.0, [0, 1])] {
            seen.see(Standing { runs: runs(succeeded), now, ..Standing::default() });
        }
        assert_eq!(seen.progress(), [("b".to_owned(), 20.0), ("a".to_owned(), 10.0)]);
        let mut over = runs([0, 1]);
        over[0].state = RunState::Finished;
        seen.see(Standing { runs: over, now: 40.0, ..Standing::default() });
        assert_eq!(seen.progress(), [("b".to_owned(), 20.0)]);
    }

    #[test]
    fn who_gives_up_the_lead_shows_nothing_of_the_fleet_any_more() {
        let mut seen = Seen { depths: vec![("basin.jobs".into(), 7)], outages: vec![("store", 31.0)], ..Seen::default() };
        seen.see(Standing { runs: vec![run("a", RunState::Running)], workers: 5, ..Standing::default() });
        assert!(seen.standing.is_some() && !seen.progress().is_empty());
        seen.forget();
        assert!(seen.standing.is_none() && seen.progress().is_empty() && seen.depths.is_empty());
        assert_eq!(seen.outages, [("store", 31.0)]);
    }

    #[test]
    fn of_many_runs_those_that_go_on_and_changed_last_are_shown() {
        let mut seen = Seen::default();
        let old: Vec<RunStatus> = (0..2 * RUNS).map(|i| run(&i.to_string(), RunState::Finished)).collect();
        seen.see(Standing { runs: old.clone(), now: 1.0, ..Standing::default() });
        let runs = [old, vec![run("1000", RunState::Running)]].concat();
        let runs = runs.into_iter().map(|r| RunStatus { failed: usize::from(r.name == "7"), ..r }).collect();
        seen.see(Standing { runs, now: 2.0, ..Standing::default() });
        let shown = seen.standing.expect("it was seen");
        let shown: Vec<&str> = shown.runs.iter().map(|run| run.name.as_str()).collect();
        assert_eq!((&shown[..2], shown.len()), (&["1000", "7"][..], RUNS));
    }
}
