//! Labels this pod while the coordinator acts (*io*), so that a Service of Kubernetes finds the acting one of several: a standby is
//! ready, and must not get requests. The pod's deletion cost lets an upgrade and a scale-in stop a standby first.
//!
//! If the API server does not answer, the log says so once, and the label is written when it answers again.

use std::time::Duration;

use pod::{DELETION_COST, Place, Says};
use serde_json::json;
use tokio::sync::watch;

/// The label. Its value is `true` on the pod of the acting coordinator, else `false`.
const LABEL: &str = "basin-leads";
const LEADER_COST: &str = "100";
const STANDBY_COST: &str = "0";
const AGAIN: Duration = Duration::from_secs(2);

/// Keeps the label true until `leads` closes.
pub async fn keep(place: Place, mut leads: watch::Receiver<bool>) {
    let mut pod = Says::new(place, "cannot label the pod: its Service may not find the acting coordinator");
    loop {
        let leading = *leads.borrow_and_update();
        let cost = if leading { LEADER_COST } else { STANDBY_COST };
        let said = pod.say(json!({ "annotations": { DELETION_COST: cost }, "labels": { LABEL: leading.to_string() } })).await;
        let patience = if said { Duration::MAX } else { AGAIN };
        if let Ok(Err(_)) = tokio::time::timeout(patience, leads.changed()).await {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use axum::Router;
    use axum::http::StatusCode;
    use axum::http::request::Parts;
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;

    use super::*;

    static REFUSED: AtomicBool = AtomicBool::new(true);

    #[tokio::test]
    async fn the_label_follows_the_lead_and_a_refusal_is_tried_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let account = tempfile::tempdir().expect("writable");
        std::fs::write(account.path().join("token"), "secret\n").expect("writable");
        let place = Place {
            server: format!("http://{}", listener.local_addr().expect("an address")),
            namespace: "ns".into(),
            pod: "coordinator-1".into(),
            account: account.path().into(),
        };
        let (heard, mut requests) = mpsc::channel(2);
        let answer = async move |head: Parts, body: String| {
            heard.send((head, body)).await.expect("the test listens");
            if REFUSED.swap(false, Ordering::Relaxed) { StatusCode::FORBIDDEN } else { StatusCode::OK }
        };
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
        let (sender, leads) = watch::channel(false);
        let kept = tokio::spawn(keep(place, leads));
        let (head, first) = requests.recv().await.expect("a request");
        assert_eq!((head.method.as_str(), head.uri.path()), ("PATCH", "/api/v1/namespaces/ns/pods/coordinator-1"));
        assert_eq!(head.headers["authorization"], "Bearer secret");
        let said = |cost: &str, label: &str| {
            format!(r#"{{"metadata":{{"annotations":{{"{DELETION_COST}":"{cost}"}},"labels":{{"basin-leads":"{label}"}}}}}}"#)
        };
        assert_eq!(first, said("0", "false"), "what an earlier container said is taken back");
        assert_eq!(requests.recv().await.expect("a second try").1, first);
        sender.send_replace(true);
        assert_eq!(requests.recv().await.expect("a request").1, said("100", "true"));
        sender.send_replace(false);
        assert_eq!(requests.recv().await.expect("a request").1, said("0", "false"));
        drop(sender);
        kept.await.expect("it ends with the coordinator");
    }
}
