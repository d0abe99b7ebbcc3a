//! The encoder on weights of its own.

use projector::nn::Weights;
use projector::nn::encoder::{Config, Encoder};
use tch::{Device, Kind, Tensor};

mod harness;
use harness::{NamedTensors, assert_contradictions, assert_strict, build};

fn config() -> Config {
    Config { resolution: 16, embed_dim: 5, latent_dim: 6, channels: vec![8, 12], groups: 4 }
}

fn tensors() -> NamedTensors {
    let layout = config().layout().expect("fits");
    layout.into_iter().enumerate().map(|(k, (name, shape))| (name, seeded::noise(k as u32, &shape) * 0.3)).collect()
}

#[test]
fn an_encoder_sees_the_image_and_the_class_and_a_copy_sees_the_same() {
    let encoder = build(tensors(), |weights| Encoder::load(&config(), weights));
    let (images, c) = (seeded::noise(100, &[2, 3, 16, 16]), seeded::noise(101, &[2, 5]));
    let z = encoder.encode(&images, &c);
    assert_eq!(z.size(), [2, 6]);
    let first = encoder.encode(&images.narrow(0, 0, 1), &c.narrow(0, 0, 1));
    assert!((&first - z.narrow(0, 0, 1)).abs().max().double_value(&[]) < 1e-5, "the other image of the batch matters");
    let apart = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]) > 1e-3;
    assert!(apart(&z, &encoder.encode(&images.flip([3]), &c)), "the image does not matter");
    assert!(apart(&z, &encoder.encode(&images, &c.flip([1]))), "the class does not matter");
    assert!(encoder.replicate(Device::Cpu).encode(&images, &c) == z, "the copy is another");
}

#[test]
fn an_encoder_is_trained_through_the_tensors_that_it_was_built_from() {
    let tensors: Vec<_> = tensors().into_iter().map(|(n, t)| (n, t.set_requires_grad(true))).collect();
    let mut weights = Weights::new(tensors.iter().map(|(n, t)| (n.clone(), t.shallow_clone())));
    let encoder = Encoder::load(&config(), &mut weights).expect("loads");
    let sum = encoder.encode(&seeded::noise(100, &[2, 3, 16, 16]), &seeded::noise(101, &[2, 5])).square().sum(Kind::Float);
    let handles: Vec<_> = tensors.iter().map(|(_, t)| t).collect();
    for ((name, _), gradient) in tensors.iter().zip(Tensor::run_backward(&[sum], &handles, false, false)) {
        assert!(gradient.abs().max().double_value(&[]) > 0.0, "{name} has no gradient");
    }
}

#[test]
fn an_encoder_with_a_missing_spare_or_misshapen_tensor_is_refused_by_name() {
    assert_strict(&tensors(), &|weights| Encoder::load(&config(), weights).map(drop));
}

#[test]
fn an_encoder_configuration_that_contradicts_itself_is_refused() {
    assert_contradictions(
        &config(),
        &[
            (|c| c.channels.clear(), "0 blocks of the encoder do not reduce 16 pixels to 4"),
            (|c| c.resolution = 32, "2 blocks of the encoder do not reduce 32 pixels to 4"),
            (|c| c.channels = vec![8; 70], "70 blocks"),
            (|c| c.channels[1] = 10, "10 channels of the encoder are not a multiple of 4 groups"),
            (|c| c.latent_dim = 0, "a size of the encoder is not in 1"),
        ],
        Encoder::load,
    );
}
