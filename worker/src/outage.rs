//! Outages of stores (*io*). An outage is nobody's attempt: what waits for a store is held, and is not counted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proto::{chain, keys};
use store::Store;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::metrics;

/// Longest wait for a store that is checked.
const ANSWER: Duration = Duration::from_secs(10);
/// Before the first check of a store; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Failures in a row of one piece of work although the store answers; after them the fault counts as the job's own.
const MOST_FAILURES: u32 = 13;

/// What can be away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The store of results and models.
    Store,
    /// The store of a data set.
    DataSet,
}

impl Place {
    pub const ALL: [Place; 2] = [Place::Store, Place::DataSet];

    /// The name in heartbeats, logs and `metrics::WAITING`.
    pub fn as_str(self) -> &'static str {
        match self {
            Place::Store => "store",
            Place::DataSet => "data set",
        }
    }
}

/// The places that the stages of a worker wait for now.
#[derive(Clone, Debug)]
pub struct Outages {
    away: watch::Sender<BTreeMap<Place, Away>>,
}

#[derive(Debug)]
struct Away {
    since: Instant,
    /// How many wait.
    waiting: usize,
}

impl Outages {
    pub fn none() -> Outages {
        Place::ALL.iter().for_each(|place| metrics::WAITING.record(0.0, &[("basin.place", place.as_str())]));
        Outages { away: watch::Sender::default() }
    }

    pub fn is_away(&self, place: Place) -> bool {
        self.away.borrow().contains_key(&place)
    }

    /// Name of a place that is away.
    pub fn waiting_for(&self) -> Option<&'static str> {
        self.away.borrow().keys().next().map(|place| place.as_str())
    }

    /// Waits until nobody waits for `place`.
    pub async fn is_back(&self, place: Place) {
        // It cannot fail: the sender is here.
        let _ = self.away.subscribe().wait_for(|away| !away.contains_key(&place)).await;
    }

    /// Does work at the store of the results, `home`, again and again while that is away. `None`: `stop` came first, and the work is
    /// not done.
    pub async fn persist<T>(
        &self,
        home: &Store,
        stop: &CancellationToken,
        mut work: impl AsyncFnMut() -> Result<T, store::Error>,
    ) -> Result<Option<T>, store::Error> {
        let mut wait = Wait::new(self, Place::Store, stop);
        loop {
            let error = match work().await {
                Ok(done) => return Ok(Some(done)),
                Err(error) if error.is_retryable() => error,
                Err(error) => return Err(error),
            };
            match wait.until_it_answers(&chain(&error), Check::Writes(home)).await {
                Then::Again => {}
                Then::Leave => return Ok(None),
                Then::GiveUp => return Err(error),
            }
        }
    }

    fn begin(&self, place: Place, error: &str) {
        let mut first = false;
        self.away.send_modify(|away| {
            let entry = away.entry(place).or_insert_with(|| Away { since: Instant::now(), waiting: 0 });
            first = entry.waiting == 0;
            entry.waiting += 1;
        });
        if first {
            let waiting_for = place.as_str();
            tracing::warn!(waiting_for, error, "a store is away: jobs are held, and no attempt is counted");
            metrics::WAITING.record(1.0, &[("basin.place", waiting_for)]);
        }
    }

    fn end(&self, place: Place) {
        let mut over = None;
        self.away.send_modify(|away| {
            let Some(entry) = away.get_mut(&place) else { return };
            entry.waiting -= 1;
            if entry.waiting == 0 {
                over = away.remove(&place).map(|entry| entry.since.elapsed());
            }
        });
        if let Some(lasted) = over {
            let waiting_for = place.as_str();
            tracing::info!(waiting_for, seconds = lasted.as_secs(), "the store is back");
            metrics::WAITING.record(0.0, &[("basin.place", waiting_for)]);
        }
    }
}

/// A small check of a store.
#[derive(Clone, Copy)]
pub enum Check<'a> {
    Reads(&'a Store),
    Writes(&'a Store),
}

impl Check<'_> {
    /// Whether the store answers, be it with a refusal: what that means is decided where the work is done.
    pub async fn answers(self) -> bool {
        let error = match self {
            Check::Reads(store) => store.exists(keys::RUN).await.err(),
            Check::Writes(store) => store.check_writable().await.err(),
        };
        !error.is_some_and(|error| error.is_retryable())
    }
}

/// What comes after a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The store answers: do the work again.
    Again,
    /// The worker is to leave.
    Leave,
    /// The store answers, and the work failed too often nevertheless: it is no outage.
    GiveUp,
}

/// One piece of work that waits for a place, over all of its tries. The outage is visible from the second failure on, or when a
/// check fails, and until this is dropped.
pub struct Wait {
    outages: Outages,
    place: Place,
    stop: CancellationToken,
    pause: Duration,
    /// In a row, while checks worked.
    failures: u32,
    visible: bool,
}

impl Wait {
    pub fn new(outages: &Outages, place: Place, stop: &CancellationToken) -> Wait {
        let (outages, stop) = (outages.clone(), stop.clone());
        Wait { outages, place, stop, pause: FIRST_PAUSE, failures: 0, visible: false }
    }

    /// Makes the outage visible.
    pub fn show(&mut self, error: &str) {
        if !std::mem::replace(&mut self.visible, true) {
            self.outages.begin(self.place, error);
        }
    }

    /// Waits after a failure until the place answers.
    pub async fn until_it_answers(&mut self, error: &str, check: Check<'_>) -> Then {
        self.failures += 1;
        if self.failures > 1 {
            self.show(error);
        }
        if self.failures > MOST_FAILURES {
            return Then::GiveUp;
        }
        let stop = self.stop.clone();
        loop {
            // Many workers lose a store at once, and must not all ask at once.
            let pause = self.pause.mul_f64(rand::random_range(0.5..1.0));
            self.pause = longer(self.pause);
            let look = async {
                tokio::time::sleep(pause).await;
                // A store that answers nothing is as good as away.
                tokio::time::timeout(ANSWER, check.answers()).await.unwrap_or(false)
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return Then::Leave,
                answers = look => if answers {
                    return Then::Again;
                }
            }
            self.failures = 0;
            self.show(error);
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if self.visible {
            self.outages.end(self.place);
        }
    }
}

/// The pause after `pause`.
fn longer(pause: Duration) -> Duration {
    (2 * pause).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use store::ErrorKind;

    use super::*;

    async fn home(dir: &tempfile::TempDir) -> Store {
        Store::open(&dir.path().to_string_lossy()).await.expect("a folder")
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        let pauses: Vec<Duration> = std::iter::successors(Some(FIRST_PAUSE), |pause| Some(longer(*pause))).take(12).collect();
        assert!(pauses.windows(2).all(|pair| pair[0] < pair[1] || pair[0] == LONGEST_PAUSE), "{pauses:?}");
        assert_eq!(pauses.last(), Some(&LONGEST_PAUSE));
    }

    #[tokio::test]
    async fn work_is_done_again_until_the_store_takes_it_and_the_outage_is_seen_meanwhile() {
        let dir = tempfile::tempdir().expect("writable");
        let (home, outages, stop) = (home(&dir).await, Outages::none(), CancellationToken::new());
        let (mut tries, mut seen) = (0, vec![]);
        let work = async || {
            tries += 1;
            seen.push(outages.waiting_for());
            if tries < 4 { Err(store::Error::example(ErrorKind::Unavailable)) } else { Ok(tries) }
        };
        assert_eq!(outages.persist(&home, &stop, work).await.expect("the store is back"), Some(4));
        assert_eq!(seen, [None, None, Some("store"), Some("store")]);
        assert_eq!(outages.waiting_for(), None);
    }

    #[tokio::test]
    async fn a_refusal_is_not_waited_out_and_a_worker_that_is_to_leave_does_not_wait() {
        let dir = tempfile::tempdir().expect("writable");
        let (home, outages, stop) = (home(&dir).await, Outages::none(), CancellationToken::new());
        let refused = outages.persist(&home, &stop, async || Err::<(), _>(store::Error::example(ErrorKind::Denied))).await;
        assert_eq!(refused.expect_err("a refusal").kind(), ErrorKind::Denied);
        stop.cancel();
        let left = outages.persist(&home, &stop, async || Err::<(), _>(store::Error::example(ErrorKind::Unavailable))).await;
        assert_eq!(left.expect("no refusal"), None);
    }

    #[tokio::test]
    async fn an_outage_ends_when_the_last_one_who_waits_is_done() {
        let (outages, stop) = (Outages::none(), CancellationToken::new());
        let [mut first, mut second, mut third] =
            [Place::Store, Place::Store, Place::DataSet].map(|place| Wait::new(&outages, place, &stop));
        [&mut first, &mut second, &mut third].into_iter().for_each(|wait| wait.show("away"));
        drop(first);
        assert!(outages.is_away(Place::Store));
        drop(second);
        outages.is_back(Place::Store).await;
        assert_eq!(outages.waiting_for(), Some("data set"));
        drop(third);
        assert_eq!(outages.waiting_for(), None);
    }
}
