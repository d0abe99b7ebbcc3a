//! Milliseconds of a Poisson blend on one core.

use anyhow::Result;
use projector::blend::{Region, blend};

use crate::compare::best_seconds;

const BOX: usize = 512;
const SIZE: usize = BOX + 2;
const TRIES: usize = 7;

fn milliseconds(region: Region) -> Result<f64> {
    // Noise: no solver is helped by structure.
    let picture = |seed: u32| -> Vec<f32> {
        let noise = |i: u32| (i.wrapping_mul(2_654_435_761) ^ seed).wrapping_mul(2_246_822_519) >> 8;
        (0..3 * (SIZE * SIZE) as u32).map(|i| noise(i) as f32 / (1 << 23) as f32 - 1.0).collect()
    };
    let (target, source) = (picture(1), picture(2));
    let best = best_seconds(TRIES, || blend(&target, &source, &region, SIZE, SIZE))?;
    Ok(1000.0 * best)
}

pub fn run() -> Result<()> {
    let rectangle = |left, top| Region::Rectangle { left, top, right: left + BOX, bottom: top + BOX };
    let pixels =
        |inside: &dyn Fn(usize, usize) -> bool| -> Vec<bool> { (0..SIZE * SIZE).map(|i| inside(i % SIZE, i / SIZE)).collect() };
    let square = pixels(&|x, y| (1..=BOX).contains(&x) && (1..=BOX).contains(&y));
    let middle = SIZE as f64 / 2.0;
    let disc = pixels(&|x, y| (x as f64 - middle).hypot(y as f64 - middle) < middle - 1.0);
    println!("Poisson blend of {BOX} x {BOX} pixels, three channels, one core, best of {TRIES}, in ms:");
    for (name, region) in [
        ("box", rectangle(1, 1)),
        ("box in the picture's corner", rectangle(2, 0)),
        ("the box as a mask", Region::Mask(&square)),
        ("disc", Region::Mask(&disc)),
    ] {
        println!("{name:27}  {:.0}", milliseconds(region)?);
    }
    Ok(())
}
