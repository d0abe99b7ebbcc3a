//! The services of a fleet as processes (*io*).

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use client::Client;
use client::api::{RunRequest, RunStatus};
use harness::{Process, free_ports, http};
use proto::Params;
use serde_json::Value;
use store::Store;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::task::block_in_place;

use crate::process::neighbour;

const MODEL: &str = "models/fashion32";
/// Longest wait for a service.
const PATIENCE: Duration = Duration::from_secs(600);
/// Between two requests.
const PAUSE: Duration = Duration::from_millis(50);

/// Starts a program from the folder of this one.
pub fn start(name: &str, set: impl FnOnce(&mut Command)) -> Result<Process> {
    let mut command = neighbour(name)?;
    set(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
    Ok(Process(command.spawn().with_context(|| format!("cannot start {name}: cargo build --workspace"))?))
}

/// Asks repeatedly until there is an answer; `failure` is the error if none comes.
pub async fn until<T>(failure: &str, mut ask: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        ensure!(Instant::now() < end, "{failure} within {PATIENCE:?}");
        tokio::time::sleep(PAUSE).await;
    }
}

pub struct Coordinator {
    process: Process,
    port: u16,
    client: Client,
}

impl Coordinator {
    /// Starts one and waits until it is active.
    pub async fn start(home: &str, queue: &str, window: usize) -> Result<Coordinator> {
        let [port] = free_ports();
        let address = format!("127.0.0.1:{port}");
        let mut process = start("basin-coordinator", |command| {
            command.args(["--home", home, "--queue", queue, "--listen", &address, "--window", &window.to_string()]);
        })?;
        until("the coordinator is not active", async || {
            let ended = process.0.try_wait().context("cannot look after the coordinator")?;
            ensure!(ended.is_none(), "the coordinator ends with {ended:?}");
            let answer = block_in_place(|| http(port, "GET", "/readyz", None, ""));
            Ok(answer.ends_with("acting\n").then_some(()))
        })
        .await?;
        Ok(Coordinator { process, port, client: Client::new(&format!("http://{address}"), None, PATIENCE) })
    }

    /// Submits a run; the answer comes when it is planned.
    pub async fn submit(&self, name: &str, dataset: &str, params: &Params, limit: Option<usize>) -> Result<()> {
        let request = RunRequest { params: Some(params.clone()), limit, ..RunRequest::new(name, dataset, "fashion32") };
        block_in_place(|| self.client.submit(&request))?;
        Ok(())
    }

    /// Waits until `holds` is true of a run.
    pub async fn until(&self, run: &str, holds: impl Fn(&RunStatus) -> bool) -> Result<RunStatus> {
        // There is no run while it is planned.
        let status = async || Ok(block_in_place(|| self.client.run(run)).ok().filter(&holds));
        until(&format!("run {run} does not get there"), status).await
    }

    /// Events from now on.
    pub async fn listen(&self) -> Result<Events> {
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).await?;
        socket.write_all(b"GET /v1/events HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").await?;
        let mut lines = BufReader::new(socket).lines();
        // The answer begins when the coordinator listens.
        let status = lines.next_line().await?.unwrap_or_default();
        ensure!(status.contains(" 200 "), "the answer to /v1/events is {status}");
        Ok(Events(lines))
    }

    pub fn id(&self) -> u32 {
        self.process.0.id()
    }

    /// Sends SIGTERM and waits for the end.
    pub fn stop(mut self) -> Result<()> {
        self.process.signal("TERM");
        ensure!(self.process.succeeded(), "the coordinator does not end as it should");
        Ok(())
    }
}

pub struct Events(Lines<BufReader<TcpStream>>);

impl Events {
    /// Waits for the next event of a run; its kind.
    pub async fn next(&mut self, run: &str) -> Result<String> {
        let mut kind = String::new();
        loop {
            let line = self.0.next_line().await?.context("the coordinator ends its events")?;
            if let Some(of) = line.strip_prefix("event: ") {
                of.clone_into(&mut kind);
            } else if let Some(event) = line.strip_prefix("data: ")
                && serde_json::from_str::<Value>(event)?["run"] == run
            {
                return Ok(kind);
            }
        }
    }
}

pub async fn copy_model(home: &Store) -> Result<()> {
    for file in std::fs::read_dir(MODEL).with_context(|| format!("cannot read {MODEL}"))? {
        let file = file?;
        let key = format!("{}/{}", proto::keys::model_prefix("fashion32"), file.file_name().to_string_lossy());
        home.put(&key, std::fs::read(file.path())?).await?;
    }
    Ok(())
}

/// Classes of the bundled model.
pub fn classes() -> Result<Vec<String>> {
    Ok(engine::read_manifest(Path::new(MODEL))?.0.classes)
}
