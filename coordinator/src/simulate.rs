//! Measures the coordinator's own work for a run of any size with simulated workers: the plan, window, ledger and messages are real;
//! there is no queue, no store and no image.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use proto::{Control, Event, Job, ModelRef, Params, RunRecord, Stage, What};

use crate::fleet::Fleet;
use crate::plan::{RunSpec, plan};
use crate::tally::Tally;
use dataset::{DatasetImage, Entry, SharedStr};
use results::seeds::Seeds;

#[derive(Clone, Copy, Debug)]
pub struct Simulation {
    pub images: usize,
    /// Images that all workers project at a time.
    pub slots: usize,
    /// Seconds that one image takes in its slot.
    pub seconds: f64,
}

#[derive(Clone, Debug, Default)]
pub struct Simulated {
    pub planning: Duration,
    /// Time to publish all jobs and take in all events.
    pub driving: Duration,
    pub messages: u64,
    pub bytes: u64,
    /// Seconds that the run would take.
    pub run_seconds: f64,
    /// Largest memory of this process, in bytes, where the system tells.
    pub peak: Option<u64>,
}

/// Requests to the store for one image: (writes and listings, reads). As `worker` makes them, without checkpoints.
///
/// Writes: the attempt, six objects, the claim, the commit marker; one listing of attempts. Reads: the marker, the image, its
/// identity, the checkpoint, the control of the run, twice more before the commit with the marker between; at the end the marker. The
/// report reads a few pictures more.
pub const REQUESTS: (u64, u64) = (10, 9);

/// Objects in a page of a listing.
const PAGE: usize = 1000;
const WORKER: &str = "simulated";
/// Stages of an image that is not fine-tuned.
const STAGES: [Stage; 4] = [Stage::Fetch, Stage::TransformSearch, Stage::LatentSearch, Stage::FinalDescent];

pub fn simulate(simulation: &Simulation) -> Simulated {
    let classes: Vec<String> = (0..1000).map(|i| format!("class {i}")).collect();
    let entries = entries(simulation.images, &SharedStr::many(&classes));
    let spec = RunSpec { record: record(), classes, super_classes: vec![], categories: vec![] };
    let started = Instant::now();
    let plan = plan(entries, &spec, &HashMap::new(), &Seeds::default());
    let mut simulated = Simulated { planning: started.elapsed(), ..Simulated::default() };

    let started = Instant::now();
    let mut fleet = Fleet::new(4 * simulation.slots);
    fleet.add(spec, plan, Control::default(), Tally::default());
    let mut now = 0.0;
    // Jobs on the queue, and jobs with workers by the time at which they end.
    let mut queue: VecDeque<Vec<u8>> = VecDeque::new();
    let mut busy: VecDeque<(f64, Event)> = VecDeque::new();
    loop {
        while let Some(job) = fleet.next(now) {
            let message = job.encode();
            simulated.count(&message);
            queue.push_back(message);
        }
        while busy.len() < simulation.slots {
            let Some(message) = queue.pop_front() else { break };
            let job = Job::decode(&message).expect("it was encoded above");
            simulated.tell(&mut fleet, &Event::about(&job, WORKER, What::Started), now);
            let end = now + simulation.seconds;
            busy.push_back((end, Event::about(&job, WORKER, succeeded(simulation.seconds))));
        }
        let Some((end, event)) = busy.pop_front() else { break };
        now = end;
        simulated.tell(&mut fleet, &event, now);
    }
    assert!(fleet.settled("simulation"), "every image is settled");
    Simulated { driving: started.elapsed(), run_seconds: now, peak: peak(), ..simulated }
}

impl Simulated {
    fn count(&mut self, message: &[u8]) {
        self.messages += 1;
        self.bytes += message.len() as u64;
    }

    fn tell(&mut self, fleet: &mut Fleet, event: &Event, now: f64) {
        let message = event.encode();
        self.count(&message);
        fleet.apply(&Event::decode(&message).expect("it was encoded above"), now);
    }
}

/// The end of an image that took `seconds` and was not fine-tuned.
pub fn succeeded(seconds: f64) -> What {
    let stage_seconds = STAGES.map(|stage| (stage.as_str().to_owned(), seconds / STAGES.len() as f64)).into();
    What::Succeeded { loss: 1.0, seconds, lane_steps: 1, l1: 0.5, lpips: 0.25, stage_seconds }
}

fn entries(images: usize, classes: &[SharedStr]) -> Vec<Entry> {
    let mut entries = Vec::new();
    while entries.len() < images {
        let page = entries.len()..images.min(entries.len() + PAGE);
        let key = |i: usize| format!("train/n{class:08}/n{class:08}_{i:08}.JPEG", class = i % classes.len());
        let identities = SharedStr::many(page.clone().map(|i| format!("{i:032x}")));
        let keys = SharedStr::many(page.clone().map(key));
        for ((i, key), identity) in page.zip(keys).zip(identities) {
            let class_name = classes[i % classes.len()].clone();
            entries.push(Entry::Image(DatasetImage { key, identity, class_name, bbox: None, mask: None }));
        }
    }
    entries
}

/// The record of a run with the paper's parameters.
fn record() -> RunRecord {
    let model = ModelRef { name: "model".into(), digest: "0".repeat(64), resolution: 256 };
    RunRecord::new("simulation", "s3://bucket/imagenet".into(), model, Params::paper())
}

/// Largest memory of this process so far, in bytes: `VmHWM` of Linux.
pub fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulated_run_sends_three_messages_for_each_image_and_takes_its_time() {
        let measured = simulate(&Simulation { images: 500, slots: 10, seconds: 20.0 });
        assert_eq!((measured.messages, measured.run_seconds), (1500, 1000.0));
    }
}
