//! The local devices.

use std::str::FromStr;

use tch::{Cuda, Device};

/// Loads libtorch's CUDA part if it is installed, so that one binary serves CPU and GPU.
///
/// The linker drops `libtorch_cuda.so` since the program names none of its symbols; loading it registers the CUDA back-end. Without
/// the library or a driver no GPU is found.
pub fn load_cuda() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};
        // SAFETY: the initialisers of libtorch_cuda.so only register kernels; it is made to be loaded this way, and stays loaded.
        #[allow(unsafe_code)]
        if let Ok(library) = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_LAZY | RTLD_GLOBAL) } {
            std::mem::forget(library);
        }
    });
}

/// Devices to compute on, in the order of a list such as `cpu,cpu` or `cuda:0,cuda:1`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices(pub Vec<Device>);

impl Devices {
    /// All GPUs if there are any, else one CPU device for each core.
    pub fn automatic() -> Devices {
        load_cuda();
        let gpus = Cuda::device_count();
        if gpus > 0 {
            return Devices((0..gpus as usize).map(Device::Cuda).collect());
        }
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        Devices(vec![Device::Cpu; cores])
    }
}

impl FromStr for Devices {
    type Err = String;

    fn from_str(text: &str) -> Result<Devices, String> {
        if text == "auto" {
            return Ok(Devices::automatic());
        }
        text.split(',').map(|name| device(name.trim())).collect::<Result<_, _>>().map(Devices)
    }
}

fn device(name: &str) -> Result<Device, String> {
    if name == "cpu" {
        return Ok(Device::Cpu);
    }
    let index = name.strip_prefix("cuda:").and_then(|n| n.parse().ok());
    let index: usize = index.ok_or_else(|| format!("{name:?} is not a device: use cpu or cuda:N"))?;
    load_cuda();
    let count = Cuda::device_count();
    if index as i64 >= count {
        let way_out = "make setup CUDA=1 sets up libtorch for CUDA";
        return Err(format!("{name} does not exist: this machine has {count} CUDA devices ({way_out})"));
    }
    Ok(Device::Cuda(index))
}

impl std::fmt::Display for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = |device: &Device| match device {
            Device::Cuda(i) => format!("cuda:{i}"),
            _ => "cpu".to_owned(),
        };
        f.write_str(&self.0.iter().map(name).collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_devices_is_read_and_an_unknown_one_is_named() {
        assert_eq!("cpu, cpu".parse::<Devices>(), Ok(Devices(vec![Device::Cpu; 2])));
        assert!("gpu".parse::<Devices>().unwrap_err().contains("\"gpu\" is not a device"));
        assert!("cuda:99".parse::<Devices>().unwrap_err().contains("cuda:99 does not exist"));
    }
}
