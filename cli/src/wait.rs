//! Runs of a fleet, followed to their ends: `basin runs wait`, `basin submit --wait`, `basin watch --plain` and studies.

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use client::api::{Outage, RunStatus};
use client::{Client, ClientError, SHORT};
use proto::RunState;
use results::format::duration;

use crate::connection::Connection;
use crate::terminal::harmless;

/// Time between two requests to the coordinator.
pub const EVERY: Duration = Duration::from_secs(1);
/// How long the coordinator may be silent.
const PATIENCE: Duration = Duration::from_secs(300);

/// Prints a line for each change until all runs are finished or cancelled. Exit code as `basin project`'s.
pub fn wait(connection: &Connection, runs: &[String]) -> anyhow::Result<ExitCode> {
    follow(&connection.client(SHORT)?, runs, EVERY, PATIENCE)
}

fn follow(client: &Client, runs: &[String], every: Duration, patience: Duration) -> anyhow::Result<ExitCode> {
    // The runs that are not closed, each with its last line.
    let mut open: Vec<(&String, String)> = runs.iter().map(|run| (run, String::new())).collect();
    let (mut failed, mut cancelled) = (false, None);
    // When the coordinator answered last, and whether the silence since then was mentioned.
    let (mut heard, mut silent) = (None::<Instant>, false);
    let mut outages: Vec<String> = vec![];
    while !open.is_empty() {
        let answers: Result<Vec<RunStatus>, ClientError> = open.iter().map(|(run, _)| client.run(run)).collect();
        let statuses = match (answers, heard) {
            (Ok(statuses), _) => statuses,
            // An error of the first request, such as a wrong URL or token, is final.
            (Err(error), Some(heard)) if error.may_pass() && heard.elapsed() < patience => {
                if !std::mem::replace(&mut silent, true) {
                    let error = anyhow::Error::from(error);
                    note!("basin: {error:#}; trying again for {}", duration(patience.as_secs_f64()));
                }
                thread::sleep(every);
                continue;
            }
            (Err(error), _) => return Err(error.into()),
        };
        (heard, silent) = (Some(Instant::now()), false);
        // An older coordinator tells none.
        let now: Vec<String> = client.outages().unwrap_or_default().iter().map(Outage::text).collect();
        now.iter().filter(|outage| !outages.contains(outage)).for_each(|outage| note!("basin: {}", harmless(outage)));
        outages = now;
        for ((run, last), status) in open.iter_mut().zip(&statuses) {
            let line = line_of(run, status);
            if line != *last {
                say!("{line}");
                *last = line;
            }
            match status.state {
                RunState::Finished => failed |= status.failed > 0,
                RunState::Cancelled => cancelled = Some(*run),
                RunState::Running | RunState::Paused => {}
            }
        }
        let mut closed = statuses.iter().map(|status| status.state.is_closed());
        open.retain(|_| !closed.next().unwrap_or(false));
        if !open.is_empty() {
            thread::sleep(every);
        }
    }
    match cancelled {
        Some(run) => bail!("run {run} is cancelled"),
        None => Ok(if failed { ExitCode::from(2) } else { ExitCode::SUCCESS }),
    }
}

fn line_of(run: &str, status: &RunStatus) -> String {
    let run = harmless(run);
    let RunStatus { images, failed, started, queued, waiting, .. } = status;
    let succeeded = status.skipped.saturating_add(status.succeeded);
    if status.state == RunState::Finished {
        return format!("run {run} is finished: {succeeded} succeeded, {failed} failed");
    }
    let paused = if status.state == RunState::Paused { ", paused" } else { "" };
    let finished = succeeded.saturating_add(*failed);
    format!(
        "{run}: {finished}/{images} images ({failed} failed), {started} with workers, {queued} queued, {waiting} waiting{paused}"
    )
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_coordinator_that_stays_away_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = Client::new(&format!("http://{}", listener.local_addr().unwrap()), None, client::LONG);
        let answering = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let _ = socket.read(&mut [0; 4096]);
            let body = r#"{"name":"r","state":"running"}"#;
            write!(socket, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()).unwrap();
        });
        let (every, patience) = (Duration::from_millis(10), Duration::from_millis(300));
        let began = Instant::now();
        let error = follow(&client, &["r".into()], every, patience).unwrap_err();
        assert!(format!("{error:#}").contains("does not answer"), "{error:#}");
        assert!((patience..Duration::from_secs(20)).contains(&began.elapsed()), "{:?}", began.elapsed());
        answering.join().unwrap();
        // A coordinator that has never answered is not waited for.
        let began = Instant::now();
        follow(&client, &["r".into()], every, Duration::from_secs(60)).unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(20));
    }
}
