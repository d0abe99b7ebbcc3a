//! One loop that drives runs (*io*): it fills the window, takes in events and answers requests. It drives all runs of a home, or one
//! run of `basin project`.
//!
//! Everything that must survive is in the home before a client is told that it is done. A second coordinator waits until the first
//! is gone; should both act for a moment, only the newer one can write orders (`lead.rs`), and nothing else does harm when done twice.

mod closed_runs;
mod handle;
mod home_runs;
mod intake;
mod lead;
mod live;
mod one_run;
mod outages;
mod refusal;
mod snapshots;
mod spending;
mod ticks;

use std::time::Duration;

use proto::{Event, chain};
use queue::{Channel, Leadership, Queue};
use store::{Runs, Store};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::drive::{Driver, Heartbeat, WINDOW};
use crate::metrics;
use client::api::{RunStatus, WorkerStatus};
pub use handle::{Handle, Live};
use handle::{Look, Pulse, REQUESTS, Request};
pub use home_runs::Config;
use home_runs::{Done, HomeRuns};
pub use one_run::OneRun;
use outages::{Ongoing, store_away};
pub use refusal::Refusal;
use ticks::{TELL_EVERY, Ticks};

/// A leader whose store has been away for this long gives up its lead, if a standby reaches the store.
const GIVE_UP: Duration = Duration::from_secs(30);
/// How often a standby says that it reaches the store, and for how many seconds that counts.
const SAY_EVERY: Duration = Duration::from_secs(5);
const SAID: f64 = 15.0;
/// Pause of a coordinator that could not begin, and after it gave up its lead.
const AGAIN: Duration = Duration::from_secs(5);

/// Call [`Service::run`] to start it.
pub struct Service {
    queue: Queue,
    requests: mpsc::Receiver<Request>,
    leads: watch::Sender<bool>,
    ticks: Ticks,
    pulse: Pulse,
    outages: watch::Sender<Vec<Ongoing>>,
    policy: Policy,
}

/// What acting needs, and what ends with it.
struct Acting {
    driver: Driver,
    /// One run needs no lead.
    lead: Option<Leadership>,
}

/// Which runs the loop drives.
enum Policy {
    /// All runs of a home, until the service is stopped. Clients submit, change and redrive them.
    Many(Box<HomeRuns>),
    /// One planned run, until every image of it is finished. Clients can watch it and not change it.
    One(Box<OneRun>),
}

impl Service {
    /// Drives all runs of a home.
    pub fn new(config: Config) -> (Service, Handle) {
        let (queue, runs) = (config.queue.clone(), Runs::Home(config.home.clone()));
        Service::with(queue, runs, false, Policy::Many(Box::new(HomeRuns::new(config))))
    }

    /// Drives one run that is already planned.
    pub fn one(run: OneRun, queue: Queue) -> (Service, Handle) {
        let runs = Runs::One(run.results.clone());
        Service::with(queue, runs, true, Policy::One(Box::new(run)))
    }

    fn with(queue: Queue, runs: Runs, leads: bool, policy: Policy) -> (Service, Handle) {
        let (sender, requests) = mpsc::channel(REQUESTS);
        let (leads, leading) = watch::channel(leads);
        let (live, outages, pulse) = (watch::Sender::new(None), watch::Sender::new(vec![]), Pulse::default());
        let (seen, beat) = (outages.subscribe(), pulse.clone());
        let handle = Handle { requests: sender, leads: leading, live: live.clone(), runs, pulse: beat, outages: seen };
        (Service { queue, requests, leads, ticks: Ticks::new(live), pulse, outages, policy }, handle)
    }

    /// Waits for the lead, then acts until `stop` is cancelled or the one run ends. After an error the process should end and start
    /// again.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), Error> {
        let mut looking = JoinSet::new();
        if let Policy::Many(runs) = &self.policy {
            looking.spawn(outages::look(runs.config.home.clone(), self.queue.clone(), self.outages.clone()));
        }
        loop {
            let Some(mut acting) = self.start(&stop).await? else { return Ok(()) };
            let outcome = self.act(&mut acting, &stop).await;
            self.pulse.rest();
            let Err(error @ Error::GivesUp { .. }) = outcome else { return outcome };
            tracing::warn!("{error}");
            self.stand_down();
            drop(acting);
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    /// Another coordinator acts from now on.
    fn stand_down(&mut self) {
        self.leads.send_replace(false);
        metrics::forget();
        // Clients get the standby's answer.
        while self.requests.try_recv().is_ok() {}
        if let Policy::Many(runs) = &mut self.policy {
            **runs = HomeRuns::new(runs.config.clone());
        }
    }

    async fn act(&mut self, Acting { driver, lead }: &mut Acting, stop: &CancellationToken) -> Result<(), Error> {
        let fenced = self.policy.fenced();
        while !self.policy.ended(driver) {
            self.pulse.turn();
            self.check_lead(driver)?;
            driver.top_up();
            if let Policy::Many(runs) = &mut self.policy {
                runs.spawn_due(driver);
                runs.look_around(driver, &self.outages.borrow());
            }
            self.tell(driver);
            tokio::select! {
                happening = driver.wait() => {
                    if !driver.take(happening?)? {
                        return Ok(());
                    }
                }
                Some(request) = self.requests.recv() => self.answer(driver, request),
                done = self.policy.done() => {
                    if let Policy::Many(runs) = &mut self.policy {
                        runs.take(driver, done);
                    }
                }
                () = tokio::time::sleep(TELL_EVERY) => {}
                () = lost(lead, &fenced) => return Err(Error::LostLead),
                () = stop.cancelled() => {
                    if let Policy::Many(runs) = &self.policy {
                        runs.save_last(driver).await;
                    }
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// A leader that cannot act gives up its lead to a standby that can.
    fn check_lead(&self, driver: &Driver) -> Result<(), Error> {
        match store_away(&self.outages.borrow()) {
            Some(away) if away >= GIVE_UP && driver.hears_standby(SAID) => Err(Error::GivesUp { seconds: away.as_secs() }),
            _ => Ok(()),
        }
    }

    /// `None`: stopped before this coordinator had the lead.
    async fn start(&mut self, stop: &CancellationToken) -> Result<Option<Acting>, Error> {
        if let Policy::One(run) = &mut self.policy {
            let mut driver = Driver::new(self.queue.clone(), Runs::One(run.results.clone()), WINDOW).await?;
            run.add_to(&mut driver.fleet);
            return Ok(Some(Acting { driver, lead: None }));
        }
        loop {
            let begun = tokio::select! {
                begun = self.begin(stop) => begun,
                () = stop.cancelled() => return Ok(None),
            };
            match begun {
                // The store is away: whoever reaches it may lead meanwhile.
                Err(error) if error.store().is_some_and(store::Error::is_retryable) => {
                    tracing::warn!(error = chain(&error), "cannot begin; tried again");
                    self.stand_down();
                }
                begun => return begun,
            }
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                () = stop.cancelled() => return Ok(None),
            }
        }
    }

    /// Waits for the lead, and loads all runs of the home.
    async fn begin(&mut self, stop: &CancellationToken) -> Result<Option<Acting>, Error> {
        let Policy::Many(runs) = &mut self.policy else { return Ok(None) };
        let home = runs.config.home.clone();
        home.check_writable().await?;
        let Some(lead) = wait_for_lead(&self.queue, &home, stop).await? else { return Ok(None) };
        lead::check_home(&home).await?;
        runs.take_lead().await?;
        let mut driver = Driver::new(self.queue.clone(), Runs::Home(home), runs.config.window).await?;
        // What an earlier coordinator left on the queue is planned again: it would only come twice.
        driver.withdraw();
        runs.load().await?;
        // What was sent while another led is not for this lead.
        while self.requests.try_recv().is_ok() {}
        self.leads.send_replace(true);
        tracing::info!(runs = driver.fleet.names().count() + runs.preparing.len(), "acting");
        Ok(Some(Acting { driver, lead: Some(lead) }))
    }

    fn answer(&mut self, driver: &mut Driver, request: Request) {
        let fixed = || Refusal::Conflict("basin project drives this run: it cannot be changed from here".into());
        match (request, &mut self.policy) {
            (Request::Runs(reply), policy) => drop(reply.send(Ok(policy.statuses(driver)))),
            (Request::Look(run, look), policy) => policy.look(driver, run, look),
            (Request::Workers(reply), _) => drop(reply.send(Ok(workers(driver)))),
            (Request::Backlog(reply), _) => drop(reply.send(Ok(driver.fleet.backlog()))),
            (Request::Listen(reply), _) => drop(reply.send(Ok(driver.listen()))),
            (Request::Submit(request, reply), Policy::Many(runs)) => runs.submit(driver, *request, reply),
            (Request::Redrive(run, which, reply), Policy::Many(runs)) => runs.redrive(driver, run, &which, reply),
            (Request::Change(run, change, reply), Policy::Many(runs)) => runs.change(driver, &run, change, reply),
            (Request::Delete(run, reply), Policy::Many(runs)) => runs.delete(driver, &run, reply),
            (Request::Submit(_, reply) | Request::Redrive(.., reply) | Request::Delete(_, reply), Policy::One(_)) => {
                drop(reply.send(Err(fixed())));
            }
            (Request::Change(.., reply), Policy::One(_)) => drop(reply.send(Err(fixed()))),
        }
    }

    /// Tells watchers how everything stands, if that has changed.
    fn tell(&mut self, driver: &Driver) {
        if self.ticks.due() {
            self.ticks.tell(driver, &self.policy.briefs(driver), &self.outages.borrow());
        }
    }
}

impl Policy {
    fn ended(&self, driver: &Driver) -> bool {
        match self {
            Policy::Many(_) => false,
            Policy::One(run) => run.ended(driver),
        }
    }

    /// Cancelled when a coordinator of a later epoch was seen.
    fn fenced(&self) -> CancellationToken {
        match self {
            Policy::Many(runs) => runs.lead.lost(),
            Policy::One(_) => CancellationToken::new(),
        }
    }

    /// The next thing that was done beside the loop. Loses nothing when dropped.
    async fn done(&mut self) -> Done {
        match self {
            Policy::Many(runs) => runs.done().await,
            Policy::One(_) => std::future::pending().await,
        }
    }

    /// All runs with their errors by class.
    fn statuses(&self, driver: &Driver) -> Vec<RunStatus> {
        match self {
            Policy::Many(runs) => runs.statuses(driver),
            Policy::One(_) => driver.fleet.names().filter_map(|name| driver.status(name)).collect(),
        }
    }

    /// The runs whose numbers can change, without errors by class.
    fn briefs(&self, driver: &Driver) -> Vec<RunStatus> {
        match self {
            Policy::Many(runs) => runs.briefs(driver),
            Policy::One(_) => driver.fleet.names().filter_map(|name| driver.fleet.brief(name, driver.now())).collect(),
        }
    }

    fn look(&self, driver: &Driver, run: String, look: Look) {
        match (self, driver.status(&run), driver.fleet.outcomes(&run)) {
            (Policy::Many(runs), Some(status), Some(outcomes)) => look(Ok((runs.completed(status), &outcomes))),
            (Policy::One(_), Some(status), Some(outcomes)) => look(Ok((status, &outcomes))),
            (Policy::Many(runs), ..) => runs.look_at_closed(run, look),
            (Policy::One(_), ..) => look(Err(Refusal::no_run(&run))),
        }
    }
}

/// Workers whose heartbeats came lately, by name.
fn workers(driver: &Driver) -> Vec<WorkerStatus> {
    let now = driver.now();
    let status = |(name, last): (&String, &Heartbeat)| WorkerStatus {
        name: name.clone(),
        silent_seconds: now - last.heard,
        alive: last.alive.clone(),
    };
    driver.present().map(status).collect()
}

/// Waits for the lead, and tells the leader meanwhile that this coordinator reaches the store. `None`: stopped.
async fn wait_for_lead(queue: &Queue, home: &Store, stop: &CancellationToken) -> Result<Option<Leadership>, Error> {
    let name = format!("coordinator-{}", std::process::id());
    let mut say = interval(SAY_EVERY);
    let mut saying = JoinSet::new();
    let mut lead = std::pin::pin!(queue.lead("coordinator"));
    loop {
        tokio::select! {
            lead = &mut lead => return Ok(Some(lead?)),
            () = stop.cancelled() => return Ok(None),
            Some(said) = saying.join_next() => said.expect("saying does not panic"),
            _ = say.tick(), if saying.is_empty() => {
                let (queue, home, event) = (queue.clone(), home.clone(), Event::standby(&name).encode());
                saying.spawn(async move {
                    if outages::trouble(&home).await.is_none()
                        && let Err(error) = queue.publish(Channel::Events, event).await
                    {
                        tracing::debug!(error = chain(&error), "cannot tell the leader that this coordinator stands by");
                    }
                });
            }
        }
    }
}

/// One run needs no lead.
async fn lost(lead: &mut Option<Leadership>, fenced: &CancellationToken) {
    match lead {
        Some(lead) => tokio::select! {
            () = lead.lost() => {}
            () = fenced.cancelled() => {}
        },
        None => std::future::pending().await,
    }
}
