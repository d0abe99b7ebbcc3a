//! Sends traces, metrics and logs as the environment configures (*io*).

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{LogExporter, MetricExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::metrics::{Instrument, SdkMeterProvider, Stream};
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};

use crate::watched::Watched;
use crate::{Guard, resource, scrape};

/// Time limit of one batch over HTTP.
const ANSWER: Duration = Duration::from_secs(5);
/// Prefix of metrics with an attribute for each class, and their limit of series: eight runs of 1,000 classes.
const BY_CLASS: (&str, usize) = ("basin.class.", 8192);
/// Share of the jobs that is traced, unless `OTEL_TRACES_SAMPLER` says otherwise: a job has 12 spans, and a fleet millions of jobs.
pub const SHARE: f64 = 0.1;

type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Protocol {
    Grpc,
    Http,
}

/// Reads a variable that is not empty.
fn set(variable: &impl Fn(&str) -> Option<String>, name: &str) -> Option<String> {
    variable(name).filter(|value| !value.is_empty())
}

fn is_disabled(variable: &impl Fn(&str) -> Option<String>) -> bool {
    set(variable, "OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
}

/// Protocol of a signal (`TRACES`, `METRICS` or `LOGS`) by OpenTelemetry's variables; `None`: it is not sent. The SDK reads the endpoint.
fn wanted(signal: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Option<Protocol>, Error> {
    let of = |what: &str| {
        let own = set(&variable, &format!("OTEL_EXPORTER_OTLP_{signal}_{what}"));
        own.or_else(|| set(&variable, &format!("OTEL_EXPORTER_OTLP_{what}")))
    };
    let none = set(&variable, &format!("OTEL_{signal}_EXPORTER")).is_some_and(|value| value == "none");
    if is_disabled(&variable) || none || of("ENDPOINT").is_none() {
        return Ok(None);
    }
    match of("PROTOCOL").as_deref() {
        Some("grpc") => Ok(Some(Protocol::Grpc)),
        None | Some("http/protobuf") => Ok(Some(Protocol::Http)),
        Some(other) => Err(format!("unknown OTLP protocol {other:?}: use grpc or http/protobuf").into()),
    }
}

/// `scraped`: metrics are also kept for [`scrape::scrape`].
pub fn start(service: &'static str, scraped: bool) -> Result<Guard, Error> {
    let variable = |name: &str| std::env::var(name).ok();
    let sent = [wanted("TRACES", variable)?, wanted("METRICS", variable)?, wanted("LOGS", variable)?];
    let mut threads = tokio::runtime::Builder::new_multi_thread();
    let threads = threads.worker_threads(1).enable_all().thread_name("telemetry");
    let runtime = sent.contains(&Some(Protocol::Grpc)).then(|| threads.build()).transpose()?;
    let entered = runtime.as_ref().map(|runtime| runtime.enter());
    let resource = resource::of(service);
    let scraped = scraped && !is_disabled(&variable);
    let traces = sent[0].map(|protocol| traces(protocol, &resource, set(&variable, "OTEL_TRACES_SAMPLER").is_none()));
    let metrics = (scraped || sent[1].is_some()).then(|| metrics(sent[1], scraped, &resource));
    let logs = sent[2].map(|protocol| logs(protocol, &resource));
    drop(entered);
    Ok(Guard { traces: traces.transpose()?, metrics: metrics.transpose()?, logs: logs.transpose()?, runtime })
}

fn traces(protocol: Protocol, resource: &Resource, samples: bool) -> Result<SdkTracerProvider, Error> {
    let exporter = match protocol {
        Protocol::Grpc => opentelemetry_otlp::SpanExporter::builder().with_tonic().build(),
        Protocol::Http => opentelemetry_otlp::SpanExporter::builder().with_http().with_http_client(Http::new()).build(),
    };
    let mut provider = SdkTracerProvider::builder().with_resource(resource.clone());
    if samples {
        provider = provider.with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(SHARE))));
    }
    Ok(provider.with_batch_exporter(Watched::new("traces", exporter?)).build())
}

fn metrics(sent: Option<Protocol>, scraped: bool, resource: &Resource) -> Result<SdkMeterProvider, Error> {
    let mut provider = SdkMeterProvider::builder().with_resource(resource.clone()).with_view(by_class);
    let exporter = sent.map(|protocol| match protocol {
        Protocol::Grpc => MetricExporter::builder().with_tonic().build(),
        Protocol::Http => MetricExporter::builder().with_http().with_http_client(Http::new()).build(),
    });
    if let Some(exporter) = exporter.transpose()? {
        provider = provider.with_periodic_exporter(Watched::new("metrics", exporter));
    }
    if scraped {
        let (reader, registry) = scrape::reader()?;
        provider = provider.with_reader(reader);
        scrape::show(registry);
    }
    Ok(provider.build())
}

fn logs(protocol: Protocol, resource: &Resource) -> Result<SdkLoggerProvider, Error> {
    let exporter = match protocol {
        Protocol::Grpc => LogExporter::builder().with_tonic().build(),
        Protocol::Http => LogExporter::builder().with_http().with_http_client(Http::new()).build(),
    };
    Ok(SdkLoggerProvider::builder().with_resource(resource.clone()).with_batch_exporter(Watched::new("logs", exporter?)).build())
}

fn by_class(instrument: &Instrument) -> Option<Stream> {
    instrument.name().starts_with(BY_CLASS.0).then(|| Stream::builder().with_cardinality_limit(BY_CLASS.1).build().ok())?
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
            ["TRACES", "METRICS", "LOGS"].map(|signal| wanted(signal, variable).ok())
        };
        let (all, traces) = (("OTEL_EXPORTER_OTLP_ENDPOINT", "http://x"), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://x"));
        let [no, http, grpc] = [None, Some(Protocol::Http), Some(Protocol::Grpc)].map(Some);
        assert_eq!(of(&[]), [no, no, no]);
        assert_eq!(of(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]), [no, no, no]);
        assert_eq!(of(&[all]), [http, http, http]);
        assert_eq!(of(&[traces]), [http, no, no]);
        assert_eq!(of(&[all, ("OTEL_SDK_DISABLED", "TRUE")]), [no, no, no]);
        assert_eq!(of(&[all, ("OTEL_TRACES_EXPORTER", "none")]), [no, http, http]);
        assert_eq!(of(&[all, ("OTEL_METRICS_EXPORTER", "none")]), [http, no, http]);
        assert_eq!(of(&[all, ("OTEL_LOGS_EXPORTER", "none")]), [http, http, no]);
        assert_eq!(of(&[all, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]), [grpc, grpc, grpc]);
        assert_eq!(of(&[all, ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc")]), [http, grpc, http]);
        assert!(of(&[all, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")]) == [None, None, None]);
    }
}
