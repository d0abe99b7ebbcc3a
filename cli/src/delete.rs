//! `basin runs delete`: deletes a run of a fleet and shows how far that is.

use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use client::api::RunStatus;
use client::{Client, ClientError, LONG, SHORT};
use proto::keys;
use results::format::{count, duration};

use crate::connection::Connection;
use crate::terminal::harmless;

/// How often the coordinator is asked how far it is.
const EVERY: Duration = Duration::from_secs(1);
/// How long a coordinator may be away meanwhile.
const PATIENCE: Duration = Duration::from_secs(300);

pub fn delete(connection: &Connection, run: &str, yes: bool) -> anyhow::Result<ExitCode> {
    // It becomes part of a URL.
    if let Err(problem) = keys::check_run(run) {
        bail!("{run:?} cannot be the name of a run: it {problem}");
    }
    let client = connection.client(LONG)?;
    if !yes {
        let status = client.run(run)?;
        if !std::io::stdin().is_terminal() {
            bail!("nothing is deleted: without a terminal, confirm with --yes");
        }
        note!("{}", question(run, &status));
        let mut answer = String::new();
        let _ = std::io::stderr().flush();
        std::io::stdin().lock().read_line(&mut answer)?;
        if answer.trim() != run {
            bail!("nothing is deleted: that is not the name of the run");
        }
    }
    say!("{}", harmless(&client.delete(run)?));
    follow(&connection.client(SHORT)?, run, EVERY, PATIENCE)
}

fn question(run: &str, status: &RunStatus) -> String {
    let results = count(status.skipped.saturating_add(status.succeeded) as u64);
    format!("This deletes run {} with {results} results permanently. Type its name to go on:", harmless(run))
}

/// Prints each change until the run is gone.
fn follow(client: &Client, run: &str, every: Duration, patience: Duration) -> anyhow::Result<ExitCode> {
    let (mut told, mut heard, mut silent) = (None, Instant::now(), false);
    loop {
        match client.run(run) {
            Err(ClientError::Refused { status, .. }) if status.as_u16() == 404 => {
                say!("run {run} is deleted");
                return Ok(ExitCode::SUCCESS);
            }
            Ok(RunStatus { deleting: None, .. }) => {
                bail!("run {run} is there again: somebody has submitted another of this name")
            }
            Ok(RunStatus { deleting, .. }) => {
                (heard, silent) = (Instant::now(), false);
                if deleting != told {
                    say!("{run}: {} objects deleted", count(deleting.unwrap_or(0) as u64));
                    told = deleting;
                }
            }
            // The coordinator goes on with it after a restart.
            Err(error) if error.may_pass() && heard.elapsed() < patience => {
                if !std::mem::replace(&mut silent, true) {
                    let error = anyhow::Error::from(error);
                    note!("basin: {error:#}; trying again for {}", duration(patience.as_secs_f64()));
                }
            }
            Err(error) => return Err(error.into()),
        }
        thread::sleep(every);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;

    /// A coordinator that gives these answers, one to each connection.
    fn client(answers: &'static [(&'static str, &'static str)]) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = Client::new(&format!("http://{}", listener.local_addr().unwrap()), None, LONG);
        thread::spawn(move || {
            for (status, body) in answers {
                let (mut socket, _) = listener.accept().unwrap();
                let _ = socket.read(&mut [0; 4096]);
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                socket.write_all(format!("{head}{body}").as_bytes()).unwrap();
            }
        });
        client
    }

    #[test]
    fn a_deletion_is_followed_through_a_restart_until_the_run_is_gone() {
        let (every, patience) = (Duration::from_millis(1), Duration::from_secs(20));
        let gone = client(&[
            ("200 OK", r#"{"name":"r","state":"finished","deleting":7}"#),
            ("503 Service Unavailable", r#"{"error":"standby"}"#),
            ("200 OK", r#"{"name":"r","state":"finished","deleting":0}"#),
            ("404 Not Found", r#"{"error":"there is no run r"}"#),
        ]);
        assert_eq!(follow(&gone, "r", every, patience).unwrap(), ExitCode::SUCCESS);
        let again = client(&[("200 OK", r#"{"name":"r","state":"running"}"#)]);
        assert!(follow(&again, "r", every, patience).unwrap_err().to_string().contains("there again"));
        let refused = client(&[("401 Unauthorized", r#"{"error":"send the token"}"#)]);
        assert!(follow(&refused, "r", every, patience).unwrap_err().to_string().contains("send the token"));
    }

    #[test]
    fn the_question_names_what_is_lost() {
        let status = RunStatus { skipped: 1000, succeeded: 234, ..RunStatus::default() };
        assert!(question("r", &status).contains("run r with 1,234 results permanently"));
    }
}
