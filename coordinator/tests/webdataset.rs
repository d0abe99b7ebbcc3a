//! An export, read back.

mod harness;

use std::collections::BTreeMap;
use std::io::Read;

use coordinator::manifest::{Manifest, Object};
use coordinator::webdataset::{Cut, Exported, export};
use harness::World;
use proto::{ResultRecord, hex_sha256, keys};
use serde::Deserialize;
use store::Store;

/// Five images with results, and the manifest's other end: places for exports.
async fn scene() -> (World, Store) {
    let world = World::new(5).await;
    let acting = world.start().await;
    acting.submit(&world).await;
    world.work(5, false).await;
    acting.finished().await;
    acting.stop().await;
    let out = Store::open(world.path("export").to_str().unwrap()).await.unwrap();
    (world, out)
}

async fn content(store: &Store) -> BTreeMap<String, Vec<u8>> {
    let mut content = BTreeMap::new();
    for object in store.list("").unwrap().all().await.unwrap() {
        content.insert(object.key.clone(), store.get(&object.key).await.unwrap().to_vec());
    }
    content
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
    object: Object,
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
    assert_eq!(exported, Exported { shards: 3, samples: 5, bytes });

    let shards: BTreeMap<&str, BTreeMap<String, Vec<u8>>> =
        first.iter().filter(|(key, _)| key.ends_with(".tar")).map(|(key, bytes)| (key.as_str(), members(bytes))).collect();
    assert_eq!(
        shards["shard-000002.tar"].keys().collect::<Vec<_>>(),
        [
            "Coat/3.generated.png",
            "Coat/3.inverted.png",
            "Coat/3.json",
            "Coat/3.safetensors",
            "Coat/3.target.png",
            "Coat/3.transformed.png"
        ]
    );
    let record: ResultRecord = serde_json::from_slice(&shards["shard-000002.tar"]["Coat/3.json"]).unwrap();
    assert_eq!(record, world.record("Coat/3.png").await);
    let lines: Vec<Line> = harness::lines(&out).await;
    assert_eq!(lines.len(), 5 * 6);
    for Line { object, shard, member } in lines {
        assert_eq!(shards[shard.as_str()][&member], results.get(&object.key).await.unwrap());
        assert_eq!(hex_sha256(&shards[shard.as_str()][&member]), object.sha256);
    }
    let manifest: Manifest = serde_json::from_slice(&first[keys::MANIFEST]).unwrap();
    let expected = first.iter().filter(|(key, _)| *key != keys::MANIFEST).map(|(key, b)| Object::new(key.clone(), b));
    let mut named = manifest.objects.clone();
    named.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!((named, manifest.images.succeeded), (expected.collect(), 5));

    // Over an export that was cut otherwise, too.
    let tight = Cut { bytes: 1, ..Cut::default() };
    assert_eq!(export(&results, &out, tight).await.unwrap().shards, 5);
    assert_eq!(export(&results, &out, Cut::default()).await.unwrap().shards, 1);
    assert_eq!(content(&out).await.len(), 4);
    export(&results, &out, pairs).await.unwrap();
    assert_eq!(content(&out).await, first);

    // Nothing of anybody else is replaced.
    let taken = Store::open(world.path("taken").to_str().unwrap()).await.unwrap();
    taken.put("shard-000007.tar", "somebody's").await.unwrap();
    let error = export(&results, &taken, pairs).await.unwrap_err().to_string();
    assert!(error.contains("taken") && error.contains("empty"), "{error}");
    assert_eq!(content(&taken).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_object_is_named_and_the_export_is_not_called_whole() {
    let (world, out) = scene().await;
    let results = world.results();
    export(&results, &out, Cut::default()).await.unwrap();
    let record = world.record("Bag/2.png").await;
    let key = keys::item("Bag/2.png", &record.attempt, keys::Item::Generated);
    let mut bytes = results.get(&key).await.unwrap().to_vec();
    bytes[0] ^= 1;
    results.put(&key, bytes).await.unwrap();
    let error = export(&results, &out, Cut::default()).await.unwrap_err().to_string();
    assert!(error.contains(&key), "{error}");
    assert!(!out.exists(keys::MANIFEST).await.unwrap());
    let inside = results.with_prefix("export").unwrap();
    assert!(export(&results, &inside, Cut::default()).await.unwrap_err().to_string().contains("inside the run"));
}
