//! The one run that `basin project` drives, without a home.

use proto::Control;
use store::Store;
use tokio::sync::watch;

use crate::Error;
use crate::drive::Driver;
use crate::fleet::Fleet;
use crate::plan::{Plan, RunSpec};
use crate::tally::{self, Tally};
use client::api::RunStatus;
use results::run;

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
        let records = run::read_records(&self.results).await?;
        let mut tally = Tally::resume(None, [], records.failures);
        for record in &records.results {
            tally.count(record.job.as_str(), record.image.as_str().into(), record.class, tally::errors(record));
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
