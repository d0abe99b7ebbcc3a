//! Who speaks: the attributes of this process.

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};

/// The service and its instance, so that two workers have two series. The environment takes precedence.
pub fn of(service: &'static str) -> Resource {
    let host = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    let host = host.trim();
    let ours = [
        ("service.name", std::env::var("OTEL_SERVICE_NAME").unwrap_or_else(|_| service.into())),
        ("service.namespace", "basin".into()),
        ("service.version", env!("CARGO_PKG_VERSION").into()),
        ("service.instance.id", format!("{host}-{}", std::process::id())),
        ("host.name", host.into()),
    ];
    let known = ours.into_iter().filter(|(_, value)| !value.is_empty());
    Resource::builder_empty()
        .with_attributes(known.map(|(key, value)| KeyValue::new(key, value)))
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()))
        .build()
}
