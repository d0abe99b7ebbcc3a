//! What is special about a bucket: credentials, and servers that are not there.

#![cfg(feature = "s3")]

mod s3_server;

use std::process::Command;

use s3_server::{Auth, Server};
use store::{ErrorKind, PutNew, Store};

const URL: &str = "STORE_TEST_URL";
const EXPECT: &str = "STORE_TEST_EXPECT";

/// Not a test of its own: a process with the credentials under test, which only the environment can give.
#[tokio::test]
async fn child_with_credentials() {
    let Ok(url) = std::env::var(URL) else { return };
    let store = Store::open(&url).await.unwrap();
    let result = store.put("dir/ü b+c%20&=?.txt", "value").await;
    match std::env::var(EXPECT).unwrap().as_str() {
        "works" => {
            result.unwrap();
            assert_eq!(store.get("dir/ü b+c%20&=?.txt").await.unwrap(), "value");
            assert_eq!(store.list("dir/ü b+").unwrap().all().await.unwrap().len(), 1);
            assert_eq!(store.put_new("dir/ü b+c%20&=?.txt", "other").await.unwrap(), PutNew::Exists);
            store.check_writable().await.unwrap();
            store.delete("dir/ü b+c%20&=?.txt").await.unwrap();
        }
        _ => {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
            assert!(!format!("{error:?} {error} {}", store.url()).contains("hidden-secret"), "{error:?}");
        }
    }
}

fn child(url: &str, expect: &str, keys: Option<(&str, &str)>) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child_with_credentials"]).env(URL, url).env(EXPECT, expect);
    // No profile, and no machine to ask.
    command.env("HOME", "/nonexistent").env("AWS_EC2_METADATA_DISABLED", "true");
    if let Some((access, secret)) = keys {
        command.env("AWS_ACCESS_KEY_ID", access).env("AWS_SECRET_ACCESS_KEY", secret);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{expect}: {}", String::from_utf8_lossy(&output.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_come_from_the_environment_and_wrong_ones_are_denied() {
    let server = Server::start(Auth::Keys("access", "hidden-secret")).await;
    let url = server.url("bucket/prefix", "region=eu-central-1");
    tokio::task::spawn_blocking(move || {
        child(&url, "works", Some(("access", "hidden-secret")));
        child(&url, "denied", Some(("access", "not-hidden-secret")));
        child(&url, "denied", Some(("nobody", "hidden-secret")));
        child(&url, "denied", None);
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_bucket_is_not_found() {
    let server = Server::start(Auth::Anonymous).await;
    let store = Store::open(&server.url("other-bucket", "anonymous=true")).await.unwrap();
    let error = store.list("").unwrap().all().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("s3://other-bucket/: there is no such bucket"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_unavailable() {
    let url = {
        let server = Server::start(Auth::Anonymous).await;
        server.url("bucket", "anonymous=true")
    };
    let error = Store::open(&url).await.unwrap().get("key").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(error.is_retryable());
}

#[tokio::test]
async fn urls_of_buckets() {
    let whole = "s3://bucket/a/b?endpoint=http://127.0.0.1:9000&region=x&path_style=true&anonymous=true&checksums=when_required";
    assert_eq!(Store::open(whole).await.unwrap().url(), whole);
    let escaped = Store::open("s3://bucket/?endpoint=http%3A%2F%2F127.0.0.1%3A9000").await.unwrap();
    assert_eq!(escaped.url(), "s3://bucket?endpoint=http://127.0.0.1:9000");
    assert_eq!(escaped.local_path("key"), None);
    for url in [
        "s3://",
        "s3:///prefix",
        "s3://access:secret@bucket/prefix?region=x",
        "s3://bucket?endpoint=http://user:secret@host",
        "s3://bucket?secret=1",
        "s3://bucket?path_style=maybe&secret=1",
        "s3://bucket?endpoint=ftp://secret",
        "s3://bucket?endpoint=",
    ] {
        let error = Store::open(url).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidUrl, "{url}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    assert_eq!(Store::open("s3://bucket/../x?region=x").await.unwrap_err().kind(), ErrorKind::InvalidKey);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_examination_finds_that_two_can_create_a_key() {
    let server = Server::start_racy().await;
    let store = Store::open(&server.url("bucket/prefix", "anonymous=true")).await.unwrap();
    let problems = store.examine().await.unwrap();
    assert!(problems.len() == 1 && problems[0].contains("put-if-absent"), "{problems:?}");
}
