//! What is special about a bucket: credentials, and servers that are not there.

use std::process::Command;

use harness::{Auth, Server};
use store::{ErrorKind, PIECE, PutNew, Store};

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
    assert!(error.to_string().contains("s3://other-bucket/: the bucket does not exist"), "{error}");
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
    let whole = "s3://bucket/a/b?endpoint=http://127.0.0.1:9000&region=x&path_style=true&anonymous=true&checksums=when_required\
                 &sse=aws:kms&kms_key=alias/a-key_1";
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
        "s3://bucket?region=x&sse=secret",
        "s3://bucket?region=x&kms_key=secret",
        "s3://bucket?region=x&sse=AES256&kms_key=secret",
        "s3://bucket?region=x&sse=aws:kms&kms_key=secret%26",
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
    let store = server.store("").await;
    let problems = store.examine().await.unwrap();
    assert!(problems.len() == 1 && problems[0].contains("create-if-absent"), "{problems:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_examination_finds_that_a_server_ignores_the_condition_of_a_replacement() {
    let server = Server::start_careless().await;
    let store = server.store("").await;
    let problems = store.examine().await.unwrap();
    assert!(problems.len() == 1 && problems[0].contains("If-Match"), "{problems:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_in_a_missing_bucket_is_no_conflict() {
    let server = Server::start(Auth::Anonymous).await;
    let store = Store::open(&server.url("other-bucket", "anonymous=true")).await.unwrap();
    assert_eq!(store.replace("key", "value", "x").await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_goes_on_after_the_connection_broke() {
    let server = Server::start(Auth::Anonymous).await;
    let store = server.store("").await;
    let content: Vec<u8> = (0..5 * PIECE).map(|i| (i / 1000) as u8).collect();
    store.put("key", content.clone()).await.unwrap();
    server.state().broken_reads = 8;
    let mut download = store.download("key").await.unwrap();
    let mut read = Vec::new();
    while let Some(piece) = download.next().await.unwrap() {
        read.extend_from_slice(&piece);
    }
    assert!(read == content);
    assert_eq!(server.state().broken_reads, 0);

    server.state().broken_reads = usize::MAX;
    let error = store.download("key").await.unwrap().next().await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_of_what_was_replaced_is_an_error() {
    let server = Server::start(Auth::Anonymous).await;
    let store = server.store("").await;
    store.put("key", vec![1; 6 * PIECE]).await.unwrap();
    let mut download = store.download("key").await.unwrap();
    store.put("key", vec![2; 6 * PIECE]).await.unwrap();
    // The first piece was asked for before.
    assert_eq!(download.next().await.unwrap().unwrap(), vec![1; PIECE]);
    let error = download.next().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed, "{error:?}");
    assert!(error.to_string().ends_with("key: it was replaced while it was read"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_fails_leaves_nothing_and_does_not_go_on() {
    let server = Server::start(Auth::Anonymous).await;
    let store = server.store("").await;
    server.state().full = true;
    let mut upload = store.upload("key").await.unwrap();
    let error = loop {
        if let Err(error) = upload.write(vec![0; PIECE]).await {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    assert!(server.state().uploads.is_empty());
    server.state().full = false;
    assert!(upload.write("more").await.unwrap_err().to_string().contains("start a new one"));
    assert!(upload.finish().await.is_err());
    assert!(!store.exists("key").await.unwrap());

    // A failure that shows only at the end.
    server.state().full = true;
    assert_eq!(store.put("key", vec![0; 2 * PIECE]).await.unwrap_err().kind(), ErrorKind::Denied);
    assert!(server.state().uploads.is_empty() && !store.exists("key").await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_gone_can_be_tried_again() {
    let server = Server::start(Auth::Anonymous).await;
    let store = server.store("").await;
    let mut upload = store.upload("key").await.unwrap();
    upload.write(vec![0; 2 * PIECE]).await.unwrap();
    // Swept, or its end was answered and the answer lost.
    server.state().uploads.clear();
    let error = upload.finish().await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_have_checksums_unless_the_url_says_otherwise() {
    let server = Server::start(Auth::Anonymous).await;
    for (options, expected) in [("", true), ("checksums=when_required", false)] {
        server.state().checksums.clear();
        server.store(options).await.put("key", vec![0; 2 * PIECE]).await.unwrap();
        let found: Vec<bool> = server.state().checksums.iter().map(Option::is_some).collect();
        assert_eq!(found, [expected; 2], "{options}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_written_is_encrypted_as_the_url_says() {
    let server = Server::start(Auth::Anonymous).await;
    let key = "arn:aws:kms:eu-west-1:1234:key/ab-cd";
    for (options, expected) in [
        (String::new(), ("", "")),
        ("sse=AES256".into(), ("AES256", "")),
        (format!("sse=aws:kms&kms_key={key}"), ("aws:kms", key)),
    ] {
        let store = server.store(&options).await;
        server.state().encryption.clear();
        store.put("put", "value").await.unwrap();
        let _ = store.put_new("put-new", "value").await.unwrap();
        store.put("large", vec![0; 2 * PIECE]).await.unwrap();
        store.upload("upload").await.unwrap().finish().await.unwrap();
        let found = server.state().encryption.clone();
        assert_eq!(found, vec![(expected.0.to_owned(), expected.1.to_owned()); 4], "{options}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_accepts_and_never_answers_is_unavailable_in_time() {
    let server = Server::start(Auth::Anonymous).await;
    let proxy = harness::Proxy::start(server.port());
    let url = format!("s3://bucket/p?endpoint=http://127.0.0.1:{}&anonymous=true&timeout=1", proxy.port);
    let store = Store::open(&url).await.unwrap();
    store.put("there", b"before".to_vec()).await.unwrap();
    let errors = async || {
        // On the connection that exists, and on new ones.
        let (a, b, c, d, e, f) = tokio::join!(
            store.get("there"),
            store.put("new", b"small".to_vec()),
            store.put_new("other", b"small".to_vec()),
            store.identity("there"),
            store.delete("gone"),
            store.list("").unwrap().all(),
        );
        let (c, d) = (c.map(drop).unwrap_err(), d.map(drop).unwrap_err());
        [a.map(drop).unwrap_err(), b.unwrap_err(), c, d, e.unwrap_err(), f.map(drop).unwrap_err()]
    };
    for flow in [harness::Flow::Silent, harness::Flow::Half] {
        proxy.set(flow);
        let (began, errors) = (std::time::Instant::now(), errors().await);
        assert!(errors.iter().all(|error| error.kind() == ErrorKind::Unavailable), "{errors:?}");
        assert!(began.elapsed().as_secs() < 8, "{:?}", began.elapsed());
    }
    proxy.set(harness::Flow::Free);
    store.put("again", b"after".to_vec()).await.unwrap();
    assert_eq!(&store.get("there").await.unwrap()[..], b"before");
}

/// As S3 does for credentials that may read and write, and not list.
#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_answers_403_for_missing_objects_is_refused_at_the_start_with_the_permission_that_it_lacks() {
    let server = Server::start(Auth::Anonymous).await;
    let store = server.store("").await;
    store.check_writable().await.unwrap();
    server.state().hides = true;
    for refusal in [store.check_writable().await, store.examine().await.map(drop)] {
        let error = refusal.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(error.to_string().contains("s3:ListBucket"), "{error}");
    }
    assert!(store.list("").unwrap().all().await.unwrap().is_empty(), "nothing is left behind");
}
