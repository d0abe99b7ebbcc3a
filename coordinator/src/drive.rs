//! Keeps a window of jobs on the queue and takes in events and dead letters (*io*). [`Fleet`] decides.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;
use proto::{Alive, CrashPoint, Event, Job, What, chain, job_number, keys};
use queue::{Channel, Consumer, Delivery, Parcel, Queue};
use store::Runs;
use telemetry::trace::{self, Message};
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::{Instrument, Span};

use crate::Error;
use crate::beside::{self, Begun, Done, Looked, Outgoing};
use crate::budget;
use crate::fleet::Fleet;
use crate::metrics::{self, Standing};
use crate::silence::{CHECK_EVERY, Listed, SILENT};
use client::api::RunStatus;

/// Most jobs that are published and not finished. The queue is not the plan: a lost queue costs nothing.
pub const WINDOW: usize = 1000;
/// Jobs published at a time.
const PUBLISH: usize = 256;
/// Most events taken in before the window is filled again.
const TAKE: usize = PUBLISH;
/// Seconds without a heartbeat after which a worker is gone.
const GONE: f64 = 60.0;
/// How often the gauges are updated.
const MEASURE_EVERY: Duration = Duration::from_secs(5);
/// Events by which a listener may lag behind.
const LAG: usize = 1024;

/// The last heartbeat of a worker.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    pub alive: Alive,
    /// When it came, in seconds of [`Driver::now`].
    pub heard: f64,
}

/// What a driver waits for.
pub enum Happening {
    /// `None`: the queue was closed.
    Event(Option<Delivery>),
    /// `None`: the queue was closed.
    DeadLetter(Option<Delivery>),
    /// Time to check the store for silent jobs.
    Check,
    /// Time to update the gauges.
    Measure,
    /// Something was done beside the loop.
    Done(Result<Done, Error>),
}

pub struct Driver {
    pub fleet: Fleet,
    queue: Queue,
    runs: Runs,
    clock: Instant,
    events: Consumer,
    dead_letters: Consumer,
    check: Interval,
    measure: Interval,
    /// When jobs that no worker has started were published; empty without metrics.
    published: HashMap<String, Instant>,
    /// Measures the depths of the queues.
    _depths: JoinSet<()>,
    /// Work that waits for store or broker.
    beside: JoinSet<Result<Done, Error>>,
    /// Acknowledgements, whose ends need no turn of the loop.
    acks: JoinSet<Result<(), queue::Error>>,
    outbox: VecDeque<Outgoing>,
    /// Something of the outbox is being sent.
    sending: bool,
    /// The store is being asked for silent jobs.
    looking: bool,
    /// When a standby said last that it reaches the store.
    standby_heard: Option<f64>,
    /// By name of the worker.
    heartbeats: BTreeMap<String, Heartbeat>,
    listeners: broadcast::Sender<Event>,
}

impl Driver {
    /// Starts to consume events; publishes nothing yet.
    pub async fn new(queue: Queue, runs: Runs, window: usize) -> Result<Driver, Error> {
        let every = |period| {
            let mut interval = interval(period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        };
        let mut depths = JoinSet::new();
        if telemetry::measures() {
            metrics::watch();
            // Beside the loop: a broker that counts slowly must not hold it up.
            depths.spawn(watch_depths(queue.clone()));
        }
        Ok(Driver {
            fleet: Fleet::new(window),
            events: queue.consume(Channel::Events, 256).await?,
            dead_letters: queue.consume(Channel::DeadLetters, 16).await?,
            queue,
            runs,
            clock: Instant::now(),
            check: every(CHECK_EVERY),
            measure: every(MEASURE_EVERY),
            published: HashMap::new(),
            standby_heard: None,
            _depths: depths,
            beside: JoinSet::new(),
            acks: JoinSet::new(),
            outbox: VecDeque::new(),
            sending: false,
            looking: false,
            heartbeats: BTreeMap::new(),
            listeners: broadcast::channel(LAG).0,
        })
    }

    pub fn listen(&self) -> broadcast::Receiver<Event> {
        self.listeners.subscribe()
    }

    /// Seconds since the start.
    pub fn now(&self) -> f64 {
        self.clock.elapsed().as_secs_f64()
    }

    /// Has the next jobs published, unless some are being published already.
    pub fn top_up(&mut self) {
        if self.sending || !self.outbox.is_empty() {
            return;
        }
        let now = self.now();
        let jobs: Vec<Job> = std::iter::from_fn(|| self.fleet.next(now)).take(PUBLISH).collect();
        if jobs.is_empty() {
            return;
        }
        let begin = |job: &Job| {
            let id = job.id().to_string();
            let span = trace::publish(None, &self.message(Channel::Jobs, &id, &job.run, &job.image));
            let parcel = Parcel { payload: job.encode(), context: trace::context(&span) };
            (parcel, Begun { run: job.run.clone(), job: id, span })
        };
        let (parcels, begun): (_, Vec<Begun>) = jobs.iter().map(begin).unzip();
        if telemetry::measures() {
            self.published.extend(begun.iter().map(|begun| (begun.job.clone(), Instant::now())));
        }
        self.send(Outgoing::Jobs(parcels, begun));
    }

    fn send(&mut self, outgoing: Outgoing) {
        self.outbox.push_back(outgoing);
        self.send_next();
    }

    fn send_next(&mut self) {
        if self.sending {
            return;
        }
        if let Some(outgoing) = self.outbox.pop_front() {
            self.sending = true;
            self.beside.spawn(beside::send(self.queue.clone(), outgoing));
        }
    }

    /// Takes in what was done beside the loop.
    fn done(&mut self, done: Done) {
        match done {
            Done::Sent(begun) => {
                self.sending = false;
                metrics::PUBLISHED.record(begun.len() as f64, &[]);
                // The broker may have been away for a while.
                let now = self.now();
                begun.iter().for_each(|begun| self.fleet.hear(&begun.run, &begun.job, now));
                CrashPoint::JobsPublished.pass();
                self.send_next();
            }
            Done::Purged => {
                self.sending = false;
                self.send_next();
            }
            Done::Buried(event, delivery) => {
                self.apply(*event);
                CrashPoint::DeadLetterTaken.pass();
                self.acknowledge(delivery, Span::none());
            }
            Done::Kept(delivery) => self.acknowledge(delivery, Span::none()),
            Done::Looked(looked) => self.looked(looked),
        }
    }

    fn acknowledge(&mut self, delivery: Delivery, span: Span) {
        self.acks.spawn(delivery.ack().instrument(span));
    }

    /// Waits for the next thing that happens. Loses nothing when dropped.
    pub async fn wait(&mut self) -> Result<Happening, Error> {
        Ok(tokio::select! {
            event = self.events.next() => Happening::Event(event?),
            letter = self.dead_letters.next() => Happening::DeadLetter(letter?),
            _ = self.check.tick() => Happening::Check,
            _ = self.measure.tick(), if telemetry::measures() => Happening::Measure,
            Some(done) = self.beside.join_next() => Happening::Done(done.expect("work beside the loop does not panic")),
        })
    }

    /// `false`: the queue was closed.
    pub fn take(&mut self, happening: Happening) -> Result<bool, Error> {
        while let Some(acknowledged) = self.acks.try_join_next() {
            acknowledged.expect("acknowledging does not panic")?;
        }
        match happening {
            Happening::Event(Some(delivery)) => return self.take_events(delivery),
            Happening::DeadLetter(Some(delivery)) => self.bury(delivery),
            Happening::Event(None) | Happening::DeadLetter(None) => return Ok(false),
            Happening::Check => self.look_for_silent(),
            Happening::Measure => self.measure(),
            Happening::Done(done) => self.done(done?),
        }
        Ok(true)
    }

    /// Takes in an event and those that wait behind it: the jobs that they make room for are then published together. `false`: the
    /// queue was closed.
    fn take_events(&mut self, first: Delivery) -> Result<bool, Error> {
        self.take_event(first);
        for _ in 1..TAKE {
            match self.events.next().now_or_never().transpose()? {
                Some(Some(waiting)) => self.take_event(waiting),
                Some(None) => return Ok(false),
                None => break,
            }
        }
        Ok(true)
    }

    fn take_event(&mut self, delivery: Delivery) {
        match Event::decode(delivery.payload()) {
            Ok(event) => {
                let message = self.message(Channel::Events, &event.job, &event.run, &event.image);
                // A heartbeat belongs to no trace.
                let traced = !delivery.context().is_empty();
                let span = if traced { trace::process(delivery.context(), &message) } else { Span::none() };
                span.in_scope(|| self.apply(event));
                self.acknowledge(delivery, span);
            }
            Err(error) => {
                let reason = error.to_string();
                self.acks.spawn(async move { delivery.reject(&reason).await });
            }
        }
    }

    fn apply(&mut self, event: Event) {
        let now = self.now();
        if event.what == What::Standby {
            self.standby_heard = Some(now);
            return;
        }
        if let What::Alive(alive) = &event.what {
            if alive.leaving {
                if let Some(reason) = &alive.reason {
                    tracing::warn!(worker = event.worker, reason, "a worker leaves because of a fault");
                }
                self.heartbeats.remove(&event.worker);
            } else {
                let before = self.heartbeats.get(&event.worker).map(|last| last.heard);
                // A worker that waits names its last run.
                if alive.images > 0 {
                    self.fleet.spend(&alive.run, budget::added(before, now));
                }
                self.heartbeats.insert(event.worker.clone(), Heartbeat { alive: alive.clone(), heard: now });
            }
        }
        let settled = self.fleet.apply(&event, now);
        match &event.what {
            What::Released { queued: true } if telemetry::measures() => {
                self.published.entry(event.job.clone()).or_insert_with(Instant::now);
            }
            _ => drop(self.published.remove(&event.job)),
        }
        match &event.what {
            What::Failed { reason, .. } if settled => metrics::settled(Some(reason)),
            What::Released { queued: false } => metrics::REPUBLISHED.record(1.0, &[("basin.reason", "returned")]),
            _ if settled => metrics::settled(None),
            _ => {}
        }
        if settled && telemetry::measures() && self.fleet.settled(&event.run) {
            // The run has ended: its gauges stay as they are now.
            self.measure();
        }
        if !matches!(event.what, What::Alive(_)) {
            CrashPoint::EventTaken.pass();
        }
        // There may be no listener.
        let _ = self.listeners.send(event);
    }

    pub fn status(&self, run: &str) -> Option<RunStatus> {
        self.fleet.status(run, self.now())
    }

    fn message<'a>(&'a self, channel: Channel, job: &'a str, run: &'a str, image: &'a str) -> Message<'a> {
        Message { destination: self.queue.destination(channel), job, run, image }
    }

    fn measure(&self) {
        let oldest = self.published.values().min();
        metrics::observe(Standing {
            runs: self.fleet.names().filter_map(|name| self.status(name)).collect(),
            workers: self.present().count(),
            backlog: self.fleet.backlog(),
            age: oldest.map_or(0.0, |when| when.elapsed().as_secs_f64()),
            now: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
        });
    }

    /// Whether a standby has said within the last `seconds` that it reaches the store.
    pub fn hears_standby(&self, seconds: f64) -> bool {
        self.standby_heard.is_some_and(|heard| self.now() - heard < seconds)
    }

    /// Workers whose heartbeats came lately, in the order of their names.
    pub fn present(&self) -> impl Iterator<Item = (&String, &Heartbeat)> {
        let now = self.now();
        self.heartbeats.iter().filter(move |(_, last)| now - last.heard < GONE)
    }

    /// Whether a worker is there and may hold a job that is silent since `before`. What it listed earlier says nothing.
    fn may_hold(&self, worker: &str, job: &str, before: f64) -> bool {
        let last = self.heartbeats.get(worker).filter(|last| self.now() - last.heard < GONE);
        last.is_some_and(|last| last.heard < before || last.alive.may_hold(job_number(job)))
    }

    /// Has the end of a dead letter recorded, with the event that its worker could not send.
    fn bury(&mut self, delivery: Delivery) {
        let Some(letter) = delivery.dead_letter().cloned() else { return self.acknowledge(delivery, Span::none()) };
        metrics::DEAD_LETTERS.record(1.0, &[]);
        let runs = self.runs.clone();
        match Job::decode(delivery.payload()) {
            // The image was tried again since: the letter is about the try before.
            Ok(job) if self.fleet.generation(&job.run, &job.image).is_some_and(|current| current != job.generation) => {
                tracing::info!(run = job.run, image = job.image, generation = job.generation, "a late dead letter is dropped");
                self.acknowledge(delivery, Span::none());
            }
            Ok(job) if letter.channel == Channel::Jobs && keys::check_run(&job.run).is_ok() => {
                let id = job.id().to_string();
                let message = self.message(Channel::DeadLetters, &id, &job.run, &job.image);
                let span = trace::process(delivery.context(), &message);
                self.beside.spawn(beside::bury(runs, delivery, letter, job).instrument(span));
            }
            _ => drop(self.beside.spawn(beside::keep_unreadable(runs, delivery, letter.reason))),
        }
    }

    /// Asks the store for the outcomes of silent jobs that no living worker lists, so that a lost event loses nothing.
    fn look_for_silent(&mut self) {
        if self.looking {
            return;
        }
        let (now, before) = (self.now(), self.now() - SILENT);
        self.heartbeats.retain(|_, last| now - last.heard < GONE);
        let listed = Listed::by(self.present().map(|(_, last)| (&last.alive, last.heard)));
        self.fleet.hear_listed(&listed);
        let silent = self.fleet.silent(before);
        if silent.is_empty() {
            return;
        }
        self.looking = true;
        self.beside.spawn(beside::look(self.queue.clone(), self.runs.clone(), silent, before));
    }

    /// Takes in what queue and store say about silent jobs. Those that the queue lost are published again.
    fn looked(&mut self, Looked { before, empty, waiting, asked }: Looked) {
        self.looking = false;
        let now = self.now();
        waiting.iter().for_each(|s| self.fleet.hear(&s.run, &s.job, now));
        for (silent, marker) in asked {
            let (run, job) = (&silent.run, &silent.job);
            let held = silent.worker.as_ref().is_some_and(|worker| self.may_hold(worker, job, before));
            match marker {
                Ok(Some(marked)) => {
                    let failure = marked.err();
                    let reason = failure.as_ref().map(|failure| failure.reason);
                    self.published.remove(job);
                    if self.fleet.settle(&silent, failure, now) {
                        metrics::settled(reason.map(|reason| reason.as_str()));
                    }
                }
                Ok(None) if held || !empty => self.fleet.hear(run, job, now),
                // An event may have come since the store was asked.
                Ok(None) if !self.fleet.is_silent(&silent, before) => {}
                Ok(None) => {
                    tracing::warn!(
                        run,
                        image = silent.image,
                        "the job is neither on the queue nor with a worker; it is published again"
                    );
                    metrics::REPUBLISHED.record(1.0, &[("basin.reason", "lost")]);
                    self.published.remove(job);
                    self.fleet.take_back(run, job);
                }
                // While the store is away nothing is known, and nothing is published again.
                Err(error) => {
                    self.fleet.hear(run, job, now);
                    tracing::debug!(run, error = chain(&error), "the store cannot be asked for a silent job");
                }
            }
        }
    }

    /// Takes all waiting jobs off the queue, so that the window can be filled in another order.
    pub fn withdraw(&mut self) {
        self.fleet.withdraw();
        self.published.clear();
        self.send(Outgoing::Purge);
    }
}

/// Measures the depths of the queues at intervals, until the broker is gone.
async fn watch_depths(queue: Queue) {
    let names = Channel::ALL.map(|channel| queue.destination(channel).name.clone());
    loop {
        let mut depths = [0; 3];
        for (depth, channel) in depths.iter_mut().zip(Channel::ALL) {
            // The driver meets the same error and ends the service.
            let Ok(found) = queue.depth(channel).await else { return };
            *depth = found;
        }
        metrics::observe_depths(names.iter().cloned().zip(depths).collect());
        tokio::time::sleep(MEASURE_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::beside::marked;
    use crate::fleet::tests::fleet;
    use crate::ledger::tests::{event, planned, succeeded};
    use crate::plan::Plan;
    use crate::plan::tests::spec;
    use crate::tally::Tally;
    use proto::keys::Marker;
    use proto::{Control, Failure, FailureReason};
    use results::run::write_failure;
    use store::Store;

    #[tokio::test]
    async fn a_worker_that_waits_costs_its_last_run_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        let results = Store::open(&dir.path().to_string_lossy()).await.expect("a store");
        let queue = Queue::open("embedded:").await.expect("a queue");
        let mut driver = Driver::new(queue, Runs::One(results), 100).await.expect("a driver");
        driver.fleet.add(spec("r"), Plan::default(), Control::default(), Tally::default());
        for (images, costs) in [(0, false), (0, false), (1, true)] {
            let alive = proto::Alive { run: "r".into(), images, ..proto::Alive::default() };
            driver.apply(event("r", "", What::Alive(alive)));
            assert_eq!(driver.fleet.worker_seconds("r") > 0.0, costs, "{images} images");
        }
    }

    /// The letter of a job that was tried again since, and a failure that was written late.
    #[tokio::test]
    async fn what_is_left_of_an_earlier_try_fails_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        let results = Store::open(&dir.path().to_string_lossy()).await.expect("a store");
        let queue = Queue::open("embedded:").await.expect("a queue");
        let mut driver = Driver::new(queue.clone(), Runs::One(results.clone()), 100).await.expect("a driver");
        driver.fleet = Fleet::new(100);
        let plan = Plan { images: vec![planned("0.png")], generations: [("0.png".to_owned(), 1)].into(), ..Plan::default() };
        driver.fleet.add(spec("r"), plan, Control::default(), Tally::default());
        let current = driver.fleet.next(0.0).expect("a job");
        let mut jobs = queue.consume(Channel::Jobs, 1).await.expect("a consumer");
        for generation in [0, 1] {
            let job = Job { generation, ..current.clone() };
            queue.publish(Channel::Jobs, job.encode()).await.expect("published");
            jobs.next().await.expect("the queue is there").expect("the job").reject("no more").await.expect("rejected");
            let letter = driver.dead_letters.next().await.expect("the queue is there");
            driver.take(Happening::DeadLetter(letter)).expect("the queue is there");
            while generation == 1 && !driver.fleet.settled("r") {
                let next = driver.wait().await.expect("the queue is there");
                driver.take(next).expect("the queue is there");
            }
            let failed = results.exists(&keys::marker("0.png", Marker::Failure)).await.expect("readable");
            assert_eq!((failed, driver.fleet.settled("r")), (generation == 1, generation == 1));
        }
        // The failure of the last try stays, and one of the first counts for nothing.
        let late = Failure::of(&Job { generation: 0, ..current.clone() }, FailureReason::Diverged, "late".into());
        write_failure(&results, &late).await.expect("writable");
        let (results, id) = (&results, current.id());
        let there = async |generation| marked(results, "0.png", id.as_str(), generation).await;
        assert!(matches!(there(1).await, Ok(Some(Err(failure))) if failure.reason == FailureReason::Quarantined));
        assert!(matches!(there(2).await, Ok(None)));
    }

    /// Its worker took it and lost it, with the event that would say so.
    #[tokio::test]
    async fn a_silent_job_is_published_again_only_if_its_living_worker_does_not_list_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let results = Store::open(&dir.path().to_string_lossy()).await.expect("a store");
        let queue = Queue::open("embedded:").await.expect("a queue");
        let mut driver = Driver::new(queue, Runs::One(results), 100).await.expect("a driver");
        driver.fleet = fleet(100, &[("r", 1, 0)]);
        let job = driver.fleet.next(0.0).expect("a job");
        driver.fleet.apply(&Event::about(&job, "w", What::Started), 0.0);
        driver.clock -= Duration::from_secs_f64(2.0 * SILENT);
        for (alive, lost) in [
            (Alive::default().holding([job.id().number()]), false),
            (Alive::default(), false),
            (Alive::default().holding([]), true),
        ] {
            let old = !alive.lists_jobs;
            driver.apply(Event::alive("w", alive));
            driver.look_for_silent();
            assert_eq!(driver.looking, old || lost, "a listed job costs no request");
            if driver.looking {
                let looked = driver.beside.join_next().await.expect("it asks").expect("no panic");
                driver.take(Happening::Done(looked)).expect("the queue is there");
            }
            assert_eq!(driver.fleet.next(driver.now()).is_some(), lost);
            driver.clock -= Duration::from_secs_f64(2.0 * SILENT);
        }
    }

    #[tokio::test]
    async fn events_that_wait_are_taken_in_together() {
        let dir = tempfile::tempdir().expect("a folder");
        let results = Store::open(&dir.path().to_string_lossy()).await.expect("a store");
        let queue = Queue::open("embedded:").await.expect("a queue");
        let mut driver = Driver::new(queue.clone(), Runs::One(results), 100).await.expect("a driver");
        driver.fleet = fleet(100, &[("r", 10, 0)]);
        driver.top_up();
        for job in driver.fleet.silent(f64::INFINITY) {
            queue.publish(Channel::Events, event("r", &job.job, succeeded()).encode()).await.expect("the event is published");
        }
        let first = loop {
            match driver.wait().await.expect("the queue is there") {
                first @ Happening::Event(_) => break first,
                other => assert!(driver.take(other).expect("the store is there")),
            }
        };
        assert!(driver.take(first).expect("all are taken in") && driver.fleet.settled("r"));
    }
}
