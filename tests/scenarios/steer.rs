//! `basin` and a coordinator that the test makes up, which goes away.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Output};
use std::thread;

/// An answer: status and body. None: the connection breaks.
type Answer = Option<(u16, &'static str)>;

const RUNNING: &str =
    r#"{"name":"r","state":"running","images":3,"skipped":1,"succeeded":0,"failed":0,"started":2,"queued":0,"waiting":0}"#;
const FINISHED: &str = r#"{"name":"r","state":"finished","images":3,"skipped":1,"succeeded":1,"failed":1}"#;
const STANDBY: &str = r#"{"error":"this coordinator is the standby: it waits until the active one is gone"}"#;

/// `basin` with these arguments, at a coordinator that gives these answers, one after another.
fn basin(arguments: &[&str], answers: Vec<Answer>) -> Output {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let answering = thread::spawn(move || {
        let mut answers = answers.into_iter();
        while answers.len() > 0 {
            let (mut socket, _) = listener.accept().expect("a client");
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                socket.read_exact(&mut byte).expect("a request");
                request.extend(byte);
            }
            // It is an older coordinator, which tells no outages.
            let outages = request.starts_with(b"GET /v1/outages");
            let answer = if outages { Some((404, r#"{"error":"there is no such page"}"#)) } else { answers.next().flatten() };
            let Some((status, body)) = answer else { continue };
            let head = format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            socket.write_all(format!("{head}{body}").as_bytes()).expect("it reads");
        }
    });
    let mut command = Command::new(harness::program("basin"));
    let output = command.args(arguments).env("BASIN_COORDINATOR_URL", url).env_remove("BASIN_TOKEN").output().expect("it starts");
    answering.join().expect("every answer was asked for");
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn waiting_prints_lines_and_survives_a_coordinator_that_goes_away() {
    let unknown = Some((404, r#"{"error":"there is no run r"}"#));
    for command in [&["runs", "wait", "r"][..], &["watch", "--plain", "r"]] {
        let answers =
            vec![Some((200, RUNNING)), None, Some((503, STANDBY)), unknown, Some((200, RUNNING)), Some((200, FINISHED))];
        let output = basin(command, answers);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(2), "{out}{err}");
        let lines: Vec<&str> = out.lines().collect();
        let running = "r: 1/3 images (0 failed), 2 with workers, 0 queued, 0 waiting";
        assert_eq!(lines, [running, "run r is finished: 2 succeeded, 1 failed"]);
        assert_eq!(err.matches("trying again for 5 min").count(), 1, "{err}");
    }
}

#[test]
fn a_run_that_cannot_be_seen_at_first_is_not_waited_for() {
    for (answer, why) in [
        (Some((404, r#"{"error":"there is no run r"}"#)), "there is no run r"),
        (Some((401, r#"{"error":"show the coordinator's token"}"#)), "show the coordinator's token"),
        (None, "does not answer"),
    ] {
        let output = basin(&["runs", "wait", "r"], vec![answer]);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), String::new()));
        assert!(text(&output.stderr).contains(why), "{}", text(&output.stderr));
    }
    // Nor is a coordinator that refuses later.
    let output = basin(&["runs", "wait", "r"], vec![Some((200, RUNNING)), Some((403, r#"{"error":"no more"}"#))]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn all_open_runs_are_watched_to_their_ends() {
    let all = r#"[{"name":"old","state":"finished","failed":1},{"name":"r","state":"running"},{"name":"s","state":"paused"}]"#;
    let cancelled = r#"{"name":"s","state":"cancelled","images":3}"#;
    let answers = vec![Some((200, all)), Some((200, RUNNING)), Some((200, RUNNING)), Some((200, FINISHED)), Some((200, RUNNING))];
    let output = basin(&["watch"], [answers, vec![Some((200, cancelled))]].concat());
    let out = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{out}");
    for line in ["r: 1/3 images", "s: 1/3 images", "run r is finished: 2 succeeded, 1 failed"] {
        assert_eq!(out.matches(line).count(), 1, "{out}");
    }
    assert!(!out.contains("old") && text(&output.stderr).contains("run s is cancelled"), "{out}");
}

#[test]
fn the_list_of_runs_has_their_rates_and_the_time_left() {
    let all = r#"[{"name":"r","state":"running","images":9000,"skipped":1,"succeeded":7,"failed":2,"per_hour":3600.4,"eta_seconds":9100},
        {"name":"s","state":"paused","images":5,"per_hour":null,"eta_seconds":null}]"#;
    let output = basin(&["runs"], vec![Some((200, all))]);
    let out = text(&output.stdout);
    let lines: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(lines[0].join(" ").ends_with("succeeded failed with workers queued waiting per hour time left"), "{out}");
    assert_eq!(lines[1], ["r", "running", "0", "9000", "8", "2", "0", "0", "0", "3600", "2", "h", "31", "min"]);
    assert_eq!(lines[2], ["s", "paused", "0", "5", "0", "0", "0", "0", "0"]);
}
