//! The programs of a fleet as processes, and what they take (*io*).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use proto::Params;
use serde_json::{Value, json};
use store::Store;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;

use harness::free_ports;

/// Clock ticks of `/proc` in a second, on every Linux of today.
const TICKS: f64 = 100.0;
/// Longest wait for a service.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(50);

/// A process that ends with its value.
pub struct Service(Child);

impl Service {
    /// Starts a program that lies beside this one.
    pub fn start(name: &str, set: impl FnOnce(&mut Command)) -> Result<Service> {
        let program = std::env::current_exe().context("cannot find this program")?.with_file_name(name);
        let mut command = Command::new(&program);
        set(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
        let started = command.spawn().with_context(|| format!("cannot start {}: cargo build --workspace", program.display()));
        Ok(Service(started?))
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Asks it to leave, and waits for its end.
    pub fn stop(mut self) -> Result<()> {
        let sent = Command::new("kill").args(["-TERM", &self.id().to_string()]).status().context("cannot run kill")?;
        ensure!(sent.success(), "process {} is gone", self.id());
        let left = self.0.wait().context("cannot wait for a service")?;
        ensure!(left.success(), "a service ends with {left}");
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have left.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `basin-coordinator`.
pub struct Coordinator {
    service: Service,
    address: SocketAddr,
}

impl Coordinator {
    /// Starts one and waits until it acts.
    pub async fn start(home: &str, queue: &str, window: usize) -> Result<Coordinator> {
        let [port] = free_ports();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let service = Service::start("basin-coordinator", |command| {
            command.args(["--home", home, "--queue", queue, "--listen", &address.to_string(), "--window", &window.to_string()]);
        })?;
        let mut coordinator = Coordinator { service, address };
        let end = Instant::now() + PATIENCE;
        while !coordinator.ask("GET", "/readyz", "").await.is_ok_and(|body| body.starts_with(b"acting")) {
            if let Some(left) = coordinator.service.0.try_wait().context("cannot look after the coordinator")? {
                bail!("the coordinator ends with {left}");
            }
            ensure!(Instant::now() < end, "the coordinator does not act");
            tokio::time::sleep(PAUSE).await;
        }
        Ok(coordinator)
    }

    /// Hands a run in and waits until it is planned.
    pub async fn submit(&self, name: &str, dataset: &str, params: &Params, limit: Option<usize>) -> Result<()> {
        let request = json!({ "name": name, "dataset": dataset, "model": "fashion32", "params": params, "limit": limit });
        self.ask("POST", "/v1/runs", &request.to_string()).await?;
        Ok(())
    }

    /// Waits until a run stands so; how it stands then.
    pub async fn until(&self, run: &str, so: impl Fn(&Value) -> bool) -> Result<Value> {
        let end = Instant::now() + PATIENCE;
        loop {
            // While it is planned, there is none.
            let status = self.ask("GET", &format!("/v1/runs/{run}"), "").await;
            match status.and_then(|body| serde_json::from_slice(&body).context("the coordinator answers no JSON")) {
                Ok(status) if so(&status) => return Ok(status),
                status => ensure!(Instant::now() < end, "run {run} does not get there: {status:?}"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Events as it takes them in, from now on.
    pub async fn listen(&self) -> Result<Events> {
        let mut socket = TcpStream::connect(self.address).await?;
        socket.write_all(format!("GET /v1/events HTTP/1.0\r\nHost: {}\r\n\r\n", self.address).as_bytes()).await?;
        let mut lines = BufReader::new(socket).lines();
        let code = lines.next_line().await?.unwrap_or_default();
        ensure!(code.contains(" 200 "), "/v1/events is answered with {code}");
        Ok(Events(lines))
    }

    /// The body of an answer.
    async fn ask(&self, method: &str, path: &str, body: &str) -> Result<Vec<u8>> {
        let mut socket = TcpStream::connect(self.address).await?;
        let (address, length) = (self.address, body.len());
        let request = format!(
            "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        socket.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await?;
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").context("no answer")?;
        let (head, body) = (String::from_utf8_lossy(&answer[..end]).into_owned(), answer.split_off(end + 4));
        let code = head.split(' ').nth(1).unwrap_or_default();
        ensure!(code.starts_with('2'), "{method} {path} is answered with {code}: {}", String::from_utf8_lossy(&body));
        Ok(body)
    }

    /// Largest memory so far.
    pub fn peak_megabytes(&self) -> Result<f64> {
        peak_megabytes(self.id())
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.service.id()
    }

    /// Asks it to leave, and waits for its end.
    pub fn stop(self) -> Result<()> {
        self.service.stop()
    }
}

/// What a coordinator is told.
pub struct Events(Lines<BufReader<TcpStream>>);

impl Events {
    /// Waits for the next event of a run; what it is.
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

/// Largest memory of a process so far.
pub fn peak_megabytes(process: u32) -> Result<f64> {
    let path = format!("/proc/{process}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).with_context(|| format!("{path} has no VmHWM"))?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1e3)
}

/// CPU time of a process so far.
pub fn cpu_seconds(process: u32) -> Result<f64> {
    let path = format!("/proc/{process}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(read_stat(&stat).with_context(|| format!("{path} has another form"))?.1)
}

/// CPU time so far of the threads of a process whose names begin so.
pub fn thread_seconds(process: u32, names: &[&str]) -> Result<f64> {
    let path = format!("/proc/{process}/task");
    let mut seconds = 0.0;
    for thread in std::fs::read_dir(&path).with_context(|| format!("cannot read {path}"))? {
        // It may have ended just now.
        let Ok(stat) = std::fs::read_to_string(thread?.path().join("stat")) else { continue };
        let (name, its) = read_stat(&stat).with_context(|| format!("{path} has another form"))?;
        if names.iter().any(|wanted| name.starts_with(wanted)) {
            seconds += its;
        }
    }
    Ok(seconds)
}

/// Name and CPU time of a line of `/proc`.
fn read_stat(stat: &str) -> Option<(&str, f64)> {
    // The second field is a name in brackets, which may hold anything; fields 14 and 15 are wanted.
    let (name, fields) = stat.split_once('(')?.1.rsplit_once(')')?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>().ok()?;
    Some((name, ticks / TICKS))
}

/// Puts the bundled model into a home.
pub async fn copy_model(home: &Store) -> Result<()> {
    let folder = PathBuf::from("models/fashion32");
    for file in std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let file = file?;
        let key = format!("{}/{}", proto::keys::model_prefix("fashion32"), file.file_name().to_string_lossy());
        home.put(&key, std::fs::read(file.path())?).await?;
    }
    Ok(())
}
