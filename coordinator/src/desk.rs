//! What the one run of this machine answers to whoever watches it (*io*): `basin project --watch`.

use std::sync::Arc;

use proto::Control;
use store::{Runs, Store};
use tokio::sync::{mpsc, watch};

use crate::Error;
use crate::drive::Driver;
use crate::plan::{Plan, RunSpec};
use crate::service::{COMMANDS, Command, Handle, Refusal, TELL_EVERY, Ticks, refuse_all, workers};
use crate::tally::{self, Tally};
use client::api::RunStatus;
use results::run;

/// Takes questions while a run goes on.
pub struct Desk {
    commands: mpsc::Receiver<Command>,
    ticks: Ticks,
    /// What is known from before.
    tally: Tally,
    /// Its handle thinks that nobody acts once this is gone.
    _leads: watch::Sender<bool>,
}

impl Desk {
    /// A desk and the handle to ask it, with what there is of the run already.
    pub async fn open(results: &Store) -> Result<(Desk, Handle), Error> {
        let records = run::read_records(results).await?;
        let mut tally = Tally::resume(None, [], records.failures);
        for record in &records.results {
            tally.count(record.job.as_str(), record.image.as_str().into(), record.class, tally::errors(record));
        }
        let (sender, commands) = mpsc::channel(COMMANDS);
        let (leads, leading) = watch::channel(true);
        let live = watch::Sender::new(Arc::from(""));
        let handle = Handle::new(sender, leading, live.clone(), Runs::One(results.clone()));
        Ok((Desk { commands, ticks: Ticks::new(live), tally, _leads: leads }, handle))
    }

    /// Puts the run into the driver's hands.
    pub(crate) fn add(&mut self, driver: &mut Driver, spec: RunSpec, plan: Plan) {
        driver.fleet.add(spec, plan, Control::default(), std::mem::take(&mut self.tally));
    }

    /// Waits for a question, or until it is time to tell how things stand. Loses nothing when dropped.
    pub(crate) async fn next(&mut self) -> Option<Command> {
        match tokio::time::timeout(TELL_EVERY, self.commands.recv()).await {
            Ok(None) => std::future::pending().await,
            asked => asked.ok().flatten(),
        }
    }

    /// Answers.
    pub(crate) fn answer(&self, driver: &Driver, command: Command) {
        let all = || -> Vec<RunStatus> { driver.fleet.names().filter_map(|name| driver.status(name)).collect() };
        match command {
            Command::Runs(reply) => drop(reply.send(Ok(all()))),
            Command::Look(run, look) => match (driver.status(&run), driver.fleet.outcomes(&run)) {
                (Some(status), Some(outcomes)) => look(Ok((status, &outcomes))),
                _ => look(Err(Refusal::NotFound(format!("there is no run {run}")))),
            },
            Command::Workers(reply) => drop(reply.send(Ok(workers(driver)))),
            Command::Backlog(reply) => drop(reply.send(Ok(driver.fleet.backlog()))),
            Command::Listen(reply) => drop(reply.send(Ok(driver.listen().subscribe()))),
            other => refuse_all(other, "this is a run of basin project: it is steered where it was started"),
        }
    }

    /// Tells all who watch how it stands, if that has changed.
    pub(crate) fn tell(&mut self, driver: &Driver) {
        if self.ticks.due() {
            let runs: Vec<RunStatus> = driver.fleet.names().filter_map(|name| driver.fleet.brief(name, driver.now())).collect();
            self.ticks.tell(driver, &runs);
        }
    }
}
