//! Stores and brokers that are there and do not answer: nothing stalls, everybody can see it, and nothing counts as failed.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use harness::{Flow, LocalFleet, Proxy, SHORT, TOKEN, assert_contains, http, wait_for};
use proto::LatentSearch;

/// Longest time for an answer that needs no store: two seconds, and what a machine needs that runs other tests, too.
const SOON: Duration = Duration::from_secs(5);

/// Asks a coordinator for a page that needs no store, and checks that it answers soon.
fn ask(port: u16, path: &str) -> String {
    let asked = Instant::now();
    let answer = http(port, "GET", path, Some(TOKEN), "");
    assert!(asked.elapsed() < SOON, "{path} took {:?}", asked.elapsed());
    answer
}

fn answers_soon(port: u16) {
    for path in ["/healthz", "/v1/backlog", "/v1/runs", "/v1/workers", "/v1/outages", "/", "/fleet"] {
        let answer = ask(port, path);
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }
}

/// The proxy stands between one coordinator and the store; the worker and the standby reach the store.
#[test]
fn a_silent_store_stalls_nothing_and_its_leader_gives_way_to_a_standby_that_reaches_it() {
    let mut fleet = LocalFleet::start_hostile(5);
    let (_, s3) = fleet.hostile.as_ref().expect("it is hostile");
    let proxy = Proxy::start(s3.port());
    let home = format!("{}&timeout=2", s3.url_through(proxy.port, "home"));
    let data = fleet.data(4, SHORT);
    fleet.coordinator = None;
    fleet.start_coordinator_with(&[], &[("BASIN_HOME_URL", &home)]);
    wait_for("the first to act", 60, || fleet.acts());
    let first = fleet.port;
    fleet.submit(&data, "r", &["--per-minute", "1"]);

    // Without a standby it keeps its lead, says what it waits for, and goes on by itself.
    proxy.set(Flow::Silent);
    wait_for("the outage to be seen", 60, || {
        answers_soon(first);
        ask(first, "/v1/outages").contains("\"what\":\"store\"")
    });
    let changed = Instant::now();
    let refused = http(first, "PATCH", "/v1/runs/r", Some(TOKEN), r#"{"priority":1}"#);
    assert!(refused.starts_with("HTTP/1.1 503") && changed.elapsed() < Duration::from_secs(20), "{refused}");
    answers_soon(first);
    proxy.set(Flow::Free);
    wait_for("the outage to end", 60, || ask(first, "/v1/outages").ends_with("[]"));
    assert!(http(first, "PATCH", "/v1/runs/r", Some(TOKEN), r#"{"priority":1}"#).starts_with("HTTP/1.1 200"));

    // With a standby that reaches the store it gives up its lead.
    let [second] = harness::free_ports();
    fleet.port = second;
    let _standby = fleet.spawn::<&str>("basin-coordinator", &[], &[]);
    wait_for("the standby", 60, || TcpStream::connect(("127.0.0.1", second)).is_ok());
    let silent = Instant::now();
    proxy.set(Flow::Silent);
    wait_for("the standby to act", 90, || {
        assert!(ask(first, "/healthz").starts_with("HTTP/1.1 200"));
        fleet.acts()
    });
    eprintln!("the standby acts {:.0} s after the store fell silent", silent.elapsed().as_secs_f64());
    assert!(ask(first, "/readyz").ends_with("standby\n"));
    fleet.basin(0, &["runs", "rate", "r", "0"]);
    fleet.start_worker(&[]);
    fleet.complete("r");
    assert_contains(&ask(second, "/v1/runs/r"), &["\"failed\":0", "\"state\":\"finished\""]);
    proxy.set(Flow::Free);
    assert!(ask(first, "/healthz").starts_with("HTTP/1.1 200") && !fleet.coordinator.as_mut().expect("it runs").ended());
}

/// For longer than the time after which operations give up on a broker that is away.
#[test]
fn a_broker_with_a_full_disk_is_waited_for_and_shown() {
    let mut fleet = LocalFleet::start();
    let data = fleet.data(16, LatentSearch::Adam { steps: 20 });
    let queue = fleet.broker.url("give_up=8&heartbeat=4");
    let impatient = [("BASIN_QUEUE_URL", queue.as_str())];
    fleet.coordinator = None;
    fleet.start_coordinator_with(&[], &impatient);
    wait_for("the coordinator to act", 60, || fleet.acts());
    // So that there is always something to publish.
    fleet.submit(&data, "r", &["--per-minute", "60"]);
    fleet.start_worker_with(&[], &impatient);
    let port = fleet.port;
    wait_for("a result", 120, || !ask(port, "/v1/runs/r").contains("\"succeeded\":0"));
    fleet.broker.set_disk_alarm(true);
    wait_for("an alarm for longer than operations wait for a broker", 90, || {
        answers_soon(port);
        let answer = ask(port, "/v1/outages");
        let outages: serde_json::Value =
            serde_json::from_str(answer.rsplit("\r\n").next().unwrap_or_default()).unwrap_or_default();
        outages
            .as_array()
            .into_iter()
            .flatten()
            .any(|outage| outage["what"] == "broker" && outage["seconds"].as_f64().is_some_and(|seconds| seconds > 16.0))
    });
    fleet.broker.set_disk_alarm(false);
    fleet.complete("r");
    assert_contains(&ask(port, "/v1/runs/r"), &["\"failed\":0", "\"state\":\"finished\""]);
    assert!(!fleet.workers[0].ended() && !fleet.coordinator.as_mut().expect("it runs").ended(), "{}", fleet.logs());
    wait_for("the outage to end", 60, || ask(port, "/v1/outages").ends_with("[]"));
}
