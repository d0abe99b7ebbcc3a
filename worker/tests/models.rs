//! Where a worker's models come from: the home of a fleet, through a cache on this machine.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use engine::cache::Slot;
use engine::{Cache, Models};
use harness::push_model;
use proto::{Event, Job, LatentSearch, ModelRef, Params, What};
use queue::{Channel, Queue};
use store::{Runs, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::span;
use worker::{Config, Error, Working};

const LIMIT: Duration = Duration::from_secs(60);

/// A home with the bundled model, and an image, in folders.
struct Home {
    home: Store,
    cache: Cache,
    model: ModelRef,
    dir: tempfile::TempDir,
}

impl Home {
    async fn open() -> Home {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("data")).unwrap();
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../samples/images/bag_00_centred.png");
        fs::copy(sample, dir.path().join("data/bag.png")).unwrap();
        let model = push_model(dir.path(), "fashion32");
        let home = Store::open(dir.path().join("home").to_str().unwrap()).await.unwrap();
        let cache = Cache::new(dir.path().join("cache"), 1 << 30);
        Home { home, cache, model, dir }
    }

    /// A short job for the image.
    async fn job(&self, run: &str, model: &ModelRef) -> Job {
        let dataset = self.dir.path().join("data").to_str().unwrap().to_owned();
        let identity = Store::open(&dataset).await.unwrap().identity("bag.png").await.unwrap().unwrap();
        let params = Params { transform: None, latent: LatentSearch::Adam { steps: 2 }, seeds: 4, ..Params::paper() };
        Job {
            run: run.into(),
            image: "bag.png".into(),
            identity,
            dataset,
            class: 8,
            class_name: "Bag".into(),
            category: None,
            bbox: None,
            mask: None,
            model: model.name.clone(),
            model_digest: model.digest.clone(),
            params,
            seed: 1,
        }
    }

    /// A worker.
    async fn work(&self, queue: &Queue, shutdown: CancellationToken) -> Result<(), Error> {
        let config = Config {
            name: "worker".into(),
            devices: "cpu".parse().unwrap(),
            batch_images: 1,
            checkpoint_every: LIMIT,
            drain_after: None,
            max_runtime: None,
            record: None,
            version: "test".into(),
        };
        let models = Models::Home { home: self.home.clone(), cache: self.cache.clone() };
        let (working, _) = watch::channel(Working::default());
        let runs = Runs::Home(self.home.clone());
        worker::run(config, models, queue.clone(), runs, shutdown, working).await
    }

    fn damage(&self, place: &str) {
        let file = self.dir.path().join(place).join("generator.safetensors");
        let mut bytes = fs::read(&file).unwrap();
        bytes[5000] ^= 1;
        fs::write(file, bytes).unwrap();
    }
}

/// What this thread logs.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<String>>);

impl tracing::Subscriber for Logged {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut |_: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            *self.0.lock().unwrap() += &format!("{value:?}\n");
        });
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
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
        left = home.work(queue, CancellationToken::new()) => panic!("{left:?}"),
        result = tokio::time::timeout(LIMIT, result) => result.expect("a result"),
    }
}

#[tokio::test]
async fn who_waits_for_anothers_copy_says_so_and_leaves_when_asked() {
    let logged = Logged::default();
    let _here = tracing::subscriber::set_default(logged.clone());
    let home = Home::open().await;
    let Slot::Missing(_another) = home.cache.open(&home.model.digest).unwrap() else { panic!("nothing is there") };
    let (queue, shutdown) = (Queue::open("embedded:").await.unwrap(), CancellationToken::new());
    queue.publish(Channel::Jobs, home.job("run", &home.model).await.encode()).await.unwrap();
    let ask = async {
        while !logged.0.lock().unwrap().contains("another process copies the model") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        shutdown.cancel();
        Instant::now()
    };
    let both = async { tokio::join!(home.work(&queue, shutdown.clone()), ask) };
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
