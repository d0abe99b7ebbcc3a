//! `basin study`: the paper's tables as runs.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use proto::ModelManifest;

use super::{files, root, signal, wait_for};

/// A study of two images with a tiny budget.
struct Study {
    dir: tempfile::TempDir,
    model: PathBuf,
}

impl Study {
    fn new() -> Study {
        Study { dir: tempfile::tempdir().expect("a temporary folder"), model: root().join("models/fashion32") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, what: &str, data: &str, out: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_basin"));
        command.arg("study").arg(what).arg(root().join("docs/studies/data").join(data));
        command.arg("--model").arg(&self.model).arg("--out").arg(self.path(out));
        command.args(["--seeds", "4", "--limit", "2", "--devices", "cpu"]).args(more);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn expect(&self, code: i32, what: &str, data: &str, out: &str, more: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.command(what, data, out, more).output().expect("basin starts");
        let text = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        assert_eq!(status.code(), Some(code), "{text}");
        text
    }

    fn page(&self, out: &str, what: &str) -> serde_json::Value {
        let bytes = fs::read(self.path(out).join(format!("{what}.json"))).expect("the study's numbers");
        serde_json::from_slice(&bytes).expect("JSON")
    }

    /// Means of the best of the seeds, by row.
    fn best(&self, out: &str, what: &str) -> BTreeMap<String, Vec<f64>> {
        let page = self.page(out, what);
        let rows = page["rows"].as_array().expect("rows").iter().filter(|row| row["left_out"].is_null());
        let numbers = |row: &serde_json::Value| {
            let means = row["means"]["best"].as_array().unwrap_or_else(|| panic!("{row} has no means"));
            means.iter().map(|mean| mean.as_f64().expect("a number")).collect()
        };
        rows.map(|row| (row["slug"].as_str().expect("a slug").to_owned(), numbers(row))).collect()
    }

    fn results(&self, out: &str, row: &str) -> Vec<PathBuf> {
        let mut paths = files(&self.path(out).join(row).join("images"));
        paths.retain(|path| path.ends_with("result.json"));
        paths.sort();
        paths
    }
}

fn judge(name: &str, folder: &str) -> String {
    format!("{name}={}", root().join(folder).display())
}

#[test]
fn a_study_makes_the_papers_tables_and_shares_a_row_between_two() {
    let study = Study::new();
    let (vgg, own) = (judge("vgg", "models/fashion32-vgg"), judge("own", "models/fashion32"));
    let more = ["--evaluations", "8", "--judge", &vgg, "--judge", &own];
    study.expect(0, "table1", "centred", "out", &more);
    let rows = study.best("out", "table1");
    assert_eq!(rows.len(), 18, "{rows:?}");
    for (row, means) in &rows {
        let [.., lpips, vgg, own] = means[..] else { panic!("{row} has {means:?}") };
        // The model's own network as a judge says what the search recorded; the other one says something else.
        assert!((own - lpips).abs() < 1e-4 * lpips, "{row}: {own} and {lpips}");
        assert!((vgg - lpips).abs() > 0.01 * lpips, "{row}: {vgg} and {lpips}");
    }
    let text = fs::read_to_string(study.path("out/table1.md")).expect("the tables");
    for part in ["BasinCMA + spatial + colour + encoder", "| 8 x 4 |", "average vgg", "## What the paper says", "halving"] {
        assert!(text.contains(part), "{part}: {text}");
    }

    let before = fs::read(study.path("out/judges/vgg/adam.json")).expect("what the judge said");
    let text = study.expect(0, "table2", "centred", "out", &more);
    assert!(text.contains("row 4 of 4, adam") && text.contains("nothing is left to project"), "{text}");
    assert_eq!(study.best("out", "table2")["adam"], rows["adam"]);
    assert_eq!(fs::read(study.path("out/judges/vgg/adam.json")).expect("what the judge said"), before);
}

#[test]
fn a_killed_study_goes_on_to_the_same_numbers() {
    let study = Study::new();
    let more = ["--evaluations", "24"];
    study.expect(0, "table3", "offcentre", "whole", &more);
    let mut child = study.command("table3", "offcentre", "out", &more).spawn().expect("basin starts");
    wait_for("the second row", || study.path("out/ood-adam-transform/run.json").exists());
    signal(&child, "KILL");
    child.wait().expect("it was started");
    let first = study.results("out", "ood-adam");
    let attempts = || first.iter().map(|path| fs::read(path).expect("a result")).collect::<Vec<_>>();
    let before = attempts();
    assert_eq!(before.len(), 2);
    let text = study.expect(0, "table3", "offcentre", "out", &more);
    assert!(text.contains("nothing is left to project"), "{text}");
    assert_eq!(attempts(), before);
    assert_eq!(study.best("out", "table3"), study.best("whole", "table3"));

    let text = study.expect(1, "table3", "offcentre", "out", &["--evaluations", "25"]);
    assert!(text.contains("row ood-adam") && text.contains("latent.steps = 24"), "{text}");
}

#[test]
fn an_interrupted_study_writes_what_it_has_and_says_so() {
    let study = Study::new();
    let child = study.command("table2", "centred", "out", &["--evaluations", "4000"]).spawn().expect("basin starts");
    wait_for("work", || !files(&study.path("out/class-gaussian/attempts")).is_empty());
    signal(&child, "INT");
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(text.contains("run the same command again"), "{text}");
    assert_eq!(study.page("out", "table2")["rows"].as_array().map(Vec::len), Some(0));
}

#[test]
fn rows_that_a_model_cannot_run_are_left_out_with_the_reason() {
    let mut study = Study::new();
    let folder = study.path("plain");
    fs::create_dir(&folder).expect("writable");
    for file in files(&study.model) {
        fs::copy(&file, folder.join(file.file_name().expect("a file"))).expect("writable");
    }
    let path = folder.join("model.json");
    let (manifest, _) = ModelManifest::parse(&fs::read(&path).expect("readable")).expect("ours");
    let manifest = ModelManifest { encoder: None, classifier: None, ..manifest };
    fs::write(&path, serde_json::to_vec(&manifest).expect("a manifest serialises")).expect("writable");
    study.model = folder;

    study.expect(0, "table2", "centred", "out", &["--evaluations", "8"]);
    let text = fs::read_to_string(study.path("out/table2.md")).expect("the tables");
    assert!(text.contains("Predicted is left out: model fashion32 has no classifier"), "{text}");
    assert_eq!(study.best("out", "table2").len(), 3);
    let text = study.expect(1, "table3", "offcentre", "other", &["--evaluations", "8"]);
    assert!(text.contains("no row could be run"), "{text}");
    let text = study.expect(1, "table2", "centred", "out", &["--judge", "x=nowhere"]);
    assert!(text.contains("cannot load judge x") && text.contains("nowhere"), "{text}");
}
