//! How clients send requests to the service.

use std::sync::Arc;

use proto::{Event, keys};
use store::{Runs, Store};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::refusal::Refusal;
use crate::outcomes::Outcomes;
use client::api::{Change, Origin, RedriveRequest, RunRequest, RunStatus, WorkerStatus};
use results::run;

/// Requests that wait for the loop.
pub(super) const REQUESTS: usize = 64;

pub(super) type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// Gets the images of a run, or why there are none.
pub(super) type Look = Box<dyn FnOnce(Result<(RunStatus, &Outcomes), Refusal>) + Send>;

pub(super) enum Request {
    Submit(Box<RunRequest>, Reply<String>),
    Runs(Reply<Vec<RunStatus>>),
    Look(String, Look),
    Change(String, Change, Reply<RunStatus>),
    Redrive(String, RedriveRequest, Reply<String>),
    Workers(Reply<Vec<WorkerStatus>>),
    Backlog(Reply<usize>),
    Listen(Reply<broadcast::Receiver<Event>>),
}

/// Sends requests to a [`Service`](super::Service).
#[derive(Clone)]
pub struct Handle {
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) leads: watch::Receiver<bool>,
    pub(super) live: watch::Sender<Arc<str>>,
    pub(super) runs: Runs,
}

impl Handle {
    /// Whether this coordinator acts; a standby does not.
    pub fn leads(&self) -> bool {
        *self.leads.borrow()
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Refusal> {
        if !self.leads() {
            return Err(standby());
        }
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| standby())?;
        answer.await.map_err(|_| standby())?
    }

    /// Returns a note for people.
    pub async fn submit(&self, request: RunRequest) -> Result<String, Refusal> {
        self.ask(|reply| Request::Submit(Box::new(request), reply)).await
    }

    pub async fn runs(&self) -> Result<Vec<RunStatus>, Refusal> {
        self.ask(Request::Runs).await
    }

    pub async fn run(&self, run: String) -> Result<RunStatus, Refusal> {
        // Not by `look`, which would read the table of a closed run.
        let found = self.runs().await?.into_iter().find(|status| status.name == run);
        found.ok_or_else(|| Refusal::no_run(&run))
    }

    /// The run's status, and what `look` returns for its images.
    pub async fn look<T: Send + 'static>(
        &self,
        run: String,
        look: impl FnOnce(&Outcomes) -> T + Send + 'static,
    ) -> Result<(RunStatus, T), Refusal> {
        self.ask(|reply: Reply<(RunStatus, T)>| {
            let look = move |seen: Result<(RunStatus, &Outcomes), Refusal>| {
                let _ = reply.send(seen.map(|(status, outcomes)| (status, look(outcomes))));
            };
            Request::Look(run, Box::new(look))
        })
        .await
    }

    /// The store of the run's objects.
    pub fn results(&self, run: &str) -> Result<Store, Refusal> {
        keys::check_run(run).map_err(|problem| Refusal::NotFound(format!("there is no run {run:?}: its name {problem}")))?;
        Ok(self.runs.of(run)?)
    }

    pub async fn origin(&self, run: &str) -> Result<Origin, Refusal> {
        let results = self.results(run)?;
        Ok(match &self.runs {
            Runs::Home(home) => run::read_json(home, &keys::index(run)).await?,
            Runs::One(_) => run::read_json(&results, keys::RUN).await?,
        })
    }

    /// Numbers of runs and workers as JSON, whenever they change.
    pub fn live(&self) -> Result<Live, Refusal> {
        let live = || Live { ticks: self.live.subscribe(), leads: self.leads.clone() };
        self.leads().then(live).ok_or_else(standby)
    }

    pub async fn change(&self, run: String, change: Change) -> Result<RunStatus, Refusal> {
        self.ask(|reply| Request::Change(run, change, reply)).await
    }

    /// Returns a note for people.
    pub async fn redrive(&self, run: String, which: RedriveRequest) -> Result<String, Refusal> {
        self.ask(|reply| Request::Redrive(run, which, reply)).await
    }

    /// Workers whose heartbeats came lately.
    pub async fn workers(&self) -> Result<Vec<WorkerStatus>, Refusal> {
        self.ask(Request::Workers).await
    }

    /// Images of running runs that are not finished.
    pub async fn backlog(&self) -> Result<usize, Refusal> {
        self.ask(Request::Backlog).await
    }

    pub async fn listen(&self) -> Result<broadcast::Receiver<Event>, Refusal> {
        self.ask(Request::Listen).await
    }
}

pub struct Live {
    ticks: watch::Receiver<Arc<str>>,
    leads: watch::Receiver<bool>,
}

impl Live {
    /// The next numbers; `None`: this coordinator has stopped acting.
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

fn standby() -> Refusal {
    Refusal::Unavailable("this coordinator is the standby: it waits until the active one is gone".into())
}
