//! Draws a [`Screen`]. Every text of the coordinator goes through [`harmless`].

use client::api::{ClassStatus, FailureGroup, ImageRow, RunStatus, WorkerStatus};
use proto::{Alive, RunState, Stage};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Clear, Paragraph, Wrap};
use results::format::{duration, short};

use super::state::{Screen, finished, succeeded};
use super::table::{self, Spec, cells};
use crate::terminal::harmless;

/// Seconds after which a worker's silence is mentioned.
const WORKER_SILENCE: f64 = 30.0;

pub fn view(frame: &mut Frame, state: &Screen) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)]).areas(frame.area());
    view_head(frame, head, state);
    match (&state.open, state.run()) {
        (Some(_), Some(run)) => view_run(frame, body, state, run),
        (Some(name), None) => frame.render_widget(Line::raw(format!("there is no run {}", harmless(name))), body),
        (None, _) => view_runs(frame, body, state),
    }
    view_foot(frame, foot, state);
    if state.help {
        view_help(frame, frame.area());
    }
}

fn view_head(frame: &mut Frame, area: Rect, state: &Screen) {
    let title = match (&state.open, state.run()) {
        (Some(name), Some(run)) => vec![harmless(name).bold(), "  ".into(), state_of(state, run)],
        (Some(name), None) => vec![harmless(name).bold()],
        (None, _) => vec!["basin".bold(), format!("  {}", harmless(&state.coordinator)).into()],
    };
    let workers = format!("{} ", counted(state.fleet.workers.len(), "worker"));
    let title = Line::from(title);
    let [left, right] = Layout::horizontal([Constraint::Length(cells(title.width() + 2)), Constraint::Fill(1)]).areas(area);
    frame.render_widget(title, left);
    if workers.len() <= right.width.into() {
        frame.render_widget(Line::raw(workers).right_aligned(), right);
    }
}

/// The most urgent of: a question, a silence, an outage, a note, the keys.
fn view_foot(frame: &mut Frame, area: Rect, state: &Screen) {
    let line = if let Some((run, wanted)) = &state.question {
        let verb = if *wanted == RunState::Paused { "pause" } else { "resume" };
        Line::from(format!("{verb} {}? y/n", harmless(run))).bold()
    } else if state.is_silent() {
        let why = state.lost.as_deref().map(harmless).unwrap_or_default();
        let text = format!("no answer for {}, trying again: {why}", duration(state.now - state.heard));
        Line::styled(text, state.style(Color::Red).add_modifier(Modifier::BOLD | Modifier::REVERSED))
    } else if let Some(outage) = state.fleet.outages.first() {
        let text = format!("{}: {}", duration(outage.seconds), harmless(&outage.text()));
        Line::styled(text, state.style(Color::Yellow).add_modifier(Modifier::BOLD))
    } else if let Some(note) = &state.note {
        Line::raw(harmless(note))
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
        "Esc              list all runs",
        "p                pause the run",
        "r                resume the run",
        "q, Ctrl-C        quit; runs continue",
        "PageUp, PageDown, Home, End: move farther",
        "any key closes this",
    ];
    let middle = area.centered(Constraint::Max(43), Constraint::Max(KEYS.len() as u16 + 2));
    frame.render_widget(Clear, middle);
    let block = Block::bordered().title(" keys ");
    frame.render_widget(Paragraph::new(KEYS.map(Line::raw).to_vec()).block(block), middle);
}

fn view_runs(frame: &mut Frame, area: Rect, state: &Screen) {
    let runs = &state.fleet.runs;
    if runs.is_empty() {
        frame.render_widget(Paragraph::new("no runs yet: submit one with `basin submit`").wrap(Wrap::default()), area);
        return;
    }
    let problem = state.at().and_then(|at| trouble(&runs[at]));
    // The table gets room first, then the problem of the chosen run, then the workers.
    let (rows, lines) = (cells(runs.len() + 1), 3 * u16::from(problem.is_some()));
    let [list, place, workers] =
        Layout::vertical([Constraint::Max(rows), Constraint::Max(lines.min(area.height / 3)), Constraint::Fill(1)]).areas(area);
    let bar = usize::from(area.width / 5).clamp(6, 30);
    let columns: [Spec<RunStatus>; 8] = [
        ("run", 0, &|run| Line::raw(harmless(&run.name))),
        ("state", 2, &|run| state_of(state, run).into()),
        ("", 5, &|run| progress_bar(state, run, bar)),
        ("finished", 1, &|run| Line::raw(percent(run)).right_aligned()),
        ("images", 6, &|run| Line::raw(format!("{}/{}", finished(run), run.images)).right_aligned()),
        ("per hour", 7, &|run| Line::raw(rate(run).unwrap_or_default()).right_aligned()),
        ("left", 4, &|run| Line::raw(left(run).unwrap_or_default()).right_aligned()),
        ("failed", 3, &|run| failed(state, run).right_aligned()),
    ];
    table::draw(frame, list, runs, columns, state.at());
    if let Some(problem) = problem {
        frame.render_widget(problem_of(state, problem), place);
    }
    view_workers(frame, workers, state, None);
}

fn view_run(frame: &mut Frame, area: Rect, state: &Screen, run: &RunStatus) {
    let lines = numbers(state, run, area.width);
    let text = trouble(run);
    let [numbers, problem, rest] = Layout::vertical([
        Constraint::Max(lines.len() as u16),
        Constraint::Max(2 * u16::from(text.is_some())),
        Constraint::Fill(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(lines), numbers);
    if let Some(text) = text {
        frame.render_widget(problem_of(state, text), problem);
    }
    let groups = state.failures().map_or(0, |f| f.as_ref().map_or(1, Vec::len));
    let [classes, workers, failures] = if area.width >= 96 {
        let [left, right] = Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2)]).spacing(2).areas(rest);
        let failures = if groups > 0 { Constraint::Fill(1) } else { Constraint::Length(2) };
        let [workers, failures] = Layout::vertical([Constraint::Fill(1), failures]).areas(right);
        [left, workers, failures]
    } else {
        let most = |lines: usize, part: u16| Constraint::Length(cells(lines).min(rest.height / part));
        let workers = most(state.fleet.workers.len() + 2, 3);
        Layout::vertical([Constraint::Fill(1), workers, most(3 * groups + 1, 3)]).areas(rest)
    };
    view_classes(frame, classes, state, run);
    view_workers(frame, workers, state, Some(run));
    view_failures(frame, failures, state);
}

/// The lines above a run's tables.
fn numbers(state: &Screen, run: &RunStatus, width: u16) -> Vec<Line<'static>> {
    let mut first = progress_bar(state, run, usize::from(width / 2).clamp(4, 60));
    first.push_span(format!(" {}  {} of {}", percent(run), finished(run), counted(run.images, "image")));
    let mut counts = failed(state, run);
    counts.push_span(format!(" failed, {} with workers, {} queued, {} waiting", run.started, run.queued, run.waiting));
    if run.unread > 0 {
        counts.push_span(format!("; {} still to be read", counted(run.unread, "result")));
    }
    let mut pace = Vec::new();
    pace.extend(rate(run).map(|rate| format!("{rate} images/h")));
    pace.extend(left(run).map(|left| format!("{left} left")));
    pace.extend(run.cost.map(|dollars| format!("about ${dollars:.2} in all")));
    pace.extend(run.budget_hours.map(|budget| format!("{:.2} of {budget} worker hours used", run.worker_hours)));
    if run.priority != 0 {
        pace.push(format!("priority {}", run.priority));
    }
    let mut lines = vec![first, counts];
    lines.extend((!pace.is_empty()).then(|| Line::raw(pace.join(", "))));
    lines.extend(stages(run).map(Line::raw));
    lines
}

fn view_classes(frame: &mut Frame, area: Rect, state: &Screen, run: &RunStatus) {
    let lpips = run.classes.iter().any(|class| class.lpips.is_some());
    let value = |class: &ClassStatus| if lpips { class.lpips } else { class.loss };
    let error = |class: &ClassStatus| if lpips { class.lpips_standard_error } else { None };
    let title = if lpips { "classes: LPIPS ± standard error" } else { "classes: loss" };
    let Some(area) = panel(frame, area, title) else { return };
    if run.classes.is_empty() {
        frame.render_widget("no results yet", area);
        return;
    }
    let most = run.classes.iter().filter_map(|class| Some(value(class)? + error(class).unwrap_or(0.0))).fold(0.0, f64::max);
    let width = usize::from(area.width / 3).clamp(6, 40);
    let bar = |class: &ClassStatus| value(class).map(|v| value_bar(state, v, error(class), most, width)).unwrap_or_default();
    let number = |class: &ClassStatus| match (value(class), error(class)) {
        (Some(value), Some(error)) => format!("{value:.4} ± {error:.4}"),
        (Some(value), None) => format!("{value:.4}"),
        (None, _) => String::new(),
    };
    let columns: [Spec<ClassStatus>; 4] = [
        ("class", 0, &|class| Line::raw(harmless(&class.class))),
        ("images", 3, &|class| Line::raw(class.images.to_string()).right_aligned()),
        ("", 2, &bar),
        (if lpips { "LPIPS" } else { "loss" }, 1, &|class| Line::raw(number(class))),
    ];
    table::draw(frame, area, &run.classes, columns, Some(state.class.min(run.classes.len() - 1)));
}

/// The workers of `run` come first.
fn view_workers(frame: &mut Frame, area: Rect, state: &Screen, run: Option<&RunStatus>) {
    let Some(area) = panel(frame, area, "workers") else { return };
    if state.fleet.workers.is_empty() {
        frame.render_widget("none", area);
        return;
    }
    let mut workers: Vec<&WorkerStatus> = state.fleet.workers.iter().collect();
    workers.sort_by_key(|worker| run.is_some_and(|run| worker.alive.run != run.name));
    let activity = |worker: &WorkerStatus| match &worker.alive {
        _ if worker.silent_seconds > WORKER_SILENCE => {
            Line::styled(format!("silent for {}", duration(worker.silent_seconds)), state.style(Color::Red))
        }
        alive if alive.leaving => Line::styled("leaving", state.style(Color::Magenta)),
        Alive { waiting_for: Some(place), .. } => {
            Line::styled(format!("waits for the {}", harmless(place)), state.style(Color::Yellow))
        }
        alive if alive.images == 0 => Line::raw("idle"),
        alive => Line::raw(format!("{} of {}", alive.images, counted(alive.slots as usize, "image"))),
    };
    let run_of = |worker: &WorkerStatus| if worker.alive.images > 0 { harmless(&worker.alive.run) } else { String::new() };
    let speed = |worker: &WorkerStatus| {
        let rate = worker.alive.lane_steps_per_second;
        if rate > 0.0 { format!("{rate:.0}") } else { String::new() }
    };
    let columns: [Spec<&WorkerStatus>; 5] = [
        ("worker", 0, &|worker| Line::raw(harmless(&worker.name))),
        ("activity", 1, &|worker| activity(worker)),
        ("run", 2, &|worker| Line::raw(run_of(worker))),
        ("lane-steps/s", 3, &|worker| Line::raw(speed(worker)).right_aligned()),
        ("devices", 4, &|worker| Line::raw(harmless(&worker.alive.devices))),
    ];
    table::draw(frame, area, &workers, columns, None);
}

fn view_failures(frame: &mut Frame, area: Rect, state: &Screen) {
    let Some(area) = panel(frame, area, "failures") else { return };
    let mut lines = Vec::new();
    match state.failures() {
        Some(Ok(groups)) => {
            for FailureGroup { reason, images, examples } in groups {
                let reason = format!("{images} {}", reason.as_str());
                lines.push(Line::styled(reason, state.style(Color::Red).add_modifier(Modifier::BOLD)));
                lines.extend(examples.first().map(example));
            }
            lines.extend(groups.is_empty().then(|| Line::raw("none")));
        }
        Some(Err(why)) => lines.push(Line::raw(harmless(why))),
        None => {}
    }
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }), area);
}

fn example(row: &ImageRow) -> Line<'static> {
    let message = row.message.as_ref().map(|message| format!(": {}", harmless(message))).unwrap_or_default();
    Line::raw(format!("{}{message}", harmless(&row.image)))
}

/// Draws a title above the area and returns the rest of it, if there is any.
fn panel(frame: &mut Frame, area: Rect, title: &str) -> Option<Rect> {
    if area.height < 2 {
        return None;
    }
    let block = Block::new().borders(Borders::TOP).title(format!("{title} ").bold());
    let inner = block.inner(area);
    frame.render_widget(block, area);
    Some(inner)
}

/// The run's state, with `!` where it cannot continue.
fn state_of(state: &Screen, run: &RunStatus) -> Span<'static> {
    let colour = match run.state {
        _ if run.problem.is_some() => Color::Red,
        RunState::Running => Color::Cyan,
        RunState::Finished => Color::Green,
        RunState::Paused | RunState::Cancelled => Color::Magenta,
    };
    let mark = if run.problem.is_some() { "!" } else { "" };
    Span::styled(format!("{}{mark}", run.state.as_str()), state.style(colour))
}

/// The most important of what an operator has to know of a run.
fn trouble(run: &RunStatus) -> Option<String> {
    let problem = run.problem.as_ref().map(|why| format!("cannot continue now: {}", harmless(why)));
    let paused = run.paused_because.as_ref().map(|why| format!("paused: {}", harmless(why)));
    let deleting = run.deleting.map(|objects| format!("being deleted: {objects} objects are gone"));
    let notification = run.notification_problem.as_ref().map(|why| format!("notification: {}", harmless(why)));
    problem.or(paused).or(deleting).or(notification)
}

fn problem_of(state: &Screen, text: String) -> Paragraph<'static> {
    Paragraph::new(text).style(state.style(Color::Red)).wrap(Wrap { trim: false })
}

fn failed(state: &Screen, run: &RunStatus) -> Line<'static> {
    let style = if run.failed > 0 { state.style(Color::Red).add_modifier(Modifier::BOLD) } else { Style::new() };
    Span::styled(run.failed.to_string(), style).into()
}

/// 100 % means all images.
fn percent(run: &RunStatus) -> String {
    format!("{} %", (100 * finished(run) as u128).checked_div(run.images as u128).unwrap_or(0).min(100))
}

/// Images an hour; the rate of a run that is not running says nothing.
fn rate(run: &RunStatus) -> Option<String> {
    run.per_hour.filter(|_| run.state == RunState::Running).map(short)
}

fn left(run: &RunStatus) -> Option<String> {
    run.eta_seconds.filter(|_| run.state == RunState::Running).map(duration)
}

/// Mean times of the stages, in the order in which an image passes them.
fn stages(run: &RunStatus) -> Option<String> {
    let mut stages: Vec<(&str, f64)> = run.stage_seconds.iter().map(|(name, seconds)| (name.as_str(), *seconds)).collect();
    stages.sort_by_key(|(name, _)| Stage::rank(name));
    let text = |(name, seconds): &(&str, f64)| format!("{} {} s", harmless(name).replace('_', " "), short(*seconds));
    let stages: Vec<String> = stages.iter().map(text).collect();
    (!stages.is_empty()).then(|| format!("{} per image", stages.join(", ")))
}

fn counted(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// A bar of `width` cells: images that succeeded, that failed, and that are left.
fn progress_bar(state: &Screen, run: &RunStatus, width: usize) -> Line<'static> {
    let cells = |images: usize| (images.min(run.images) as f64 / run.images.max(1) as f64 * width as f64) as usize;
    let done = cells(succeeded(run));
    // A single failure among many images is visible.
    let failed = (cells(finished(run)) - done).max(usize::from(run.failed > 0)).min(width);
    let done = done.min(width - failed);
    vec![
        Span::styled("█".repeat(done), state.style(Color::Green)),
        Span::styled("▒".repeat(failed), state.style(Color::Red)),
        Span::raw("░".repeat(width - done - failed)),
    ]
    .into()
}

/// A value on a scale from 0 to `most`, with its standard error to both sides.
fn value_bar(state: &Screen, value: f64, error: Option<f64>, most: f64, width: usize) -> Line<'static> {
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
