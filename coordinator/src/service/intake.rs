//! From a request, or from the record in the home, to a planned run (*io*).

use std::path::Path;

use proto::{Control, CrashPoint, ModelManifest, Params, RunRecord, RunState, chain, keys};
use store::{Allowed, ErrorKind, PutNew, Runs, Store};

use super::closed_runs::closed_status;
use super::lead::Lead;
use super::refusal::Refusal;
use super::snapshots::read_snapshot;
use super::spending::read_usage;
use crate::Error;
use crate::budget;
use crate::clock::now;
use crate::plan::{Plan, RunSpec};
use crate::prepare::{Seen, see};
use crate::tally::Tally;
use client::api::{Origin, RunRequest, RunStatus, SAME_SETTINGS};
use results::RunError;
use results::redrive::Redrive;
use results::run;

/// A run to be planned.
pub(super) type Order = (RunRecord, Control, Option<Redrive>);

pub(super) struct Prepared {
    pub(super) spec: RunSpec,
    pub(super) plan: Plan,
    pub(super) control: Control,
    pub(super) tally: Tally,
    /// See [`Usage`].
    pub(super) worker_seconds: f64,
}

/// Why a run cannot be planned.
pub(super) struct Trouble {
    pub(super) refusal: Refusal,
    /// Its status, if it is on record and will be planned again.
    pub(super) again: Option<Box<RunStatus>>,
}

impl<E: Into<Refusal>> From<E> for Trouble {
    fn from(error: E) -> Trouble {
        Trouble { refusal: error.into(), again: None }
    }
}

/// Checks a request. `known`: the service has a run of this name. `allowed`: data sets that it may name.
pub(super) async fn submitted(
    home: &Store,
    version: String,
    request: RunRequest,
    known: bool,
    allowed: &Allowed,
) -> Result<Order, Refusal> {
    let RunRequest { name, dataset, annotations, model, profile, params, seed, limit, priority, per_minute, budget_hours } =
        request;
    let invalid = Refusal::Invalid;
    keys::check_run(&name).map_err(|problem| invalid(format!("the run's name {name:?} {problem}")))?;
    keys::check_run(&model).map_err(|problem| invalid(format!("the model's name {model:?} {problem}")))?;
    let params = match (profile, params) {
        (Some(_), Some(_)) => return Err(invalid("give profile or params, not both".into())),
        (None, Some(params)) => Params::from_json(&params.to_json()).map_err(|e| invalid(chain(&e)))?,
        (profile, None) => {
            let profile = profile.as_deref().unwrap_or(Params::DEFAULT_PROFILE);
            let unknown = || invalid(format!("there is no profile {profile:?}: use one of {}", Params::PROFILES.join(", ")));
            Params::profile(profile).ok_or_else(unknown)?
        }
    };
    if per_minute.is_some_and(|r| !(r.is_finite() && r > 0.0)) {
        return Err(invalid("per_minute must be above 0".into()));
    }
    budget::check(budget_hours).map_err(invalid)?;
    if limit == Some(0) {
        return Err(invalid("limit must be above 0".into()));
    }
    if !dataset.contains("://") && !Path::new(&dataset).is_absolute() {
        return Err(invalid(format!("the data set {dataset:?} is a relative path: use a URL or an absolute path")));
    }
    let dataset = open_allowed(&dataset, allowed).await?.url();
    let (manifest, model_digest) = read_model(home, &model).await?;
    if let Some(problem) = manifest.lacks(&params) {
        return Err(invalid(problem.to_string()));
    }
    let resolution = manifest.generator.resolution;
    let record =
        RunRecord { format: 1, name, dataset, annotations, limit, model, model_digest, resolution, params, seed, version };
    let name = &record.name;
    match run::read_json::<RunRecord>(home, &keys::index(name)).await {
        Ok(there) if (RunRecord { version: there.version.clone(), ..record.clone() }) == there => {
            if known {
                return Err(Refusal::Conflict(format!("run {name} {SAME_SETTINGS}")));
            }
        }
        Ok(_) => return Err(Refusal::Conflict(format!("there is a run {name} with other settings: choose another name"))),
        Err(e) if e.is_not_found() => {}
        Err(e) => return Err(e.into()),
    }
    if read_control(home, name).await?.deleted {
        let why = "so that nothing late of the deleted run counts in a new one";
        return Err(Refusal::Conflict(format!("a run {name} was deleted, and names are used once, {why}: choose another name")));
    }
    let budget_hours = budget_hours.filter(|hours| *hours > 0.0);
    Ok((record, Control { priority, per_minute, budget_hours, ..Control::default() }, None))
}

pub(super) async fn read_order(home: &Store, name: &str) -> Result<(RunRecord, Control), Error> {
    let key = keys::index(name);
    let record: RunRecord = run::read_json(home, &key).await?;
    if record.name != name {
        return Err(Error::OtherName { key, name: record.name });
    }
    Ok((record, read_control(home, name).await?))
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

async fn open_allowed(dataset: &str, allowed: &Allowed) -> Result<Store, Error> {
    Ok(Store::open_allowed(dataset, allowed).await??)
}

/// `known`: a client was told that the run is on record.
pub(super) async fn prepare(lead: &Lead, name: &str, order: Order, known: bool, allowed: &Allowed) -> Result<Prepared, Trouble> {
    let home = &lead.home;
    let (record, control, redrive) = order;
    let read = async || {
        let (manifest, digest) = read_model(home, &record.model).await?;
        if digest != record.model_digest {
            let (there, here) = (record.model_digest.clone(), digest);
            return Err(RunError::OtherRun { url: home.url(), what: "model", there, here }.into());
        }
        // The record may be older than the list, or written by others.
        let dataset = open_allowed(&record.dataset, allowed).await?;
        let results = Runs::Home(home.clone()).of(name)?;
        let spec = RunSpec::new(record.clone(), &manifest);
        let seen = see(&spec, redrive.as_ref(), control.state != RunState::Cancelled, &dataset, allowed, &results).await?;
        if redrive.is_some() && seen.left() == 0 {
            return Err(Error::NoMatch { run: name.to_owned() });
        }
        if redrive.is_some() {
            // Before anything is deleted: if this process dies, the next one continues the redrive.
            lead.write(name, control).await?;
        }
        Ok((seen, spec, results))
    };
    let (seen, spec, results) = match read().await {
        Ok(seen) => seen,
        Err(error) if known => return Err(in_trouble(home, name, control, error.into()).await),
        Err(error) => return Err(error.into()),
    };
    match plan(lead, seen, spec, &results, control).await {
        Ok(prepared) => Ok(prepared),
        Err(error) if known || redrive.is_some() => Err(in_trouble(home, name, control, error.into()).await),
        Err(error) => Err(error.into()),
    }
}

async fn plan(lead: &Lead, seen: Seen, spec: RunSpec, results: &Store, control: Control) -> Result<Prepared, Error> {
    let name = spec.record.name.clone();
    // It changes the run's store, not only its order.
    lead.check().await?;
    let (mut plan, notes) = seen.plan(&spec, results).await?;
    for note in notes {
        tracing::info!(run = name, "{note}");
    }
    let origin = Origin { record: spec.record.clone(), began: Some(now()) };
    let bytes = serde_json::to_vec_pretty(&origin).expect("a record serialises");
    // Written by this or an earlier start; begin() has compared run.json already.
    let (PutNew::Created | PutNew::Exists) = lead.home.put_new(&keys::index(&name), bytes).await?;
    CrashPoint::RunIndexed.pass();
    lead.write(&name, control).await?;
    CrashPoint::RunControlled.pass();
    let snapshot = read_snapshot(results).await;
    let worker_seconds = read_usage(&lead.home, &name).await?;
    let failures =
        std::mem::take(&mut plan.settled_failures).into_iter().chain(plan.failures.iter().cloned()).collect::<Vec<_>>();
    let resume = move || {
        let results = plan.settled.iter().map(|planned| (spec.job(planned).id().to_string(), planned.image.clone()));
        let tally = Tally::resume(snapshot, results, failures);
        Prepared { spec, plan, control, tally, worker_seconds }
    };
    let prepared = tokio::task::spawn_blocking(resume).await.expect("no value of a plan makes it panic");
    let (counted, unread) = (prepared.tally.counted(), prepared.tally.left());
    tracing::info!(run = name, counted, unread, "errors by class restored");
    Ok(prepared)
}

pub(super) async fn in_trouble(home: &Store, name: &str, control: Control, refusal: Refusal) -> Trouble {
    let problem = Some(refusal.message().to_owned());
    let Control { state, priority, per_minute, budget_hours, .. } = control;
    // The store may be what is away.
    let known = RunStatus { name: name.to_owned(), state, priority, per_minute, budget_hours, ..RunStatus::default() };
    let status = closed_status(home, name, control).await.unwrap_or(known);
    Trouble { refusal, again: Some(Box::new(RunStatus { problem, ..status })) }
}

pub(super) fn control_of(status: &RunStatus) -> Control {
    let RunStatus { state, priority, per_minute, budget_hours, ended, .. } = *status;
    let deleted = status.deleting.is_some();
    Control { state, priority, per_minute, budget_hours, ended, deleted, ..Control::default() }
}

async fn read_control(home: &Store, run: &str) -> Result<Control, Error> {
    match run::read_json(home, &keys::control(run)).await {
        Ok(control) => Ok(control),
        Err(e) if e.is_not_found() => Ok(Control::default()),
        Err(e) => Err(e.into()),
    }
}
