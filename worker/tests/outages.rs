//! Stores that are away: an outage is nobody's attempt.

use std::fs;
use std::time::Duration;

use engine::{Cache, Models};
use harness::{Home, S3, Weather};
use proto::{Alive, Event, Job, What};
use queue::{Channel, Consumer, Queue};
use store::{Runs, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use worker::{Config, Working};

const LIMIT: Duration = Duration::from_secs(120);

/// Reads events until `wanted` takes one. Nothing may fail.
async fn until(events: &mut Consumer, wanted: impl Fn(&What) -> bool) {
    let reads = async {
        while let Some(delivery) = events.next().await.unwrap() {
            let event = Event::decode(delivery.payload()).unwrap();
            delivery.ack().await.unwrap();
            if let What::Failed { message, .. } = &event.what {
                panic!("{message}");
            }
            if wanted(&event.what) {
                return;
            }
        }
        panic!("the queue is closed");
    };
    tokio::time::timeout(LIMIT, reads).await.expect("the event comes");
}

fn waits_for(place: &str) -> impl Fn(&What) -> bool {
    move |what| matches!(what, What::Alive(Alive { waiting_for: Some(found), .. }) if found == place)
}

fn succeeded(what: &What) -> bool {
    matches!(what, What::Succeeded { .. })
}

/// A worker for `job`, whose first counted failure makes it a dead letter, while `play` sees its events.
async fn work(home: &Store, cache: Cache, job: Job, play: impl AsyncFnOnce(&mut Consumer)) {
    let queue = Queue::open("embedded:?delivery_limit=1").await.unwrap();
    queue.publish(Channel::Jobs, job.encode()).await.unwrap();
    let mut events = queue.consume(Channel::Events, 1).await.unwrap();
    let config = Config { name: "worker".into(), devices: "cpu".parse().unwrap(), checkpoint_every: LIMIT, ..Config::default() };
    let (models, runs) = (Models::Home { home: home.clone(), cache }, Runs::Home(home.clone()));
    let (working, _) = watch::channel(Working::default());
    let shutdown = CancellationToken::new();
    let worked = worker::run(config, models, queue.clone(), runs, shutdown.clone(), working);
    let played = async {
        play(&mut events).await;
        shutdown.cancel();
    };
    let (worked, ()) = tokio::join!(worked, played);
    worked.unwrap();
    assert_eq!(queue.depth(Channel::DeadLetters).await.unwrap(), 0);
}

fn cache(home: &Home) -> Cache {
    Cache { dir: home.dir.path().join("cache"), max_bytes: 1 << 30 }
}

#[test]
fn a_data_set_that_is_away_is_waited_for_and_seen_in_the_heartbeat() {
    // Before the runtime of this test: it has one of its own.
    let s3 = S3::start(5);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let home = Home::open().await;
        let dataset = s3.url("data");
        let data = Store::open(&dataset).await.unwrap();
        data.put("bag.png", fs::read(home.path("data/bag.png")).unwrap()).await.unwrap();
        let identity = data.identity("bag.png").await.unwrap().unwrap();
        let job = Job { dataset, identity, ..home.job("run", &home.model).await };
        s3.set(Weather::Away);
        work(&home.store, cache(&home), job, async |events: &mut Consumer| {
            until(events, waits_for("data set")).await;
            s3.set(Weather::Fair);
            until(events, succeeded).await;
        })
        .await;
    });
}

#[test]
fn a_result_is_held_until_the_store_takes_it() {
    let s3 = S3::start(6);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let home = Home::open().await;
        let bucket = Store::open(&s3.url("home")).await.unwrap();
        for object in home.store.list("").unwrap().all().await.unwrap() {
            bucket.put(&object.key, home.store.get(&object.key).await.unwrap()).await.unwrap();
        }
        let job = home.job("run", &home.model).await;
        work(&bucket, cache(&home), job, async |events: &mut Consumer| {
            until(events, |what| *what == What::Started).await;
            s3.set(Weather::Away);
            until(events, waits_for("store")).await;
            s3.set(Weather::Fair);
            until(events, succeeded).await;
        })
        .await;
    });
}
