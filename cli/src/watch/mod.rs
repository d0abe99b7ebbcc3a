//! `basin watch`: a fleet in a terminal. [`Screen::apply`] and [`view`] are pure; the rest is the shell around them.

mod state;
mod table;
#[cfg(test)]
mod tests;
mod view;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, bail};
use client::api::Change;
use client::{Client, ClientError, SHORT};
use proto::keys;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use self::state::{Command, FleetView, Input, Screen, interrupted};
use self::view::view;
use crate::connection::Connection;
use crate::wait::{EVERY, wait};

/// Longest delay until a key or a signal is handled.
const BLINK: Duration = Duration::from_millis(100);

#[derive(clap::Args)]
pub struct WatchArgs {
    /// Name of a run to open. Default: the list of all runs.
    run: Option<String>,
    /// Print plain lines until the run is finished, or all runs are. Default when stdout is not a terminal.
    #[arg(long)]
    plain: bool,
    #[command(flatten)]
    connection: Connection,
}

pub fn run(args: WatchArgs) -> anyhow::Result<ExitCode> {
    if let Some(name) = &args.run {
        keys::check_run(name).map_err(|problem| anyhow::anyhow!("the run's name {name:?} {problem}"))?;
    }
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    if args.plain || dumb || !std::io::stdout().is_terminal() {
        return plain(&args.connection, args.run);
    }
    let (client, open) = (args.connection.client(SHORT)?, args.run);
    // An error of the first request, such as a wrong token, is final. Later ones are shown, and the request is repeated.
    let fleet = fleet(&client, open.as_deref())?;
    let mut state = Screen {
        coordinator: client.base().to_owned(),
        colour: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        open: open.clone(),
        ..Screen::default()
    };
    state.apply(Input::Fleet(fleet.into()), 0.0);
    let signal = Arc::new(AtomicUsize::new(0));
    for number in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register_usize(number, signal.clone(), number as usize).context("cannot listen to signals")?;
    }
    // ratatui restores the terminal after a panic, too.
    let mut terminal = ratatui::try_init().context("cannot use the terminal")?;
    let (commands, commanded) = mpsc::channel();
    let (inputs, received) = mpsc::channel();
    let keys = inputs.clone();
    thread::spawn(move || ask(&client, open, &commanded, &inputs));
    // In its own thread: crossterm's read never returns at a terminal that is gone.
    thread::spawn(move || while keys.send(pressed()).is_ok() {});
    let code = show(&mut terminal, &mut state, &signal, &received, &commands);
    // A terminal that is gone cannot be restored.
    let _ = ratatui::try_restore();
    code
}

fn pressed() -> anyhow::Result<Input> {
    Ok(match event::read().context("cannot read keys")? {
        Event::Key(key) if key.is_press() => Input::Key(key),
        // A new size, for example: the screen is drawn again.
        _ => Input::Tick,
    })
}

/// Draws the state until the user quits.
fn show(
    terminal: &mut DefaultTerminal,
    state: &mut Screen,
    signal: &AtomicUsize,
    inputs: &Receiver<anyhow::Result<Input>>,
    commands: &Sender<Command>,
) -> anyhow::Result<ExitCode> {
    const GONE: &str = "the thread that talks to the coordinator has ended";
    let start = Instant::now();
    loop {
        terminal.draw(|frame| view(frame, state)).context("cannot draw")?;
        let drawn = Instant::now();
        let input = loop {
            match (signal.load(Ordering::Relaxed), inputs.recv_timeout(BLINK)) {
                (0, Ok(input)) => break input?,
                (0, Err(RecvTimeoutError::Timeout)) if drawn.elapsed() < EVERY => {}
                (0, Err(RecvTimeoutError::Timeout)) => break Input::Tick,
                (0, Err(RecvTimeoutError::Disconnected)) => bail!(GONE),
                (number, _) => return Ok(interrupted(number)),
            }
        };
        match state.apply(input, start.elapsed().as_secs_f64()) {
            Some(Command::Quit(code)) => return Ok(code),
            Some(command) => commands.send(command).context(GONE)?,
            None => {}
        }
    }
}

/// Lines until the run is closed, or all runs that are open now.
fn plain(connection: &Connection, run: Option<String>) -> anyhow::Result<ExitCode> {
    if let Some(run) = run {
        return wait(connection, &[run]);
    }
    let runs = connection.client(SHORT)?.runs()?;
    let open: Vec<String> = runs.into_iter().filter(|run| !run.state.is_closed()).map(|run| run.name).collect();
    if open.is_empty() {
        say!("no run is open");
    }
    wait(connection, &open)
}

/// Requests the fleet's state every second and carries out commands, until the screen is gone.
fn ask(client: &Client, mut open: Option<String>, commands: &Receiver<Command>, inputs: &Sender<anyhow::Result<Input>>) {
    loop {
        match commands.recv_timeout(EVERY) {
            Ok(Command::SetState(run, state)) => {
                let change = Change { state: Some(state), ..Change::default() };
                let note = match client.change(&run, &change) {
                    Ok(status) => format!("{run} is {}", status.state.as_str()),
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
fn fleet(client: &Client, open: Option<&str>) -> Result<FleetView, ClientError> {
    // An older coordinator tells none.
    let outages = client.outages().unwrap_or_default();
    let mut fleet = FleetView { runs: client.runs()?, workers: client.workers()?, outages, open: None };
    if let Some(name) = open {
        let run = client.run(name)?;
        let failures = client.failures(name).map_err(|error| format!("{:#}", Error::from(error)));
        fleet.open = Some((run, failures));
    }
    Ok(fleet)
}
