//! A run made up of hostile names and drawn garments. The page is left beside the test program (`basin-report.html`): open it after
//! changing the style.

use std::sync::LazyLock;

use image::{DynamicImage, Luma, Rgb, RgbImage};
use proto::{ColourTransform, FailureReason, RunRecord, SeedResult, Transform};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::sheet::png;
use super::*;
use crate::summary::SuperClasses;
use crate::summary::tests::{failure, numbers, record, run};

const CLASSES: [&str; 10] =
    ["t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot <b>\"&'"];
const HOSTILE: [&str; 5] = [
    "<img src=x onerror=alert(1)>.png",
    "\"><script>document.title='owned'</script>.png",
    "</script><script>alert(2)</script>",
    "a' onmouseover='alert(3)/\u{202e}gnp.exe",
    "a-very-long-name-without-any-place-to-break-that-somebody-thought-was-a-good-idea-0000000001.png",
];

struct Run {
    run: RunRecord,
    planned: Option<usize>,
    super_classes: SuperClasses,
    results: Vec<ResultRecord>,
    failures: Vec<Failure>,
    pictures: HashMap<String, Pictures>,
}

impl Run {
    fn summary(&self) -> Summary {
        Summary::new(&self.run, self.planned, &self.super_classes, &numbers(&self.results, &self.failures))
    }

    fn html(&self) -> String {
        report_html(&self.summary(), self.shown(), &self.pictures)
    }

    fn shown(&self) -> Shown {
        let mut shown = Shown::default();
        self.results.iter().for_each(|record| shown.result(record.clone()));
        self.failures.iter().for_each(|failure| shown.failure(failure.clone()));
        shown
    }
}

/// Something like a garment: a trunk with sleeves, grey on black.
fn garment(centre: (f64, f64), size: f64, tone: f64, noise: f64, random: &mut ChaCha8Rng) -> Vec<u8> {
    let image = image::GrayImage::from_fn(32, 32, |x, y| {
        let (u, v) = ((f64::from(x) - centre.0) / size, (f64::from(y) - centre.1) / size);
        let inside = (u.abs() < 0.55 && v.abs() < 1.0) || (u.abs() < 1.0 && v > -1.0 && v < -0.35);
        let fold = 0.12 * (u * 7.0).sin() * (v * 5.0).cos();
        let value = if inside { tone + fold + noise * (random.random::<f64>() - 0.5) } else { 0.0 };
        Luma([(255.0 * value.clamp(0.0, 1.0)) as u8])
    });
    png(&DynamicImage::ImageLuma8(image).to_rgb8())
}

fn history(seeds: &[SeedResult], random: &mut ChaCha8Rng) -> History {
    let descent = seeds
        .iter()
        .map(|seed| {
            let (start, rate) = (seed.loss * random.random_range(1.4..2.6), random.random_range(0.02..0.06));
            let noise = |t: f64, r: &mut ChaCha8Rng| 1.0 + 0.02 * (r.random::<f64>() - 0.5) * (1.0 - t / 100.0);
            (0..=100)
                .map(f64::from)
                .map(|t| (seed.loss + (start - seed.loss) * ((-rate * t).exp() - (-rate * 100.0).exp())) * noise(t, random))
                .collect()
        })
        .collect();
    History { transform: vec![3.0, 2.5, 2.25], latent: vec![2.5, 2.0], descent, fine_tune: vec![] }
}

fn garment_record(index: usize, image: &str, random: &mut ChaCha8Rng) -> ResultRecord {
    let class = index % CLASSES.len();
    let hardness = random.random_range(0.5..1.0) * (1.0 + 0.12 * class as f64) * if index == 7 { 2.0 } else { 1.0 };
    let seeds: Vec<SeedResult> = (0..18)
        .map(|_| {
            let h = hardness * random.random_range(1.0..1.5);
            SeedResult {
                loss: 1.3 * h,
                inverted_loss: 1.45 * h,
                l1: 0.42 * h,
                l2: 0.19 * h,
                lpips: 0.12 * h,
                class: None,
                transform: None,
            }
        })
        .collect();
    let best = (0..18).min_by(|a, b| seeds[*a].loss.total_cmp(&seeds[*b].loss)).expect("18 seeds");
    let transform = Transform {
        scale: [random.random_range(0.75..1.5); 2],
        shift: [random.random_range(-0.3..0.3), random.random_range(-0.3..0.3)],
        colour: vec![(ColourTransform::Brightness, random.random_range(0.8..1.2))],
        ..Transform::IDENTITY
    };
    ResultRecord {
        transform: (index % 9 != 4).then_some(transform),
        lane_steps: 12_420,
        seconds: 37.5,
        ..record(image, class as u32, CLASSES[class], best, seeds)
    }
}

fn run_of(count: usize, pictures_of: impl Fn(usize, &ResultRecord, &mut ChaCha8Rng) -> Pictures) -> Run {
    let mut random = ChaCha8Rng::seed_from_u64(count as u64);
    let results: Vec<ResultRecord> = (0..count)
        .map(|i| {
            let plain = format!("centred/{i:05}.png");
            garment_record(i, HOSTILE.get(i).unwrap_or(&plain.as_str()), &mut random)
        })
        .collect();
    let pictures = results.iter().enumerate().map(|(i, r)| (r.image.clone(), pictures_of(i, r, &mut random))).collect();
    let failures = vec![
        failure("empty.png", FailureReason::BadImage, "cannot read empty.png: the file is empty"),
        failure("huge.png", FailureReason::BadImage, "cannot read huge.png: 30000 x 30000 pixels, and 8192 x 8192 is the limit"),
        failure("../<script>alert(4)</script>\n.png", FailureReason::BadName, "<b>the name</b>\u{1b}[31m contains a '..' part"),
        failure(
            "socks/0001.png",
            FailureReason::UnknownClass,
            "the model has no class \"sock\"; its classes are t-shirt/top, trouser, …",
        ),
        failure("", FailureReason::BadName, "the name is empty"),
    ];
    let (dataset, model_digest) = ("file:///home/someone/basin/samples".into(), "3f9a".repeat(16));
    let run = RunRecord { dataset, model_digest, seed: 41, ..run("Fashion samples <fast>") };
    Run { run, planned: None, super_classes: SuperClasses::new(), results, failures, pictures }
}

fn garments(index: usize, record: &ResultRecord, random: &mut ChaCha8Rng) -> Pictures {
    if index == 11 {
        return Pictures { png: [(Item::Target, b"not a png".to_vec())].into(), history: None };
    }
    let (tone, size) = (random.random_range(0.35..0.9), random.random_range(7.0..13.0));
    let centre = (random.random_range(11.0..20.0), random.random_range(12.0..19.0));
    let png = [
        (Item::Target, garment(centre, size, tone, 0.1, random)),
        (Item::Transformed, garment((15.5, 15.5), 13.0, tone, 0.1, random)),
        (Item::Generated, garment((15.5, 15.5), 13.0, tone + 0.05, 0.0, random)),
        (Item::Inverted, garment(centre, size, tone + 0.05, 0.0, random)),
    ];
    Pictures { png: png.into(), history: Some(history(&record.seeds, random)) }
}

static SMALL: LazyLock<(Run, String)> = LazyLock::new(|| {
    let run = run_of(24, garments);
    let html = run.html();
    let page = std::env::current_exe().expect("a path").with_file_name("basin-report.html");
    std::fs::write(page, &html).expect("the folder can be written");
    (run, html)
});

/// What stands in `attribute="…"` throughout the page.
fn attributes<'a>(html: &'a str, attribute: &str) -> Vec<&'a str> {
    let opening = format!(" {attribute}=\"");
    html.split(opening.as_str()).skip(1).map(|rest| &rest[..rest.find('"').expect("a closing quote")]).collect()
}

/// The names of the rows, in order.
fn names(html: &str) -> Vec<&str> {
    attributes(html, "data-name")
}

#[test]
fn the_report_loads_nothing() {
    let html = &SMALL.1;
    for url in attributes(html, "src").iter().chain(&attributes(html, "href")) {
        assert!(url.starts_with("data:"), "{url}");
    }
    assert_eq!(attributes(html, "src").len(), 4 * 23);
    for code in [STYLE, SCRIPT] {
        assert!(html.contains(code));
        for loads in ["://", "@import", "url(", "fetch", "import(", "XMLHttpRequest", "</"] {
            assert!(!code.contains(loads), "{loads}");
        }
    }
    assert!(html.contains("default-src 'none'") && !html.contains("unsafe-inline"));
    assert!(attributes(html, "style").is_empty(), "the content security policy would ignore it");
}

#[test]
fn hostile_names_and_messages_stay_text() {
    let html = &SMALL.1;
    assert_eq!(html.matches("<script").count(), 1);
    assert_eq!(html.matches("</script").count(), 1);
    assert_eq!(html.matches("<img").count(), 4 * 23);
    for bad in ["<b>", "<fast>", "onerror=alert(1)>", "' onmouseover", "\u{202e}", "\u{1b}"] {
        assert!(!html.contains(bad), "{bad:?}");
    }
    for good in [
        "&lt;img src=x onerror=alert(1)&gt;.png",
        "&quot;&gt;&lt;script&gt;document.title=&#39;owned&#39;&lt;/script&gt;.png",
        "ankle boot &lt;b&gt;&quot;&amp;&#39;",
        "Fashion samples &lt;fast&gt;",
        "&lt;b&gt;the name&lt;/b&gt;\\u{1b}[31m contains",
        "a&#39; onmouseover=&#39;alert(3)/\\u{202e}gnp.exe",
    ] {
        assert!(html.contains(good), "{good}");
    }
}

#[test]
fn the_worst_image_comes_first() {
    let (run, html) = &*SMALL;
    let losses: Vec<f64> = attributes(html, "data-loss").iter().map(|v| v.parse().expect("a number")).collect();
    assert_eq!(losses.len(), run.results.len());
    assert!(losses.windows(2).all(|w| w[0] >= w[1]), "{losses:?}");
    assert_eq!(names(html)[0], run.shown().results()[0].image);
    assert_eq!(attributes(html, "aria-sort"), ["none", "none", "descending", "none", "none"]);
}

#[test]
fn everything_a_person_asks_for_is_there() {
    let html = &SMALL.1;
    for text in ["3f9a3f9a3f9a", "18 seeds per image", "basin 0.1.0", "file:///home/someone/basin/samples", "15 min 00 s"] {
        assert!(html.contains(text), "{text}");
    }
    for text in ["Run seed</dt><dd>41<", "fast, 18 seeds", "(columns); shown is its mean", "n = 3", "centred/<wbr>00005.png"] {
        assert!(html.contains(text), "{text}");
    }
    for text in ["unknown class", "cannot read empty.png: the file is empty", "(no name)", "17.2 % of all"] {
        assert!(html.contains(text), "{text}");
    }
    assert_eq!(html.matches("class=\"curves\"").count(), 23);
    assert_eq!(html.matches("<polyline class=\"best\"").count(), 23);
    assert_eq!(html.matches("class=\"bar\"").count(), CLASSES.len());
    assert!(!html.contains("NaN"));
}

#[test]
fn super_classes_have_their_own_table_and_are_known_again_from_the_summary() {
    let of_class = CLASSES.map(|class| (class.to_owned(), if class == "dress" { "whole" } else { "a <part>" }.to_owned()));
    let mut run = run_of(40, garments);
    assert!(!run.html().contains("super-class"));
    run.super_classes = of_class.clone().into();
    let html = run.html();
    let (_, section) = html.split_once("Error by super-class").expect("a section");
    let dresses = run.results.iter().filter(|r| r.class_name == "dress").count();
    for (name, images) in [("whole", dresses), ("a &lt;part&gt;", 40 - dresses)] {
        assert!(section.contains(&format!("<bdi>{name}</bdi></th><td>{images}</td>")), "{section}");
    }
    // As `basin report` reads it.
    let earlier: Summary = serde_json::from_slice(&crate::format::json(&run.summary())).expect("our own file");
    assert_eq!(earlier.super_class_of(), of_class.into());
}

#[test]
fn a_run_of_many_large_pictures_keeps_the_ends_and_says_so() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let noise = RgbImage::from_fn(256, 256, |_, _| Rgb([(); 3].map(|()| (256.0 * random.random::<f64>()) as u8)));
    let picture = png(&noise);
    let run = run_of(400, |_, record, random| Pictures {
        png: PICTURES[..4].iter().map(|(_, item)| (*item, picture.clone())).collect(),
        history: Some(history(&record.seeds, random)),
    });
    let html = run.html();
    assert!(html.len() < 20_000_000, "{} bytes", html.len());
    assert_eq!(names(&html).len(), WORST + BEST);
    assert!(html.contains("This run has 400 results. The report shows the 200 with the largest and the 50 with the"));
    let mut losses: Vec<f64> = run.results.iter().map(|r| r.best_seed().loss).collect();
    losses.sort_by(|a, b| b.total_cmp(a));
    let shown: Vec<f64> = run.shown().results().iter().map(|r| r.best_seed().loss).collect();
    assert_eq!((&shown[..WORST], &shown[WORST..]), (&losses[..WORST], &losses[losses.len() - BEST..]));
}

#[test]
fn an_unfinished_run_says_so() {
    let mut run = run_of(2, |_, _, _| Pictures::default());
    assert!(!run.html().contains("Unfinished"));
    run.planned = Some(64);
    let html = run.html();
    assert!(html.contains("Unfinished: 7 of 64 images") && html.contains(">of 64 images<"), "{html}");
    run.planned = Some(7);
    assert!(!run.html().contains("Unfinished"));
}

#[test]
fn a_run_in_which_everything_failed_and_an_empty_run_are_pages_too() {
    let mut run = run_of(0, |_, _, _| Pictures::default());
    assert!(run.html().contains("No projection for 5 images"));
    run.failures.clear();
    let html = run.html();
    assert!(html.contains("of 0 images") && html.contains(">0.0 s<") && html.ends_with("</html>\n"));
}
