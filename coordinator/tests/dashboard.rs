//! The dashboard and the API, as browsers and attackers see them.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use crate::world::{Acting, EDIT_TOKEN, World, edited, serve_edits};
use coordinator::http::auth::Gate;
use coordinator::http::connections::{self, Limits};
use coordinator::http::other_services::{Edits, OtherServices};
use coordinator::http::router;
use proto::FineTuned;
use proto::RunState;
use proto::keys::Item;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

const OPERATE: &str = "operate-token-of-the-test";
const VIEW: &str = "view-token-of-the-test";
const HOSTILE: &str = "<img src=x onerror=alert(1)>\u{202e}.png";

struct Site {
    address: SocketAddr,
    serving: JoinHandle<Infallible>,
}

/// Status, head and body of an answer.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Site {
    async fn open(acting: &Acting, gate: Gate) -> Site {
        Site::limited(acting, gate, Limits::default()).await
    }

    async fn limited(acting: &Acting, gate: Gate, limits: Limits) -> Site {
        Site::beside(acting, gate, limits, None).await
    }

    async fn beside(acting: &Acting, gate: Gate, limits: Limits, edits: Option<Edits>) -> Site {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let traces = Some("https://tempo.example/trace/{trace}".parse().unwrap());
        let router = router(acting.handle.clone(), gate, OtherServices { traces, edits });
        let serving = tokio::spawn(connections::serve(listener, router, limits));
        Site { address, serving }
    }

    /// A connection from an address of this machine.
    async fn connect(&self, from: [u8; 4]) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        socket.connect(self.address).await.unwrap()
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
            ("/runs/r", vec!["Provenance", "/data", "fashion32 (", "fast, ", " UTC<"]),
            ("/runs/r/images", vec!["data-total=\"10\"", "Bag/2.png", "diverged"]),
            ("/runs/r/images?class=bag&state=&min_loss=2&max_loss=&sort=loss&descending=true", vec!["data-total=\"4\""]),
            ("/runs/r/image?key=Bag/2.png", vec!["Provenance", "Final descent", "fashion32"]),
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
            assert!(
                !["Redrive", "Retry"].iter().any(|action| page.body.contains(action)),
                "{path}: no action with a read-only token"
            );
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
async fn errors_are_shown_by_super_class_and_images_found_by_it_before_and_after_a_restart() {
    let world = World::new(4).await;
    std::fs::create_dir(world.path("data/Dress")).unwrap();
    std::fs::write(world.path("data/Dress/9.png"), "bytes").unwrap();
    world.group(|class| if class == "Coat" { "worn <outside>".into() } else { "other things".into() }).await;
    let acting = world.start().await;
    acting.submit(&world).await;
    world.work(5, true).await;
    acting.finished().await;
    let mut first = Some(acting);
    for _ in 0..2 {
        let acting = match first.take() {
            Some(acting) => acting,
            None => world.start().await,
        };
        let site = Site::open(&acting, gate()).await;
        let run: serde_json::Value = serde_json::from_str(&site.get("/v1/runs/r", VIEW).await.body).unwrap();
        let [group] = &run["super_classes"].as_array().unwrap()[..] else { panic!("{run}") };
        let number = |field: &str| group[field].as_f64().unwrap();
        assert_eq!((&group["class"], number("images")), (&"other things".into(), 3.0));
        // Losses 0, 2 and 9 of two classes, LPIPS an eighth of them: deviations -11/3, -5/3, 16/3, squares 402/9 in all.
        assert!((number("loss") - 11.0 / 3.0).abs() < 1e-12, "{group}");
        let error = (402.0f64 / 9.0 / 2.0 / 3.0).sqrt() / 8.0;
        assert!((number("lpips_standard_error") - error).abs() < 1e-12, "{group}");
        let described: serde_json::Value = serde_json::from_str(&site.get("/openapi.json", VIEW).await.body).unwrap();
        for (schema, value) in [("RunStatus", &run), ("ClassStatus", &run["classes"][0])] {
            let fields =
                |object: &serde_json::Value| -> BTreeSet<String> { object.as_object().unwrap().keys().cloned().collect() };
            assert_eq!(fields(&described["components"]["schemas"][schema]["properties"]), fields(value));
        }
        let classes: Vec<_> = run["classes"].as_array().unwrap().iter().map(|c| (&c["class"], &c["super_class"])).collect();
        assert_eq!(classes.len(), 2);
        assert!(classes.iter().all(|(_, super_class)| **super_class == "other things"), "{classes:?}");
        for (path, wanted) in [
            ("/runs/r", vec!["Error by class", "?by=super-class", "images?sort=loss&amp;descending=true&amp;class=Dress"]),
            ("/runs/r?by=super-class", vec!["Error by super-class", "super_class=other%20things", "by super-class; the table"]),
            (
                "/runs/r/images?super_class=Other%20Things",
                vec!["data-total=\"3\"", "name=\"super_class\"", "&amp;super_class=Other%20Things\""],
            ),
            // Failures too.
            ("/runs/r/images?super_class=worn%20%3Coutside%3E", vec!["data-total=\"2\"", "Coat/3.png"]),
            ("/runs/r/images?super_class=none", vec!["data-total=\"0\""]),
            ("/runs/r/images?super_class=other%20things&class=bag", vec!["data-total=\"2\""]),
            ("/runs/r/report.html", vec!["Error by super-class", "<bdi>other things</bdi></th><td>3</td>"]),
        ] {
            let page = site.get(path, VIEW).await;
            assert_eq!(page.status, 200, "{path}: {}", page.body);
            for part in wanted {
                assert!(page.body.contains(part), "{path} has no {part}: {}", page.body);
            }
            assert!(!page.body.contains("<outside>"), "{path}: {}", page.body);
        }
        acting.stop().await;
    }

    // A model without any says nothing of them.
    let world = World::new(2).await;
    let key = "models/fashion32/model.json";
    let mut model: serde_json::Value = serde_json::from_slice(&world.home.get(key).await.unwrap()).unwrap();
    model.as_object_mut().unwrap().remove("super_classes");
    world.home.put(key, serde_json::to_vec(&model).unwrap()).await.unwrap();
    let acting = world.start().await;
    acting.submit(&world).await;
    world.work(2, false).await;
    acting.finished().await;
    let site = Site::open(&acting, gate()).await;
    for path in ["/runs/r?by=super-class", "/runs/r/images", "/runs/r/report.html"] {
        let page = site.get(path, VIEW).await.body;
        assert!(page.contains("class") && !page.contains("uper-class"), "{path}: {page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_shown_without_a_token_and_a_read_only_token_changes_nothing() {
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
    // A form of another site does not know the key.
    assert_eq!(site.post("/runs/r/redrive", OPERATE, "form_key=guessed&where=").await.status, 403);
    assert_eq!(acting.status().await.unwrap().state, RunState::Finished);

    // A session by cookie; it leads only to this site.
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
        assert!(site.ask("GET", "/runs/r", &[&cookie], "").await.body.contains("Redrive images"));
    }
    // Wrong tokens are limited.
    let guesses = async || site.get("/v1/runs", "wrong-token-of-somebody").await.status;
    let mut last = 401;
    for _ in 0..40 {
        last = guesses().await;
    }
    assert_eq!(last, 429);
    // And by cookie.
    assert_eq!(site.ask("GET", "/v1/runs", &["Cookie: basin_session=wrong"], "").await.status, 429);
    // The right token is not locked out.
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
async fn forms_change_a_run_and_pages_are_updated() {
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
    assert!(done.status == 303 && done.head.contains("location: /runs/r\r\n"), "{}", done.head);
    assert_eq!(acting.status().await.unwrap().state, RunState::Paused);
    until(r#""state":"paused""#).await;
    for (body, wanted) in [("priority=-3", -3), ("state=running", -3)] {
        assert_eq!(site.post("/runs/r/act", OPERATE, &format!("form_key={key}&{body}")).await.status, 303);
        assert_eq!(acting.status().await.unwrap().priority, wanted);
    }
    let refused = site.post("/runs/r/redrive", OPERATE, &format!("form_key={key}&where=&seed=")).await;
    let cookie = |answer: &Answer| answer.head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).map(str::to_owned);
    let note = cookie(&refused).expect("a note");
    assert!(note.contains("HttpOnly") && note.contains("SameSite=Strict") && note.contains("Max-Age=60"), "{note}");
    let note = note.split(';').next().unwrap();
    // The note is shown once, and no foreign link or cookie can set one.
    let bearer = format!("Authorization: Bearer {OPERATE}");
    let show =
        async |note: &str, more: &str| site.ask("GET", "/runs/r", &[&bearer, &format!("Cookie: x=1; {note}"), more], "").await;
    let refresh = show(note, "X-Refresh: 1").await;
    assert!(!refresh.body.contains("is not finished") && cookie(&refresh).is_none());
    let shown = show(note, "X-More: 1").await;
    assert!(shown.body.contains("run r is not finished: only a finished run can be redriven"), "{}", shown.body);
    assert!(cookie(&shown).expect("it is forgotten").starts_with("basin_note=; "));
    for strange in [note.replace("not", "n%20o%20t"), "basin_note=0.refused/Call%20us".into(), "basin_note=Call%20us".into()] {
        let shown = show(&strange, "X-More: 1").await;
        assert!(!shown.body.contains("class=\"note") && cookie(&shown).is_none(), "{strange}");
    }
    assert!(!site.get("/runs/r?done=Call+us&refused=Call+us", OPERATE).await.body.contains("Call us"));
    world.work(4, true).await;
    acting.finished().await;
    until(r#""state":"finished""#).await;
    let done = site.post("/runs/r/redrive", OPERATE, &format!("form_key={key}&where=reason%3Ddiverged&seed=")).await;
    assert!(cookie(&done).is_some_and(|note| note.contains(".done/run")), "{}", done.head);
    world.work(2, false).await;
    assert_eq!(acting.finished().await.failed, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_image_is_retried_whatever_its_name_is() {
    let world = World::new(0).await;
    std::fs::create_dir_all(world.path("data/Coat")).unwrap();
    let names = ["Coat/a*.png", "Coat/ab.png", "Coat/a\",b.png"];
    names.iter().for_each(|name| std::fs::write(world.path("data").join(name), "bytes").unwrap());
    let acting = world.start().await;
    acting.submit(&world).await;
    world.work(3, true).await;
    acting.finished().await;
    let site = Site::open(&acting, gate()).await;
    let key = site.form_key().await;
    for (i, name) in names.into_iter().enumerate() {
        let page = site.get(&format!("/runs/r/image?key={}", name.replace('"', "%22").replace('*', "%2A")), OPERATE).await.body;
        let (_, form) = page.split_once("name=\"where\" value=\"").expect("a form");
        let condition = form.split("\">").next().unwrap().replace("&quot;", "\"");
        let condition: String = condition.bytes().map(|b| format!("%{b:02x}")).collect();
        assert_eq!(site.post("/runs/r/redrive", OPERATE, &format!("form_key={key}&where={condition}")).await.status, 303);
        let left = acting.until("its plan", |s| s.queued + s.waiting + s.started > 0).await;
        assert_eq!(left.queued + left.waiting + left.started, 1, "{name}");
        world.work(1, false).await;
        assert_eq!(acting.finished().await.failed, 2 - i);
        assert_eq!(world.record(name).await.image, name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_of_an_image_is_linked_if_it_is_one() {
    let (world, acting) = finished(2).await;
    let site = Site::open(&acting, gate()).await;
    let id = "4bf92f3577b34da6a3ce929d0e0e4736";
    let link = format!("<a href=\"https://tempo.example/trace/{id}\" rel=\"noopener\">{id}</a>");
    for (trace, linked) in [(Some(id), true), (Some("../\"><script>x"), false), (None, false)] {
        let record = proto::ResultRecord { trace: trace.map(str::to_owned), ..world.record("Bag/0.png").await };
        let marker = proto::keys::marker("Bag/0.png", proto::keys::Marker::Result);
        world.results().put(&marker, serde_json::to_vec(&record).unwrap()).await.unwrap();
        let page = site.get("/runs/r/image?key=Bag/0.png", VIEW).await.body;
        assert_eq!((page.contains(&link), page.contains("tempo.example")), (linked, linked), "{page}");
        assert!(!page.contains("<script>x"), "{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_are_asked_of_their_service_and_nothing_else_is_handed_on() {
    let (_world, acting) = finished(2).await;
    let edits = Edits::new(serve_edits().await.parse().unwrap(), Some(EDIT_TOKEN.into()));
    let site = Site::beside(&acting, gate(), Limits::default(), Some(edits)).await;
    let page = site.get("/runs/r/image?key=Bag/0.png", VIEW).await.body;
    assert!(page.contains("data-edit=\"/runs/r/edit\"") && page.contains("data-image=\"Bag/0.png\""), "{page}");
    let options = site.get("/runs/r/edit/options?image=Bag/0.png", VIEW).await;
    assert!(options.status == 200 && options.body.contains("shift_x"), "{}", options.body);
    let fields = [("image", "Bag/0.png"), ("class", "Coat & Co"), ("move.shift_x", "1.5")];
    let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let picture = site.get("/runs/r/edit?image=Bag/0.png&class=Coat%20%26%20Co&move.shift_x=1.5", VIEW).await;
    assert_eq!((picture.status, picture.body), (200, String::from_utf8_lossy(&edited(&fields)).into_owned()));
    for (path, status, why) in [
        ("/runs/r/edit?image=Bag/0.png&class=Dog", 422, "no class"),
        ("/runs/r/edit?image=Bag/0.png&class=Script", 503, "the edit service answers 200"),
        ("/runs/none/edit?image=Bag/0.png", 404, "none"),
        ("/runs/..%2F..%2Fother/edit?image=Bag/0.png", 404, "other"),
    ] {
        let answer = site.get(path, VIEW).await;
        assert!(answer.status == status && answer.body.contains(why), "{path}: {} {}", answer.status, answer.body);
    }
    let stranger = site.ask("GET", "/runs/r/edit?image=Bag/0.png", &[], "").await;
    assert_eq!(stranger.status, 403, "{}", stranger.body);

    let wrong = Edits::new(serve_edits().await.parse().unwrap(), None);
    let site = Site::beside(&acting, gate(), Limits::default(), Some(wrong)).await;
    assert_eq!(site.get("/runs/r/edit?image=Bag/0.png", VIEW).await.status, 503);
    let nobody = Edits::new("http://127.0.0.1:1".parse().unwrap(), None);
    let site = Site::beside(&acting, gate(), Limits::default(), Some(nobody)).await;
    let answer = site.get("/runs/r/edit?image=Bag/0.png", VIEW).await;
    assert!(answer.status == 503 && answer.body.contains("does not answer"), "{}", answer.body);
    let site = Site::open(&acting, gate()).await;
    assert!(!site.get("/runs/r/image?key=Bag/0.png", VIEW).await.body.contains("data-edit"));
    assert_eq!(site.get("/runs/r/edit?image=Bag/0.png", VIEW).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_shows_what_fine_tuning_came_to() {
    let (world, acting) = finished(2).await;
    let site = Site::open(&acting, gate()).await;
    let mut record = world.record("Bag/0.png").await;
    let kept = FineTuned::Kept {
        steps: 300,
        distances: record.seeds[record.best].clone(),
        lpips: (0.25, 0.0625),
        psnr: Some(51.5),
        codes: [("int4".to_owned(), 64)].into(),
    };
    let dropped = FineTuned::Dropped { why: "the loss became <b>infinite</b>".into() };
    let marker = proto::keys::marker("Bag/0.png", proto::keys::Marker::Result);
    let file = |item| proto::keys::item("Bag/0.png", &record.attempt, item);
    let [inverted, tuned] = [Item::Inverted, Item::Tuned].map(file);
    world.results().put(&tuned, world.results().get(&file(Item::Target)).await.unwrap()).await.unwrap();
    for (outcome, wanted, picture) in [
        (Some(kept), vec!["0.2500 before, 0.0625 after", "int4 in 64 layers", "51.5 dB", "item=tuned"], &tuned),
        (Some(dropped), vec!["Fine-tuning did not help", "&lt;b&gt;infinite"], &inverted),
        (None, vec![], &inverted),
    ] {
        record.fine_tuned = outcome;
        world.results().put(&marker, serde_json::to_vec(&record).unwrap()).await.unwrap();
        let page = site.get("/runs/r/image?key=Bag/0.png", VIEW).await.body;
        assert!(wanted.iter().all(|part| page.contains(part)), "{wanted:?}: {page}");
        assert_eq!(page.contains("Fine-tuning"), record.fine_tuned.is_some());
        let shown = site.get("/runs/r/picture?key=Bag/0.png&item=tuned", VIEW).await.body;
        assert!(shown == String::from_utf8_lossy(&world.results().get(picture).await.unwrap()), "{picture}");
    }
}

/// Reads until the other side closes.
async fn is_closed(mut socket: TcpStream) {
    let read = tokio::time::timeout(Duration::from_secs(30), socket.read_to_end(&mut Vec::new())).await;
    // Closed with an end, or with a reset.
    let _ = read.expect("the coordinator closes it");
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_keep_no_client_out() {
    let (_world, acting) = finished(2).await;
    let limits = Limits { all: 12, of_one: 8, ask: Duration::from_secs(600) };
    let site = Site::limited(&acting, gate(), limits).await;
    let stranger = [127, 0, 0, 2];
    let mut hanging = Vec::new();
    for i in 0..8 {
        let mut socket = site.connect(stranger).await;
        // Half of them say nothing at all.
        if i % 2 == 0 {
            socket.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").await.unwrap();
        }
        hanging.push(socket);
    }
    // Their place among the connections is taken when they are accepted, in their order.
    is_closed(site.connect(stranger).await).await;
    assert_eq!(site.get("/runs/r", VIEW).await.status, 200);
    // Another four from elsewhere, and there are as many as there may be.
    for _ in 0..4 {
        hanging.push(site.connect([127, 0, 0, 3]).await);
    }
    is_closed(site.connect([127, 0, 0, 4]).await).await;
    // One goes, another comes.
    hanging.pop();
    crate::world::wait_for("a place", async || {
        let mut socket = site.connect([127, 0, 0, 4]).await;
        let request = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let mut answer = String::new();
        let _ = socket.write_all(request.as_bytes()).await;
        let _ = socket.read_to_string(&mut answer).await;
        answer.contains("alive").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_with_its_answer_when_the_server_stops() {
    let (_world, acting) = finished(2).await;
    let site = Site::open(&acting, gate()).await;
    let ask = async |path: &str| {
        let mut socket = TcpStream::connect(site.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {VIEW}\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = [0; 12];
        socket.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"HTTP/1.1 200");
        socket
    };
    let (idle, live) = (ask("/healthz").await, ask("/ui/live").await);
    site.serving.abort();
    is_closed(idle).await;
    acting.stop().await;
    is_closed(live).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_request_is_cut_off_and_a_listener_is_not() {
    let (_world, acting) = finished(2).await;
    let limits = Limits { ask: Duration::from_millis(300), ..Limits::default() };
    let site = Site::limited(&acting, gate(), limits).await;
    let mut live = TcpStream::connect(site.address).await.unwrap();
    let request = format!("GET /ui/live HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {VIEW}\r\n\r\n");
    live.write_all(request.as_bytes()).await.unwrap();
    for start in ["", "GET / HT", "GET / HTTP/1.1\r\nHost: x\r\n", "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let mut socket = site.connect([127, 0, 0, 1]).await;
        socket.write_all(start.as_bytes()).await.unwrap();
        is_closed(socket).await;
    }
    // As all of these together took more than that, so did the page; and it still hears.
    let mut heard = String::new();
    acting.handle.redrive("r".into(), client::api::RedriveRequest::default()).await.unwrap();
    while !heard.contains(r#""state":"running""#) {
        let mut bytes = [0; 4096];
        let n = tokio::time::timeout(Duration::from_secs(30), live.read(&mut bytes)).await.expect("a tick").unwrap();
        assert!(n > 0, "{heard}");
        heard.push_str(&String::from_utf8_lossy(&bytes[..n]));
    }
}
