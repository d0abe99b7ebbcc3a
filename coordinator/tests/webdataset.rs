//! An export, read back.

use std::collections::BTreeMap;
use std::io::Read;

use crate::world::{World, content, lines};
use harness::{Auth, Server, assert_contains};
use proto::keys::Item;
use proto::{ResultRecord, hex_sha256, keys};
use results::manifest::{Manifest, ObjectEntry};
use results::run::{read_json, read_run};
use results::summary::Counts;
use results::tables::write_tables;
use results::webdataset::{Cut, Exported, export};
use serde::Deserialize;
use store::Store;

async fn open(world: &World, folder: &str) -> Store {
    Store::open(world.path(folder).to_str().unwrap()).await.unwrap()
}

/// Five images with results, and a place for exports.
async fn scene() -> (World, Store) {
    let (world, acting) = World::finished(5, false).await;
    acting.stop().await;
    let out = open(&world, "export").await;
    (world, out)
}

fn members(shard: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(shard);
    let member = |entry: std::io::Result<tar::Entry<&[u8]>>| {
        let mut entry = entry.unwrap();
        assert_eq!((entry.header().mtime().unwrap(), entry.header().as_ustar().is_some()), (0, true));
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (entry.path().unwrap().to_str().unwrap().to_owned(), bytes)
    };
    archive.entries().unwrap().map(member).collect()
}

#[derive(Deserialize)]
struct Line {
    #[serde(flatten)]
    object: ObjectEntry,
    shard: String,
    member: String,
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_holds_every_result_and_is_the_same_each_time() {
    let (world, out) = scene().await;
    let results = world.results();
    let pairs = Cut { samples: Some(2), ..Cut::default() };
    let exported = export(&results, &out, pairs).await.unwrap();
    let first = content(&out).await;
    assert_eq!(
        first.keys().collect::<Vec<_>>(),
        ["export.json", "manifest.json", "objects.jsonl.gz", "shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
    );
    let bytes = first.iter().filter(|(key, _)| key.ends_with(".tar")).map(|(_, bytes)| bytes.len() as u64).sum();
    let images = Counts { planned: Some(5), total: 5, succeeded: 5, failed: 0 };
    assert_eq!(exported, Exported { shards: 3, bytes, images, ended: Some(true) });
    assert_eq!(exported.caveat(), None);

    let shards: BTreeMap<&str, BTreeMap<String, Vec<u8>>> =
        first.iter().filter(|(key, _)| key.ends_with(".tar")).map(|(key, bytes)| (key.as_str(), members(bytes))).collect();
    let last = &shards["shard-000002.tar"];
    let ends = ["generated.png", "inverted.png", "json", "safetensors", "target.png", "transformed.png"];
    assert_eq!(last.keys().cloned().collect::<Vec<_>>(), ends.map(|end| format!("Coat/3.{end}")));
    let record: ResultRecord = serde_json::from_slice(&last["Coat/3.json"]).unwrap();
    assert_eq!(record, world.record("Coat/3.png").await);
    let lines: Vec<Line> = lines(&out).await;
    assert_eq!(lines.len(), 5 * 6);
    for Line { object, shard, member } in lines {
        assert_eq!(shards[shard.as_str()][&member], results.get(&object.key).await.unwrap());
        assert_eq!(hex_sha256(&shards[shard.as_str()][&member]), object.sha256);
    }
    let manifest: Manifest = serde_json::from_slice(&first[keys::MANIFEST]).unwrap();
    let expected = first.iter().filter(|(key, _)| *key != keys::MANIFEST).map(|(key, b)| ObjectEntry::new(key.clone(), b));
    let mut named = manifest.objects.clone();
    named.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!((named, manifest.images), (expected.collect(), images));

    // Over an export that was cut otherwise, too.
    let tight = Cut { bytes: 1, ..Cut::default() };
    assert_eq!(export(&results, &out, tight).await.unwrap().shards, 5);
    assert_eq!(export(&results, &out, Cut::default()).await.unwrap().shards, 1);
    assert_eq!(content(&out).await.len(), 4);
    export(&results, &out, pairs).await.unwrap();
    assert_eq!(content(&out).await, first);

    // No foreign object is replaced.
    let taken = open(&world, "taken").await;
    taken.put("shard-000007.tar", "foreign").await.unwrap();
    assert_contains(&export(&results, &taken, pairs).await.unwrap_err().to_string(), &["taken", "empty"]);
    assert_eq!(content(&taken).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_object_is_named_and_the_export_is_not_called_whole() {
    let (world, out) = scene().await;
    let results = world.results();
    export(&results, &out, Cut::default()).await.unwrap();
    let record = world.record("Bag/2.png").await;
    let key = keys::item("Bag/2.png", &record.attempt, Item::Generated);
    let mut bytes = results.get(&key).await.unwrap().to_vec();
    bytes[0] ^= 1;
    results.put(&key, bytes).await.unwrap();
    assert_contains(&export(&results, &out, Cut::default()).await.unwrap_err().to_string(), &[&key]);
    assert!(!out.exists(keys::MANIFEST).await.unwrap());
    let inside = results.with_prefix("export").unwrap();
    assert!(export(&results, &inside, Cut::default()).await.unwrap_err().to_string().contains("inside the run"));

    results.delete(&key).await.unwrap();
    let error = export(&results, &out, Cut::default()).await.unwrap_err().to_string();
    assert_contains(&error, &[key.as_str(), "\"Bag/2.png\"", "missing", "basin verify"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_of_a_run_that_has_not_ended_says_so() {
    let world = World::new(5).await;
    let acting = world.submitted().await;
    world.work(4, true).await;
    acting.until("four", |s| s.succeeded + s.failed == 4).await;
    let results = world.results();
    let run = read_run(&results).await.unwrap().unwrap();
    let out = open(&world, "export").await;
    let counts = |planned| Counts { planned, total: 4, succeeded: 3, failed: 1 };
    let exported = async |planned, ended, caveat: &str| {
        let exported = export(&results, &out, Cut::default()).await.unwrap();
        assert_eq!((exported.images, exported.ended), (counts(planned), ended));
        assert_eq!(exported.caveat().as_deref(), Some(caveat));
        let manifest: Manifest = read_json(&out, keys::MANIFEST).await.unwrap();
        assert_eq!(manifest.images, counts(planned));
    };
    exported(None, Some(false), "the run has not ended: 3 of its images have results and are exported").await;
    // Tables that were written on the way.
    let tables = async |planned| {
        write_tables(&run, planned, Default::default(), &results, |_| {}).await.unwrap();
    };
    tables(Some(5)).await;
    let caveat = "the run has not ended: 3 of its 5 images have results and are exported";
    exported(Some(5), Some(false), caveat).await;
    // As they are when it goes on.
    results.delete(keys::MANIFEST).await.unwrap();
    exported(Some(5), Some(false), caveat).await;
    results.put(keys::MANIFEST, "{").await.unwrap();
    exported(Some(5), Some(false), caveat).await;
    tables(None).await;
    exported(None, None, "it is not known whether the run has ended: 3 of its images have results and are exported").await;
    acting.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_is_not_there_is_not_taken_for_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(Auth::Anonymous).await;
    let folder = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(folder("empty")).unwrap();
    let bucket = |place| server.url(place, "anonymous=true");
    for (place, why) in [
        (folder("none"), "not found"),
        (folder("empty"), "holds no run"),
        (bucket("none/r"), "the bucket does not exist"),
        (bucket("bucket/r"), "holds no run"),
    ] {
        let (run, out) = (Store::open(&place).await.unwrap(), Store::open(&folder("export")).await.unwrap());
        let error = proto::chain(&export(&run, &out, Cut::default()).await.unwrap_err());
        assert_contains(&error, &[why, place.split('?').next().unwrap()]);
        match results::verify::verify(&run, false).await {
            Ok(found) => {
                assert!(why == "holds no run" && found.problems.len() == 1 && found.problems[0].contains(why), "{found:?}")
            }
            Err(error) => assert!(proto::chain(&error).contains(why), "{error}"),
        }
    }
}
