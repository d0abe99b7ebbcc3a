//! The dashboard and the API as a browser and its enemies see them.

mod harness;

use std::net::SocketAddr;
use std::time::Duration;

use coordinator::api::router;
use coordinator::auth::Gate;
use harness::{Acting, World};
use proto::RunState;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const OPERATE: &str = "operate-token-of-the-test";
const VIEW: &str = "view-token-of-the-test";
const HOSTILE: &str = "<img src=x onerror=alert(1)>\u{202e}.png";

struct Site {
    address: SocketAddr,
}

/// Status, head and body of an answer.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Site {
    async fn open(acting: &Acting, gate: Gate) -> Site {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = router(acting.handle.clone(), gate).into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Site { address }
    }

    async fn ask(&self, method: &str, path: &str, headers: &[&str], body: &str) -> Answer {
        let mut socket = TcpStream::connect(self.address).await.unwrap();
        let host =
            if headers.iter().any(|h| h.starts_with("Host:")) { String::new() } else { format!("Host: {}\r\n", self.address) };
        let headers: String = headers.iter().map(|h| format!("{h}\r\n")).collect();
        let length = body.len();
        let request =
            format!("{method} {path} HTTP/1.1\r\n{host}Connection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        socket.read_to_end(&mut bytes).await.unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let (head, body) = text.split_once("\r\n\r\n").expect("head and body");
        Answer { status: head[9..12].parse().unwrap(), head: head.to_owned(), body: body.to_owned() }
    }

    async fn get(&self, path: &str, token: &str) -> Answer {
        self.ask("GET", path, &[&format!("Authorization: Bearer {token}")], "").await
    }

    async fn post(&self, path: &str, token: &str, body: &str) -> Answer {
        let form = "Content-Type: application/x-www-form-urlencoded";
        self.ask("POST", path, &[&format!("Authorization: Bearer {token}"), form], body).await
    }

    async fn form_key(&self) -> String {
        let page = self.ask("GET", "/login", &[], "").await.body;
        let (_, rest) = page.split_once("name=\"form_key\" value=\"").expect("a form");
        rest.split('"').next().unwrap().to_owned()
    }
}

fn gate() -> Gate {
    Gate::new(Some(OPERATE), Some(VIEW), b"secret")
}

async fn finished(images: usize) -> (World, Acting) {
    let world = World::new(images).await;
    std::fs::write(world.path("data/Bag").join(HOSTILE), "bytes").unwrap();
    let acting = world.start().await;
    acting.submit(&world).await;
    world.work(images + 1, true).await;
    acting.finished().await;
    (world, acting)
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_show_runs_classes_images_and_failures_before_and_after_a_restart() {
    let (world, acting) = finished(9).await;
    let image = "/runs/r/image?key=Bag/%3Cimg%20src=x%20onerror=alert(1)%3E%E2%80%AE.png";
    let mut first = Some(acting);
    for _ in 0..2 {
        let acting = match first.take() {
            Some(acting) => acting,
            None => world.start().await,
        };
        let site = Site::open(&acting, gate()).await;
        for (path, wanted) in [
            ("/", vec!["/runs/r", "finished", "100.0 %"]),
            ("/runs/r", vec!["Bag", "results.parquet", "Largest loss", "data-chart", "± standard error"]),
            ("/runs/r/images", vec!["data-total=\"10\"", "Bag/2.png", "diverged"]),
            ("/runs/r/images?class=bag&state=&min_loss=2&max_loss=&sort=loss&descending=true", vec!["data-total=\"4\""]),
            ("/runs/r/image?key=Bag/2.png", vec!["Where it comes from", "Final descent", "fashion32"]),
            ("/runs/r/image?key=Coat/1.png", vec!["diverged", "as it was told to"]),
            ("/runs/r/failures", vec!["4 × diverged", "Coat/3.png", "reason=diverged"]),
            ("/failures", vec!["4 × diverged", "/runs/r/failures"]),
            ("/fleet", vec!["No worker"]),
            (image, vec!["onerror=alert"]),
        ] {
            let page = site.get(path, VIEW).await;
            assert_eq!(page.status, 200, "{path}: {}", page.body);
            assert!(page.head.contains("script-src 'self'") && page.head.contains("text/html"), "{path}: {}", page.head);
            for part in wanted {
                assert!(page.body.contains(part), "{path} has no {part}: {}", page.body);
            }
            assert!(!page.body.contains("<img src=x") && !page.body.contains('\u{202e}'), "{path}: {}", page.body);
            assert!(!page.body.contains("Try again"), "{path}: a viewer is offered nothing");
        }
        let rows = site.get("/v1/runs/r/images?sort=loss&descending=true&limit=2&state=succeeded", VIEW).await.body;
        let rows: serde_json::Value = serde_json::from_str(&rows).unwrap();
        assert_eq!(
            (&rows["total"], &rows["images"][0]["image"], &rows["images"][1]["loss"]),
            (&6.into(), &"Bag/8.png".into(), &6.0.into())
        );
        let groups = site.get("/v1/runs/r/failures", VIEW).await.body;
        assert!(groups.contains(r#""reason":"diverged","images":4"#), "{groups}");
        let csv = site.get("/runs/r/results.csv", VIEW).await;
        assert!(csv.head.contains("r-results.csv") && csv.body.lines().count() == 11, "{}", csv.body);
        let picture = site.get("/runs/r/picture?key=Bag/2.png&item=generated", VIEW).await;
        assert!(picture.head.contains("image/png") && picture.body.contains("IHDR"), "{}", picture.head);
        acting.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_has_a_token_sees_anything_and_viewers_change_nothing() {
    let (_world, acting) = finished(3).await;
    let site = Site::open(&acting, gate()).await;
    let pages = [
        "/",
        "/runs/r",
        "/runs/r/images",
        "/runs/r/image?key=Bag/0.png",
        "/failures",
        "/fleet",
        "/ui/live",
        "/runs/r/results.csv",
        "/runs/r/picture?key=Bag/0.png&item=target",
        "/runs/r/report.html",
        "/v1/runs",
        "/v1/runs/r/images",
        "/v1/events",
    ];
    for path in pages {
        let answer = site.ask("GET", path, &[], "").await;
        assert!([401, 403].contains(&answer.status) && !answer.body.contains("Bag"), "{path}: {}", answer.body);
        let answer = site.ask("GET", path, &["Accept: text/html"], "").await;
        assert!([303, 401].contains(&answer.status) && !answer.body.contains("Bag"), "{path}: {}", answer.body);
    }
    let key = site.form_key().await;
    let act = format!("form_key={key}&where=");
    assert_eq!(site.post("/runs/r/redrive", VIEW, &act).await.status, 403);
    assert_eq!(site.ask("PATCH", "/v1/runs/r", &[&format!("Authorization: Bearer {VIEW}")], "{}").await.status, 403);
    // A form of another site knows no key.
    assert_eq!(site.post("/runs/r/redrive", OPERATE, "form_key=guessed&where=").await.status, 403);
    assert_eq!(acting.status().await.unwrap().state, RunState::Finished);

    // A session by cookie; where it leads is here.
    let form = "Content-Type: application/x-www-form-urlencoded";
    for (to, place) in [
        ("/fleet", "/fleet"),
        ("//evil.example/", "/"),
        ("/%5cevil.example/", "/"),
        ("https://evil.example/", "/"),
        ("/%0d%0aX: y", "/"),
    ] {
        let body = format!("form_key={key}&token={OPERATE}&to={to}");
        let entered = site.ask("POST", "/login", &[form], &body).await;
        assert_eq!(entered.status, 303, "{}", entered.body);
        assert!(entered.head.contains(&format!("location: {place}\r\n")), "{}", entered.head);
        let cookie = entered.head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).expect("a cookie");
        let cookie = format!("Cookie: {}", cookie.split(';').next().unwrap());
        assert!(site.ask("GET", "/runs/r", &[&cookie], "").await.body.contains("Project images again"));
    }
    // Guessing ends.
    let guesses = async || site.get("/v1/runs", "wrong-token-of-somebody").await.status;
    let mut last = 401;
    for _ in 0..40 {
        last = guesses().await;
    }
    assert_eq!(last, 429);
    // And by cookie.
    assert_eq!(site.ask("GET", "/v1/runs", &["Cookie: basin_session=wrong"], "").await.status, 429);
    // Who has the token is not locked out.
    assert_eq!(site.get("/v1/runs", OPERATE).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tokens_other_names_of_this_machine_are_refused() {
    let (_world, acting) = finished(2).await;
    let site = Site::open(&acting, Gate::new(None, None, b"secret")).await;
    assert_eq!(site.ask("GET", "/runs/r", &[], "").await.status, 200);
    for path in ["/runs/r", "/v1/runs"] {
        let answer = site.ask("GET", path, &["Host: evil.example"], "").await;
        assert!(answer.status == 403 && answer.body.contains("localhost"), "{}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_url_leads_out_of_a_run() {
    let (_world, acting) = finished(2).await;
    let site = Site::open(&acting, gate()).await;
    for path in [
        "/runs/r/picture?key=../../models/fashion32/model.json&item=target",
        "/runs/r/picture?key=Bag/0.png&item=../../../run",
        "/runs/r/picture?key=/etc/passwd&item=target",
        "/runs/..%2f..%2fmodels/picture?key=Bag/0.png&item=target",
        "/runs/..%2fr/results.csv",
        "/runs/none",
        "/runs/r/image?key=Bag/none.png",
        "/runs/r/images?sort=size",
        "/runs/r/images?min_loss=much",
        "/v1/runs/r/images?colour=red",
    ] {
        let answer = site.get(path, OPERATE).await;
        assert!([404, 422].contains(&answer.status), "{path}: {} {}", answer.status, answer.body);
        assert!(!answer.body.contains("generator") && !answer.body.contains("root:"), "{path}: {}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_steer_a_run_and_pages_hear_of_it() {
    let world = World::new(4).await;
    let acting = world.start().await;
    acting.submit(&world).await;
    let site = Site::open(&acting, gate()).await;
    let key = site.form_key().await;

    let mut live = TcpStream::connect(site.address).await.unwrap();
    let request = format!("GET /ui/live HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {VIEW}\r\n\r\n");
    live.write_all(request.as_bytes()).await.unwrap();
    let mut heard = String::new();
    let mut until = async |wanted: &str| {
        let mut bytes = [0; 4096];
        while !heard.contains(wanted) {
            let n = tokio::time::timeout(Duration::from_secs(30), live.read(&mut bytes)).await.expect("a tick").unwrap();
            assert!(n > 0, "{heard}");
            heard.push_str(&String::from_utf8_lossy(&bytes[..n]));
        }
    };
    until("event: tick").await;
    let done = site.post("/runs/r/act", OPERATE, &format!("form_key={key}&state=paused")).await;
    assert!(done.status == 303 && done.head.contains("location: /runs/r?done="), "{}", done.head);
    assert_eq!(acting.status().await.unwrap().state, RunState::Paused);
    until(r#""state":"paused""#).await;
    for (body, wanted) in [("priority=-3", -3), ("state=running", -3)] {
        assert_eq!(site.post("/runs/r/act", OPERATE, &format!("form_key={key}&{body}")).await.status, 303);
        assert_eq!(acting.status().await.unwrap().priority, wanted);
    }
    let refused = site.post("/runs/r/redrive", OPERATE, &format!("form_key={key}&where=&seed=")).await;
    assert!(refused.head.contains("refused="), "{}", refused.head);
    world.work(4, true).await;
    acting.finished().await;
    until(r#""state":"finished""#).await;
    let done = site.post("/runs/r/redrive", OPERATE, &format!("form_key={key}&where=reason%3Ddiverged&seed=")).await;
    assert!(done.head.contains("done="), "{}", done.head);
    world.work(2, false).await;
    assert_eq!(acting.finished().await.failed, 0);
}
