//! The heartbeat (*io*): says what the worker does, and sees whether the run on the devices is still to be computed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proto::{Alive, Event};
use queue::Channel;
use tokio::sync::watch;

use crate::attempt::Shared;
use crate::run_control::HOLDS;
use crate::{Config, Working};

const EVERY: Duration = Duration::from_secs(10);

/// Publishes heartbeats until it is aborted.
pub async fn run(shared: Shared, working: watch::Receiver<Working>, withdrawn: Arc<AtomicBool>) {
    let Shared { config, queue, control, outages, held, .. } = shared;
    let mut last: Option<Instant> = None;
    let mut computed = 0;
    loop {
        let now = working.borrow().clone();
        // A store that is away must not hold up the heartbeat.
        if now.images > 0
            && let Ok(may) = tokio::time::timeout(HOLDS, control.may_compute(&now.run)).await
        {
            withdrawn.store(!may, Ordering::SeqCst);
        }
        if last.is_none_or(|when| when.elapsed() >= EVERY) {
            let seconds = last.map_or(EVERY, |when| when.elapsed()).as_secs_f64();
            let alive = Alive {
                lane_steps_per_second: (now.lane_steps - computed) as f64 / seconds,
                images: now.images as u32,
                run: now.run.clone(),
                lane_steps: now.lane_steps,
                waiting_for: outages.waiting_for().map(str::to_owned),
                seconds_since_step: now.computing.map(|since| since.elapsed().as_secs_f64()),
                ..idle(&config)
            }
            .holding(held.numbers());
            computed = now.lane_steps;
            last = Some(Instant::now());
            // A lost heartbeat is no loss: a broken queue reconnects, or ends the worker elsewhere.
            let _ = queue.publish(Channel::Events, Event::alive(&config.name, alive).encode()).await;
        }
        control.changed().await;
    }
}

/// Publishes that the worker leaves, if the queue takes that within a second. `reason`: why, if it is a fault.
pub async fn leave(Shared { config, queue, .. }: &Shared, reason: Option<String>) {
    let event = Event::alive(&config.name, Alive { leaving: true, reason, ..idle(config) });
    let _ = tokio::time::timeout(Duration::from_secs(1), queue.publish(Channel::Events, event.encode())).await;
}

fn idle(config: &Config) -> Alive {
    Alive {
        slots: config.batch_images as u32,
        version: config.version.clone(),
        devices: config.devices.to_string(),
        ..Alive::default()
    }
}
