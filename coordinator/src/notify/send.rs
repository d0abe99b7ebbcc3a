//! Sends a notice to a URL or to a program (*io*). Each has a time limit.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::Uri;

use super::notice::{Notice, Secret};
use crate::clock::now;

/// Longest time for an answer of a webhook.
const ANSWER: Duration = Duration::from_secs(10);
/// Longest time for a program.
const PROGRAM: Duration = Duration::from_secs(30);
/// How often it is seen whether a program has ended.
const LOOK: Duration = Duration::from_millis(20);

/// Who is told.
#[derive(Clone)]
pub enum Target {
    Webhook(Webhook),
    Program(Program),
}

impl Target {
    /// An error is a sentence for people, which holds no secret.
    pub(crate) async fn send(&self, notice: &Notice) -> Result<(), String> {
        let (target, notice) = (self.clone(), notice.clone());
        let send = move || match target {
            Target::Webhook(webhook) => webhook.send(&notice),
            Target::Program(program) => program.send(&notice),
        };
        tokio::task::spawn_blocking(send).await.unwrap_or_else(|error| Err(error.to_string()))
    }
}

/// URL of a webhook. Its path may be a secret, too: only the host is shown.
#[derive(Clone, PartialEq)]
pub struct WebhookUrl {
    url: String,
    host: String,
}

impl FromStr for WebhookUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<WebhookUrl, String> {
        let wrong = || "not a URL: use one such as https://hooks.example/basin".to_owned();
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let (Some("http" | "https"), Some(host)) = (uri.scheme_str(), uri.host()) else { return Err(wrong()) };
        Ok(WebhookUrl { url: text.to_owned(), host: host.to_owned() })
    }
}

#[derive(Clone)]
pub struct Webhook {
    url: Arc<WebhookUrl>,
    /// `None`: requests are not signed.
    secret: Option<Arc<Secret>>,
    agent: ureq::Agent,
}

impl Webhook {
    pub fn new(url: WebhookUrl, secret: Option<Secret>) -> Webhook {
        // A redirect would send the notice to a place that nobody chose.
        let config = ureq::Agent::config_builder().tls_config(trust::tls()).timeout_global(Some(ANSWER));
        let config = config.http_status_as_error(false).max_redirects(0);
        Webhook { url: Arc::new(url), secret: secret.map(Arc::new), agent: config.build().into() }
    }

    fn send(&self, notice: &Notice) -> Result<(), String> {
        let time = now();
        let (body, host) = (notice.body(), &self.url.host);
        let request = self.agent.post(&self.url.url).header("content-type", "application/json");
        let mut request = request.header("webhook-id", &notice.id).header("webhook-timestamp", time.to_string());
        if let Some(secret) = &self.secret {
            request = request.header("webhook-signature", secret.sign(&notice.id, time, &body));
        }
        match request.send(&body[..]) {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => Err(format!("the webhook at {host} answers {}", answer.status())),
            Err(error) => Err(format!("the webhook at {host} cannot be reached: {error}").replace(&self.url.url, host)),
        }
    }
}

/// A program that gets the notice as JSON on its standard input.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    path: PathBuf,
    limit: Duration,
}

impl Program {
    pub fn new(path: PathBuf) -> Program {
        Program { path, limit: PROGRAM }
    }

    /// It does not get the coordinator's own settings, some of which are secrets.
    fn send(&self, notice: &Notice) -> Result<(), String> {
        let name = self.path.display();
        let mut command = Command::new(&self.path);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::inherit());
        for (variable, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("BASIN_")) {
            command.env_remove(variable);
        }
        let mut child = command.spawn().map_err(|error| format!("{name} cannot be started: {error}"))?;
        let mut input = child.stdin.take().expect("it is piped");
        match input.write_all(&[&notice.body()[..], b"\n"].concat()) {
            // It need not read the notice.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => tracing::debug!(%error, "a program does not read its notice"),
            _ => {}
        }
        drop(input);
        match wait(&mut child, self.limit) {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(Some(status)) => Err(format!("{name} ended with {status}")),
            Ok(None) => Err(format!("{name} has not ended after {} s and was killed", self.limit.as_secs())),
            Err(error) => Err(format!("{name} cannot be waited for: {error}")),
        }
    }
}

/// `None`: it took too long, and was killed.
fn wait(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if began.elapsed() >= limit {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn program(dir: &tempfile::TempDir, text: &str, limit: Duration) -> Program {
        let path = dir.path().join("program");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("writable");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("ours");
        Program { path, limit }
    }

    #[test]
    fn a_program_gets_the_notice_and_its_exit_code_and_time_count() {
        let dir = tempfile::tempdir().expect("a folder");
        let notice = Notice::of_outage("store", Some("no answer"), 1, 2);
        let limit = Duration::from_secs(20);
        let told = dir.path().join("told");
        let answer = program(&dir, &format!("cat > {}", told.display()), limit).send(&notice);
        assert_eq!(answer, Ok(()));
        let read: Notice = serde_json::from_slice(&std::fs::read(&told).expect("it was told")).expect("a notice");
        assert_eq!(read, notice);
        assert!(program(&dir, "exit 3", limit).send(&notice).is_err_and(|why| why.contains("exit status: 3")));
        let began = Instant::now();
        let late = program(&dir, "exec sleep 60", Duration::from_millis(200)).send(&notice);
        assert!(late.is_err_and(|why| why.contains("was killed")) && began.elapsed() < limit);
        let none = Program::new(dir.path().join("none")).send(&notice);
        assert!(none.is_err_and(|why| why.contains("cannot be started")));
    }

    #[test]
    fn a_webhook_that_is_away_is_named_by_its_host_only() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/services/T0/hidden?key=hidden", listener.local_addr().expect("an address"));
        drop(listener);
        let webhook = Webhook::new(url.parse().expect("a URL"), None);
        let why = webhook.send(&Notice::of_outage("store", None, 1, 2)).expect_err("nobody listens");
        assert!(why.contains("127.0.0.1") && !why.contains("hidden"), "{why}");
        for strange in ["", "hooks.example", "file:///etc/passwd", "ftp://host/x", "/x"] {
            assert!(strange.parse::<WebhookUrl>().is_err(), "{strange}");
        }
    }
}
