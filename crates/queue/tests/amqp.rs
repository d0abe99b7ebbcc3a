//! What only a broker that is another process can do: die, hang, refuse, be away.

mod wait;

use std::collections::HashSet;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use futures_util::future::{select_all, try_join_all};
use harness::RabbitMq;
use queue::{Channel, Consumer, Delivery, Error, Parcel, Queue};
use wait::{expect, next, within};

async fn next_of_any(consumers: &mut [Consumer]) -> Delivery {
    select_all(consumers.iter_mut().map(|consumer| Box::pin(next(consumer)))).await.0
}

fn number(delivery: &Delivery) -> u32 {
    u32::from_le_bytes(delivery.payload().try_into().unwrap())
}

/// A queue whose leader is at work: a RabbitMQ 3.10 that is killed just after a declaration loses the queue for good.
async fn open_for_long(broker: &RabbitMq, prefix: &str, options: &str) -> Queue {
    let queue = Queue::open(&broker.url(&format!("prefix={prefix}&{options}"))).await.unwrap();
    for channel in [Channel::Jobs, Channel::Events] {
        queue.publish(channel, Parcel::default()).await.unwrap();
        let mut consumer = queue.consume(channel, 1).await.unwrap();
        next(&mut consumer).await.ack().await.unwrap();
    }
    within("the queues on disk", async {
        while !["jobs", "events", "dead"].iter().all(|queue| broker.has_on_disk(&format!("{prefix}.{queue}"))) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    queue
}

/// Kills a broker as a power cut does, and starts it again.
async fn crash(mut broker: RabbitMq) -> RabbitMq {
    let crashed = tokio::task::spawn_blocking(move || {
        broker.kill9();
        broker.start_again();
        broker
    });
    crashed.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_loses_nothing_and_work_goes_on() {
    const MESSAGES: u32 = 300;
    let broker = RabbitMq::start();
    let queue = open_for_long(&broker, "kill", "give_up=120&heartbeat=5").await;
    let mut jobs = queue.consume(Channel::Jobs, 3).await.unwrap();
    queue.publish(Channel::Jobs, u32::MAX.to_le_bytes().to_vec()).await.unwrap();
    let stale = next(&mut jobs).await;

    let other = queue.clone();
    let publisher = tokio::spawn(async move {
        for number in 0..MESSAGES {
            other.publish(Channel::Jobs, number.to_le_bytes().to_vec()).await.unwrap();
        }
    });
    let mut seen = HashSet::new();
    while seen.len() < 20 {
        let delivery = next(&mut jobs).await;
        seen.insert(number(&delivery));
        delivery.ack().await.unwrap();
    }
    let _broker = crash(broker).await;

    // The job in our hands comes again, so its first delivery settles into nothing.
    let mut held = Vec::new();
    while !seen.contains(&u32::MAX) || seen.len() <= MESSAGES as usize {
        let delivery = next(&mut jobs).await;
        if number(&delivery) == u32::MAX && seen.insert(u32::MAX) {
            assert_eq!(delivery.attempt(), 2, "the death of the broker counts");
            held.push(delivery);
            continue;
        }
        seen.insert(number(&delivery));
        delivery.ack().await.unwrap();
    }
    within("the settlement of a stale delivery", stale.retry()).await.unwrap();
    within("the publisher", publisher).await.unwrap();
    held.pop().unwrap().ack().await.unwrap();

    // The prefetch is still 3.
    let window = (0..10u32).map(|number| number.to_le_bytes().to_vec()).collect();
    queue.publish_all(Channel::Jobs, window).await.unwrap();
    let _unsettled = [next(&mut jobs).await, next(&mut jobs).await, next(&mut jobs).await];
    assert!(tokio::time::timeout(Duration::from_millis(300), jobs.next()).await.is_err(), "a fourth delivery");
    assert_eq!(within("the depth", queue.depth(Channel::Jobs)).await.unwrap(), 7, "the broker keeps the rest");
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_a_broker_counts_once_however_many_wait() {
    let broker = RabbitMq::start();
    let queue = open_for_long(&broker, "idle", "delivery_limit=3&give_up=120").await;
    let mut workers = try_join_all((0..10).map(|_| queue.consume(Channel::Jobs, 1))).await.unwrap();
    queue.publish(Channel::Jobs, b"job".to_vec()).await.unwrap();
    let _held = next_of_any(&mut workers).await;
    let _broker = tokio::spawn(crash(broker));
    let delivery = next_of_any(&mut workers).await;
    assert_eq!((delivery.payload(), delivery.attempt()), (&b"job"[..], 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_broker_is_noticed_and_work_goes_on_after_it() {
    let broker = RabbitMq::start();
    let queue = open_for_long(&broker, "long", "give_up=60&heartbeat=2").await;
    let hasty = open_for_long(&broker, "short", "give_up=3&heartbeat=2").await;
    let mut jobs = queue.consume(Channel::Jobs, 1).await.unwrap();
    let mut hasty_jobs = hasty.consume(Channel::Jobs, 1).await.unwrap();
    let mut leadership = queue.lead("x").await.unwrap();
    broker.freeze();
    let started = Instant::now();
    within("the loss of the leadership", leadership.lost()).await;
    assert!(matches!(within("giving up", hasty_jobs.next()).await, Err(Error::Unreachable { .. })));
    assert!(matches!(within("giving up", hasty_jobs.next()).await, Err(Error::Unreachable { .. })));
    assert!(matches!(within("giving up", hasty.publish(Channel::Jobs, Parcel::default())).await, Err(Error::Unreachable { .. })));
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    let other = queue.clone();
    let publishing = tokio::spawn(async move { other.publish(Channel::Jobs, b"a".to_vec()).await });
    broker.thaw();
    within("the publication", publishing).await.unwrap().unwrap();
    next(&mut jobs).await.ack().await.unwrap();
    drop(leadership);
    let _again = within("the leadership", queue.lead("x")).await.unwrap();
}

#[tokio::test]
async fn a_wrong_password_is_an_error_at_once_that_does_not_tell_it() {
    for (user, password) in [("guest", "s3cret"), ("us3r", "s3cret")] {
        let url = RabbitMq::shared().url_of(user, password, "give_up=60");
        let error = within("the refusal", Queue::open(&url)).await.unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error:?}");
        for text in [error.to_string(), format!("{error:?}")] {
            assert!(!text.contains("s3cret") && !text.contains("us3r"), "{text}");
            assert!(text.contains(&RabbitMq::shared().port().to_string()), "{text}");
        }
    }
}

#[tokio::test]
async fn a_missing_virtual_host_is_an_error_at_once() {
    let url = RabbitMq::shared().url("").replace("/?", "/nowhere?");
    let error = within("the refusal", Queue::open(&url)).await.unwrap_err();
    assert!(matches!(&error, Error::Refused(_, reason) if reason.contains("nowhere")), "{error:?}");
}

#[tokio::test]
async fn the_password_can_come_from_a_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "guest\n").unwrap();
    let port = RabbitMq::shared().port();
    let url = format!("amqp://guest@127.0.0.1:{port}?prefix=file&password_file={}", file.path().display());
    let queue = Queue::open(&url).await.unwrap();
    assert!(queue.server().unwrap().starts_with("RabbitMQ "), "{:?}", queue.server());
    queue.close().await;
}

#[tokio::test]
async fn a_broker_that_is_not_there_is_given_up() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let started = Instant::now();
    let url = format!("amqp://us3r:s3cret@{closed}?give_up=2");
    let error = within("giving up", Queue::open(&url)).await.unwrap_err();
    assert!(started.elapsed() >= Duration::from_secs(2));
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    let text = format!("{error} {error:?}");
    assert!(!text.contains("s3cret") && !text.contains("us3r") && text.contains(&closed.to_string()), "{text}");
}

#[tokio::test]
async fn what_answers_without_being_a_broker_is_given_up() {
    // The system takes the connections, and nothing answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("amqp://{}?give_up=2&heartbeat=1", silent.local_addr().unwrap());
    let error = within("giving up", Queue::open(&url)).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn malformed_urls_are_refused_without_their_secrets() {
    let urls = [
        "amqp:",
        "amqp://",
        "amqp://us3r:s3cret@host:port",
        "amqp://us3r:s3cret@host?delivery_limit=0",
        "amqp://us3r:s3cret@host?delivery_limit=many",
        "amqp://us3r:s3cret@host?heartbeat=0",
        "amqp://us3r:s3cret@host?give_up=-1",
        "amqp://us3r:s3cret@host?prefix=a%20b",
        "amqp://us3r:s3cret@host?prefix=",
        "amqp://us3r:s3cret@host?s3cret=1",
        "amqp://us3r:s3cret@host?password_file=/x",
        "amqp://us3r:s3cret@host?ca_file=/x",
        "amqp://us3r:s3cret%zz@host",
        "amqp://us3r:s3cret@host/%ff",
    ];
    for url in urls {
        let text = match Queue::open(url).await {
            Err(error @ Error::InvalidUrl(_)) => format!("{error} {error:?}"),
            other => panic!("{url}: {other:?}"),
        };
        assert!(!text.contains("s3cret") && !text.contains("us3r"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_shows_the_password() {
    let queue = Queue::open(&RabbitMq::own_url("")).await.unwrap();
    let mut jobs = queue.consume(Channel::Jobs, 1).await.unwrap();
    queue.publish(Channel::Jobs, b"a".to_vec()).await.unwrap();
    let delivery = next(&mut jobs).await;
    let leadership = queue.lead("x").await.unwrap();
    // The password of the test's broker is also its user's name.
    for text in [format!("{queue:?}"), format!("{jobs:?}"), format!("{delivery:?}"), format!("{leadership:?}")] {
        assert!(!text.contains("guest"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_settings_of_a_queue_are_an_error_and_reset_is_the_way_out() {
    let url = RabbitMq::own_url("delivery_limit=");
    Queue::open(&format!("{url}3")).await.unwrap().close().await;
    let error = within("the refusal", Queue::open(&format!("{url}4"))).await.unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(".jobs") && text.contains("x-delivery-limit") && text.contains("reset"), "{text}");
    for channel in [Channel::Jobs, Channel::Events] {
        Queue::reset_at(&format!("{url}4"), channel).await.unwrap();
    }
    Queue::open(&format!("{url}4")).await.unwrap().close().await;
}

/// A process that dies with a delivery, as the broker sees it.
async fn die_with_a_delivery(url: &str) -> u32 {
    let queue = Queue::open(url).await.unwrap();
    let mut jobs = queue.consume(Channel::Jobs, 1).await.unwrap();
    let delivery = next(&mut jobs).await;
    let attempt = delivery.attempt();
    queue.close().await;
    drop(delivery);
    attempt
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_kills_its_workers_becomes_a_dead_letter() {
    let url = RabbitMq::own_url("delivery_limit=3");
    let queue = Queue::open(&url).await.unwrap();
    queue.publish(Channel::Jobs, b"poison".to_vec()).await.unwrap();
    for attempt in 1..=3 {
        assert_eq!(within("a death", die_with_a_delivery(&url)).await, attempt);
    }
    // The next worker does not get it.
    let _jobs = queue.consume(Channel::Jobs, 1).await.unwrap();
    let mut dead = queue.consume(Channel::DeadLetters, 1).await.unwrap();
    let letter = next(&mut dead).await;
    let why = letter.dead_letter().unwrap();
    assert_eq!((letter.payload(), why.channel, why.attempts), (&b"poison"[..], Channel::Jobs, 3));
    assert!(why.reason.contains("3 deliveries"), "{}", why.reason);
    letter.ack().await.unwrap();
}

/// A broker that takes back what is not acknowledged for two seconds, unless the queue has another limit.
fn hasty() -> &'static RabbitMq {
    static BROKER: OnceLock<RabbitMq> = OnceLock::new();
    BROKER.get_or_init(|| RabbitMq::start_with("consumer_timeout = 2000\n".into()))
}

/// A URL of queues with that limit: some versions of the broker look at the queue's, others only at their configuration.
fn hasty_url(prefix: &str, options: &str) -> String {
    hasty().url(&format!("prefix={prefix}&consumer_timeout=2&{options}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_broker_took_back_comes_again_and_settles_once() {
    let queue = Queue::open(&hasty_url("stale", "")).await.unwrap();
    let mut events = queue.consume(Channel::Events, 2).await.unwrap();
    queue.publish(Channel::Events, b"slow".to_vec()).await.unwrap();
    let stale = next(&mut events).await;
    let again = expect(&mut events, b"slow", 2).await;
    within("the settlement of a stale delivery", stale.reject("too late")).await.unwrap();
    // The broker may take this one back too, on a slow machine.
    let mut last = again;
    loop {
        last.ack().await.unwrap();
        queue.publish(Channel::Events, b"after".to_vec()).await.unwrap();
        last = next(&mut events).await;
        if last.payload() == b"after" {
            break;
        }
    }
    assert_eq!(queue.depth(Channel::DeadLetters).await.unwrap(), 0);
    last.ack().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_never_settled_in_time_becomes_a_dead_letter() {
    let queue = Queue::open(&hasty_url("slow", "delivery_limit=2")).await.unwrap();
    let mut events = queue.consume(Channel::Events, 1).await.unwrap();
    queue.publish(Channel::Events, b"slow".to_vec()).await.unwrap();
    let _held = [next(&mut events).await, next(&mut events).await];
    let mut dead = queue.consume(Channel::DeadLetters, 1).await.unwrap();
    assert_eq!(next(&mut dead).await.dead_letter().unwrap().attempts, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_takes_longer_than_the_broker_waits_is_delivered_once() {
    let queue = Queue::open(&hasty().url("prefix=job")).await.unwrap();
    let other = Queue::open(&hasty_url("clock", "")).await.unwrap();
    let mut jobs = queue.consume(Channel::Jobs, 2).await.unwrap();
    queue.publish_all(Channel::Jobs, vec![b"quick".to_vec(), b"long".to_vec()]).await.unwrap();
    let (quick, long) = (next(&mut jobs).await, next(&mut jobs).await);
    quick.ack().await.unwrap();
    // The clock: each time the broker is out of patience, an event comes again.
    let mut events = other.consume(Channel::Events, 1).await.unwrap();
    other.publish(Channel::Events, Parcel::default()).await.unwrap();
    let _held = [next(&mut events).await, next(&mut events).await, next(&mut events).await];
    queue.publish(Channel::Jobs, b"short".to_vec()).await.unwrap();
    let short = expect(&mut jobs, b"short", 1).await;
    long.ack().await.unwrap();
    short.release().await.unwrap();
    queue.close().await;
    // What was not settled would be back now.
    let queue = Queue::open(&hasty().url("prefix=job")).await.unwrap();
    assert_eq!(queue.depth(Channel::Jobs).await.unwrap(), 1);
}

/// Takes the only message of a queue with the client library alone, and puts it back, as long as it is there.
async fn play_as_a_stranger(name: &str) {
    let url = format!("amqp://guest:guest@127.0.0.1:{}/%2f", RabbitMq::shared().port());
    let connection = lapin::Connection::connect(&url, Default::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    while let Some(got) = channel.basic_get(name.into(), Default::default()).await.unwrap() {
        got.reject(lapin::options::BasicRejectOptions { requeue: true }).await.unwrap();
    }
    connection.close(200, "bye".into()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_that_the_broker_made_is_understood() {
    let url = RabbitMq::own_url("delivery_limit=1");
    let prefix = url.split("prefix=").nth(1).unwrap().split('&').next().unwrap();
    let queue = Queue::open(&url).await.unwrap();
    queue.publish(Channel::Jobs, b"poison".to_vec()).await.unwrap();
    within("the broker's patience to end", async {
        while queue.depth(Channel::DeadLetters).await.unwrap() == 0 {
            play_as_a_stranger(&format!("{prefix}.jobs")).await;
        }
    })
    .await;
    let mut dead = queue.consume(Channel::DeadLetters, 1).await.unwrap();
    let letter = expect(&mut dead, b"poison", 1).await;
    let why = letter.dead_letter().unwrap();
    assert_eq!((why.channel, why.attempts), (Channel::Jobs, 1));
    assert!(why.reason.contains("broker"), "{}", why.reason);
    letter.ack().await.unwrap();
}

/// A blocked connection sends nothing, not even an acknowledgement.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_waited_for_longer_than_a_broker_that_is_away() {
    let broker = std::sync::Arc::new(tokio::task::spawn_blocking(RabbitMq::start).await.unwrap());
    let alarm = async |on| {
        let broker = broker.clone();
        tokio::task::spawn_blocking(move || broker.set_disk_alarm(on)).await.unwrap();
    };
    let queue = Queue::open(&broker.url("give_up=3&heartbeat=4")).await.unwrap();
    let mut jobs = queue.consume(Channel::Jobs, 1).await.unwrap();
    queue.publish(Channel::Jobs, b"before".to_vec()).await.unwrap();
    let delivery = expect(&mut jobs, b"before", 1).await;
    assert_eq!(queue.trouble(), None);
    alarm(true).await;
    let publisher = queue.clone();
    let mut published = tokio::spawn(async move { publisher.publish(Channel::Events, b"during".to_vec()).await });
    within("the trouble", async {
        while queue.trouble().is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(queue.trouble().unwrap().contains("short of memory or disk"));
    let mut acknowledged = tokio::spawn(delivery.ack());
    let both = async { (&mut published).await.unwrap().and((&mut acknowledged).await.unwrap()) };
    assert!(tokio::time::timeout(Duration::from_secs(7), both).await.is_err(), "they wait for longer than give_up");
    alarm(false).await;
    within("the end", published).await.unwrap().unwrap();
    within("the end", acknowledged).await.unwrap().unwrap();
    assert_eq!(queue.trouble(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_passes_between_processes() {
    let url = RabbitMq::own_url("");
    let (first, second) = (Queue::open(&url).await.unwrap(), Queue::open(&url).await.unwrap());
    let leadership = first.lead("coordinator").await.unwrap();
    let mut waiting = tokio::spawn(async move { second.lead("coordinator").await.unwrap() });
    let patience = tokio::time::timeout(Duration::from_millis(1500), &mut waiting);
    assert!(patience.await.is_err(), "two leaders");
    drop(leadership);
    let _leadership = within("the hand-over", waiting).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_queue_is_found_again_by_consumers_of_other_processes() {
    let url = RabbitMq::own_url("");
    let (here, there) = (Queue::open(&url).await.unwrap(), Queue::open(&url).await.unwrap());
    let mut jobs = there.consume(Channel::Jobs, 1).await.unwrap();
    here.reset(Channel::Jobs).await.unwrap();
    here.publish(Channel::Jobs, b"after".to_vec()).await.unwrap();
    expect(&mut jobs, b"after", 1).await.ack().await.unwrap();
}

/// A certificate for `localhost`, signed by itself: its file and that of its key.
fn certificate(directory: &std::path::Path) -> (std::path::PathBuf, std::path::PathBuf) {
    let (certificate, key) = (directory.join("certificate.pem"), directory.join("key.pem"));
    let request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost";
    let names = ["-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"];
    let mut openssl = std::process::Command::new("openssl");
    openssl.args(request.split(' ')).args(names).arg("-keyout").arg(&key).arg("-out").arg(&certificate);
    let made = openssl.output().expect("this test needs openssl: apt-get install openssl");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    (certificate, key)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_with_tls_is_trusted_by_its_authority_only() {
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = certificate(directory.path());
    let [port] = harness::free_ports();
    let settings = format!(
        "listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.certfile = {}\nssl_options.keyfile = {}\n",
        certificate.display(),
        key.display()
    );
    let _broker = RabbitMq::start_with(settings);
    let url = format!("amqps://guest:guest@localhost:{port}?give_up=60");
    let trusted = Queue::open(&format!("{url}&ca_file={}", certificate.display())).await.unwrap();
    trusted.publish(Channel::Events, b"secret".to_vec()).await.unwrap();
    let mut events = trusted.consume(Channel::Events, 1).await.unwrap();
    next(&mut events).await.ack().await.unwrap();
    trusted.close().await;
    let error = within("the refusal", Queue::open(&url)).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
}

/// A certificate for `localhost`, of servers and clients, signed by an authority of its own (`authority.pem`): its file and that of its key.
fn signed(directory: &std::path::Path) -> (std::path::PathBuf, std::path::PathBuf) {
    let new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    for rest in [
        "-subj /CN=authority -addext basicConstraints=critical,CA:TRUE -keyout authority.key -out authority.pem",
        "-subj /CN=localhost -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE -CA authority.pem -CAkey \
         authority.key -keyout key.pem -out certificate.pem",
    ] {
        let mut openssl = std::process::Command::new("openssl");
        let arguments = new.split(' ').chain(rest.split(' '));
        let made =
            openssl.args(arguments).current_dir(directory).output().expect("this test needs openssl: apt-get install openssl");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    (directory.join("certificate.pem"), directory.join("key.pem"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_asks_for_a_certificate_gets_the_clients() {
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = signed(directory.path());
    let authority = directory.path().join("authority.pem");
    let [port] = harness::free_ports();
    let file = |name: &str, path: &std::path::Path| format!("ssl_options.{name} = {}\n", path.display());
    let files = file("certfile", &certificate) + &file("keyfile", &key) + &file("cacertfile", &authority);
    let rules = "ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n";
    let _broker = RabbitMq::start_with(format!("listeners.ssl.1 = 127.0.0.1:{port}\n{files}{rules}"));
    let url = format!("amqps://guest:guest@localhost:{port}?give_up=10&ca_file={}", authority.display());
    let known = format!("{url}&cert_file={}&key_file={}", certificate.display(), key.display());
    let queue = within("the connection", Queue::open(&known)).await.unwrap();
    queue.close().await;
    assert!(within("the refusal", Queue::open(&url)).await.is_err(), "a client without a certificate");
}
