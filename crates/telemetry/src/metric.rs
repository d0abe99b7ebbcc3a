//! A metric: its name, its meaning, and the instrument that records it.

use std::sync::OnceLock;

use opentelemetry::metrics::{Counter, Gauge, Histogram, ObservableGauge};
use opentelemetry::{KeyValue, global};

/// The kind of a metric's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instrument {
    /// A sum that only grows.
    Counter,
    Gauge,
    Histogram,
}

/// A metric, kept in a `static` of the one file of its service that names all of them.
#[derive(Debug)]
pub struct Metric {
    /// OpenTelemetry's name, such as `basin.images`.
    pub name: &'static str,
    pub kind: Instrument,
    /// UCUM unit, such as `s`, `By` or `{image}`. `1` only for a gauge: ways to Prometheus differ about other metrics with it.
    pub unit: &'static str,
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

/// Names and values that distinguish series of one metric. Never an image: there are too many.
pub type Attributes<'a> = &'a [(&'static str, &'a str)];

impl Metric {
    const fn new(
        name: &'static str,
        kind: Instrument,
        unit: &'static str,
        description: &'static str,
        boundaries: &'static [f64],
    ) -> Metric {
        Metric { name, kind, unit, description, boundaries, instrument: OnceLock::new(), observer: OnceLock::new() }
    }

    pub const fn counter(name: &'static str, unit: &'static str, description: &'static str) -> Metric {
        Metric::new(name, Instrument::Counter, unit, description, &[])
    }

    pub const fn gauge(name: &'static str, unit: &'static str, description: &'static str) -> Metric {
        Metric::new(name, Instrument::Gauge, unit, description, &[])
    }

    /// A distribution over the intervals that `boundaries` make.
    pub const fn histogram(
        name: &'static str,
        unit: &'static str,
        description: &'static str,
        boundaries: &'static [f64],
    ) -> Metric {
        Metric::new(name, Instrument::Histogram, unit, description, boundaries)
    }

    /// Adds to a counter, sets a gauge, or adds a value to a histogram. Never waits.
    pub fn record(&self, value: f64, attributes: Attributes) {
        self.add(value, &key_values(attributes));
    }

    /// [`Metric::record`] for attributes that are no text.
    pub(crate) fn add(&self, value: f64, attributes: &[KeyValue]) {
        match self.instrument.get_or_init(|| self.recorder()) {
            Recorder::Counter(counter) => counter.add(value, attributes),
            Recorder::Gauge(gauge) => gauge.record(value, attributes),
            Recorder::Histogram(histogram) => histogram.record(value, attributes),
        }
    }

    fn recorder(&self) -> Recorder {
        let meter = global::meter("basin");
        let Metric { name, unit, description, boundaries, .. } = *self;
        match self.kind {
            Instrument::Counter => {
                Recorder::Counter(meter.f64_counter(name).with_unit(unit).with_description(description).build())
            }
            Instrument::Gauge => Recorder::Gauge(meter.f64_gauge(name).with_unit(unit).with_description(description).build()),
            Instrument::Histogram => {
                let histogram = meter.f64_histogram(name).with_unit(unit).with_description(description);
                Recorder::Histogram(histogram.with_boundaries(boundaries.to_vec()).build())
            }
        }
    }

    /// Makes a gauge whose values are read when they are sent: `look` passes each series to the function that it gets; a series that
    /// it does not pass ends. `look` must not wait. Only the first call has an effect.
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

    /// Name in Prometheus, as its OTLP receiver and the collector translate it, and as [`scrape`](crate::scrape()) has it.
    pub fn prometheus_name(&self) -> String {
        let mut words: Vec<&str> =
            self.name.split(|c: char| !c.is_ascii_alphanumeric() && c != ':').filter(|word| !word.is_empty()).collect();
        let suffix = match self.unit {
            "s" => "seconds",
            "By" => "bytes",
            _ => "", // `1`, and annotations such as `{image}`
        };
        if !suffix.is_empty() && !words.contains(&suffix) {
            words.push(suffix);
        }
        match self.kind {
            Instrument::Counter => words.push("total"),
            Instrument::Gauge if self.unit == "1" => words.push("ratio"),
            _ => {}
        }
        words.join("_")
    }
}

fn key_values(attributes: Attributes) -> Vec<KeyValue> {
    attributes.iter().map(|(name, value)| KeyValue::new(*name, value.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Prometheus 3.16 and the collector 0.165 did it.
    #[test]
    fn prometheus_names() {
        for (metric, expected) in [
            (Metric::counter("basin.images", "{image}", ""), "basin_images_total"),
            (Metric::histogram("basin.projection.loss", "{loss}", "", &[]), "basin_projection_loss"),
            (Metric::counter("basin.uploaded", "By", ""), "basin_uploaded_bytes_total"),
            (Metric::gauge("hw.gpu.utilization", "1", ""), "hw_gpu_utilization_ratio"),
            (Metric::histogram("messaging.process.duration", "s", "", &[]), "messaging_process_duration_seconds"),
        ] {
            assert_eq!(metric.prometheus_name(), expected);
        }
    }
}
