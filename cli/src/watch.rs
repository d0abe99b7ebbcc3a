//! `basin watch`: a fleet in a terminal. [`State`] and [`view`] are pure, the time is an argument; the rest is the shell around them.
//!
//! What the coordinator says holds names and messages of strangers: every text is a [`Text`].

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use client::api::Change;
use proto::{RunState, keys};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Clear, Paragraph, Row, Table, TableState, Wrap};
use ratatui::{DefaultTerminal, Frame};
use serde::Deserialize;
use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::fleet::{self, Client, Coordinator, EVERY, LIMIT};

/// How long a key or a signal may wait.
const BLINK: Duration = Duration::from_millis(100);
/// Seconds after which a silence is mentioned: the coordinator's, a worker's.
const SILENCE: f64 = 4.0;
const WORKER_SILENCE: f64 = 30.0;

/// Options of `basin watch`.
#[derive(clap::Args)]
pub struct Args {
    /// Open this run.
    run: Option<String>,
    /// Print plain lines until the run ends, as `basin runs wait` does, or until all runs end. So it is without a terminal.
    #[arg(long)]
    plain: bool,
    #[command(flatten)]
    coordinator: Coordinator,
}

/// A stranger's text. Nothing in it steers the terminal, hides, or turns the direction of the text around it: such characters are
/// written as Rust would.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(from = "String")]
struct Text(String);

impl From<String> for Text {
    fn from(text: String) -> Text {
        let mut harmless = String::with_capacity(text.len());
        for c in text.chars() {
            match c {
                '\u{ad}'
                | '\u{61c}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}' => harmless.extend(c.escape_unicode()),
                c if c.is_control() => harmless.extend(c.escape_default()),
                c => harmless.push(c),
            }
        }
        Text(harmless)
    }
}

/// A run, as `/v1/runs` says. What is missing counts as nothing, so that a newer or older coordinator can be watched.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Run {
    name: Text,
    state: Text,
    priority: i64,
    images: u64,
    skipped: u64,
    succeeded: u64,
    failed: u64,
    started: u64,
    queued: u64,
    waiting: u64,
    classes: Vec<Class>,
    unread: u64,
    per_hour: Option<f64>,
    eta_seconds: Option<f64>,
    stage_seconds: BTreeMap<Text, Option<f64>>,
    cost: Option<f64>,
    problem: Option<Text>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Class {
    class: Text,
    images: u64,
    loss: Option<f64>,
    lpips: Option<f64>,
    lpips_standard_error: Option<f64>,
}

/// Failures of one kind.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Group {
    reason: Text,
    images: u64,
    examples: Vec<Example>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Example {
    image: Text,
    message: Option<Text>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Worker {
    name: Text,
    silent_seconds: Option<f64>,
    slots: u64,
    images: u64,
    run: Text,
    lane_steps_per_second: Option<f64>,
    devices: Text,
    leaving: bool,
}

impl Run {
    fn done(&self) -> u64 {
        self.skipped.saturating_add(self.succeeded)
    }

    fn settled(&self) -> u64 {
        self.done().saturating_add(self.failed)
    }

    fn percent(&self) -> String {
        // 100 % means all.
        format!("{} %", (100 * u128::from(self.settled())).checked_div(self.images.into()).unwrap_or(0).min(100))
    }

    /// Images each hour. Of a run that stands still it says nothing.
    fn rate(&self) -> Option<String> {
        let rate = self.per_hour.filter(|_| self.state.0 == "running")?;
        Some(short(rate))
    }

    fn left(&self) -> Option<String> {
        self.eta_seconds.filter(|_| self.state.0 == "running").map(duration)
    }

    fn over(&self) -> bool {
        matches!(self.state.0.as_str(), "finished" | "cancelled")
    }
}

/// The fleet at one time.
#[derive(Debug, Default)]
struct Sight {
    runs: Vec<Run>,
    workers: Vec<Worker>,
    /// The run that is open, with its failures, or why they are not known.
    open: Option<(Run, Result<Vec<Group>, Text>)>,
}

/// What happens to a [`State`].
#[derive(Debug)]
enum Input {
    Key(KeyEvent),
    Seen(Box<Sight>),
    /// The coordinator did not answer, or not as expected.
    Lost(Text),
    /// What became of an order.
    Said(Text),
    /// Time goes by.
    Tick,
}

/// What a [`State`] wants done.
#[derive(Clone, Debug, PartialEq)]
enum Order {
    /// This run is open now.
    Look(Option<Text>),
    Set(Text, RunState),
    Leave(ExitCode),
}

/// What is on the screen.
#[derive(Debug, Default)]
struct State {
    /// Where the coordinator is.
    place: Text,
    colour: bool,
    /// Seconds since the start, and when the coordinator was heard last.
    now: f64,
    heard: f64,
    sight: Sight,
    /// Why it is silent.
    lost: Option<Text>,
    /// The run that is open; without one, all are listed.
    open: Option<Text>,
    /// The run that is chosen of all.
    chosen: Option<Text>,
    /// The class that is chosen in the open run.
    class: usize,
    question: Option<(Text, RunState)>,
    note: Option<Text>,
    help: bool,
}

impl State {
    /// Takes in what happened at `now`.
    fn apply(&mut self, input: Input, now: f64) -> Option<Order> {
        self.now = now;
        match input {
            Input::Key(key) => return self.press(key),
            Input::Seen(mut sight) => {
                sight.runs.sort_by_key(Run::over);
                self.sight = *sight;
                self.heard = now;
                self.lost = None;
            }
            Input::Lost(why) => self.lost = Some(why),
            Input::Said(what) => self.note = Some(what),
            Input::Tick => {}
        }
        None
    }

    fn press(&mut self, key: KeyEvent) -> Option<Order> {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return (key.code == KeyCode::Char('c')).then(|| Order::Leave(interrupted(SIGINT as usize)));
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
            return yes.then_some(Order::Set(run, state));
        }
        match key.code {
            KeyCode::Char('q') => return Some(Order::Leave(ExitCode::SUCCESS)),
            KeyCode::Char('?') => self.help = true,
            KeyCode::Up | KeyCode::Char('k') => self.choose(|at| at.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.choose(|at| at + 1),
            KeyCode::PageUp => self.choose(|at| at.saturating_sub(10)),
            KeyCode::PageDown => self.choose(|at| at + 10),
            KeyCode::Home => self.choose(|_| 0),
            KeyCode::End => self.choose(|_| usize::MAX),
            KeyCode::Enter if self.open.is_none() => {
                self.open = Some(self.sight.runs.get(self.at()?)?.name.clone());
                self.class = 0;
                return Some(Order::Look(self.open.clone()));
            }
            KeyCode::Esc if self.open.is_some() => {
                self.chosen = self.open.take();
                return Some(Order::Look(None));
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
            self.chosen = Some(self.sight.runs[step(at).min(self.sight.runs.len() - 1)].name.clone());
        }
    }

    fn ask(&mut self, state: RunState) {
        let listed = || Some(self.sight.runs.get(self.at()?)?.name.clone());
        self.question = self.open.clone().or_else(listed).map(|run| (run, state));
    }

    /// Where the chosen run is in the list.
    fn at(&self) -> Option<usize> {
        let runs = &self.sight.runs;
        let chosen = runs.iter().position(|run| Some(&run.name) == self.chosen.as_ref());
        chosen.or((!runs.is_empty()).then_some(0))
    }

    /// The run that is open, as far as it is known.
    fn run(&self) -> Option<&Run> {
        let name = self.open.as_ref()?;
        let open = self.sight.open.as_ref().map(|(run, _)| run);
        open.into_iter().chain(&self.sight.runs).find(|run| run.name == *name)
    }

    /// Its failures, as far as they are known.
    fn failures(&self) -> Option<&Result<Vec<Group>, Text>> {
        self.sight.open.as_ref().filter(|(run, _)| Some(&run.name) == self.open.as_ref()).map(|(_, failures)| failures)
    }

    fn is_silent(&self) -> bool {
        self.lost.is_some() || self.now - self.heard > SILENCE
    }

    fn style(&self, colour: Color) -> Style {
        // Of the terminal's own sixteen those that are readable on dark and on light; what they say is said in words, too.
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }
}

fn interrupted(signal: usize) -> ExitCode {
    ExitCode::from(128 + signal as u8)
}

/// The whole screen.
fn view(frame: &mut Frame, state: &State) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)]).areas(frame.area());
    view_head(frame, head, state);
    match (&state.open, state.run()) {
        (Some(_), Some(run)) => view_run(frame, body, state, run),
        (Some(name), None) => frame.render_widget(Line::raw(format!("there is no run {}", name.0)), body),
        (None, _) => view_runs(frame, body, state),
    }
    view_foot(frame, foot, state);
    if state.help {
        view_help(frame, frame.area());
    }
}

fn view_head(frame: &mut Frame, area: Rect, state: &State) {
    let title = match (&state.open, state.run()) {
        (Some(name), Some(run)) => vec![name.0.clone().bold(), "  ".into(), mark(state, run)],
        (Some(name), None) => vec![name.0.clone().bold()],
        (None, _) => vec!["basin".bold(), format!("  {}", state.place.0).into()],
    };
    let workers = format!("{} ", counted(state.sight.workers.len() as u64, "worker"));
    let title = Line::from(title);
    // The workers in what the title leaves.
    let [left, right] = Layout::horizontal([Constraint::Length(cells(title.width() + 2)), Constraint::Fill(1)]).areas(area);
    frame.render_widget(title, left);
    if workers.len() <= right.width.into() {
        frame.render_widget(Line::raw(workers).right_aligned(), right);
    }
}

/// What is most urgent: a question, a silence, an answer, the keys.
fn view_foot(frame: &mut Frame, area: Rect, state: &State) {
    let line = if let Some((run, wanted)) = &state.question {
        let verb = if *wanted == RunState::Paused { "pause" } else { "resume" };
        Line::from(format!("{verb} {}? y/n", run.0)).bold()
    } else if state.is_silent() {
        let why = state.lost.as_ref().map_or("", |why| &why.0);
        let text = format!("no news for {}, trying again: {why}", duration(state.now - state.heard));
        Line::styled(text, state.style(Color::Red).add_modifier(Modifier::BOLD | Modifier::REVERSED))
    } else if let Some(note) = &state.note {
        Line::raw(&note.0)
    } else if state.open.is_some() {
        Line::raw("Esc all runs  p pause  r resume  q quit  ? help")
    } else {
        Line::raw("Enter open  p pause  r resume  q quit  ? help")
    };
    frame.render_widget(line, area);
}

fn view_help(frame: &mut Frame, area: Rect) {
    const KEYS: [&str; 8] = [
        "up, down, k, j   choose",
        "Enter            open the run",
        "Esc              all runs",
        "p                pause the run",
        "r                resume it",
        "q, Ctrl-C        quit; the run goes on",
        "page up, down, Home, End: farther",
        "any key closes this",
    ];
    let middle = area.centered(Constraint::Max(42), Constraint::Max(KEYS.len() as u16 + 2));
    frame.render_widget(Clear, middle);
    let block = Block::bordered().title(" keys ");
    frame.render_widget(Paragraph::new(KEYS.map(Line::raw).to_vec()).block(block), middle);
}

fn view_runs(frame: &mut Frame, area: Rect, state: &State) {
    let runs = &state.sight.runs;
    if runs.is_empty() {
        frame.render_widget(Paragraph::new("no runs yet: basin submit begins one").wrap(Wrap::default()), area);
        return;
    }
    let problem = state.at().and_then(|at| runs[at].problem.as_ref());
    // The table first, then why the chosen run cannot go on, then the workers in what is left.
    let (rows, lines) = (cells(runs.len() + 1), 3 * u16::from(problem.is_some()));
    let [table, trouble, workers] =
        Layout::vertical([Constraint::Max(rows), Constraint::Max(lines.min(area.height / 3)), Constraint::Fill(1)]).areas(area);
    let bars = usize::from(area.width / 5).clamp(6, 30);
    let column =
        |title, need, cell: &dyn Fn(&Run) -> Line<'static>| Column { title, need, cells: runs.iter().map(cell).collect() };
    let columns = [
        column("run", 0, &|run| Line::raw(run.name.0.clone())),
        column("state", 2, &|run| mark(state, run).into()),
        column("", 5, &|run| progress(state, run, bars)),
        column("settled", 1, &|run| Line::raw(run.percent()).right_aligned()),
        column("images", 6, &|run| Line::raw(format!("{}/{}", run.settled(), run.images)).right_aligned()),
        column("per hour", 7, &|run| Line::raw(run.rate().unwrap_or_default()).right_aligned()),
        column("left", 4, &|run| Line::raw(run.left().unwrap_or_default()).right_aligned()),
        column("failed", 3, &|run| failed(state, run).right_aligned()),
    ];
    view_table(frame, table, columns.into(), state.at());
    if let Some(problem) = problem {
        frame.render_widget(trouble_of(state, problem), trouble);
    }
    view_workers(frame, workers, state, None);
}

fn view_run(frame: &mut Frame, area: Rect, state: &State, run: &Run) {
    let bar = usize::from(area.width / 2).clamp(4, 60);
    let mut first = progress(state, run, bar);
    first.push_span(format!(" {}  {} of {}", run.percent(), run.settled(), counted(run.images, "image")));
    let mut counts = failed(state, run);
    counts.push_span(format!(" failed, {} with workers, {} queued, {} waiting", run.started, run.queued, run.waiting));
    if run.unread > 0 {
        counts.push_span(format!("; {} still to be read", counted(run.unread, "result")));
    }
    let mut pace = Vec::new();
    pace.extend(run.rate().map(|rate| format!("{rate} images/h")));
    pace.extend(run.left().map(|left| format!("{left} left")));
    pace.extend(run.cost.map(|dollars| format!("about ${dollars:.2} in all")));
    if run.priority != 0 {
        pace.push(format!("priority {}", run.priority));
    }
    let mut lines = vec![first, counts];
    lines.extend((!pace.is_empty()).then(|| Line::raw(pace.join(", "))));
    lines.extend(stages(run).map(Line::raw));
    let trouble = 2 * u16::from(run.problem.is_some());
    let [numbers, problem, rest] =
        Layout::vertical([Constraint::Max(lines.len() as u16), Constraint::Max(trouble), Constraint::Fill(1)]).areas(area);
    frame.render_widget(Paragraph::new(lines), numbers);
    if let Some(text) = &run.problem {
        frame.render_widget(trouble_of(state, text), problem);
    }
    let groups = state.failures().map_or(0, |f| f.as_ref().map_or(1, Vec::len));
    if area.width >= 96 {
        let [left, right] = Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2)]).spacing(2).areas(rest);
        let failures = if groups > 0 { Constraint::Fill(1) } else { Constraint::Length(2) };
        let [workers, failures] = Layout::vertical([Constraint::Fill(1), failures]).areas(right);
        view_classes(frame, left, state, run);
        view_workers(frame, workers, state, Some(run));
        view_failures(frame, failures, state);
    } else {
        let most = |lines: usize, part: u16| Constraint::Length(cells(lines).min(rest.height / part));
        let workers = most(state.sight.workers.len() + 2, 3);
        let [classes, workers, failures] = Layout::vertical([Constraint::Fill(1), workers, most(3 * groups + 1, 3)]).areas(rest);
        view_classes(frame, classes, state, run);
        view_workers(frame, workers, state, Some(run));
        view_failures(frame, failures, state);
    }
}

fn view_classes(frame: &mut Frame, area: Rect, state: &State, run: &Run) {
    let of_lpips = run.classes.iter().any(|class| class.lpips.is_some());
    let value = |class: &Class| if of_lpips { class.lpips } else { class.loss };
    let error = |class: &Class| if of_lpips { class.lpips_standard_error } else { None };
    let title = if of_lpips { "classes: LPIPS ± standard error" } else { "classes: loss" };
    let Some(area) = panel(frame, area, title) else { return };
    if run.classes.is_empty() {
        frame.render_widget("no results yet", area);
        return;
    }
    let most = run.classes.iter().filter_map(|class| Some(value(class)? + error(class).unwrap_or(0.0))).fold(0.0, f64::max);
    let width = usize::from(area.width / 3).clamp(6, 40);
    let number = |class: &Class| match (value(class), error(class)) {
        (Some(value), Some(error)) => format!("{value:.4} ± {error:.4}"),
        (Some(value), None) => format!("{value:.4}"),
        (None, _) => String::new(),
    };
    let column = |title, need, cell: &dyn Fn(&Class) -> Line<'static>| {
        let cells = run.classes.iter().map(cell).collect();
        Column { title, need, cells }
    };
    let columns = [
        column("class", 0, &|class| Line::raw(class.class.0.clone())),
        column("images", 3, &|class| Line::raw(class.images.to_string()).right_aligned()),
        column("", 2, &|class| value(class).map(|v| bar(state, v, error(class), most, width)).unwrap_or_default()),
        column(if of_lpips { "LPIPS" } else { "loss" }, 1, &|class| Line::raw(number(class))),
    ];
    view_table(frame, area, columns.into(), Some(state.class.min(run.classes.len() - 1)));
}

/// The workers of `run` come first.
fn view_workers(frame: &mut Frame, area: Rect, state: &State, run: Option<&Run>) {
    let Some(area) = panel(frame, area, "workers") else { return };
    if state.sight.workers.is_empty() {
        frame.render_widget("none", area);
        return;
    }
    let mut workers: Vec<&Worker> = state.sight.workers.iter().collect();
    workers.sort_by_key(|worker| run.is_some_and(|run| worker.run != run.name));
    let doing = |worker: &Worker| match worker.silent_seconds {
        Some(seconds) if seconds > WORKER_SILENCE => {
            Line::styled(format!("silent for {}", duration(seconds)), state.style(Color::Red))
        }
        _ if worker.leaving => Line::styled("leaving", state.style(Color::Magenta)),
        _ if worker.images == 0 => Line::raw("idle"),
        _ => Line::raw(format!("{} of {}", worker.images, counted(worker.slots, "image"))),
    };
    let steps = |worker: &Worker| worker.lane_steps_per_second.filter(|rate| *rate > 0.0).map(|rate| format!("{rate:.0}"));
    let column = |title, need, cell: &dyn Fn(&Worker) -> Line<'static>| {
        let cells = workers.iter().map(|worker| cell(worker)).collect();
        Column { title, need, cells }
    };
    let columns = [
        column("worker", 0, &|worker| Line::raw(worker.name.0.clone())),
        column("does", 1, &doing),
        column("of run", 2, &|worker| Line::raw(if worker.images > 0 { worker.run.0.clone() } else { String::new() })),
        column("lane-steps/s", 3, &|worker| Line::raw(steps(worker).unwrap_or_default()).right_aligned()),
        column("devices", 4, &|worker| Line::raw(worker.devices.0.clone())),
    ];
    view_table(frame, area, columns.into(), None);
}

fn view_failures(frame: &mut Frame, area: Rect, state: &State) {
    let Some(area) = panel(frame, area, "failures") else { return };
    let mut lines = Vec::new();
    match state.failures() {
        Some(Ok(groups)) => {
            for group in groups {
                let kind = format!("{} {}", group.images, group.reason.0);
                lines.push(Line::styled(kind, state.style(Color::Red).add_modifier(Modifier::BOLD)));
                let message = |e: &Example| e.message.as_ref().map(|m| format!(": {}", m.0)).unwrap_or_default();
                lines.extend(group.examples.first().map(|e| Line::raw(format!("{}{}", e.image.0, message(e)))));
            }
            lines.extend(groups.is_empty().then(|| Line::raw("none")));
        }
        Some(Err(why)) => lines.push(Line::raw(&why.0)),
        None => {}
    }
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }), area);
}

/// A title above what is left of the area, if anything is.
fn panel(frame: &mut Frame, area: Rect, title: &str) -> Option<Rect> {
    if area.height < 2 {
        return None;
    }
    let block = Block::new().borders(Borders::TOP).title(format!("{title} ").bold());
    let inner = block.inner(area);
    frame.render_widget(block, area);
    Some(inner)
}

/// A column of a table.
struct Column {
    title: &'static str,
    /// Columns of the lowest have the first right to the room. 0 stands first, is always there, and shrinks.
    need: u8,
    cells: Vec<Line<'static>>,
}

/// As many columns as there is room for, at the chosen row.
fn view_table(frame: &mut Frame, area: Rect, mut columns: Vec<Column>, chosen: Option<usize>) {
    const SHORT: usize = 12;
    let width = |column: &Column| column.cells.iter().map(Line::width).max().unwrap_or(0).max(column.title.len());
    let marker = 2 * usize::from(chosen.is_some());
    let room = usize::from(area.width).saturating_sub(marker);
    let mut used = width(&columns[0]).min(SHORT.max(room / 3));
    let mut by_need: Vec<(u8, usize)> = columns.iter().skip(1).map(|column| (column.need, width(column) + 1)).collect();
    by_need.sort_unstable();
    let fits = by_need.iter().take_while(|(_, width)| {
        let fits = used + width <= room;
        used += if fits { *width } else { 0 };
        fits
    });
    let last = fits.last().map_or(0, |(need, _)| *need);
    columns.retain(|column| column.need <= last);
    let others: usize = columns.iter().skip(1).map(|column| width(column) + 1).sum();
    let first = width(&columns[0]).min(room.saturating_sub(others));
    columns[0].cells.iter_mut().for_each(|cell| shorten(cell, first));
    let widths: Vec<Constraint> =
        std::iter::once(first).chain(columns.iter().skip(1).map(width)).map(|w| Constraint::Length(cells(w))).collect();

    let height = usize::from(area.height.saturating_sub(1));
    let rows = columns[0].cells.len();
    let start = chosen.unwrap_or(0).saturating_sub(height / 2).min(rows.saturating_sub(height));
    let right = |column: &Column| column.cells.first().and_then(|cell| cell.alignment);
    let title = |column: &Column| Line { alignment: right(column), ..Line::from(column.title) };
    let header = Row::new(columns.iter().map(title).collect::<Vec<_>>()).underlined();
    let seen =
        (start..rows.min(start + height)).map(|row| Row::new(columns.iter().map(|c| c.cells[row].clone()).collect::<Vec<_>>()));
    let table = Table::new(seen, widths)
        .header(header)
        .column_spacing(1)
        .highlight_symbol("> ")
        .row_highlight_style(Style::new().add_modifier(Modifier::BOLD));
    let mut at = TableState::default().with_selected(chosen.map(|chosen| chosen - start));
    frame.render_stateful_widget(table, area, &mut at);
}

/// Ends a line that is too wide with `…`.
fn shorten(line: &mut Line<'static>, width: usize) {
    if line.width() <= width {
        return;
    }
    let mut text = String::new();
    for c in line.to_string().chars() {
        text.push(c);
        if Span::raw(&text).width() >= width {
            text.pop();
            break;
        }
    }
    *line = Line { spans: vec![(text + "…").into()], ..line.clone() };
}

fn mark(state: &State, run: &Run) -> Span<'static> {
    let colour = match run.state.0.as_str() {
        _ if run.problem.is_some() => Color::Red,
        "running" => Color::Cyan,
        "finished" => Color::Green,
        _ => Color::Magenta,
    };
    let text = if run.problem.is_some() { format!("{}!", run.state.0) } else { run.state.0.clone() };
    Span::styled(text, state.style(colour))
}

fn trouble_of(state: &State, problem: &Text) -> Paragraph<'static> {
    let text = format!("cannot go on now: {}", problem.0);
    Paragraph::new(text).style(state.style(Color::Red)).wrap(Wrap { trim: false })
}

fn failed(state: &State, run: &Run) -> Line<'static> {
    let style = if run.failed > 0 { state.style(Color::Red).add_modifier(Modifier::BOLD) } else { Style::new() };
    Span::styled(run.failed.to_string(), style).into()
}

/// Mean times of the stages, in the order in which an image meets them.
fn stages(run: &Run) -> Option<String> {
    const ORDER: [&str; 4] = ["fetch", "transform_search", "latent_search", "final_descent"];
    let mut stages: Vec<(&str, f64)> = run.stage_seconds.iter().filter_map(|(name, s)| Some((name.0.as_str(), (*s)?))).collect();
    stages.sort_by_key(|(name, _)| ORDER.iter().position(|known| known == name).unwrap_or(ORDER.len()));
    let stages: Vec<String> = stages.iter().map(|(name, s)| format!("{} {} s", name.replace('_', " "), short(*s))).collect();
    (!stages.is_empty()).then(|| format!("{} per image", stages.join(", ")))
}

/// What is done, what failed, what is left.
fn progress(state: &State, run: &Run, width: usize) -> Line<'static> {
    let cells = |images: u64| (images.min(run.images) as f64 / run.images.max(1) as f64 * width as f64) as usize;
    let done = cells(run.done());
    // A failure can be seen, however few there are.
    let failed = (cells(run.settled()) - done).max(usize::from(run.failed > 0)).min(width);
    let done = done.min(width - failed);
    vec![
        Span::styled("█".repeat(done), state.style(Color::Green)),
        Span::styled("▒".repeat(failed), state.style(Color::Red)),
        Span::raw("░".repeat(width - done - failed)),
    ]
    .into()
}

/// A value on a scale that ends at `most`, with its standard error to both sides.
fn bar(state: &State, value: f64, error: Option<f64>, most: f64, width: usize) -> Line<'static> {
    let cell = |value: f64| if most > 0.0 { ((value / most).clamp(0.0, 1.0) * width as f64).round() as usize } else { 0 };
    let error = error.unwrap_or(0.0);
    let (low, middle, high) = (cell(value - error), cell(value), cell(value + error));
    let whole = if low < middle { low } else { middle };
    vec![
        Span::styled("█".repeat(whole), state.style(Color::Cyan)),
        Span::styled("▓".repeat(middle - whole), state.style(Color::Cyan)),
        Span::raw("─".repeat(high - middle)),
    ]
    .into()
}

/// As many cells of a terminal, which has less than 65,536 in a row.
fn cells(n: usize) -> u16 {
    n.try_into().unwrap_or(u16::MAX)
}

/// A number with two digits at least.
pub fn short(number: f64) -> String {
    if number < 9.95 { format!("{number:.1}") } else { format!("{number:.0}") }
}

fn counted(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// A time as a person says it.
pub fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match (seconds / 60, seconds / 3600) {
        (0, _) => format!("{seconds} s"),
        (minutes, 0) => format!("{minutes} min"),
        (minutes, hours @ ..48) => format!("{hours} h {} min", minutes % 60),
        (_, hours @ ..240_000) => format!("{} d {} h", hours / 24, hours % 24),
        _ => "years".into(),
    }
}

/// `basin watch`.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let Some(name) = &args.run {
        keys::check_run(name).map_err(|problem| anyhow::anyhow!("the run's name {name:?} {problem}"))?;
    }
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    if args.plain || dumb || !std::io::stdout().is_terminal() {
        return plain(&args.coordinator, args.run);
    }
    let client = Client::patient(&args.coordinator, LIMIT)?;
    let open = args.run.map(Text::from);
    // What is wrong from the start, such as the token, ends it here. Later it is tried again.
    let sight = look(&client, open.as_ref())?;
    let mut state = State {
        place: client.base.clone().into(),
        colour: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        open: open.clone(),
        ..State::default()
    };
    state.apply(Input::Seen(sight.into()), 0.0);
    let signal = Arc::new(AtomicUsize::new(0));
    for number in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register_usize(number, signal.clone(), number as usize).context("cannot listen to signals")?;
    }
    // A panic restores it, too.
    let mut terminal = ratatui::try_init().context("cannot use the terminal")?;
    let (orders, ordered) = mpsc::channel();
    let (tell, told) = mpsc::channel();
    let keys = tell.clone();
    thread::spawn(move || ask(&client, open, &ordered, &tell));
    // On its own: at a terminal that is gone crossterm reads for ever.
    thread::spawn(move || while keys.send(pressed()).is_ok() {});
    let left = show(&mut terminal, &mut state, &signal, &told, &orders);
    // Where the terminal is gone there is nothing to restore.
    let _ = ratatui::try_restore();
    left
}

fn pressed() -> anyhow::Result<Input> {
    Ok(match event::read().context("cannot read keys")? {
        Event::Key(key) if key.is_press() => Input::Key(key),
        // Such as another size, in which it is drawn again.
        _ => Input::Tick,
    })
}

/// Draws what the state is, until somebody leaves.
fn show(
    terminal: &mut DefaultTerminal,
    state: &mut State,
    signal: &AtomicUsize,
    told: &Receiver<anyhow::Result<Input>>,
    orders: &Sender<Order>,
) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    loop {
        terminal.draw(|frame| view(frame, state)).context("cannot draw")?;
        let drawn = Instant::now();
        let input = loop {
            match (signal.load(Ordering::Relaxed), told.recv_timeout(BLINK)) {
                (0, Ok(input)) => break input?,
                (0, Err(RecvTimeoutError::Timeout)) if drawn.elapsed() < EVERY => {}
                (0, Err(RecvTimeoutError::Timeout)) => break Input::Tick,
                (0, Err(RecvTimeoutError::Disconnected)) => bail!("nobody asks the coordinator any more"),
                (number, _) => return Ok(interrupted(number)),
            }
        };
        match state.apply(input, start.elapsed().as_secs_f64()) {
            Some(Order::Leave(code)) => return Ok(code),
            Some(order) => orders.send(order).context("nobody asks the coordinator any more")?,
            None => {}
        }
    }
}

/// Asks the coordinator again and again, and does what is ordered, until nobody listens.
fn ask(client: &Client, mut open: Option<Text>, ordered: &Receiver<Order>, tell: &Sender<anyhow::Result<Input>>) {
    loop {
        match ordered.recv_timeout(EVERY) {
            Ok(Order::Set(run, state)) => {
                let said = match set(client, &run, state) {
                    Ok(state) => format!("{} is {state}", run.0),
                    Err(error) => format!("{error:#}"),
                };
                if tell.send(Ok(Input::Said(said.into()))).is_err() {
                    return;
                }
            }
            Ok(Order::Look(run)) => open = run,
            Ok(Order::Leave(_)) | Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let news = match look(client, open.as_ref()) {
            Ok(sight) => Input::Seen(sight.into()),
            Err(error) => Input::Lost(format!("{error:#}").into()),
        };
        if tell.send(Ok(news)).is_err() {
            return;
        }
    }
}

fn look(client: &Client, open: Option<&Text>) -> anyhow::Result<Sight> {
    let mut sight = Sight { runs: client.get("/v1/runs")?, workers: client.get("/v1/workers")?, open: None };
    if let Some(Text(name)) = open {
        let run = client.get(&format!("/v1/runs/{name}"))?;
        let failures = client.get(&format!("/v1/runs/{name}/failures"));
        sight.open = Some((run, failures.map_err(|error| format!("{error:#}").into())));
    }
    Ok(sight)
}

fn set(client: &Client, run: &Text, state: RunState) -> anyhow::Result<String> {
    let change = Change { state: Some(state), ..Change::default() };
    let status: Value = client.send("PATCH", &format!("/v1/runs/{}", run.0), &change)?;
    Ok(status["state"].as_str().unwrap_or_default().to_owned())
}

/// Lines until the run is over, or all that are not over yet.
fn plain(coordinator: &Coordinator, run: Option<String>) -> anyhow::Result<ExitCode> {
    if let Some(run) = run {
        return fleet::wait(coordinator, &[run]);
    }
    let runs: Vec<Run> = Client::patient(coordinator, LIMIT)?.get("/v1/runs")?;
    let runs: Vec<String> = runs.into_iter().filter(|run| !run.over()).map(|run| run.name.0).collect();
    if runs.is_empty() {
        say!("no run is going on");
    }
    fleet::wait(coordinator, &runs)
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;

    fn runs() -> Value {
        json!([
            { "name": "done", "state": "finished", "images": 64, "skipped": 60, "succeeded": 4, "failed": 0 },
            { "name": "night", "state": "running", "images": 2000, "skipped": 200, "succeeded": 1040, "failed": 3, "started": 4,
              "queued": 8, "waiting": 745, "per_hour": 3600.0, "eta_seconds": 757.0, "cost": 3.2, "priority": 5,
              "stage_seconds": { "fetch": 0.1, "final_descent": 2.0, "latent_search": 13.0, "transform_search": null },
              "classes": [
                  { "class": "Bag", "images": 640, "loss": 0.5, "lpips": 0.2, "lpips_standard_error": 0.05 },
                  { "class": "Coat", "images": 600, "loss": 0.6, "lpips": 0.4, "lpips_standard_error": null }
              ] },
            { "name": "stuck", "state": "paused", "images": 10, "per_hour": 999.0, "eta_seconds": 7.0, "problem": "cannot list s3://bucket/data" }
        ])
    }

    fn workers() -> Value {
        json!([
            { "name": "worker-1", "silent_seconds": 0.5, "slots": 4, "images": 0, "run": "", "devices": "cpu" },
            { "name": "worker-2", "silent_seconds": 1.5, "slots": 4, "images": 2, "run": "night", "lane_steps_per_second": 241.7,
              "devices": "cuda:0, cuda:1" },
            { "name": "worker-3", "silent_seconds": 65.0, "slots": 4, "images": 1, "run": "night" }
        ])
    }

    fn sight(runs: Value) -> Box<Sight> {
        let workers = serde_json::from_value(workers()).unwrap();
        Box::new(Sight { runs: serde_json::from_value(runs).unwrap(), workers, open: None })
    }

    /// The fleet, and this of its runs open, if it has the name.
    fn watching(runs: Value, open: &str, failures: Value) -> State {
        let mut sight = sight(runs);
        let run = sight.runs.iter().find(|run| run.name.0 == open).cloned();
        let failures: Result<Vec<Group>, Text> = serde_json::from_value(failures).map_err(|e| e.to_string().into());
        sight.open = run.map(|run| (run, failures));
        let open = sight.open.as_ref().map(|(run, _)| run.name.clone());
        let mut state = State { place: "http://here".to_owned().into(), colour: true, open, ..State::default() };
        state.apply(Input::Seen(sight), 1.0);
        state
    }

    fn screen(state: &State, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view(frame, state)).unwrap();
        terminal.backend().to_string()
    }

    fn press(state: &mut State, code: KeyCode) -> Option<Order> {
        state.apply(Input::Key(code.into()), 1.0)
    }

    fn assert_shows(screen: &str, parts: &[&str]) {
        for part in parts {
            assert!(screen.contains(part), "no {part:?} in\n{screen}");
        }
    }

    #[test]
    fn all_runs_are_listed_with_progress_rate_time_and_failures_those_that_go_on_first() {
        let mut state = watching(runs(), "", json!([]));
        let shown = screen(&state, 120, 24);
        assert_shows(&shown, &["basin  http://here", "3 workers", "night", "running", "62 %", "1243/2000", "3600", "12 min"]);
        assert_shows(&shown, &["█▒░", "64/64", "100 %", "paused!", "2 of 4 images", "silent for 1 min", "idle", "Enter open"]);
        let line = |name: &str| shown.lines().position(|line| line.contains(name)).unwrap();
        assert!(line("night") < line("stuck") && line("stuck") < line("64/64"), "{shown}");
        assert!(shown.contains("> night") && !shown.contains("cannot go on") && !shown.contains("999"), "{shown}");
        press(&mut state, KeyCode::Down);
        assert_shows(&screen(&state, 120, 24), &["> stuck", "cannot go on now: cannot list s3://bucket/data"]);
    }

    #[test]
    fn a_run_shows_its_classes_with_errors_its_workers_first_and_its_failures_by_kind() {
        let failures = json!([
            { "reason": "bad_image", "images": 2, "examples": [
                { "image": "a.png", "message": "no such format" }, { "image": "b.png", "message": "another" } ] },
            { "reason": "bad_mask", "images": 1, "examples": [ { "image": "c.png", "message": null } ] }
        ]);
        let mut state = watching(runs(), "night", failures);
        for (width, height) in [(120, 30), (80, 40)] {
            let shown = screen(&state, width, height);
            assert_shows(
                &shown,
                &["night  running", "62 %", "1243 of 2000 images", "3 failed, 4 with workers, 8 queued, 745 waiting"],
            );
            assert_shows(
                &shown,
                &[
                    "3600 images/h, 12 min left, about $3.20 in all, priority 5",
                    "fetch 0.1 s, latent search 13 s, final descent 2.0 s per image",
                ],
            );
            assert_shows(&shown, &["LPIPS ± standard error", "Bag", "640", "0.2000 ± 0.0500", "▓", "─", "0.4000"]);
            assert_shows(&shown, &["2 bad_image", "a.png: no such format", "1 bad_mask", "c.png"]);
            assert!(!shown.contains("another"), "{shown}");
            let line = |name: &str| shown.lines().position(|line| line.contains(name)).unwrap();
            assert!(line("worker-3") < line("worker-1"), "{shown}");
        }
        press(&mut state, KeyCode::End);
        assert_shows(&screen(&state, 120, 30), &["> Coat"]);
    }

    #[test]
    fn without_lpips_the_bars_are_losses() {
        let runs = json!([{ "name": "r", "state": "running", "classes": [{ "class": "Bag", "images": 1, "loss": 0.5 }] }]);
        let shown = screen(&watching(runs, "r", json!([])), 80, 24);
        assert_shows(&shown, &["classes: loss", "0.5000", "████"]);
    }

    #[test]
    fn names_and_messages_of_strangers_steer_nothing() {
        let hostile = &format!("a{}", "x".repeat(66_000));
        let long =
            json!([{ "name": hostile, "state": hostile, "problem": hostile, "classes": [{ "class": hostile, "loss": 1.0 }] }]);
        let failures = json!([{ "reason": hostile, "images": 1, "examples": [{ "image": hostile, "message": hostile }] }]);
        let mut state = watching(long, hostile, failures);
        for open in [state.open.clone(), None] {
            state.open = open;
            assert_shows(&screen(&state, 100, 30), &["axxx"]);
        }

        let hostile = "a\u{1b}[2J\u{1b}]0;title\u{7}\r\n\u{202e}gnp\u{200b}\u{9b}31m";
        let runs = json!([{ "name": hostile, "state": hostile, "images": 3, "failed": u64::MAX, "succeeded": u64::MAX,
            "per_hour": 1e308, "eta_seconds": 1e308, "cost": -1e308, "priority": i64::MIN, "problem": hostile,
            "stage_seconds": { hostile: 1.0 },
            "classes": [
                { "class": hostile, "images": u64::MAX, "lpips": -1e308, "lpips_standard_error": 1e308 },
                { "class": "表".repeat(300), "lpips": 1e308, "lpips_standard_error": 1e308 } ] }]);
        let failures = json!([{ "reason": hostile, "images": 1, "examples": [{ "image": hostile, "message": hostile }] }]);
        let name = Text::from(hostile.to_owned()).0;
        assert_eq!(name, "a\\u{1b}[2J\\u{1b}]0;title\\u{7}\\r\\n\\u{202e}gnp\\u{200b}\\u{9b}31m");
        let mut state = watching(runs, &name, failures);
        press(&mut state, KeyCode::Char('p'));
        state.apply(Input::Lost(hostile.to_owned().into()), 1.0);
        for open in [state.open.clone(), None] {
            state.open = open;
            for (width, height) in [(300, 50), (100, 30), (60, 20), (20, 5), (1, 1)] {
                let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
                terminal.draw(|frame| view(frame, &state)).unwrap();
                let cells = terminal.backend().buffer().content().iter();
                let steering = cells.flat_map(|cell| cell.symbol().chars()).find(|c| c.is_control() || *c == '\u{202e}');
                assert_eq!(steering, None, "at {width} x {height}");
            }
        }
        state.open = Some(Text(name.clone()));
        assert_shows(&screen(&state, 300, 50), &[&name]);
        let Some(Order::Set(run, RunState::Paused)) = press(&mut state, KeyCode::Char('y')) else { panic!("no order") };
        assert_eq!(run.0, name);
    }

    #[test]
    fn a_tiny_terminal_still_says_the_most_important() {
        let mut state = watching(runs(), "", json!([]));
        assert_shows(&screen(&state, 20, 5), &["> night", "62 %"]);
        press(&mut state, KeyCode::Char('?'));
        assert_shows(&screen(&state, 20, 5), &["keys", "up, down"]);
        press(&mut state, KeyCode::Esc);
        press(&mut state, KeyCode::Enter);
        assert_shows(&screen(&state, 20, 5), &["night  running  ", "62 %", "3 failed"]);
        for (width, height) in [(1, 1), (2, 3), (3, 40), (200, 2)] {
            screen(&state, width, height);
        }
    }

    #[test]
    fn nothing_to_show_is_said() {
        let mut state = State { open: Some("gone".to_owned().into()), ..State::default() };
        assert_shows(&screen(&state, 80, 10), &["there is no run gone", "0 workers"]);
        assert_eq!([KeyCode::Down, KeyCode::Home].map(|key| press(&mut state, key)), [None, None]);
        assert_eq!(press(&mut state, KeyCode::Esc), Some(Order::Look(None)));
        assert_shows(&screen(&state, 80, 10), &["no runs yet: basin submit begins one"]);
        let keys = [KeyCode::Down, KeyCode::End, KeyCode::Enter, KeyCode::Char('p'), KeyCode::Char('y')];
        assert_eq!(keys.map(|key| press(&mut state, key)), [None, None, None, None, None]);

        let new = json!([{ "name": "new", "state": "running" }]);
        let shown = screen(&watching(new, "new", json!("the coordinator refuses: 404")), 100, 20);
        assert_shows(&shown, &["0 %  0 of 0 images", "no results yet", "failures"]);
    }

    #[test]
    fn a_lost_coordinator_is_shown_beside_the_last_news_until_it_answers() {
        let mut state = watching(runs(), "", json!([]));
        let silent = |state: &State| screen(state, 100, 20).contains("no news for");
        state.apply(Input::Tick, 3.0);
        assert!(!silent(&state));
        // It hangs.
        state.apply(Input::Tick, 7.0);
        assert_shows(&screen(&state, 100, 20), &["no news for 6 s, trying again", "night"]);
        state.apply(Input::Seen(sight(runs())), 8.0);
        assert!(!silent(&state));
        state.apply(Input::Lost("the coordinator at http://here does not answer".to_owned().into()), 8.5);
        state.apply(Input::Tick, 80.0);
        assert_shows(&screen(&state, 100, 20), &["no news for 1 min, trying again: the coordinator at http://here", "night"]);
        state.apply(Input::Seen(sight(json!([]))), 81.0);
        assert!(!silent(&state));
    }

    #[test]
    fn keys_choose_open_and_ask_before_they_change_anything() {
        let mut state = watching(runs(), "", json!([]));
        let text = |text: &str| Text(text.into());
        assert_eq!(press(&mut state, KeyCode::Char('j')), None);
        // Runs come and go, the choice stays.
        state.apply(
            Input::Seen(sight(json!([{ "name": "a", "state": "running" }, { "name": "stuck", "state": "running" }]))),
            2.0,
        );
        assert_eq!(press(&mut state, KeyCode::Enter), Some(Order::Look(Some(text("stuck")))));
        assert_eq!(press(&mut state, KeyCode::Char('p')), None);
        assert_shows(&screen(&state, 40, 10), &["pause stuck? y/n"]);
        assert_eq!(
            [KeyCode::Char('x'), KeyCode::Char('n'), KeyCode::Char('y')].map(|key| press(&mut state, key)),
            [None, None, None]
        );
        press(&mut state, KeyCode::Char('r'));
        assert_shows(&screen(&state, 40, 10), &["resume stuck? y/n"]);
        assert_eq!(press(&mut state, KeyCode::Char('y')), Some(Order::Set(text("stuck"), RunState::Running)));
        state.apply(Input::Said(text("stuck is running")), 3.0);
        assert_shows(&screen(&state, 40, 10), &["stuck is running"]);
        assert_eq!(press(&mut state, KeyCode::Esc), Some(Order::Look(None)));
        assert_shows(&screen(&state, 40, 10), &["> stuck"]);
        press(&mut state, KeyCode::Up);
        assert_shows(&screen(&state, 40, 10), &["> a"]);
        press(&mut state, KeyCode::Char('?'));
        assert_shows(&screen(&state, 60, 12), &["q, Ctrl-C"]);
        assert_eq!(press(&mut state, KeyCode::Char('q')), None, "it closes the help");
        assert_eq!(press(&mut state, KeyCode::Char('q')), Some(Order::Leave(ExitCode::SUCCESS)));
        press(&mut state, KeyCode::Char('p'));
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(state.apply(Input::Key(interrupt), 4.0), Some(Order::Leave(ExitCode::from(130))));
    }

    #[test]
    fn a_long_list_follows_the_choice() {
        let many: Vec<Value> = (0..500).map(|i| json!({ "name": format!("run-{i:03}"), "state": "running" })).collect();
        let mut state = watching(Value::from(many), "", json!([]));
        press(&mut state, KeyCode::End);
        assert_shows(&screen(&state, 60, 12), &["> run-499", "run-495"]);
        press(&mut state, KeyCode::PageUp);
        let shown = screen(&state, 60, 12);
        assert_shows(&shown, &["> run-489", "run-487", "run-491"]);
        assert!(!shown.contains("run-499"), "{shown}");
    }

    #[test]
    fn without_colour_there_is_none() {
        let mut state = watching(runs(), "night", json!([{ "reason": "bad_image", "images": 2 }]));
        let coloured = |state: &State| {
            let mut terminal = Terminal::new(TestBackend::new(120, 30)).unwrap();
            terminal.draw(|frame| view(frame, state)).unwrap();
            terminal.backend().buffer().content().iter().any(|cell| (cell.fg, cell.bg) != (Color::Reset, Color::Reset))
        };
        assert!(coloured(&state));
        state.colour = false;
        state.lost = Some(Text::default());
        assert!(!coloured(&state));
    }
}
