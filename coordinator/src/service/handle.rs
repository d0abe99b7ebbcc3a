//! How clients send requests to the service.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proto::{Event, keys};
use store::{Runs, Store};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::live::{Standing, Told};
use super::outages::{Ongoing, STORE, store_away};
use super::refusal::Refusal;
use super::ticks::TELL_EVERY;
use crate::outcomes::Outcomes;
use client::api::{Change, Origin, Outage, RedriveRequest, RunRequest, RunStatus, WorkerStatus};
use results::run;

/// Requests that wait for the loop.
pub(super) const REQUESTS: usize = 64;

/// Longest wait for an answer that needs no store.
const AT_ONCE: Duration = Duration::from_secs(2);
/// Longest wait for an answer that needs the store, while it is there.
const WITH_STORE: Duration = Duration::from_secs(60);
/// A loop that has not turned for this long is stuck.
const STUCK: Duration = Duration::from_secs(60);

pub(super) type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// Gets the images of a run, or why there are none.
pub(super) type Look = Box<dyn FnOnce(Result<(RunStatus, &Outcomes), Refusal>) + Send>;

pub(super) enum Request {
    Submit(Box<RunRequest>, Reply<String>),
    Runs(Reply<Vec<RunStatus>>),
    Look(String, Look),
    Change(String, Change, Reply<RunStatus>),
    Redrive(String, RedriveRequest, Reply<String>),
    Delete(String, Reply<String>),
    Workers(Reply<Vec<WorkerStatus>>),
    Backlog(Reply<usize>),
    Listen(Reply<broadcast::Receiver<Event>>),
}

/// The time of the loop's last turn; `None`: it does not act.
#[derive(Clone, Default)]
pub(super) struct Pulse(Arc<Mutex<Option<Instant>>>);

impl Pulse {
    pub(super) fn turn(&self) {
        *self.0.lock().expect("no holder of the lock panics") = Some(Instant::now());
    }

    pub(super) fn rest(&self) {
        *self.0.lock().expect("no holder of the lock panics") = None;
    }

    fn since(&self) -> Option<Duration> {
        self.0.lock().expect("no holder of the lock panics").map(|last| last.elapsed())
    }
}

/// Sends requests to a [`Service`](super::Service).
#[derive(Clone)]
pub struct Handle {
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) leads: watch::Receiver<bool>,
    pub(super) live: watch::Sender<Option<Arc<Standing>>>,
    pub(super) runs: Runs,
    pub(super) pulse: Pulse,
    pub(super) outages: watch::Receiver<Vec<Ongoing>>,
}

impl Handle {
    /// Whether this coordinator acts; a standby does not.
    pub fn leads(&self) -> bool {
        *self.leads.borrow()
    }

    /// Changes with [`Handle::leads`]; closes with the service.
    pub fn leadership(&self) -> watch::Receiver<bool> {
        self.leads.clone()
    }

    /// For how long the loop has not turned, if that is too long.
    pub fn stuck(&self) -> Option<Duration> {
        self.pulse.since().filter(|since| *since > STUCK)
    }

    /// What is waited for now.
    pub fn outages(&self) -> Vec<Outage> {
        self.outages.borrow().iter().map(Ongoing::show).collect()
    }

    /// Longest wait for an answer that needs the store: while the store is away nobody waits long.
    pub(crate) fn patience(&self) -> Duration {
        if store_away(&self.outages.borrow()).is_some() { AT_ONCE } else { WITH_STORE }
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Refusal> {
        if !self.leads() {
            return Err(standby());
        }
        let (reply, answer) = oneshot::channel();
        let mut leads = self.leads.clone();
        let answered = async {
            self.requests.send(request(reply)).await.map_err(|_| standby())?;
            answer.await.map_err(|_| standby())?
        };
        tokio::select! {
            answer = answered => answer,
            _ = leads.wait_for(|leads| !leads) => Err(standby()),
        }
    }

    /// [`Handle::ask`] for what cannot be done while the store is away.
    async fn ask_for_a_change<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Refusal> {
        match self.outages().into_iter().find(|outage| outage.what == STORE) {
            Some(outage) => Err(Refusal::Unavailable(format!("nothing is changed: the store is away ({})", outage.why))),
            None => self.ask(request).await,
        }
    }

    /// [`Handle::ask`] for what the loop knows.
    async fn ask_soon<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Refusal> {
        within(AT_ONCE, self.ask(request)).await
    }

    /// Returns a note for people.
    pub async fn submit(&self, request: RunRequest) -> Result<String, Refusal> {
        self.ask_for_a_change(|reply| Request::Submit(Box::new(request), reply)).await
    }

    pub async fn runs(&self) -> Result<Vec<RunStatus>, Refusal> {
        self.ask_soon(Request::Runs).await
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
        let looked = self.ask(|reply: Reply<(RunStatus, T)>| {
            let look = move |seen: Result<(RunStatus, &Outcomes), Refusal>| {
                let _ = reply.send(seen.map(|(status, outcomes)| (status, look(outcomes))));
            };
            Request::Look(run, Box::new(look))
        });
        within(self.patience(), looked).await
    }

    /// The store of the run's objects.
    pub fn results(&self, run: &str) -> Result<Store, Refusal> {
        keys::check_run(run).map_err(|problem| Refusal::NotFound(format!("there is no run {run:?}: its name {problem}")))?;
        Ok(self.runs.of(run)?)
    }

    pub async fn origin(&self, run: &str) -> Result<Origin, Refusal> {
        let results = self.results(run)?;
        let read = async {
            Ok(match &self.runs {
                Runs::Home(home) => run::read_json(home, &keys::index(run)).await?,
                Runs::One(_) => run::read_json(&results, keys::RUN).await?,
            })
        };
        within(self.patience(), read).await
    }

    /// Numbers of runs and workers as JSON: first all, then those that change.
    pub fn live(&self) -> Result<Live, Refusal> {
        let live = || Live { standing: self.live.subscribe(), leads: self.leads.clone(), told: Told::default(), more: false };
        self.leads().then(live).ok_or_else(standby)
    }

    pub async fn change(&self, run: String, change: Change) -> Result<RunStatus, Refusal> {
        self.ask_for_a_change(|reply| Request::Change(run, change, reply)).await
    }

    /// Returns a note for people.
    pub async fn redrive(&self, run: String, which: RedriveRequest) -> Result<String, Refusal> {
        self.ask_for_a_change(|reply| Request::Redrive(run, which, reply)).await
    }

    /// Has a run deleted that has ended. Returns a note for people.
    pub async fn delete(&self, run: String) -> Result<String, Refusal> {
        self.ask_for_a_change(|reply| Request::Delete(run, reply)).await
    }

    /// `None`: one run is driven, without a home.
    pub(crate) fn home(&self) -> Option<&Store> {
        match &self.runs {
            Runs::Home(home) => Some(home),
            Runs::One(_) => None,
        }
    }

    /// Workers whose heartbeats came lately.
    pub async fn workers(&self) -> Result<Vec<WorkerStatus>, Refusal> {
        self.ask_soon(Request::Workers).await
    }

    /// Images of running runs that are not finished.
    pub async fn backlog(&self) -> Result<usize, Refusal> {
        self.ask_soon(Request::Backlog).await
    }

    pub async fn listen(&self) -> Result<broadcast::Receiver<Event>, Refusal> {
        self.ask_soon(Request::Listen).await
    }
}

pub struct Live {
    standing: watch::Receiver<Option<Arc<Standing>>>,
    leads: watch::Receiver<bool>,
    told: Told,
    /// The last message had no room for everything.
    more: bool,
}

impl Live {
    /// The next numbers; `None`: this coordinator has stopped acting.
    pub async fn next(&mut self) -> Option<String> {
        loop {
            tokio::select! {
                changed = self.standing.changed() => changed.ok()?,
                () = tokio::time::sleep(TELL_EVERY), if self.more => {}
                _ = self.leads.wait_for(|leads| !leads) => return None,
            }
            let standing = self.standing.borrow_and_update().clone();
            if let Some((message, more)) = standing.and_then(|standing| self.told.next(&standing)) {
                self.more = more;
                return Some(message);
            }
            self.more = false;
        }
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
    let late = || Refusal::Unavailable("the coordinator or its store is busy or away: try again in a moment".into());
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(late()))
}

fn standby() -> Refusal {
    Refusal::Unavailable("this coordinator is the standby: it waits until the active one is gone".into())
}
