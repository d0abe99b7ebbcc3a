//! `basin workers`: the workers of a fleet.

use std::process::ExitCode;

use client::LONG;

use crate::connection::Connection;
use crate::terminal::harmless;

pub fn run(connection: &Connection) -> anyhow::Result<ExitCode> {
    let workers = connection.client(LONG)?.workers()?;
    say!("{:32} {:>6} {:>12} {:24} devices", "worker", "images", "lane-steps/s", "run");
    for worker in &workers {
        let alive = &worker.alive;
        let [name, run, devices] = [&worker.name, &alive.run, &alive.devices].map(|text| harmless(text));
        say!("{name:32} {:>6} {:>12.0} {run:24} {devices}", alive.images, alive.lane_steps_per_second);
    }
    Ok(ExitCode::SUCCESS)
}
