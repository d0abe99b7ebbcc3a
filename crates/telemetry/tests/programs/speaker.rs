//! What the tests start: says a lot, then a little again and again until its input ends, and leaves.

use std::io::Read;
use std::time::Duration;

use telemetry::{Metric, trace};

static SAID: Metric = Metric::counter("test.said", "1", "What was said");

fn say() {
    let message = trace::Message { system: "basin", queue: "jobs", job: "j", run: "r", image: "i" };
    let parent = trace::publish(None, &message);
    let _child = trace::child(&trace::process(&trace::context(&parent), &message), "fetch");
    SAID.record(1.0, &[("attribute", "value")]);
}

fn main() {
    let _telemetry = telemetry::init("test", "info");
    (0..5000).for_each(|_| say());
    let input = std::thread::spawn(|| std::io::stdin().read_to_end(&mut vec![]));
    while !input.is_finished() {
        say();
        std::thread::sleep(Duration::from_millis(10));
    }
}
