//! Outages of the store and of the broker (*io*): a state that people see, and that ends by itself.

use std::time::{Duration, Instant};

use crate::metrics;
use client::api::Outage;
use proto::chain;
use queue::Queue;
use store::Store;
use tokio::sync::watch;

/// How often store and broker are looked at.
const EVERY: Duration = Duration::from_secs(3);
/// A store that has not answered for this long is away.
const PATIENCE: Duration = Duration::from_secs(10);
/// No object has this key. That the store says so is enough.
const PROBE: &str = "basin-outage-check";

pub(super) const STORE: &str = "store";
const BROKER: &str = "broker";

/// An outage that goes on.
#[derive(Clone, Debug, PartialEq)]
pub struct Ongoing {
    pub what: &'static str,
    /// For people.
    pub why: String,
    pub since: Instant,
}

impl Ongoing {
    pub(super) fn show(&self) -> Outage {
        Outage { what: self.what.to_owned(), why: self.why.clone(), seconds: self.since.elapsed().as_secs_f64() }
    }
}

/// How long the store has been away.
pub(super) fn store_away(outages: &[Ongoing]) -> Option<Duration> {
    outages.iter().find(|outage| outage.what == STORE).map(|outage| outage.since.elapsed())
}

/// Looks at store and broker at intervals, until it is dropped.
pub(super) async fn look(home: Store, queue: Queue, outages: watch::Sender<Vec<Ongoing>>) {
    loop {
        // An outage began at the latest when the look did that found it.
        let looked = Instant::now();
        let found = [(STORE, trouble(&home).await), (BROKER, queue.trouble())];
        let before = outages.borrow().clone();
        let now = next(&before, found, looked);
        tell(&before, &now);
        let seconds = |what| now.iter().find(|outage| outage.what == what).map_or(0.0, |o| o.since.elapsed().as_secs_f64());
        metrics::observe_outages([STORE, BROKER].map(|what| (what, seconds(what))).into());
        outages.send_if_modified(|state| std::mem::replace(state, now) != before);
        tokio::time::sleep(EVERY).await;
    }
}

/// Why the store cannot be used now; `None`: it answers, even if only to refuse.
pub(super) async fn trouble(home: &Store) -> Option<String> {
    match tokio::time::timeout(PATIENCE, home.exists(PROBE)).await {
        Ok(Err(error)) if error.is_retryable() => Some(chain(&error)),
        Ok(_) => None,
        Err(_) => Some(format!("{} has not answered for {} s", home.url(), PATIENCE.as_secs())),
    }
}

/// The outages that go on after a look. Pure.
fn next(before: &[Ongoing], found: [(&'static str, Option<String>); 2], looked: Instant) -> Vec<Ongoing> {
    let since = |what| before.iter().find(|outage| outage.what == what).map_or(looked, |outage| outage.since);
    found.into_iter().filter_map(|(what, why)| Some(Ongoing { what, why: why?, since: since(what) })).collect()
}

fn tell(before: &[Ongoing], now: &[Ongoing]) {
    let among = |outages: &[Ongoing], what| outages.iter().any(|outage| outage.what == what);
    for Ongoing { what, why, .. } in now.iter().filter(|outage| !among(before, outage.what)) {
        tracing::warn!(what, why, "an outage has begun; it is waited out");
    }
    for Ongoing { what, since, .. } in before.iter().filter(|outage| !among(now, outage.what)) {
        tracing::info!(what, seconds = since.elapsed().as_secs(), "the outage has ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_keeps_its_beginning_and_ends_with_its_reason() {
        let began = Instant::now();
        let why = |text: &str| Some(text.to_owned());
        let first = next(&[], [(STORE, why("silent")), (BROKER, None)], began);
        assert_eq!(first, [Ongoing { what: STORE, why: "silent".into(), since: began }]);
        let later = began + Duration::from_secs(7);
        let second = next(&first, [(STORE, why("refuses")), (BROKER, why("disk"))], later);
        let broker = Ongoing { what: BROKER, why: "disk".into(), since: later };
        assert_eq!(second, [Ongoing { what: STORE, why: "refuses".into(), since: began }, broker.clone()]);
        assert_eq!(next(&second, [(STORE, None), (BROKER, why("disk"))], later), [broker]);
        assert!(store_away(&second).is_some() && store_away(&[]).is_none());
    }
}
