//! What operators ask for, through the API: notifications, budgets, deletion, and the log of changes.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::world::{Acting, OPERATE, VIEW, World, content, gate, wait_for};
use client::api::{Change, LogEntry, RunRequest};
use client::{Client, ClientError, LONG};
use coordinator::http::other_services::OtherServices;
use coordinator::http::serve;
use coordinator::notify::Notify;
use coordinator::notify::notice::{Images, Kind, Notice, Secret};
use coordinator::notify::send::{Target, Webhook};
use coordinator::service::Config;
use proto::{Control, RunState, keys};

const SECRET: &str = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";

/// The API of a coordinator, as two clients see it.
struct Api {
    operate: Client,
    view: Client,
}

impl Api {
    async fn of(acting: &Acting) -> Api {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(serve(listener, acting.handle.clone(), gate(), OtherServices::default()));
        let client = |token: &str| Client::new(&url, Some(token.to_owned()), LONG);
        Api { operate: client(OPERATE), view: client(VIEW) }
    }

    fn ask<T>(&self, ask: impl FnOnce(&Client) -> Result<T, ClientError>) -> Result<T, ClientError> {
        tokio::task::block_in_place(|| ask(&self.operate))
    }

    /// The status and the reason of a refusal.
    fn refused<T: std::fmt::Debug>(&self, ask: impl FnOnce(&Client) -> Result<T, ClientError>) -> (u16, String) {
        match self.ask(ask) {
            Err(ClientError::Refused { status, why }) => (status.as_u16(), why),
            other => panic!("{other:?}"),
        }
    }

    fn log(&self, run: Option<&str>) -> Vec<LogEntry> {
        tokio::task::block_in_place(|| self.view.log(run, 0)).unwrap()
    }
}

fn state(state: RunState) -> Change {
    Change { state: Some(state), ..Change::default() }
}

/// A request for a webhook: its headers, and its body.
#[derive(Clone)]
struct Told {
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Told {
    fn notice(&self) -> Notice {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// A webhook that keeps what it is told, and answers 503 while it is ill.
struct Receiver {
    url: String,
    told: Arc<Mutex<Vec<Told>>>,
    ill: Arc<AtomicBool>,
}

impl Receiver {
    fn start(is_ill: bool) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hidden-path", listener.local_addr().unwrap());
        let (told, ill) = (Arc::new(Mutex::new(vec![])), Arc::new(AtomicBool::new(is_ill)));
        let (keep, is_ill) = (told.clone(), ill.clone());
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let mut reader = BufReader::new(socket.unwrap());
                let lines = reader.by_ref().lines().map(|line| line.unwrap()).take_while(|line| !line.is_empty());
                let headers =
                    lines.filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())));
                let headers: BTreeMap<String, String> = headers.collect();
                let mut body = vec![0; headers["content-length"].parse().unwrap()];
                reader.read_exact(&mut body).unwrap();
                keep.lock().unwrap().push(Told { headers, body });
                let status = if is_ill.load(Ordering::SeqCst) { "503 Service Unavailable" } else { "204 No Content" };
                write!(reader.get_mut(), "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
            }
        });
        Receiver { url, told, ill }
    }

    /// Settings that tell it, with these pauses between tries.
    fn notify(&self, pauses: &[u64]) -> Notify {
        let webhook = Webhook::new(self.url.parse().unwrap(), Some(SECRET.parse().unwrap()));
        let pauses = pauses.iter().map(|pause| Duration::from_millis(*pause)).collect();
        Notify { pauses, ..Notify::new(vec![Target::Webhook(webhook)], Duration::from_secs(3600)) }
    }

    fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }

    async fn first(&self, kind: Kind) -> Told {
        wait_for(kind.as_str(), async || self.told().into_iter().find(|told| told.notice().kind == kind)).await
    }
}

async fn outbox(world: &World) -> usize {
    world.home.list(keys::NOTICES).unwrap().all().await.unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_told_of_the_end_of_a_run_until_it_has_understood() {
    let (world, receiver) = (World::new(4).await, Receiver::start(true));
    let acting = world.start_with(|config| Config { notify: receiver.notify(&[20; 500]), ..config }).await;
    let api = Api::of(&acting).await;
    api.ask(|client| client.submit(&world.request())).unwrap();
    world.done(&acting, 4, true).await;
    wait_for("a second try", async || (receiver.told().len() >= 2).then_some(())).await;
    let run = wait_for("the problem", async || api.ask(|c| c.run("r")).unwrap().notification_problem).await;
    assert!(run.contains("503") && run.contains("127.0.0.1") && !run.contains("hidden"), "{run}");
    receiver.ill.store(false, Ordering::SeqCst);
    wait_for("the delivery", async || (outbox(&world).await == 0).then_some(())).await;
    assert_eq!(api.ask(|c| c.run("r")).unwrap().notification_problem, None);

    let told = receiver.told();
    let secret: Secret = SECRET.parse().unwrap();
    for Told { headers, body } in &told {
        let (id, time) = (&headers["webhook-id"], headers["webhook-timestamp"].parse().unwrap());
        assert_eq!((id, &headers["webhook-signature"]), (&told[0].headers["webhook-id"], &secret.sign(id, time, body)));
    }
    let notice = told[0].notice();
    assert_eq!((notice.kind, &notice.id), (Kind::Finished, &told[0].headers["webhook-id"]));
    assert_eq!((notice.data.run.as_deref(), notice.data.state), (Some("r"), Some(RunState::Finished)));
    assert_eq!(notice.data.images, Some(Images { total: 4, succeeded: 2, failed: 2, left: 0 }));
    acting.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_coordinator_could_not_deliver_the_next_one_delivers_and_only_once() {
    let (world, receiver) = (World::new(2).await, Receiver::start(true));
    let hour = 3_600_000;
    let acting = world.start_with(|config| Config { notify: receiver.notify(&[hour]), ..config }).await;
    acting.handle.submit(world.request()).await.unwrap();
    world.done(&acting, 2, false).await;
    let first = receiver.first(Kind::Finished).await;
    acting.stop().await;
    assert_eq!(outbox(&world).await, 1);
    receiver.ill.store(false, Ordering::SeqCst);
    let acting = world.start_with(|config| Config { notify: receiver.notify(&[hour]), ..config }).await;
    wait_for("the delivery", async || (outbox(&world).await == 0).then_some(())).await;
    acting.stop().await;
    let acting = world.start_with(|config| Config { notify: receiver.notify(&[hour]), ..config }).await;
    acting.finished().await;
    acting.stop().await;
    let ids: Vec<String> = receiver.told().iter().map(|told| told.notice().id).collect();
    assert_eq!(ids, [first.notice().id.clone(), first.notice().id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_stalls_recovers_and_is_cancelled_is_told_of_each_time() {
    let (world, receiver) = (World::new(2).await, Receiver::start(false));
    let notify = Notify { stalled_after: Duration::from_millis(1), ..receiver.notify(&[20; 50]) };
    let acting = world.start_with(|config| Config { notify, ..config }).await;
    let api = Api::of(&acting).await;
    api.ask(|client| client.submit(&world.request())).unwrap();
    let stalled = receiver.first(Kind::Stalled).await.notice();
    assert_eq!(stalled.data.images, Some(Images { total: 2, succeeded: 0, failed: 0, left: 2 }));
    world.work(1, false).await;
    receiver.first(Kind::Recovered).await;
    api.ask(|client| client.change("r", &state(RunState::Cancelled))).unwrap();
    let cancelled = receiver.first(Kind::Cancelled).await.notice();
    assert_eq!(cancelled.data.images, Some(Images { total: 2, succeeded: 1, failed: 0, left: 1 }));
    acting.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_has_used_its_budget_is_paused_until_it_is_raised() {
    let (world, receiver) = (World::new(3).await, Receiver::start(false));
    let acting = world.start_with(|config| Config { notify: receiver.notify(&[20; 50]), ..config }).await;
    let api = Api::of(&acting).await;
    // 36 milliseconds.
    let budget = 1e-5;
    let bad = RunRequest { budget_hours: Some(-1.0), ..world.request() };
    assert_eq!(api.refused(|client| client.submit(&bad)).0, 422);
    api.ask(|client| client.submit(&RunRequest { budget_hours: Some(budget), ..world.request() })).unwrap();
    let paused = wait_for("the pause", async || {
        world.beat().await;
        api.ask(|c| c.run("r")).unwrap().paused_because
    })
    .await;
    assert!(paused.contains("basin runs budget r"), "{paused}");
    assert_eq!(receiver.first(Kind::OverBudget).await.notice().data.state, Some(RunState::Paused));
    let resume = |client: &Client| client.change("r", &state(RunState::Running));
    let (status, why) = api.refused(resume);
    assert!(status == 409 && why.contains("budget"), "{status} {why}");

    // What is used is known after a restart, too.
    let acting = acting.restart(&world).await;
    let api = Api::of(&acting).await;
    let run = acting.until("the run", |run| run.images == 3).await;
    assert!(run.state == RunState::Paused && run.worker_hours >= budget && run.paused_because.is_some(), "{run:?}");
    let raise = Change { budget_hours: Some(1.0), ..Change::default() };
    let run = api.ask(|client| client.change("r", &raise)).unwrap();
    assert_eq!((run.state, run.budget_hours, run.paused_because), (RunState::Paused, Some(1.0), None));
    assert_eq!(api.ask(resume).unwrap().state, RunState::Running);
    let run = world.done(&acting, 3, false).await;
    assert!(run.ended.is_some() && run.worker_hours >= budget, "{run:?}");

    let log: Vec<(String, String)> = api.log(Some("r")).into_iter().map(|entry| (entry.action, entry.who)).collect();
    let by = |action: &str, who: &str| (action.to_owned(), who.to_owned());
    assert_eq!(log, [by("resume", "token"), by("budget", "token"), by("pause", "coordinator"), by("submit", "token")]);
    acting.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_has_ended_can_be_deleted_and_its_name_is_not_used_again() {
    let (world, acting) = World::finished(4, false).await;
    let api = Api::of(&acting).await;
    let forbidden = tokio::task::block_in_place(|| api.view.delete("r")).unwrap_err();
    assert!(matches!(forbidden, ClientError::Refused { status, .. } if status.as_u16() == 403), "{forbidden}");
    let other = RunRequest { name: "other".into(), ..world.request() };
    api.ask(|client| client.submit(&other)).unwrap();
    let (status, why) = api.refused(|client| client.delete("other"));
    assert!(status == 409 && why.contains("cancel it first"), "{status} {why}");
    assert_eq!(api.refused(|client| client.delete("none")).0, 404);

    let gone = async |api: &Api| {
        wait_for("the deletion", async || {
            api.ask(|client| client.runs()).unwrap().iter().all(|run| run.name != "r").then_some(())
        })
        .await;
        let left = content(&world.home).await;
        let left: Vec<&String> = left.keys().filter(|key| key.starts_with("runs/r/") || key.ends_with("/r.json")).collect();
        assert_eq!(left, ["control/r.json"], "the order stays for workers that were stopped");
    };
    assert!(api.ask(|client| client.delete("r")).unwrap().contains("being deleted"));
    gone(&api).await;
    assert!(!world.home.list("runs/other/").unwrap().all().await.unwrap().is_empty());

    // Something late of the old run could count in the new one.
    for request in [world.request(), RunRequest { seed: 7, ..world.request() }] {
        let (status, why) = api.refused(|client| client.submit(&request));
        assert!(status == 409 && why.contains("was deleted") && why.contains("another name"), "{status} {why}");
    }

    // A deletion that was broken off goes on, also of a cancelled run whose tables are gone.
    api.ask(|client| client.change("other", &state(RunState::Cancelled))).unwrap();
    wait_for("its tables", async || world.home.exists("runs/other/manifest.json").await.unwrap().then_some(())).await;
    acting.stop().await;
    let order: Control = serde_json::from_slice(&world.home.get(&keys::control("other")).await.unwrap()).unwrap();
    assert!(!order.deleted && order.ended.is_some(), "{order:?}");
    let marked = serde_json::to_vec(&Control { deleted: true, ..order }).unwrap();
    world.home.put(&keys::control("other"), marked).await.unwrap();
    world.home.delete("runs/other/manifest.json").await.unwrap();
    let acting = world.start().await;
    let api = Api::of(&acting).await;
    gone(&api).await;
    wait_for("the other's deletion", async || api.ask(|client| client.runs()).unwrap().is_empty().then_some(())).await;
    acting.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_that_ended_long_ago_are_deleted_only_if_the_operator_wants_that() {
    let (world, acting) = World::finished(2, false).await;
    let other = RunRequest { name: "other".into(), ..world.request() };
    acting.handle.submit(other).await.unwrap();
    acting.stop().await;
    let keep = async |keep_runs| world.start_with(|config| Config { keep_runs, ..config }).await;
    for keep_runs in [None, Some(Duration::from_secs(86_400))] {
        let acting = keep(keep_runs).await;
        acting.until("the run", |run| run.deleting.is_none()).await;
        acting.stop().await;
    }
    assert!(world.home.exists(&keys::index("r")).await.unwrap());
    let acting = keep(Some(Duration::ZERO)).await;
    let api = Api::of(&acting).await;
    wait_for("the deletion", async || acting.status().await.is_none().then_some(())).await;
    let names: Vec<String> = api.ask(|client| client.runs()).unwrap().into_iter().map(|run| run.name).collect();
    assert_eq!(names, ["other"]);
    let log = api.log(Some("r"));
    assert_eq!(
        log.iter().map(|entry| (entry.action.as_str(), entry.who.as_str())).collect::<Vec<_>>(),
        [("delete", "coordinator")]
    );
    acting.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_says_who_changed_what_and_never_shows_a_token() {
    let world = World::new(2).await;
    let acting = world.start().await;
    let api = Api::of(&acting).await;
    api.ask(|client| client.submit(&world.request())).unwrap();
    api.ask(|client| client.submit(&RunRequest { name: "other".into(), ..world.request() })).unwrap();
    api.ask(|client| client.change("r", &Change { priority: Some(3), ..state(RunState::Paused) })).unwrap();
    api.refused(|client| client.change("none", &state(RunState::Paused)));
    let log = api.log(None);
    let changes: Vec<(&str, &str)> = log.iter().map(|entry| (entry.run.as_str(), entry.action.as_str())).collect();
    assert_eq!(changes, [("r", "pause+priority"), ("other", "submit"), ("r", "submit")]);
    assert!(log.iter().all(|entry| entry.who == "token" && entry.address.as_deref() == Some("127.0.0.1")), "{log:?}");
    assert!(log.is_sorted_by(|a, b| a.time > b.time) && log[0].detail.contains("\"priority\":3"), "{log:?}");
    assert_eq!(api.log(Some("r")).len(), 2);
    for (key, bytes) in content(&world.home).await.iter().filter(|(key, _)| key.starts_with(keys::LOG)) {
        let text = String::from_utf8_lossy(bytes);
        assert!(!text.contains(OPERATE) && !text.contains(VIEW), "{key}: {text}");
    }
    acting.stop().await;
}
