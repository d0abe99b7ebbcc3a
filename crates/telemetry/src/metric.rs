//! A metric is a name, what it means, and the instrument that records it.

use std::sync::OnceLock;

use opentelemetry::metrics::{Counter, Gauge, Histogram, ObservableGauge};
use opentelemetry::{KeyValue, global};

/// What a metric's numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A sum that only grows.
    Counter,
    /// What is now.
    Gauge,
    /// A distribution.
    Histogram,
}

/// A metric, kept in a `static` of the one file of its service that names all of them.
#[derive(Debug)]
pub struct Metric {
    /// In OpenTelemetry.
    pub name: &'static str,
    /// What its numbers are.
    pub kind: Kind,
    /// In UCUM, as `s`, `By`, `1` or `{image}`.
    pub unit: &'static str,
    /// For people.
    pub description: &'static str,
    boundaries: &'static [f64],
    instrument: OnceLock<Recorder>,
    observer: OnceLock<ObservableGauge<f64>>,
}

#[derive(Debug)]
enum Recorder {
    Counter(Counter<f64>),
    Gauge(Gauge<f64>),
    Histogram(Histogram<f64>),
}

/// Names and values that tell series of one metric apart. Never an image: there are too many.
pub type Attributes<'a> = &'a [(&'static str, &'a str)];

impl Metric {
    const fn new(
        name: &'static str,
        kind: Kind,
        unit: &'static str,
        description: &'static str,
        boundaries: &'static [f64],
    ) -> Metric {
        Metric { name, kind, unit, description, boundaries, instrument: OnceLock::new(), observer: OnceLock::new() }
    }

    /// A sum that only grows.
    pub const fn counter(name: &'static str, unit: &'static str, description: &'static str) -> Metric {
        Metric::new(name, Kind::Counter, unit, description, &[])
    }

    /// What is now.
    pub const fn gauge(name: &'static str, unit: &'static str, description: &'static str) -> Metric {
        Metric::new(name, Kind::Gauge, unit, description, &[])
    }

    /// A distribution over the intervals that `boundaries` make.
    pub const fn histogram(
        name: &'static str,
        unit: &'static str,
        description: &'static str,
        boundaries: &'static [f64],
    ) -> Metric {
        Metric::new(name, Kind::Histogram, unit, description, boundaries)
    }

    /// Adds to a counter, sets a gauge, or adds a value to a distribution. Never waits.
    pub fn record(&self, value: f64, attributes: Attributes) {
        let attributes = key_values(attributes);
        match self.instrument.get_or_init(|| self.recorder()) {
            Recorder::Counter(counter) => counter.add(value, &attributes),
            Recorder::Gauge(gauge) => gauge.record(value, &attributes),
            Recorder::Histogram(histogram) => histogram.record(value, &attributes),
        }
    }

    fn recorder(&self) -> Recorder {
        let meter = global::meter("basin");
        let Metric { name, unit, description, boundaries, .. } = *self;
        match self.kind {
            Kind::Counter => Recorder::Counter(meter.f64_counter(name).with_unit(unit).with_description(description).build()),
            Kind::Gauge => Recorder::Gauge(meter.f64_gauge(name).with_unit(unit).with_description(description).build()),
            Kind::Histogram => Recorder::Histogram(
                meter
                    .f64_histogram(name)
                    .with_unit(unit)
                    .with_description(description)
                    .with_boundaries(boundaries.to_vec())
                    .build(),
            ),
        }
    }

    /// A gauge whose values are asked for when they are sent: `look` hands them to the function that it is given, and what it does
    /// not hand over is not there any more. It must not wait, and counts once only.
    pub fn observe(&self, look: impl Fn(&dyn Fn(f64, Attributes)) + Send + Sync + 'static) {
        let Metric { name, unit, description, .. } = *self;
        self.observer.get_or_init(|| {
            let meter = global::meter("basin");
            let builder = meter.f64_observable_gauge(name).with_unit(unit).with_description(description);
            let callback = move |observer: &dyn opentelemetry::metrics::AsyncInstrument<f64>| {
                look(&|value, attributes| observer.observe(value, &key_values(attributes)));
            };
            builder.with_callback(callback).build()
        });
    }

    /// What Prometheus calls it.
    pub fn prometheus_name(&self) -> String {
        prometheus_name(self.name, self.unit, self.kind)
    }
}

fn key_values(attributes: Attributes) -> Vec<KeyValue> {
    attributes.iter().map(|(name, value)| KeyValue::new(*name, value.to_string())).collect()
}

/// What Prometheus calls a metric, as its own OTLP receiver and the collector translate it.
pub fn prometheus_name(name: &str, unit: &str, kind: Kind) -> String {
    let mut words: Vec<&str> =
        name.split(|c: char| !c.is_ascii_alphanumeric() && c != ':').filter(|word| !word.is_empty()).collect();
    let suffix = match unit {
        "s" => "seconds",
        "By" => "bytes",
        _ => "", // `1`, and annotations such as `{image}`
    };
    if !suffix.is_empty() && !words.contains(&suffix) {
        words.push(suffix);
    }
    match kind {
        Kind::Counter => words.push("total"),
        Kind::Gauge if unit == "1" => words.push("ratio"),
        _ => {}
    }
    words.join("_")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Prometheus 3.16 and the collector 0.165 did it.
    #[test]
    fn prometheus_names() {
        assert_eq!(prometheus_name("basin.images", "{image}", Kind::Counter), "basin_images_total");
        assert_eq!(prometheus_name("basin.projection.loss", "1", Kind::Histogram), "basin_projection_loss");
        assert_eq!(prometheus_name("basin.upload.size", "By", Kind::Counter), "basin_upload_size_bytes_total");
        assert_eq!(prometheus_name("hw.gpu.utilization", "1", Kind::Gauge), "hw_gpu_utilization_ratio");
        assert_eq!(prometheus_name("messaging.process.duration", "s", Kind::Histogram), "messaging_process_duration_seconds");
    }
}
