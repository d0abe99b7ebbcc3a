//! The metrics of this process as Prometheus reads them.

use std::sync::OnceLock;

use opentelemetry_prometheus::PrometheusExporter;
use prometheus::{Registry, TextEncoder};

/// Content type of [`scrape`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

static REGISTRY: OnceLock<Registry> = OnceLock::new();

/// A reader of metrics. What it reads is shown by [`scrape`] after [`show`].
pub(crate) fn reader() -> Result<(PrometheusExporter, Registry), Box<dyn std::error::Error + Send + Sync>> {
    let registry = Registry::new();
    // All metrics have one scope: a label for it says nothing.
    let reader = opentelemetry_prometheus::exporter().with_registry(registry.clone()).scope_info_enabled(false).build()?;
    Ok((reader, registry))
}

pub(crate) fn show(registry: Registry) {
    REGISTRY.get_or_init(|| registry);
}

/// All metrics in Prometheus' text format; `None` if this process measures nothing for a scrape. It reads every gauge, and a driver may
/// be slow: do not call it where others wait.
pub fn scrape() -> Option<String> {
    let families = REGISTRY.get()?.gather();
    Some(TextEncoder::new().encode_to_string(&families).expect("the SDK makes valid metrics"))
}
