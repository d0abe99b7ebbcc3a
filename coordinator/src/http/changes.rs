//! Changes that clients request (*io*): each that is made gets an entry in the log.

use std::convert::Infallible;
use std::net::IpAddr;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use client::api::{Change, LogEntry, RedriveRequest, RunRequest, RunStatus};
use proto::RunState;
use serde_json::json;

use super::door::{Client, Door};
use crate::audit;
use crate::service::Refusal;

/// A client waits this long for its change to be logged.
const LOGGED: Duration = Duration::from_secs(2);

/// The client of a request, as the log names it.
#[derive(Clone, Copy)]
pub(super) struct Who {
    how: &'static str,
    address: Option<IpAddr>,
}

impl FromRequestParts<Door> for Who {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, door: &Door) -> Result<Who, Infallible> {
        let address = parts.extensions.get::<Client>().map(|Client(address)| *address);
        // A listener that does not know addresses says 0.0.0.0.
        let address = address.filter(|address| !address.is_unspecified());
        Ok(Who { how: door.gate.how(&parts.headers), address })
    }
}

impl Door {
    /// Returns a note for people.
    pub(super) async fn submit(&self, who: Who, request: RunRequest) -> Result<String, Refusal> {
        let RunRequest { name, dataset, model, budget_hours, .. } = &request;
        let detail = json!({ "dataset": dataset, "model": model, "budget_hours": budget_hours }).to_string();
        let (handle, run) = (self.handle.clone(), name.clone());
        self.logged(who, "submit".into(), run, detail, async move { handle.submit(request).await }).await
    }

    pub(super) async fn change(&self, who: Who, run: String, change: Change) -> Result<RunStatus, Refusal> {
        let detail = serde_json::to_string(&change).expect("plain fields serialise");
        let (handle, name) = (self.handle.clone(), run.clone());
        self.logged(who, action(&change), run, detail, async move { handle.change(name, change).await }).await
    }

    /// Returns a note for people.
    pub(super) async fn redrive(&self, who: Who, run: String, which: RedriveRequest) -> Result<String, Refusal> {
        let detail = serde_json::to_string(&which).expect("plain fields serialise");
        let (handle, name) = (self.handle.clone(), run.clone());
        self.logged(who, "redrive".into(), run, detail, async move { handle.redrive(name, which).await }).await
    }

    /// Returns a note for people.
    pub(super) async fn delete(&self, who: Who, run: String) -> Result<String, Refusal> {
        let (handle, name) = (self.handle.clone(), run.clone());
        self.logged(who, "delete".into(), run, String::new(), async move { handle.delete(name).await }).await
    }

    /// Makes a change and writes it to the log, even if the client goes away meanwhile.
    async fn logged<T: Send + 'static>(
        &self,
        who: Who,
        action: String,
        run: String,
        detail: String,
        change: impl Future<Output = Result<T, Refusal>> + Send + 'static,
    ) -> Result<T, Refusal> {
        let home = self.handle.home().cloned();
        let address = who.address.map(|address| address.to_string());
        let entry = LogEntry { time: 0, action, run, who: who.how.into(), address, detail };
        let made = tokio::spawn(async move {
            let made = change.await?;
            if let Some(home) = home {
                // The change is made: a store that is slow now must not keep its client waiting.
                let recorded = tokio::spawn(async move { audit::record(&home, entry).await });
                let _ = tokio::time::timeout(LOGGED, recorded).await;
            }
            Ok(made)
        });
        made.await.expect("a change does not panic")
    }
}

/// What a change does, in the words of `basin runs`. Pure.
fn action(change: &Change) -> String {
    let state = change.state.map(|state| match state {
        RunState::Running => "resume",
        RunState::Paused => "pause",
        RunState::Cancelled => "cancel",
        RunState::Finished => "finish",
    });
    let others = [
        (change.priority.is_some(), "priority"),
        (change.per_minute.is_some(), "rate"),
        (change.budget_hours.is_some(), "budget"),
    ];
    let others = others.into_iter().filter(|(is_set, _)| *is_set).map(|(_, action)| action);
    let actions: Vec<&str> = state.into_iter().chain(others).collect();
    if actions.is_empty() { "none".into() } else { actions.join("+") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_names_everything_that_a_change_sets() {
        assert_eq!(action(&Change::default()), "none");
        let change = Change { state: Some(RunState::Running), budget_hours: Some(3.0), priority: Some(1), per_minute: None };
        assert_eq!(action(&change), "resume+priority+budget");
    }
}
