//! All runs of a home (*io*): loads them, takes new ones in, writes their snapshots, and their tables at the end.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::{StreamExt, TryStreamExt, stream};
use proto::{Control, CrashPoint, RunState, chain, keys};
use queue::Queue;
use store::{Allowed, Runs, Store};
use tokio::task::JoinSet;

use super::closed_runs::{Tables, close, closed_status, read_table};
use super::handle::{Look, Reply};
use super::intake::{self, Order, Prepared, Trouble, control_of, in_trouble, read_order, submitted};
use super::lead::Lead;
use super::refusal::Refusal;
use super::snapshots::{Found, read_errors, save};
use crate::Error;
use crate::drive::Driver;
use client::api::{Change, RedriveRequest, RunRequest, RunStatus};
use results::RunError;
use results::redrive::Redrive;
use results::run::AT_ONCE;

/// Time until the store is tried again.
const RETRY_STORE: Duration = Duration::from_secs(30);
/// Time until the tables of a run are written again.
const RETRY_TABLES: Duration = Duration::from_secs(10);
/// How often the lead is checked.
const CHECK_LEAD: Duration = Duration::from_secs(30);
/// Results that are read for their errors at a time.
const READ: usize = 1024;
/// A snapshot is written this long after the last, and earlier when this many results are new.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(60);
const SNAPSHOT_SOON: (usize, Duration) = (10_000, Duration::from_secs(5));
/// A coordinator that stops waits this long for its last snapshots.
const SNAPSHOT_LAST: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub struct Config {
    /// Where runs, models and results are.
    pub home: Store,
    pub queue: Queue,
    /// Data sets that clients may name.
    pub allowed: Allowed,
    /// Most jobs that are published and not finished.
    pub window: usize,
    pub version: String,
    /// Dollars for an hour of a worker, to estimate the cost of runs.
    pub worker_hour_price: Option<f64>,
}

/// What was done beside the loop.
pub(super) enum Done {
    Prepared(String, Result<Box<Prepared>, Trouble>, Option<Reply<String>>),
    TablesWritten(String, Result<(), String>),
    ResultsRead(String, Vec<Found>),
    SnapshotSaved(String, Option<usize>),
    /// It is time to plan a run in trouble again.
    PlanAgain(String),
    ControlWritten(String, Control, Result<(), Error>, Then),
    LeadChecked,
}

/// What follows when a run's control is written.
pub(super) enum Then {
    Answer(Reply<RunStatus>),
    /// The run has finished.
    Finish,
    /// Nothing: a write before may have been applied, although it failed.
    Restore,
}

/// The last snapshot of a run.
struct Saved {
    at: Instant,
    /// Results that count in it.
    counted: usize,
    writing: bool,
}

pub(super) struct HomeRuns {
    pub(super) config: Config,
    pub(super) lead: Lead,
    beside: JoinSet<Done>,
    /// Runs that are being read and planned.
    pub(super) preparing: HashSet<String>,
    /// When the lead was checked last; `None`: it is being checked.
    lead_checked: Option<Instant>,
    /// Runs whose control is being written.
    changing: HashSet<String>,
    /// Runs whose tables are being written.
    finishing: HashSet<String>,
    /// Runs that the driver does not have: closed before this start, or in trouble.
    closed: BTreeMap<String, RunStatus>,
    /// Cancelled runs whose tables are written or being written, and how many images are finished in them.
    cancelled: HashMap<String, usize>,
    /// Why the tables of a run cannot be written.
    problems: HashMap<String, String>,
    /// Results are being read for their errors.
    reading: bool,
    saved: HashMap<String, Saved>,
    tables: Tables,
}

impl HomeRuns {
    pub(super) fn new(config: Config) -> HomeRuns {
        HomeRuns {
            lead: Lead::none(config.home.clone()),
            config,
            beside: JoinSet::new(),
            preparing: HashSet::new(),
            lead_checked: Some(Instant::now()),
            changing: HashSet::new(),
            finishing: HashSet::new(),
            closed: BTreeMap::new(),
            cancelled: HashMap::new(),
            problems: HashMap::new(),
            reading: false,
            saved: HashMap::new(),
            tables: Tables::default(),
        }
    }

    /// After this no coordinator before this one can write orders of the runs that are loaded.
    pub(super) async fn take_lead(&mut self) -> Result<(), Error> {
        self.lead = Lead::take(&self.config.home).await?;
        Ok(())
    }

    pub(super) async fn load(&mut self) -> Result<(), Error> {
        let (home, lead) = (&self.config.home, &self.lead);
        let objects = home.list(keys::INDEX)?.all().await?;
        let names: Vec<String> = objects.iter().filter_map(|o| keys::parse_index(&o.key)).map(str::to_owned).collect();
        let loaded: Vec<Loaded> = stream::iter(names).map(|name| load(lead, name)).buffered(AT_ONCE).try_collect().await?;
        for run in loaded {
            match run {
                Loaded::Closed(status) => drop(self.closed.insert(status.name.clone(), *status)),
                Loaded::Open(order) => {
                    let name = order.0.name.clone();
                    self.prepare(name, async move { Ok(*order) }, None);
                }
            }
        }
        Ok(())
    }

    /// Reads and plans a run beside the loop.
    fn prepare(
        &mut self,
        name: String,
        order: impl Future<Output = Result<Order, Refusal>> + Send + 'static,
        reply: Option<Reply<String>>,
    ) {
        self.preparing.insert(name.clone());
        let (home, lead, allowed) = (self.config.home.clone(), self.lead.clone(), self.config.allowed.clone());
        let known = reply.is_none();
        let before = self.closed.get(&name).map(control_of).unwrap_or_default();
        self.beside.spawn(async move {
            let prepared = match order.await {
                Ok(order) => intake::prepare(&lead, &name, order, known, &allowed).await,
                Err(refusal) if known => Err(in_trouble(&home, &name, before, refusal).await),
                Err(refusal) => Err(refusal.into()),
            };
            Done::Prepared(name, prepared.map(Box::new), reply)
        });
    }

    pub(super) fn submit(&mut self, driver: &Driver, request: RunRequest, reply: Reply<String>) {
        let name = request.name.clone();
        if self.preparing.contains(&name) {
            return drop(reply.send(Err(being_read(&name))));
        }
        let known = driver.fleet.spec(&name).is_some() || self.closed.contains_key(&name);
        let Config { home, version, allowed, .. } = self.config.clone();
        self.prepare(name, async move { submitted(&home, version, request, known, &allowed).await }, Some(reply));
    }

    pub(super) fn redrive(&mut self, driver: &Driver, name: String, which: &RedriveRequest, reply: Reply<String>) {
        let redrive = match self.redrivable(driver, &name, which) {
            Ok(redrive) => redrive,
            Err(refusal) => return drop(reply.send(Err(refusal))),
        };
        let (home, run) = (self.config.home.clone(), name.clone());
        let order = async move {
            let (record, control) = read_order(&home, &run).await?;
            Ok((record, Control { state: RunState::Running, ..control }, Some(redrive)))
        };
        self.prepare(name, order, Some(reply));
    }

    fn redrivable(&self, driver: &Driver, name: &str, which: &RedriveRequest) -> Result<Redrive, Refusal> {
        let redrive = Redrive::parse(&which.wheres, which.seed).map_err(Refusal::Invalid)?;
        let state = driver.fleet.control(name).or_else(|| self.closed.get(name).map(control_of)).map(|c| c.state);
        match state {
            _ if self.preparing.contains(name) => Err(being_read(name)),
            None => Err(Refusal::no_run(name)),
            Some(RunState::Finished) => Ok(redrive),
            Some(_) => Err(Refusal::Conflict(format!("run {name} is not finished: only a finished run can be redriven"))),
        }
    }

    /// Has a change written; the reply follows when it is.
    pub(super) fn change(&mut self, driver: &Driver, name: &str, change: Change, reply: Reply<RunStatus>) {
        match self.control_after(driver, name, change) {
            Ok(control) => self.write(name, control, Then::Answer(reply)),
            Err(refusal) => drop(reply.send(Err(refusal))),
        }
    }

    fn control_after(&self, driver: &Driver, name: &str, change: Change) -> Result<Control, Refusal> {
        let preparing = self.preparing.contains(name);
        let in_trouble = self.closed.get(name).filter(|s| s.problem.is_some() && !preparing);
        let before = driver.fleet.control(name).or(in_trouble.map(control_of));
        let before = before.ok_or_else(|| match self.closed.contains_key(name) || preparing {
            true => Refusal::Conflict(format!("run {name} has ended, or is being read: it cannot be changed")),
            false => Refusal::no_run(name),
        })?;
        if self.changing.contains(name) {
            return Err(Refusal::Conflict(format!("run {name} is being changed: try again in a moment")));
        }
        changed(name, before, change)
    }

    /// Writes a run's control beside the loop.
    fn write(&mut self, name: &str, control: Control, then: Then) {
        self.write_after(Duration::ZERO, name, control, then);
    }

    fn write_after(&mut self, pause: Duration, name: &str, control: Control, then: Then) {
        self.changing.insert(name.to_owned());
        let (lead, name) = (self.lead.clone(), name.to_owned());
        self.beside.spawn(async move {
            tokio::time::sleep(pause).await;
            let written = lead.write(&name, control).await;
            Done::ControlWritten(name, control, written, then)
        });
    }

    /// A run's control has been written, or could not be. A write that failed may have been applied all the same, and workers would
    /// follow it: what was there before is written again, until it is.
    fn written(&mut self, driver: &mut Driver, name: &str, control: Control, written: Result<(), Error>, then: Then) {
        self.changing.remove(name);
        match (written, then) {
            (Ok(()), Then::Answer(reply)) => drop(reply.send(self.changed(driver, name, control))),
            (Err(error), Then::Answer(reply)) => {
                let _ = reply.send(Err(error.into()));
                let before = driver.fleet.control(name).or(self.closed.get(name).map(control_of));
                if let Some(before) = before {
                    self.write_after(RETRY_TABLES, name, before, Then::Restore);
                }
            }
            (Err(_), Then::Restore) => self.write_after(RETRY_TABLES, name, control, Then::Restore),
            (Ok(()), Then::Restore) => {}
            (Ok(()), Then::Finish) => {
                CrashPoint::RunFinished.pass();
                self.problems.remove(name);
                driver.fleet.set_control(name, control);
                tracing::info!(run = name, "run finished");
            }
            (Err(error), Then::Finish) => {
                self.trouble(name.to_owned(), "the run's end cannot be written", &chain(&error));
                self.write_after(RETRY_TABLES, name, control, Then::Finish);
            }
        }
    }

    fn changed(&mut self, driver: &mut Driver, name: &str, control: Control) -> Result<RunStatus, Refusal> {
        driver.fleet.set_control(name, control);
        driver.withdraw();
        tracing::info!(run = name, state = ?control.state, priority = control.priority, "run changed");
        match self.closed.get_mut(name) {
            Some(status) => {
                (status.state, status.priority, status.per_minute) = (control.state, control.priority, control.per_minute);
                Ok(status.clone())
            }
            None => driver.status(name).ok_or_else(|| Refusal::no_run(name)),
        }
    }

    /// The outcome of work beside the loop. Loses nothing when dropped.
    pub(super) async fn done(&mut self) -> Done {
        while let Some(done) = self.beside.join_next().await {
            match done {
                Ok(done) => return done,
                // It concerns one run, and must not stop the others.
                Err(error) => tracing::error!(%error, "work beside the loop ended without an outcome"),
            }
        }
        std::future::pending().await
    }

    pub(super) fn take(&mut self, driver: &mut Driver, done: Done) {
        match done {
            Done::Prepared(name, prepared, reply) => {
                let planned = match prepared {
                    Ok(prepared) => Ok(self.add(driver, name, *prepared)),
                    Err(trouble) => Err(self.set_aside(driver, name, trouble)),
                };
                if let Some(reply) = reply {
                    let _ = reply.send(planned);
                }
            }
            Done::TablesWritten(name, outcome) => {
                self.finishing.remove(&name);
                match outcome {
                    Ok(()) => self.finish(driver, &name),
                    Err(error) => {
                        self.cancelled.remove(&name);
                        self.trouble(name, "the run's tables cannot be written", &error);
                    }
                }
            }
            Done::ResultsRead(name, found) => {
                self.reading = false;
                found.into_iter().for_each(|(job, found)| driver.fleet.read(&name, job, found));
            }
            Done::SnapshotSaved(name, counted) => {
                if let Some(saved) = self.saved.get_mut(&name) {
                    saved.writing = false;
                    saved.counted = counted.unwrap_or(saved.counted);
                }
            }
            Done::PlanAgain(name) => self.plan_again(name),
            Done::LeadChecked => self.lead_checked = Some(Instant::now()),
            Done::ControlWritten(name, control, written, then) => self.written(driver, &name, control, written, then),
        }
    }

    /// Gives a planned run to the driver. Returns a note for people.
    fn add(&mut self, driver: &mut Driver, name: String, prepared: Prepared) -> String {
        let Prepared { spec, plan, control, tally } = prepared;
        let note = format!("run {name}: {} images, {} to be projected", plan.total(), plan.images.len());
        tracing::info!(run = name, images = plan.total(), left = plan.images.len(), "run planned");
        self.preparing.remove(&name);
        self.closed.remove(&name);
        self.tables.forget(&name);
        self.saved.insert(name, Saved { at: Instant::now(), counted: tally.counted(), writing: false });
        driver.fleet.add(spec, plan, control, tally);
        note
    }

    /// Takes a run that is on record and cannot be planned from the driver.
    fn set_aside(&mut self, driver: &mut Driver, name: String, trouble: Trouble) -> Refusal {
        self.preparing.remove(&name);
        let Trouble { refusal, again } = trouble;
        if let Some(status) = again {
            tracing::error!(run = name, error = refusal.message(), "the run cannot be planned; tried again");
            driver.fleet.remove(&name);
            self.saved.remove(&name);
            self.closed.insert(name.clone(), *status);
            self.plan_again_later(name);
        }
        refusal
    }

    /// Has the run's end written. A cancelled run stays cancelled.
    fn finish(&mut self, driver: &Driver, name: &str) {
        if self.changing.contains(name) {
            // The tables are due again when the change is written.
            return;
        }
        self.problems.remove(name);
        let control = driver.fleet.control(name).unwrap_or_default();
        if control.state == RunState::Cancelled {
            return tracing::info!(run = name, "tables of the cancelled run written");
        }
        self.write(name, Control { state: RunState::Finished, ..control }, Then::Finish);
    }

    fn trouble(&mut self, run: String, what: &str, error: &str) {
        tracing::error!(run, error, "{what}; tried again");
        self.problems.insert(run, format!("{what}; tried again: {error}"));
    }

    fn plan_again(&mut self, name: String) {
        if self.preparing.contains(&name) || self.changing.contains(&name) {
            self.plan_again_later(name);
        } else if self.closed.get(&name).is_some_and(|s| s.problem.is_some()) {
            let (home, run) = (self.config.home.clone(), name.clone());
            let order = async move {
                let (record, control) = read_order(&home, &run).await?;
                Ok((record, control, None))
            };
            self.prepare(name, order, None);
        }
    }

    /// Its data set may be away only for a while.
    fn plan_again_later(&mut self, name: String) {
        self.beside.spawn(async move {
            tokio::time::sleep(RETRY_STORE).await;
            Done::PlanAgain(name)
        });
    }

    pub(super) fn statuses(&self, driver: &Driver) -> Vec<RunStatus> {
        let active = driver.fleet.names().filter_map(|name| driver.status(name));
        let active = active.map(|status| self.completed(status));
        let mut all: Vec<RunStatus> = active.chain(self.closed.values().cloned()).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    pub(super) fn briefs(&self, driver: &Driver) -> Vec<RunStatus> {
        let active = driver.fleet.names().filter_map(|name| driver.fleet.brief(name, driver.now()));
        // Closed runs stay as they are.
        let troubled = self.closed.values().filter(|status| status.problem.is_some());
        let troubled = troubled.map(|status| RunStatus { classes: vec![], super_classes: vec![], ..status.clone() });
        active.map(|status| self.completed(status)).chain(troubled).collect()
    }

    /// With what the fleet does not know.
    pub(super) fn completed(&self, status: RunStatus) -> RunStatus {
        let seconds: f64 = status.stage_seconds.values().sum();
        let hours = seconds / 3600.0 * status.images as f64;
        let cost = self.config.worker_hour_price.map(|price| price * hours).filter(|_| seconds > 0.0);
        RunStatus { cost, problem: self.problems.get(&status.name).cloned(), ..status }
    }

    /// Reads the table of a closed run beside the loop.
    pub(super) fn look_at_closed(&self, run: String, look: Look) {
        let Some(status) = self.closed.get(&run).cloned() else { return look(Err(Refusal::no_run(&run))) };
        let (home, tables) = (self.config.home.clone(), self.tables.clone());
        tokio::spawn(async move {
            // One table is read at a time, and once for all requests that need it.
            let reading = tables.reading.lock().await;
            let table = match tables.get(&run) {
                Some(table) => Ok(table),
                None => read_table(&home, &run).await.inspect(|table| tables.put(&run, table)),
            };
            drop(reading);
            let looked = tokio::task::spawn_blocking(move || match table {
                Ok(table) => look(Ok((status, &table.outcomes()))),
                Err(refusal) => look(Err(refusal)),
            });
            let _ = looked.await;
        });
    }

    pub(super) fn spawn_due(&mut self, driver: &Driver) {
        self.check_lead();
        self.write_tables(driver);
        self.read_results(driver);
        self.save_snapshots(driver);
    }

    /// Looks beside the loop whether another coordinator leads, which the broker may not know.
    fn check_lead(&mut self) {
        if self.lead_checked.is_none_or(|checked| checked.elapsed() < CHECK_LEAD) {
            return;
        }
        self.lead_checked = None;
        let lead = self.lead.clone();
        self.beside.spawn(async move {
            // It tells the loop by itself. While the store is away nothing is known.
            let _ = lead.check().await;
            Done::LeadChecked
        });
    }

    /// Writes the tables of runs that have finished, or that are cancelled and have no open job.
    fn write_tables(&mut self, driver: &Driver) {
        let names: Vec<String> = driver.fleet.names().cloned().collect();
        for name in names {
            let state = driver.fleet.control(&name).map(|c| c.state);
            let images = || driver.fleet.brief(&name, driver.now()).map_or(0, |s| s.skipped + s.succeeded + s.failed);
            let over = match state {
                Some(RunState::Running) => driver.fleet.settled(&name),
                Some(RunState::Cancelled) => driver.fleet.at_rest(&name) && self.cancelled.get(&name) != Some(&images()),
                _ => false,
            };
            if !over || self.preparing.contains(&name) || self.changing.contains(&name) || !self.finishing.insert(name.clone()) {
                continue;
            }
            if state == Some(RunState::Cancelled) {
                self.cancelled.insert(name.clone(), images());
            }
            let Some(spec) = driver.fleet.spec(&name).cloned() else { continue };
            let images = driver.status(&name).map_or(0, |s| s.images);
            let lead = self.lead.clone();
            self.beside.spawn(async move {
                let outcome = close(&lead, &spec, images).await.map_err(|e| chain(&e));
                if outcome.is_err() {
                    tokio::time::sleep(RETRY_TABLES).await;
                }
                Done::TablesWritten(name, outcome)
            });
        }
    }

    /// Reads results whose errors are in no event and in no snapshot.
    fn read_results(&mut self, driver: &Driver) {
        if self.reading {
            return;
        }
        let Some((name, wanted)) = driver.fleet.unread(READ) else { return };
        self.reading = true;
        let home = self.config.home.clone();
        self.beside.spawn(async move {
            let found = match read_errors(&home, &name, wanted).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(run = name, error = chain(&error), "results cannot be read; tried again");
                    tokio::time::sleep(RETRY_STORE).await;
                    vec![]
                }
            };
            Done::ResultsRead(name, found)
        });
    }

    fn save_snapshots(&mut self, driver: &Driver) {
        for (name, saved) in &mut self.saved {
            let new = driver.fleet.counted(name).abs_diff(saved.counted);
            let due = new > 0 && saved.at.elapsed() >= SNAPSHOT_EVERY
                || new >= SNAPSHOT_SOON.0 && saved.at.elapsed() >= SNAPSHOT_SOON.1;
            if saved.writing || !due {
                continue;
            }
            let Some(snapshot) = driver.fleet.snapshot(name) else { continue };
            (saved.at, saved.writing) = (Instant::now(), true);
            let (home, name) = (self.config.home.clone(), name.clone());
            self.beside.spawn(async move {
                let counted = save(&home, &name, snapshot).await;
                Done::SnapshotSaved(name, counted)
            });
        }
    }

    /// Writes the snapshots that have something new, before the end.
    pub(super) async fn save_last(&self, driver: &Driver) {
        let new = self.saved.iter().filter(|(name, saved)| driver.fleet.counted(name) != saved.counted);
        let snapshots = new.filter_map(|(name, _)| Some((name, driver.fleet.snapshot(name)?)));
        let saves = join_all(snapshots.map(|(name, snapshot)| save(&self.config.home, name, snapshot)));
        let _ = tokio::time::timeout(SNAPSHOT_LAST, saves).await;
    }
}

enum Loaded {
    Open(Box<Order>),
    Closed(Box<RunStatus>),
}

async fn load(lead: &Lead, name: String) -> Result<Loaded, Error> {
    let home = &lead.home;
    let found = match read_order(home, &name).await {
        Ok((record, control)) if !control.state.is_closed() => lead.claim(&name).await.map(|control| (record, control)),
        found => found,
    };
    let closed = match &found {
        Ok((_, control)) => match control.state {
            RunState::Running | RunState::Paused => None,
            // Its tables are still to be written.
            RunState::Cancelled if !Runs::Home(home.clone()).of(&name)?.exists(keys::MANIFEST).await? => None,
            RunState::Cancelled | RunState::Finished => Some(closed_status(home, &name, *control).await?),
        },
        // One damaged run does not stop the others.
        Err(error @ (Error::Run(RunError::Damaged { .. }) | Error::OtherName { .. })) => {
            tracing::error!(run = name, error = chain(error), "the run is left alone");
            let paused = Control { state: RunState::Paused, ..Control::default() };
            Some(RunStatus { problem: Some(chain(error)), ..closed_status(home, &name, paused).await? })
        }
        Err(_) => None,
    };
    match closed {
        Some(status) => Ok(Loaded::Closed(Box::new(status))),
        None => found.map(|(record, control)| Loaded::Open(Box::new((record, control, None)))),
    }
}

/// The control of a run after a change. Pure.
fn changed(name: &str, before: Control, change: Change) -> Result<Control, Refusal> {
    if matches!(before.state, RunState::Cancelled | RunState::Finished) {
        return Err(Refusal::Conflict(format!("run {name} has ended: it cannot be changed")));
    }
    if change.state == Some(RunState::Finished) {
        return Err(Refusal::Invalid("state must be running, paused or cancelled".into()));
    }
    if change.per_minute.is_some_and(|r| !(r.is_finite() && r >= 0.0)) {
        return Err(Refusal::Invalid("per_minute must be a number ≥ 0".into()));
    }
    Ok(Control {
        format: 1,
        state: change.state.unwrap_or(before.state),
        priority: change.priority.unwrap_or(before.priority),
        per_minute: change.per_minute.map_or(before.per_minute, |r| (r > 0.0).then_some(r)),
        epoch: before.epoch,
    })
}

fn being_read(name: &str) -> Refusal {
    Refusal::Conflict(format!("run {name} is being read: try again in a moment"))
}
