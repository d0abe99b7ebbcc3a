//! Many runs, kept going (*io*): loads them from the home, hands their jobs out, writes their tables at the end.
//!
//! Everything that must survive is in the home before anybody is told that it is done. A second coordinator waits until the first
//! is gone; should both act for a moment, they do the same things, none of which harms when done twice.

mod asked;
mod handle;
mod known;
mod order;
mod over;
mod ticks;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::{StreamExt, TryStreamExt, stream};
use proto::{Control, CrashPoint, RunState, chain, keys};
use queue::Queue;
use store::{Runs, Store};
use tokio::sync::{mpsc, watch};

use crate::Error;
use crate::drive::Driver;
use crate::home;
pub use asked::Refusal;
use client::api::{Change, RedriveRequest, RunStatus, WorkerStatus};
pub(crate) use handle::{COMMANDS, Command, refuse_all};
pub use handle::{Handle, Live};
use handle::{Look, Reply};
use known::{read_errors, save};
use order::{Order, Prepared, Trouble, control_of, in_trouble, prepare, read_order, submitted, write_control};
use over::{Tables, close, over_status, read_table};
use results::RunError;
use results::redrive::Redrive;
use results::run::AT_ONCE;
pub(crate) use ticks::{TELL_EVERY, Ticks};

/// What the store did not do is asked for again after this time.
const TRY_AGAIN: Duration = Duration::from_secs(30);
/// Results that are read for their errors until the loop hears of them.
const READ: usize = 1024;
/// A snapshot is written this long after the last, and earlier when so many results have come since.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(60);
const SNAPSHOT_SOON: (usize, Duration) = (10_000, Duration::from_secs(5));
/// A coordinator that stops waits this long for its last snapshots.
const SNAPSHOT_LAST: Duration = Duration::from_secs(10);

/// How to run.
#[derive(Clone)]
pub struct Config {
    /// Where runs, models and their results are.
    pub home: Store,
    /// The queue that workers share.
    pub queue: Queue,
    /// Jobs published and not settled, at most.
    pub window: usize,
    /// Version of basin.
    pub version: String,
    /// Dollars for an hour of a worker, to tell what runs may cost.
    pub worker_hour_price: Option<f64>,
}

/// The last snapshot of a run.
struct Saved {
    at: Instant,
    /// Results that count in it.
    counted: usize,
    /// Another is being written.
    writing: bool,
}

/// The service; [`Service::run`] keeps it going.
pub struct Service {
    config: Config,
    commands: mpsc::Receiver<Command>,
    sender: mpsc::Sender<Command>,
    leads: watch::Sender<bool>,
    /// Runs that are read and planned now.
    preparing: HashSet<String>,
    /// Runs whose tables are written now.
    finishing: HashSet<String>,
    /// Runs that are not handed out: over at the start, or in trouble.
    over: BTreeMap<String, RunStatus>,
    /// Cancelled runs whose tables are written, or are being written, and how many images are settled in them.
    closed: HashMap<String, usize>,
    /// Why the tables of a run cannot be written.
    problems: HashMap<String, String>,
    /// Results are read for their errors now.
    reading: bool,
    saved: HashMap<String, Saved>,
    ticks: Ticks,
    tables: Tables,
}

impl Service {
    /// A service and the handle to ask it.
    pub fn new(config: Config) -> (Service, Handle) {
        let (sender, commands) = mpsc::channel(COMMANDS);
        let (leads, leading) = watch::channel(false);
        let live = watch::Sender::new(Arc::from(""));
        let handle = Handle::new(sender.clone(), leading, live.clone(), Runs::Home(config.home.clone()));
        let service = Service {
            config,
            commands,
            sender,
            leads,
            preparing: HashSet::new(),
            finishing: HashSet::new(),
            over: BTreeMap::new(),
            closed: HashMap::new(),
            problems: HashMap::new(),
            reading: false,
            saved: HashMap::new(),
            ticks: Ticks::new(live),
            tables: Tables::default(),
        };
        (service, handle)
    }

    /// Waits for the lead, then acts until `stop` becomes true. An error means that the process should end and start again.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<(), Error> {
        self.config.home.check_writable().await?;
        let mut lead = tokio::select! {
            lead = self.config.queue.lead("coordinator") => lead?,
            () = stopped(&mut stop) => return Ok(()),
        };
        home::check(&self.config.home).await?;
        let runs = Runs::Home(self.config.home.clone());
        let mut driver = Driver::new(self.config.queue.clone(), runs, self.config.window).await?;
        // What an earlier coordinator left on the queue is planned again: it would only come twice.
        driver.withdraw().await?;
        self.load_runs().await?;
        self.leads.send_replace(true);
        tracing::info!(runs = driver.fleet.names().count() + self.preparing.len(), "acting");
        loop {
            driver.top_up().await?;
            self.finish_settled(&driver);
            self.read_results(&driver);
            self.save_snapshots(&driver);
            self.tell(&driver);
            tokio::select! {
                happening = driver.wait() => {
                    if !driver.take(happening?).await? {
                        return Ok(());
                    }
                }
                command = self.commands.recv() => {
                    if let Some(command) = command {
                        self.obey(&mut driver, command).await?;
                    }
                }
                () = tokio::time::sleep(TELL_EVERY) => {}
                () = lead.lost() => return Err(Error::LostLead),
                () = stopped(&mut stop) => {
                    self.save_last(&driver).await;
                    return Ok(());
                }
            }
        }
    }

    async fn load_runs(&mut self) -> Result<(), Error> {
        let home = &self.config.home;
        let objects = home.list(keys::INDEX)?.all().await?;
        let names: Vec<String> = objects.iter().filter_map(|o| keys::parse_index(&o.key)).map(str::to_owned).collect();
        let read = async |name: String| {
            let found = read_order(home, &name).await;
            let over = match &found {
                Ok((_, control)) => match control.state {
                    RunState::Running | RunState::Paused => None,
                    // Its tables are still to be written.
                    RunState::Cancelled if !Runs::Home(home.clone()).of(&name)?.exists(keys::MANIFEST).await? => None,
                    RunState::Cancelled | RunState::Finished => Some(over_status(home, &name, *control).await?),
                },
                // The others go on.
                Err(error @ (Error::Run(RunError::Damaged { .. }) | Error::OtherName { .. })) => {
                    tracing::error!(run = name, error = chain(error), "the run is left alone");
                    let stopped = Control { state: RunState::Paused, ..Control::default() };
                    Some(RunStatus { problem: Some(chain(error)), ..over_status(home, &name, stopped).await? })
                }
                Err(_) => None,
            };
            match over {
                Some(status) => Ok::<_, Error>(Err(status)),
                None => found.map(Ok),
            }
        };
        let runs: Vec<_> = stream::iter(names).map(read).buffered(AT_ONCE).try_collect().await?;
        for run in runs {
            match run {
                Ok((record, control)) => {
                    let name = record.name.clone();
                    self.prepare(name, async move { Ok((record, control, None)) }, None);
                }
                Err(over) => drop(self.over.insert(over.name.clone(), over)),
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
        let (home, sender) = (self.config.home.clone(), self.sender.clone());
        let known = reply.is_none();
        let before = self.over.get(&name).map(control_of).unwrap_or_default();
        tokio::spawn(async move {
            let prepared = match order.await {
                Ok(order) => prepare(&home, &name, order, known).await,
                Err(refusal) if known => Err(in_trouble(&home, &name, before, refusal).await),
                Err(refusal) => Err(Trouble { refusal, again: None }),
            };
            if let Err(Trouble { again: Some(_), .. }) = prepared {
                again_later(sender.clone(), name.clone());
            }
            let _ = sender.send(Command::Prepared(name, prepared.map(Box::new), reply)).await;
        });
    }

    async fn obey(&mut self, driver: &mut Driver, command: Command) -> Result<(), Error> {
        match command {
            Command::Submit(request, reply) => {
                let name = request.name.clone();
                if self.preparing.contains(&name) {
                    let _ = reply.send(Err(Refusal::Conflict(format!("run {name} is being read now"))));
                    return Ok(());
                }
                let known = driver.fleet.spec(&name).is_some() || self.over.contains_key(&name);
                let config = self.config.clone();
                self.prepare(name, async move { submitted(&config, *request, known).await }, Some(reply));
            }
            Command::Prepared(name, prepared, reply) => {
                self.preparing.remove(&name);
                let note = match prepared {
                    Ok(prepared) => {
                        let Prepared { spec, plan, control, tally } = *prepared;
                        let note = format!("run {name}: {} images, {} to be projected", plan.total(), plan.images.len());
                        tracing::info!(run = name, images = plan.total(), left = plan.images.len(), "run planned");
                        self.over.remove(&name);
                        self.tables.forget(&name);
                        let saved = Saved { at: Instant::now(), counted: tally.counted(), writing: false };
                        self.saved.insert(name, saved);
                        driver.fleet.add(spec, plan, control, tally);
                        Ok(note)
                    }
                    Err(Trouble { refusal, again }) => {
                        if let Some(status) = again {
                            tracing::error!(run = name, error = refusal.message(), "the run cannot be planned; tried again");
                            driver.fleet.remove(&name);
                            self.saved.remove(&name);
                            self.over.insert(name, *status);
                        }
                        Err(refusal)
                    }
                };
                if let Some(reply) = reply {
                    let _ = reply.send(note);
                }
            }
            Command::Runs(reply) => {
                let active = driver.fleet.names().filter_map(|name| driver.status(name));
                let active = active.map(|status| self.completed(status));
                let mut all: Vec<RunStatus> = active.chain(self.over.values().cloned()).collect();
                all.sort_by(|a, b| a.name.cmp(&b.name));
                let _ = reply.send(Ok(all));
            }
            Command::Look(run, look) => self.look(driver, run, look),
            Command::Change(name, change, reply) => {
                let changed = self.change(driver, &name, change).await?;
                let _ = reply.send(changed);
            }
            Command::Redrive(name, which, reply) => match self.redrivable(driver, &name, &which) {
                Ok(redrive) => {
                    let (home, run) = (self.config.home.clone(), name.clone());
                    let order = async move {
                        let (record, control) = read_order(&home, &run).await?;
                        Ok((record, Control { state: RunState::Running, ..control }, Some(redrive)))
                    };
                    self.prepare(name, order, Some(reply));
                }
                Err(refusal) => drop(reply.send(Err(refusal))),
            },
            Command::Workers(reply) => drop(reply.send(Ok(workers(driver)))),
            Command::Backlog(reply) => drop(reply.send(Ok(driver.fleet.backlog()))),
            Command::Listen(reply) => drop(reply.send(Ok(driver.listen().subscribe()))),
            Command::Again(name) => {
                if self.preparing.contains(&name) {
                    again_later(self.sender.clone(), name);
                } else if self.over.get(&name).is_some_and(|s| s.problem.is_some()) {
                    let (home, run) = (self.config.home.clone(), name.clone());
                    let order = async move {
                        let (record, control) = read_order(&home, &run).await?;
                        Ok((record, control, None))
                    };
                    self.prepare(name, order, None);
                }
            }
            Command::Finished(name, outcome) => {
                self.finishing.remove(&name);
                match outcome {
                    Ok(()) => {
                        self.problems.remove(&name);
                        let control = driver.fleet.control(&name).unwrap_or_default();
                        if control.state == RunState::Cancelled {
                            tracing::info!(run = name, "tables of the cancelled run are written");
                            return Ok(());
                        }
                        let control = Control { state: RunState::Finished, ..control };
                        if let Err(error) = write_control(&self.config.home, &name, control).await {
                            tracing::error!(
                                run = name,
                                error = chain(&error),
                                "the run's end cannot be written down; tried again"
                            );
                            self.problems
                                .insert(name, format!("the run's end cannot be written down; tried again: {}", chain(&error)));
                            return Ok(());
                        }
                        CrashPoint::RunFinished.pass();
                        driver.fleet.set_control(&name, control);
                        tracing::info!(run = name, "run finished");
                    }
                    Err(error) => {
                        self.closed.remove(&name);
                        tracing::error!(run = name, error, "the run's tables cannot be written; tried again");
                        self.problems.insert(name, format!("the run's tables cannot be written; tried again: {error}"));
                    }
                }
            }
            Command::Read(name, found) => {
                self.reading = false;
                found.into_iter().for_each(|(job, found)| driver.fleet.read(&name, job, found));
            }
            Command::Saved(name, counted) => {
                if let Some(saved) = self.saved.get_mut(&name) {
                    saved.writing = false;
                    saved.counted = counted.unwrap_or(saved.counted);
                }
            }
        }
        Ok(())
    }

    /// A run's images are here, or in its table in the home, which is read beside the loop.
    fn look(&self, driver: &Driver, run: String, look: Look) {
        if let (Some(status), Some(outcomes)) = (driver.status(&run), driver.fleet.outcomes(&run)) {
            return look(Ok((self.completed(status), &outcomes)));
        }
        let Some(status) = self.over.get(&run).cloned() else {
            return look(Err(Refusal::NotFound(format!("there is no run {run}"))));
        };
        let (home, tables) = (self.config.home.clone(), self.tables.clone());
        tokio::spawn(async move {
            // One table is read at a time, and by one of all who ask for it.
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

    /// With what the fleet does not know.
    fn completed(&self, status: RunStatus) -> RunStatus {
        let seconds: f64 = status.stage_seconds.values().sum();
        let hours = seconds / 3600.0 * status.images as f64;
        let cost = self.config.worker_hour_price.map(|price| price * hours).filter(|_| seconds > 0.0);
        RunStatus { cost, problem: self.problems.get(&status.name).cloned(), ..status }
    }

    /// Tells all who watch how everything stands, if that has changed.
    fn tell(&mut self, driver: &Driver) {
        if !self.ticks.due() {
            return;
        }
        let active = driver.fleet.names().filter_map(|name| driver.fleet.brief(name, driver.now()));
        // Those that are over stay as they are.
        let over = self.over.values().filter(|status| status.problem.is_some());
        let over = over.map(|status| RunStatus { classes: vec![], super_classes: vec![], ..status.clone() });
        let runs: Vec<RunStatus> = active.map(|status| self.completed(status)).chain(over).collect();
        self.ticks.tell(driver, &runs);
    }

    /// Whether a run may be redriven, and how.
    fn redrivable(&self, driver: &Driver, name: &str, which: &RedriveRequest) -> Result<Redrive, Refusal> {
        let redrive = Redrive::parse(&which.wheres, which.seed).map_err(Refusal::Invalid)?;
        let state = driver.fleet.control(name).map(|c| c.state).or_else(|| self.over.get(name).map(|s| s.state));
        match state {
            _ if self.preparing.contains(name) => Err(Refusal::Conflict(format!("run {name} is being read now"))),
            None => Err(Refusal::NotFound(format!("there is no run {name}"))),
            Some(RunState::Finished) => Ok(redrive),
            Some(_) => Err(Refusal::Conflict(format!("run {name} is not finished: it cannot be redriven"))),
        }
    }

    async fn change(&mut self, driver: &mut Driver, name: &str, change: Change) -> Result<Result<RunStatus, Refusal>, Error> {
        let troubled = self.over.get(name).filter(|s| s.problem.is_some() && !self.preparing.contains(name));
        let troubled = troubled.map(control_of);
        let Some(before) = driver.fleet.control(name).or(troubled) else {
            let known = self.over.contains_key(name) || self.preparing.contains(name);
            let refusal = if known {
                Refusal::Conflict(format!("run {name} is over or being read"))
            } else {
                Refusal::NotFound(format!("there is no run {name}"))
            };
            return Ok(Err(refusal));
        };
        if matches!(before.state, RunState::Cancelled | RunState::Finished) {
            return Ok(Err(Refusal::Conflict(format!("run {name} is over"))));
        }
        if change.state == Some(RunState::Finished) || change.per_minute.is_some_and(|r| !(r.is_finite() && r >= 0.0)) {
            return Ok(Err(Refusal::Invalid("state is running, paused or cancelled, and per_minute at least 0".into())));
        }
        let control = Control {
            format: 1,
            state: change.state.unwrap_or(before.state),
            priority: change.priority.unwrap_or(before.priority),
            per_minute: change.per_minute.map_or(before.per_minute, |r| (r > 0.0).then_some(r)),
        };
        if let Err(error) = write_control(&self.config.home, name, control).await {
            // Nothing has changed.
            return Ok(Err(error.into()));
        }
        driver.fleet.set_control(name, control);
        driver.withdraw().await?;
        tracing::info!(run = name, state = ?control.state, priority = control.priority, "run changed");
        if let Some(status) = self.over.get_mut(name) {
            (status.state, status.priority, status.per_minute) = (control.state, control.priority, control.per_minute);
            return Ok(Ok(status.clone()));
        }
        Ok(Ok(driver.status(name).expect("it was there a moment ago")))
    }

    /// Writes the tables of runs that are settled, or cancelled and in no worker's hands.
    fn finish_settled(&mut self, driver: &Driver) {
        let names: Vec<String> = driver.fleet.names().cloned().collect();
        for name in names {
            let state = driver.fleet.control(&name).map(|c| c.state);
            let images = || driver.fleet.brief(&name, driver.now()).map_or(0, |s| s.skipped + s.succeeded + s.failed);
            let over = match state {
                Some(RunState::Running) => driver.fleet.settled(&name),
                Some(RunState::Cancelled) => driver.fleet.at_rest(&name) && self.closed.get(&name) != Some(&images()),
                _ => false,
            };
            if !over || self.preparing.contains(&name) || !self.finishing.insert(name.clone()) {
                continue;
            }
            if state == Some(RunState::Cancelled) {
                self.closed.insert(name.clone(), images());
            }
            let Some(spec) = driver.fleet.spec(&name).cloned() else { continue };
            let images = driver.status(&name).map_or(0, |s| s.images);
            let (home, sender) = (self.config.home.clone(), self.sender.clone());
            tokio::spawn(async move {
                let outcome = close(&home, &spec, images).await.map_err(|e| chain(&e));
                if outcome.is_err() {
                    tokio::time::sleep(Duration::from_secs(10)).await;
                }
                let _ = sender.send(Command::Finished(name, outcome)).await;
            });
        }
    }

    /// Reads results whose errors no event and no snapshot told, beside the loop.
    fn read_results(&mut self, driver: &Driver) {
        if self.reading {
            return;
        }
        let Some((name, wanted)) = driver.fleet.unread(READ) else { return };
        self.reading = true;
        let (home, sender) = (self.config.home.clone(), self.sender.clone());
        tokio::spawn(async move {
            let found = match read_errors(&home, &name, wanted).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(run = name, error = chain(&error), "results cannot be read; tried again");
                    tokio::time::sleep(TRY_AGAIN).await;
                    vec![]
                }
            };
            let _ = sender.send(Command::Read(name, found)).await;
        });
    }

    /// Writes down what is known of the results where enough is new, beside the loop.
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
            let (home, sender, name) = (self.config.home.clone(), self.sender.clone(), name.clone());
            tokio::spawn(async move {
                let counted = save(&home, &name, snapshot).await;
                let _ = sender.send(Command::Saved(name, counted)).await;
            });
        }
    }

    /// Writes down what is new, before the end.
    async fn save_last(&self, driver: &Driver) {
        let new = self.saved.iter().filter(|(name, saved)| driver.fleet.counted(name) != saved.counted);
        let snapshots = new.filter_map(|(name, _)| Some((name, driver.fleet.snapshot(name)?)));
        let saves = join_all(snapshots.map(|(name, snapshot)| save(&self.config.home, name, snapshot)));
        let _ = tokio::time::timeout(SNAPSHOT_LAST, saves).await;
    }
}

/// Workers that were heard of lately, by name.
pub(crate) fn workers(driver: &Driver) -> Vec<WorkerStatus> {
    let now = driver.now();
    let status = |(name, w): (&String, &crate::drive::Worker)| WorkerStatus {
        name: name.clone(),
        silent_seconds: now - w.heard,
        alive: w.alive.clone(),
    };
    let mut workers: Vec<WorkerStatus> = driver.present().map(status).collect();
    workers.sort_by(|a, b| a.name.cmp(&b.name));
    workers
}

/// Waits until `stop` becomes true, or nobody can say so any more.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Its data set may only be away for a while.
fn again_later(sender: mpsc::Sender<Command>, name: String) {
    tokio::spawn(async move {
        tokio::time::sleep(TRY_AGAIN).await;
        let _ = sender.send(Command::Again(name)).await;
    });
}
