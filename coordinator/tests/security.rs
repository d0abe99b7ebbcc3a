//! Attacks from outside: through a browser, by a data set's name, and with requests that are too large or too slow.

use std::time::Duration;

use crate::dashboard::{FORM, Site, bearer, is_closed};
use crate::world::{Acting, OPERATE, VIEW, World, gate};
use client::api::RunRequest;
use coordinator::clock::now;
use coordinator::http::auth::Gate;
use coordinator::http::connections::Limits;
use coordinator::http::session::LIFE;
use coordinator::service::{Config, Refusal};
use proto::RunState;
use store::Allowed;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// The header of a session that began at this time.
fn session(gate: &Gate, token: &str, began: u64) -> String {
    let cookie = gate.enter(token, &Default::default(), &[7; 32], began).expect("a right token");
    format!("Cookie: {}", cookie.split(';').next().unwrap())
}

async fn state(acting: &Acting) -> RunState {
    acting.status().await.expect("the run").state
}

#[tokio::test(flavor = "multi_thread")]
async fn no_other_site_changes_anything_with_a_browsers_session() {
    let (_world, acting) = World::finished(4, true).await;
    let site = Site::open(&acting).await;
    let cookie = site.log_in(OPERATE).await;
    let key = site.ask("GET", "/", &[&cookie], "").await.form_key();
    let body = format!("form_key={key}&where=");
    let own = format!("Origin: http://{}", site.address);
    // A sibling domain is the same site for cookies. Even if it knew the form's key:
    for from in [
        &["Host: basin.example.com", "Origin: https://sibling.example.com"][..],
        &["Host: basin.example.com", "Origin: https://basin.example.com", "Sec-Fetch-Site: same-site"],
        &["Origin: https://evil.example", "Sec-Fetch-Site: cross-site"],
        &["Origin: null"],
    ] {
        for (path, body) in [("/runs/r/redrive", body.as_str()), ("/logout", &body), ("/login", "form_key=&token=x")] {
            let answer = site.ask("POST", path, &[from, &[FORM, &cookie]].concat(), body).await;
            assert!(answer.status == 403 && answer.body.contains("another site"), "{path} {from:?}: {}", answer.body);
        }
        let answer = site.ask("PATCH", "/v1/runs/r", &[from, &[&cookie, "Content-Type: application/json"]].concat(), "{}").await;
        assert_eq!(answer.status, 403, "{}", answer.body);
    }
    // The key of another session, of the login page and of nobody.
    let other = site.log_in(OPERATE).await;
    let others_key = site.ask("GET", "/", &[&other], "").await.form_key();
    let login_key = site.ask("GET", "/login", &[], "").await.form_key();
    for key in [others_key.as_str(), &login_key, ""] {
        let answer = site.ask("POST", "/runs/r/redrive", &[FORM, &cookie, &own], &format!("form_key={key}&where=")).await;
        assert!(answer.status == 403 && answer.body.contains("another session"), "{}", answer.body);
    }
    // A login with a key that another browser got.
    let login = site.ask("POST", "/login", &[FORM, &own], &format!("form_key={login_key}&token={OPERATE}")).await;
    assert!(login.status == 403 && login.cookie().is_none(), "{}", login.head);
    assert_eq!(state(&acting).await, RunState::Finished);
    // The page itself.
    assert_eq!(site.ask("POST", "/runs/r/redrive", &[FORM, &cookie, &own], &body).await.status, 303);
    assert_eq!(state(&acting).await, RunState::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_after_its_time_and_with_its_log_out_and_holds_after_a_restart() {
    let (_world, acting) = World::finished(4, true).await;
    let site = Site::open(&acting).await;
    let expired = session(&gate(), OPERATE, now() - LIFE);
    for _ in 0..30 {
        let page = site.ask("GET", "/runs/r", &[&expired, "Accept: text/html"], "").await;
        // Not 429: a tab that is left open does not guess.
        assert!(page.status == 303 && page.head.contains("/login?to="), "{}", page.head);
    }
    assert_eq!(site.ask("GET", "/v1/runs", &[&expired], "").await.status, 401);
    let act = site.ask("POST", "/runs/r/redrive", &[FORM, &expired], "form_key=x&where=").await;
    assert_eq!(act.status, 403);
    // What was opened before ends with it.
    let ending = session(&gate(), VIEW, now() - LIFE + 3);
    for path in ["/ui/live", "/v1/events"] {
        let mut socket = site.connect([127, 0, 0, 1]).await;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{ending}\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        is_closed(socket).await;
    }
    // Another coordinator with the token takes the session, and the next token does not.
    let cookie = site.log_in(OPERATE).await;
    let again = Gate::new(Some(OPERATE), None, b"the secret of another process");
    let again = Site::with(&acting, again, Limits::default(), None).await;
    let page = again.ask("GET", "/runs/r", &[&cookie], "").await;
    assert_eq!(page.status, 200);
    let key = site.ask("GET", "/", &[&cookie], "").await.form_key();
    assert_eq!(page.form_key(), key);
    let next = Site::with(&acting, Gate::new(Some("the-next-operate-token"), None, b"x"), Limits::default(), None).await;
    assert_eq!(next.ask("GET", "/v1/runs", &[&cookie], "").await.status, 401);
    // A copied cookie is worth nothing after the log-out.
    let left = site.ask("POST", "/logout", &[FORM, &cookie], &format!("form_key={key}")).await;
    assert!(left.status == 303 && left.cookie().is_some_and(|cookie| cookie.contains("Max-Age=0")), "{}", left.head);
    assert_eq!(site.ask("GET", "/v1/runs", &[&cookie], "").await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_proxy_that_ends_tls_a_cookie_is_for_https_only() {
    let (_world, acting) = World::finished(2, true).await;
    let site = Site::open(&acting).await;
    let https = "X-Forwarded-Proto: https";
    let login = site.ask("GET", "/login", &[https], "").await;
    let body = format!("form_key={}&token={OPERATE}", login.form_key());
    let entered = site.ask("POST", "/login", &[FORM, https, &login.as_header()], &body).await;
    let cookie = entered.cookie().expect("a session");
    assert!(cookie.starts_with("__Host-basin_session=") && cookie.contains("; Secure"), "{cookie}");
    assert_eq!(site.ask("GET", "/runs/r", &[https, &entered.as_header()], "").await.status, 200);
    // A sibling domain may set a cookie without the prefix: it does not count.
    let tossed = entered.as_header().replace("__Host-", "");
    assert_eq!(site.ask("GET", "/v1/runs", &[https, &tossed], "").await.status, 401);
}

fn request(name: &str, dataset: &str, annotations: &str) -> RunRequest {
    RunRequest { annotations: annotations.into(), ..RunRequest::new(name, dataset, "fashion32") }
}

/// Why the submission is refused.
async fn refused(acting: &Acting, request: RunRequest) -> String {
    match acting.handle.submit(request.clone()).await {
        Err(Refusal::Invalid(why)) => why,
        other => panic!("{request:?}: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submitted_data_set_is_opened_only_where_the_operator_allows_it() {
    let world = World::new(3).await;
    // An attacker's server, which would see a signed request.
    let evil = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let foreign = format!("s3://bucket/data?endpoint=http://{}", evil.local_addr().unwrap());
    let path = |name: &str| world.path(name).to_string_lossy().into_owned();
    std::fs::create_dir(world.path("secret")).unwrap();
    std::fs::write(world.path("secret/notes.csv"), "image,class\nBag/0.png,Bag\n").unwrap();
    std::os::unix::fs::symlink(world.path("secret"), world.path("data/link")).unwrap();
    let home = &world.home;
    let listed = Allowed::listed(&[path("data")]).unwrap();
    for allowed in [listed, Allowed::without_list(home, false), Allowed::without_list(home, true)] {
        let acting = world.start_with(|config| Config { allowed: allowed.clone(), ..config }).await;
        let mut refusals = vec![refused(&acting, request("a", &foreign, "auto")).await];
        if allowed.file("/").is_err() {
            refusals.push(refused(&acting, request("b", &path("secret"), "none")).await);
            refusals.push(refused(&acting, request("c", &path("data/link"), "none")).await);
            refusals.push(refused(&acting, request("d", &format!("file://{}", path("data/%2e%2e/secret")), "none")).await);
        }
        for why in refusals {
            for part in ["not allowed", "--allow-data-set", "BASIN_ALLOWED_DATA_SETS"] {
                assert!(why.contains(part), "{why}");
            }
        }
        acting.stop().await;
    }
    // A file of annotations, too, whether it exists or not.
    let acting = world.start_with(|config| Config { allowed: Allowed::listed(&[path("data")]).unwrap(), ..config }).await;
    for file in ["secret/notes.csv", "data/../secret/notes.csv", "data/link/notes.csv", "secret/none.csv"] {
        let why = refused(&acting, request("e", &path("data"), &path(file))).await;
        assert!(why.contains("not allowed") && why.contains(&path("data")), "{why}");
    }
    assert!(acting.handle.runs().await.unwrap().is_empty(), "nothing of this is on record");
    acting.handle.submit(request("f", &path("data"), "none")).await.unwrap();
    acting.stop().await;
    // A run that is on record is not opened any more when the list is another.
    let acting = world.start_with(|config| Config { allowed: Allowed::listed(&[path("secret")]).unwrap(), ..config }).await;
    let found = crate::world::wait_for("the run", async || {
        acting.handle.runs().await.unwrap().into_iter().find(|run| run.name == "f" && run.problem.is_some())
    });
    assert!(found.await.problem.unwrap().contains("not allowed"));
    acting.stop().await;
    let met = tokio::time::timeout(Duration::ZERO, evil.accept()).await;
    assert!(met.is_err(), "nobody has asked the attacker's server");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_looks_like_a_formula_is_none_in_any_csv_and_is_read_back() {
    let world = World::new(2).await;
    let name = "=HYPERLINK(1)/9.png";
    world.add(name);
    let acting = world.submitted().await;
    acting.until("the failure of an unknown class", |run| run.failed == 1).await;
    let site = Site::open(&acting).await;
    let cell = format!("\n'{name},failed");
    let running = site.get("/runs/r/results.csv", VIEW).await.body;
    assert!(running.contains(&cell), "{running}");
    world.done(&acting, 2, false).await;
    let finished = site.get("/runs/r/results.csv", VIEW).await.body;
    assert!(finished.contains(&cell), "{finished}");
    // A later coordinator has the images from the table.
    let acting = acting.restart(&world).await;
    let site = Site::open(&acting).await;
    let rows = site.get("/v1/runs/r/images?state=failed", VIEW).await.body;
    assert!(rows.contains(&format!("\"image\":\"{name}\"")), "{rows}");
}

/// The head of a request whose body is to follow.
fn head(more: &str) -> String {
    format!("POST /v1/runs HTTP/1.1\r\nHost: x\r\n{}\r\nContent-Type: application/json\r\n{more}\r\n\r\n", bearer(OPERATE))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_too_large_or_trickles_is_refused_and_read_no_further() {
    let (_world, acting) = World::finished(2, true).await;
    let limits = Limits { ask: Duration::from_millis(500), ..Limits::default() };
    let site = Site::with(&acting, gate(), limits, None).await;
    let answer = async |start: &[u8]| {
        let mut socket = site.connect([127, 0, 0, 1]).await;
        socket.write_all(start).await.unwrap();
        let mut answer = String::new();
        let read = tokio::time::timeout(Duration::from_secs(30), socket.read_to_string(&mut answer)).await;
        // It closes, perhaps with a reset.
        let _ = read.expect("the coordinator answers and closes");
        answer
    };
    // 100 MB that are only announced: the answer does not wait for them.
    let large = answer(head("Content-Length: 100000000").as_bytes()).await;
    assert!(large.starts_with("HTTP/1.1 413") && large.contains("more than"), "{large}");
    // The same without a length: one chunk that is a byte too large.
    let mut bytes = format!("{}100001\r\n", head("Transfer-Encoding: chunked")).into_bytes();
    bytes.extend(vec![b'x'; (1 << 20) + 1]);
    let chunked = answer(&bytes).await;
    assert!(chunked.starts_with("HTTP/1.1 422") && chunked.contains("more than"), "{chunked}");
    // A body that comes byte by byte has the time of one request, however many bytes come.
    let mut socket = site.connect([127, 0, 0, 1]).await;
    socket.write_all(head("Content-Length: 1000000").as_bytes()).await.unwrap();
    let (mut reader, mut writer) = socket.into_split();
    let trickle = tokio::spawn(async move {
        let mut every = tokio::time::interval(Duration::from_millis(20));
        while writer.write_all(b" ").await.is_ok() {
            every.tick().await;
        }
    });
    let mut start = [0; 12];
    tokio::time::timeout(Duration::from_secs(30), reader.read_exact(&mut start)).await.expect("an answer").unwrap();
    assert_eq!(&start, b"HTTP/1.1 422");
    trickle.await.unwrap();
    // Others are served.
    assert_eq!(site.get("/v1/runs", VIEW).await.status, 200);
}
