//! Many runs, kept going (*io*): loads them from the home, hands their jobs out, writes their tables at the end.
//!
//! Everything that must survive is in the home before anybody is told that it is done. A second coordinator waits until the first
//! is gone; should both act for a moment, they do the same things, none of which harms when done twice.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::{StreamExt, TryStreamExt, stream};
use proto::keys::Marker;
use proto::{
    Control, CrashPoint, Errors, Event, ModelManifest, Params, ResultRecord, RunRecord, RunState, Snapshot, chain, keys,
};
use queue::Queue;
use serde::{Deserialize, Serialize};
use serde_json::json;
use store::{ErrorKind, PutNew, Runs, Store};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::dataset::DatasetError;
use crate::drive::Driver;
use crate::finish::finish;
use crate::fleet::{ClassStatus, RunStatus};
use crate::home;
use crate::outcomes::{Outcomes, Table};
use crate::plan::{Plan, RunSpec};
use crate::redrive::Redrive;
use crate::run::{self, AT_ONCE, Error, Markers, Seen};
use crate::summary::{ClassSummary, Metric, Summary};
use crate::tally::{self, Tally};

/// Commands that wait for the loop.
pub(crate) const COMMANDS: usize = 64;
/// What the store did not do is asked for again after this time.
const TRY_AGAIN: Duration = Duration::from_secs(30);
/// Results that are read for their errors until the loop hears of them.
const READ: usize = 1024;
/// A snapshot is written this long after the last, and earlier when so many results have come since.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(60);
const SNAPSHOT_SOON: (usize, Duration) = (10_000, Duration::from_secs(5));
/// A coordinator that stops waits this long for its last snapshots.
const SNAPSHOT_LAST: Duration = Duration::from_secs(10);

/// Who watches is told of changes so often, at most.
pub(crate) const TELL_EVERY: Duration = Duration::from_millis(200);

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

/// A run that a person asks for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// 1 to 63 letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// URL of the data set, readable by coordinator and workers.
    pub dataset: String,
    /// `auto`, `none` or a key of the data set.
    #[serde(default = "auto")]
    pub annotations: String,
    /// Name of a model in the home.
    pub model: String,
    /// `paper`, `pix2latent` or `fast`; not together with `params`.
    #[serde(default)]
    pub profile: Option<String>,
    /// All parameters.
    #[serde(default)]
    pub params: Option<Params>,
    /// Everything random follows from it.
    #[serde(default)]
    pub seed: u64,
    /// Only this many images, evenly spread.
    #[serde(default)]
    pub limit: Option<usize>,
    /// Higher comes first.
    #[serde(default)]
    pub priority: i32,
    /// Most jobs started each minute.
    #[serde(default)]
    pub per_minute: Option<f64>,
}

fn auto() -> String {
    "auto".into()
}

/// A change of what should be done with a run; what is absent stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// `running`, `paused` or `cancelled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<RunState>,
    /// Higher comes first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// Most jobs started each minute; 0 lifts the limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_minute: Option<f64>,
}

/// What of a finished run is projected again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedriveRequest {
    /// Images that meet one of these; each is conditions joined by commas. None stands for all failures.
    #[serde(default, rename = "where")]
    pub wheres: Vec<String>,
    /// Takes the place of the run's seed for them; without it only failures are meant.
    #[serde(default)]
    pub seed: Option<u64>,
}

/// A worker, for people.
#[derive(Clone, Debug, Serialize)]
pub struct WorkerStatus {
    /// Its name.
    pub name: String,
    /// Seconds since it was heard of.
    pub silent_seconds: f64,
    /// What it said.
    #[serde(flatten)]
    pub alive: proto::Alive,
}

/// Why something is not done.
#[derive(Clone, Debug)]
pub enum Refusal {
    /// No such run.
    NotFound(String),
    /// It contradicts what is there.
    Conflict(String),
    /// It makes no sense.
    Invalid(String),
    /// Whoever asks may not.
    Forbidden(String),
    /// Whoever asks does so too often.
    TooMany(String),
    /// Not now.
    Unavailable(String),
}

impl Refusal {
    /// For people.
    pub fn message(&self) -> &str {
        match self {
            Refusal::NotFound(m) | Refusal::Conflict(m) | Refusal::Invalid(m) => m,
            Refusal::Forbidden(m) | Refusal::TooMany(m) | Refusal::Unavailable(m) => m,
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        let message = chain(&error);
        match error {
            Error::Store(e) | Error::Dataset(DatasetError::Store(e)) if e.is_retryable() => Refusal::Unavailable(message),
            Error::NothingMeant { .. } => Refusal::Conflict(message),
            _ => Refusal::Invalid(message),
        }
    }
}

pub(crate) type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

pub(crate) enum Command {
    Submit(Box<RunRequest>, Reply<String>),
    Runs(Reply<Vec<RunStatus>>),
    Look(String, Look),
    Change(String, Change, Reply<RunStatus>),
    Redrive(String, RedriveRequest, Reply<String>),
    Workers(Reply<Vec<WorkerStatus>>),
    Backlog(Reply<usize>),
    Listen(Reply<broadcast::Receiver<Event>>),
    Prepared(String, Result<Box<Prepared>, Trouble>, Option<Reply<String>>),
    Finished(String, Result<(), String>),
    Read(String, Vec<Found>),
    Saved(String, Option<usize>),
    Again(String),
}

/// Looks at the images of a run, or is told why it cannot.
pub(crate) type Look = Box<dyn FnOnce(Result<(RunStatus, &Outcomes), Refusal>) + Send>;

/// A run that can be handed out.
pub(crate) struct Prepared {
    spec: RunSpec,
    plan: Plan,
    control: Control,
    tally: Tally,
}

/// Why a run cannot be planned.
pub(crate) struct Trouble {
    refusal: Refusal,
    /// How it stands, if it is on record and is tried again.
    again: Option<Box<RunStatus>>,
}

/// What is to be planned: the run, what should be done with it, and what of it is projected again.
type Order = (RunRecord, Control, Option<Redrive>);

/// What was read of a result: the number of its job, and class and errors if there are any.
pub(crate) type Found = (u64, Option<(u32, Errors)>);

/// The last snapshot of a run.
struct Saved {
    at: Instant,
    /// Results that count in it.
    counted: usize,
    /// Another is being written.
    writing: bool,
}

/// A clonable handle by which others ask the service.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    leads: watch::Receiver<bool>,
    live: watch::Sender<Arc<str>>,
    runs: Runs,
}

impl Handle {
    pub(crate) fn new(
        commands: mpsc::Sender<Command>,
        leads: watch::Receiver<bool>,
        live: watch::Sender<Arc<str>>,
        runs: Runs,
    ) -> Handle {
        Handle { commands, leads, live, runs }
    }

    /// Whether this coordinator acts; a standby does not.
    pub fn leads(&self) -> bool {
        *self.leads.borrow()
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Refusal> {
        let standby = || Refusal::Unavailable("this coordinator waits until the acting one is gone".into());
        if !self.leads() {
            return Err(standby());
        }
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| standby())?;
        answer.await.map_err(|_| standby())?
    }

    /// Begins a run, or finds the same one there. Returns a note for people.
    pub async fn submit(&self, request: RunRequest) -> Result<String, Refusal> {
        self.ask(|reply| Command::Submit(Box::new(request), reply)).await
    }

    /// All runs.
    pub async fn runs(&self) -> Result<Vec<RunStatus>, Refusal> {
        self.ask(Command::Runs).await
    }

    /// One run.
    pub async fn run(&self, run: String) -> Result<RunStatus, Refusal> {
        // Not by `look`, which would read the table of a run that is over.
        let found = self.runs().await?.into_iter().find(|status| status.name == run);
        found.ok_or_else(|| Refusal::NotFound(format!("there is no run {run}")))
    }

    /// How a run stands, and what `look` makes of its images.
    pub async fn look<T: Send + 'static>(
        &self,
        run: String,
        look: impl FnOnce(&Outcomes) -> T + Send + 'static,
    ) -> Result<(RunStatus, T), Refusal> {
        self.ask(|reply: Reply<(RunStatus, T)>| {
            let look = move |seen: Result<(RunStatus, &Outcomes), Refusal>| {
                let _ = reply.send(seen.map(|(status, outcomes)| (status, look(outcomes))));
            };
            Command::Look(run, Box::new(look))
        })
        .await
    }

    /// Where a run's objects are.
    pub fn results(&self, run: &str) -> Result<Store, Refusal> {
        keys::check_run(run).map_err(|problem| Refusal::NotFound(format!("there is no run {run:?}: its name {problem}")))?;
        Ok(self.runs.of(run).map_err(Error::from)?)
    }

    /// Numbers of runs and workers as JSON, whenever they change.
    pub fn live(&self) -> Result<Live, Refusal> {
        let standby = || Refusal::Unavailable("this coordinator waits until the acting one is gone".into());
        let live = || Live { ticks: self.live.subscribe(), leads: self.leads.clone() };
        self.leads().then(live).ok_or_else(standby)
    }

    /// Changes what should be done with a run.
    pub async fn change(&self, run: String, change: Change) -> Result<RunStatus, Refusal> {
        self.ask(|reply| Command::Change(run, change, reply)).await
    }

    /// Projects images of a finished run again.
    pub async fn redrive(&self, run: String, which: RedriveRequest) -> Result<String, Refusal> {
        self.ask(|reply| Command::Redrive(run, which, reply)).await
    }

    /// Workers that were heard of lately.
    pub async fn workers(&self) -> Result<Vec<WorkerStatus>, Refusal> {
        self.ask(Command::Workers).await
    }

    /// Images that running runs still have to do.
    pub async fn backlog(&self) -> Result<usize, Refusal> {
        self.ask(Command::Backlog).await
    }

    /// Events from now on.
    pub async fn listen(&self) -> Result<broadcast::Receiver<Event>, Refusal> {
        self.ask(Command::Listen).await
    }
}

/// Numbers of runs and workers, as they change.
pub struct Live {
    ticks: watch::Receiver<Arc<str>>,
    leads: watch::Receiver<bool>,
}

impl Live {
    /// The next ones; `None`: this coordinator acts no more.
    pub async fn next(&mut self) -> Option<Arc<str>> {
        loop {
            tokio::select! {
                changed = self.ticks.changed() => changed.ok()?,
                _ = self.leads.wait_for(|leads| !leads) => return None,
            }
            let tick = self.ticks.borrow_and_update().clone();
            if !tick.is_empty() {
                return Some(tick);
            }
        }
    }
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

/// What all who watch are told.
pub(crate) struct Ticks {
    live: watch::Sender<Arc<str>>,
    told: Instant,
}

impl Ticks {
    pub(crate) fn new(live: watch::Sender<Arc<str>>) -> Ticks {
        Ticks { live, told: Instant::now() }
    }

    /// Whether anybody watches, and it is time. The time counts from then on.
    pub(crate) fn due(&mut self) -> bool {
        let late = self.told.elapsed().as_secs_f64() / TELL_EVERY.as_secs_f64();
        if self.live.receiver_count() == 0 {
            // Whoever comes next is not told what was.
            self.live.send_if_modified(|told| !std::mem::replace(told, Arc::from("")).is_empty());
            return false;
        }
        if late < 1.0 {
            return false;
        }
        // By the clock, and not by when the last one was ready.
        self.told += TELL_EVERY.mul_f64(late.floor());
        true
    }

    /// Tells how runs and workers stand, if that has changed.
    pub(crate) fn tell(&self, driver: &Driver, runs: &[RunStatus]) {
        let workers: Vec<_> = driver.present().map(|(name, worker)| json!({ "name": name, "alive": worker.alive })).collect();
        let tick: Arc<str> = json!({ "runs": runs, "workers": workers }).to_string().into();
        self.live.send_if_modified(|told| {
            let news = *told != tick;
            *told = tick;
            news
        });
    }
}

/// Tables of runs that are over, as they were asked for: the oldest makes room.
#[derive(Clone, Default)]
struct Tables {
    known: Arc<Mutex<VecDeque<Named>>>,
    reading: Arc<tokio::sync::Mutex<()>>,
}

type Named = (String, Arc<Table>);

impl Tables {
    const MOST: usize = 4;

    fn get(&self, run: &str) -> Option<Arc<Table>> {
        self.known.lock().expect("nobody panics with it").iter().find(|(name, _)| name == run).map(|(_, table)| table.clone())
    }

    fn put(&self, run: &str, table: &Arc<Table>) {
        let mut tables = self.known.lock().expect("nobody panics with it");
        tables.retain(|(name, _)| name != run);
        tables.truncate(Self::MOST - 1);
        tables.push_front((run.to_owned(), table.clone()));
    }

    fn forget(&self, run: &str) {
        self.known.lock().expect("nobody panics with it").retain(|(name, _)| name != run);
    }
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
                Err(error @ (Error::Damaged { .. } | Error::OtherName { .. })) => {
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
        let over = over.map(|status| RunStatus { classes: vec![], ..status.clone() });
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

/// Tells whoever asked to change something why that is not done.
pub(crate) fn refuse_all(command: Command, why: &str) {
    let refusal = || Refusal::Conflict(why.to_owned());
    match command {
        Command::Submit(_, reply) | Command::Redrive(_, _, reply) => drop(reply.send(Err(refusal()))),
        Command::Change(_, _, reply) => drop(reply.send(Err(refusal()))),
        _ => {}
    }
}

fn control_of(status: &RunStatus) -> Control {
    Control { format: 1, state: status.state, priority: status.priority, per_minute: status.per_minute }
}

/// Waits until `stop` becomes true, or nobody can say so any more.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// The images of a run that is over; none, where it has no table.
async fn read_table(home: &Store, run: &str) -> Result<Arc<Table>, Refusal> {
    let bytes = match Runs::Home(home.clone()).of(run).map_err(Error::from)?.get("results.csv").await {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Arc::default()),
        Err(error) => return Err(Error::from(error).into()),
    };
    let read = tokio::task::spawn_blocking(move || Table::read(&bytes)).await.expect("reading does not panic");
    read.map(Arc::new).map_err(|error| Refusal::Invalid(format!("results.csv of run {run} is damaged: {error}")))
}

/// A run that is over, as its summary tells.
async fn over_status(home: &Store, name: &str, control: Control) -> Result<RunStatus, Error> {
    let summary = Runs::Home(home.clone()).of(name)?.get("summary.json").await.ok();
    let summary = summary.and_then(|bytes| serde_json::from_slice::<Summary>(&bytes).ok());
    let count = summary.as_ref().map_or((0, 0), |s| (s.images.succeeded, s.images.failed));
    let class = |class: ClassSummary| {
        let mean = |metric| class.error.get(&metric).and_then(|spread| spread.mean);
        let lpips = class.error.get(&Metric::Lpips).and_then(|spread| spread.standard_error);
        ClassStatus {
            images: class.images,
            loss: mean(Metric::Loss),
            l1: mean(Metric::L1),
            lpips: mean(Metric::Lpips),
            lpips_standard_error: lpips,
            class: class.name,
        }
    };
    let images = summary.as_ref().map_or(0, |s| s.images.planned.unwrap_or(s.images.total));
    Ok(RunStatus {
        name: name.to_owned(),
        state: control.state,
        priority: control.priority,
        per_minute: control.per_minute,
        images: images as usize,
        skipped: 0,
        succeeded: count.0 as usize,
        failed: count.1 as usize,
        started: 0,
        queued: 0,
        waiting: (images as usize).saturating_sub((count.0 + count.1) as usize),
        classes: summary.map_or(vec![], |s| s.classes.into_iter().map(class).collect()),
        unread: 0,
        per_hour: None,
        eta_seconds: None,
        stage_seconds: BTreeMap::new(),
        cost: None,
        problem: None,
    })
}

/// Class and errors of results; nothing for those that are gone, or that cannot be read at the end of the run either.
async fn read_errors(home: &Store, name: &str, wanted: Vec<(u64, String)>) -> Result<Vec<Found>, Error> {
    let results = Runs::Home(home.clone()).of(name)?;
    let read = move |(job, image): (u64, String)| {
        let results = results.clone();
        async move {
            match run::read_json::<ResultRecord>(&results, &keys::marker(&image, Marker::Result)).await {
                Ok(record) => Ok((job, Some((record.class, tally::errors(&record))))),
                Err(Error::Store(error)) if error.kind() == ErrorKind::NotFound => Ok((job, None)),
                Err(error @ Error::Damaged { .. }) => {
                    tracing::warn!(error = chain(&error), "a result does not count among the errors by class");
                    Ok((job, None))
                }
                Err(error) => Err(error),
            }
        }
    };
    stream::iter(wanted).map(read).buffer_unordered(AT_ONCE).try_collect().await
}

/// Writes a snapshot; how many results count in it, if that went well. It costs time only where it did not.
async fn save(home: &Store, name: &str, snapshot: Snapshot) -> Option<usize> {
    let counted = snapshot.results.len();
    let write = async {
        let bytes = tokio::task::spawn_blocking(move || snapshot.encode()).await.expect("encoding does not panic");
        Runs::Home(home.clone()).of(name)?.put(keys::SNAPSHOT, bytes).await
    };
    match write.await {
        Ok(()) => Some(counted),
        Err(error) => {
            tracing::warn!(run = name, error = chain(&error), "a snapshot could not be written");
            None
        }
    }
}

/// What a run is, and what should be done with it.
async fn read_order(home: &Store, name: &str) -> Result<(RunRecord, Control), Error> {
    let key = keys::index(name);
    let record: RunRecord = run::read_json(home, &key).await?;
    if record.name != name {
        return Err(Error::OtherName { key, name: record.name });
    }
    Ok((record, read_control(home, name).await?))
}

/// The snapshot of a run, if there is one that is whole. Without it the results are read.
async fn read_snapshot(results: &Store) -> Option<Snapshot> {
    let bytes = match results.get(keys::SNAPSHOT).await {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(error = chain(&error), "the snapshot cannot be read");
            return None;
        }
    };
    let decoded = Snapshot::decode(&bytes);
    decoded.inspect_err(|error| tracing::warn!(at = results.url(), error = chain(error), "the snapshot is not used")).ok()
}

/// Checks a request and turns it into what is to be planned. `known`: there is a run of this name.
async fn submitted(config: &Config, request: RunRequest, known: bool) -> Result<Order, Refusal> {
    let invalid = |what: String| Refusal::Invalid(what);
    keys::check_run(&request.name).map_err(|p| invalid(format!("the run's name {:?} {p}", request.name)))?;
    keys::check_run(&request.model).map_err(|p| invalid(format!("the model's name {:?} {p}", request.model)))?;
    let params = match (&request.profile, &request.params) {
        (Some(_), Some(_)) => return Err(invalid("give profile or params, not both".into())),
        (None, Some(params)) => Params::from_json(&params.to_json()).map_err(|e| invalid(chain(&e)))?,
        (profile, None) => {
            let profile = profile.as_deref().unwrap_or("paper");
            let unknown = || invalid(format!("profile {profile:?} is none of {}", Params::PROFILES.join(", ")));
            Params::profile(profile).ok_or_else(unknown)?
        }
    };
    if request.per_minute.is_some_and(|r| !(r.is_finite() && r > 0.0)) {
        return Err(invalid("per_minute is not above 0".into()));
    }
    if request.limit == Some(0) {
        return Err(invalid("limit is not above 0".into()));
    }
    if !request.dataset.contains("://") && !Path::new(&request.dataset).is_absolute() {
        let dataset = &request.dataset;
        return Err(invalid(format!(
            "the data set {dataset:?} is neither a URL nor an absolute path: nobody knows where it begins"
        )));
    }
    let dataset = Store::open(&request.dataset).await.map_err(Error::from)?;
    let (manifest, digest) = read_model(&config.home, &request.model).await?;
    let record = RunRecord {
        format: 1,
        name: request.name.clone(),
        dataset: dataset.url(),
        annotations: request.annotations,
        limit: request.limit,
        model: request.model,
        model_digest: digest,
        resolution: manifest.generator.resolution,
        params,
        seed: request.seed,
        version: config.version.clone(),
    };
    match run::read_json::<RunRecord>(&config.home, &keys::index(&request.name)).await {
        Ok(there) if (RunRecord { version: there.version.clone(), ..record.clone() }) == there => {
            if known {
                return Err(Refusal::Conflict(format!("run {} is there already, with the same settings", request.name)));
            }
        }
        Ok(_) => {
            let name = &request.name;
            return Err(Refusal::Conflict(format!("there is a run {name} with other settings: choose another name")));
        }
        Err(Error::Store(e)) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(e.into()),
    }
    let (priority, per_minute) = (request.priority, request.per_minute);
    Ok((record, Control { priority, per_minute, ..Control::default() }, None))
}

/// Its data set may only be away for a while.
fn again_later(sender: mpsc::Sender<Command>, name: String) {
    tokio::spawn(async move {
        tokio::time::sleep(TRY_AGAIN).await;
        let _ = sender.send(Command::Again(name)).await;
    });
}

/// A run that is on record and cannot be planned now.
async fn in_trouble(home: &Store, name: &str, control: Control, refusal: Refusal) -> Trouble {
    let problem = Some(refusal.message().to_owned());
    let again = over_status(home, name, control).await.ok().map(|status| Box::new(RunStatus { problem, ..status }));
    Trouble { refusal, again }
}

/// `known`: somebody was told that the run is on record.
async fn prepare(home: &Store, name: &str, order: Order, known: bool) -> Result<Prepared, Trouble> {
    let (record, control, redrive) = order;
    let look = async || {
        let (manifest, digest) = read_model(home, &record.model).await?;
        if digest != record.model_digest {
            let (there, here) = (record.model_digest.clone(), digest);
            return Err(Error::OtherRun { url: home.url(), what: "model", there, here });
        }
        let dataset = Store::open(&record.dataset).await?;
        let results = Runs::Home(home.clone()).of(name)?;
        let spec = RunSpec { classes: manifest.classes, record: record.clone() };
        let seen = run::see(&spec, redrive.as_ref(), control.state != RunState::Cancelled, &dataset, &results).await?;
        if redrive.is_some() && seen.left() == 0 {
            return Err(Error::NothingMeant { run: name.to_owned() });
        }
        if redrive.is_some() {
            // Before anything is deleted: should this process die, the next one goes on with it.
            write_control(home, name, control).await?;
        }
        Ok((seen, spec, results))
    };
    let (seen, spec, results) = match look().await {
        Ok(seen) => seen,
        Err(error) if known => return Err(in_trouble(home, name, control, error.into()).await),
        Err(error) => return Err(Trouble { refusal: error.into(), again: None }),
    };
    match plan(home, seen, spec, &results, control).await {
        Ok(prepared) => Ok(prepared),
        Err(error) if known || redrive.is_some() => Err(in_trouble(home, name, control, error.into()).await),
        Err(error) => Err(Trouble { refusal: error.into(), again: None }),
    }
}

async fn plan(home: &Store, seen: Seen, spec: RunSpec, results: &Store, control: Control) -> Result<Prepared, Error> {
    let name = spec.record.name.clone();
    let (plan, notes) = seen.plan(&spec, results).await?;
    for note in notes {
        tracing::info!(run = name, "{note}");
    }
    let bytes = serde_json::to_vec_pretty(&spec.record).expect("a record serialises");
    // Written by this or an earlier start; begin() has compared run.json already.
    let (PutNew::Created | PutNew::Exists) = home.put_new(&keys::index(&name), bytes).await?;
    CrashPoint::RunIndexed.pass();
    write_control(home, &name, control).await?;
    CrashPoint::RunControlled.pass();
    let snapshot = read_snapshot(results).await;
    let mut plan = plan;
    let failures =
        std::mem::take(&mut plan.settled_failures).into_iter().chain(plan.failures.iter().cloned()).collect::<Vec<_>>();
    let resume = move || {
        let results = plan.settled.iter().map(|planned| (spec.job(planned).id().to_string(), planned.image.clone()));
        let tally = Tally::resume(snapshot, results, failures);
        Prepared { spec, plan, control, tally }
    };
    let prepared = tokio::task::spawn_blocking(resume).await.expect("no value of a plan makes it panic");
    let (counted, unread) = (prepared.tally.counted(), prepared.tally.left());
    tracing::info!(run = name, counted, unread, "errors by class go on");
    Ok(prepared)
}

/// Tables, report, and what lost attempts left.
async fn close(home: &Store, spec: &RunSpec, images: usize) -> Result<(), Error> {
    let results = Runs::Home(home.clone()).of(&spec.record.name)?;
    loop {
        let records = Arc::new(run::read_records(&results).await?);
        finish(&spec.record, Some(images), &records, &results).await?;
        CrashPoint::TablesWritten.pass();
        let swept = run::sweep(&records.results, &results).await?;
        CrashPoint::Swept.pass();
        tracing::info!(run = spec.record.name, swept, "removed what lost attempts left");
        // An image that was given up may have got its result after all.
        if Markers::list(&results).await?.results.len() == records.results.len() {
            return Ok(());
        }
    }
}

async fn read_model(home: &Store, model: &str) -> Result<(ModelManifest, String), Error> {
    let key = format!("{}/model.json", keys::model_prefix(model));
    let bytes = match home.get(&key).await {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => return Err(Error::NoModel { model: model.into(), url: home.url() }),
        Err(e) => return Err(e.into()),
    };
    ModelManifest::parse(&bytes).map_err(|source| Error::BadModel { key, source })
}

async fn read_control(home: &Store, run: &str) -> Result<Control, Error> {
    match run::read_json(home, &keys::control(run)).await {
        Ok(control) => Ok(control),
        Err(Error::Store(e)) if e.kind() == ErrorKind::NotFound => Ok(Control::default()),
        Err(e) => Err(e),
    }
}

async fn write_control(home: &Store, run: &str, control: Control) -> Result<(), Error> {
    Ok(home.put(&keys::control(run), serde_json::to_vec_pretty(&control).expect("a record serialises")).await?)
}
