//! A home with a model and a data set, a coordinator, and workers that compute nothing: they write what a worker writes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use client::api::{RunRequest, RunStatus};
use coordinator::Error;
use coordinator::http::auth::Gate;
use coordinator::notify::Notify;
use coordinator::service::{Config, Handle, Service};
use proto::keys::{Item, Marker};
use proto::{
    Alive, Event, Failure, FailureReason, History, Job, ObjectRef, Params, ResultRecord, RunState, SeedResult, What, hex_sha256,
    keys, sample,
};
use queue::{Channel, Queue};
use results::run::{read_json, write_failure};
use store::{Allowed, PutNew, Runs, Store};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const OPERATE: &str = "operate-token-of-the-test";
pub const VIEW: &str = "view-token-of-the-test";

pub struct World {
    pub dir: TempDir,
    pub home: Store,
    pub queue: Queue,
}

pub struct Acting {
    pub handle: Handle,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

/// Polls until there is something.
pub async fn wait_for<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(Instant::now() < end, "waited for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn gate() -> Gate {
    Gate::new(Some(OPERATE), Some(VIEW), b"secret")
}

pub fn config(home: &Store, queue: &Queue) -> Config {
    let (home, queue, version) = (home.clone(), queue.clone(), "test".into());
    let allowed = Allowed::default();
    Config { home, queue, allowed, window: 100, version, worker_hour_price: None, notify: Notify::nobody(), keep_runs: None }
}

impl World {
    /// With `images` in two classes.
    pub async fn new(images: usize) -> World {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("home/models/fashion32/model.json");
        std::fs::create_dir_all(model.parent().unwrap()).unwrap();
        std::fs::copy(harness::root().join("models/fashion32/model.json"), model).unwrap();
        let home = Store::open(dir.path().join("home").to_str().unwrap()).await.unwrap();
        let world = World { dir, home, queue: Queue::open("embedded:").await.unwrap() };
        (0..images).for_each(|i| world.add(&format!("{}/{i}.png", ["Bag", "Coat"][i % 2])));
        world
    }

    /// A home whose run has finished, and its coordinator. With `coats_fail` every second image has a failure.
    pub async fn finished(images: usize, coats_fail: bool) -> (World, Acting) {
        let world = World::new(images).await;
        let acting = world.finish(images, coats_fail).await;
        (world, acting)
    }

    pub async fn edit_model(&self, edit: impl FnOnce(&mut serde_json::Value)) {
        let key = "models/fashion32/model.json";
        let mut model = serde_json::from_slice(&self.home.get(key).await.unwrap()).unwrap();
        edit(&mut model);
        self.home.put(key, serde_json::to_vec(&model).unwrap()).await.unwrap();
    }

    /// Super-classes of the model's classes, which replace the bundled model's.
    pub async fn group(&self, super_class: impl Fn(&str) -> &'static str) {
        let of = |class: &serde_json::Value| super_class(class.as_str().unwrap());
        self.edit_model(|model| model["super_classes"] = model["classes"].as_array().unwrap().iter().map(of).collect()).await;
    }

    /// Adds an image to the data set.
    pub fn add(&self, image: &str) {
        let path = self.path("data").join(image);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "bytes").unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts a coordinator and submits the run.
    pub async fn submitted(&self) -> Acting {
        let acting = self.start().await;
        acting.handle.submit(self.request()).await.unwrap();
        acting
    }

    /// The coordinator of the run, whose `images` are all done.
    pub async fn finish(&self, images: usize, coats_fail: bool) -> Acting {
        let acting = self.submitted().await;
        self.done(&acting, images, coats_fail).await;
        acting
    }

    /// Does the last `n` jobs and waits for the end of the run.
    pub async fn done(&self, acting: &Acting, n: usize, coats_fail: bool) -> RunStatus {
        self.work(n, coats_fail).await;
        acting.finished().await
    }

    pub async fn start(&self) -> Acting {
        self.start_with(|config| config).await
    }

    /// Starts a coordinator with other settings.
    pub async fn start_with(&self, change: impl FnOnce(Config) -> Config) -> Acting {
        let (service, handle) = Service::new(change(config(&self.home, &self.queue)));
        let stop = CancellationToken::new();
        let (runtime, stopped) = (tokio::runtime::Handle::current(), stop.clone());
        let task = tokio::task::spawn_blocking(move || runtime.block_on(service.run(stopped)));
        wait_for("the lead", async || handle.leads().then_some(())).await;
        Acting { handle, stop, task }
    }

    pub fn request(&self) -> RunRequest {
        let data = self.path("data");
        RunRequest { params: Some(Params::fast()), ..RunRequest::new("r", data.to_str().unwrap(), "fashion32") }
    }

    pub fn results(&self) -> Store {
        Runs::Home(self.home.clone()).of("r").unwrap()
    }

    pub async fn record(&self, image: &str) -> ResultRecord {
        read_json(&self.results(), &keys::marker(image, Marker::Result)).await.unwrap()
    }

    pub async fn replace_record(&self, record: &ResultRecord) {
        let marker = keys::marker(&record.image, Marker::Result);
        self.results().put(&marker, serde_json::to_vec(record).unwrap()).await.unwrap();
    }

    /// A worker says that it has an image of the run.
    pub async fn beat(&self) {
        let alive = Alive { images: 1, run: "r".into(), ..Alive::default() };
        self.queue.publish(Channel::Events, Event::alive("w", alive).encode()).await.unwrap();
    }

    /// Does the next `n` jobs. An image of class Coat with a seed of the run's fails where `coats_fail`.
    pub async fn work(&self, n: usize, coats_fail: bool) {
        let mut jobs = self.queue.consume(Channel::Jobs, 1).await.unwrap();
        for _ in 0..n {
            let delivery = jobs.next().await.unwrap().unwrap();
            let job = Job::decode(delivery.payload()).unwrap();
            let results = self.results();
            let what = if coats_fail && job.class_name == "Coat" {
                let failure = Failure::of(&job, FailureReason::Diverged, "as it was told to".into());
                write_failure(&results, &failure).await.unwrap();
                What::Failed { reason: failure.reason.as_str().into(), message: failure.message }
            } else {
                let record = commit(&results, &job).await;
                let SeedResult { loss, l1, lpips, .. } = *record.best_seed();
                let stage_seconds = [("fetch".to_owned(), 0.25), ("latent_search".to_owned(), 0.75)].into();
                What::Succeeded { loss, seconds: 1.0, lane_steps: 1, l1, lpips, stage_seconds }
            };
            self.queue.publish(Channel::Events, Event::about(&job, "w", what).encode()).await.unwrap();
            delivery.ack().await.unwrap();
        }
    }
}

fn png(grey: impl Fn(u32, u32) -> u8) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let picture = image::ImageBuffer::from_fn(32, 32, |x, y| image::Luma([grey(x, y)]));
    picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// A picture whose grey tells the loss, curves, or some text.
fn item_content(item: Item, job: &Job, loss: f64) -> Vec<u8> {
    if item == Item::History {
        let curve = |from: f64| (0..20).map(|step| loss + from / f64::from(step + 1)).collect::<Vec<_>>();
        let (transform, latent, descent) = (curve(3.0), curve(2.0), vec![curve(1.0)]);
        return serde_json::to_vec(&History { transform, latent, descent, fine_tune: vec![] }).unwrap();
    }
    if !item.file().ends_with(".png") {
        return format!("{} of {} {}", item.file(), job.image, "x".repeat(100)).into_bytes();
    }
    png(|x, y| ((x * 8) as f64 / (1.0 + loss) + f64::from(y * 3)) as u8)
}

/// Writes a result as a worker does. The loss is the number in the image's name, or 100 with another seed than run 0 gives it.
pub async fn commit(results: &Store, job: &Job) -> ResultRecord {
    let number: f64 = job.image.chars().filter(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0.0);
    let loss = if job.seed == results::seeds::image_seed(0, &job.image) { number } else { 100.0 };
    let attempt = &hex_sha256(job.id().as_str().as_bytes())[..12];
    let mut objects = Vec::new();
    // As without fine-tuning, of an object that is a rectangle.
    for item in Item::ALL.into_iter().filter(|item| !matches!(item, Item::Mask | Item::Tuned | Item::Delta)) {
        let bytes = item_content(item, job, loss);
        objects.push(ObjectRef { file: item.file().into(), size: bytes.len() as u64, sha256: hex_sha256(&bytes) });
        results.put(&keys::item(&job.image, attempt, item), bytes).await.unwrap();
    }
    let seed =
        SeedResult { loss, inverted_loss: loss, l1: loss / 2.0, l2: loss / 4.0, lpips: loss / 8.0, class: None, transform: None };
    let result = sample::result(job, vec![seed]);
    let record = ResultRecord { lane_steps: 1, seconds: 1.0, attempt: attempt.into(), objects, ..result };
    let bytes = serde_json::to_vec_pretty(&record).unwrap();
    assert_eq!(results.put_new(&keys::marker(&job.image, Marker::Result), bytes).await.unwrap(), PutNew::Created);
    record
}

impl Acting {
    pub async fn status(&self) -> Option<RunStatus> {
        self.handle.runs().await.unwrap().into_iter().find(|r| r.name == "r")
    }

    /// Waits until the run's status is as wanted.
    pub async fn until(&self, what: &str, mut wanted: impl FnMut(&RunStatus) -> bool) -> RunStatus {
        wait_for(what, async || self.status().await.filter(|status| wanted(status))).await
    }

    pub async fn finished(&self) -> RunStatus {
        self.until("the end of the run", |status| status.state == RunState::Finished).await
    }

    pub async fn restart(self, world: &World) -> Acting {
        self.stop().await;
        world.start().await
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

pub async fn content(store: &Store) -> BTreeMap<String, Vec<u8>> {
    let mut content = BTreeMap::new();
    for object in store.list("").unwrap().all().await.unwrap() {
        content.insert(object.key.clone(), store.get(&object.key).await.unwrap().to_vec());
    }
    content
}

/// The lines of `objects.jsonl.gz`.
pub async fn lines<T: serde::de::DeserializeOwned>(store: &Store) -> Vec<T> {
    let bytes = store.get(keys::OBJECTS).await.unwrap();
    let text = std::io::read_to_string(flate2::read::GzDecoder::new(bytes.as_ref())).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The edit service's picture for the fields of a request, but for the image.
pub fn edited(fields: &[(String, String)]) -> Vec<u8> {
    let asked: Vec<u8> =
        fields.iter().filter(|(name, _)| name != "image").flat_map(|(n, v)| format!("{n}{v}").into_bytes()).collect();
    png(|x, y| asked.get((x + 32 * y) as usize % asked.len().max(1)).copied().unwrap_or(90))
}

/// An edit service whose pictures depend on the request. Returns its URL.
pub async fn serve_edits() -> String {
    use axum::Json;
    use axum::extract::{Path, Query};
    use axum::http::{HeaderMap, StatusCode, header};
    use axum::response::IntoResponse;
    use axum::routing::get;

    let known = |headers: &HeaderMap| headers.get("authorization").is_some_and(|v| *v == *format!("Bearer {OPERATE}"));
    let refuse = |status: StatusCode, why: &str| (status, Json(serde_json::json!({ "error": why }))).into_response();
    let picture =
        async move |headers: HeaderMap, Path(run): Path<String>, Query(fields): Query<Vec<(String, String)>>| match fields
            .iter()
            .find(|(name, _)| name == "class")
            .map(|(_, class)| class.as_str())
        {
            _ if !known(&headers) => refuse(StatusCode::UNAUTHORIZED, "show the token"),
            _ if run != "r" => refuse(StatusCode::NOT_FOUND, "no such run"),
            Some("Dog") => refuse(StatusCode::UNPROCESSABLE_ENTITY, "the model has no class \"Dog\""),
            Some("Script") => ([(header::CONTENT_TYPE, "text/html")], "<script>x</script>").into_response(),
            _ => ([(header::CONTENT_TYPE, "image/png")], edited(&fields)).into_response(),
        };
    let options = async || {
        Json(serde_json::json!({ "class": "Bag", "classes": ["Bag", "Coat"], "directions": ["pc1", "shift_x"], "tuned": true }))
    };
    let router =
        axum::Router::new().route("/v1/runs/{run}/edit", get(picture)).route("/v1/runs/{run}/edit/options", get(options));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}
