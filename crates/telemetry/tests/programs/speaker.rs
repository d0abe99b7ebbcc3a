//! What the tests start: says a lot, then a little again and again until its input ends, and leaves. With `scraped` it prints at its end
//! what a scrape shows.

use std::io::Read;
use std::time::Duration;

use telemetry::messaging::Destination;
use telemetry::{Metric, trace};

static SAID: Metric = Metric::counter("test.said", "{word}", "What was said");

fn say() {
    let destination = Destination { system: "rabbitmq", name: "mine.jobs".into(), server: Some(("broker".into(), 5671)) };
    destination.published(1, Duration::from_millis(20), None);
    destination.consumed();
    let message = trace::Message { destination: &destination, job: "j", run: "r", image: "i" };
    let parent = trace::publish(None, &message);
    let _child = trace::child(&trace::process(&trace::context(&parent), &message), "fetch");
    SAID.record(1.0, &[("basin.attribute", "value")]);
    destination.processed(Duration::from_secs(3), Some("rejected"));
    destination.settled("reject", Duration::from_millis(2), None);
    tracing::info!("said");
}

fn main() {
    let scraped = std::env::args().nth(1).is_some_and(|how| how == "scraped");
    let _telemetry = if scraped { telemetry::init_scraped("test", "info") } else { telemetry::init("test", "info") };
    (0..5000).for_each(|_| say());
    let input = std::thread::spawn(|| std::io::stdin().read_to_end(&mut vec![]));
    while !input.is_finished() {
        say();
        std::thread::sleep(Duration::from_millis(10));
    }
    if let Some(metrics) = telemetry::scrape() {
        print!("{metrics}");
    }
}
