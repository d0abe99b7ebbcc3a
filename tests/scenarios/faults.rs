//! Faults of every kind during a run, short and long (`make chaos`).

use std::collections::BTreeMap;
use std::time::Duration;

use harness::{Flow, LocalFleet, Process, Weather, losses, pass, records, wait_for};
use proto::LatentSearch;
use queue::{Channel, Queue};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use strum::VariantArray;

/// The short form of `make chaos`: each fault once; every image has one result at the end, the same as undisturbed, and the run
/// ends by itself.
#[test]
fn a_run_survives_whatever_happens_to_its_fleet() {
    chaos(16, Fault::VARIANTS.len(), 7);
}

#[test]
#[ignore = "an hour: make chaos"]
fn a_long_run_survives_whatever_happens_to_its_fleet() {
    chaos(1000, 300, 1);
}

/// With two counted deliveries only, each image would soon fail if an outage counted.
#[test]
fn an_outage_of_the_store_counts_for_no_image_and_costs_no_result() {
    let mut fleet = LocalFleet::start_hostile_with(3, "&delivery_limit=2");
    let data = fleet.data(6, LatentSearch::basin_cma(10, 4, 20));
    start_chaos_worker(&mut fleet);
    fleet.submit(&data, "r", &[]);
    wait_for("a batch in work", 60, || !fleet.logged("projecting").is_empty());
    let weather = |fleet: &LocalFleet, weather| fleet.hostile.as_ref().expect("it is hostile").1.set(weather);
    weather(&fleet, Weather::Away);
    wait_for("the worker to wait", 120, || !fleet.logged("a store is away: jobs are held, and no attempt is counted").is_empty());
    let before = fleet.failed_requests();
    wait_for("many tries", 180, || fleet.failed_requests() >= before + 60);
    assert!(!fleet.workers[0].ended(), "{}", fleet.logs());
    weather(&fleet, Weather::Fair);
    wait_for("the run to end", 300, || {
        restart_coordinator(&mut fleet);
        fleet.finished("r")
    });
    assert!(!fleet.workers[0].ended(), "{}", fleet.logs());
    assert!(!fleet.logged("the store is back").is_empty());
    assert_eq!(losses(&fleet.run_url("r")), fleet.one_machine(&data), "{}", fleet.status("r"));
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, VariantArray)]
enum Fault {
    WorkerKilled,
    /// An old holder of jobs wakes up after others have taken them.
    WorkerStopped,
    WorkerLeaves,
    CoordinatorKilled,
    /// An old leader wakes up.
    CoordinatorStopped,
    BrokerKilled,
    BrokerStopped,
    ConnectionsCut,
    ConnectionsSlow,
    ConnectionsSilent,
    StoreBusy,
    StoreFull,
    CredentialsExpired,
    /// Events come twice and in another order.
    EventsShuffled,
}

impl Fault {
    /// How often it happens in a turn of the long form.
    fn weight(self) -> usize {
        match self {
            Fault::WorkerKilled => 3,
            Fault::CoordinatorKilled | Fault::ConnectionsCut => 2,
            _ => 1,
        }
    }
}

const CHAOS_WORKER: &[&str] = &["--batch-images", "2", "--checkpoint-every", "1"];

fn chaos(images: usize, faults: usize, seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut fleet = LocalFleet::start_hostile(seed);
    let data = fleet.data(images, LatentSearch::basin_cma(10, 4, 20));
    (0..3).for_each(|_| start_chaos_worker(&mut fleet));
    // A rate at which the run is not over before the faults, each of which takes some 4 s.
    let per_minute = (14 * images / faults).to_string();
    fleet.submit(&data, "r", &["--per-minute", &per_minute]);
    wait_for("the queues on the broker's disk", 60, || {
        fleet.broker.has_on_disk("basin.jobs") && fleet.broker.has_on_disk("basin.dead")
    });
    let mut done: BTreeMap<Fault, usize> = BTreeMap::new();
    let mut turn: Vec<Fault> = vec![];
    for count in 1..=faults {
        if turn.is_empty() {
            // The short form has each once.
            let times = |fault: Fault| if faults == Fault::VARIANTS.len() { 1 } else { fault.weight() };
            turn = Fault::VARIANTS.iter().flat_map(|&fault| vec![fault; times(fault)]).collect();
            turn.shuffle(&mut rng);
        }
        let fault = turn.pop().expect("there is one");
        suffer(&mut fleet, fault, &mut rng);
        *done.entry(fault).or_default() += 1;
        restart_what_ended(&mut fleet);
        pass(rng.random_range(200..2500));
        if count % 20 == 0 {
            eprintln!("{count} faults, {} results", records(&fleet.run_url("r")).len());
        }
    }
    wait_for("the run to end", 1800, || {
        restart_what_ended(&mut fleet);
        fleet.finished("r")
    });
    // A worker may still hold a job that another has done; it removes what is left of its attempt.
    let run = fleet.run_url("r");
    wait_for("the last attempts to end", 120, || fleet.try_basin(&["verify", "--deep", &run]).status.success());

    let records = records(&run);
    let computed = fleet.computed();
    let useful: u64 = records.iter().map(|r| r.lane_steps).sum();
    assert!(computed >= useful, "{computed} lane-steps computed, and results of {useful}");
    eprintln!("faults: {done:?}");
    eprintln!("requests to the store that failed: {:?}", fleet.hostile.as_ref().expect("it is hostile").1.failures());
    eprintln!(
        "{} results of {images} images in {} batches; lane-steps: {useful} of results, {computed} computed, {:.1} % wasted",
        records.len(),
        fleet.logged("projecting").len(),
        100.0 * computed.saturating_sub(useful) as f64 / computed.max(1) as f64
    );
    let status = fleet.status("r");
    if images < 100 {
        assert_eq!(records.len(), images, "{status}");
        assert_eq!(losses(&run), fleet.one_machine(&data));
    } else {
        // verify has shown that each other image has a failure with its reason; few may have lost five workers one after another.
        assert!(records.len() * 100 >= images * 99, "{status}");
    }
}

fn start_chaos_worker(fleet: &mut LocalFleet) {
    fleet.start_worker_with(CHAOS_WORKER, &[("BASIN_LOG", "info,worker=debug"), ("BASIN_LOG_FORMAT", "json")]);
}

/// Starts services that ended again, as a platform would.
fn restart_what_ended(fleet: &mut LocalFleet) {
    restart_coordinator(fleet);
    fleet.workers.retain_mut(|w| !w.ended());
    (fleet.workers.len()..3).for_each(|_| start_chaos_worker(fleet));
}

fn restart_coordinator(fleet: &mut LocalFleet) {
    if fleet.coordinator.as_mut().is_none_or(Process::ended) {
        fleet.start_coordinator();
    }
}

fn suffer(fleet: &mut LocalFleet, fault: Fault, rng: &mut ChaCha8Rng) {
    let worker = rng.random_range(0..fleet.workers.len());
    let time = rng.random_range(500..4000);
    let (proxy, s3) = fleet.hostile.as_ref().expect("it is hostile");
    match fault {
        Fault::WorkerKilled => drop(fleet.workers.swap_remove(worker)),
        Fault::WorkerStopped => fleet.workers[worker].stop_for(time),
        Fault::WorkerLeaves => fleet.workers[worker].signal("TERM"),
        Fault::CoordinatorKilled => fleet.coordinator = None,
        Fault::CoordinatorStopped => {
            if let Some(coordinator) = &fleet.coordinator {
                coordinator.stop_for(time);
            }
        }
        Fault::BrokerKilled => {
            fleet.broker.kill9();
            fleet.broker.start_again();
        }
        Fault::BrokerStopped => {
            fleet.broker.freeze();
            pass(time);
            fleet.broker.thaw();
        }
        Fault::ConnectionsCut => proxy.cut(),
        Fault::ConnectionsSlow | Fault::ConnectionsSilent => {
            proxy.set(if fault == Fault::ConnectionsSlow { Flow::Slow } else { Flow::Silent });
            pass(2 * time);
            proxy.set(Flow::Free);
        }
        Fault::StoreBusy | Fault::StoreFull | Fault::CredentialsExpired => {
            s3.set(match fault {
                Fault::StoreBusy => Weather::Busy,
                Fault::StoreFull => Weather::Full,
                _ => Weather::Expired,
            });
            let before = fleet.failed_requests();
            pass(time);
            wait_for("a request to the store", 120, || {
                // The services may all have been gone.
                restart_what_ended(fleet);
                fleet.failed_requests() > before || fleet.finished("r")
            });
            fleet.hostile.as_ref().expect("it is hostile").1.set(Weather::Fair);
        }
        Fault::EventsShuffled => shuffle_events(fleet, rng),
    }
}

/// Takes some events, and publishes each twice in another order.
fn shuffle_events(fleet: &LocalFleet, rng: &mut ChaCha8Rng) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let shuffled: Result<(), queue::Error> = runtime.block_on(async {
        let queue = Queue::open(&fleet.broker.url("")).await?;
        let mut events = queue.consume(Channel::Events, 8).await?;
        let mut taken = vec![];
        while let Ok(event) = tokio::time::timeout(Duration::from_secs(2), events.next()).await {
            taken.extend(event?);
            if taken.len() == 8 {
                break;
            }
        }
        let mut twice: Vec<Vec<u8>> = taken.iter().chain(&taken).map(|event| event.payload().to_vec()).collect();
        twice.shuffle(rng);
        for event in twice {
            queue.publish(Channel::Events, event).await?;
        }
        for event in taken {
            event.ack().await?;
        }
        queue.close().await;
        Ok(())
    });
    shuffled.expect("the broker is there");
}
