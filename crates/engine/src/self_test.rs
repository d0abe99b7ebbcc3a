//! Whether devices compute what the CPU computes: a fixed forward pass of the generator.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use projector::{Generator, latent};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

/// Largest mean absolute difference of pixels in [-1, 1] between a device and the CPU. Other kernels round in another way (some 1e-3
/// with TF32); a broken device is far off, or not finite.
const TOLERANCE: f64 = 0.02;

/// Generates one image of class 0 on the CPU and on each of the `devices`. Says which device fails or differs, and how. `generator`
/// is on the CPU; a CPU is not compared with itself.
pub fn self_test(generator: &dyn Generator, devices: &[Device]) -> Result<(), String> {
    let others: Vec<Device> = devices.iter().copied().filter(|device| *device != Device::Cpu).collect();
    if others.is_empty() {
        return Ok(());
    }
    let _no_grad = tch::no_grad_guard();
    let expected = sample(generator, Device::Cpu);
    for device in others {
        let found = catch_unwind(AssertUnwindSafe(|| sample(&*generator.replicate(device), device)));
        let found = found.map_err(|panic| format!("{device:?} fails: {}", text(&*panic)))?;
        compare(&expected, &found).map_err(|problem| format!("{device:?} {problem}"))?;
    }
    Ok(())
}

/// The image of a fixed z, on the CPU.
fn sample(generator: &dyn Generator, device: Device) -> Tensor {
    let z = latent::truncated(generator.latent_dim() as usize, &mut ChaCha8Rng::seed_from_u64(0));
    let z = Tensor::from_slice(&z).view([1, -1]).to_device(device);
    let c = generator.embed(0).unsqueeze(0);
    generator.generate(&z, &c).to_device(Device::Cpu)
}

fn compare(expected: &Tensor, found: &Tensor) -> Result<(), String> {
    let difference = (expected - found).abs().mean(Kind::Double).double_value(&[]);
    if difference <= TOLERANCE {
        return Ok(());
    }
    // Not a number is no small difference either.
    Err(format!("computes other pixels than the CPU: the mean difference is {difference}, and {TOLERANCE} is allowed"))
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_else(|| "unknown error".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_passes_and_other_pixels_do_not() {
        let image = Tensor::from_slice(&[0.5f32, -0.5, 0.25, 1.0]);
        assert!(compare(&image, &(&image + 1e-3)).is_ok());
        assert!(compare(&image, &(&image + 0.1)).is_err());
        assert!(compare(&image, &(&image * f64::NAN)).is_err());
    }
}
