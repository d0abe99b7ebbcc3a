//! Keeps a window of jobs on the queue and takes in what comes back (*io*). What to do is decided by [`Fleet`].

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use proto::keys::Marker;
use proto::{Alive, CrashPoint, Event, Failure, FailureReason, Job, What, hex_sha256, keys};
use queue::{Channel, Consumer, Delivery, Queue};
use store::{Runs, Store};
use tokio::sync::{broadcast, watch};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::fleet::{Fleet, Silent};
use crate::ledger::Settled;
use crate::plan::{Plan, RunSpec};
use crate::run::{Error, write_failure};
use crate::tally::Tally;

/// Jobs that are published and not settled, at most. The queue is not the plan: a lost queue costs nothing.
pub const WINDOW: usize = 1000;
/// Jobs handed to the queue at a time.
const PUBLISH: usize = 256;
/// How often the store is asked for jobs that nothing was heard of.
const CHECK_EVERY: Duration = Duration::from_secs(10);
/// A job counts as silent after this many seconds.
const SILENT: f64 = 30.0;
/// Questions to the store at a time.
const ASK: usize = 32;
/// A worker counts as gone after this many seconds without a sign of life.
const GONE: f64 = 60.0;
/// Events that a slow listener may lag behind.
const LISTEN: usize = 1024;

/// A worker that was heard of.
#[derive(Clone, Debug)]
pub struct Worker {
    /// What it said last.
    pub alive: Alive,
    /// When, in seconds of the driver's clock.
    pub heard: f64,
}

/// What a driver waits for.
pub enum Happening {
    /// A worker says something.
    Event(Delivery),
    /// A message was given up.
    DeadLetter(Delivery),
    /// Time to ask the store.
    Check,
    /// The queue was closed.
    Closed,
}

/// The fleet and its queue.
pub struct Driver {
    /// What is known and decided.
    pub fleet: Fleet,
    queue: Queue,
    runs: Runs,
    clock: Instant,
    events: Consumer,
    dead_letters: Consumer,
    check: Interval,
    /// By name.
    pub workers: HashMap<String, Worker>,
    listeners: broadcast::Sender<Event>,
}

impl Driver {
    /// Starts to consume events; publishes nothing yet.
    pub async fn new(queue: Queue, runs: Runs, window: usize) -> Result<Driver, Error> {
        let mut check = interval(CHECK_EVERY);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Driver {
            fleet: Fleet::new(window),
            events: queue.consume(Channel::Events, 256).await?,
            dead_letters: queue.consume(Channel::DeadLetters, 16).await?,
            queue,
            runs,
            clock: Instant::now(),
            check,
            workers: HashMap::new(),
            listeners: broadcast::channel(LISTEN).0,
        })
    }

    /// Events as they come, for whoever watches.
    pub fn listen(&self) -> broadcast::Sender<Event> {
        self.listeners.clone()
    }

    /// Seconds since the start.
    pub fn now(&self) -> f64 {
        self.clock.elapsed().as_secs_f64()
    }

    /// Fills the window.
    pub async fn top_up(&mut self) -> Result<(), Error> {
        loop {
            let now = self.now();
            let jobs: Vec<Vec<u8>> = std::iter::from_fn(|| self.fleet.next(now)).take(PUBLISH).map(|j| j.encode()).collect();
            if jobs.is_empty() {
                return Ok(());
            }
            self.queue.publish_all(Channel::Jobs, jobs).await?;
            CrashPoint::JobsPublished.pass();
        }
    }

    /// Waits for the next thing that happens. Loses nothing when dropped.
    pub async fn wait(&mut self) -> Result<Happening, Error> {
        Ok(tokio::select! {
            event = self.events.next() => event?.map_or(Happening::Closed, Happening::Event),
            letter = self.dead_letters.next() => letter?.map_or(Happening::Closed, Happening::DeadLetter),
            _ = self.check.tick() => Happening::Check,
        })
    }

    /// Takes in what happened. `false`: the queue was closed.
    pub async fn take(&mut self, happening: Happening) -> Result<bool, Error> {
        match happening {
            Happening::Event(delivery) => self.take_event(delivery).await?,
            Happening::DeadLetter(delivery) => self.bury(delivery).await?,
            Happening::Check => self.look_for_silent().await?,
            Happening::Closed => return Ok(false),
        }
        Ok(true)
    }

    async fn take_event(&mut self, delivery: Delivery) -> Result<(), Error> {
        match Event::decode(delivery.payload()) {
            Ok(event) => {
                self.apply(event);
                delivery.ack().await?;
            }
            Err(error) => delivery.reject(&error.to_string()).await?,
        }
        Ok(())
    }

    fn apply(&mut self, event: Event) {
        let now = self.now();
        if let What::Alive(alive) = &event.what {
            if alive.leaving {
                self.workers.remove(&event.worker);
            } else {
                self.workers.insert(event.worker.clone(), Worker { alive: alive.clone(), heard: now });
            }
        }
        self.fleet.apply(&event, now);
        if !matches!(event.what, What::Alive(_)) {
            CrashPoint::EventTaken.pass();
        }
        // Nobody need listen.
        let _ = self.listeners.send(event);
    }

    /// Workers that were heard of lately.
    pub fn present(&self) -> impl Iterator<Item = (&String, &Worker)> {
        let now = self.now();
        self.workers.iter().filter(move |(_, w)| now - w.heard < GONE)
    }

    /// A dead letter becomes a failure record, unless its worker wrote one or there is a result: the event that the worker could
    /// not send.
    async fn bury(&mut self, delivery: Delivery) -> Result<(), Error> {
        let Some(letter) = delivery.dead_letter().cloned() else { return Ok(delivery.ack().await?) };
        let job = match Job::decode(delivery.payload()) {
            Ok(job) if letter.channel == Channel::Jobs && keys::check_run(&job.run).is_ok() => job,
            _ => return self.keep_unreadable(delivery, &letter.reason).await,
        };
        let results = self.runs.of(&job.run)?;
        let what = match marked(&results, &job.image).await? {
            Some(Settled::Succeeded) => {
                What::Succeeded { loss: f64::NAN, seconds: 0.0, lane_steps: 0, l1: f64::NAN, lpips: f64::NAN }
            }
            failed => {
                let message = format!("given up after {} attempts: {}", letter.attempts, letter.reason);
                let failure = Failure::of(&job, FailureReason::Quarantined, message);
                if failed.is_none() {
                    write_failure(&results, &failure).await?;
                }
                What::Failed { reason: failure.reason.as_str().into(), message: failure.message }
            }
        };
        self.apply(Event::about(&job, "coordinator", what));
        CrashPoint::DeadLetterTaken.pass();
        delivery.ack().await?;
        Ok(())
    }

    /// A message that is no job of ours belongs to no run: it is kept beside the runs, for a person to look at.
    async fn keep_unreadable(&self, delivery: Delivery, reason: &str) -> Result<(), Error> {
        let (Runs::One(place) | Runs::Home(place)) = &self.runs;
        let digest = hex_sha256(delivery.payload());
        tracing::warn!(reason, digest, "a message on the queue is none of ours; it is kept in unreadable/");
        place.put(&format!("unreadable/{}", &digest[..16]), delivery.payload().to_vec()).await?;
        place.put(&format!("unreadable/{}.txt", &digest[..16]), reason.as_bytes().to_vec()).await?;
        delivery.ack().await?;
        Ok(())
    }

    /// Asks the store about jobs that nothing was heard of, so that a lost event loses nothing; publishes again what the queue
    /// lost.
    async fn look_for_silent(&mut self) -> Result<(), Error> {
        let now = self.now();
        let silent = self.fleet.silent(now - SILENT);
        if silent.is_empty() {
            return Ok(());
        }
        let empty = self.queue.depth(Channel::Jobs).await? == 0;
        // What no worker has begun waits on the queue, as long as anything does.
        let (asked, waiting): (Vec<Silent>, Vec<Silent>) = silent.into_iter().partition(|s| s.worker.is_some() || empty);
        waiting.iter().for_each(|s| self.fleet.hear(&s.run, &s.job, now));
        let runs = &self.runs;
        let asks = asked.iter().map(async |s| marked(&runs.of(&s.run)?, &s.image).await);
        let markers: Vec<Result<Option<Settled>, Error>> = stream::iter(asks).buffered(ASK).collect().await;
        for (silent, marker) in asked.iter().zip(markers) {
            let Silent { run, job, image, worker } = silent;
            let present = worker.as_ref().is_some_and(|w| self.present().any(|(name, _)| name == w));
            match marker? {
                Some(how) => self.fleet.settle(silent, how),
                None if present || !empty => self.fleet.hear(run, job, now),
                None => {
                    tracing::warn!(run, image, "the job is neither on the queue nor in a worker's hands; it is published again");
                    self.fleet.take_back(run, job);
                }
            }
        }
        Ok(())
    }

    /// Takes back what waits on the queue, so that the window can be filled in another order.
    pub async fn withdraw(&mut self) -> Result<(), Error> {
        self.queue.purge(Channel::Jobs).await?;
        self.fleet.withdraw();
        Ok(())
    }
}

/// What the store says of an image.
async fn marked(results: &Store, image: &str) -> Result<Option<Settled>, Error> {
    for (marker, settled) in [(Marker::Result, Settled::Succeeded), (Marker::Failure, Settled::Failed)] {
        if results.exists(&keys::marker(image, marker)).await? {
            return Ok(Some(settled));
        }
    }
    Ok(None)
}

/// How a run stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Images of the run.
    pub images: usize,
    /// With a result from before this start.
    pub skipped: usize,
    /// With a result, since this start.
    pub succeeded: usize,
    /// With a failure.
    pub failed: usize,
}

/// Publishes one run's jobs and collects events until every job is settled or `stop` becomes true.
pub async fn drive(
    spec: RunSpec,
    plan: Plan,
    queue: &Queue,
    runs: Runs,
    mut stop: watch::Receiver<bool>,
    status: watch::Sender<Status>,
) -> Result<(), Error> {
    let name = spec.record.name.clone();
    let mut driver = Driver::new(queue.clone(), runs, WINDOW).await?;
    // Nobody asks for errors by class here: the summary has them.
    driver.fleet.add(spec, plan, proto::Control::default(), Tally::default());
    loop {
        if let Some(s) = driver.fleet.status(&name) {
            status.send_replace(Status { images: s.images, skipped: s.skipped, succeeded: s.succeeded, failed: s.failed });
        }
        if driver.fleet.settled(&name) {
            return Ok(());
        }
        driver.top_up().await?;
        let happening = tokio::select! {
            happening = driver.wait() => happening?,
            changed = stop.changed() => {
                if changed.is_err() || *stop.borrow() {
                    return Ok(());
                }
                continue;
            }
        };
        if !driver.take(happening).await? {
            return Ok(());
        }
    }
}
