use std::process::ExitCode;

use client::api::FailureGroup;
use proto::RunState;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::Color;
use serde_json::{Value, json};

use super::state::{Command, FleetView, Input, Screen};
use super::view::view;
use crate::terminal::harmless;

fn runs() -> Value {
    json!([
        { "name": "done", "state": "finished", "images": 64, "skipped": 60, "succeeded": 4, "failed": 0 },
        { "name": "night", "state": "running", "images": 2000, "skipped": 200, "succeeded": 1040, "failed": 3, "started": 4,
          "queued": 8, "waiting": 745, "per_hour": 3600.0, "eta_seconds": 757.0, "cost": 3.2, "priority": 5,
          "stage_seconds": { "fetch": 0.1, "final_descent": 2.0, "latent_search": 13.0 },
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

fn fleet(runs: Value) -> Box<FleetView> {
    let workers = serde_json::from_value(workers()).unwrap();
    Box::new(FleetView { runs: serde_json::from_value(runs).unwrap(), workers, outages: vec![], open: None })
}

/// The fleet with the run `open` opened, if there is one of that name. `failures` that cannot be read stand for an error.
fn watching(runs: Value, open: &str, failures: Value) -> Screen {
    let mut fleet = fleet(runs);
    let run = fleet.runs.iter().find(|run| run.name == open).cloned();
    let failures: Result<Vec<FailureGroup>, String> = serde_json::from_value(failures).map_err(|e| e.to_string());
    fleet.open = run.map(|run| (run, failures));
    let open = fleet.open.as_ref().map(|(run, _)| run.name.clone());
    let mut state = Screen { coordinator: "http://here".into(), colour: true, open, ..Screen::default() };
    state.apply(Input::Fleet(fleet), 1.0);
    state
}

fn drawn(state: &Screen, width: u16, height: u16) -> TestBackend {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view(frame, state)).unwrap();
    terminal.backend().clone()
}

fn screen(state: &Screen, width: u16, height: u16) -> String {
    drawn(state, width, height).to_string()
}

fn press(state: &mut Screen, code: KeyCode) -> Option<Command> {
    state.apply(Input::Key(code.into()), 1.0)
}

fn assert_steers_nothing(state: &Screen, width: u16, height: u16) {
    let drawn = drawn(state, width, height);
    let steering =
        drawn.buffer().content().iter().flat_map(|cell| cell.symbol().chars()).find(|c| c.is_control() || *c == '\u{202e}');
    assert_eq!(steering, None, "at {width} x {height}");
}

fn assert_shows(screen: &str, parts: &[&str]) {
    for part in parts {
        assert!(screen.contains(part), "no {part:?} in\n{screen}");
    }
}

#[test]
fn all_runs_are_listed_with_progress_rate_time_and_failures_open_runs_first() {
    let mut state = watching(runs(), "", json!([]));
    let shown = screen(&state, 120, 24);
    assert_shows(&shown, &["basin  http://here", "3 workers", "night", "running", "62 %", "1243/2000", "3600", "12 min"]);
    assert_shows(&shown, &["█▒░", "64/64", "100 %", "paused!", "2 of 4 images", "silent for 1 min", "idle", "Enter open"]);
    let line = |name: &str| shown.lines().position(|line| line.contains(name)).unwrap();
    assert!(line("night") < line("stuck") && line("stuck") < line("64/64"), "{shown}");
    assert!(shown.contains("> night") && !shown.contains("cannot continue") && !shown.contains("999"), "{shown}");
    press(&mut state, KeyCode::Down);
    assert_shows(&screen(&state, 120, 24), &["> stuck", "cannot continue now: cannot list s3://bucket/data"]);
}

#[test]
fn a_run_shows_its_classes_with_errors_its_workers_first_and_its_failures_by_kind() {
    let failures = json!([
        { "reason": "bad_image", "images": 2, "examples": [
            { "image": "a.png", "state": "failed", "message": "no such format" },
            { "image": "b.png", "state": "failed", "message": "another" } ] },
        { "reason": "bad_mask", "images": 1, "examples": [ { "image": "c.png", "state": "failed", "message": null } ] }
    ]);
    let mut state = watching(runs(), "night", failures);
    for (width, height) in [(120, 30), (80, 40)] {
        let shown = screen(&state, width, height);
        assert_shows(&shown, &["night  running", "62 %", "1243 of 2000 images"]);
        assert_shows(&shown, &["3 failed, 4 with workers, 8 queued, 745 waiting"]);
        assert_shows(&shown, &["3600 images/h, 12 min left, about $3.20 in all, priority 5"]);
        assert_shows(&shown, &["fetch 0.1 s, latent search 13 s, final descent 2.0 s per image"]);
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
    let failures = |text: &str| {
        let example = json!({ "image": text, "state": "failed", "message": text });
        json!([{ "reason": "bad_image", "images": 1, "examples": [example] }])
    };
    let hostile = &format!("a{}", "x".repeat(66_000));
    let long = json!([{ "name": hostile, "state": "running", "problem": hostile,
        "classes": [{ "class": hostile, "images": 1, "loss": 1.0 }] }]);
    let mut state = watching(long, hostile, failures(hostile));
    for open in [state.open.clone(), None] {
        state.open = open;
        assert_shows(&screen(&state, 100, 30), &["axxx"]);
    }

    let hostile = "a\u{1b}[2J\u{1b}]0;title\u{7}\r\n\u{202e}gnp\u{200b}\u{9b}31m";
    let runs = json!([{ "name": hostile, "state": "running", "images": 3, "failed": u64::MAX, "succeeded": u64::MAX,
        "per_hour": 1e308, "eta_seconds": 1e308, "cost": -1e308, "priority": i32::MIN, "problem": hostile,
        "stage_seconds": { hostile: 1.0 },
        "classes": [
            { "class": hostile, "images": u64::MAX, "lpips": -1e308, "lpips_standard_error": 1e308 },
            { "class": "表".repeat(300), "images": 1, "lpips": 1e308, "lpips_standard_error": 1e308 } ] }]);
    let mut state = watching(runs, hostile, failures(hostile));
    let worker = json!([{ "name": hostile, "run": hostile, "images": 1, "slots": 1, "devices": hostile }]);
    state.fleet.workers = serde_json::from_value(worker).unwrap();
    state.coordinator = hostile.into();
    press(&mut state, KeyCode::Char('p'));
    state.apply(Input::Lost(hostile.into()), 1.0);
    for open in [state.open.clone(), None] {
        state.open = open;
        for (width, height) in [(300, 50), (100, 30), (60, 20), (20, 5), (1, 1)] {
            assert_steers_nothing(&state, width, height);
        }
    }
    state.open = Some(hostile.into());
    assert_shows(&screen(&state, 300, 50), &[&harmless(hostile)]);
    assert_eq!(press(&mut state, KeyCode::Char('y')), Some(Command::SetState(hostile.into(), RunState::Paused)));
    assert_steers_nothing(&state, 300, 50);
    state.lost = None;
    state.apply(Input::Note(hostile.into()), 1.0);
    assert_steers_nothing(&state, 300, 50);
    let last = screen(&state, 300, 50);
    assert!(last.lines().last().is_some_and(|line| line.contains(&harmless(hostile))), "{last}");
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
    // As much of the name as there is room for, and something even in a single cell.
    for (width, height, part) in [(2, 3, "ni"), (3, 40, "nig"), (200, 2, "night  running")] {
        assert_shows(&screen(&state, width, height), &[part]);
    }
    let cell = screen(&state, 1, 1);
    assert!(cell.chars().any(|c| !c.is_whitespace() && c != '"'), "{cell}");
}

#[test]
fn nothing_to_show_is_said() {
    let mut state = Screen { open: Some("gone".into()), ..Screen::default() };
    assert_shows(&screen(&state, 80, 10), &["there is no run gone", "0 workers"]);
    assert_eq!([KeyCode::Down, KeyCode::Home].map(|key| press(&mut state, key)), [None, None]);
    assert_eq!(press(&mut state, KeyCode::Esc), Some(Command::Open(None)));
    assert_shows(&screen(&state, 80, 10), &["no runs yet: submit one with `basin submit`"]);
    let keys = [KeyCode::Down, KeyCode::End, KeyCode::Enter, KeyCode::Char('p'), KeyCode::Char('y')];
    assert_eq!(keys.map(|key| press(&mut state, key)), [None, None, None, None, None]);

    let new = json!([{ "name": "new", "state": "running" }]);
    let shown = screen(&watching(new, "new", json!("the coordinator refuses: 404")), 100, 20);
    assert_shows(&shown, &["0 %  0 of 0 images", "no results yet", "failures"]);
}

#[test]
fn a_lost_coordinator_is_shown_beside_its_last_answer_until_it_answers_again() {
    let mut state = watching(runs(), "", json!([]));
    let silent = |state: &Screen| screen(state, 100, 20).contains("no answer for");
    state.apply(Input::Tick, 3.0);
    assert!(!silent(&state));
    // It hangs.
    state.apply(Input::Tick, 7.0);
    assert_shows(&screen(&state, 100, 20), &["no answer for 6 s, trying again", "night"]);
    state.apply(Input::Fleet(fleet(runs())), 8.0);
    assert!(!silent(&state));
    state.apply(Input::Lost("the coordinator at http://here does not answer".into()), 8.5);
    state.apply(Input::Tick, 80.0);
    assert_shows(&screen(&state, 100, 20), &["no answer for 1 min, trying again: the coordinator at http://here", "night"]);
    state.apply(Input::Fleet(fleet(json!([]))), 81.0);
    assert!(!silent(&state));
}

#[test]
fn an_outage_is_shown_until_it_ends() {
    let mut state = watching(runs(), "night", json!([]));
    let outage = json!([{ "what": "store", "why": "s3://b\u{1b}[2J has not answered for 10 s", "seconds": 200.0 }]);
    let away = FleetView { outages: serde_json::from_value(outage).unwrap(), ..*fleet(runs()) };
    state.apply(Input::Fleet(Box::new(away)), 2.0);
    assert_shows(&screen(&state, 120, 20), &["3 min: waiting for the store, nothing counts as failed: s3://b"]);
    assert_steers_nothing(&state, 120, 20);
    state.apply(Input::Fleet(fleet(runs())), 3.0);
    assert!(!screen(&state, 120, 20).contains("waiting for the store"));
}

#[test]
fn keys_choose_open_and_ask_before_they_change_anything() {
    let mut state = watching(runs(), "", json!([]));
    assert_eq!(press(&mut state, KeyCode::Char('j')), None);
    // Runs come and go, the choice stays.
    state.apply(Input::Fleet(fleet(json!([{ "name": "a", "state": "running" }, { "name": "stuck", "state": "running" }]))), 2.0);
    assert_eq!(press(&mut state, KeyCode::Enter), Some(Command::Open(Some("stuck".into()))));
    assert_eq!(press(&mut state, KeyCode::Char('p')), None);
    assert_shows(&screen(&state, 40, 10), &["pause stuck? y/n"]);
    assert_eq!(
        [KeyCode::Char('x'), KeyCode::Char('n'), KeyCode::Char('y')].map(|key| press(&mut state, key)),
        [None, None, None]
    );
    press(&mut state, KeyCode::Char('r'));
    assert_shows(&screen(&state, 40, 10), &["resume stuck? y/n"]);
    assert_eq!(press(&mut state, KeyCode::Char('y')), Some(Command::SetState("stuck".into(), RunState::Running)));
    state.apply(Input::Note("stuck is running".into()), 3.0);
    assert_shows(&screen(&state, 40, 10), &["stuck is running"]);
    assert_eq!(press(&mut state, KeyCode::Esc), Some(Command::Open(None)));
    assert_shows(&screen(&state, 40, 10), &["> stuck"]);
    press(&mut state, KeyCode::Up);
    assert_shows(&screen(&state, 40, 10), &["> a"]);
    press(&mut state, KeyCode::Char('?'));
    assert_shows(&screen(&state, 60, 12), &["q, Ctrl-C"]);
    assert_eq!(press(&mut state, KeyCode::Char('q')), None, "it closes the help");
    assert_eq!(press(&mut state, KeyCode::Char('q')), Some(Command::Quit(ExitCode::SUCCESS)));
    press(&mut state, KeyCode::Char('p'));
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(state.apply(Input::Key(interrupt), 4.0), Some(Command::Quit(ExitCode::from(130))));
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
    let mut state = watching(runs(), "night", json!([{ "reason": "bad_image", "images": 2, "examples": [] }]));
    let coloured = |state: &Screen| {
        drawn(state, 120, 30).buffer().content().iter().any(|cell| (cell.fg, cell.bg) != (Color::Reset, Color::Reset))
    };
    assert!(coloured(&state));
    state.colour = false;
    state.lost = Some(String::new());
    assert!(!coloured(&state));
}
