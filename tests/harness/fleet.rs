//! A whole fleet on this machine: real services, a real broker, a home in a folder or in a bucket that fails now and then.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use proto::{LatentSearch, sample};

use crate::{Process, Proxy, RabbitMq, S3, expect, files, free_ports, losses, output_text, program, root, sample_images, tail};

pub const TOKEN: &str = "a token of the tests";

/// A broker, a home and a coordinator.
pub struct LocalFleet {
    pub coordinator: Option<Process>,
    pub workers: Vec<Process>,
    pub broker: RabbitMq,
    /// Only in a hostile fleet: the proxy between the services and the broker, and the bucket that is the home.
    pub hostile: Option<(Proxy, S3)>,
    pub dir: tempfile::TempDir,
    pub port: u16,
    /// More options of the queue's URL, each with a '&' before it.
    queue_options: &'static str,
    started: usize,
}

impl Drop for LocalFleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.dir.disable_cleanup(true);
            eprintln!("logs are in {}", self.dir.path().display());
        }
    }
}

impl LocalFleet {
    pub fn start() -> LocalFleet {
        LocalFleet::start_in("", |_| None)
    }

    /// A fleet with a broker whose connections can be cut and a bucket that fails now and then.
    pub fn start_hostile(seed: u64) -> LocalFleet {
        LocalFleet::start_hostile_with(seed, "")
    }

    /// The same with more options of the queue's URL, each with a '&' before it.
    pub fn start_hostile_with(seed: u64, queue_options: &'static str) -> LocalFleet {
        LocalFleet::start_in(queue_options, |broker| Some((Proxy::start(broker.port()), S3::start(seed))))
    }

    fn start_in(queue_options: &'static str, place: impl FnOnce(&RabbitMq) -> Option<(Proxy, S3)>) -> LocalFleet {
        let dir = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(dir.path().join("data")).expect("writable");
        fs::write(dir.path().join("token"), TOKEN).expect("writable");
        let [port] = free_ports();
        let (broker, workers) = (RabbitMq::start(), vec![]);
        let hostile = place(&broker);
        let mut fleet = LocalFleet { coordinator: None, workers, broker, hostile, dir, port, queue_options, started: 0 };
        fleet.basin(0, &["push", &root().join("models/fashion32").to_string_lossy()]);
        fleet.start_coordinator();
        fleet
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn prepare<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command
            .env("BASIN_HOME_URL", self.store("home"))
            .env("BASIN_QUEUE_URL", self.queue_url())
            .env("BASIN_LISTEN", format!("127.0.0.1:{}", self.port))
            .env("BASIN_COORDINATOR_URL", format!("http://127.0.0.1:{}", self.port))
            .env("BASIN_TOKEN_FILE", self.path("token"))
            .env("BASIN_MODEL_CACHE", self.path("models"))
            .env("BASIN_DEVICES", "cpu")
            .env("OMP_WAIT_POLICY", "PASSIVE")
            .stdin(Stdio::null())
    }

    pub fn queue_url(&self) -> String {
        let url = match &self.hostile {
            Some((proxy, _)) => format!("amqp://guest:guest@127.0.0.1:{}/?give_up=60&heartbeat=4", proxy.port),
            None => self.broker.url("give_up=60"),
        };
        url + self.queue_options
    }

    pub fn log(&mut self, name: &str) -> Stdio {
        self.started += 1;
        fs::File::create(self.path(&format!("{:03}-{name}.log", self.started))).expect("writable").into()
    }

    /// A process of a program with its log in the fleet's folder.
    pub fn spawn<V: AsRef<OsStr>>(&mut self, program: &str, arguments: &[&str], variables: &[(&str, V)]) -> Process {
        let log = self.log(program.trim_start_matches("basin-"));
        let mut command = Command::new(crate::program(program));
        self.prepare(&mut command).args(arguments).stdout(Stdio::null()).stderr(log);
        if program == "basin-worker" {
            command.env_remove("BASIN_LISTEN");
        }
        Process(command.envs(variables.iter().map(|(name, value)| (name, value))).spawn().expect("it starts"))
    }

    pub fn start_coordinator(&mut self) {
        self.start_coordinator_with::<&str>(&[], &[]);
    }

    pub fn start_coordinator_with<V: AsRef<OsStr>>(&mut self, arguments: &[&str], variables: &[(&str, V)]) {
        self.coordinator = Some(self.spawn("basin-coordinator", arguments, variables));
    }

    pub fn start_worker(&mut self, arguments: &[&str]) {
        self.start_worker_with::<&str>(arguments, &[]);
    }

    pub fn start_worker_with<V: AsRef<OsStr>>(&mut self, arguments: &[&str], variables: &[(&str, V)]) {
        let worker = self.spawn("basin-worker", arguments, variables);
        self.workers.push(worker);
    }

    pub fn try_basin(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(program("basin"));
        self.prepare(&mut command).args(arguments).output().expect("it starts")
    }

    /// Runs `basin`, expecting an exit code; returns what was printed.
    pub fn basin(&self, code: i32, arguments: &[&str]) -> String {
        let mut output = self.try_basin(arguments);
        // A coordinator needs a moment to start, and to take over.
        let end = Instant::now() + Duration::from_secs(90);
        let away = |output: &Output| ["does not answer", "is the standby"].iter().any(|text| output_text(output).contains(text));
        while away(&output) {
            assert!(Instant::now() < end, "{}\n{}", output_text(&output), self.logs());
            std::thread::sleep(Duration::from_millis(100));
            output = self.try_basin(arguments);
        }
        let text = output_text(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}\n{}", self.logs());
        text
    }

    pub fn logs(&self) -> String {
        let mut logs: Vec<PathBuf> = fs::read_dir(self.dir.path()).expect("readable").flatten().map(|file| file.path()).collect();
        logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
        logs.sort();
        logs.iter().rev().take(6).map(|path| format!("--- {}\n{}\n", path.display(), tail(path, 8))).collect()
    }

    /// `n` sample images in class folders, and a schedule.
    pub fn data(&self, n: usize, latent: LatentSearch) -> String {
        sample_images(&self.path("data"), n);
        fs::write(self.path("params.json"), sample::params(latent).to_json()).expect("writable");
        self.path("data").to_string_lossy().into_owned()
    }

    pub fn submit(&self, data: &str, run: &str, more: &[&str]) -> String {
        let params = self.path("params.json").to_string_lossy().into_owned();
        let arguments = ["submit", data, "--name", run, "--model", "fashion32", "--params", &params];
        self.basin(0, &[&arguments, more].concat())
    }

    /// A store of the fleet: a bucket in a hostile fleet, else a folder.
    fn store(&self, place: &str) -> String {
        match &self.hostile {
            Some((_, s3)) => s3.url(place),
            None => self.path(place).to_string_lossy().into_owned(),
        }
    }

    pub fn run_url(&self, run: &str) -> String {
        self.store(&format!("home/runs/{run}"))
    }

    /// Waits until every image of the run has a result, and verifies it.
    pub fn complete(&self, run: &str) {
        self.basin(0, &["runs", "wait", run]);
        self.basin(0, &["verify", "--deep", &self.run_url(run)]);
    }

    pub fn status(&self, run: &str) -> String {
        self.basin(0, &["runs", "show", run])
    }

    /// What one machine makes of the same data.
    pub fn one_machine(&self, data: &str) -> BTreeMap<String, Vec<f64>> {
        let (params, out, model) = (self.path("params.json"), self.path("one"), root().join("models/fashion32"));
        let mut command = Command::new(program("basin"));
        command.args(["project", data, "--devices", "cpu", "--out"]).arg(&out);
        expect(0, command.arg("--model").arg(model).arg("--params").arg(params));
        losses(&out.to_string_lossy())
    }

    /// Whether the run is known to have ended.
    pub fn finished(&self, run: &str) -> bool {
        String::from_utf8_lossy(&self.try_basin(&["runs", "show", run]).stdout).contains("finished")
    }

    pub fn failed_requests(&self) -> u64 {
        self.hostile.as_ref().map_or(0, |(_, s3)| s3.failures().values().sum())
    }

    pub fn acts(&self) -> bool {
        http(self.port, "GET", "/readyz", None, "").ends_with("acting\n")
    }

    /// All log lines of workers with this message.
    pub fn logged(&self, message: &str) -> Vec<(PathBuf, serde_json::Value)> {
        let logs = files(self.dir.path()).into_iter().filter(|f| f.to_string_lossy().ends_with("-worker.log"));
        let lines = logs.flat_map(|log| {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<serde_json::Value> = text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
            lines.into_iter().map(move |line| (log.clone(), line))
        });
        lines.filter(|(_, line)| line["message"] == message).collect()
    }

    /// Lane-steps that workers have computed, as far as they lived to tell.
    pub fn computed(&self) -> u64 {
        let computed = |(log, line): (PathBuf, serde_json::Value)| (log, line["computed"].as_u64().expect("a number"));
        let last: BTreeMap<PathBuf, u64> = self.logged("step").into_iter().map(computed).collect();
        last.values().sum()
    }
}

/// A latent search that takes a second or two.
pub const SHORT: LatentSearch = LatentSearch::basin_cma(2, 2, 4);
/// A latent search that is still at work when something happens to it.
pub const LONG: LatentSearch = LatentSearch::basin_cma(60, 6, 60);

/// An HTTP request without a client, so that any part can be left out. The answer is empty if nothing listens.
pub fn http(port: u16, method: &str, path: &str, token: Option<&str>, body: &str) -> String {
    let token = token.map_or(String::new(), |t| format!("Authorization: Bearer {t}\r\n"));
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
    );
    exchange(&format!("127.0.0.1:{port}"), &format!("{head}{token}\r\n{body}"))
}

/// The answer to a request that closes its connection; empty if nothing listens.
pub fn exchange(address: &str, request: &str) -> String {
    let Ok(mut socket) = TcpStream::connect(address) else { return String::new() };
    socket.write_all(request.as_bytes()).expect("it reads");
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).expect("it answers");
    String::from_utf8_lossy(&answer).into_owned()
}
