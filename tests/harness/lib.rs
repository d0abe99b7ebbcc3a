//! What tests of several crates start, each on 127.0.0.1 and on free ports: the programs of the workspace and a fleet of them,
//! RabbitMQ, an S3 server in this process, a proxy that cuts and slows connections, an OTLP receiver.

mod faulty_s3;
mod fleet;
mod home;
mod otlp;
mod process;
mod proxy;
mod rabbitmq;
mod s3_server;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use proto::keys::{Kind, Marker};
use proto::{Box2d, Job, Params, ResultRecord, keys};
use store::Store;

pub use faulty_s3::{S3, Weather};
pub use fleet::{LONG, LocalFleet, SHORT, TOKEN, exchange, http};
pub use home::{Home, push_model};
pub use otlp::{Heard, HeardAttributes, HeardLog, Otlp, Span};
pub use process::{Process, pass};
pub use proto::sample::job;
pub use proxy::{Flow, Proxy};
pub use rabbitmq::{RabbitMq, free_ports};
pub use s3_server::{Auth, Server};

/// The folder of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the workspace").to_owned()
}

/// A program of the workspace. The first call builds all of them, so that no test runs an old one.
pub fn program(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let dir = BUILT.get_or_init(|| {
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--quiet", "--locked", "--workspace", "--bin", "basin"]);
        build.args(["--bin", "basin-coordinator", "--bin", "basin-worker"]).current_dir(root());
        // Build scripts that look at what cargo tells this test about itself would run again, and all that depends on them.
        let of_this_test =
            ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_NAME", "CARGO_PRIMARY_", "CARGO_TARGET_TMPDIR"];
        for (name, _) in std::env::vars() {
            if of_this_test.iter().any(|prefix| name.starts_with(prefix)) || name == "OUT_DIR" {
                build.env_remove(name);
            }
        }
        let test = std::env::current_exe().expect("this program has a path");
        // A test program lies in target/<profile>/deps.
        let dir = test.ancestors().nth(2).expect("in the target directory").to_owned();
        if dir.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo runs").success(), "the programs cannot be built");
        dir
    });
    dir.join(name)
}

/// All files below `dir`, without those that are being written or were when their program was killed; none if it is not there.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return vec![] };
    let paths = entries.map(|e| e.expect("readable").path()).filter(|path| path.extension().is_none_or(|e| e != "tmp"));
    paths.flat_map(|p| if p.is_dir() { files(&p) } else { vec![p] }).collect()
}

/// Polls until `condition` holds; panics with `what` after `seconds`.
pub fn wait_for(what: &str, seconds: u64, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(seconds);
    while !condition() {
        assert!(Instant::now() < end, "waited for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Sends a signal such as `TERM` to the process `id`.
pub fn signal(id: u32, name: &str) {
    let sent = Command::new("kill").args([format!("-{name}"), id.to_string()]).status().expect("kill runs");
    assert!(sent.success());
}

pub fn output_text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a command, expecting an exit code; returns what was printed.
pub fn expect(code: i32, command: &mut Command) -> String {
    let output = command.output().expect("it starts");
    let text = output_text(&output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

#[track_caller]
pub fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

/// The last lines of a file, if it is there.
fn tail(file: &Path, lines: usize) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Copies `n` sample images to folders of their classes.
pub fn sample_images(data: &Path, n: usize) {
    for (i, class) in ["Bag", "Coat", "Sandal", "Trouser"].into_iter().cycle().take(n).enumerate() {
        let from = root().join(format!("samples/images/{}_{:02}_centred.png", class.to_lowercase(), i / 4 % 3));
        fs::create_dir_all(data.join(class)).expect("writable");
        fs::copy(&from, data.join(class).join(format!("{i}.png"))).expect("a sample");
    }
}

/// The results of the run at a path or URL; none if the run is not there.
pub fn records(run: &str) -> Vec<ResultRecord> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let results = Store::open(run).await.expect("a URL");
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

/// Losses of all seeds, by image.
pub fn losses(run: &str) -> BTreeMap<String, Vec<f64>> {
    records(run).into_iter().map(|record| (record.image, record.seeds.iter().map(|seed| seed.loss).collect())).collect()
}

pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("writable");
    for file in files(from) {
        fs::copy(&file, to.join(file.file_name().expect("a file"))).expect("writable");
    }
}

/// Changes a bit in the middle of a file.
pub fn damage(file: &Path) {
    let mut bytes = fs::read(file).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).expect("writable");
}

/// The job of an image of a large run.
pub fn large_run_job(number: usize) -> Job {
    Job {
        run: "coco-val2017-paper".into(),
        image: format!("images/{number:012}.jpg"),
        identity: format!("{number:032x}"),
        dataset: "s3://datasets/coco/val2017?region=eu-west-1".into(),
        class: (number % 80) as u32,
        class_name: "traffic light".into(),
        bbox: Some(Box2d { x: 12.5, y: 73.25, width: 200.0, height: 145.5 }),
        model: "biggan-deep-256".into(),
        model_digest: format!("{number:064x}"),
        params: Params::paper(),
        seed: number as u64,
        ..job()
    }
}
