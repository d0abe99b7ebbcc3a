//! What load balancers, platforms and Prometheus ask a coordinator.

use crate::world::{VIEW, World, config, gate, wait_for};
use coordinator::http::connections::{self, Limits};
use coordinator::http::other_services::OtherServices;
use coordinator::http::router;
use coordinator::service::{Handle, Service};
use harness::http;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Serves the routes of a coordinator; returns the port.
async fn serve(handle: &Handle) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(connections::serve(listener, router(handle.clone(), gate(), OtherServices::default()), Limits::default()));
    port
}

fn get(port: u16, path: &str, token: Option<&str>) -> String {
    tokio::task::block_in_place(|| http(port, "GET", path, token, ""))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_ready_and_only_the_acting_coordinator_is_the_leader() {
    let world = World::new(2).await;
    let acting = world.start().await;
    let (standby, handle) = Service::new(config(&world.home, &world.queue));
    let stop = CancellationToken::new();
    let standing_by = tokio::spawn(standby.run(stop.clone()));
    let [first, second] = [serve(&acting.handle).await, serve(&handle).await];
    let says = |port, path, status: &str, word: &str| {
        let answer = get(port, path, None);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.ends_with(word), "{path}: {answer}");
    };
    says(first, "/leader", "200", "acting\n");
    says(second, "/leader", "503", "standby\n");
    says(second, "/readyz", "200", "standby\n");
    says(second, "/healthz", "200", "alive\n");
    acting.stop().await;
    wait_for("the other to act", async || handle.leads().then_some(())).await;
    says(second, "/leader", "200", "acting\n");
    stop.cancel();
    standing_by.await.unwrap().unwrap();
}

/// What it shows then is seen in `tests/scenarios/telemetry.rs`: here nothing is measured.
#[tokio::test(flavor = "multi_thread")]
async fn metrics_need_a_token_as_runs_do() {
    let world = World::new(2).await;
    let acting = world.start().await;
    let port = serve(&acting.handle).await;
    assert!(get(port, "/metrics", None).starts_with("HTTP/1.1 401"));
    assert!(get(port, "/metrics", Some("a-token-of-nobody")).starts_with("HTTP/1.1 401"));
    let answer = get(port, "/metrics", Some(VIEW));
    assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("OTEL_SDK_DISABLED"), "{answer}");
    acting.stop().await;
}
