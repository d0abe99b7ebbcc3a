//! All runs of a home (*io*): loads them, takes new ones in, writes their snapshots, and their tables at the end.

mod change;
mod delete;
mod load;
mod save;
mod spend;
mod tell;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use proto::{Control, CrashPoint, RunState, chain, keys};
use queue::Queue;
use store::{Allowed, Store};
use tokio::task::JoinSet;

use super::closed_runs::{Tables, close, read_table};
use super::handle::{Look, Reply};
use super::intake::{self, Order, Prepared, Trouble, control_of, in_trouble, read_order, submitted};
use super::lead::Lead;
use super::refusal::Refusal;
use super::snapshots::{Found, read_errors};
use super::spending::Spending;
use crate::Error;
use crate::clock::now;
use crate::drive::Driver;
use crate::notify::Notify;
use change::{being_changed, being_read, changed};
use client::api::{Change, RedriveRequest, RunRequest, RunStatus};
use delete::Deleting;
use load::{Loaded, load};
use results::redrive::Redrive;
use results::run::AT_ONCE;
use save::Saved;
use tell::Telling;

/// Time until the store is tried again.
const RETRY_STORE: Duration = Duration::from_secs(30);
/// Time until the tables of a run are written again.
const RETRY_TABLES: Duration = Duration::from_secs(10);
/// How often the lead is checked.
const CHECK_LEAD: Duration = Duration::from_secs(30);
/// Results that are read for their errors at a time.
const READ: usize = 1024;

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
    /// Whom to tell of what happens.
    pub notify: Notify,
    /// Runs that ended longer ago are deleted; `None`: all are kept.
    pub keep_runs: Option<Duration>,
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
    /// Worker seconds of a run, and whether they are written.
    UsageSaved(String, f64, bool),
    Deleted(String),
    /// Somebody was told, or it is in the log of changes.
    Told,
}

/// What follows when a run's control is written.
pub(super) enum Then {
    Answer(Reply<RunStatus>),
    /// The coordinator has paused the run itself.
    Pause,
    /// The run's objects are deleted. Without a reply the coordinator does so by itself.
    Delete(Option<Reply<String>>),
    /// The run has finished.
    Finish,
    /// Nothing: a write before may have been applied, although it failed.
    Restore,
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
    spending: Spending,
    deleting: Deleting,
    telling: Telling,
}

impl HomeRuns {
    pub(super) fn new(config: Config) -> HomeRuns {
        HomeRuns {
            lead: Lead::none(config.home.clone()),
            telling: Telling::new(&config),
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
            spending: Spending::default(),
            deleting: Deleting::default(),
        }
    }

    /// After this no coordinator before this one can write orders of the runs that are loaded.
    pub(super) async fn take_lead(&mut self) -> Result<(), Error> {
        self.lead = Lead::take(&self.config.home).await?.telling(&self.config.queue);
        Ok(())
    }

    pub(super) async fn load(&mut self) -> Result<(), Error> {
        let (home, lead) = (&self.config.home, &self.lead);
        let objects = home.list(keys::INDEX)?.all().await?;
        let names: Vec<String> = objects.iter().filter_map(|o| keys::parse_index(&o.key)).map(str::to_owned).collect();
        let loaded: Vec<Loaded> = stream::iter(names).map(|name| load(lead, name)).buffered(AT_ONCE).try_collect().await?;
        self.tell_again().await?;
        for run in loaded {
            match run {
                Loaded::Closed(status) => {
                    let (name, deleted) = (status.name.clone(), status.deleting.is_some());
                    self.closed.insert(name.clone(), *status);
                    if deleted {
                        self.delete_objects(name);
                    }
                }
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
        if let Err(refusal) = self.deleting.refuse(&name) {
            return drop(reply.send(Err(refusal)));
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
            Ok((record, Control { state: RunState::Running, ended: None, ..control }, Some(redrive)))
        };
        self.prepare(name, order, Some(reply));
    }

    fn redrivable(&self, driver: &Driver, name: &str, which: &RedriveRequest) -> Result<Redrive, Refusal> {
        let redrive = Redrive::parse(&which.wheres, which.seed).map_err(Refusal::Invalid)?;
        self.deleting.refuse(name)?;
        let state = driver.fleet.control(name).or_else(|| self.closed.get(name).map(control_of)).map(|c| c.state);
        match state {
            _ if self.preparing.contains(name) => Err(being_read(name)),
            None => Err(Refusal::no_run(name)),
            Some(RunState::Finished) if self.changing.contains(name) => Err(being_changed(name)),
            Some(RunState::Finished) => Ok(redrive),
            Some(_) => Err(Refusal::Conflict(format!("run {name} is not finished: only a finished run can be redriven"))),
        }
    }

    /// Has a change written; the reply follows when it is.
    pub(super) fn change(&mut self, driver: &Driver, name: &str, change: Change, reply: Reply<RunStatus>) {
        match self.control_after(driver, name, change) {
            Ok(control) => {
                self.announce(driver, name, control);
                self.write(name, control, Then::Answer(reply));
            }
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
            return Err(being_changed(name));
        }
        let hours = driver.fleet.worker_seconds(name) / 3600.0;
        let hours = self.closed.get(name).map_or(hours, |status| status.worker_hours.max(hours));
        changed(name, before, change, hours, now())
    }

    /// Writes a run's control beside the loop.
    fn write(&mut self, name: &str, control: Control, then: Then) {
        self.write_after(Duration::ZERO, name, control, then);
    }

    fn write_after(&mut self, pause: Duration, name: &str, control: Control, then: Then) {
        self.changing.insert(name.to_owned());
        let (lead, name, notice) = (self.lead.clone(), name.to_owned(), self.telling.ending(name));
        self.beside.spawn(async move {
            tokio::time::sleep(pause).await;
            // What is told of the change is kept first: if this process dies in between, the next one tells it.
            let written = async {
                tell::keep(&lead.home, notice.as_ref()).await?;
                lead.write(&name, control).await
            };
            let written = written.await;
            Done::ControlWritten(name, control, written, then)
        });
    }

    /// A run's control has been written, or could not be. A write that failed may have been applied all the same, and workers would
    /// follow it: what was there before is written again, until it is.
    fn written(&mut self, driver: &mut Driver, name: &str, control: Control, written: Result<(), Error>, then: Then) {
        self.changing.remove(name);
        if written.is_ok() {
            self.tell_ending(name);
        }
        match (written, then) {
            (Ok(()), Then::Answer(reply)) => drop(reply.send(self.changed(driver, name, control))),
            (Ok(()), Then::Pause) => self.paused(driver, name, control),
            (Ok(()), Then::Delete(reply)) => self.begin_deleting(driver, name, reply),
            (Err(error), Then::Answer(reply)) => {
                let _ = reply.send(Err(error.into()));
                self.restore(driver, name);
            }
            (Err(error), Then::Delete(reply)) => {
                match reply {
                    Some(reply) => drop(reply.send(Err(error.into()))),
                    None => tracing::warn!(run = name, error = chain(&error), "the run cannot be deleted; tried again"),
                }
                self.restore(driver, name);
            }
            // Tried again while the budget is spent.
            (Err(_), Then::Pause) => self.restore(driver, name),
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

    /// Has what was there before written again, after a pause.
    fn restore(&mut self, driver: &Driver, name: &str) {
        self.unsay(name);
        if let Some(before) = driver.fleet.control(name).or(self.closed.get(name).map(control_of)) {
            self.write_after(RETRY_TABLES, name, before, Then::Restore);
        }
    }

    fn changed(&mut self, driver: &mut Driver, name: &str, control: Control) -> Result<RunStatus, Refusal> {
        driver.fleet.set_control(name, control);
        driver.withdraw();
        tracing::info!(run = name, state = ?control.state, priority = control.priority, "run changed");
        match self.closed.get_mut(name) {
            Some(status) => {
                (status.state, status.priority, status.per_minute) = (control.state, control.priority, control.per_minute);
                (status.budget_hours, status.ended) = (control.budget_hours, control.ended);
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
            Done::UsageSaved(name, seconds, written) => self.spending.saved(name, seconds, written),
            Done::Deleted(name) => self.deleted(driver, &name),
            Done::Told => {}
            Done::ControlWritten(name, control, written, then) => self.written(driver, &name, control, written, then),
        }
    }

    /// Gives a planned run to the driver. Returns a note for people.
    fn add(&mut self, driver: &mut Driver, name: String, prepared: Prepared) -> String {
        let Prepared { spec, plan, control, tally, worker_seconds } = prepared;
        driver.fleet.resume_spending(&name, worker_seconds);
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
        // What is being deleted is not planned any more.
        if let Some(status) = again.filter(|_| self.deleting.refuse(&name).is_ok()) {
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
        let control = Control { state: RunState::Finished, ended: Some(now()), ..control };
        self.announce(driver, name, control);
        self.write(name, control, Then::Finish);
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
        let closed = self.closed.values().map(|status| self.with_news(status.clone()));
        let mut all: Vec<RunStatus> = active.chain(closed).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    pub(super) fn briefs(&self, driver: &Driver) -> Vec<RunStatus> {
        let active = driver.fleet.names().filter_map(|name| driver.fleet.brief(name, driver.now()));
        // Closed runs stay as they are.
        let troubled = self.closed.values().filter(|status| status.problem.is_some() || status.deleting.is_some());
        let troubled = troubled.map(|status| RunStatus { classes: vec![], super_classes: vec![], ..status.clone() });
        let troubled = troubled.map(|status| self.with_news(status));
        active.map(|status| self.completed(status)).chain(troubled).collect()
    }

    /// With what the fleet does not know.
    pub(super) fn completed(&self, status: RunStatus) -> RunStatus {
        let seconds: f64 = status.stage_seconds.values().sum();
        let hours = seconds / 3600.0 * status.images as f64;
        let cost = self.config.worker_hour_price.map(|price| price * hours).filter(|_| seconds > 0.0);
        self.with_news(RunStatus { cost, problem: self.problems.get(&status.name).cloned(), ..status })
    }

    /// With what is known of its deletion and of its notifications.
    fn with_news(&self, status: RunStatus) -> RunStatus {
        let deleting = self.deleting.progress(&status.name).or(status.deleting);
        RunStatus { deleting, notification_problem: self.telling.problem(&status.name), ..status }
    }

    /// Reads the table of a closed run beside the loop.
    pub(super) fn look_at_closed(&self, run: String, look: Look) {
        let Some(status) = self.closed.get(&run).cloned() else { return look(Err(Refusal::no_run(&run))) };
        if let Err(refusal) = self.deleting.refuse(&run) {
            return look(Err(refusal));
        }
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
        self.pause_spent(driver);
        self.save_spending(driver);
        self.delete_old(driver);
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
}
