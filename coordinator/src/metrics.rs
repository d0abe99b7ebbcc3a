//! The metrics of a coordinator: every name, once; and what gauges show, as it was seen last.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use proto::{FailureReason, RunState};
use queue::Channel;
use telemetry::Metric;

use crate::fleet::{ClassStatus, RunStatus};

/// Runs whose gauges are shown, at most: those that go on, and then those that changed last.
const RUNS: usize = 32;

/// Attributes `outcome`: `succeeded` or `failed`, and then `reason`.
pub static IMAGES: Metric = Metric::counter("basin.images", "{image}", "Images settled");
/// Attributes `run` and `state`: `succeeded`, `failed`, `started`, `queued` or `waiting`.
pub static RUN_IMAGES: Metric = Metric::gauge("basin.run.images", "{image}", "Images of a run by state");
/// Attribute `run`. Only of runs that have something to do: the others do not stand still.
pub static RUN_PROGRESS: Metric =
    Metric::gauge("basin.run.progress.time", "s", "When an image of a running run was settled last, in Unix time");
/// Attributes `run` and `class`, as of all metrics of classes.
pub static CLASS_IMAGES: Metric = Metric::gauge("basin.class.images", "{image}", "Images of a class with a result");
/// Of the best seed.
pub static CLASS_LOSS: Metric = Metric::gauge("basin.class.loss", "1", "Mean training loss of a class");
/// Of the best seed.
pub static CLASS_L1: Metric = Metric::gauge("basin.class.l1", "1", "Mean L1 of a class");
/// Of the best seed.
pub static CLASS_LPIPS: Metric = Metric::gauge("basin.class.lpips", "1", "Mean LPIPS of a class");
/// Of that mean.
pub static CLASS_LPIPS_ERROR: Metric =
    Metric::gauge("basin.class.lpips.error", "1", "Standard error of the mean LPIPS of a class");
/// Attribute `messaging.destination.name`: `jobs`, `events` or `dead`.
pub static QUEUE_DEPTH: Metric = Metric::gauge("basin.queue.depth", "{message}", "Messages that wait");
/// 0 if there is none.
pub static QUEUE_AGE: Metric =
    Metric::gauge("basin.queue.age", "s", "Time since the oldest job that no worker has begun was published");
/// Heard of lately.
pub static WORKERS: Metric = Metric::gauge("basin.workers", "{worker}", "Workers");
/// What the number of workers should follow.
pub static BACKLOG: Metric = Metric::gauge("basin.backlog", "{image}", "Images that running runs still have to do");
/// Again, too.
pub static PUBLISHED: Metric = Metric::counter("basin.jobs.published", "{message}", "Jobs published");
/// Attribute `reason`: `lost` on the way, or `returned` by a worker.
pub static REPUBLISHED: Metric = Metric::counter("basin.jobs.republished", "{message}", "Jobs taken back to be published again");
/// Read from the queue.
pub static DEAD_LETTERS: Metric = Metric::counter("basin.dead.letters", "{message}", "Messages that were given up");

/// All of them.
pub static ALL: [&Metric; 15] = [
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
];

/// An image is settled; with the reason, if it failed.
pub(crate) fn settled(failed: Option<&str>) {
    match failed {
        None => IMAGES.record(1.0, &[("outcome", "succeeded")]),
        Some(reason) => {
            // What a message says could be anything.
            let reason = FailureReason::named(reason).map_or("other", |reason| reason.as_str());
            IMAGES.record(1.0, &[("outcome", "failed"), ("reason", reason)]);
        }
    }
}

/// How a fleet stands at a moment.
#[derive(Debug, Default)]
pub struct Standing {
    /// Its runs.
    pub runs: Vec<RunStatus>,
    /// Workers heard of lately.
    pub workers: usize,
    /// Images that running runs still have to do.
    pub backlog: usize,
    /// Seconds since the oldest job that no worker has begun was published.
    pub age: f64,
    /// Unix time, in seconds.
    pub now: f64,
}

#[derive(Default)]
struct Seen {
    standing: Arc<Standing>,
    /// Images settled, and since when so many, by run.
    progress: HashMap<String, (usize, f64)>,
    /// Messages that wait, as [`Channel::ALL`].
    depths: Option<[usize; 3]>,
}

static SEEN: Mutex<Option<Seen>> = Mutex::new(None);

fn seen() -> MutexGuard<'static, Option<Seen>> {
    SEEN.lock().expect("nobody panics with it")
}

fn standing() -> Arc<Standing> {
    seen().as_ref().map(|seen| seen.standing.clone()).unwrap_or_default()
}

/// Remembers how the fleet stands, for the gauges.
pub fn observe(mut standing: Standing) {
    let mut seen = seen();
    let seen = seen.get_or_insert_default();
    seen.progress.retain(|name, _| standing.runs.iter().any(|run| run.name == *name));
    for run in &standing.runs {
        let settled = run.succeeded + run.failed;
        let progress = seen.progress.entry(run.name.clone()).or_insert((settled, standing.now));
        if progress.0 != settled {
            *progress = (settled, standing.now);
        }
    }
    let last = |run: &RunStatus| seen.progress.get(&run.name).map_or(0.0, |(_, since)| *since);
    standing.runs.sort_by(|a, b| goes_on(b).cmp(&goes_on(a)).then(last(b).total_cmp(&last(a))));
    standing.runs.truncate(RUNS);
    seen.standing = Arc::new(standing);
}

/// Remembers how many messages wait, in the order of [`Channel::ALL`].
pub(crate) fn observe_depths(depths: [usize; 3]) {
    seen().get_or_insert_default().depths = Some(depths);
}

fn goes_on(run: &RunStatus) -> bool {
    run.state == RunState::Running && run.started + run.queued + run.waiting > 0
}

/// Begins to tell what was seen last whenever metrics are sent.
pub(crate) fn watch() {
    WORKERS.observe(|see| see(standing().workers as f64, &[]));
    BACKLOG.observe(|see| see(standing().backlog as f64, &[]));
    QUEUE_AGE.observe(|see| see(standing().age, &[]));
    QUEUE_DEPTH.observe(|see| {
        let depths = seen().as_ref().and_then(|seen| seen.depths);
        for (channel, depth) in Channel::ALL.into_iter().zip(depths.into_iter().flatten()) {
            see(depth as f64, &[("messaging.destination.name", channel.name())]);
        }
    });
    RUN_IMAGES.observe(|see| {
        for run in &standing().runs {
            let states = [
                ("succeeded", run.skipped + run.succeeded),
                ("failed", run.failed),
                ("started", run.started),
                ("queued", run.queued),
                ("waiting", run.waiting),
            ];
            for (state, images) in states {
                see(images as f64, &[("run", &run.name), ("state", state)]);
            }
        }
    });
    RUN_PROGRESS.observe(|see| {
        let times: Vec<(String, f64)> = {
            let seen = seen();
            let Some(seen) = seen.as_ref() else { return };
            let of = |run: &RunStatus| Some((run.name.clone(), seen.progress.get(&run.name)?.1));
            seen.standing.runs.iter().filter(|run| goes_on(run)).filter_map(of).collect()
        };
        times.iter().for_each(|(run, time)| see(*time, &[("run", run)]));
    });
    let by_class = |metric: &'static Metric, value: fn(&ClassStatus) -> Option<f64>| {
        metric.observe(move |see| {
            for run in &standing().runs {
                for class in &run.classes {
                    if let Some(value) = value(class) {
                        see(value, &[("run", &run.name), ("class", &class.class)]);
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
