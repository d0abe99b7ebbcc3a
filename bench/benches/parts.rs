//! The parts of a search and of a fleet, one by one: `make bench-parts`.

use std::hint::black_box;
use std::path::Path;

use divan::Bencher;
use harness::large_run_job;
use projector::blend::{Region, blend};
use projector::cma::Cma;
use projector::{Delta, transform};
use proto::{ColourTransform, DeltaCodec, Event, Job, Transform, What};
use queue::{Channel, Queue};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

fn main() {
    tch::set_num_threads(1);
    divan::main();
}

/// A generation of stage one (4 numbers, 8 candidates) and of stage two (128 numbers, 18 candidates).
#[divan::bench(args = [(4, 8), (128, 18)])]
fn cma_generation(bencher: Bencher, (dim, population): (usize, usize)) {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut cma = Cma::new(vec![0.0; dim], 1.0, Some(population));
    bencher.bench_local(|| {
        let points = cma.ask(&mut rng);
        let values: Vec<f64> = points.iter().map(|p| p.iter().map(|x| x * x).sum()).collect();
        cma.tell(&points, &values);
    });
}

fn transforms() -> Vec<Transform> {
    let one = |i: usize| Transform {
        scale: [1.0 + 0.05 * i as f64; 2],
        shift: [0.1, -0.02 * i as f64],
        colour: vec![(ColourTransform::Brightness, 0.9)],
        ..Transform::IDENTITY
    };
    (0..9).map(one).collect()
}

/// Nine images of that many pixels into the generator's frame, and back.
#[divan::bench(args = [32, 256])]
fn transform_apply(bencher: Bencher, size: i64) {
    let (images, transforms) = (Tensor::rand([9, 3, size, size], FLOAT), transforms());
    bencher.bench_local(|| transform::apply(&images, &transforms, true));
}

#[divan::bench(args = [32, 256])]
fn transform_invert(bencher: Bencher, size: i64) {
    let (images, transforms) = (Tensor::rand([9, 3, size, size], FLOAT), transforms());
    bencher.bench_local(|| transform::invert(&images, &transforms, true));
}

fn picture(size: u32) -> Vec<f32> {
    (0..3 * size * size).map(|i| ((i % 997) as f32 / 498.5 - 1.0) * 0.9).collect()
}

/// PNG of a result, and back, framed for the generator.
#[divan::bench(args = [32, 256])]
fn png_encode(bencher: Bencher, size: u32) {
    let pixels = picture(size);
    bencher.bench_local(|| engine::codec::encode_png(&pixels, size));
}

#[divan::bench(args = [32, 256])]
fn png_decode(bencher: Bencher, size: u32) {
    let png = engine::codec::encode_png(&picture(2 * size), 2 * size);
    bencher.bench_local(|| engine::codec::decode(&png, None, size).expect("our own picture"));
}

/// Changes of a 3x3 convolution from 512 to 512 channels (9.4 MB of floats).
fn differences() -> Vec<(String, Tensor)> {
    tch::manual_seed(1);
    vec![("conv.weight".into(), Tensor::randn([512, 512, 3, 3], FLOAT) * 1e-4)]
}

const CODECS: [DeltaCodec; 3] = [DeltaCodec::Bfloat16, DeltaCodec::Int8, DeltaCodec::LowRank { rank: 8 }];

#[divan::bench(args = [0, 1, 2])]
fn delta_encode(bencher: Bencher, which: usize) {
    let differences = differences();
    bencher.bench_local(|| Delta::encode(&differences, &CODECS[which], 0.0));
}

#[divan::bench(args = [0, 1, 2])]
fn delta_write(bencher: Bencher, which: usize) {
    let delta = Delta::encode(&differences(), &CODECS[which], 0.0);
    bencher.bench_local(|| {
        let mut bytes = Vec::new();
        delta.write("digest", &mut bytes).expect("memory takes it");
        bytes
    });
}

/// Poisson blending of a box in pictures of that many pixels.
#[divan::bench(args = [64, 256, 512], sample_count = 10)]
fn poisson_blend(bencher: Bencher, size: usize) {
    let (target, source) = (picture(size as u32), picture(size as u32).into_iter().rev().collect::<Vec<_>>());
    let region = Region::Rectangle { left: 1, top: 1, right: size - 1, bottom: size - 1 };
    bencher.bench_local(|| blend(&target, &source, &region, size, size).expect("the box is inside"));
}

#[divan::bench]
fn job_encode(bencher: Bencher) {
    let job = large_run_job(7);
    bencher.bench_local(|| black_box(&job).encode());
}

#[divan::bench]
fn job_decode(bencher: Bencher) {
    let bytes = large_run_job(7).encode();
    bencher.bench_local(|| Job::decode(black_box(&bytes)).expect("our own message"));
}

/// A thousand jobs through the queue in memory: published, consumed, acknowledged.
#[divan::bench(sample_count = 20)]
fn embedded_queue(bencher: Bencher) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let messages: Vec<Vec<u8>> = (0..1000).map(|i| large_run_job(i).encode()).collect();
    bencher.bench_local(|| {
        runtime.block_on(async {
            let queue = Queue::open("embedded:").await.expect("it is in memory");
            let mut consumer = queue.consume(Channel::Jobs, 16).await.expect("it is open");
            queue.publish_all(Channel::Jobs, messages.clone()).await.expect("it is open");
            for _ in 0..messages.len() {
                let delivery = consumer.next().await.expect("it is open").expect("not closed");
                delivery.ack().await.expect("it is open");
            }
        });
    });
}

/// The plan and the ledger of a run of 2,000 images: every job handed out, begun and ended, as messages.
#[divan::bench(sample_count = 20)]
fn ledger(bencher: Bencher) {
    let simulation = coordinator::simulate::Simulation { images: 2000, slots: 100, seconds: 20.0 };
    bencher.bench_local(|| coordinator::simulate::simulate(&simulation));
}

#[divan::bench]
fn event_decode(bencher: Bencher) {
    let bytes = Event::about(&large_run_job(7), "worker-1", What::Started).encode();
    bencher.bench_local(|| Event::decode(black_box(&bytes)).expect("our own message"));
}

/// Nine lanes of the bundled model: the images, and a step's gradients.
#[divan::bench(args = [false, true], sample_count = 20)]
fn generator(bencher: Bencher, gradients: bool) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/fashion32");
    let model = engine::load(&folder).expect("the bundled model");
    let generator = &*model.model.generator;
    let z = Tensor::randn([9, generator.latent_dim()], FLOAT).set_requires_grad(gradients);
    let c = generator.embed(0).unsqueeze(0).repeat([9, 1]).set_requires_grad(gradients);
    bencher.bench_local(|| {
        let images = generator.generate(&z, &c);
        match gradients {
            true => Tensor::run_backward(&[images.sum(Kind::Float)], &[&z, &c], false, false),
            false => vec![images],
        }
    });
}
