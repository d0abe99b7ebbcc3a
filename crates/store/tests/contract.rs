//! What every back-end of the store keeps: one list of cases, run on each.
//!
//! A back-end joins with one more `contract!` line; its function opens an empty store, with whatever keeps that alive.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use store::{ErrorKind, ObjectInfo, PIECE, PutNew, Replace, Store, Upload};
use tokio::task::JoinSet;

macro_rules! contract {
    ($backend:ident: $($case:ident)*) => {
        mod $backend {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
                async fn $case() {
                    let (store, _alive) = super::open::$backend().await;
                    super::$case(store).await;
                }
            )*
        }
    };
    ($($backend:ident)*) => {
        $(contract! { $backend:
            what_was_put_is_read_back
            a_second_put_replaces_the_first
            put_new_creates_once_and_leaves_what_is_there
            of_racing_put_new_one_wins
            replace_writes_only_over_what_was_seen
            of_racing_replacements_one_wins
            of_racing_updates_none_is_lost
            racing_puts_leave_one_whole_object
            exists_follows_put_and_delete
            delete_is_no_error_twice
            a_missing_object_is_not_found
            invalid_keys_are_refused
            get_limited_refuses_what_is_larger
            a_large_object_is_read_back
            an_object_is_written_and_read_piece_by_piece
            an_upload_is_seen_when_it_is_finished
            an_upload_that_is_given_up_leaves_nothing
            an_upload_that_was_broken_off_is_swept
            an_upload_that_began_lately_goes_on
            an_object_that_is_replaced_while_it_is_read_is_no_mixture
            odd_names_are_names
            a_listing_is_sorted_by_key
            a_listing_has_what_starts_with_the_prefix
            a_listing_comes_in_pages
            identity_changes_with_the_content
            a_prefix_is_a_store_of_its_own
            check_writable_leaves_nothing
            the_url_opens_the_same_store
            errors_say_what_was_done_to_which_object
            an_examination_finds_nothing_and_leaves_nothing
        })*
    };
}

contract! { directory s3 }

mod open {
    use super::Store;

    pub async fn directory() -> (Store, tempfile::TempDir) {
        let alive = tempfile::tempdir().unwrap();
        // With what a URL must escape, and not there yet.
        let path = alive.path().join("a store, 100%25 ü");
        let store = Store::open(path.to_str().unwrap()).await.unwrap();
        store.check_writable().await.unwrap();
        (store, alive)
    }

    /// A server of this process, or the place that `STORE_TEST_S3` names (a URL; each case takes a prefix of its own).
    pub async fn s3() -> (Store, Option<harness::Server>) {
        if let Ok(place) = std::env::var("STORE_TEST_S3") {
            static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
            let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let store = Store::open(&place).await.unwrap();
            return (store.with_prefix(&format!("contract-{}-{next}", std::process::id())).unwrap(), None);
        }
        let server = harness::Server::start(harness::Auth::Anonymous).await;
        (server.store("").await, Some(server))
    }
}

fn keys(objects: &[ObjectInfo]) -> Vec<&str> {
    objects.iter().map(|o| o.key.as_str()).collect()
}

async fn list(store: &Store, prefix: &str) -> Vec<ObjectInfo> {
    store.list(prefix).unwrap().all().await.unwrap()
}

async fn what_was_put_is_read_back(store: Store) {
    let all_bytes: Vec<u8> = (0..=255).collect();
    for content in [&b""[..], b"text", &all_bytes] {
        store.put("dir/sub/object.bin", content.to_vec()).await.unwrap();
        assert_eq!(store.get("dir/sub/object.bin").await.unwrap(), content);
    }
}

async fn a_second_put_replaces_the_first(store: Store) {
    store.put("key", "a long first content").await.unwrap();
    store.put("key", "short").await.unwrap();
    assert_eq!(store.get("key").await.unwrap(), "short");
    assert_eq!(list(&store, "").await.len(), 1);
}

async fn put_new_creates_once_and_leaves_what_is_there(store: Store) {
    assert_eq!(store.put_new("a/marker", "first").await.unwrap(), PutNew::Created);
    assert_eq!(store.put_new("a/marker", "second").await.unwrap(), PutNew::Exists);
    assert_eq!(store.get("a/marker").await.unwrap(), "first");
    store.delete("a/marker").await.unwrap();
    assert_eq!(store.put_new("a/marker", "third").await.unwrap(), PutNew::Created);
    assert_eq!(store.get("a/marker").await.unwrap(), "third");
}

async fn of_racing_put_new_one_wins(store: Store) {
    for round in 0..10 {
        let key = format!("race/{round}/marker");
        let racers = (0..16).map(|racer| {
            let (store, key, content) = (store.clone(), key.clone(), format!("racer {racer}"));
            async move { (store.put_new(&key, content.clone()).await.unwrap() == PutNew::Created).then_some(content) }
        });
        let winners: Vec<String> = racers.collect::<JoinSet<_>>().join_all().await.into_iter().flatten().collect();
        assert_eq!(winners.len(), 1, "round {round}: {winners:?}");
        assert_eq!(store.get(&key).await.unwrap(), winners[0]);
    }
}

async fn replace_writes_only_over_what_was_seen(store: Store) {
    assert_eq!(store.replace("a/b", "first", "none").await.unwrap(), Replace::Conflict);
    assert!(!store.exists("a/b").await.unwrap(), "it creates nothing");
    store.put("a/b", "first").await.unwrap();
    let mut seen = vec![store.identity("a/b").await.unwrap().unwrap()];
    // As fast as it goes, and of one size: each content has an identity of its own.
    for turn in 0..20 {
        assert_eq!(store.replace("a/b", format!("turn {turn:02}"), &seen[turn]).await.unwrap(), Replace::Replaced);
        seen.push(store.identity("a/b").await.unwrap().unwrap());
        for old in &seen[..=turn] {
            assert_eq!(store.replace("a/b", "late", old).await.unwrap(), Replace::Conflict, "turn {turn}");
        }
    }
    assert_eq!(store.get("a/b").await.unwrap(), "turn 19");
    store.delete("a/b").await.unwrap();
    assert_eq!(store.replace("a/b", "late", &seen[20]).await.unwrap(), Replace::Conflict);
    assert_eq!(list(&store, "").await, []);
}

async fn of_racing_replacements_one_wins(store: Store) {
    assert_eq!(store.race_to_replace(10).await.unwrap(), 0);
}

async fn of_racing_updates_none_is_lost(store: Store) {
    let count = |there: Option<&[u8]>| there.map_or(0, |text| std::str::from_utf8(text).unwrap().parse::<u32>().unwrap());
    let racers = (0..16).map(|_| {
        let store = store.clone();
        async move { store.update("dir/count", |there| Some((count(there) + 1).to_string().into_bytes())).await.unwrap() }
    });
    assert!(racers.collect::<JoinSet<_>>().join_all().await.into_iter().all(|written| written));
    assert_eq!(store.get("dir/count").await.unwrap(), "16");
    assert!(!store.update("dir/count", |_| None).await.unwrap());
    assert!(!store.update("dir/none", |there| there.map(<[u8]>::to_vec)).await.unwrap());
    assert_eq!(keys(&list(&store, "").await), ["dir/count"]);
}

async fn racing_puts_leave_one_whole_object(store: Store) {
    let content = |racer: u8| Bytes::from(vec![racer; 200_000 + usize::from(racer)]);
    let racers = (0..16).map(|racer| {
        let store = store.clone();
        async move { store.put("key", content(racer)).await.unwrap() }
    });
    racers.collect::<JoinSet<_>>().join_all().await;
    let last = store.get("key").await.unwrap();
    assert!(last == content(last[0]));
    assert_eq!(keys(&list(&store, "").await), ["key"]);
}

async fn exists_follows_put_and_delete(store: Store) {
    assert!(!store.exists("a/b").await.unwrap());
    store.put("a/b", "").await.unwrap();
    assert!(store.exists("a/b").await.unwrap());
    assert!(!store.exists("a").await.unwrap(), "a part of a key is no object");
    assert!(!store.exists("a/b/c").await.unwrap());
    store.delete("a/b").await.unwrap();
    assert!(!store.exists("a/b").await.unwrap());
}

async fn delete_is_no_error_twice(store: Store) {
    store.delete("never/there").await.unwrap();
    store.put("a/b", "").await.unwrap();
    store.delete("a").await.unwrap();
    assert!(store.exists("a/b").await.unwrap(), "deleting a part of a key deletes nothing");
    store.delete("a/b").await.unwrap();
    store.delete("a/b").await.unwrap();
    assert_eq!(list(&store, "").await, []);
}

async fn a_missing_object_is_not_found(store: Store) {
    store.put("a/b", "").await.unwrap();
    for key in ["none", "a", "a/c", "a/b/c"] {
        assert_eq!(store.get(key).await.unwrap_err().kind(), ErrorKind::NotFound, "{key}");
        assert_eq!(store.get_limited(key, 10).await.unwrap_err().kind(), ErrorKind::NotFound, "{key}");
        assert_eq!(store.download(key).await.unwrap_err().kind(), ErrorKind::NotFound, "{key}");
    }
}

async fn invalid_keys_are_refused(store: Store) {
    let long = "x".repeat(2000);
    let keys = ["", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "../a", "a/.", "a\0b", "a\nb", "\u{85}", ".basin-x.tmp"];
    for key in keys.into_iter().chain([long.as_str()]) {
        let kinds = [
            store.get(key).await.unwrap_err().kind(),
            store.get_limited(key, 1).await.unwrap_err().kind(),
            store.put(key, "").await.unwrap_err().kind(),
            store.put_new(key, "").await.unwrap_err().kind(),
            store.replace(key, "", "x").await.unwrap_err().kind(),
            store.exists(key).await.unwrap_err().kind(),
            store.delete(key).await.unwrap_err().kind(),
            store.upload(key).await.unwrap_err().kind(),
            store.download(key).await.unwrap_err().kind(),
        ];
        assert_eq!(kinds, [ErrorKind::InvalidKey; 9], "{key:?}");
        assert_eq!(store.local_path(key), None, "{key:?}");
    }
    for prefix in ["/", "../", "a/../", "a//", "./a", "a\nb"] {
        assert_eq!(store.list(prefix).unwrap_err().kind(), ErrorKind::InvalidKey, "{prefix:?}");
        assert_eq!(store.with_prefix(prefix).unwrap_err().kind(), ErrorKind::InvalidKey, "{prefix:?}");
    }
    assert_eq!(list(&store, "").await, []);
}

async fn get_limited_refuses_what_is_larger(store: Store) {
    store.put("ten", "0123456789").await.unwrap();
    assert_eq!(store.get_limited("ten", 10).await.unwrap(), "0123456789");
    let error = store.get_limited("ten", 9).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("10 bytes") && error.to_string().contains("at most 9"), "{error}");
    store.put("empty", "").await.unwrap();
    assert_eq!(store.get_limited("empty", 0).await.unwrap(), "");
}

/// Bytes that differ everywhere, and with `seed`.
fn content(bytes: usize, seed: u32) -> Bytes {
    let words = (seed..).map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes());
    words.take(bytes.div_ceil(4)).flatten().take(bytes).collect()
}

async fn download(store: &Store, key: &str) -> Vec<u8> {
    let mut download = store.download(key).await.unwrap();
    let mut content = Vec::new();
    while let Some(piece) = download.next().await.unwrap() {
        assert!(!piece.is_empty());
        content.extend_from_slice(&piece);
    }
    assert_eq!(download.next().await.unwrap(), None);
    content
}

/// An upload with its first bytes.
async fn begin(store: &Store, key: &str, bytes: Bytes) -> Upload {
    let mut upload = store.upload(key).await.unwrap();
    upload.write(bytes).await.unwrap();
    upload
}

const HOUR: Duration = Duration::from_secs(3600);

fn in_an_hour() -> SystemTime {
    SystemTime::now() + HOUR
}

async fn an_object_is_written_and_read_piece_by_piece(store: Store) {
    for bytes in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + 5] {
        let content = content(bytes, bytes as u32);
        // Smaller, as large, and larger than what is sent at once.
        for piece in [1_000_003, PIECE, 2 * PIECE + 7] {
            let mut upload = store.upload("dir/large").await.unwrap();
            let mut rest = content.clone();
            while !rest.is_empty() {
                upload.write(rest.split_to(piece.min(rest.len()))).await.unwrap();
            }
            upload.finish().await.unwrap();
            assert!(store.get("dir/large").await.unwrap() == content, "{bytes} in pieces of {piece}");
            assert!(download(&store, "dir/large").await == content, "{bytes} in pieces of {piece}");
            store.delete("dir/large").await.unwrap();
        }
    }
}

async fn an_upload_is_seen_when_it_is_finished(store: Store) {
    store.put("old", "old").await.unwrap();
    for key in ["old", "new"] {
        let upload = begin(&store, key, content(2 * PIECE, 1)).await;
        assert_eq!(keys(&list(&store, "").await), ["old"]);
        assert_eq!(store.get("old").await.unwrap(), "old");
        upload.abort().await.unwrap();
    }
    let upload = begin(&store, "old", "new".into()).await;
    assert_eq!(store.get("old").await.unwrap(), "old");
    upload.finish().await.unwrap();
    assert_eq!(store.get("old").await.unwrap(), "new");
}

async fn an_upload_that_is_given_up_leaves_nothing(store: Store) {
    for bytes in [0, 1, 3 * PIECE] {
        begin(&store, "a/b", content(bytes, 1)).await.abort().await.unwrap();
        assert_eq!(list(&store, "").await, []);
        assert_eq!(store.sweep_uploads(in_an_hour()).await.unwrap(), 0, "{bytes}");

        drop(begin(&store, "a/b", content(bytes, 1)).await);
        assert_eq!(list(&store, "").await, []);
        store.sweep_uploads(in_an_hour()).await.unwrap();
    }
}

async fn an_upload_that_was_broken_off_is_swept(store: Store) {
    let inner = store.with_prefix("inner").unwrap();
    for store in [&store, &inner] {
        // Three of them, since listings come in pages.
        for key in ["dir/a", "dir/b", "dir/b-c"] {
            // As when the process is killed.
            std::mem::forget(begin(store, key, content(2 * PIECE, 1)).await);
        }
    }
    let running = begin(&store, "running", content(2 * PIECE, 2)).await;
    store.put("dir/object", "value").await.unwrap();
    assert_eq!(inner.sweep_uploads(in_an_hour()).await.unwrap(), 3);
    assert_eq!(inner.sweep_uploads(in_an_hour()).await.unwrap(), 0);
    assert_eq!(store.with_prefix("none").unwrap().sweep_uploads(in_an_hour()).await.unwrap(), 0);
    running.finish().await.unwrap();
    assert_eq!(store.sweep_uploads(in_an_hour()).await.unwrap(), 3);
    assert_eq!(store.sweep_uploads(in_an_hour()).await.unwrap(), 0);
    assert_eq!(keys(&list(&store, "").await), ["dir/object", "running"]);
    assert!(store.get("running").await.unwrap() == content(2 * PIECE, 2));
}

async fn an_upload_that_began_lately_goes_on(store: Store) {
    let running = begin(&store, "dir/running", content(2 * PIECE, 1)).await;
    assert_eq!(store.sweep_uploads(SystemTime::now() - HOUR).await.unwrap(), 0);
    running.finish().await.unwrap();
    assert!(store.get("dir/running").await.unwrap() == content(2 * PIECE, 1));
}

async fn an_object_that_is_replaced_while_it_is_read_is_no_mixture(store: Store) {
    let old = content(6 * PIECE, 1);
    store.put("key", old.clone()).await.unwrap();
    let mut download = store.download("key").await.unwrap();
    let mut read = download.next().await.unwrap().unwrap().to_vec();
    store.put("key", content(6 * PIECE, 2)).await.unwrap();
    let end = loop {
        match download.next().await {
            Ok(Some(piece)) => read.extend_from_slice(&piece),
            end => break end,
        }
    };
    match end {
        Ok(_) => assert!(read == old),
        Err(error) => assert!(error.kind() == ErrorKind::Changed && error.is_retryable(), "{error:?}"),
    }
}

async fn a_large_object_is_read_back(store: Store) {
    let content = content(24_000_000, 0);
    store.put("large", content.clone()).await.unwrap();
    assert!(store.get("large").await.unwrap() == content);
    assert_eq!(list(&store, "").await[0].size, content.len() as u64);
}

async fn odd_names_are_names(store: Store) {
    let names = [
        "ünï/日本 語.jpg",
        "e\u{301}.png",
        "\u{e9}.png",
        "a b+c&d=e;f,g%20h?i#j.txt",
        "'quoted' \"twice\" <tag>",
        "..a/...",
        ".hidden",
        "-",
        "~",
        "back\\slash",
        "C:",
        "*",
        " ",
    ];
    for name in names {
        store.put(name, name).await.unwrap();
    }
    for name in names {
        assert_eq!(store.get(name).await.unwrap(), name);
        assert!(store.exists(name).await.unwrap());
    }
    let listed = list(&store, "").await;
    assert_eq!(keys(&listed).into_iter().collect::<BTreeSet<_>>(), names.into_iter().collect());
    for name in names {
        store.delete(name).await.unwrap();
    }
    assert_eq!(list(&store, "").await, []);
}

async fn a_listing_is_sorted_by_key(store: Store) {
    // In the order of their bytes, where '-' and '.' come before '/', and '0' after it.
    let sorted = ["A", "a-b", "a-b.c", "a.b/z", "a/b", "a/b-c", "a/c/d", "a/é", "a0", "b", "é"];
    for key in sorted.iter().rev() {
        store.put(key, "").await.unwrap();
    }
    assert_eq!(keys(&list(&store, "").await), sorted);
}

async fn a_listing_has_what_starts_with_the_prefix(store: Store) {
    for key in ["images/1/a", "images/1/b", "images/10/a", "images/2/a", "imag", "image", "other/images/1/a"] {
        store.put(key, key).await.unwrap();
    }
    let cases: [(&str, &[&str]); 7] = [
        ("images/", &["images/1/a", "images/1/b", "images/10/a", "images/2/a"]),
        ("images/1", &["images/1/a", "images/1/b", "images/10/a"]),
        ("images/1/", &["images/1/a", "images/1/b"]),
        ("images/1/b", &["images/1/b"]),
        ("image", &["image", "images/1/a", "images/1/b", "images/10/a", "images/2/a"]),
        ("images/3", &[]),
        ("none/here/", &[]),
    ];
    for (prefix, expected) in cases {
        let listed = list(&store, prefix).await;
        assert_eq!(keys(&listed), expected, "{prefix}");
        assert!(listed.iter().all(|o| o.size == o.key.len() as u64));
    }
    assert_eq!(list(&store, "").await.len(), 7);
}

async fn a_listing_comes_in_pages(store: Store) {
    let expected: Vec<String> = (0..25).map(|i| format!("dir {}/{i:02}", i / 7)).collect();
    for key in &expected {
        store.put(key, "").await.unwrap();
    }
    let mut lister = store.list("dir").unwrap().with_page_size(10);
    let mut sizes = Vec::new();
    let mut listed = Vec::new();
    while let Some(page) = lister.next_page().await.unwrap() {
        sizes.push(page.len());
        listed.extend(page.into_iter().map(|o| o.key));
    }
    assert_eq!((sizes, listed), (vec![10, 10, 5], expected));
    assert_eq!(lister.next_page().await.unwrap(), None);
    assert_eq!(lister.skipped(), []);
}

async fn identity_changes_with_the_content(store: Store) {
    store.put("a", "one").await.unwrap();
    let first = list(&store, "a").await;
    assert_eq!(first, list(&store, "a").await);
    store.put("a", "two").await.unwrap();
    let second = list(&store, "a").await;
    assert_ne!(first[0].identity, second[0].identity);
    assert!(!second[0].identity.contains('"'));
}

async fn a_prefix_is_a_store_of_its_own(store: Store) {
    let run = store.with_prefix("runs/1").unwrap();
    let same = store.with_prefix("runs/").unwrap().with_prefix("1/").unwrap();
    store.put("runs/1", "not below").await.unwrap_or(());
    let outside = store.with_prefix("runs").unwrap();
    outside.put("10/key", "not below").await.unwrap();
    if run.put("key", "value").await.is_err() {
        // A directory cannot hold both `runs/1` and `runs/1/key`.
        store.delete("runs/1").await.unwrap();
        run.put("key", "value").await.unwrap();
    }
    assert_eq!(store.get("runs/1/key").await.unwrap(), "value");
    assert_eq!(same.get("key").await.unwrap(), "value");
    assert_eq!(keys(&list(&run, "").await), ["key"]);
    assert_eq!(keys(&list(&run, "k").await), ["key"]);
    assert_eq!(keys(&list(&outside, "1").await).last(), Some(&"10/key"));
    assert_eq!(run.url(), same.url());
    for key in ["../10/key", "../../x"] {
        assert_eq!(run.get(key).await.unwrap_err().kind(), ErrorKind::InvalidKey);
    }
}

async fn check_writable_leaves_nothing(store: Store) {
    store.check_writable().await.unwrap();
    store.with_prefix("new/prefix").unwrap().check_writable().await.unwrap();
    assert_eq!(list(&store, "").await, []);
}

async fn the_url_opens_the_same_store(store: Store) {
    let inner = store.with_prefix("ü/inner").unwrap();
    inner.put("key", "value").await.unwrap();
    let again = Store::open(&inner.url()).await.unwrap();
    assert_eq!(again.url(), inner.url());
    assert_eq!(again.get("key").await.unwrap(), "value");
    assert_eq!(keys(&list(&again, "").await), ["key"]);
}

async fn errors_say_what_was_done_to_which_object(store: Store) {
    let error = store.get("images/a.jpg").await.unwrap_err();
    assert!(error.to_string().starts_with("cannot read "), "{error}");
    assert!(error.to_string().contains("/images/a.jpg: not found"), "{error}");
    let error = store.put("a\nb", "").await.unwrap_err();
    assert!(!error.to_string().contains('\n'), "{error}");
}

async fn an_examination_finds_nothing_and_leaves_nothing(store: Store) {
    assert_eq!(store.examine().await.unwrap(), Vec::<String>::new());
    assert_eq!(store.list("").unwrap().all().await.unwrap(), vec![]);
}
