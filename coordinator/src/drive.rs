//! Keeps a window of jobs on the queue and takes in events and dead letters (*io*). [`Fleet`] decides.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::{FutureExt, StreamExt, stream};
use proto::keys::Marker;
use proto::{Alive, CrashPoint, Event, Failure, FailureReason, Job, What, chain, hex_sha256, keys};
use queue::{Channel, Consumer, DeadLetter, Delivery, Parcel, Queue};
use results::RunError;
use store::{Runs, Store};
use telemetry::trace::{self, Message};
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::{Instrument, Span};

use crate::Error;
use crate::fleet::{Fleet, Silent};
use crate::metrics::{self, Standing};
use client::api::RunStatus;
use results::run::{self, write_failure};

/// Most jobs that are published and not finished. The queue is not the plan: a lost queue costs nothing.
pub const WINDOW: usize = 1000;
/// Jobs published at a time.
const PUBLISH: usize = 256;
/// Most events taken in before the window is filled again.
const TAKE: usize = PUBLISH;
/// How often the store is checked for silent jobs.
const CHECK_EVERY: Duration = Duration::from_secs(10);
/// Seconds without an event after which a job is silent.
const SILENT: f64 = 30.0;
/// Reads of the store at a time.
const READS: usize = 32;
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
            _depths: depths,
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

    pub async fn top_up(&mut self) -> Result<(), Error> {
        loop {
            let now = self.now();
            let jobs: Vec<Job> = std::iter::from_fn(|| self.fleet.next(now)).take(PUBLISH).collect();
            if jobs.is_empty() {
                return Ok(());
            }
            let begin = |job: &Job| {
                let id = job.id().to_string();
                let span = trace::publish(None, &self.message(Channel::Jobs, &id, &job.run, &job.image));
                (Parcel { payload: job.encode(), context: trace::context(&span) }, (id, span))
            };
            let (parcels, begun): (Vec<Parcel>, Vec<(String, Span)>) = jobs.iter().map(begin).unzip();
            self.queue.publish_all(Channel::Jobs, parcels).await?;
            metrics::PUBLISHED.record(begun.len() as f64, &[]);
            if telemetry::measures() {
                self.published.extend(begun.into_iter().map(|(id, _)| (id, Instant::now())));
            }
            CrashPoint::JobsPublished.pass();
        }
    }

    /// Waits for the next thing that happens. Loses nothing when dropped.
    pub async fn wait(&mut self) -> Result<Happening, Error> {
        Ok(tokio::select! {
            event = self.events.next() => Happening::Event(event?),
            letter = self.dead_letters.next() => Happening::DeadLetter(letter?),
            _ = self.check.tick() => Happening::Check,
            _ = self.measure.tick(), if telemetry::measures() => Happening::Measure,
        })
    }

    /// `false`: the queue was closed.
    pub async fn take(&mut self, happening: Happening) -> Result<bool, Error> {
        match happening {
            Happening::Event(Some(delivery)) => return self.take_events(delivery).await,
            Happening::DeadLetter(Some(delivery)) => self.bury(delivery).await?,
            Happening::Event(None) | Happening::DeadLetter(None) => return Ok(false),
            Happening::Check => self.look_for_silent().await?,
            Happening::Measure => self.measure(),
        }
        Ok(true)
    }

    /// Takes in an event and those that wait behind it: the jobs that they make room for are then published together. `false`: the
    /// queue was closed.
    async fn take_events(&mut self, first: Delivery) -> Result<bool, Error> {
        self.take_event(first).await?;
        for _ in 1..TAKE {
            match self.events.next().now_or_never().transpose()? {
                Some(Some(waiting)) => self.take_event(waiting).await?,
                Some(None) => return Ok(false),
                None => break,
            }
        }
        Ok(true)
    }

    async fn take_event(&mut self, delivery: Delivery) -> Result<(), Error> {
        match Event::decode(delivery.payload()) {
            Ok(event) => {
                let message = self.message(Channel::Events, &event.job, &event.run, &event.image);
                // A heartbeat belongs to no trace.
                let traced = !delivery.context().is_empty();
                let span = if traced { trace::process(delivery.context(), &message) } else { Span::none() };
                span.in_scope(|| self.apply(event));
                delivery.ack().instrument(span).await?;
            }
            Err(error) => delivery.reject(&error.to_string()).await?,
        }
        Ok(())
    }

    fn apply(&mut self, event: Event) {
        let now = self.now();
        if let What::Alive(alive) = &event.what {
            if alive.leaving {
                self.heartbeats.remove(&event.worker);
            } else {
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
            What::Released { queued: false } => metrics::REPUBLISHED.record(1.0, &[("reason", "returned")]),
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

    fn message<'a>(&self, channel: Channel, job: &'a str, run: &'a str, image: &'a str) -> Message<'a> {
        Message { system: self.queue.system(), queue: channel.name(), job, run, image }
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

    /// Workers whose heartbeats came lately, in the order of their names.
    pub fn present(&self) -> impl Iterator<Item = (&String, &Heartbeat)> {
        let now = self.now();
        self.heartbeats.iter().filter(move |(_, last)| now - last.heard < GONE)
    }

    /// Writes a failure for a dead letter, unless its worker wrote one or there is a result, and takes in the event that the worker
    /// could not send.
    async fn bury(&mut self, delivery: Delivery) -> Result<(), Error> {
        let Some(letter) = delivery.dead_letter().cloned() else { return Ok(delivery.ack().await?) };
        metrics::DEAD_LETTERS.record(1.0, &[]);
        let job = match Job::decode(delivery.payload()) {
            Ok(job) if letter.channel == Channel::Jobs && keys::check_run(&job.run).is_ok() => job,
            _ => return self.keep_unreadable(delivery, &letter.reason).await,
        };
        let id = job.id().to_string();
        let message = self.message(Channel::DeadLetters, &id, &job.run, &job.image);
        let span = trace::process(delivery.context(), &message);
        self.bury_job(delivery, letter, job).instrument(span).await
    }

    async fn bury_job(&mut self, delivery: Delivery, letter: DeadLetter, job: Job) -> Result<(), Error> {
        // The image was tried again since: the letter is about the try before.
        if self.fleet.generation(&job.run, &job.image).is_some_and(|current| current != job.generation) {
            tracing::info!(run = job.run, image = job.image, generation = job.generation, "a late dead letter is dropped");
            return Ok(delivery.ack().await?);
        }
        let results = self.runs.of(&job.run)?;
        let failure = match marked(&results, &job.image, job.id().as_str(), job.generation).await? {
            Some(marked) => marked.err(),
            None => {
                let message = format!("given up after {} attempts: {}", letter.attempts, letter.reason);
                let failure = Failure::of(&job, FailureReason::Quarantined, message);
                write_failure(&results, &failure).await?;
                Some(failure)
            }
        };
        let failed = |failure: Failure| What::Failed { reason: failure.reason.as_str().into(), message: failure.message };
        let what = failure.map_or_else(What::found, failed);
        self.apply(Event::about(&job, "coordinator", what));
        CrashPoint::DeadLetterTaken.pass();
        delivery.ack().await?;
        Ok(())
    }

    /// A message that cannot be read belongs to no run: it is kept beside the runs, for a person to look at.
    async fn keep_unreadable(&self, delivery: Delivery, reason: &str) -> Result<(), Error> {
        let (Runs::One(place) | Runs::Home(place)) = &self.runs;
        let digest = hex_sha256(delivery.payload());
        tracing::warn!(reason, digest, "a message on the queue cannot be read; it is kept in unreadable/");
        place.put(&format!("unreadable/{}", &digest[..16]), delivery.payload().to_vec()).await?;
        place.put(&format!("unreadable/{}.txt", &digest[..16]), reason.as_bytes().to_vec()).await?;
        delivery.ack().await?;
        Ok(())
    }

    /// Reads the outcomes of silent jobs from the store, so that a lost event loses nothing, and publishes jobs again that the queue
    /// lost.
    async fn look_for_silent(&mut self) -> Result<(), Error> {
        let now = self.now();
        let silent = self.fleet.silent(now - SILENT);
        if silent.is_empty() {
            return Ok(());
        }
        let empty = self.queue.depth(Channel::Jobs).await? == 0;
        // While the queue is not empty, jobs that no worker has started are on it.
        let (asked, waiting): (Vec<Silent>, Vec<Silent>) = silent.into_iter().partition(|s| s.worker.is_some() || empty);
        waiting.iter().for_each(|s| self.fleet.hear(&s.run, &s.job, now));
        let runs = &self.runs;
        let asks = asked.iter().map(async |s| marked(&runs.of(&s.run)?, &s.image, &s.job, s.generation).await);
        let markers: Vec<Result<Option<Marked>, Error>> = stream::iter(asks).buffered(READS).collect().await;
        for (silent, marker) in asked.iter().zip(markers) {
            let Silent { run, job, image, worker, .. } = silent;
            let present = worker.as_ref().is_some_and(|w| self.present().any(|(name, _)| name == w));
            match marker? {
                Some(marked) => {
                    let failure = marked.err();
                    metrics::settled(failure.as_ref().map(|failure| failure.reason.as_str()));
                    self.published.remove(job);
                    self.fleet.settle(silent, failure, now);
                }
                None if present || !empty => self.fleet.hear(run, job, now),
                None => {
                    tracing::warn!(run, image, "the job is neither on the queue nor with a worker; it is published again");
                    metrics::REPUBLISHED.record(1.0, &[("reason", "lost")]);
                    self.published.remove(job);
                    self.fleet.take_back(run, job);
                }
            }
        }
        Ok(())
    }

    /// Takes all waiting jobs off the queue, so that the window can be filled in another order.
    pub async fn withdraw(&mut self) -> Result<(), Error> {
        self.queue.purge(Channel::Jobs).await?;
        self.fleet.withdraw();
        self.published.clear();
        Ok(())
    }
}

/// Measures the depths of the queues at intervals, until the broker is gone.
async fn watch_depths(queue: Queue) {
    loop {
        let mut depths = [0; 3];
        for (depth, channel) in depths.iter_mut().zip(Channel::ALL) {
            // The driver meets the same error and ends the service.
            let Ok(found) = queue.depth(channel).await else { return };
            *depth = found;
        }
        metrics::observe_depths(depths);
        tokio::time::sleep(MEASURE_EVERY).await;
    }
}

/// What the commit marker of an image says: it has a result, or this failure.
type Marked = Result<(), Failure>;

/// A failure of another generation does not count, nor does a late result of another job.
async fn marked(results: &Store, image: &str, job: &str, generation: u64) -> Result<Option<Marked>, Error> {
    if run::has_result(results, image, job, generation).await? {
        return Ok(Some(Ok(())));
    }
    match run::read_json::<Failure>(results, &keys::marker(image, Marker::Failure)).await {
        Ok(failure) if failure.generation != generation => Ok(None),
        Ok(failure) => Ok(Some(Err(failure))),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error @ RunError::Damaged { .. }) => {
            Ok(Some(Err(Failure::without_job(image, FailureReason::BadJob, chain(&error), None))))
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::tests::fleet;
    use crate::ledger::tests::{event, planned, succeeded};
    use crate::plan::Plan;
    use crate::plan::tests::spec;
    use crate::tally::Tally;
    use proto::Control;

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
            driver.take(Happening::DeadLetter(letter)).await.expect("the store is there");
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

    #[tokio::test]
    async fn events_that_wait_are_taken_in_together() {
        let dir = tempfile::tempdir().expect("a folder");
        let results = Store::open(&dir.path().to_string_lossy()).await.expect("a store");
        let queue = Queue::open("embedded:").await.expect("a queue");
        let mut driver = Driver::new(queue.clone(), Runs::One(results), 100).await.expect("a driver");
        driver.fleet = fleet(100, &[("r", 10, 0)]);
        driver.top_up().await.expect("the jobs are published");
        for job in driver.fleet.silent(f64::INFINITY) {
            queue.publish(Channel::Events, event("r", &job.job, succeeded()).encode()).await.expect("the event is published");
        }
        let first = loop {
            match driver.wait().await.expect("the queue is there") {
                first @ Happening::Event(_) => break first,
                other => assert!(driver.take(other).await.expect("the store is there")),
            }
        };
        assert!(driver.take(first).await.expect("all are taken in") && driver.fleet.settled("r"));
    }
}
