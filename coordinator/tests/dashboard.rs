//! The dashboard and the API, as browsers and attackers see them.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use crate::world::{Acting, OPERATE, VIEW, World, edited, gate, serve_edits, wait_for};
use client::api::RedriveRequest;
use coordinator::http::auth::Gate;
use coordinator::http::connections::{self, Limits};
use coordinator::http::other_services::{Edits, OtherServices};
use coordinator::http::router;
use harness::exchange;
use proto::keys::{self, Item};
use proto::{FineTuned, ResultRecord, RunState};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

const HOSTILE: &str = "Bag/<img src=x onerror=alert(1)>\u{202e}.png";
pub const FORM: &str = "Content-Type: application/x-www-form-urlencoded";

pub struct Site {
    pub address: SocketAddr,
    serving: JoinHandle<Infallible>,
}

/// Status, head and body of an answer.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// The first cookie that it sets.
    pub fn cookie(&self) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix("set-cookie: "))
    }

    /// The cookie as a browser sends it.
    pub fn as_header(&self) -> String {
        format!("Cookie: {}", self.cookie().expect("a cookie").split(';').next().unwrap())
    }

    /// The key of the page's forms.
    pub fn form_key(&self) -> String {
        let (_, rest) = self.body.split_once("name=\"form_key\" value=\"").expect("a form");
        rest.split('"').next().unwrap().to_owned()
    }
}

impl Site {
    pub async fn open(acting: &Acting) -> Site {
        Site::with(acting, gate(), Limits::default(), None).await
    }

    pub async fn with(acting: &Acting, gate: Gate, limits: Limits, edits: Option<Edits>) -> Site {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let traces = Some("https://tempo.example/trace/{trace}".parse().unwrap());
        let router = router(acting.handle.clone(), gate, OtherServices { traces, edits });
        let serving = tokio::spawn(connections::serve(listener, router, limits));
        Site { address, serving }
    }

    async fn with_edits(acting: &Acting, url: &str, token: Option<&str>) -> Site {
        let edits = Edits::new(url.parse().unwrap(), token.map(str::to_owned));
        Site::with(acting, gate(), Limits::default(), Some(edits)).await
    }

    /// A connection from an address of this machine.
    pub async fn connect(&self, from: [u8; 4]) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        socket.connect(self.address).await.unwrap()
    }

    /// A connection with a request for a page, whose answer is not read yet.
    async fn request(&self, path: &str) -> TcpStream {
        let mut socket = self.connect([127, 0, 0, 1]).await;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {VIEW}\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        socket
    }

    pub async fn ask(&self, method: &str, path: &str, headers: &[&str], body: &str) -> Answer {
        let host =
            if headers.iter().any(|h| h.starts_with("Host:")) { String::new() } else { format!("Host: {}\r\n", self.address) };
        let headers: String = headers.iter().map(|h| format!("{h}\r\n")).collect();
        let length = body.len();
        let request =
            format!("{method} {path} HTTP/1.1\r\n{host}Connection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}");
        let text = tokio::task::block_in_place(|| exchange(&self.address.to_string(), &request));
        let (head, body) = text.split_once("\r\n\r\n").expect("head and body");
        Answer { status: head[9..12].parse().unwrap(), head: head.to_owned(), body: body.to_owned() }
    }

    pub async fn get(&self, path: &str, token: &str) -> Answer {
        self.ask("GET", path, &[&bearer(token)], "").await
    }

    async fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.get(path, VIEW).await.body).unwrap()
    }

    /// A page that has all of these parts.
    async fn page(&self, path: &str, parts: &[&str]) -> Answer {
        let page = self.get(path, VIEW).await;
        assert_eq!(page.status, 200, "{path}: {}", page.body);
        for part in parts {
            assert!(page.body.contains(part), "{path} has no {part}: {}", page.body);
        }
        page
    }

    pub async fn post(&self, path: &str, token: &str, body: &str) -> Answer {
        self.ask("POST", path, &[&bearer(token), FORM], body).await
    }

    /// The key of the forms of a client with the token.
    async fn form_key(&self) -> String {
        self.get("/", OPERATE).await.form_key()
    }

    /// The header with the cookie of a new session.
    pub async fn log_in(&self, token: &str) -> String {
        let login = self.ask("GET", "/login", &[], "").await;
        let body = format!("form_key={}&token={token}", login.form_key());
        let entered = self.ask("POST", "/login", &[FORM, &login.as_header()], &body).await;
        assert_eq!(entered.status, 303, "{}", entered.body);
        entered.as_header()
    }
}

pub fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

/// Reads until the text came.
async fn hear(socket: &mut TcpStream, heard: &mut String, wanted: &str) {
    let mut bytes = [0; 4096];
    while !heard.contains(wanted) {
        let n = tokio::time::timeout(Duration::from_secs(30), socket.read(&mut bytes)).await.expect("a tick").unwrap();
        assert!(n > 0, "{heard}");
        heard.push_str(&String::from_utf8_lossy(&bytes[..n]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_show_runs_classes_images_and_failures_before_and_after_a_restart() {
    let world = World::new(9).await;
    world.add(HOSTILE);
    let mut acting = world.finish(10, true).await;
    let image = "/runs/r/image?key=Bag/%3Cimg%20src=x%20onerror=alert(1)%3E%E2%80%AE.png";
    for _ in 0..2 {
        let site = Site::open(&acting).await;
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
            let page = site.page(path, &wanted).await;
            assert!(page.head.contains("script-src 'self'") && page.head.contains("text/html"), "{path}: {}", page.head);
            assert!(!page.body.contains("<img src=x") && !page.body.contains('\u{202e}'), "{path}: {}", page.body);
            let acts = ["Redrive", "Retry"].iter().any(|action| page.body.contains(action));
            assert!(!acts, "{path}: no action with a read-only token");
        }
        let rows = site.json("/v1/runs/r/images?sort=loss&descending=true&limit=2&state=succeeded").await;
        let found = (&rows["total"], &rows["images"][0]["image"], &rows["images"][1]["loss"]);
        assert_eq!(found, (&6.into(), &"Bag/8.png".into(), &6.0.into()));
        site.page("/v1/runs/r/failures", &[r#""reason":"diverged","images":4"#]).await;
        let csv = site.get("/runs/r/results.csv", VIEW).await;
        assert!(csv.head.contains("r-results.csv") && csv.body.lines().count() == 11, "{}", csv.body);
        let picture = site.get("/runs/r/picture?key=Bag/2.png&item=generated", VIEW).await;
        assert!(picture.head.contains("image/png") && picture.body.contains("IHDR"), "{}", picture.head);
        acting = acting.restart(&world).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_shown_by_super_class_and_images_found_by_it_before_and_after_a_restart() {
    let world = World::new(4).await;
    world.add("Dress/9.png");
    world.group(|class| if class == "Coat" { "worn <outside>" } else { "other things" }).await;
    let mut acting = world.finish(5, true).await;
    for _ in 0..2 {
        let site = Site::open(&acting).await;
        let run = site.json("/v1/runs/r").await;
        let [group] = &run["super_classes"].as_array().unwrap()[..] else { panic!("{run}") };
        let number = |field: &str| group[field].as_f64().unwrap();
        assert_eq!((&group["class"], number("images")), (&"other things".into(), 3.0));
        // Losses 0, 2 and 9 of two classes, LPIPS an eighth of them: deviations -11/3, -5/3, 16/3, squares 402/9 in all.
        assert!((number("loss") - 11.0 / 3.0).abs() < 1e-12, "{group}");
        let error = (402.0f64 / 9.0 / 2.0 / 3.0).sqrt() / 8.0;
        assert!((number("lpips_standard_error") - error).abs() < 1e-12, "{group}");
        let described = site.json("/openapi.json").await;
        for (schema, value) in [("RunStatus", &run), ("ClassStatus", &run["classes"][0])] {
            let fields = |object: &Value| -> BTreeSet<String> { object.as_object().unwrap().keys().cloned().collect() };
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
            let page = site.page(path, &wanted).await;
            assert!(!page.body.contains("<outside>"), "{path}: {}", page.body);
        }
        acting = acting.restart(&world).await;
    }

    // Without super-classes in the model, no page names them.
    let world = World::new(2).await;
    world.edit_model(|model| drop(model.as_object_mut().unwrap().remove("super_classes"))).await;
    let acting = world.finish(2, false).await;
    let site = Site::open(&acting).await;
    for path in ["/runs/r?by=super-class", "/runs/r/images", "/runs/r/report.html"] {
        let page = site.get(path, VIEW).await.body;
        assert!(page.contains("class") && !page.contains("uper-class"), "{path}: {page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_shown_without_a_token_and_a_read_only_token_changes_nothing() {
    let (_world, acting) = World::finished(3, true).await;
    let site = Site::open(&acting).await;
    for path in [
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
    ] {
        for (headers, statuses) in [(&[][..], [401, 403]), (&["Accept: text/html"][..], [303, 401])] {
            let answer = site.ask("GET", path, headers, "").await;
            assert!(statuses.contains(&answer.status) && !answer.body.contains("Bag"), "{path}: {}", answer.body);
        }
    }
    let key = site.form_key().await;
    let act = format!("form_key={key}&where=");
    assert_eq!(site.post("/runs/r/redrive", VIEW, &act).await.status, 403);
    let login = site.ask("GET", "/login", &[], "").await;
    assert_eq!(site.ask("PATCH", "/v1/runs/r", &[&bearer(VIEW)], "{}").await.status, 403);
    // A form of another site does not know the key.
    assert_eq!(site.post("/runs/r/redrive", OPERATE, "form_key=guessed&where=").await.status, 403);
    assert_eq!(acting.status().await.unwrap().state, RunState::Finished);

    // A session by cookie; it leads only to this site.
    for (to, place) in [
        ("/fleet", "/fleet"),
        ("//evil.example/", "/"),
        ("/%5cevil.example/", "/"),
        ("https://evil.example/", "/"),
        ("/%0d%0aX: y", "/"),
    ] {
        let body = format!("form_key={}&token={OPERATE}&to={to}", login.form_key());
        let entered = site.ask("POST", "/login", &[FORM, &login.as_header()], &body).await;
        assert_eq!(entered.status, 303, "{}", entered.body);
        assert!(entered.head.contains(&format!("location: {place}\r\n")), "{}", entered.head);
        assert!(site.ask("GET", "/runs/r", &[&entered.as_header()], "").await.body.contains("Redrive images"));
    }
    // Wrong tokens are limited.
    let mut last = 401;
    for _ in 0..40 {
        last = site.get("/v1/runs", "a-wrong-token-of-the-test").await.status;
    }
    assert_eq!(last, 429);
    // And by cookie.
    assert_eq!(site.ask("GET", "/v1/runs", &["Cookie: basin_session=wrong"], "").await.status, 429);
    // The right token is not locked out.
    assert_eq!(site.get("/v1/runs", OPERATE).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tokens_other_names_of_this_machine_are_refused() {
    let (_world, acting) = World::finished(2, true).await;
    let site = Site::with(&acting, Gate::new(None, None, b"secret"), Limits::default(), None).await;
    assert_eq!(site.ask("GET", "/runs/r", &[], "").await.status, 200);
    for path in ["/runs/r", "/v1/runs"] {
        let answer = site.ask("GET", path, &["Host: evil.example"], "").await;
        assert!(answer.status == 403 && answer.body.contains("localhost"), "{}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_url_leads_out_of_a_run() {
    let (_world, acting) = World::finished(2, true).await;
    let site = Site::open(&acting).await;
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
    let acting = world.submitted().await;
    let site = Site::open(&acting).await;
    let key = site.form_key().await;
    let act = async |path: &str, fields: &str| site.post(path, OPERATE, &format!("form_key={key}&{fields}")).await;

    let (mut live, mut heard) = (site.request("/ui/live").await, String::new());
    let mut until = async |wanted: &str| hear(&mut live, &mut heard, wanted).await;
    until("event: tick").await;
    let done = act("/runs/r/act", "state=paused").await;
    assert!(done.status == 303 && done.head.contains("location: /runs/r\r\n"), "{}", done.head);
    assert_eq!(acting.status().await.unwrap().state, RunState::Paused);
    until(r#""state":"paused""#).await;
    for (fields, wanted) in [("priority=-3", -3), ("state=running", -3)] {
        assert_eq!(act("/runs/r/act", fields).await.status, 303);
        assert_eq!(acting.status().await.unwrap().priority, wanted);
    }
    let refused = act("/runs/r/redrive", "where=&seed=").await;
    let note = refused.cookie().expect("a note");
    assert!(note.contains("HttpOnly") && note.contains("SameSite=Strict") && note.contains("Max-Age=60"), "{note}");
    let note = note.split(';').next().unwrap();
    // The note is shown once, and no foreign link or cookie can set one.
    let bearer = bearer(OPERATE);
    let show =
        async |note: &str, more: &str| site.ask("GET", "/runs/r", &[&bearer, &format!("Cookie: x=1; {note}"), more], "").await;
    let refresh = show(note, "X-Refresh: 1").await;
    assert!(!refresh.body.contains("is not finished") && refresh.cookie().is_none());
    let shown = show(note, "X-More: 1").await;
    assert!(shown.body.contains("run r is not finished: only a finished run can be redriven"), "{}", shown.body);
    assert!(shown.cookie().expect("it is forgotten").starts_with("basin_note=; "));
    for strange in [note.replace("not", "n%20o%20t"), "basin_note=0.refused/Call%20us".into(), "basin_note=Call%20us".into()] {
        let shown = show(&strange, "X-More: 1").await;
        assert!(!shown.body.contains("class=\"note") && shown.cookie().is_none(), "{strange}");
    }
    assert!(!site.get("/runs/r?done=Call+us&refused=Call+us", OPERATE).await.body.contains("Call us"));
    world.done(&acting, 4, true).await;
    until(r#""state":"finished""#).await;
    let done = act("/runs/r/redrive", "where=reason%3Ddiverged&seed=").await;
    assert!(done.cookie().is_some_and(|note| note.contains(".done/run")), "{}", done.head);
    assert_eq!(world.done(&acting, 2, false).await.failed, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_image_is_retried_whatever_its_name_is() {
    let world = World::new(0).await;
    let names = ["Coat/a*.png", "Coat/ab.png", "Coat/a\",b.png"];
    names.iter().for_each(|name| world.add(name));
    let acting = world.finish(3, true).await;
    let site = Site::open(&acting).await;
    let key = site.form_key().await;
    for (i, name) in names.into_iter().enumerate() {
        let page = site.get(&format!("/runs/r/image?key={}", name.replace('"', "%22").replace('*', "%2A")), OPERATE).await.body;
        let (_, form) = page.split_once("name=\"where\" value=\"").expect("a form");
        let condition = form.split("\">").next().unwrap().replace("&quot;", "\"");
        let condition: String = condition.bytes().map(|b| format!("%{b:02x}")).collect();
        assert_eq!(site.post("/runs/r/redrive", OPERATE, &format!("form_key={key}&where={condition}")).await.status, 303);
        let left = acting.until("its plan", |s| s.queued + s.waiting + s.started > 0).await;
        assert_eq!(left.queued + left.waiting + left.started, 1, "{name}");
        assert_eq!(world.done(&acting, 1, false).await.failed, 2 - i);
        assert_eq!(world.record(name).await.image, name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_of_an_image_is_linked_if_it_is_one() {
    let (world, acting) = World::finished(2, true).await;
    let site = Site::open(&acting).await;
    let id = "4bf92f3577b34da6a3ce929d0e0e4736";
    let link = format!("<a href=\"https://tempo.example/trace/{id}\" rel=\"noopener\">{id}</a>");
    for (trace, linked) in [(Some(id), true), (Some("../\"><script>x"), false), (None, false)] {
        let record = ResultRecord { trace: trace.map(str::to_owned), ..world.record("Bag/0.png").await };
        world.replace_record(&record).await;
        let page = site.get("/runs/r/image?key=Bag/0.png", VIEW).await.body;
        assert_eq!((page.contains(&link), page.contains("tempo.example")), (linked, linked), "{page}");
        assert!(!page.contains("<script>x"), "{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_are_asked_of_their_service_and_nothing_else_is_handed_on() {
    let (_world, acting) = World::finished(2, true).await;
    let site = Site::with_edits(&acting, &serve_edits().await, Some(OPERATE)).await;
    let image = "/runs/r/image?key=Bag/0.png";
    site.page(image, &["data-edit=\"/runs/r/edit\"", "data-image=\"Bag/0.png\""]).await;
    site.page("/runs/r/edit/options?image=Bag/0.png", &["shift_x"]).await;
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

    let without_token = Site::with_edits(&acting, &serve_edits().await, None).await;
    assert_eq!(without_token.get("/runs/r/edit?image=Bag/0.png", VIEW).await.status, 503);
    let without_service = Site::with_edits(&acting, "http://127.0.0.1:1", None).await;
    let answer = without_service.get("/runs/r/edit?image=Bag/0.png", VIEW).await;
    assert!(answer.status == 503 && answer.body.contains("does not answer"), "{}", answer.body);
    let site = Site::open(&acting).await;
    assert!(!site.get(image, VIEW).await.body.contains("data-edit"));
    assert_eq!(site.get("/runs/r/edit?image=Bag/0.png", VIEW).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_shows_what_fine_tuning_came_to() {
    let (world, acting) = World::finished(2, true).await;
    let site = Site::open(&acting).await;
    let mut record = world.record("Bag/0.png").await;
    let kept = FineTuned::Kept {
        steps: 300,
        distances: record.seeds[record.best].clone(),
        lpips: (0.25, 0.0625),
        psnr: Some(51.5),
        codes: [("int4".to_owned(), 64)].into(),
    };
    let dropped = FineTuned::Dropped { why: "the loss became <b>infinite</b>".into() };
    let file = |item| keys::item("Bag/0.png", &record.attempt, item);
    let [inverted, tuned] = [Item::Inverted, Item::Tuned].map(file);
    world.results().put(&tuned, world.results().get(&file(Item::Target)).await.unwrap()).await.unwrap();
    for (outcome, wanted, picture) in [
        (Some(kept), vec!["0.2500 before, 0.0625 after", "int4 in 64 layers", "51.5 dB", "item=tuned"], &tuned),
        (Some(dropped), vec!["Fine-tuning did not help", "&lt;b&gt;infinite"], &inverted),
        (None, vec![], &inverted),
    ] {
        record.fine_tuned = outcome;
        world.replace_record(&record).await;
        let page = site.page("/runs/r/image?key=Bag/0.png", &wanted).await.body;
        assert_eq!(page.contains("Fine-tuning"), record.fine_tuned.is_some());
        let shown = site.get("/runs/r/picture?key=Bag/0.png&item=tuned", VIEW).await.body;
        assert!(shown == String::from_utf8_lossy(&world.results().get(picture).await.unwrap()), "{picture}");
    }
}

/// Reads until the other side closes.
pub async fn is_closed(mut socket: TcpStream) {
    let read = tokio::time::timeout(Duration::from_secs(30), socket.read_to_end(&mut Vec::new())).await;
    // Closed with an end, or with a reset.
    let _ = read.expect("the coordinator closes it");
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_keep_no_client_out() {
    let (_world, acting) = World::finished(2, true).await;
    let limits = Limits { all: 12, of_one: 8, ask: Duration::from_secs(600) };
    let site = Site::with(&acting, gate(), limits, None).await;
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
    wait_for("a place", async || {
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
    let (_world, acting) = World::finished(2, true).await;
    let site = Site::open(&acting).await;
    let ask = async |path: &str| {
        let mut socket = site.request(path).await;
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
    let (_world, acting) = World::finished(2, true).await;
    let limits = Limits { ask: Duration::from_millis(300), ..Limits::default() };
    let site = Site::with(&acting, gate(), limits, None).await;
    let mut live = site.request("/ui/live").await;
    for start in ["", "GET / HT", "GET / HTTP/1.1\r\nHost: x\r\n", "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let mut socket = site.connect([127, 0, 0, 1]).await;
        socket.write_all(start.as_bytes()).await.unwrap();
        is_closed(socket).await;
    }
    // As all of these together took more than that, so did the page; and it still hears.
    acting.handle.redrive("r".into(), RedriveRequest::default()).await.unwrap();
    hear(&mut live, &mut String::new(), r#""state":"running""#).await;
}
