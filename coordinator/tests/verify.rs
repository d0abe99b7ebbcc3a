//! What `basin verify` finds in runs that were whole once.

use crate::world::{Acting, World, content};
use client::api::RedriveRequest;
use harness::{Auth, Server};
use proto::keys::{Item, Marker};
use proto::{RedriveRecord, keys};
use results::verify::verify;
use store::Store;

/// A finished run: Bag/0, Bag/2 and Bag/4 have results, Coat/1, Coat/3 and Coat/5 failures.
async fn scene() -> (World, Acting, Store) {
    let (world, acting) = World::finished(6, true).await;
    let results = world.results();
    assert_eq!(problems(&results, true).await, Vec::<String>::new());
    (world, acting, results)
}

async fn problems(results: &Store, deep: bool) -> Vec<String> {
    verify(results, deep).await.unwrap().problems
}

/// Each part is of another problem, and there is no further one.
fn assert_problems(mut problems: Vec<String>, parts: &[&str]) {
    let all = problems.clone();
    for part in parts {
        let at = problems.iter().position(|problem| problem.contains(part));
        problems.remove(at.unwrap_or_else(|| panic!("no {part:?} in {all:#?}")));
    }
    assert_eq!(problems, Vec::<String>::new());
}

fn result(image: &str) -> String {
    keys::marker(image, Marker::Result)
}

fn failure(image: &str) -> String {
    keys::marker(image, Marker::Failure)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_is_named_and_hides_nothing_else() {
    let (world, acting, results) = scene().await;
    acting.stop().await;
    let record = world.record("Bag/2.png").await;
    results.delete(&keys::item("Bag/2.png", &record.attempt, Item::Target)).await.unwrap();
    results.put(&result("Bag/0.png"), "{").await.unwrap();
    results.put(&failure("Coat/1.png"), "").await.unwrap();
    let mut expected = vec![
        "images/Bag/0.png/result.json is damaged",
        "target.png of \"Bag/2.png\" is missing",
        "images/Coat/1.png/failure.json is damaged",
    ];
    assert_problems(problems(&results, false).await, &expected);
    assert_problems(problems(&results, true).await, &expected);

    let redrive = RedriveRecord { format: 1, wheres: vec![], seed: 7, images: vec!["Bag/2.png".into()], generation: 0 };
    results.put(&keys::redrive(1), serde_json::to_vec(&redrive).unwrap()).await.unwrap();
    let seed = "the result of \"Bag/2.png\" has another seed";
    assert_problems(problems(&results, false).await, &[&expected[..], &[seed]].concat());
    results.put(&keys::redrive(2), "{").await.unwrap();
    results.put(&keys::redrive(3), "[]").await.unwrap();
    results.put(keys::MANIFEST, "{}").await.unwrap();
    for (from, to) in [(result("Bag/2.png"), result("Bag/4.png")), (failure("Coat/5.png"), failure("Coat/3.png"))] {
        results.put(&to, results.get(&from).await.unwrap()).await.unwrap();
    }
    expected.extend([
        "redrives/000002.json is damaged",
        "redrives/000003.json is damaged",
        "manifest.json is damaged",
        "images/Bag/4.png/result.json is the record of another image, \"Bag/2.png\"",
        "at \"Bag/4.png\" left objects",
        "images/Coat/3.png/failure.json is the record of another image, \"Coat/5.png\"",
    ]);
    assert_problems(problems(&results, false).await, &expected);
    assert_problems(problems(&results, true).await, &expected);
    results.put(keys::RUN, "{").await.unwrap();
    assert_problems(problems(&results, false).await, &["run.json is damaged"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_looked_at_is_an_error() {
    let (world, acting, results) = scene().await;
    acting.stop().await;
    std::fs::rename(world.path("data"), world.path("away")).unwrap();
    assert!(verify(&results, true).await.is_err());
    let server = Server::start(Auth::Anonymous).await;
    let silent = Store::open(&server.url("bucket/r", "anonymous=true")).await.unwrap();
    drop(server);
    assert!(verify(&silent, true).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn results_are_compared_with_the_tables() {
    let (world, acting, results) = scene().await;
    // A digit of a result.
    let key = result("Bag/2.png");
    let bytes = results.get(&key).await.unwrap();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let altered = text.replacen("\"loss\": 2.0", "\"loss\": 1.0", 1);
    assert_ne!(altered, text);
    results.put(&key, altered).await.unwrap();
    assert_eq!(problems(&results, false).await, Vec::<String>::new());
    assert_problems(problems(&results, true).await, &["images/Bag/2.png/result.json differs from its line in objects.jsonl.gz"]);
    results.put(&key, bytes.clone()).await.unwrap();

    // A marker that is gone.
    results.delete(&key).await.unwrap();
    let gone = [
        "\"Bag/2.png\" has neither",
        "at \"Bag/2.png\" left objects",
        "manifest.json counts 3 results and 3 failures",
        "images/Bag/2.png/result.json is missing",
    ];
    assert_problems(problems(&results, true).await, &gone);
    assert_problems(problems(&results, false).await, &gone[..3]);
    results.put(&key, bytes).await.unwrap();

    // Results that came after the tables: in the place of a failure, and of an image that they do not know.
    let mut tables = content(&results).await;
    tables.retain(|key, _| !key.contains('/'));
    world.add("Bag/6.png");
    let again = RedriveRequest { wheres: vec!["image=Coat/1.png".into()], seed: None };
    acting.handle.redrive("r".into(), again).await.unwrap();
    assert!(!problems(&results, true).await.iter().any(|p| p.contains("tables")));
    world.done(&acting, 2, false).await;
    acting.stop().await;
    assert_eq!(problems(&results, true).await, Vec::<String>::new());
    for (key, bytes) in tables {
        results.put(&key, bytes).await.unwrap();
    }
    assert_problems(
        problems(&results, true).await,
        &[
            "manifest.json counts 3 results and 3 failures",
            "images/Coat/1.png/result.json is not in objects.jsonl.gz",
            "images/Bag/6.png/result.json is not in objects.jsonl.gz",
        ],
    );

    // The lines themselves.
    let lines = results.get(keys::OBJECTS).await.unwrap();
    results.put(keys::OBJECTS, lines.slice(..lines.len() / 2)).await.unwrap();
    let found = problems(&results, true).await;
    assert!(found.contains(&"objects.jsonl.gz differs from its entry in manifest.json".to_owned()), "{found:#?}");
    assert!(found.iter().any(|p| p.starts_with("objects.jsonl.gz is damaged")), "{found:#?}");
    results.delete(keys::OBJECTS).await.unwrap();
    assert_problems(problems(&results, true).await, &["manifest.json counts", "objects.jsonl.gz is missing"]);
}
