//! Crashes at every step, poisonous images, strange messages and a second coordinator.

use std::fs;
use std::io::Write;
use std::net::TcpStream;

use harness::{LocalFleet, Process, SHORT, TOKEN, assert_contains, files, http, losses, wait_for};
use proto::{CrashPoint, LatentSearch};
use queue::{Channel, Queue};

#[test]
fn strange_messages_and_a_second_coordinator_stop_nothing() {
    let mut fleet = LocalFleet::start();
    let data = fleet.data(2, SHORT);
    let [port] = harness::free_ports();
    let first = std::mem::replace(&mut fleet.port, port);
    wait_for("the first to act", 60, || http(first, "GET", "/readyz", None, "").ends_with("acting\n"));
    let standby = fleet.spawn::<&str>("basin-coordinator", &[], &[]);
    wait_for("the standby", 60, || TcpStream::connect(("127.0.0.1", port)).is_ok());
    assert!(http(port, "GET", "/readyz", None, "").ends_with("standby\n"));
    assert!(http(port, "GET", "/leader", None, "").starts_with("HTTP/1.1 503"));
    assert!(http(first, "GET", "/leader", None, "").starts_with("HTTP/1.1 200"));
    assert!(http(port, "GET", "/v1/runs", Some(TOKEN), "").starts_with("HTTP/1.1 503"));

    // The acting one dies; the other takes over, empties the queue, and does the run.
    fleet.coordinator.take().expect("it runs").signal("KILL");
    fleet.submit(&data, "r", &[]);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let queue = Queue::open(&fleet.broker.url("")).await.expect("the broker is there");
        queue.publish(Channel::Jobs, b"no protobuf".to_vec()).await.expect("published");
        queue.publish(Channel::Events, vec![8, 99]).await.expect("published");
        queue.close().await;
    });
    // A fault of a worker's machine fails no image: the worker leaves.
    let no_folder = fleet.path("token").to_string_lossy().into_owned();
    fleet.start_worker_with(&[], &[("BASIN_MODEL_CACHE", &no_folder)]);
    wait_for("the worker without a cache to leave", 60, || fleet.workers[0].ended());
    fs::rename(fleet.path("data"), fleet.path("elsewhere")).expect("writable");
    fs::create_dir(fleet.path("data")).expect("writable");
    fleet.start_worker(&[]);
    wait_for("the worker without data to leave", 60, || fleet.workers[1].ended());
    assert!(fleet.logs().contains("cannot see the data set"), "{}", fleet.logs());
    fs::remove_dir(fleet.path("data")).expect("writable");
    fs::rename(fleet.path("elsewhere"), fleet.path("data")).expect("writable");

    fleet.start_worker(&[]);
    fleet.complete("r");
    wait_for("the strange messages to be kept", 60, || files(&fleet.path("home/unreadable")).len() >= 4);
    drop(standby);
    fleet.workers.clear();

    // Queues with other settings, as of another version, are refused without --reset-queues.
    let other = [("BASIN_QUEUE_URL", &*format!("{}&delivery_limit=7", fleet.queue_url()))];
    fleet.start_coordinator_with(&[], &other);
    wait_for("the refusal", 60, || fleet.coordinator.as_mut().is_some_and(Process::ended));
    assert!(fleet.logs().contains("--reset-queues"), "{}", fleet.logs());
    fleet.start_coordinator_with(&["--reset-queues"], &other);
    wait_for("the coordinator to act", 60, || fleet.acts());
    assert!(fleet.status("r").contains("finished"));
}

/// A leader that was stopped does not know that its lead was taken, and a client's order waits for it.
#[test]
fn a_leader_that_wakes_up_changes_nothing() {
    let mut fleet = LocalFleet::start();
    let data = fleet.data(2, SHORT);
    let queue = fleet.broker.url("give_up=60&heartbeat=4");
    let quick = [("BASIN_QUEUE_URL", queue.as_str())];
    fleet.coordinator = None;
    fleet.start_coordinator_with(&[], &quick);
    wait_for("the first to act", 60, || fleet.acts());
    fleet.submit(&data, "r", &[]);
    let [port] = harness::free_ports();
    let first_port = std::mem::replace(&mut fleet.port, port);
    let mut first = fleet.coordinator.take().expect("it runs");
    let _second = fleet.spawn("basin-coordinator", &[], &quick);
    wait_for("the standby", 60, || TcpStream::connect(("127.0.0.1", port)).is_ok());

    first.signal("STOP");
    let body = r#"{"state":"cancelled"}"#;
    let mut late = TcpStream::connect(("127.0.0.1", first_port)).expect("the system accepts it");
    let head =
        format!("PATCH /v1/runs/r HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n");
    late.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).expect("the system takes it");
    wait_for("the second to act", 120, || fleet.acts());
    fleet.basin(0, &["runs", "pause", "r"]);
    first.signal("CONT");
    wait_for("the first to leave", 60, || first.ended());
    let control = fs::read(fleet.path("home/control/r.json")).expect("an order");
    let control: proto::Control = serde_json::from_slice(&control).expect("an order");
    assert!(control.state == proto::RunState::Paused && control.epoch > 1, "{control:?}\n{}", fleet.logs());
    fleet.basin(0, &["runs", "resume", "r"]);
    fleet.start_worker(&[]);
    fleet.complete("r");
}

/// The test kills every worker that begins the image, on two nodes in turn: the other images of its batch are projected, and it
/// becomes a failure after some attempts.
#[test]
fn an_image_that_kills_its_worker_is_given_up_and_the_others_are_not() {
    let mut fleet = LocalFleet::start();
    let data = fleet.data(4, LatentSearch::Adam { steps: 300 });
    let start = |fleet: &mut LocalFleet, node: &str| {
        fleet.start_worker_with(&["--batch-images", "4"], &[("BASIN_NODE_NAME", node)]);
    };
    start(&mut fleet, "node-0");
    fleet.submit(&data, "r", &[]);
    let poison = fleet.path("home/runs/r/attempts/Coat/1.png");
    let (mut kills, mut before) = (0, 0);
    wait_for("the run to end", 300, || {
        let attempts = files(&poison).len();
        if attempts > before {
            kills += 1;
            fleet.workers.clear();
            start(&mut fleet, &format!("node-{}", kills % 2));
        }
        before = attempts;
        fleet.status("r").contains("finished")
    });
    assert_eq!(kills, 5);
    assert_contains(&fleet.basin(0, &["verify", &fleet.run_url("r")]), &["4 images, 3 succeeded, 1 failed"]);
    let text = fs::read_to_string(fleet.path("home/runs/r/images/Coat/1.png/failure.json")).expect("a failure");
    assert_contains(&text, &["quarantined", "5 attempts", "2 nodes"]);
}

/// For every point between two visible steps of worker and coordinator: a process ends there, another takes over, and the run is
/// complete, once, with the numbers of one machine.
#[test]
fn a_crash_between_any_two_steps_loses_nothing() {
    let mut fleet = LocalFleet::start();
    let data = fleet.data(1, SHORT);
    let expected = fleet.one_machine(&data);
    fs::write(fleet.path("data/Bag/bad.png"), b"").expect("writable");
    let worker: &[&str] = &["--checkpoint-every", "0"];
    let complete = |fleet: &LocalFleet, point: CrashPoint, run: &str| {
        fleet.basin(2, &["runs", "wait", run]);
        // A worker may still hold a second copy of a job. It removes within seconds what it saved.
        let whole = || fleet.try_basin(&["verify", "--deep", &fleet.run_url(run)]).status.success();
        wait_for("a whole run", 30, whole);
        let text = fleet.basin(0, &["verify", "--deep", &fleet.run_url(run)]);
        assert!(text.contains("2 images, 1 succeeded, 1 failed"), "{point:?}: {text}");
        assert_eq!(losses(&fleet.run_url(run)), expected, "{point:?}");
    };

    for &point in CrashPoint::WORKER {
        let run = format!("{point:?}");
        let releases = matches!(point, CrashPoint::ReleaseTold | CrashPoint::ReleaseSettled);
        fleet.submit(&data, &run, &[]);
        fleet.start_worker_with(worker, &[("BASIN_CRASH_AT", &run)]);
        if releases {
            let checkpoints = fleet.path(&format!("home/runs/{run}/checkpoints"));
            wait_for("a checkpoint", 60, || !files(&checkpoints).is_empty());
            fleet.workers[0].signal("TERM");
        }
        wait_for(&run, 60, || fleet.workers[0].ended());
        assert!(fleet.workers[0].aborted(), "{point:?} was not passed\n{}", fleet.logs());
        fleet.workers.clear();
        fleet.start_worker(worker);
        complete(&fleet, point, &run);
        fleet.workers.clear();
    }

    fleet.start_worker(worker);
    for &point in CrashPoint::COORDINATOR {
        let run = format!("{point:?}");
        fleet.coordinator = None;
        fleet.start_coordinator_with(&[], &[("BASIN_CRASH_AT", &run)]);
        wait_for("the coordinator", 60, || fleet.acts());
        let params = fleet.path("params.json").to_string_lossy().into_owned();
        let submit = ["submit", &data, "--name", &run, "--model", "fashion32", "--params", &params];
        // It may end before it answers, and the run may be there nevertheless.
        let _ = fleet.try_basin(&submit);
        wait_for(&run, 60, || fleet.coordinator.as_mut().is_some_and(Process::ended));
        assert!(fleet.coordinator.as_mut().is_some_and(Process::aborted), "{point:?} was not passed\n{}", fleet.logs());
        fleet.start_coordinator();
        wait_for("the coordinator", 60, || fleet.acts());
        let again = fleet.try_basin(&submit);
        assert!(again.status.success(), "{point:?}: {}", String::from_utf8_lossy(&again.stderr));
        complete(&fleet, point, &run);
    }
}
