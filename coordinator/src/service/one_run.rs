//! The one run that `basin project` drives, without a home.

use futures_util::TryStreamExt;
use proto::Control;
use store::Store;
use tokio::sync::watch;

use crate::Error;
use crate::drive::Driver;
use crate::fleet::Fleet;
use crate::plan::{Plan, RunSpec};
use crate::tally::{self, Tally};
use client::api::RunStatus;
use results::walk::Walk;

pub struct OneRun {
    name: String,
    /// `None`: it is with the driver.
    planned: Option<(RunSpec, Plan, Tally)>,
    pub(super) results: Store,
    status: watch::Sender<RunStatus>,
}

impl OneRun {
    /// `status` gets the run's status, without errors by class: the summary has them.
    pub fn new(spec: RunSpec, plan: Plan, results: &Store, status: watch::Sender<RunStatus>) -> OneRun {
        let name = spec.record.name.clone();
        OneRun { name, planned: Some((spec, plan, Tally::default())), results: results.clone(), status }
    }

    /// Counts errors by class, too: reads what the run has already.
    pub async fn watched(mut self) -> Result<OneRun, Error> {
        let mut tally = Tally::default();
        let mut records = Walk::begin(&self.results).await?.records();
        while let Some(finished) = records.try_next().await? {
            match finished.outcome {
                Ok(r) => tally.count(r.job.as_str(), r.image.as_str().into(), r.class, tally::errors(&r)),
                Err(failure) => tally.fail(*failure),
            }
        }
        self.planned = self.planned.map(|(spec, plan, _)| (spec, plan, tally));
        Ok(self)
    }

    pub(super) fn add_to(&mut self, fleet: &mut Fleet) {
        if let Some((spec, plan, tally)) = self.planned.take() {
            fleet.add(spec, plan, Control::default(), tally);
        }
    }

    /// Whether every image is finished. Reports the status.
    pub(super) fn ended(&self, driver: &Driver) -> bool {
        if let Some(status) = driver.fleet.brief(&self.name, driver.now()) {
            self.status.send_replace(status);
        }
        driver.fleet.settled(&self.name)
    }
}
