//! Tells Kubernetes which worker costs least to stop (*io*): the annotation `controller.kubernetes.io/pod-deletion-cost` of this pod.
//! A Deployment that is scaled in stops idle workers before busy ones.

use std::time::Duration;

pub use pod::Place;
use pod::{DELETION_COST, Says};
use tokio::sync::watch;

use crate::Working;

/// Between two batches a worker is not idle yet.
const IDLE_AFTER: Duration = Duration::from_secs(15);
const IDLE_COST: &str = "0";
const BUSY_COST: &str = "100";
const AGAIN: Duration = Duration::from_secs(60);

/// Keeps the annotation true until `working` closes.
pub async fn keep(place: Place, mut working: watch::Receiver<Working>) {
    let mut pod = Says::new(place, "cannot write the pod's deletion cost");
    loop {
        let busy = working.borrow_and_update().images > 0;
        let cost = if busy { BUSY_COST } else { IDLE_COST };
        let said = pod.say(serde_json::json!({ "annotations": { DELETION_COST: cost } })).await;
        // A failed write is repeated even if the worker's activity does not change.
        let patience = if said { Duration::MAX } else { AGAIN };
        if let Ok(Err(_)) = tokio::time::timeout(patience, working.changed()).await {
            return;
        }
        if working.borrow().images == 0 {
            let more = working.wait_for(|now| now.images > 0);
            let _ = tokio::time::timeout(IDLE_AFTER, more).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::request::Parts;
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_pod_says_that_it_is_busy_with_its_token_and_changes_nothing_else() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let account = tempfile::tempdir().expect("writable");
        std::fs::write(account.path().join("token"), "secret\n").expect("writable");
        let place = Place {
            server: format!("http://{}", listener.local_addr().expect("an address")),
            namespace: "ns".into(),
            pod: "worker-1".into(),
            account: account.path().into(),
        };
        let (heard, mut requests) = mpsc::channel(2);
        let answer = async move |head: Parts, body: String| {
            heard.send((head, body)).await.expect("the test listens");
            "{}"
        };
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
        let (sender, working) = watch::channel(Working::default());
        let kept = tokio::spawn(keep(place, working));
        let (_, first) = requests.recv().await.expect("a request");
        assert!(first.ends_with(r#"pod-deletion-cost":"0"}}}"#), "what was said before it began is taken back: {first}");
        sender.send_replace(Working { images: 2, ..Working::default() });
        let (head, body) = requests.recv().await.expect("a request");
        assert_eq!((head.method.as_str(), head.uri.path()), ("PATCH", "/api/v1/namespaces/ns/pods/worker-1"));
        assert_eq!(head.headers["authorization"], "Bearer secret");
        assert_eq!(head.headers["content-type"], "application/merge-patch+json");
        assert_eq!(body, r#"{"metadata":{"annotations":{"controller.kubernetes.io/pod-deletion-cost":"100"}}}"#);
        drop(sender);
        kept.await.expect("it ends with the worker");
    }
}
