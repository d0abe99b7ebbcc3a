//! A process that has something to say, and receivers that are away, silent, or refuse.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use harness::{Process, wait_for};
use tempfile::NamedTempFile;

struct Speaker {
    process: Process,
    log: NamedTempFile,
}

impl Speaker {
    fn start(variables: &[(&str, &str)]) -> Speaker {
        let log = NamedTempFile::new().expect("writable");
        let mut command = Command::new(env!("CARGO_BIN_EXE_telemetry-speaker"));
        command.env("OTEL_BSP_SCHEDULE_DELAY", "50").env("OTEL_METRIC_EXPORT_INTERVAL", "50").envs(variables.iter().copied());
        command.stdin(Stdio::piped()).stderr(log.reopen().expect("it was just made"));
        Speaker { process: Process(command.spawn().expect("it starts")), log }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log.path()).expect("text")
    }

    fn said(&self, text: &str) -> usize {
        self.log().matches(text).count()
    }

    /// Asks it to leave, which it does in time, and without an error.
    fn leaves(&mut self) {
        drop(self.process.0.stdin.take());
        wait_for("the end of the process", 20, || self.process.ended());
        assert!(self.process.succeeded(), "{}", self.log());
    }
}

fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("it can");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    (listener, url)
}

#[test]
fn a_receiver_that_is_away_or_silent_holds_nobody_up() {
    for protocol in ["grpc", "http/protobuf"] {
        for silent in [false, true] {
            let (listener, url) = listener();
            // The kernel takes connections that nothing answers; or refuses them.
            let _held = silent.then_some(listener);
            Speaker::start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &url), ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)]).leaves();
        }
    }
}

#[test]
fn nobody_is_called_unless_it_is_wanted() {
    let (listener, url) = listener();
    let all = ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str());
    let none = [all, ("OTEL_TRACES_EXPORTER", "none"), ("OTEL_METRICS_EXPORTER", "none"), ("OTEL_LOGS_EXPORTER", "none")];
    for variables in [&[][..], &[all, ("OTEL_SDK_DISABLED", "true")], &none] {
        Speaker::start(variables).leaves();
        assert!(listener.accept().is_err(), "{variables:?}: the receiver was called");
    }
    Speaker::start(&[all]).leaves();
    assert!(listener.accept().is_ok(), "the receiver was not called");
}

#[tokio::test(flavor = "multi_thread")]
async fn that_telemetry_is_lost_is_said_once_and_that_it_is_sent_again_too() {
    static STATUS: AtomicU16 = AtomicU16::new(400);
    static SERVED: AtomicUsize = AtomicUsize::new(0);
    let answer = async |_: Bytes| {
        SERVED.fetch_add(1, Ordering::Relaxed);
        StatusCode::from_u16(STATUS.load(Ordering::Relaxed)).expect("400 or 200")
    };
    let (listener, url) = listener();
    let listener = tokio::net::TcpListener::from_std(listener).expect("it does not block");
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    let mut speaker = Speaker::start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &url)]);
    wait_for("many refusals", 20, || SERVED.load(Ordering::Relaxed) >= 20);
    let (lost, again) = ("telemetry is lost until its receiver is back", "telemetry is sent again");
    wait_for("the bad news", 20, || speaker.said(lost) == 3);
    assert_eq!(speaker.said(again), 0);
    STATUS.store(200, Ordering::Relaxed);
    wait_for("the good news", 20, || speaker.said(again) == 3);
    speaker.leaves();
    assert_eq!((speaker.said(lost), speaker.said(again)), (3, 3), "{}", speaker.log());
}

/// What `speaker` prints when it is scraped.
fn scraped(variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_telemetry-speaker"));
    let out = command.arg("scraped").envs(variables.iter().copied()).stdin(Stdio::null()).output().expect("it starts");
    assert!(out.status.success());
    String::from_utf8(out.stdout).expect("text")
}

#[test]
fn metrics_can_be_scraped_without_a_receiver_under_the_names_and_buckets_of_the_conventions() {
    let text = scraped(&[("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=pod,k8s.node.name=node")]);
    let of = "messaging_destination_name=\"mine.jobs\"";
    let server = "messaging_system=\"rabbitmq\",server_address=\"broker\",server_port=\"5671\"";
    for line in [
        format!("messaging_client_sent_messages_total{{{of},messaging_operation_name=\"publish\",{server}}} "),
        format!("messaging_client_consumed_messages_total{{{of},messaging_operation_name=\"consume\",{server}}} "),
        format!(
            "messaging_process_duration_seconds_count{{error_type=\"rejected\",{of},messaging_operation_name=\"process\",{server}}} "
        ),
        format!(
            "messaging_client_operation_duration_seconds_bucket{{{of},messaging_operation_name=\"publish\",messaging_operation_type=\"send\",\
            {server},le=\"0.025\"}} "
        ),
        "test_said_total{basin_attribute=\"value\"} 50".into(),
    ] {
        assert!(text.lines().any(|found| found.starts_with(&line)), "no {line}: {text}");
    }
    let about = text.lines().find(|line| line.starts_with("target_info{")).expect("the process is named");
    for label in ["host_name=", "k8s_node_name=\"node\"", "k8s_pod_name=\"pod\"", "service_instance_id=", "service_name=\"test\""]
    {
        assert!(about.contains(label), "no {label}: {about}");
    }
    assert_eq!(scraped(&[("OTEL_SDK_DISABLED", "true")]), "");
}
