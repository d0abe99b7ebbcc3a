//! How others ask the service, and what it is asked.

use std::sync::Arc;

use proto::{Event, keys};
use store::{Runs, Store};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::asked::Refusal;
use super::known::Found;
use super::order::{Prepared, Trouble};
use crate::Error;
use crate::outcomes::Outcomes;
use client::api::{Change, Origin, RedriveRequest, RunRequest, RunStatus, WorkerStatus};
use results::run;

/// Commands that wait for the loop.
pub(crate) const COMMANDS: usize = 64;

pub(crate) type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// Looks at the images of a run, or is told why it cannot.
pub(crate) type Look = Box<dyn FnOnce(Result<(RunStatus, &Outcomes), Refusal>) + Send>;

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

/// Tells whoever asked to change something why that is not done.
pub(crate) fn refuse_all(command: Command, why: &str) {
    let refusal = || Refusal::Conflict(why.to_owned());
    match command {
        Command::Submit(_, reply) | Command::Redrive(_, _, reply) => drop(reply.send(Err(refusal()))),
        Command::Change(_, _, reply) => drop(reply.send(Err(refusal()))),
        _ => {}
    }
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

    /// Where a run comes from.
    pub async fn origin(&self, run: &str) -> Result<Origin, Refusal> {
        let results = self.results(run)?;
        Ok(match &self.runs {
            Runs::Home(home) => run::read_json(home, &keys::index(run)).await?,
            Runs::One(_) => run::read_json(&results, keys::RUN).await?,
        })
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
