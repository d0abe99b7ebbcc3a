//! What tests of several crates start, each on 127.0.0.1 and on free ports: the programs of the workspace and a fleet of them,
//! RabbitMQ, an S3 server in this process, a proxy that cuts and slows connections, an OTLP receiver.

mod faulty_s3;
mod fleet;
mod otlp;
mod process;
mod proxy;
mod rabbitmq;
mod s3_server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use proto::{Box2d, Job, ModelRef, Params, hex_sha256};

pub use faulty_s3::{S3, Weather};
pub use fleet::{Fleet, TOKEN, http, long, short};
pub use otlp::{Attributes, Heard, Metric, Otlp, Span};
pub use process::{Process, pass};
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

/// All files below `dir`; none if it is not there.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return vec![] };
    let paths = entries.map(|e| e.expect("readable").path());
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

/// The job of an image of a large run.
pub fn job(number: usize) -> Job {
    Job {
        run: "coco-val2017-paper".into(),
        image: format!("images/{number:012}.jpg"),
        identity: format!("{number:032x}"),
        dataset: "s3://datasets/coco/val2017?region=eu-west-1".into(),
        class: (number % 80) as u32,
        class_name: "traffic light".into(),
        bbox: Some(Box2d { x: 12.5, y: 73.25, width: 200.0, height: 145.5 }),
        mask: None,
        category: None,
        model: "biggan-deep-256".into(),
        model_digest: format!("{number:064x}"),
        params: Params::paper(),
        seed: number as u64,
    }
}

/// Copies the bundled model to `<dir>/home/models/<name>`, under that name.
pub fn push_model(dir: &Path, name: &str) -> ModelRef {
    let place = dir.join("home/models").join(name);
    fs::create_dir_all(&place).expect("writable");
    for file in fs::read_dir(root().join("models/fashion32")).expect("the bundled model") {
        let file = file.expect("readable");
        fs::copy(file.path(), place.join(file.file_name())).expect("writable");
    }
    let manifest = fs::read_to_string(place.join("model.json")).expect("readable");
    let manifest = manifest.replace("\"fashion32\"", &format!("{name:?}"));
    fs::write(place.join("model.json"), &manifest).expect("writable");
    ModelRef { name: name.into(), digest: hex_sha256(manifest.as_bytes()), resolution: 32 }
}
