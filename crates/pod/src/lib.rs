//! Changes the labels and annotations of the pod that this process runs in (*io*). It can do nothing else with Kubernetes.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use ureq::Agent;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

/// Where a pod finds its token and the cluster's certificate.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const PATIENCE: Duration = Duration::from_secs(10);
/// The annotation by which a Deployment that is scaled in chooses: pods of low cost are stopped first.
pub const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Where this pod's metadata is changed.
#[derive(Clone, Debug)]
pub struct Place {
    /// URL of the API server.
    pub server: String,
    pub namespace: String,
    pub pod: String,
    /// Folder with `token` and, for https, `ca.crt`.
    pub account: PathBuf,
}

impl Place {
    /// `pod`: `namespace/name`, in the cluster that this process runs in.
    pub fn in_cluster(pod: &str) -> Result<Place, String> {
        let plain = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
        let pod = pod.split_once('/').filter(|(namespace, name)| plain(namespace) && plain(name));
        let (namespace, name) = pod.ok_or("expected namespace/name of a pod")?;
        let variable =
            |name: &str| std::env::var(name).map_err(|_| format!("{name} is not set: does this process run in a pod?"));
        let (host, port) = (variable("KUBERNETES_SERVICE_HOST")?, variable("KUBERNETES_SERVICE_PORT")?);
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let server = format!("https://{host}:{port}");
        Ok(Place { server, namespace: namespace.into(), pod: name.into(), account: ACCOUNT.into() })
    }

    /// Merges `metadata` into that of the pod. Waits for the API server.
    fn change(&self, metadata: &Value) -> Result<(), String> {
        self.send(metadata).map_err(|error| error.to_string())
    }

    fn send(&self, metadata: &Value) -> Result<(), Box<dyn std::error::Error>> {
        let mut tls = TlsConfig::builder();
        if self.server.starts_with("https:") {
            let file = std::fs::read(self.account.join("ca.crt"))?;
            let roots = parse_pem(&file).filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            });
            tls = tls.root_certs(RootCerts::from(roots));
        }
        let agent: Agent =
            Agent::config_builder().tls_config(tls.build()).timeout_global(Some(PATIENCE)).proxy(None).build().into();
        // Read each time: it is changed every hour.
        let token = std::fs::read_to_string(self.account.join("token"))?;
        let Place { server, namespace, pod, .. } = self;
        agent
            .patch(format!("{server}/api/v1/namespaces/{namespace}/pods/{pod}"))
            .header("authorization", format!("Bearer {}", token.trim()))
            .header("content-type", "application/merge-patch+json")
            .send(json!({ "metadata": metadata }).to_string())?;
        Ok(())
    }
}

/// What a process says about itself in its pod's metadata. It is advice: while the API server does not answer, the log says so once, and
/// nothing else changes.
pub struct Says {
    place: Place,
    /// For the log.
    failure: &'static str,
    /// `None`: nothing yet. An earlier container of the pod may have said something.
    said: Option<Value>,
    warned: bool,
}

impl Says {
    /// `failure`: what the log says if it cannot be written.
    pub fn new(place: Place, failure: &'static str) -> Says {
        Says { place, failure, said: None, warned: false }
    }

    /// Writes the metadata if they changed. Returns whether the pod has them.
    pub async fn say(&mut self, metadata: Value) -> bool {
        if self.said.as_ref() == Some(&metadata) {
            return true;
        }
        let (place, new) = (self.place.clone(), metadata.clone());
        let done = tokio::task::spawn_blocking(move || place.change(&new)).await;
        match done.expect("it does not panic") {
            Ok(()) => {
                (self.said, self.warned) = (Some(metadata), false);
                true
            }
            Err(error) => {
                // It may have been written although the answer was lost.
                self.said = None;
                if !std::mem::replace(&mut self.warned, true) {
                    tracing::warn!(error, "{}", self.failure);
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_name_of_a_pod_is_taken() {
        for bad in ["worker", "/worker", "ns/", "ns/a/b", "ns/../x", "ns/a b"] {
            assert!(Place::in_cluster(bad).expect_err("must be refused").contains("namespace/name"), "{bad}");
        }
    }
}
