//! A fleet through its front door: real services, a real broker, a home in a folder.

use std::fs;

use harness::{LONG, LocalFleet, SHORT, TOKEN, assert_contains, files, http, losses, root, wait_for};

#[test]
fn a_fleet_gives_what_one_machine_gives_and_a_leaving_worker_loses_nothing() {
    let mut fleet = LocalFleet::start();
    let data = fleet.data(3, LONG);
    fleet.start_worker(&["--batch-images", "3", "--checkpoint-every", "1"]);
    fleet.submit(&data, "r", &[]);
    let checkpoints = fleet.path("home/runs/r/checkpoints");
    wait_for("a checkpoint", 120, || files(&checkpoints).iter().any(|f| f.extension().is_some_and(|e| e == "checkpoint")));
    fleet.workers[0].signal("TERM");
    fleet.workers[0].leaves(10);
    fleet.workers.clear();
    assert!(losses(&fleet.run_url("r")).is_empty(), "the run was over too soon to show anything");

    fleet.start_worker(&["--drain-after", "5"]);
    fleet.complete("r");
    assert_eq!(losses(&fleet.run_url("r")), fleet.one_machine(&data));
    assert!(fleet.path("home/runs/r/report.html").is_file());
    fleet.workers[0].leaves(60);
}

#[test]
fn a_study_on_a_fleet_has_the_numbers_that_it_has_on_one_machine() {
    let mut fleet = LocalFleet::start();
    fleet.start_worker(&[]);
    let path = |path: &str| root().join(path).to_string_lossy().into_owned();
    let (data, model, url) =
        (path("benchmarks/data/centred"), path("models/fashion32"), format!("http://127.0.0.1:{}", fleet.port));
    let there = ["--coordinator", &url];
    let study = |out: &str, place: &[&str]| {
        let out = fleet.path(out).to_string_lossy().into_owned();
        let tiny = ["--evaluations", "8", "--seeds", "3", "--limit", "2"];
        let study = ["study", "table2", &data, "--model", &model, "--out", &out];
        let text = fleet.basin(0, &[&study[..], &tiny[..], place].concat());
        let page = fs::read(format!("{out}/table2.json")).expect("the study's numbers");
        (text, serde_json::from_slice::<serde_json::Value>(&page).expect("JSON"))
    };
    let (text, page) = study("there", &there);
    assert!(text.contains("run centred-adam is finished: 2 succeeded, 0 failed"), "{text}");
    assert!(fleet.path("there/table2-grid.png").exists() && !fleet.path("there/adam").exists());
    let means = |page: &serde_json::Value| {
        let rows = page["rows"].as_array().expect("rows").iter();
        rows.map(|row| (row["slug"].clone(), row["means"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(means(&page).len(), 4);
    assert_eq!(means(&page), means(&study("here", &[]).1));
    let (text, again) = study("there", &there);
    assert!(text.contains("run centred-adam is there already"), "{text}");
    assert_eq!(means(&again), means(&page));
}

#[test]
fn strangers_are_kept_out_and_nonsense_is_refused_with_the_reason() {
    let fleet = LocalFleet::start();
    let data = fleet.data(4, LONG);
    fs::write(fleet.path("data/Bag/bad.png"), b"").expect("writable");
    fleet.submit(&data, "slow", &[]);

    // Without the token a client reads nothing and changes nothing.
    for token in [None, Some("wrong")] {
        let requests =
            [("GET", "/v1/runs", ""), ("PATCH", "/v1/runs/slow", r#"{"state":"cancelled"}"#), ("GET", "/v1/events", "")];
        for (method, path, body) in requests {
            let answer = http(fleet.port, method, path, token, body);
            assert!(answer.starts_with("HTTP/1.1 401") && !answer.contains("slow"), "{answer}");
        }
    }
    assert!(http(fleet.port, "GET", "/v1/backlog", Some(TOKEN), "").contains(r#""backlog":5"#));
    for (method, path, body, status, why) in [
        ("PATCH", "/v1/runs/slow", r#"{"speed":3}"#, 422, "speed"),
        ("PATCH", "/v1/runs/slow", r#"{"priority":"#, 422, "EOF"),
        ("PATCH", "/v1/runs/none", "{}", 404, "no run none"),
        ("GET", "/v2/runs", "", 404, "openapi.json"),
        ("DELETE", "/v1/runs/slow", "", 409, "has not ended"),
        ("PUT", "/v1/runs/slow", "", 405, "openapi.json"),
    ] {
        let answer = http(fleet.port, method, path, Some(TOKEN), body);
        let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
        let error: serde_json::Value = serde_json::from_str(body).expect("errors are JSON");
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert!(error["error"].as_str().is_some_and(|e| e.contains(why)), "{answer}");
    }

    // A run with the name of another is refused; the same run twice is one run.
    let params = fleet.path("params.json").to_string_lossy().into_owned();
    for (code, name, model, seed, why) in [
        (0, "slow", "fashion32", "0", "is there already, with the same settings"),
        (1, "slow", "fashion32", "1", "there is a run slow with other settings"),
        (1, "x/../y", "fashion32", "0", "may hold letters"),
        (1, "x", "other", "0", "there is no model other"),
    ] {
        let asked = ["submit", &data, "--name", name, "--model", model, "--params", &params, "--seed", seed];
        assert_contains(&fleet.basin(code, &asked), &[why]);
    }
    let text = fleet.basin(1, &["submit", &fleet.path("none").to_string_lossy(), "--name", "none", "--model", "fashion32"]);
    assert_contains(&text, &["none"]);
}

#[test]
fn runs_are_paused_cancelled_and_retried() {
    let mut fleet = LocalFleet::start();
    let data = fleet.data(4, LONG);
    fs::write(fleet.path("data/Bag/bad.png"), b"").expect("writable");
    fleet.submit(&data, "slow", &[]);

    // A pause frees the worker, which saves first; another run overtakes.
    fleet.start_worker(&["--batch-images", "2"]);
    wait_for("work to begin", 60, || {
        fleet.status("slow").contains(" 2        0") || !files(&fleet.path("home/runs/slow/attempts")).is_empty()
    });
    fleet.basin(0, &["runs", "pause", "slow"]);
    let checkpoints = fleet.path("home/runs/slow/checkpoints");
    wait_for("checkpoints", 30, || files(&checkpoints).len() >= 2);
    fleet.data(4, SHORT);
    fleet.submit(&data, "quick", &["--priority", "5"]);
    fleet.basin(2, &["runs", "wait", "quick"]);
    assert!(fleet.status("slow").contains("paused"));
    fleet.basin(0, &["verify", &fleet.run_url("quick")]);

    // The image is replaced and its failure retried.
    fs::copy(fleet.path("data/Bag/0.png"), fleet.path("data/Bag/bad.png")).expect("writable");
    let text = fleet.basin(1, &["runs", "retry", "quick", "--reason", "diverged"]);
    assert_contains(&text, &["no image of run quick matches; nothing changed"]);
    assert!(fleet.basin(0, &["runs", "retry", "quick", "--reason", "bad_image"]).contains(" 1 to be projected"));
    fleet.basin(0, &["runs", "wait", "quick"]);

    fleet.basin(0, &["runs", "cancel", "slow"]);
    assert!(fleet.basin(1, &["runs", "resume", "slow"]).contains("has ended"));
    assert!(http(fleet.port, "GET", "/v1/backlog", Some(TOKEN), "").contains(r#""backlog":0"#));
}
