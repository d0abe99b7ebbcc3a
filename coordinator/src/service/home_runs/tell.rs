//! Decides when operators are told of what happens, and what goes into the log of changes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use proto::{Control, RunState};
use store::Store;

use super::{Config, Done, HomeRuns};
use crate::clock::now;
use crate::drive::Driver;
use crate::notify::notice::{Kind, Notice};
use crate::notify::stall::{Change, Progress, Stalls};
use crate::notify::{Post, outbox};
use crate::service::outages::Ongoing;
use crate::{Error, audit};
use client::api::{LogEntry, RunStatus};
use results::format::duration;

/// How often it is seen whether runs make progress.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Telling {
    post: Post,
    /// What is told when the control of a run is written.
    endings: HashMap<String, Notice>,
    stalls: Stalls,
    looked: Option<Instant>,
    outages: Vec<Ongoing>,
}

impl Telling {
    pub(super) fn new(config: &Config) -> Telling {
        let post = Post::new(config.notify.clone(), config.home.clone());
        Telling { post, endings: HashMap::new(), stalls: Stalls::default(), looked: None, outages: vec![] }
    }

    pub(super) fn ending(&self, name: &str) -> Option<Notice> {
        self.endings.get(name).cloned()
    }

    pub(super) fn forget(&mut self, name: &str) {
        self.endings.remove(name);
        self.post.forget(name);
    }

    pub(super) fn problem(&self, name: &str) -> Option<String> {
        self.post.problem(name)
    }
}

/// Keeps a notice until it is delivered.
pub(super) async fn keep(home: &Store, notice: Option<&Notice>) -> Result<(), Error> {
    match notice {
        Some(notice) => outbox::put(home, notice).await,
        None => Ok(()),
    }
}

impl HomeRuns {
    /// Sends what an earlier coordinator has not delivered.
    pub(super) async fn tell_again(&mut self) -> Result<(), Error> {
        if !self.telling.post.is_idle() {
            for notice in outbox::pending(&self.config.home).await? {
                self.tell(notice);
            }
        }
        Ok(())
    }

    fn tell(&mut self, notice: Notice) {
        if self.telling.post.is_idle() {
            return;
        }
        let post = self.telling.post.clone();
        self.beside.spawn(async move {
            post.deliver(notice).await;
            Done::Told
        });
    }

    /// Prepares what is told when this control is written.
    pub(super) fn announce(&mut self, driver: &Driver, name: &str, control: Control) {
        let status = driver.fleet.brief(name, driver.now()).or_else(|| self.closed.get(name).cloned());
        let kind = match control.state {
            RunState::Finished => Kind::Finished,
            RunState::Cancelled => Kind::Cancelled,
            // By a client it is no news.
            RunState::Paused if driver.fleet.over_budget().iter().any(|over| over == name) => Kind::OverBudget,
            RunState::Paused | RunState::Running => return,
        };
        let (Some(status), false) = (status, self.telling.post.is_idle()) else { return };
        let why = crate::budget::paused_because(name, &control, status.worker_hours).unwrap_or_default();
        let status = RunStatus { state: control.state, ..status };
        let notice = Notice::of_run(kind, &status, &why, &now().to_string(), now());
        self.telling.endings.insert(name.to_owned(), notice);
    }

    /// The control of a run is written.
    pub(super) fn tell_ending(&mut self, name: &str) {
        if let Some(notice) = self.telling.endings.remove(name) {
            self.tell(notice);
        }
    }

    /// The control of a run could not be written. Its notice must not be found by a later coordinator.
    pub(super) fn unsay(&mut self, name: &str) {
        let Some(notice) = self.telling.endings.remove(name) else { return };
        let home = self.config.home.clone();
        self.beside.spawn(async move {
            outbox::take(&home, &notice).await;
            Done::Told
        });
    }

    /// Tells of outages, and of runs that stand still.
    pub(in crate::service) fn look_around(&mut self, driver: &Driver, outages: &[Ongoing]) {
        if self.telling.post.is_idle() || self.telling.looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY) {
            return;
        }
        self.telling.looked = Some(Instant::now());
        let before = std::mem::replace(&mut self.telling.outages, outages.to_vec());
        changed_outages(&before, outages, now()).into_iter().for_each(|notice| self.tell(notice));
        let after = self.telling.post.notify.stalled_after;
        for change in self.telling.stalls.look(&progress(driver), after.as_secs_f64(), driver.now()) {
            let (name, kind) = match change {
                Change::Stalled(name) => (name, Kind::Stalled),
                Change::Recovered(name) => (name, Kind::Recovered),
            };
            let Some(status) = driver.fleet.brief(&name, driver.now()) else { continue };
            let why = format!("for {}", duration(after.as_secs_f64()));
            tracing::warn!(run = name, kind = kind.as_str(), "the run's progress changed");
            self.tell(Notice::of_run(kind, &status, &why, &now().to_string(), now()));
        }
    }

    /// Writes to the log of changes what the coordinator does by itself.
    pub(super) fn log(&mut self, action: &str, run: &str, why: &str) {
        let (home, action, run, detail) = (self.config.home.clone(), action.to_owned(), run.to_owned(), why.to_owned());
        let entry = LogEntry { time: 0, action, run, who: "coordinator".into(), address: None, detail };
        self.beside.spawn(async move {
            audit::record(&home, entry).await;
            Done::Told
        });
    }
}

/// What each running run with images left has done.
fn progress(driver: &Driver) -> Vec<(String, Progress)> {
    let mut lane_steps: HashMap<&str, u64> = HashMap::new();
    for (_, worker) in driver.present() {
        let steps = lane_steps.entry(&worker.alive.run).or_default();
        *steps = steps.wrapping_add(worker.alive.lane_steps);
    }
    let running = driver.fleet.names().filter_map(|name| driver.fleet.brief(name, driver.now()));
    let running = running.filter(|run| run.state == RunState::Running);
    let of = |run: RunStatus| {
        let finished = run.skipped + run.succeeded + run.failed;
        let progress = Progress { finished, lane_steps: lane_steps.get(run.name.as_str()).copied().unwrap_or(0) };
        (finished < run.images).then_some((run.name, progress))
    };
    running.filter_map(of).collect()
}

/// What to tell of outages that have begun or ended. Pure, but for the time since an outage began.
fn changed_outages(before: &[Ongoing], now: &[Ongoing], time: u64) -> Vec<Notice> {
    let among = |outages: &[Ongoing], what| outages.iter().any(|outage| outage.what == what);
    let began = |outage: &Ongoing| time.saturating_sub(outage.since.elapsed().as_secs());
    let new = now.iter().filter(|outage| !among(before, outage.what));
    let over = before.iter().filter(|outage| !among(now, outage.what));
    let new = new.map(|outage| Notice::of_outage(outage.what, Some(&outage.why), began(outage), time));
    new.chain(over.map(|outage| Notice::of_outage(outage.what, None, began(outage), time))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outage_is_told_once_at_its_beginning_and_once_at_its_end() {
        let outage = |what| Ongoing { what, why: "silent".into(), since: Instant::now() };
        let kinds = |before: &[Ongoing], now: &[Ongoing]| -> Vec<(Kind, Option<String>)> {
            changed_outages(before, now, 1000).into_iter().map(|notice| (notice.kind, notice.data.what)).collect()
        };
        let (store, both) = ([outage("store")], [outage("store"), outage("broker")]);
        assert_eq!(kinds(&[], &store), [(Kind::OutageBegan, Some("store".into()))]);
        assert_eq!(kinds(&store, &store), []);
        assert_eq!(kinds(&store, &both), [(Kind::OutageBegan, Some("broker".into()))]);
        let over = kinds(&both, &[]);
        assert_eq!(over, ["store", "broker"].map(|what| (Kind::OutageEnded, Some(what.to_owned()))));
    }
}
