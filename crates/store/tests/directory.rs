//! What is special about a directory: its links, its other files, and processes that die.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use store::{ErrorKind, PutNew, Store};
use tempfile::TempDir;

/// A store, its root, a directory beside it, and the temporary directory of both.
async fn open() -> (Store, PathBuf, PathBuf, TempDir) {
    let temporary = tempfile::tempdir().unwrap();
    let [root, outside] = ["root", "outside"].map(|name| temporary.path().join(name));
    fs::create_dir(&root).unwrap();
    fs::create_dir(&outside).unwrap();
    (Store::open(root.to_str().unwrap()).await.unwrap(), root, outside, temporary)
}

async fn keys(store: &Store) -> Vec<String> {
    store.list("").unwrap().all().await.unwrap().into_iter().map(|o| o.key).collect()
}

fn file_names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn no_link_leads_out() {
    let (store, root, outside, _temporary) = open().await;
    fs::write(outside.join("secret"), "secret").unwrap();
    symlink(&outside, root.join("link")).unwrap();
    symlink("../outside", root.join("relative")).unwrap();
    symlink(outside.join("secret"), root.join("file")).unwrap();

    for key in ["link/secret", "relative/secret", "link/new/deep", "relative/new"] {
        assert_eq!(store.put(key, "x").await.unwrap_err().kind(), ErrorKind::Denied, "{key}");
        assert_eq!(store.put_new(key, "x").await.unwrap_err().kind(), ErrorKind::Denied, "{key}");
    }
    for key in ["link/secret", "relative/secret", "file"] {
        let error = store.get(key).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{key}");
        assert!(error.to_string().contains("link leads out of the store"), "{error}");
    }
    for key in ["link/secret", "relative/secret"] {
        assert_eq!(store.delete(key).await.unwrap_err().kind(), ErrorKind::Denied, "{key}");
    }
    assert_eq!(store.with_prefix("link").unwrap().check_writable().await.unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(store.list("link/").unwrap().all().await.unwrap_err().kind(), ErrorKind::Denied);
    let mut lister = store.list("").unwrap();
    assert_eq!((lister.next_page().await.unwrap(), lister.skipped().len()), (None, 3));

    // A write replaces the link itself and not what it names.
    store.put("file", "mine").await.unwrap();
    assert_eq!(store.get("file").await.unwrap(), "mine");
    assert_eq!(file_names(&outside), ["secret"]);
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
}

#[tokio::test]
async fn links_that_stay_inside_are_followed_and_loops_are_not() {
    let (store, root, _, _temporary) = open().await;
    store.put("pool/a", "a").await.unwrap();
    fs::create_dir(root.join("train")).unwrap();
    symlink("../pool/a", root.join("train/a")).unwrap();
    symlink("..", root.join("train/up")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    assert_eq!(keys(&store).await, ["pool/a", "train/a"]);
    assert_eq!(store.get("train/a").await.unwrap(), "a");
    assert!(!store.exists("dangling").await.unwrap());
}

#[tokio::test]
async fn the_root_may_be_a_link() {
    let (_, _, outside, temporary) = open().await;
    let link = temporary.path().join("link");
    symlink(&outside, &link).unwrap();
    let store = Store::open(link.to_str().unwrap()).await.unwrap();
    store.put("a/b", "x").await.unwrap();
    assert_eq!(keys(&store).await, ["a/b"]);
    assert_eq!(store.local_path("a/b"), Some(outside.join("a/b")));
}

#[tokio::test]
async fn temporary_files_are_no_objects_and_do_not_disturb() {
    let (store, root, _, _temporary) = open().await;
    fs::write(root.join(".basin-123.tmp"), "half").unwrap();
    store.put("a", "whole").await.unwrap();
    let _ = store.put_new("a", "other").await.unwrap();
    assert_eq!(keys(&store).await, ["a"]);
    assert_eq!(file_names(&root), [".basin-123.tmp", "a"]);
}

#[tokio::test]
async fn old_temporary_files_are_swept_and_nothing_else() {
    let (store, root, outside, _temporary) = open().await;
    let day_ago = SystemTime::now() - Duration::from_secs(24 * 3600);
    fs::create_dir(root.join("dir")).unwrap();
    for (file, old) in [
        (root.join(".basin-new.tmp"), false),
        (root.join(".basin-old.tmp"), true),
        (root.join("dir/.basin-old.tmp"), true),
        (root.join("dir/.other-old.tmp"), true),
        (root.join("dir/old"), true),
        (outside.join(".basin-old.tmp"), true),
    ] {
        fs::write(&file, "half").unwrap();
        if old {
            fs::File::options().write(true).open(file).unwrap().set_modified(day_ago).unwrap();
        }
    }
    symlink(&outside, root.join("link")).unwrap();
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    assert_eq!(store.sweep_uploads(hour_ago).await.unwrap(), 2);
    assert_eq!(file_names(&root), [".basin-new.tmp", "dir", "link"]);
    assert_eq!(file_names(&root.join("dir")), [".other-old.tmp", "old"]);
    assert_eq!(file_names(&outside), [".basin-old.tmp"]);
    let error = store.with_prefix("link").unwrap().sweep_uploads(hour_ago).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
}

#[tokio::test]
async fn a_file_that_is_written_into_while_it_is_read_is_an_error() {
    let (store, root, _, _temporary) = open().await;
    let file = root.join("file");
    for change in [|file: &fs::File| file.set_len(3), |file: &fs::File| file.set_len(20 << 20)] {
        fs::write(&file, vec![1; 10 << 20]).unwrap();
        let mut download = store.download("file").await.unwrap();
        let _ = download.next().await.unwrap().unwrap();
        change(&fs::File::options().write(true).open(&file).unwrap()).unwrap();
        let error = download.next().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
    }
}

#[tokio::test]
async fn other_people_can_read_what_is_written() {
    let (store, root, _, temporary) = open().await;
    store.put("a", "").await.unwrap();
    let by_us = fs::metadata(root.join("a")).unwrap().permissions().mode();
    fs::write(temporary.path().join("b"), "").unwrap();
    assert_eq!(by_us, fs::metadata(temporary.path().join("b")).unwrap().permissions().mode());
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_not_an_empty_one() {
    let (.., temporary) = open().await;
    let store = Store::open(temporary.path().join("tpyo").to_str().unwrap()).await.unwrap();
    let error = store.list("").unwrap().all().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("tpyo"), "{error}");
    assert!(!temporary.path().join("tpyo").exists(), "reading creates nothing");
    store.check_writable().await.unwrap();
    assert_eq!(keys(&store).await, [""; 0]);
}

#[tokio::test]
async fn what_cannot_be_written_says_so() {
    let (.., temporary) = open().await;
    fs::write(temporary.path().join("file"), "").unwrap();
    for path in ["file", "file/below"] {
        let store = Store::open(temporary.path().join(path).to_str().unwrap()).await.unwrap();
        let error = store.check_writable().await.unwrap_err();
        assert!(error.to_string().starts_with("cannot write to file:///"), "{error}");
        assert!(store.put("a", "").await.is_err());
    }
    let (store, _, _, _temporary) = open().await;
    store.put("a/b", "").await.unwrap();
    for key in ["a", "a/b/c"] {
        assert_eq!(store.put(key, "").await.unwrap_err().kind(), ErrorKind::Other, "{key}");
        assert_eq!(store.put_new(key, "").await.unwrap_err().kind(), ErrorKind::Other, "{key}");
    }
    let long = "x".repeat(300);
    assert_eq!(store.put(&long, "").await.unwrap_err().kind(), ErrorKind::InvalidKey);
}

#[tokio::test]
async fn urls_of_directories() {
    let here = std::env::current_dir().unwrap();
    for (url, path) in [
        ("file:///data/x", Path::new("/data/x/k").to_owned()),
        ("file:///data/a%20b%25", "/data/a b%/k".into()),
        ("file://localhost/data/", "/data/k".into()),
        ("/data/x y%20", "/data/x y%20/k".into()),
        ("./out", here.join("out/k")),
        ("out", here.join("out/k")),
    ] {
        let store = Store::open(url).await.unwrap();
        assert_eq!(store.local_path("k"), Some(path), "{url}");
        assert_eq!(Store::open(&store.url()).await.unwrap().local_path("k"), store.local_path("k"), "{url}");
    }
    for url in ["", "file://host/x", "file:x", "file:///%zz", "ftp://user:secret@host/x", "s3:/x\n"] {
        let error = Store::open(url).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidUrl, "{url}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

const CHILD: &str = "STORE_TEST_CHILD";
const CONTENT_BYTES: usize = 300_000;

/// Not a test of its own: the process that is killed below.
#[tokio::test]
async fn child_that_writes_until_killed() {
    let Ok(root) = std::env::var(CHILD) else { return };
    let store = Store::open(&root).await.unwrap();
    for turn in 0u64.. {
        let content = vec![turn as u8; CONTENT_BYTES];
        store.put("same", content.clone()).await.unwrap();
        assert_eq!(store.put_new(&format!("new/{turn}"), content).await.unwrap(), PutNew::Created);
    }
}

#[tokio::test]
async fn a_killed_process_leaves_whole_objects() {
    let (store, root, _, _temporary) = open().await;
    for round in 0..5 {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child_that_writes_until_killed"]).env(CHILD, &root).stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        let limit = Instant::now() + Duration::from_secs(30);
        while !root.join(format!("new/{round}")).exists() {
            assert!(Instant::now() < limit && child.try_wait().unwrap().is_none(), "the child writes nothing");
            tokio::task::yield_now().await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let objects = store.list("").unwrap().all().await.unwrap();
        assert!(objects.iter().all(|o| o.size == CONTENT_BYTES as u64), "{objects:?}");
        for object in objects {
            let content = store.get(&object.key).await.unwrap();
            assert!(content.iter().all(|b| *b == content[0]), "{}", object.key);
            store.delete(&object.key).await.unwrap();
        }
    }
}
