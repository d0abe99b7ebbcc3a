//! A process that has something to say, and receivers that are away, silent, or refuse.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use telemetry::{Metric, trace};

static SAID: Metric = Metric::counter("test.said", "1", "What was said");

/// What the tests start: says a lot, then a little again and again until its input ends, and leaves.
#[test]
#[ignore = "the tests start it"]
fn speaker() {
    let _telemetry = telemetry::init("test", "info");
    let say = || {
        let message = trace::Message { system: "basin", queue: "jobs", job: "j", run: "r", image: "i" };
        let parent = trace::publish(None, &message);
        let _child = trace::child(&trace::process(&trace::context(&parent), &message), "fetch");
        SAID.record(1.0, &[("attribute", "value")]);
    };
    (0..5000).for_each(|_| say());
    let over = Arc::new(AtomicBool::new(false));
    let ended = over.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut vec![]);
        ended.store(true, Ordering::Relaxed);
    });
    while !over.load(Ordering::Relaxed) {
        say();
        std::thread::sleep(Duration::from_millis(10));
    }
}

struct Speaker {
    process: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Speaker {
    fn start(variables: &[(&str, &str)]) -> Speaker {
        let mut command = Command::new(std::env::current_exe().expect("this test"));
        command.args(["--exact", "speaker", "--ignored", "--nocapture"]).stdin(Stdio::piped()).stdout(Stdio::null());
        command.env("OTEL_BSP_SCHEDULE_DELAY", "50").env("OTEL_METRIC_EXPORT_INTERVAL", "50").envs(variables.iter().copied());
        let mut process = command.stderr(Stdio::piped()).spawn().expect("it starts");
        let log = Arc::<Mutex<Vec<String>>>::default();
        let (lines, errors) = (log.clone(), process.stderr.take().expect("it is piped"));
        std::thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                lines.lock().expect("nobody panics with it").push(line);
            }
        });
        Speaker { process, log }
    }

    fn said(&self, text: &str) -> usize {
        self.log.lock().expect("nobody panics with it").iter().filter(|line| line.contains(text)).count()
    }

    /// Asks it to leave, which it does in time, and without an error.
    fn leaves(&mut self) {
        drop(self.process.stdin.take());
        wait_for("the end of the process", || self.process.try_wait().expect("our child").is_some());
        assert!(self.process.wait().expect("our child").success(), "{:?}", self.log);
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "waited for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    (listener, url)
}

#[test]
fn a_receiver_that_is_away_or_silent_holds_nobody_up() {
    for protocol in ["grpc", "http/protobuf"] {
        for silent in [false, true] {
            let (listener, url) = listener();
            // Connections are taken by the kernel and answered by nobody; or refused.
            let _held = silent.then_some(listener);
            let mut speaker = Speaker::start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &url), ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)]);
            speaker.leaves();
        }
    }
}

#[test]
fn nobody_is_called_unless_it_is_wanted() {
    let (listener, url) = listener();
    listener.set_nonblocking(true).expect("it can");
    let all = ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str());
    let none = [all, ("OTEL_TRACES_EXPORTER", "none"), ("OTEL_METRICS_EXPORTER", "none")];
    for variables in [&[][..], &[all, ("OTEL_SDK_DISABLED", "true")], &none] {
        Speaker::start(variables).leaves();
        assert!(listener.accept().is_err(), "{variables:?}: somebody called");
    }
    Speaker::start(&[all]).leaves();
    assert!(listener.accept().is_ok(), "nobody called");
}

/// Answers everything with the status, and counts.
fn serve(listener: TcpListener, status: Arc<Mutex<&'static str>>, served: Arc<AtomicUsize>) {
    for socket in listener.incoming().flatten() {
        let (status, served) = (status.clone(), served.clone());
        std::thread::spawn(move || answer(socket, &status, &served));
    }
}

fn answer(socket: TcpStream, status: &Mutex<&'static str>, served: &AtomicUsize) -> Option<()> {
    let mut reader = BufReader::new(socket.try_clone().ok()?);
    let mut writer = socket;
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            if line == "\r\n" {
                break;
            }
        }
        reader.read_exact(&mut vec![0; length]).ok()?;
        let status = *status.lock().expect("nobody panics with it");
        write!(writer, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").ok()?;
        served.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn that_telemetry_is_lost_is_said_once_and_that_it_is_sent_again_too() {
    let (listener, url) = listener();
    let (status, served) = (Arc::new(Mutex::new("400 Bad Request")), Arc::<AtomicUsize>::default());
    let (answers, count) = (status.clone(), served.clone());
    std::thread::spawn(move || serve(listener, answers, count));
    let mut speaker = Speaker::start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &url)]);
    wait_for("many refusals", || served.load(Ordering::Relaxed) >= 20);
    let (lost, again) = ("telemetry is lost until its receiver is back", "telemetry is sent again");
    wait_for("the bad news", || speaker.said(lost) == 2);
    assert_eq!(speaker.said(again), 0);
    *status.lock().expect("nobody panics with it") = "200 OK";
    wait_for("the good news", || speaker.said(again) == 2);
    speaker.leaves();
    assert_eq!((speaker.said(lost), speaker.said(again)), (2, 2), "{:?}", speaker.log);
}
