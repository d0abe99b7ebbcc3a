//! The services of a fleet as processes (*io*).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use client::Client;
use client::api::{RunRequest, RunStatus};
use harness::free_ports;
use proto::Params;
use serde_json::Value;
use store::Store;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::task::block_in_place;

/// Longest wait for a service.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two requests.
const PAUSE: Duration = Duration::from_millis(50);

/// A process that is killed when the value is dropped.
pub struct Service(Child);

impl Service {
    /// Starts a program from the folder of this one.
    pub fn start(name: &str, set: impl FnOnce(&mut Command)) -> Result<Service> {
        let program = std::env::current_exe().context("cannot find this program")?.with_file_name(name);
        let mut command = Command::new(&program);
        set(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
        let started = command.spawn().with_context(|| format!("cannot start {}: cargo build --workspace", program.display()));
        Ok(Service(started?))
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Sends SIGTERM and waits for the end.
    pub fn stop(mut self) -> Result<()> {
        harness::signal(self.id(), "TERM");
        let status = self.0.wait().context("cannot wait for a service")?;
        ensure!(status.success(), "a service ends with {status}");
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `basin-coordinator`.
pub struct Coordinator {
    service: Service,
    address: SocketAddr,
    client: Client,
}

impl Coordinator {
    /// Starts one and waits until it is active.
    pub async fn start(home: &str, queue: &str, window: usize) -> Result<Coordinator> {
        let [port] = free_ports();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let service = Service::start("basin-coordinator", |command| {
            command.args(["--home", home, "--queue", queue, "--listen", &address.to_string(), "--window", &window.to_string()]);
        })?;
        let client = Client::new(&format!("http://{address}"), None, PATIENCE);
        let mut coordinator = Coordinator { service, address, client };
        let end = Instant::now() + PATIENCE;
        while !coordinator.acts().await.unwrap_or(false) {
            if let Some(status) = coordinator.service.0.try_wait().context("cannot look after the coordinator")? {
                bail!("the coordinator ends with {status}");
            }
            ensure!(Instant::now() < end, "the coordinator is not active after {PATIENCE:?}");
            tokio::time::sleep(PAUSE).await;
        }
        Ok(coordinator)
    }

    /// Whether it is the active one, and no standby.
    async fn acts(&self) -> Result<bool> {
        let mut lines = self.get("/readyz").await?;
        while let Some(line) = lines.next_line().await? {
            if line.is_empty() {
                return Ok(lines.next_line().await?.is_some_and(|body| body.starts_with("acting")));
            }
        }
        Ok(false)
    }

    /// Submits a run; the answer comes when it is planned.
    pub async fn submit(&self, name: &str, dataset: &str, params: &Params, limit: Option<usize>) -> Result<()> {
        let request = RunRequest { params: Some(params.clone()), limit, ..RunRequest::new(name, dataset, "fashion32") };
        block_in_place(|| self.client.submit(&request))?;
        Ok(())
    }

    /// Waits until `holds` is true of a run.
    pub async fn until(&self, run: &str, holds: impl Fn(&RunStatus) -> bool) -> Result<RunStatus> {
        let end = Instant::now() + PATIENCE;
        loop {
            // There is no run while it is planned.
            match block_in_place(|| self.client.run(run)) {
                Ok(status) if holds(&status) => return Ok(status),
                status => ensure!(Instant::now() < end, "run {run} does not get there: {status:?}"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Events from now on.
    pub async fn listen(&self) -> Result<Events> {
        Ok(Events(self.get("/v1/events").await?))
    }

    /// The answer after its first line.
    async fn get(&self, path: &str) -> Result<Lines<BufReader<TcpStream>>> {
        let mut socket = TcpStream::connect(self.address).await?;
        socket.write_all(format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address).as_bytes()).await?;
        let mut lines = BufReader::new(socket).lines();
        let status = lines.next_line().await?.unwrap_or_default();
        ensure!(status.contains(" 200 "), "the answer to {path} is {status}");
        Ok(lines)
    }

    pub fn id(&self) -> u32 {
        self.service.id()
    }

    /// Sends SIGTERM and waits for the end.
    pub fn stop(self) -> Result<()> {
        self.service.stop()
    }
}

/// The coordinator's server-sent events.
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

/// Copies the bundled model into a home.
pub async fn copy_model(home: &Store) -> Result<()> {
    let folder = PathBuf::from("models/fashion32");
    for file in std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let file = file?;
        let key = format!("{}/{}", proto::keys::model_prefix("fashion32"), file.file_name().to_string_lossy());
        home.put(&key, std::fs::read(file.path())?).await?;
    }
    Ok(())
}
