//! An OTLP receiver in this process, over gRPC and over HTTP, that keeps what it gets.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{MetricsService, MetricsServiceServer};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;
use telemetry::Instrument;
use tonic::{Request, Response, Status};

use crate::free_ports;

pub type HeardAttributes = BTreeMap<String, String>;

#[derive(Clone, Debug)]
pub struct Span {
    pub service: String,
    pub trace: String,
    pub id: String,
    /// Empty at the root.
    pub parent: String,
    pub name: String,
    /// A number of OTLP: 1 internal, 4 producer, 5 consumer.
    pub kind: i32,
    pub attributes: HeardAttributes,
    /// Span ids, with their attributes.
    pub links: Vec<(String, HeardAttributes)>,
    /// 2: error.
    pub status: i32,
}

/// A metric with all attributes that it ever came with.
#[derive(Clone, Debug)]
pub struct HeardMetric {
    pub service: String,
    pub unit: String,
    pub description: String,
    pub kind: Instrument,
    /// Series, each with its last value: the sum of a distribution.
    pub series: BTreeMap<HeardAttributes, f64>,
}

#[derive(Clone, Debug)]
pub struct HeardLog {
    pub service: String,
    /// Empty outside of a trace.
    pub trace: String,
    pub severity: String,
    pub message: String,
    pub attributes: HeardAttributes,
}

#[derive(Default)]
pub struct Heard {
    pub spans: Vec<Span>,
    pub logs: Vec<HeardLog>,
    pub metrics: BTreeMap<String, HeardMetric>,
    /// Attributes of the process, by the name of the service.
    pub resources: BTreeMap<String, HeardAttributes>,
}

/// Listens until dropped; then its ports are closed.
pub struct Otlp {
    grpc: u16,
    http: u16,
    heard: Arc<Mutex<Heard>>,
    _runtime: tokio::runtime::Runtime,
}

impl Otlp {
    pub fn start() -> Otlp {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let heard = Arc::<Mutex<Heard>>::default();
        let [grpc] = free_ports();
        let ear = Ear(heard.clone());
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(ear.clone()))
            .add_service(MetricsServiceServer::new(ear.clone()))
            .add_service(LogsServiceServer::new(ear.clone()));
        runtime.spawn(server.serve(([127, 0, 0, 1], grpc).into()));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let http = listener.local_addr().expect("it is bound").port();
        let (traces, metrics, logs) = (ear.clone(), ear.clone(), ear);
        let router = Router::new()
            .route("/v1/logs", post(async move |body: Bytes| taken(body, |request| logs.logs(request))))
            .route("/v1/traces", post(async move |body: Bytes| taken(body, |request| traces.spans(request))))
            .route("/v1/metrics", post(async move |body: Bytes| taken(body, |request| metrics.metrics(request))));
        runtime.spawn(async move { axum::serve(listener, router).await });
        Otlp { grpc, http, heard, _runtime: runtime }
    }

    /// Variables of a process that speaks to it over gRPC.
    pub fn grpc(&self) -> Vec<(&'static str, String)> {
        variables(self.grpc, "grpc")
    }

    /// Variables of a process that speaks to it over HTTP.
    pub fn http(&self) -> Vec<(&'static str, String)> {
        variables(self.http, "http/protobuf")
    }

    pub fn heard<T>(&self, look: impl FnOnce(&Heard) -> T) -> T {
        look(&self.heard.lock().expect("no thread panics"))
    }
}

fn variables(port: u16, protocol: &str) -> Vec<(&'static str, String)> {
    vec![
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{port}")),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.into()),
        ("OTEL_METRIC_EXPORT_INTERVAL", "200".into()),
        ("OTEL_BSP_SCHEDULE_DELAY", "200".into()),
        ("OTEL_BLRP_SCHEDULE_DELAY", "200".into()),
        ("OTEL_TRACES_SAMPLER", "parentbased_always_on".into()),
        ("BASIN_LOG_FORMAT", "json".into()),
    ]
}

fn taken<T: Message + Default>(body: Bytes, take: impl FnOnce(T)) -> StatusCode {
    match T::decode(body) {
        Ok(request) => {
            take(request);
            StatusCode::OK
        }
        Err(_) => StatusCode::BAD_REQUEST,
    }
}

#[derive(Clone)]
struct Ear(Arc<Mutex<Heard>>);

#[tonic::async_trait]
impl TraceService for Ear {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.spans(request.into_inner());
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Ear {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.metrics(request.into_inner());
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Ear {
    async fn export(&self, request: Request<ExportLogsServiceRequest>) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.logs(request.into_inner());
        Ok(Response::new(Default::default()))
    }
}

impl Ear {
    fn logs(&self, request: ExportLogsServiceRequest) {
        let mut heard = self.0.lock().expect("no thread panics");
        for part in request.resource_logs {
            let service = heard.meet(part.resource);
            for record in part.scope_logs.into_iter().flat_map(|scope| scope.log_records) {
                heard.logs.push(HeardLog {
                    service: service.clone(),
                    trace: hex(&record.trace_id),
                    severity: record.severity_text,
                    message: text(record.body),
                    attributes: attributes(record.attributes),
                });
            }
        }
    }

    fn spans(&self, request: ExportTraceServiceRequest) {
        let mut heard = self.0.lock().expect("no thread panics");
        for part in request.resource_spans {
            let service = heard.meet(part.resource);
            for span in part.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                heard.spans.push(Span {
                    service: service.clone(),
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    name: span.name,
                    kind: span.kind,
                    attributes: attributes(span.attributes),
                    links: span.links.into_iter().map(|link| (hex(&link.span_id), attributes(link.attributes))).collect(),
                    status: span.status.map_or(0, |status| status.code),
                });
            }
        }
    }

    fn metrics(&self, request: ExportMetricsServiceRequest) {
        let mut heard = self.0.lock().expect("no thread panics");
        for part in request.resource_metrics {
            let service = heard.meet(part.resource);
            for metric in part.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
                let number = |point: opentelemetry_proto::tonic::metrics::v1::NumberDataPoint| {
                    use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
                    let value = match point.value {
                        Some(Value::AsDouble(value)) => value,
                        Some(Value::AsInt(value)) => value as f64,
                        None => f64::NAN,
                    };
                    (attributes(point.attributes), value)
                };
                let (kind, series): (Instrument, BTreeMap<HeardAttributes, f64>) = match metric.data {
                    Some(Data::Sum(sum)) => {
                        assert!(sum.is_monotonic, "{} can fall", metric.name);
                        (Instrument::Counter, sum.data_points.into_iter().map(number).collect())
                    }
                    Some(Data::Gauge(gauge)) => (Instrument::Gauge, gauge.data_points.into_iter().map(number).collect()),
                    Some(Data::Histogram(histogram)) => {
                        let points = histogram.data_points.into_iter();
                        (Instrument::Histogram, points.map(|p| (attributes(p.attributes), p.sum.unwrap_or(f64::NAN))).collect())
                    }
                    other => panic!("{}: {other:?}", metric.name),
                };
                let empty = HeardMetric {
                    service: service.clone(),
                    unit: metric.unit,
                    description: metric.description,
                    kind,
                    series: BTreeMap::new(),
                };
                heard.metrics.entry(metric.name).or_insert(empty).series.extend(series);
            }
        }
    }
}

impl Heard {
    /// Name of the service that speaks.
    fn meet(&mut self, resource: Option<Resource>) -> String {
        let service = attributes(resource.unwrap_or_default().attributes);
        let name = service["service.name"].clone();
        self.resources.insert(name.clone(), service);
        name
    }
}

fn attributes(attributes: Vec<KeyValue>) -> HeardAttributes {
    attributes.into_iter().map(|attribute| (attribute.key, text(attribute.value))).collect()
}

fn text(value: Option<AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        Some(any_value::Value::StringValue(text)) => text,
        Some(any_value::Value::BoolValue(value)) => value.to_string(),
        Some(any_value::Value::IntValue(value)) => value.to_string(),
        Some(any_value::Value::DoubleValue(value)) => value.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
