//! What NVIDIA's driver says of the GPUs of this machine (*io*), if it is there.

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use telemetry::Metric;

use crate::metrics::{GPU_MEMORY, GPU_MEMORY_LIMIT, GPU_UTILIZATION};

/// Begins to tell; without a driver there is nothing to tell.
pub fn watch() {
    let nvml: &'static Nvml = match Nvml::init() {
        Ok(nvml) => Box::leak(Box::new(nvml)),
        Err(error) => return tracing::debug!(%error, "no GPU to tell of"),
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
