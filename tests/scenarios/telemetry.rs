//! Traces, metrics and logs of a fleet at a real OTLP receiver.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use harness::{Heard, HeardLog, LocalFleet, Otlp, SHORT, Span, TOKEN, files, free_ports, http, pass, records, root, wait_for};
use proto::{LatentSearch, ResultRecord};

/// Every span of a job that succeeds: service, name, kind and name of the parent.
const SPANS: [(&str, &str, i32, &str); 12] = [
    ("basin-coordinator", "process basin.events", 5, "publish basin.events"),
    ("basin-coordinator", "process basin.events", 5, "publish basin.events"),
    ("basin-coordinator", "publish basin.jobs", 4, ""),
    ("basin-worker", "fetch", 1, "process basin.jobs"),
    ("basin-worker", "final_descent", 1, "project"),
    ("basin-worker", "latent_search", 1, "project"),
    ("basin-worker", "process basin.jobs", 5, "publish basin.jobs"),
    ("basin-worker", "project", 1, "process basin.jobs"),
    ("basin-worker", "publish", 1, "process basin.jobs"),
    ("basin-worker", "publish basin.events", 4, "process basin.jobs"),
    ("basin-worker", "publish basin.events", 4, "process basin.jobs"),
    ("basin-worker", "transform_search", 1, "project"),
];

/// Metrics that need trouble, or a GPU.
const OF_TROUBLE: [&str; 5] =
    ["basin.retries", "basin.jobs.republished", "hw.gpu.utilization", "hw.gpu.memory.usage", "hw.gpu.memory.limit"];

fn of_trace(heard: &Heard, trace: &str) -> Vec<Span> {
    heard.spans.iter().filter(|span| span.trace == trace).cloned().collect()
}

/// The spans in the form of [`SPANS`].
fn shape(spans: &[Span]) -> Vec<(&str, &str, i32, &str)> {
    let name = |id: &str| spans.iter().find(|span| span.id == id).map_or("", |span| span.name.as_str());
    let mut shape: Vec<_> =
        spans.iter().map(|span| (span.service.as_str(), span.name.as_str(), span.kind, name(&span.parent))).collect();
    shape.sort();
    shape
}

/// A fleet whose coordinator sends telemetry to `receiver` over gRPC.
fn observed(receiver: &Otlp) -> LocalFleet {
    let mut fleet = LocalFleet::start();
    fleet.coordinator = None;
    fleet.start_coordinator_with(&[], &receiver.grpc());
    fleet
}

#[test]
fn one_trace_per_job_and_every_metric_reaches_a_receiver() {
    let receiver = Otlp::start();
    let mut fleet = observed(&receiver);
    let data = fleet.data(5, SHORT);
    fs::write(fleet.path("data/Bag/bad.png"), b"").expect("writable");
    fleet.submit(&data, "r", &[]);
    // A run whose progress stands still is only reported while it is open.
    wait_for("an open run", 60, || receiver.heard(|heard| heard.metrics.contains_key("basin.run.progress.time")));
    let [health] = free_ports();
    let variables = [receiver.http(), vec![("BASIN_LISTEN", format!("127.0.0.1:{health}"))]].concat();
    fleet.start_worker_with(&["--checkpoint-every", "0"], &variables);
    fleet.basin(2, &["runs", "wait", "r"]);
    let records = records(&fleet.run_url("r"));
    assert_scraped(&fleet, health, &records);
    assert_traces(&receiver, &fleet, &records);
    assert_logs(&receiver, &records);
    assert_failed_trace(&receiver);
    assert_metrics(&receiver, &records);
}

/// Each result names one whole trace across both processes.
fn assert_traces(receiver: &Otlp, fleet: &LocalFleet, records: &[ResultRecord]) {
    assert_eq!(records.len(), 5);
    let traces: BTreeSet<String> = records.iter().map(|record| record.trace.clone().expect("a trace")).collect();
    assert_eq!(traces.len(), 5);
    for record in records {
        let trace = record.trace.as_deref().expect("a trace");
        wait_for("the whole trace", 30, || receiver.heard(|heard| of_trace(heard, trace).len() >= SPANS.len()));
        let spans = receiver.heard(|heard| of_trace(heard, trace));
        assert_eq!(shape(&spans), SPANS);
        assert!(spans.iter().all(|span| span.status != 2 && span.links.is_empty()), "{spans:?}");
        for span in spans.iter().filter(|span| span.kind != 1) {
            let about = ["basin.image", "basin.job", "basin.run", "messaging.message.id", "messaging.system"];
            let about = about.map(|name| span.attributes[name].as_str());
            assert_eq!(about, [&*record.image, record.job.as_str(), "r", record.job.as_str(), "rabbitmq"], "{}", span.name);
            let destination = &span.attributes["messaging.destination.name"];
            let server = (span.attributes["server.address"].as_str(), span.attributes["server.port"].parse().ok());
            assert_eq!(server, ("127.0.0.1", Some(fleet.broker.port())), "{}", span.name);
            assert_eq!(span.name, format!("{} {destination}", span.attributes["messaging.operation.name"]));
        }
    }
    let lines = fleet.logged("projected");
    let logged: BTreeSet<&str> = lines.iter().filter_map(|(_, line)| line["trace_id"].as_str()).collect();
    assert_eq!(logged, traces.iter().map(String::as_str).collect());
}

/// Logs arrive, too, those of a job with the id of its trace.
fn assert_logs(receiver: &Otlp, records: &[ResultRecord]) {
    let traces: BTreeSet<String> = records.iter().map(|record| record.trace.clone().expect("a trace")).collect();
    let projected = |log: &&HeardLog| log.service == "basin-worker" && log.message == "projected";
    let heard = || receiver.heard(|heard| heard.logs.iter().filter(projected).cloned().collect::<Vec<_>>());
    wait_for("the logs of all images", 30, || heard().len() >= traces.len());
    assert_eq!(heard().iter().map(|log| log.trace.clone()).collect::<BTreeSet<_>>(), traces);
    let images: BTreeSet<String> = heard().into_iter().map(|log| log.attributes["image"].clone()).collect();
    assert_eq!(images, records.iter().map(|record| record.image.to_string()).collect());
    wait_for("the logs of the coordinator", 30, || receiver.heard(|heard| heard.logs.iter().any(|log| log.message == "acting")));
}

/// Prometheus finds the same at both services.
fn assert_scraped(fleet: &LocalFleet, health: u16, records: &[ResultRecord]) {
    assert!(http(fleet.port, "GET", "/metrics", None, "").starts_with("HTTP/1.1 401"), "the coordinator wants its token");
    let scrape = |port, token| {
        let answer = http(port, "GET", "/metrics", token, "");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("text/plain; version=0.0.4"), "{answer}");
        answer
    };
    let steps: f64 = records.iter().map(|record| record.lane_steps as f64).sum();
    for (port, token, service, lines) in [
        (
            fleet.port,
            Some(TOKEN),
            "basin-coordinator",
            vec![
                r#"basin_images_total{basin_outcome="failed",basin_reason="bad_image"} 1"#.to_owned(),
                r#"basin_run_images{basin_run="r",basin_state="succeeded"} 5"#.to_owned(),
            ],
        ),
        (health, None, "basin-worker", vec![format!("basin_lane_steps_total {steps}")]),
    ] {
        wait_for("the last numbers", 30, || lines.iter().all(|line| scrape(port, token).lines().any(|found| found == line)));
        let answer = scrape(port, token);
        let about = answer.lines().find(|line| line.starts_with("target_info{")).expect("it says who it is");
        assert!(about.contains(&format!("service_name=\"{service}\"")), "{about}");
        for name in telemetry::messaging::ALL.map(telemetry::Metric::prometheus_name) {
            assert!(answer.contains(&format!("# TYPE {name} ")), "{service} has no {name}");
        }
    }
}

/// The job that fails has one trace, too, which ends among the dead letters.
fn assert_failed_trace(receiver: &Otlp) {
    let failing = |span: &Span| span.attributes.get("basin.image").is_some_and(|image| image.ends_with("bad.png"));
    let failing = |heard: &Heard| heard.spans.iter().filter(|span| failing(span)).cloned().collect::<Vec<Span>>();
    wait_for("the dead letter", 30, || receiver.heard(failing).iter().any(|span| span.name == "process basin.dead"));
    let failed = receiver.heard(failing);
    assert_eq!(failed.iter().map(|span| &span.trace).collect::<BTreeSet<_>>().len(), 1);
    let process = failed.iter().find(|span| span.name == "process basin.jobs").expect("it was tried");
    assert_eq!((process.status, process.attributes["error.type"].as_str()), (2, "bad_image"));
}

/// Every metric arrives as it is named in the code, and says nothing about single images.
fn assert_metrics(receiver: &Otlp, records: &[ResultRecord]) {
    let ours = coordinator::metrics::ALL.iter().map(|metric| ("basin-coordinator", *metric));
    let ours = ours.chain(worker::metrics::ALL.iter().map(|metric| ("basin-worker", *metric)));
    // Both have them.
    let ours: Vec<_> = ours.chain(telemetry::messaging::ALL.iter().map(|metric| ("", *metric))).collect();
    let due: BTreeSet<&str> = ours.iter().map(|(_, metric)| metric.name).filter(|name| !OF_TROUBLE.contains(name)).collect();
    let missing =
        || receiver.heard(|heard| due.iter().copied().filter(|name| !heard.metrics.contains_key(*name)).collect::<Vec<_>>());
    let end = Instant::now() + Duration::from_secs(30);
    while !missing().is_empty() {
        assert!(Instant::now() < end, "never came: {:?}", missing());
        pass(50);
    }
    receiver.heard(|heard| {
        for (name, metric) in &heard.metrics {
            let (service, constant) = ours.iter().find(|(_, metric)| metric.name == name).expect("it is named in the code");
            assert!(service.is_empty() || metric.service == *service, "{name} came from {}", metric.service);
            let came = (metric.kind, metric.unit.as_str(), metric.description.as_str());
            assert_eq!(came, (constant.kind, constant.unit, constant.description), "{name}");
            let values = metric.series.keys().flatten().map(|(_, value)| value);
            let about_images = values.filter(|value| value.contains(".png")).collect::<Vec<_>>();
            assert!(about_images.is_empty(), "{name} tells of {about_images:?}");
        }
        let queues = heard.metrics["basin.queue.depth"].series.keys().map(|of| of["messaging.destination.name"].as_str());
        assert_eq!(queues.collect::<Vec<_>>(), ["basin.dead", "basin.events", "basin.jobs"]);
        assert!(heard.resources.values().all(|who| !who["host.name"].is_empty()), "{:?}", heard.resources);
        let instances: BTreeSet<_> = heard.resources.values().map(|who| &who["service.instance.id"]).collect();
        assert_eq!(instances.len(), 2, "{:?}", heard.resources);
    });
    let last = |name: &str, of: &[(&str, &str)]| {
        let of = of.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        receiver.heard(|heard| heard.metrics[name].series.get(&of).copied())
    };
    wait_for("the run's last numbers", 30, || {
        last("basin.run.images", &[("basin.run", "r"), ("basin.state", "succeeded")]) == Some(5.0)
            && last("basin.images", &[("basin.outcome", "failed"), ("basin.reason", "bad_image")]) == Some(1.0)
            && last("basin.class.images", &[("basin.run", "r"), ("basin.class", "Bag")]) == Some(2.0)
            && last("basin.lane.steps", &[]) == Some(records.iter().map(|record| record.lane_steps as f64).sum())
    });
}

/// The attempts of a job that is released and comes again stand side by side; the later one links to the first.
#[test]
fn attempts_of_one_job_share_its_trace() {
    let receiver = Otlp::start();
    let mut fleet = observed(&receiver);
    let data = fleet.data(1, LatentSearch::Adam { steps: 300 });
    fleet.start_worker_with(&["--checkpoint-every", "0"], &receiver.http());
    fleet.submit(&data, "again", &[]);
    let checkpoints = fleet.path("home/runs/again/checkpoints");
    wait_for("a checkpoint", 60, || !files(&checkpoints).is_empty());
    fleet.workers[0].signal("TERM");
    fleet.workers[0].leaves(30);
    fleet.start_worker_with(&[], &receiver.http());
    fleet.basin(0, &["runs", "wait", "again"]);
    let record = &records(&fleet.run_url("again"))[0];
    let attempts = || {
        let spans = receiver.heard(|heard| of_trace(heard, record.trace.as_deref().expect("a trace")));
        let publish = spans.iter().find(|span| span.name == "publish basin.jobs").map(|span| span.id.clone());
        (publish, spans.into_iter().filter(|span| span.name == "process basin.jobs").collect::<Vec<_>>())
    };
    // A worker that leaves may see its own job again for a moment.
    wait_for("both attempts", 30, || {
        [true, false].iter().all(|first| attempts().1.iter().any(|span| span.links.is_empty() == *first))
    });
    let (publish, attempts) = attempts();
    let publish = publish.expect("it was published");
    assert!(attempts.iter().all(|span| span.parent == publish));
    let (first, later): (Vec<&Span>, Vec<&Span>) = attempts.iter().partition(|span| span.links.is_empty());
    assert_eq!(first.len(), 1, "{attempts:?}");
    let is_link = |(id, about): &(String, harness::HeardAttributes)| *id == publish && about["basin.redelivered"] == "true";
    assert!(later.iter().flat_map(|span| &span.links).all(is_link), "{later:?}");
}

/// The receiver ends in the middle of a run: no process waits for it.
#[test]
fn telemetry_that_is_cut_stops_nothing() {
    let receiver = Otlp::start();
    let (grpc, http) = (receiver.grpc(), receiver.http());
    let mut fleet = observed(&receiver);
    let data = fleet.data(3, LatentSearch::Adam { steps: 300 });
    fleet.start_worker_with(&["--batch-images", "1"], &http);
    fleet.start_worker_with(&["--batch-images", "1"], &grpc);
    fleet.submit(&data, "r", &[]);
    wait_for("news of the run", 60, || receiver.heard(|heard| heard.metrics.contains_key("basin.lane.steps")));
    assert!(!fleet.finished("r"), "the run was over too soon to show anything");
    drop(receiver);
    fleet.complete("r");
    for worker in &fleet.workers {
        worker.signal("TERM");
    }
    fleet.coordinator.as_ref().expect("it runs").signal("TERM");
    for process in fleet.workers.iter_mut().chain(&mut fleet.coordinator) {
        process.leaves(30);
    }
    let lost = fleet.logged("telemetry is lost until its receiver is back");
    let told: BTreeSet<_> = lost.iter().map(|(log, line)| (log, line["signal"].to_string())).collect();
    assert!(!lost.is_empty() && lost.len() == told.len(), "once for each process and signal: {lost:?}");
}

/// Dashboards and alerts query only metrics and labels that exist.
#[test]
fn dashboards_and_alerts_know_only_metrics_that_there_are() {
    let metrics = coordinator::metrics::ALL.into_iter().chain(worker::metrics::ALL);
    let labels =
        ["hw_id", "basin_class", "basin_outcome", "basin_place", "basin_reason", "basin_run", "basin_stage", "basin_state"];
    let mut known = BTreeSet::from(labels.map(str::to_owned));
    for metric in metrics {
        let name = metric.prometheus_name();
        match metric.kind {
            telemetry::Instrument::Histogram => known.extend(["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}"))),
            _ => drop(known.insert(name)),
        }
    }
    let mut used = BTreeSet::new();
    for folder in ["helm/basin/files", "infra/prometheus"] {
        for file in files(&root().join(folder)) {
            let text = fs::read_to_string(&file).expect("text");
            let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            let names = words.filter(|word| word.starts_with("basin_") || word.starts_with("hw_")).map(str::to_owned);
            let names: BTreeSet<String> = names.collect();
            let unknown: Vec<_> = names.difference(&known).collect();
            assert!(unknown.is_empty(), "{} asks for {unknown:?}", file.display());
            used.extend(names);
        }
    }
    assert!(used.len() >= 20, "they ask for almost nothing: {used:?}");
}
