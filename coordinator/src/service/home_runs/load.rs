//! What the coordinator makes of a run that it finds in the home (*io*).

use proto::{Control, RunState, chain, keys};
use results::RunError;
use store::Runs;

use crate::Error;
use crate::service::closed_runs::closed_status;
use crate::service::intake::{Order, read_order};
use crate::service::lead::Lead;
use client::api::RunStatus;

pub(super) enum Loaded {
    Open(Box<Order>),
    Closed(Box<RunStatus>),
}

pub(super) async fn load(lead: &Lead, name: String) -> Result<Loaded, Error> {
    let home = &lead.home;
    let found = match read_order(home, &name).await {
        Ok((record, control)) if !control.state.is_closed() => lead.claim(&name).await.map(|control| (record, control)),
        found => found,
    };
    let closed = match &found {
        Ok((_, control)) => match control.state {
            // Whatever is left of it.
            _ if control.deleted => Some(closed_status(home, &name, *control).await?),
            RunState::Running | RunState::Paused => None,
            // Its tables are still to be written.
            RunState::Cancelled if !Runs::Home(home.clone()).of(&name)?.exists(keys::MANIFEST).await? => None,
            RunState::Cancelled | RunState::Finished => Some(closed_status(home, &name, *control).await?),
        },
        // One damaged run does not stop the others.
        Err(error @ (Error::Run(RunError::Damaged { .. }) | Error::OtherName { .. })) => {
            tracing::error!(run = name, error = chain(error), "the run is left alone");
            let paused = Control { state: RunState::Paused, ..Control::default() };
            Some(RunStatus { problem: Some(chain(error)), ..closed_status(home, &name, paused).await? })
        }
        Err(_) => None,
    };
    match closed {
        Some(status) => Ok(Loaded::Closed(Box::new(status))),
        None => found.map(|(record, control)| Loaded::Open(Box::new((record, control, None)))),
    }
}
