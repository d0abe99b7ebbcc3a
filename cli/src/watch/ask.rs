//! The thread that talks to the coordinator.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};

use anyhow::Error;
use client::api::Change;
use client::{Client, ClientError};
use proto::RunState;

use super::state::{Command, Fleet, Input};
use crate::wait::EVERY;

/// Requests the fleet's state every second and carries out commands, until the screen is gone.
pub fn ask(client: &Client, mut open: Option<String>, commands: &Receiver<Command>, inputs: &Sender<anyhow::Result<Input>>) {
    loop {
        match commands.recv_timeout(EVERY) {
            Ok(Command::SetState(run, state)) => {
                let note = match set_state(client, &run, state) {
                    Ok(state) => format!("{run} is {}", state.as_str()),
                    Err(error) => format!("{:#}", Error::from(error)),
                };
                if inputs.send(Ok(Input::Note(note))).is_err() {
                    return;
                }
            }
            Ok(Command::Open(run)) => open = run,
            Ok(Command::Quit(_)) | Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let input = match fleet(client, open.as_deref()) {
            Ok(fleet) => Input::Fleet(fleet.into()),
            Err(error) => Input::Lost(format!("{:#}", Error::from(error))),
        };
        if inputs.send(Ok(input)).is_err() {
            return;
        }
    }
}

/// The fleet's state now, with the failures of the run that is open.
pub fn fleet(client: &Client, open: Option<&str>) -> Result<Fleet, ClientError> {
    let mut fleet = Fleet { runs: client.runs()?, workers: client.workers()?, open: None };
    if let Some(name) = open {
        let run = client.run(name)?;
        let failures = client.failures(name).map_err(|error| format!("{:#}", Error::from(error)));
        fleet.open = Some((run, failures));
    }
    Ok(fleet)
}

fn set_state(client: &Client, run: &str, state: RunState) -> Result<RunState, ClientError> {
    let change = Change { state: Some(state), ..Change::default() };
    client.change(run, &change).map(|status| status.state)
}
