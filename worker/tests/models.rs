//! Where a worker's models come from: the home of a fleet, through a cache on this machine.

use std::fs;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use engine::cache::Slot;
use engine::{Cache, Models};
use harness::{Home, push_model};
use proto::{Event, What};
use queue::{Channel, Queue};
use store::Runs;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use worker::{Config, Error, Working};

const LIMIT: Duration = Duration::from_secs(60);

fn cache(home: &Home) -> Cache {
    Cache { dir: home.dir.path().join("cache"), max_bytes: 1 << 30 }
}

async fn work(home: &Home, queue: &Queue, shutdown: CancellationToken) -> Result<(), Error> {
    let config = Config { name: "worker".into(), devices: "cpu".parse().unwrap(), checkpoint_every: LIMIT, ..Config::default() };
    let models = Models::Home { home: home.store.clone(), cache: cache(home) };
    let (working, _) = watch::channel(Working::default());
    let runs = Runs::Home(home.store.clone());
    worker::run(config, models, queue.clone(), runs, shutdown, working).await
}

/// Starts a worker, and waits until the run's image has a result. Nothing may fail, and the worker stays.
async fn succeeds(home: &Home, queue: &Queue, run: &str) {
    let result = async {
        let mut events = queue.consume(Channel::Events, 1).await.unwrap();
        while let Some(delivery) = events.next().await.unwrap() {
            let event = Event::decode(delivery.payload()).unwrap();
            delivery.ack().await.unwrap();
            match event.what {
                What::Failed { message, .. } => panic!("{message}"),
                What::Succeeded { .. } if event.run == run => return,
                _ => {}
            }
        }
    };
    tokio::select! {
        left = work(home, queue, CancellationToken::new()) => panic!("{left:?}"),
        result = tokio::time::timeout(LIMIT, result) => result.expect("a result"),
    }
}

#[tokio::test]
async fn who_waits_for_anothers_copy_says_so_and_leaves_when_asked() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(Mutex::new(log.reopen().unwrap())).finish();
    let _here = tracing::subscriber::set_default(subscriber);
    let home = Home::open().await;
    let Slot::Missing(_another) = cache(&home).open(&home.model.digest).unwrap() else { panic!("nothing is there") };
    let (queue, shutdown) = (Queue::open("embedded:").await.unwrap(), CancellationToken::new());
    queue.publish(Channel::Jobs, home.job("run", &home.model).await.encode()).await.unwrap();
    let ask = async {
        while !fs::read_to_string(log.path()).unwrap().contains("another process copies the model") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        shutdown.cancel();
        Instant::now()
    };
    let both = async { tokio::join!(work(&home, &queue, shutdown.clone()), ask) };
    let (left, asked) = tokio::time::timeout(LIMIT, both).await.expect("it says that it waits, and leaves when asked");
    left.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(10));
    let mut jobs = queue.consume(Channel::Jobs, 1).await.unwrap();
    let back = tokio::time::timeout(LIMIT, jobs.next()).await.expect("the job is back").unwrap().unwrap();
    assert_eq!(back.attempt(), 1);
}

#[tokio::test]
async fn a_model_that_is_damaged_in_the_home_fails_no_image_and_stops_no_other_run() {
    let home = Home::open().await;
    let other = push_model(home.dir.path(), "other");
    home.damage("home/models/fashion32");
    let queue = Queue::open("embedded:").await.unwrap();
    for (run, model) in [("damaged", &home.model), ("whole", &other)] {
        queue.publish(Channel::Jobs, home.job(run, model).await.encode()).await.unwrap();
    }
    succeeds(&home, &queue, "whole").await;
    push_model(home.dir.path(), "fashion32");
    succeeds(&home, &queue, "damaged").await;
}
