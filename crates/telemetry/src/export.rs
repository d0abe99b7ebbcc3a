//! Sends traces and metrics as the environment configures (*io*).

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{MetricExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{Instrument, SdkMeterProvider, Stream, Temporality};
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};

use crate::Guard;

/// Time limit of one batch over HTTP.
const ANSWER: Duration = Duration::from_secs(5);
/// Prefix of metrics with an attribute for each class, and their limit of series: eight runs of 1,000 classes.
const BY_CLASS: (&str, usize) = ("basin.class.", 8192);

type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Protocol {
    Grpc,
    Http,
}

/// Protocol of a signal (`TRACES` or `METRICS`) by OpenTelemetry's variables; `None`: it is not sent. The SDK reads the endpoint.
fn wanted(signal: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Option<Protocol>, Error> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let of = |what: &str| {
        let own = set(&format!("OTEL_EXPORTER_OTLP_{signal}_{what}"));
        own.or_else(|| set(&format!("OTEL_EXPORTER_OTLP_{what}")))
    };
    let disabled = set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let none = set(&format!("OTEL_{signal}_EXPORTER")).is_some_and(|value| value == "none");
    if disabled || none || of("ENDPOINT").is_none() {
        return Ok(None);
    }
    match of("PROTOCOL").as_deref() {
        Some("grpc") => Ok(Some(Protocol::Grpc)),
        None | Some("http/protobuf") => Ok(Some(Protocol::Http)),
        Some(other) => Err(format!("unknown OTLP protocol {other:?}: use grpc or http/protobuf").into()),
    }
}

pub fn start(service: &'static str) -> Result<Guard, Error> {
    let variable = |name: &str| std::env::var(name).ok();
    let (traces, metrics) = (wanted("TRACES", variable)?, wanted("METRICS", variable)?);
    let grpc = [traces, metrics].contains(&Some(Protocol::Grpc));
    let mut threads = tokio::runtime::Builder::new_multi_thread();
    let threads = threads.worker_threads(1).enable_all().thread_name("telemetry");
    let runtime = grpc.then(|| threads.build()).transpose()?;
    let entered = runtime.as_ref().map(|runtime| runtime.enter());
    let resource = resource(service);
    let traces = traces.map(|protocol| {
        let exporter = match protocol {
            Protocol::Grpc => opentelemetry_otlp::SpanExporter::builder().with_tonic().build(),
            Protocol::Http => opentelemetry_otlp::SpanExporter::builder().with_http().with_http_client(Http::new()).build(),
        };
        let provider = SdkTracerProvider::builder().with_resource(resource.clone());
        exporter.map(|exporter| provider.with_batch_exporter(Watched::new("traces", exporter)).build())
    });
    let metrics = metrics.map(|protocol| {
        let exporter = match protocol {
            Protocol::Grpc => MetricExporter::builder().with_tonic().build(),
            Protocol::Http => MetricExporter::builder().with_http().with_http_client(Http::new()).build(),
        };
        let provider = SdkMeterProvider::builder().with_resource(resource.clone()).with_view(by_class);
        exporter.map(|exporter| provider.with_periodic_exporter(Watched::new("metrics", exporter)).build())
    });
    drop(entered);
    Ok(Guard { traces: traces.transpose()?, metrics: metrics.transpose()?, runtime })
}

fn by_class(instrument: &Instrument) -> Option<Stream> {
    instrument.name().starts_with(BY_CLASS.0).then(|| Stream::builder().with_cardinality_limit(BY_CLASS.1).build().ok())?
}

/// The service and its instance, so that two workers have two series. The environment takes precedence.
fn resource(service: &'static str) -> Resource {
    let host = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    let ours = [
        ("service.name", std::env::var("OTEL_SERVICE_NAME").unwrap_or_else(|_| service.into())),
        ("service.namespace", "basin".into()),
        ("service.version", env!("CARGO_PKG_VERSION").into()),
        ("service.instance.id", format!("{}-{}", host.trim(), std::process::id())),
    ];
    Resource::builder_empty()
        .with_attributes(ours.map(|(key, value)| KeyValue::new(key, value)))
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()))
        .build()
}

/// Logs once that the receiver is gone, and once that it is back. The SDK logs nothing, or every batch.
#[derive(Debug)]
struct Watched<E> {
    signal: &'static str,
    failing: AtomicBool,
    exporter: E,
}

impl<E> Watched<E> {
    fn new(signal: &'static str, exporter: E) -> Self {
        Watched { signal, failing: AtomicBool::new(false), exporter }
    }

    fn seen(&self, sent: OTelSdkResult) -> OTelSdkResult {
        let before = self.failing.swap(sent.is_err(), Ordering::Relaxed);
        match &sent {
            Err(error) if !before => tracing::warn!(signal = self.signal, %error, "telemetry is lost until its receiver is back"),
            Ok(()) if before => tracing::info!(signal = self.signal, "telemetry is sent again"),
            _ => {}
        }
        sent
    }
}

impl<E: SpanExporter> SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.seen(self.exporter.export(batch).await)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl<E: PushMetricExporter> PushMetricExporter for Watched<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        self.seen(self.exporter.export(metrics).await)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}

/// Sends over HTTP on the calling thread, which is the SDK's own.
#[derive(Debug)]
struct Http(ureq::Agent);

impl Http {
    fn new() -> Self {
        let config = ureq::Agent::config_builder().tls_config(trust::tls()).http_status_as_error(false);
        Http(config.timeout_global(Some(ANSWER)).build().into())
    }
}

impl HttpClient for Http {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let (head, mut body) = self.0.run(Request::from_parts(head, &body[..]))?.into_parts();
            Ok(Response::from_parts(head, body.read_to_vec()?.into()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_sent_unless_the_environment_wants_it() {
        let of = |variables: &[(&str, &str)]| {
            let variable = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string());
            ["TRACES", "METRICS"].map(|signal| wanted(signal, variable).ok())
        };
        let (all, traces) = (("OTEL_EXPORTER_OTLP_ENDPOINT", "http://x"), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://x"));
        let [no, http, grpc] = [None, Some(Protocol::Http), Some(Protocol::Grpc)].map(Some);
        assert_eq!(of(&[]), [no, no]);
        assert_eq!(of(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]), [no, no]);
        assert_eq!(of(&[all]), [http, http]);
        assert_eq!(of(&[traces]), [http, no]);
        assert_eq!(of(&[all, ("OTEL_SDK_DISABLED", "TRUE")]), [no, no]);
        assert_eq!(of(&[all, ("OTEL_TRACES_EXPORTER", "none")]), [no, http]);
        assert_eq!(of(&[all, ("OTEL_METRICS_EXPORTER", "none")]), [http, no]);
        assert_eq!(of(&[all, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]), [grpc, grpc]);
        assert_eq!(of(&[all, ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc")]), [http, grpc]);
        assert!(of(&[all, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")]) == [None, None]);
    }
}
