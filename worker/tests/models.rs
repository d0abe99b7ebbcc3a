//! Where a worker's models come from: the home of a fleet, through a cache on this machine.

use std::fs;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use engine::cache::Slot;
use engine::{Cache, Models};
use harness::{Home, push_model};
use proto::{Event, What};
use queue::{Channel, Queue};
use store::{Allowed, Runs};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use worker::{Config, Error, Working};

const LIMIT: Duration = Duration::from_secs(60);

fn cache(home: &Home) -> Cache {
    Cache { dir: home.dir.path().join("cache"), max_bytes: 1 << 30 }
}

async fn work(home: &Home, queue: &Queue, shutdown: CancellationToken) -> Result<(), Error> {
    work_on(home, queue, shutdown, Allowed::default()).await
}

/// `allowed`: data sets that a job may name.
async fn work_on(home: &Home, queue: &Queue, shutdown: CancellationToken, allowed: Allowed) -> Result<(), Error> {
    let config =
        Config { allowed, name: "worker".into(), devices: "cpu".parse().unwrap(), checkpoint_every: LIMIT, ..Config::default() };
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

/// A job names its data set itself: a foreign server would see signed requests of the worker.
#[tokio::test]
async fn a_worker_that_may_not_open_a_jobs_data_set_asks_nobody_gives_the_job_back_and_says_what_to_do() {
    let home = Home::open().await;
    let foreign = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    foreign.set_nonblocking(true).unwrap();
    let endpoint = format!("s3://bucket/data?endpoint=http://{}", foreign.local_addr().unwrap());
    let job = home.job("run", &home.model).await;
    let own = job.dataset.clone();
    let listed = Allowed::listed(&["/elsewhere".to_owned()]).unwrap();
    for (dataset, allowed) in [(endpoint, Allowed::without_list(&home.store, true)), (own, listed)] {
        let queue = Queue::open("embedded:").await.unwrap();
        let job = proto::Job { dataset: dataset.clone(), ..job.clone() };
        queue.publish(Channel::Jobs, job.encode()).await.unwrap();
        let left = work_on(&home, &queue, CancellationToken::new(), allowed);
        let error = tokio::time::timeout(LIMIT, left).await.expect("it leaves").expect_err("with an error");
        let why = proto::chain(&error);
        for part in ["not allowed", "BASIN_ALLOWED_DATA_SETS", dataset.split('?').next().unwrap()] {
            assert!(why.contains(part), "{why}");
        }
        let mut jobs = queue.consume(Channel::Jobs, 1).await.unwrap();
        let again = tokio::time::timeout(LIMIT, jobs.next()).await.expect("the job is there").unwrap().expect("a job");
        assert_eq!(proto::Job::decode(again.payload()).unwrap().dataset, dataset);
    }
    assert!(foreign.accept().is_err(), "the foreign server was asked");
}
