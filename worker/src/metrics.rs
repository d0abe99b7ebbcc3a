//! The metrics of a worker: every name, once.

use std::sync::atomic::{AtomicUsize, Ordering};

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use telemetry::Metric;

/// Jobs that this worker holds.
pub static HELD: AtomicUsize = AtomicUsize::new(0);

const LOSS_BOUNDS: &[f64] = &[0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 4.0];
const LPIPS_BOUNDS: &[f64] = &[0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0];
const SECOND_BOUNDS: &[f64] = &[0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0];

/// Attribute `basin.stage`: that of a search, with the least loss of its last step, or `final`, with the loss of the result.
pub static LOSS: Metric =
    Metric::histogram("basin.projection.loss", "{loss}", "Loss of an image at the end of a stage", LOSS_BOUNDS);
/// Attribute `basin.stage`: `final`.
pub static LPIPS: Metric = Metric::histogram("basin.projection.lpips", "{distance}", "LPIPS of the inverted image", LPIPS_BOUNDS);
/// Attribute `basin.stage`: a `proto::Stage`. Images of a batch share the devices' time, so that the stages of an image add up to what it
/// cost.
pub static STAGE: Metric = Metric::histogram("basin.stage.duration", "s", "Time that a stage of an image took", SECOND_BOUNDS);
/// Forward and backward passes of one lane.
pub static LANE_STEPS: Metric = Metric::counter("basin.lane.steps", "{step}", "Passes of one lane computed");
/// Its rate is the number of busy devices.
pub static DEVICE_BUSY: Metric = Metric::counter("basin.device.busy", "s", "Time that devices computed, over all devices");
/// Counts results and checkpoints.
pub static UPLOAD: Metric = Metric::counter("basin.uploaded", "By", "Bytes written to the store");
/// Attribute `basin.reason`, of what was not available: `image`, `model`, `results`, or `publish` for an upload.
pub static RETRIES: Metric = Metric::counter("basin.retries", "{retry}", "Jobs that were retried");
/// Attribute `basin.outcome`: `saved`, `failed` or `resumed`.
pub static CHECKPOINTS: Metric = Metric::counter("basin.checkpoints", "{checkpoint}", "Checkpoints written and read");
/// From a job's delivery until that is settled.
pub static IMAGES: Metric = Metric::gauge("basin.worker.images", "{image}", "Images that the worker holds");
/// 1 during an outage that the worker waits out, else 0. Attribute `basin.place`: `store` or `data set`.
pub static WAITING: Metric = Metric::gauge("basin.worker.waiting", "{outage}", "Outages of stores that the worker waits out");
/// Attribute `hw.id`, as in all metrics of GPUs.
pub static GPU_UTILIZATION: Metric = Metric::gauge("hw.gpu.utilization", "1", "Part of the time in which the GPU computed");
pub static GPU_MEMORY: Metric = Metric::gauge("hw.gpu.memory.usage", "By", "Memory of the GPU in use");
pub static GPU_MEMORY_LIMIT: Metric = Metric::gauge("hw.gpu.memory.limit", "By", "Memory of the GPU");

pub static ALL: [&Metric; 13] = [
    &LOSS,
    &LPIPS,
    &STAGE,
    &LANE_STEPS,
    &DEVICE_BUSY,
    &UPLOAD,
    &RETRIES,
    &CHECKPOINTS,
    &IMAGES,
    &WAITING,
    &GPU_UTILIZATION,
    &GPU_MEMORY,
    &GPU_MEMORY_LIMIT,
];

/// Records the errors of a result.
pub(crate) fn of_result(loss: f64, lpips: f64) {
    LOSS.record(loss, &[("basin.stage", "final")]);
    LPIPS.record(lpips, &[("basin.stage", "final")]);
}

/// Registers the gauges, which are read whenever metrics are sent.
pub(crate) fn watch() {
    if telemetry::measures() {
        IMAGES.observe(|see| see(HELD.load(Ordering::Relaxed) as f64, &[]));
        watch_gpus();
    }
}

/// Registers what NVIDIA's driver measures on this machine's GPUs, if there is a driver.
fn watch_gpus() {
    let nvml: &'static Nvml = match Nvml::init() {
        Ok(nvml) => Box::leak(Box::new(nvml)),
        Err(error) => return tracing::debug!(%error, "no GPU to measure"),
    };
    let tell = |metric: &'static Metric, value: fn(&nvml_wrapper::Device) -> Result<f64, NvmlError>| {
        metric.observe(move |see| {
            for index in 0..nvml.device_count().unwrap_or(0) {
                // A GPU that fell off the bus is silent.
                let Ok(device) = nvml.device_by_index(index) else { continue };
                if let (Ok(id), Ok(value)) = (device.uuid(), value(&device)) {
                    see(value, &[("hw.id", &id)]);
                }
            }
        });
    };
    tell(&GPU_UTILIZATION, |device| Ok(f64::from(device.utilization_rates()?.gpu) / 100.0));
    tell(&GPU_MEMORY, |device| Ok(device.memory_info()?.used as f64));
    tell(&GPU_MEMORY_LIMIT, |device| Ok(device.memory_info()?.total as f64));
}
