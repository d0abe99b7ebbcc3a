//! Signs of life (*io*), and a look at whether the run in the devices' hands is still wanted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proto::{Alive, Event};
use queue::{Channel, Queue};
use store::Runs;
use tokio::sync::watch;

use crate::run_control::{Controls, HOLDS};
use crate::{Config, Working};

const EVERY: Duration = Duration::from_secs(10);

/// Tells the fleet every few seconds what this worker does, until it is aborted.
pub async fn run(config: Config, queue: Queue, runs: Runs, working: watch::Receiver<Working>, withdrawn: Arc<AtomicBool>) {
    let mut controls = Controls::new(&runs);
    let mut told: Option<Instant> = None;
    let mut computed = 0;
    loop {
        let now = working.borrow().clone();
        if now.images > 0 {
            withdrawn.store(!controls.may_compute(&now.run).await, Ordering::SeqCst);
        }
        if told.is_none_or(|when| when.elapsed() >= EVERY) {
            let seconds = told.map_or(EVERY, |when| when.elapsed()).as_secs_f64();
            let alive = Alive {
                lane_steps_per_second: (now.lane_steps - computed) as f64 / seconds,
                images: now.images as u32,
                run: now.run.clone(),
                lane_steps: now.lane_steps,
                ..who(&config)
            };
            computed = now.lane_steps;
            told = Some(Instant::now());
            // The queue mends itself or ends the worker elsewhere; a lost sign of life is no loss.
            let _ = queue.publish(Channel::Events, Event::alive(&config.name, alive).encode()).await;
        }
        tokio::time::sleep(HOLDS).await;
    }
}

/// Says goodbye, if that can be done at once.
pub async fn leave(config: &Config, queue: &Queue) {
    let event = Event::alive(&config.name, Alive { leaving: true, ..who(config) });
    let _ = tokio::time::timeout(Duration::from_secs(1), queue.publish(Channel::Events, event.encode())).await;
}

fn who(config: &Config) -> Alive {
    Alive {
        slots: config.batch_images as u32,
        version: config.version.clone(),
        devices: config.devices.to_string(),
        ..Alive::default()
    }
}
