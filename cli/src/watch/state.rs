//! What is on the screen, and what a key, an answer or time makes of it. Pure: the time is an argument.

use std::process::ExitCode;

use client::api::{FailureGroup, Outage, RunStatus, WorkerStatus};
use proto::RunState;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::{Color, Style};
use signal_hook::consts::SIGINT;

/// Seconds after which the coordinator's silence is mentioned.
const SILENCE: f64 = 4.0;

/// The fleet at one time. Its texts are what the coordinator sent: only [`super::view`] prints them, escaped.
#[derive(Debug, Default)]
pub struct FleetView {
    pub runs: Vec<RunStatus>,
    pub workers: Vec<WorkerStatus>,
    /// What the coordinator waits for.
    pub outages: Vec<Outage>,
    /// The run that is open, with its failures, or why they are unknown.
    pub open: Option<(RunStatus, Result<Vec<FailureGroup>, String>)>,
}

#[derive(Debug)]
pub enum Input {
    Key(KeyEvent),
    Fleet(Box<FleetView>),
    /// The coordinator gave no usable answer, and why.
    Lost(String),
    /// The outcome of a [`Command::SetState`], for the user.
    Note(String),
    Tick,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Request this run's failures, too; without a run only the lists.
    Open(Option<String>),
    SetState(String, RunState),
    Quit(ExitCode),
}

#[derive(Debug, Default)]
pub struct Screen {
    pub coordinator: String,
    pub colour: bool,
    /// Seconds since the start: now, and when the coordinator answered last.
    pub now: f64,
    pub heard: f64,
    pub fleet: FleetView,
    pub lost: Option<String>,
    /// Name of the open run; without one all runs are listed.
    pub open: Option<String>,
    /// Name of the chosen run in the list.
    pub chosen: Option<String>,
    /// Index of the chosen class in the open run.
    pub class: usize,
    /// A change that waits for yes or no.
    pub question: Option<(String, RunState)>,
    pub note: Option<String>,
    pub help: bool,
}

impl Screen {
    pub fn apply(&mut self, input: Input, now: f64) -> Option<Command> {
        self.now = now;
        match input {
            Input::Key(key) => return self.press(key),
            Input::Fleet(mut fleet) => {
                fleet.runs.sort_by_key(|run| run.state.is_closed());
                self.fleet = *fleet;
                self.heard = now;
                self.lost = None;
            }
            Input::Lost(why) => self.lost = Some(why),
            Input::Note(note) => self.note = Some(note),
            Input::Tick => {}
        }
        None
    }

    fn press(&mut self, key: KeyEvent) -> Option<Command> {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return (key.code == KeyCode::Char('c')).then(|| Command::Quit(interrupted(SIGINT as usize)));
        }
        self.note = None;
        if self.help {
            self.help = false;
            return None;
        }
        if let Some((run, state)) = self.question.clone() {
            let yes = matches!(key.code, KeyCode::Char('y' | 'Y'));
            if yes || matches!(key.code, KeyCode::Char('n' | 'N' | 'q') | KeyCode::Esc) {
                self.question = None;
            }
            return yes.then_some(Command::SetState(run, state));
        }
        match key.code {
            KeyCode::Char('q') => return Some(Command::Quit(ExitCode::SUCCESS)),
            KeyCode::Char('?') => self.help = true,
            KeyCode::Up | KeyCode::Char('k') => self.choose(|at| at.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.choose(|at| at + 1),
            KeyCode::PageUp => self.choose(|at| at.saturating_sub(10)),
            KeyCode::PageDown => self.choose(|at| at + 10),
            KeyCode::Home => self.choose(|_| 0),
            KeyCode::End => self.choose(|_| usize::MAX),
            KeyCode::Enter if self.open.is_none() => {
                self.open = Some(self.fleet.runs.get(self.at()?)?.name.clone());
                self.class = 0;
                return Some(Command::Open(self.open.clone()));
            }
            KeyCode::Esc if self.open.is_some() => {
                self.chosen = self.open.take();
                return Some(Command::Open(None));
            }
            KeyCode::Char('p') => self.ask(RunState::Paused),
            KeyCode::Char('r') => self.ask(RunState::Running),
            _ => {}
        }
        None
    }

    fn choose(&mut self, step: impl Fn(usize) -> usize) {
        if self.open.is_some() {
            let last = self.run().map_or(0, |run| run.classes.len().saturating_sub(1));
            self.class = step(self.class.min(last)).min(last);
        } else if let Some(at) = self.at() {
            self.chosen = Some(self.fleet.runs[step(at).min(self.fleet.runs.len() - 1)].name.clone());
        }
    }

    fn ask(&mut self, state: RunState) {
        let listed = || Some(self.fleet.runs.get(self.at()?)?.name.clone());
        self.question = self.open.clone().or_else(listed).map(|run| (run, state));
    }

    /// Index of the chosen run in the list.
    pub fn at(&self) -> Option<usize> {
        let runs = &self.fleet.runs;
        let chosen = runs.iter().position(|run| Some(&run.name) == self.chosen.as_ref());
        chosen.or((!runs.is_empty()).then_some(0))
    }

    /// The open run, if the coordinator knows it.
    pub fn run(&self) -> Option<&RunStatus> {
        let name = self.open.as_ref()?;
        let open = self.fleet.open.as_ref().map(|(run, _)| run);
        open.into_iter().chain(&self.fleet.runs).find(|run| run.name == *name)
    }

    /// Failures of the open run, once they have been received.
    pub fn failures(&self) -> Option<&Result<Vec<FailureGroup>, String>> {
        self.fleet.open.as_ref().filter(|(run, _)| Some(&run.name) == self.open.as_ref()).map(|(_, failures)| failures)
    }

    pub fn is_silent(&self) -> bool {
        self.lost.is_some() || self.now - self.heard > SILENCE
    }

    /// Colour only repeats what words say. These colours, among the terminal's sixteen, are readable on dark and on light.
    pub fn style(&self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }
}

/// Images of a run with a result.
pub fn succeeded(run: &RunStatus) -> usize {
    run.skipped.saturating_add(run.succeeded)
}

/// Images of a run with a result or a failure.
pub fn finished(run: &RunStatus) -> usize {
    succeeded(run).saturating_add(run.failed)
}

/// The exit code of a process that a signal ended.
pub fn interrupted(signal: usize) -> ExitCode {
    ExitCode::from(128 + signal as u8)
}
