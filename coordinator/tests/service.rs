//! The service through its front door: a home in a folder, a queue in memory, workers that compute nothing.

use std::fmt::Debug;

use crate::world::{Acting, World, config, content, lines, wait_for};
use client::api::{Change, ClassStatus, RedriveRequest, RunRequest};
use coordinator::service::{Refusal, Service};
use harness::{Server, assert_contains};
use proto::keys::Marker;
use proto::{Control, KnownResult, RedriveRecord, RunState, Snapshot, keys};
use queue::Queue;
use results::manifest::{Manifest, ObjectEntry};
use results::run::read_json;
use results::seeds::image_seed;
use results::verify::verify;
use store::Store;
use tokio_util::sync::CancellationToken;

async fn redrive(acting: &Acting, wheres: &[&str], seed: Option<u64>) -> Result<String, Refusal> {
    let wheres = wheres.iter().map(|w| (*w).to_owned()).collect();
    acting.handle.redrive("r".into(), RedriveRequest { wheres, seed }).await
}

/// Why the request is invalid.
fn invalid<T: Debug>(answer: Result<T, Refusal>) -> String {
    match answer {
        Err(Refusal::Invalid(why)) => why,
        other => panic!("{other:?}"),
    }
}

fn losses(classes: &[ClassStatus]) -> Vec<(&str, u64, f64)> {
    classes.iter().map(|c| (c.class.as_str(), c.images, c.loss.expect("all have numbers"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_by_class_survive_a_restart_whatever_becomes_of_the_snapshot() {
    let world = World::new(7).await;
    let acting = world.start().await;
    assert!(acting.handle.submit(world.request()).await.unwrap().contains("7 images, 7 to be projected"));
    world.work(5, false).await;
    let before = acting.until("five results", |s| s.succeeded == 5 && s.unread == 0).await;
    let images: u64 = before.classes.iter().map(|c| c.images).sum();
    assert_eq!((before.classes.len(), images), (2, 5));
    acting.stop().await;

    let results = world.results();
    let whole = results.get(keys::SNAPSHOT).await.unwrap();
    assert_eq!(Snapshot::decode(&whole).unwrap().results.len(), 5);
    let damaged: Vec<u8> = whole.iter().enumerate().map(|(i, b)| if i == 20 { b ^ 1 } else { *b }).collect();
    let of_others = Snapshot { results: vec![KnownResult { job: 7, ..KnownResult::default() }] };
    let older = Snapshot::default().encode();
    for snapshot in [Some(damaged), Some(of_others.encode()), Some(older), None, Some(whole.to_vec())] {
        match snapshot {
            Some(bytes) => results.put(keys::SNAPSHOT, bytes).await.unwrap(),
            None => results.delete(keys::SNAPSHOT).await.unwrap(),
        }
        let acting = world.start().await;
        let after = acting.until("all that is there", |s| s.unread == 0).await;
        assert_eq!((after.skipped, &after.classes), (5, &before.classes));
        acting.stop().await;
        assert_eq!(results.get(keys::SNAPSHOT).await.unwrap(), whole, "what was read is written down");
    }

    // What the snapshot covers is not read again.
    let lister = results.list(keys::IMAGES).unwrap();
    for object in lister.all().await.unwrap().iter().filter(|o| o.key.ends_with(Marker::Result.file())) {
        results.put(&object.key, "unreadable").await.unwrap();
    }
    let acting = world.start().await;
    let after = acting.until("the run", |_| true).await;
    assert_eq!((after.unread, &after.classes), (0, &before.classes));
}

#[tokio::test(flavor = "multi_thread")]
async fn results_are_projected_again_with_another_seed_and_failures_as_they_are() {
    let (world, acting) = World::finished(6, true).await;
    let status = acting.finished().await;
    assert_eq!((status.succeeded, status.failed, losses(&status.classes)), (3, 3, vec![("Bag", 3, 2.0)]));

    assert!(invalid(redrive(&acting, &["loss>1"], None).await).contains("--seed"));
    // What cannot be done now can be asked for again.
    std::fs::rename(world.path("data"), world.path("away")).unwrap();
    invalid(redrive(&acting, &[], None).await);
    // Nothing has changed by that, nor by what selects nothing.
    std::fs::rename(world.path("away"), world.path("data")).unwrap();
    let refusal = redrive(&acting, &["image=Bag/*"], None).await.unwrap_err();
    let nothing = "no image of run r matches; nothing changed";
    assert!(matches!(&refusal, Refusal::Conflict(why) if why.contains(nothing)), "{refusal:?}");
    let acting = acting.restart(&world).await;
    assert_eq!(acting.status().await.unwrap().state, RunState::Finished);
    assert!(world.results().exists(keys::MANIFEST).await.unwrap());
    // Some of the failures, as they are.
    assert_contains(&redrive(&acting, &["image=Coat/1*", "image=Coat/3*"], None).await.unwrap(), &[" 2 to be projected"]);
    let status = world.done(&acting, 2, false).await;
    assert_eq!((status.skipped + status.succeeded, status.failed), (5, 1));
    assert_eq!(losses(&status.classes), [("Coat", 2, 2.0), ("Bag", 3, 2.0)]);
    assert_eq!(world.record("Coat/1.png").await.seed, image_seed(0, "Coat/1.png"));

    // Results, with another seed. The coordinator dies before a worker starts, and the next one plans the same.
    assert_contains(&redrive(&acting, &["class=Bag,loss>=2"], Some(5)).await.unwrap(), &[" 2 to be projected"]);
    let results = world.results();
    // The retry is on record, too; with the seed that its images have.
    let record: RedriveRecord = read_json(&results, &keys::redrive(1)).await.unwrap();
    assert_eq!((record.generation, record.seed, record.images.len()), (1, 0, 2));
    assert_eq!((world.record("Coat/1.png").await.generation, world.record("Bag/0.png").await.generation), (1, 0));
    let record: RedriveRecord = read_json(&results, &keys::redrive(2)).await.unwrap();
    assert_eq!((record.seed, record.images), (5, vec!["Bag/2.png".to_owned(), "Bag/4.png".to_owned()]));
    assert!(!results.exists(&keys::marker("Bag/2.png", Marker::Result)).await.unwrap());
    let acting = acting.restart(&world).await;
    acting.until("the plan", |s| s.images == 6 && s.queued + s.waiting == 2).await;
    let status = world.done(&acting, 2, false).await;
    let record = world.record("Bag/2.png").await;
    assert_eq!((record.seed, record.best_seed().loss), (image_seed(5, "Bag/2.png"), 100.0));
    assert_eq!(losses(&status.classes), [("Coat", 2, 2.0), ("Bag", 3, 200.0 / 3.0)]);

    // The same once more changes nothing: they have that seed.
    let refusal = redrive(&acting, &["class=Bag,loss>=2"], Some(5)).await.unwrap_err();
    assert!(matches!(refusal, Refusal::Conflict(_)), "{refusal:?}");
    let found = verify(&results, true).await.unwrap();
    assert_eq!((found.succeeded, found.failed, found.problems), (5, 1, vec![]));

    // A failure with another seed; and nothing of this without the record of it.
    assert_contains(&redrive(&acting, &["reason=diverged"], Some(6)).await.unwrap(), &[" 1 to be projected"]);
    world.done(&acting, 1, false).await;
    assert_eq!(world.record("Coat/5.png").await.seed, image_seed(6, "Coat/5.png"));
    assert_eq!(verify(&results, true).await.unwrap().problems, Vec::<String>::new());
    results.delete(&keys::redrive(2)).await.unwrap();
    let problems = verify(&results, false).await.unwrap().problems;
    assert!(problems.len() == 2 && problems.iter().all(|p| p.contains("Bag/") && p.contains("another seed")), "{problems:?}");
}

/// A process died after it had written down that failures are retried, and had deleted nothing. And a failure of the first try is
/// written when the second is under way: the image is not finished by it.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_was_written_down_is_ended_by_the_next_start_and_a_late_failure_ends_no_image() {
    let (world, acting) = World::finished(4, true).await;
    acting.stop().await;
    let results = world.results();
    let images = vec!["Coat/1.png".to_owned()];
    let record = RedriveRecord { format: 1, wheres: vec!["image=Coat/1*".into()], seed: 0, images, generation: 1 };
    results.put(&keys::redrive(1), serde_json::to_vec(&record).unwrap()).await.unwrap();
    world.home.put(&keys::control("r"), serde_json::to_vec(&Control::default()).unwrap()).await.unwrap();
    let marker = keys::marker("Coat/1.png", Marker::Failure);
    let late = results.get(&marker).await.unwrap();

    let acting = world.start().await;
    acting.until("the plan", |s| s.images == 4 && s.queued + s.waiting == 1 && s.failed == 1).await;
    assert!(!results.exists(&marker).await.unwrap());
    results.put(&marker, late).await.unwrap();
    let acting = acting.restart(&world).await;
    acting.until("the same plan", |s| s.images == 4 && s.queued + s.waiting == 1 && s.failed == 1).await;
    world.done(&acting, 1, false).await;
    assert_eq!(world.record("Coat/1.png").await.generation, 1);
    let found = verify(&results, true).await.unwrap();
    assert_eq!((found.succeeded, found.failed, found.problems), (3, 1, vec![]));
}

/// A process died after it had written down which images have another seed, and had deleted nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_that_was_written_down_is_ended_by_the_next_start() {
    let (world, acting) = World::finished(4, true).await;
    acting.stop().await;
    let results = world.results();
    let images = ["Bag/0.png", "Coat/1.png"].map(String::from).to_vec();
    let record = RedriveRecord { format: 1, wheres: vec!["loss>=0".into()], seed: 7, images, generation: 0 };
    results.put(&keys::redrive(1), serde_json::to_vec(&record).unwrap()).await.unwrap();
    world.home.put(&keys::control("r"), serde_json::to_vec(&Control::default()).unwrap()).await.unwrap();

    let acting = world.start().await;
    acting.until("the plan", |s| s.images == 4 && s.queued + s.waiting == 2 && s.failed == 1).await;
    world.done(&acting, 2, false).await;
    for image in ["Bag/0.png", "Coat/1.png"] {
        assert_eq!(world.record(image).await.seed, image_seed(7, image));
    }
    let found = verify(&results, true).await.unwrap();
    assert_eq!((found.succeeded, found.failed, found.problems), (3, 1, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_run_gets_its_tables_and_still_tells_its_counts_after_a_restart() {
    let world = World::new(5).await;
    let acting = world.submitted().await;
    world.work(3, true).await;
    acting.until("three", |s| s.succeeded + s.failed == 3).await;
    // What a worker left that released its job.
    world.results().put(&keys::checkpoint("Bag/4.png"), "state").await.unwrap();
    let cancel = Change { state: Some(RunState::Cancelled), ..Change::default() };
    acting.handle.change("r".into(), cancel).await.unwrap();
    let tables = async || world.results().exists(keys::MANIFEST).await.unwrap().then_some(());
    wait_for("the tables", tables).await;
    let before = acting.status().await.unwrap();
    let acting = acting.restart(&world).await;
    let after = acting.status().await.unwrap();
    assert_eq!((after.state, after.images, after.waiting), (RunState::Cancelled, 5, 2));
    assert_eq!((after.succeeded, after.failed), (before.succeeded, before.failed));
    assert_eq!((after.succeeded + after.failed, &after.classes), (3, &before.classes));
    acting.stop().await;

    // A coordinator that died before it wrote them writes them at the next start.
    world.results().delete(keys::MANIFEST).await.unwrap();
    let acting = world.start().await;
    wait_for("the tables", tables).await;
    assert_eq!(acting.until("the counts", |s| s.images == 5).await.state, RunState::Cancelled);
    assert!(!world.results().exists(&keys::checkpoint("Bag/4.png")).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_without_its_data_set_is_shown_tried_again_and_can_be_cancelled() {
    let world = World::new(3).await;
    let acting = world.submitted().await;
    acting.stop().await;
    std::fs::rename(world.path("data"), world.path("away")).unwrap();
    let acting = world.start().await;
    assert_contains(&acting.until("the problem", |s| s.problem.is_some()).await.problem.unwrap(), &["data"]);
    let cancel = Change { state: Some(RunState::Cancelled), ..Change::default() };
    assert_eq!(acting.handle.change("r".into(), cancel).await.unwrap().state, RunState::Cancelled);
    acting.stop().await;
    let control: Control = read_json(&world.home, &keys::control("r")).await.unwrap();
    assert_eq!(control.state, RunState::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_request_is_refused_before_anything_is_written() {
    let world = World::new(2).await;
    let acting = world.start().await;
    let good = world.request();
    let bad = [
        (RunRequest { limit: Some(0), ..good.clone() }, "limit"),
        (RunRequest { dataset: "data".into(), ..good.clone() }, "absolute"),
        (RunRequest { name: "../r".into(), ..good.clone() }, "name"),
        (RunRequest { model: "none".into(), ..good.clone() }, "no model none"),
        (RunRequest { per_minute: Some(f64::NAN), ..good.clone() }, "per_minute"),
        (RunRequest { dataset: world.path("home").to_str().unwrap().into(), ..good.clone() }, "lies inside"),
    ];
    for (request, why) in bad {
        assert_contains(&invalid(acting.handle.submit(request).await), &[why]);
    }
    assert_eq!(content(&world.home).await.keys().collect::<Vec<_>>(), [keys::LEADER, "models/fashion32/model.json"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_whose_super_classes_are_not_one_for_each_class_is_refused() {
    let world = World::new(2).await;
    let acting = world.start().await;
    for (names, why) in [(vec!["thing"; 9], "has 9 names for 10 classes"), (vec![""; 10], "has an empty name")] {
        world.edit_model(|model| model["super_classes"] = names.into()).await;
        assert_contains(&invalid(acting.handle.submit(world.request()).await), &["super_classes", why]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_run_has_a_manifest_of_everything_and_tells_its_errors_after_a_restart() {
    let (world, acting) = World::finished(3, false).await;
    let before = acting.finished().await;
    acting.stop().await;

    let results = world.results();
    let manifest: Manifest = read_json(&results, keys::MANIFEST).await.unwrap();
    let names: Vec<&str> = manifest.objects.iter().map(|o| o.key.as_str()).collect();
    assert_eq!(names, ["run.json", "results.csv", "results.parquet", keys::OBJECTS, "summary.json", "report.html"]);
    let lines = lines(&results).await;
    // A marker and six objects of each image.
    assert_eq!((lines.len(), manifest.images.succeeded, manifest.run.name.as_str()), (21, 3, "r"));
    for object in manifest.objects.iter().chain(&lines) {
        let bytes = results.get(&object.key).await.unwrap();
        assert_eq!(*object, ObjectEntry::new(object.key.clone(), &bytes));
    }
    let acting = world.start().await;
    assert_eq!(acting.status().await.unwrap().classes, before.classes);
    acting.stop().await;

    // A run whose order cannot be read is left alone, and shown; it stops nothing else.
    let home = &world.home;
    let control = home.get(&keys::control("r")).await.unwrap();
    home.put(&keys::control("r"), r#"{"state":"canc"#).await.unwrap();
    let acting = world.start().await;
    assert_contains(&acting.status().await.unwrap().problem.unwrap(), &["control/r.json is damaged"]);
    acting.stop().await;
    home.put(&keys::control("r"), control).await.unwrap();

    results.put("results.csv", "altered").await.unwrap();
    assert_eq!(verify(&results, true).await.unwrap().problems, ["results.csv differs from its entry in manifest.json"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_without_conditional_replacement_is_refused() {
    let server = Server::start_careless().await;
    let home = Store::open(&server.url("bucket/home", "anonymous=true")).await.unwrap();
    let queue = Queue::open("embedded:").await.unwrap();
    let (service, _handle) = Service::new(config(&home, &queue));
    let error = service.run(CancellationToken::new()).await.unwrap_err().to_string();
    assert_contains(&error, &["bucket/home", "If-Match", "basin doctor"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_where_two_can_create_a_key_is_refused() {
    let server = Server::start_racy().await;
    let home = Store::open(&server.url("bucket/home", "anonymous=true")).await.unwrap();
    let queue = Queue::open("embedded:").await.unwrap();
    let (service, handle) = Service::new(config(&home, &queue));
    let error = service.run(CancellationToken::new()).await.unwrap_err().to_string();
    assert!(!handle.leads());
    assert_contains(&error, &["bucket/home", "basin doctor"]);
    assert_eq!(home.list("").unwrap().all().await.unwrap(), []);
}
