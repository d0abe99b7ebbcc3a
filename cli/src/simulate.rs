//! `basin simulate`: the coordinator's work for a run of any size.

use std::process::ExitCode;

use anyhow::bail;
use coordinator::simulate::{REQUESTS, Simulation, simulate};

#[derive(clap::Args)]
pub struct SimulateArgs {
    /// Images of the run.
    #[arg(long, default_value_t = 1_281_167)]
    images: usize,
    /// Images that all workers together hold at a time.
    #[arg(long, default_value_t = 1000)]
    slots: usize,
    /// Seconds that one image takes.
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// Divide images and slots into N equal parts, each with its own coordinator and queue, and simulate one of them.
    #[arg(long, default_value_t = 1, value_name = "N")]
    partitions: usize,
}

/// Dollars for a million requests that write or list, and that read (S3 standard, us-east-1).
const REQUEST_PRICE: (f64, f64) = (5.0, 0.4);

pub fn run(args: &SimulateArgs) -> anyhow::Result<ExitCode> {
    if args.images == 0 || args.slots == 0 || args.partitions == 0 || !(args.seconds.is_finite() && args.seconds > 0.0) {
        bail!("--images, --slots, --seconds and --partitions must be greater than 0");
    }
    let (part, slots) = (args.images.div_ceil(args.partitions), args.slots.div_ceil(args.partitions));
    let m = simulate(&Simulation { images: part, slots, seconds: args.seconds });
    let (images, run) = (part as f64, m.run_seconds);
    let cpu = (m.planning + m.driving).as_secs_f64();
    if args.partitions > 1 {
        say!("one of {} partitions of {} images, {} at a time:", args.partitions, args.images, args.slots);
    }
    say!("{part} images, {slots} at a time, {} s each", args.seconds);
    say!("the run takes             {:.1} h, {:.1} images/s", run / 3600.0, images / run);
    say!("planning                  {:.2} s", m.planning.as_secs_f64());
    let share = 100.0 * cpu / run;
    say!(
        "publishing, recording     {:.2} s on one thread: {share:.2} % of it, {:.0} images/s at most",
        m.driving.as_secs_f64(),
        images / m.driving.as_secs_f64()
    );
    if let Some(peak) = m.peak {
        say!("peak memory               {:.0} MB, {:.0} bytes for each image", peak as f64 / 1e6, peak as f64 / images);
    }
    say!("queue                     {:.1} messages/s, {:.1} MB in all", m.messages as f64 / run, m.bytes as f64 / 1e6);
    let (writes, reads) = (images * REQUESTS.0 as f64, images * REQUESTS.1 as f64);
    let cost = (writes * REQUEST_PRICE.0 + reads * REQUEST_PRICE.1) / 1e6;
    say!("store                     {:.0} writes/s, {:.0} reads/s; requests cost about ${cost:.0}", writes / run, reads / run);
    if args.partitions > 1 {
        let n = args.partitions as f64;
        say!(
            "all partitions            {:.1} images/s, {:.1} messages/s, {:.0} writes/s, {:.0} reads/s; requests cost about ${:.0}",
            n * images / run,
            n * m.messages as f64 / run,
            n * writes / run,
            n * reads / run,
            n * cost
        );
    }
    Ok(ExitCode::SUCCESS)
}
