//! Bytes that version 0.1.0 wrote are read for ever. A change of a message adds a line here and changes none.

use std::collections::BTreeMap;

use proto::{Alive, Errors, Event, Job, KnownResult, Snapshot, What};

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hexadecimal")).collect()
}

#[test]
fn old_jobs_are_read() {
    let job = Job::decode(&bytes(include_str!("compat/job-1.hex").trim())).expect("an old job");
    assert_eq!((job.run.as_str(), job.image.as_str(), job.class, job.seed), ("r", "Bag/a.png", 8, 18_446_744_073_709_551_557));
    assert_eq!(job.bbox.map(|b| (b.x, b.y, b.width, b.height)), Some((1.5, 2.0, 20.0, 21.25)));
    assert_eq!(job.params, proto::Params::paper());
    assert_eq!(job.encode(), bytes(include_str!("compat/job-1.hex").trim()), "and written as they were");
}

#[test]
fn old_events_are_read() {
    let kinds = [
        What::Started,
        What::Succeeded { loss: 1.5, seconds: 2.0, lane_steps: 3, l1: 0.25, lpips: 0.125, stage_seconds: BTreeMap::new() },
        What::Failed { reason: "bad_image".into(), message: "m".into() },
        What::Released { queued: true },
        What::Released { queued: false },
    ];
    let event = |what| {
        let (job, run, image, worker) = ("j".into(), "r".into(), "Bag/a.png".into(), "w".into());
        Event { job, run, image, class: 8, generation: 0, worker, what }
    };
    let alive = Alive { slots: 8, images: 2, run: "r".into(), lane_steps: 9, lane_steps_per_second: 1.5, ..Alive::default() };
    let events: Vec<Event> = kinds.into_iter().map(event).chain([Event::alive("w", alive)]).collect();
    let written: Vec<&str> = include_str!("compat/events-1.hex").lines().collect();
    assert_eq!(written.len(), events.len());
    for (event, hex) in events.iter().zip(written) {
        assert_eq!(Event::decode(&bytes(hex)).expect("an old event"), *event);
        assert_eq!(event.encode(), bytes(hex), "and written as it was");
    }
}

#[test]
fn a_heartbeat_lists_its_jobs_or_says_that_it_does_not() {
    let read = |alive: Alive| match Event::decode(&Event::alive("w", alive).encode()).expect("it was encoded here").what {
        What::Alive(alive) => alive,
        other => panic!("{other:?}"),
    };
    let lists = read(Alive::default().holding([7, 3]));
    assert_eq!((lists.jobs.clone(), lists.may_hold(3), lists.may_hold(4)), (vec![3, 7], true, false));
    assert!(!read(Alive::default().holding([])).may_hold(3), "it holds nothing");
    assert!(read(Alive::default()).may_hold(3), "an old worker lists nothing");
    let many = read(Alive::default().holding(0..Alive::MOST_JOBS as u64 + 1));
    assert_eq!((many.jobs.len(), many.may_hold(u64::MAX)), (Alive::MOST_JOBS, true));
}

#[test]
fn a_generation_changes_no_id_and_is_read_back_and_records_without_one_have_the_first() {
    let job = proto::sample::job();
    let again = Job { generation: 3, ..job.clone() };
    assert_eq!(again.id(), job.id());
    assert_eq!(Job::decode(&again.encode()).expect("it was encoded here"), again);
    let event = Event::about(&again, "w", What::Started);
    assert_eq!((event.generation, Event::decode(&event.encode()).expect("it was encoded here")), (3, event));

    // The first generation is written as before there were any.
    let failure = proto::Failure::of(&job, proto::FailureReason::Diverged, "m".into());
    let json = serde_json::to_string(&failure).expect("a record");
    assert!(!json.contains("generation"), "{json}");
    assert_eq!(serde_json::from_str::<proto::Failure>(&json).expect("a record"), failure);
    let json = serde_json::to_string(&proto::Control::default()).expect("a record");
    assert!(!json.contains("epoch"), "{json}");
    assert_eq!(serde_json::from_str::<proto::Control>(&json).expect("a record"), proto::Control::default());
}

#[test]
fn old_snapshots_are_read_and_damaged_ones_are_not() {
    let known = |job, class, loss| KnownResult { job, class, errors: Errors { loss, l1: 0.25, lpips: 0.125 } };
    let snapshot = Snapshot { results: vec![known(3, 0, 1.5), known(7, 8, -2.0), known(u64::MAX, 8, f64::INFINITY)] };
    let old = bytes(include_str!("compat/snapshot-2.hex").trim());
    assert_eq!(Snapshot::decode(&old).expect("an old snapshot"), snapshot);
    assert_eq!(snapshot.encode(), old, "and written as it was");
    for i in 0..old.len() {
        let flipped: Vec<u8> = old.iter().enumerate().map(|(j, b)| if i == j { b ^ 1 } else { *b }).collect();
        assert!(Snapshot::decode(&flipped).is_err() && Snapshot::decode(&old[..i]).is_err(), "byte {i}");
    }
    // The first version knew sums only.
    let first = bytes(include_str!("compat/snapshot-1.hex").trim());
    assert_eq!(Snapshot::decode(&first).expect("an old snapshot"), Snapshot::default());
}

#[test]
fn what_a_newer_program_wrote_is_refused_with_its_version() {
    let error = Event::decode(&[8, 99]).expect_err("version 99").to_string();
    assert!(error.contains("99") && error.contains("update"), "{error}");
    assert!(Job::decode(b"no protobuf").is_err());
}
