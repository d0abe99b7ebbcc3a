//! How much memory the end of a run takes: what is allocated is counted.

// An allocator that counts cannot be written without it.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use proto::keys::{self, Marker};
use proto::{ColourTransform, Job, ObjectRef, ResultRecord, RunRecord, SeedResult, Transform, sample};
use results::manifest::ObjectEntry;
use results::report::report_html;
use results::summary::{Summary, SuperClasses};
use results::tables::ROWS;
use results::tabulation::{Finished, Tabulation};

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

/// What malloc adds to an allocation, at most.
const OVERHEAD: usize = 16;

// SAFETY: the system's allocator does everything; only sizes are counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size() + OVERHEAD, Ordering::Relaxed) + layout.size() + OVERHEAD;
        MOST.fetch_max(held, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size() + OVERHEAD, Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn image(i: usize) -> String {
    format!("train/n{:08}/n{:08}_{i:08}.JPEG", i % 1000, i % 1000)
}

/// As large as a result of the paper's profile becomes: 18 seeds, each with a transform.
fn finished(i: usize) -> Finished {
    let transform = Transform { colour: vec![(ColourTransform::Brightness, 0.9)], ..Transform::IDENTITY };
    let seed = |s: usize| SeedResult {
        loss: ((i * 7919 + s) % 1000) as f64,
        inverted_loss: 2.0,
        l1: 0.5,
        l2: 0.25,
        lpips: 0.125,
        class: None,
        transform: Some(transform.clone()),
    };
    let job = Job { image: image(i), class: (i % 1000) as u32, class_name: format!("class {}", i % 1000), ..sample::job() };
    let object = |item: &keys::Item| ObjectRef { file: item.file().into(), size: 1 << 20, sha256: format!("{i:064x}") };
    let record = ResultRecord {
        attempt: format!("{i:012x}"),
        objects: keys::Item::ALL.iter().map(object).collect(),
        transform: Some(transform.clone()),
        ..sample::result(&job, (0..18).map(seed).collect())
    };
    let marker = ObjectEntry { key: keys::marker(&record.image, Marker::Result), size: 4000, sha256: format!("{i:064x}") };
    Finished { outcome: Ok(Box::new(record)), marker }
}

/// The most bytes that are held while so many results are listed, sorted and tabulated, and the report is made.
fn most(images: usize) -> usize {
    let run = RunRecord::new("r", "file:///d".into(), sample::model(), sample::job().params);
    let before = HELD.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let mut listed: Vec<String> = (0..images).map(|i| keys::marker(&image(i), Marker::Result)).collect();
    results::walk::sort(&mut listed, &Default::default());
    let mut tabulation = Tabulation::with_capacity(images);
    let mut written = 0;
    for start in (0..images).step_by(ROWS) {
        let chunk: Vec<Finished> = (start..images.min(start + ROWS)).map(finished).collect();
        written += tabulation.add(chunk).iter().map(Vec::len).sum::<usize>();
    }
    let (ends, numbers, shown, winners) = tabulation.finish();
    written += ends.iter().map(Vec::len).sum::<usize>();
    assert_eq!((winners.len(), listed.len(), written > images * 100), (images, images, true), "{written} bytes");
    let summary = Summary::new(&run, Some(images), &SuperClasses::new(), &numbers);
    assert_eq!(summary.images.succeeded as usize, images);
    assert!(report_html(&summary, shown, &Default::default()).len() < 20_000_000);
    MOST.load(Ordering::Relaxed) - before
}

#[test]
fn the_end_of_a_run_of_a_million_results_stays_below_a_gibibyte() {
    let (few, many) = (4 * ROWS, 12 * ROWS);
    let (fixed, more) = (most(few), most(many));
    let each = more.saturating_sub(fixed) / (many - few);
    let million = fixed + each * 1_000_000;
    println!("{fixed} bytes for {few} results, {each} for each further one: {million} for 1,000,000");
    // Three uploads with some pieces in memory, and the pictures of the report.
    let beside = 256 << 20;
    assert!(each <= 500, "{each} bytes an image");
    assert!(million + beside < 1 << 30, "{million} bytes");
}
