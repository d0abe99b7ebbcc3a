//! A whole fleet on this machine: real services, a real broker, a home in a folder or in a bucket that fails now and then.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use proto::keys::{Kind, Marker};
use proto::{LastDescent, LatentSearch, Params, ResultRecord, Told, TransformSearch, keys};
use store::Store;

use crate::{Process, Proxy, RabbitMq, S3, files, free_ports, program, root};

/// The coordinator's token.
pub const TOKEN: &str = "a token of the tests";

/// A broker, a home and a coordinator.
pub struct Fleet {
    pub coordinator: Option<Process>,
    pub workers: Vec<Process>,
    pub broker: RabbitMq,
    /// Of a hostile fleet: the proxy between the services and the broker, and the bucket that is the home.
    pub hostile: Option<(Proxy, S3)>,
    pub dir: tempfile::TempDir,
    pub port: u16,
    started: usize,
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.dir.disable_cleanup(true);
            eprintln!("logs are in {}", self.dir.path().display());
        }
    }
}

impl Fleet {
    pub fn start() -> Fleet {
        Fleet::start_in(|_| None)
    }

    /// With a broker whose connections can be cut and a bucket that fails now and then.
    pub fn start_hostile(seed: u64) -> Fleet {
        Fleet::start_in(|broker| Some((Proxy::start(broker.port()), S3::start(seed))))
    }

    fn start_in(place: impl FnOnce(&RabbitMq) -> Option<(Proxy, S3)>) -> Fleet {
        let dir = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(dir.path().join("data")).expect("writable");
        fs::write(dir.path().join("token"), TOKEN).expect("writable");
        let [port] = free_ports();
        let (broker, workers) = (RabbitMq::start(), vec![]);
        let hostile = place(&broker);
        let mut fleet = Fleet { coordinator: None, workers, broker, hostile, dir, port, started: 0 };
        fleet.basin(0, &["push", &root().join("models/fashion32").to_string_lossy()]);
        fleet.start_coordinator();
        fleet
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn prepare<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command
            .env("BASIN_HOME_URL", self.home_url())
            .env("BASIN_QUEUE_URL", self.queue_url())
            .env("BASIN_LISTEN", format!("127.0.0.1:{}", self.port))
            .env("BASIN_COORDINATOR_URL", format!("http://127.0.0.1:{}", self.port))
            .env("BASIN_TOKEN_FILE", self.path("token"))
            .env("BASIN_MODEL_CACHE", self.path("models"))
            .env("BASIN_DEVICES", "cpu")
            .env("OMP_WAIT_POLICY", "PASSIVE")
            .stdin(Stdio::null())
    }

    pub fn home_url(&self) -> String {
        match &self.hostile {
            Some((_, s3)) => s3.url("home"),
            None => self.path("home").to_string_lossy().into_owned(),
        }
    }

    pub fn queue_url(&self) -> String {
        match &self.hostile {
            Some((proxy, _)) => format!("amqp://guest:guest@127.0.0.1:{}/?give_up=60&heartbeat=4", proxy.port),
            None => self.broker.url("give_up=60"),
        }
    }

    pub fn log(&mut self, name: &str) -> Stdio {
        self.started += 1;
        fs::File::create(self.path(&format!("{:03}-{name}.log", self.started))).expect("writable").into()
    }

    pub fn start_coordinator(&mut self) {
        self.start_coordinator_with(&[], &[]);
    }

    pub fn start_coordinator_with(&mut self, variables: &[(&str, &str)], arguments: &[&str]) {
        let log = self.log("coordinator");
        let mut command = Command::new(program("basin-coordinator"));
        self.prepare(&mut command).envs(variables.iter().copied()).args(arguments).stdout(Stdio::null()).stderr(log);
        self.coordinator = Some(Process(command.spawn().expect("it starts")));
    }

    pub fn start_worker(&mut self, arguments: &[&str]) {
        self.start_worker_with(arguments, &[]);
    }

    pub fn start_worker_with(&mut self, arguments: &[&str], variables: &[(&str, &str)]) {
        let log = self.log("worker");
        let mut command = Command::new(program("basin-worker"));
        self.prepare(&mut command).env_remove("BASIN_LISTEN").stdout(Stdio::null()).stderr(log);
        command.args(arguments).envs(variables.iter().copied());
        self.workers.push(Process(command.spawn().expect("it starts")));
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
        let text = |o: &Output| format!("{}{}", String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr));
        while text(&output).contains("does not answer") || text(&output).contains("is the standby") {
            assert!(Instant::now() < end, "{}\n{}", text(&output), self.logs());
            std::thread::sleep(Duration::from_millis(100));
            output = self.try_basin(arguments);
        }
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}\n{}", text(&output), self.logs());
        text(&output)
    }

    pub fn logs(&self) -> String {
        let logs = fs::read_dir(self.dir.path())
            .expect("readable")
            .flatten()
            .filter(|f| f.path().extension().is_some_and(|e| e == "log"));
        let mut logs: Vec<PathBuf> = logs.map(|f| f.path()).collect();
        logs.sort();
        let tail = |path: &PathBuf| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(8).collect();
            format!("--- {}\n{}\n", path.display(), lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
        };
        logs.iter().rev().take(6).map(tail).collect()
    }

    /// `n` sample images in class folders, and a schedule.
    pub fn data(&self, n: usize, latent: LatentSearch) -> String {
        for (i, class) in ["Bag", "Coat", "Sandal", "Trouser"].into_iter().cycle().take(n).enumerate() {
            let from = root().join(format!("samples/images/{}_{:02}_centred.png", class.to_lowercase(), i / 4 % 3));
            fs::create_dir_all(self.path("data").join(class)).expect("writable");
            fs::copy(&from, self.path("data").join(class).join(format!("{i}.png"))).expect("a sample");
        }
        let paper = Params::paper();
        let transform = paper.transform.clone().map(|t| TransformSearch { generations: 2, steps: 2, ..t });
        let params = Params { profile: "test".into(), transform, latent, seeds: 4, ..paper };
        fs::write(self.path("params.json"), params.to_json()).expect("writable");
        self.path("data").to_string_lossy().into_owned()
    }

    pub fn submit(&self, data: &str, run: &str, more: &[&str]) -> String {
        let params = self.path("params.json").to_string_lossy().into_owned();
        let arguments = ["submit", data, "--name", run, "--model", "fashion32", "--params", &params];
        self.basin(0, &[&arguments, more].concat())
    }

    pub fn run_path(&self, run: &str) -> String {
        self.path("home/runs").join(run).to_string_lossy().into_owned()
    }

    pub fn run_url(&self, run: &str) -> String {
        match &self.hostile {
            Some((_, s3)) => s3.url(&format!("home/runs/{run}")),
            None => self.run_path(run),
        }
    }

    pub fn status(&self, run: &str) -> String {
        self.basin(0, &["runs", "show", run])
    }

    /// Losses of all seeds, by image.
    pub fn losses(&self, place: &str) -> BTreeMap<String, Vec<f64>> {
        self.records(place).into_iter().map(|r| (r.image, r.seeds.iter().map(|s| s.loss).collect())).collect()
    }

    pub fn records(&self, place: &str) -> Vec<ResultRecord> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let results = Store::open(place).await.expect("a URL");
            let Ok(objects) = results.list(keys::IMAGES).expect("a prefix").all().await else { return vec![] };
            let mut records = vec![];
            for object in objects {
                if let Some(Kind::Marker(_, Marker::Result)) = keys::parse(&object.key) {
                    let bytes = results.get(&object.key).await.expect("it is listed");
                    records.push(serde_json::from_slice(&bytes).expect("a record"));
                }
            }
            records
        })
    }

    /// What one machine makes of the same data.
    pub fn one_machine(&self, data: &str) -> BTreeMap<String, Vec<f64>> {
        let (params, out) = (self.path("params.json"), self.path("one"));
        let model = root().join("models/fashion32");
        let mut command = Command::new(program("basin"));
        command
            .args(["project", data, "--devices", "cpu", "--out"])
            .arg(&out)
            .arg("--model")
            .arg(model)
            .arg("--params")
            .arg(params);
        assert!(command.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("it starts").success());
        self.losses(&out.to_string_lossy())
    }

    /// Whether the run is known to have ended.
    pub fn finished(&self, run: &str) -> bool {
        String::from_utf8_lossy(&self.try_basin(&["runs", "show", run]).stdout).contains("finished")
    }

    pub fn failed_requests(&self) -> u64 {
        self.hostile.as_ref().map_or(0, |(_, s3)| s3.failures().values().sum())
    }

    /// Whether the coordinator acts.
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
        let mut of_each: BTreeMap<PathBuf, u64> = BTreeMap::new();
        for (log, line) in self.logged("step") {
            of_each.insert(log, line["computed"].as_u64().expect("a number"));
        }
        of_each.values().sum()
    }
}

pub fn short() -> LatentSearch {
    LatentSearch::BasinCma { generations: 2, steps: 2, final_steps: 4, told: Told::Refined, sigma: 1.0, last: LastDescent::Fresh }
}

pub fn long() -> LatentSearch {
    LatentSearch::BasinCma {
        generations: 60,
        steps: 6,
        final_steps: 60,
        told: Told::Refined,
        sigma: 1.0,
        last: LastDescent::Fresh,
    }
}

/// An HTTP request without a client, so that any part can be left out. The answer is empty if nothing listens.
pub fn http(port: u16, method: &str, path: &str, token: Option<&str>, body: &str) -> String {
    let Ok(mut socket) = TcpStream::connect(("127.0.0.1", port)) else { return String::new() };
    let token = token.map_or(String::new(), |t| format!("Authorization: Bearer {t}\r\n"));
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
    );
    socket.write_all(format!("{head}{token}\r\n{body}").as_bytes()).expect("it reads");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("it answers");
    answer
}
