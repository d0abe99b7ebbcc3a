use std::collections::HashSet;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::ledger::tests::{about, failed, planned, succeeded};
use crate::plan::tests::spec;
use proto::sample;

/// The timer: an outcome that the store has counts, and a job without one is published again.
fn look_for_silent(fleet: &mut Fleet, now: f64, outcome: impl Fn(&Silent) -> Option<Option<Failure>>) {
    for silent in fleet.silent(now - 40.0) {
        match outcome(&silent) {
            Some(failure) => drop(fleet.settle(&silent, failure, now)),
            None => fleet.take_back(&silent.run, &silent.job),
        }
    }
}

/// Runs with a name, a number of images and a priority.
pub(crate) fn fleet(window: usize, runs: &[(&str, usize, i32)]) -> Fleet {
    let mut fleet = Fleet::new(window);
    for &(name, images, priority) in runs {
        let images = (0..images).map(|i| planned(&format!("{i}.png"))).collect();
        let plan = Plan { images, ..Plan::default() };
        fleet.add(spec(name), plan, Control { priority, ..Control::default() }, Tally::default());
    }
    fleet
}

fn fill(fleet: &mut Fleet, now: f64) -> Vec<Job> {
    std::iter::from_fn(|| fleet.next(now)).collect()
}

#[test]
fn runs_of_one_priority_share_the_window_and_a_higher_priority_comes_first() {
    let mut fleet = fleet(10, &[("a", 100, 0), ("b", 100, 0), ("urgent", 4, 5)]);
    let jobs = fill(&mut fleet, 0.0);
    let of = |run: &str| jobs.iter().filter(|j| j.run == run).count();
    assert_eq!((of("urgent"), of("a"), of("b")), (4, 3, 3));
    assert!(jobs[..4].iter().all(|j| j.run == "urgent"));
    assert_eq!(fleet.backlog(), 204);
}

#[test]
fn a_paused_run_publishes_nothing_and_resumes_where_it_was() {
    let mut fleet = fleet(10, &[("a", 5, 0)]);
    let jobs = fill(&mut fleet, 0.0);
    assert_eq!(jobs.len(), 5);
    fleet.apply(&about(&jobs[0], What::Started), 1.0);
    fleet.apply(&about(&jobs[1], What::Started), 1.0);
    fleet.set_control("a", Control { state: RunState::Paused, ..Control::default() });
    fleet.withdraw();
    assert_eq!((fill(&mut fleet, 2.0).len(), fleet.backlog()), (0, 0));
    fleet.apply(&about(&jobs[0], What::Released { queued: false }), 2.0);
    fleet.apply(&about(&jobs[1], succeeded()), 2.0);
    fleet.set_control("a", Control::default());
    let again: HashSet<String> = fill(&mut fleet, 3.0).into_iter().map(|j| j.image).collect();
    assert_eq!(again, ["0.png", "2.png", "3.png", "4.png"].map(String::from).into());
}

#[test]
fn a_rate_spreads_the_jobs_over_time() {
    let mut fleet = fleet(100, &[("a", 50, 0)]);
    fleet.set_control("a", Control { per_minute: Some(60.0), ..Control::default() });
    let given: usize = (0..10).map(|second| fill(&mut fleet, f64::from(second)).len()).sum();
    assert_eq!(given, 10);
}

/// An image that is tried again is the same job. What remains of the try before says nothing about the new one.
#[test]
fn events_of_an_earlier_generation_change_nothing() {
    let mut fleet = Fleet::new(10);
    let images = ["0.png", "1.png"].map(planned).to_vec();
    let plan = Plan { images, generations: [("1.png".to_owned(), 2)].into(), ..Plan::default() };
    fleet.add(spec("r"), plan, Control::default(), Tally::default());
    let jobs = fill(&mut fleet, 0.0);
    assert_eq!(jobs.iter().map(|job| job.generation).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(fleet.silent(1.0).iter().map(|s| s.generation).sum::<u64>(), 2);
    let told = |generation, what| Event { generation, ..Event::about(&jobs[1], "w", what) };
    for generation in [0, 1, 3] {
        assert!(!fleet.apply(&told(generation, failed()), 1.0));
        assert!(!fleet.apply(&told(generation, succeeded()), 1.0));
        fleet.apply(&told(generation, What::Started), 1.0);
    }
    assert_eq!(fleet.brief("r", 1.0).map(|s| (s.queued, s.started, s.failed)), Some((2, 0, 0)));
    assert!(fleet.apply(&told(2, failed()), 2.0));
    assert_eq!(["0.png", "1.png"].map(|image| fleet.generation("r", image)), [Some(0), Some(2)]);
    assert_eq!(fleet.generation("none", "1.png"), None);
}

/// The broker drops, repeats, delays and reorders messages, workers die, the coordinator checks the store at intervals: under any
/// schedule every image finishes once, and the run ends.
#[test]
fn every_image_is_settled_once_under_any_schedule_of_faults() {
    for seed in 0..2000 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let images = rng.random_range(1..12);
        let mut fleet = fleet(rng.random_range(1..6), &[("r", images, 0)]);
        let mut queue: Vec<Job> = Vec::new();
        let mut events: Vec<Event> = Vec::new();
        // The store: one marker for each image; the first result stays.
        let mut store: BTreeMap<String, Settled> = BTreeMap::new();
        let mut paused = false;
        let mut now = 0.0;
        for step in 0..10_000 {
            now += 1.0;
            queue.extend(fill(&mut fleet, now));
            match rng.random_range(0..12) {
                // A worker takes any job: it dies, releases the job, or finishes.
                0..=4 if !queue.is_empty() => {
                    let job = queue.swap_remove(rng.random_range(0..queue.len()));
                    events.push(about(&job, What::Started));
                    let id = job.id().to_string();
                    match rng.random_range(0..6) {
                        0 => queue.push(job),
                        1 if paused => events.push(about(&job, What::Released { queued: false })),
                        1 => {
                            events.push(about(&job, What::Released { queued: true }));
                            queue.push(job);
                        }
                        2 if store.get(&id).is_none_or(|how| *how == Settled::Failed) && job.image == "0.png" => {
                            store.insert(id, Settled::Failed);
                            events.push(about(&job, failed()));
                        }
                        _ => {
                            store.insert(id, Settled::Succeeded);
                            events.push(about(&job, succeeded()));
                            if rng.random_bool(0.2) {
                                queue.push(job);
                            }
                        }
                    }
                }
                5..=8 if !events.is_empty() => {
                    let event = events.swap_remove(rng.random_range(0..events.len()));
                    fleet.apply(&event, now);
                    if rng.random_bool(0.2) {
                        events.push(event);
                    }
                }
                // The broker loses everything.
                9 if rng.random_bool(0.05) => {
                    queue.clear();
                    events.clear();
                }
                10 if step < 5000 && rng.random_bool(0.1) => {
                    paused = !paused;
                    let state = if paused { RunState::Paused } else { RunState::Running };
                    queue.clear();
                    fleet.set_control("r", Control { state, ..Control::default() });
                    fleet.withdraw();
                }
                _ => {}
            }
            if step == 5000 && paused {
                paused = false;
                fleet.set_control("r", Control::default());
            }
            if step % 50 == 0 {
                look_for_silent(&mut fleet, now, |silent| {
                    let failed = *store.get(&silent.job)? == Settled::Failed;
                    Some(failed.then(|| sample::failure(&silent.image, FailureReason::BadImage, "as the store says")))
                });
            }
            if fleet.settled("r") {
                break;
            }
        }
        assert!(fleet.settled("r"), "seed {seed}: {:?}", fleet.status("r", 0.0));
        let status = fleet.status("r", 0.0).expect("there is a run");
        assert_eq!(status.succeeded + status.failed, images, "seed {seed}");
        assert_eq!(store.len(), images, "seed {seed}: every image has one marker");
    }
}

/// The store and the plan, for the next test.
#[derive(Default)]
struct World {
    /// Seeds of the images, which a redrive changes.
    seeds: Vec<u64>,
    /// By image: the job that made the result, and its errors. A power of two in all, so that sums are exact.
    results: BTreeMap<String, (Job, Errors)>,
    snapshots: Vec<Vec<u8>>,
}

impl World {
    fn planned(&self) -> Vec<Planned> {
        let planned = |(i, seed): (usize, &u64)| Planned { class: i as u32 % 2, seed: *seed, ..planned(&format!("{i}.png")) };
        self.seeds.iter().enumerate().map(planned).collect()
    }

    fn commit(&mut self, job: &Job) -> Errors {
        let errors = |n: u64| Errors { loss: n as f64 / 4.0, l1: n as f64 / 8.0, lpips: n as f64 / 16.0 };
        let n = self.results.len() as u64 + job.seed * 16;
        self.results.entry(job.image.clone()).or_insert((job.clone(), errors(n))).1
    }

    /// A coordinator that starts now, with one of the snapshots or none.
    fn start(&mut self, rng: &mut ChaCha8Rng) -> Fleet {
        let (spec, all) = (spec("r"), self.planned());
        // As at a start: a result of another seed does not count, and no snapshot outlives a result.
        let before = self.results.len();
        self.results.retain(|image, (job, _)| all.iter().any(|p| *p.image == **image && p.seed == job.seed));
        if self.results.len() < before {
            self.snapshots.clear();
        }
        let (settled, images): (Vec<_>, Vec<_>) = all.into_iter().partition(|p| self.results.contains_key(&*p.image));
        let choice = rng.random_range(0..=self.snapshots.len());
        let snapshot = self.snapshots.get(choice).and_then(|bytes| Snapshot::decode(bytes).ok());
        let results = settled.iter().map(|p| (spec.job(p).id().to_string(), p.image.clone()));
        let tally = Tally::resume(snapshot, results.collect::<Vec<_>>(), []);
        let mut fleet = Fleet::new(4);
        fleet.add(spec, Plan { images, settled, ..Plan::default() }, Control::default(), tally);
        fleet
    }

    /// By class, and of the one super-class.
    fn truth(&self) -> (Vec<ClassStatus>, Vec<ClassStatus>) {
        let (mut classes, mut all): (BTreeMap<u32, ClassSums>, _) = (BTreeMap::new(), ClassSums::default());
        for (job, errors) in self.results.values() {
            classes.entry(job.class).or_default().add(errors);
            all.add(errors);
        }
        let name = |class: u32| spec("r").classes[class as usize].clone();
        let class =
            |(class, sums): (&u32, &ClassSums)| class_status(name(*class), Some("thing".into()), sums.images, sums.spreads());
        (classes.iter().map(class).collect(), vec![class_status("thing".into(), None, all.images, all.spreads())])
    }
}

/// Events come twice, late or never, results are found and read, coordinators restart with old or damaged snapshots, and images are
/// redriven: at the end every result counts once.
#[test]
fn errors_by_class_are_those_of_the_results_under_any_schedule() {
    for seed in 0..1000 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut world = World { seeds: vec![0; rng.random_range(1..10)], ..World::default() };
        let mut fleet = world.start(&mut rng);
        let (mut jobs, mut events): (Vec<Job>, Vec<Event>) = Default::default();
        let mut now = 0.0;
        for step in 0..5000 {
            now += 1.0;
            jobs.extend(fill(&mut fleet, now));
            match rng.random_range(0..16) {
                0..=4 if !jobs.is_empty() => {
                    let job = jobs.swap_remove(rng.random_range(0..jobs.len()));
                    let found = world.results.contains_key(&job.image);
                    let Errors { loss, l1, lpips } = world.commit(&job);
                    // A worker that only finds a result knows no numbers.
                    let loss = if found { f64::NAN } else { loss };
                    let what = What::Succeeded { loss, seconds: 1.0, lane_steps: 1, l1, lpips, stage_seconds: BTreeMap::new() };
                    events.push(Event::about(&job, "w", what));
                    if rng.random_bool(0.2) {
                        jobs.push(job);
                    }
                }
                5..=8 if !events.is_empty() => {
                    let event = events.swap_remove(rng.random_range(0..events.len()));
                    if rng.random_bool(0.8) {
                        fleet.apply(&event, now);
                    }
                    if rng.random_bool(0.3) {
                        events.push(event);
                    }
                }
                9 | 10 => {
                    let (_, batch) = fleet.unread(2).unwrap_or_default();
                    for (number, image) in batch {
                        fleet.read("r", number, world.results.get(&*image).map(|(job, errors)| (job.class, *errors)));
                    }
                }
                11 => {
                    let mut bytes = fleet.snapshot("r").expect("the run").encode();
                    if rng.random_bool(0.2) {
                        let at = rng.random_range(0..bytes.len());
                        bytes[at] ^= 1 << rng.random_range(0..8);
                    }
                    world.snapshots.push(bytes);
                }
                12 if step < 1000 && rng.random_bool(0.1) => fleet = world.start(&mut rng),
                13 if step < 1000 && rng.random_bool(0.1) => {
                    let image = rng.random_range(0..world.seeds.len());
                    world.seeds[image] += 1;
                    fleet = world.start(&mut rng);
                }
                _ => {}
            }
            if step % 50 == 0 {
                look_for_silent(&mut fleet, now, |silent| world.results.contains_key(&silent.image).then_some(None));
            }
            if step >= 1000 && fleet.settled("r") && fleet.unread(1).is_none() {
                break;
            }
        }
        let status = fleet.status("r", 0.0).expect("the run");
        assert_eq!((fleet.settled("r"), status.unread, world.results.len()), (true, 0, world.seeds.len()), "seed {seed}");
        assert_eq!((status.classes, status.super_classes), world.truth(), "seed {seed}");
    }
}
