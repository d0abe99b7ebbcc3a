//! A study as one page, for people and for programs. Pure.

use std::collections::BTreeMap;
use std::fmt::Write;

use proto::{LatentStart, SpatialTransform};
use results::bootstrap::Interval;
use results::run::spread;
use results::summary::SuperClasses;
use serde::Serialize;

use super::Which;
use super::claims::{Claim, FEWEST_IMAGES, Verdict, claims};
use super::files::{Figure, cell, code};
use super::measured::{ByClass, METRICS, Measured, Take, by_class, common, difference, mean};
use super::rows::{Row, stage_one};

/// What a study is about.
#[derive(Clone, Debug, Serialize)]
pub struct About {
    /// Which study.
    pub which: Which,
    /// The command that repeats it.
    pub command: String,
    /// Version of basin.
    pub version: String,
    /// The data set, as the command names it.
    pub dataset: String,
    /// Name of the model.
    pub model: String,
    /// Its digest.
    pub model_digest: String,
    /// Generator evaluations of each seed in stage two.
    pub evaluations: u32,
    /// Seeds of an image.
    pub seeds: u32,
    /// Everything random followed from it.
    pub seed: u64,
    /// Names and digests of the judges.
    pub judges: Vec<(String, String)>,
    /// What a reader must know of the rows.
    pub notes: Vec<String>,
}

/// `<study>.json`.
#[derive(Clone, Debug, Serialize)]
pub struct Page {
    /// Of this file: 1.
    pub format: u32,
    /// What it is about.
    pub about: About,
    /// Images with a result in every row: what all means are over.
    pub images: Vec<String>,
    /// Names of the metrics, in the order of all lists of numbers. All are of the inverted image inside the object.
    pub metrics: Vec<String>,
    /// In the order of the table.
    pub rows: Vec<Line>,
    /// What the paper says of their order.
    pub orderings: Vec<Ordering>,
    /// The classes of the first row; only where they are what the study is about.
    pub classes: Vec<ByClass>,
    /// The same by the model's super-classes, if it has any: the paper's Figure 9 has ImageNet's classes by 16 kinds of thing.
    pub super_classes: Vec<ByClass>,
    /// Those of `images` whose pictures are shown.
    pub shown: Vec<String>,
}

/// A row with its numbers.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Name of its run.
    pub slug: String,
    /// What people call it.
    pub name: String,
    /// Whether it has a spatial transform, a colour transform, the encoder's start.
    pub with: [bool; 3],
    /// What it has that the paper's rows have not.
    pub note: Option<String>,
    /// Why there are no numbers.
    pub left_out: Option<String>,
    /// Seeds of an image.
    pub seeds: u32,
    /// Generator evaluations of each seed in stage two, counted over the seeds that began.
    pub evaluations: f64,
    /// Evaluations of each candidate of stage one, and candidates of a generation.
    pub stage_one: Option<(u64, u64)>,
    /// Of an image, on average, in both stages.
    pub lane_steps: Option<f64>,
    /// Seconds of device work of an image, on average.
    pub seconds: Option<f64>,
    /// Images that failed, or that a judge could not measure.
    pub failed: usize,
    /// Seeds that diverged, which the averages leave out.
    pub diverged: usize,
    /// Means over the images, by metric.
    pub means: BTreeMap<Take, Vec<f64>>,
    /// The row that it is compared with.
    pub against: Option<String>,
    /// How much larger it is than that, by metric.
    pub differences: BTreeMap<Take, Vec<Option<Interval>>>,
    /// What the paper prints: average and best of 18 seeds; L1, L2, LPIPS of AlexNet and of VGG.
    pub paper: [Option<[f64; 4]>; 2],
}

/// A claim with what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Ordering {
    /// The claim.
    pub text: String,
    /// Name of the metric.
    pub metric: String,
    /// Of the first row to the second, best of the seeds.
    pub difference: Interval,
    /// What that says.
    pub verdict: Verdict,
}

/// A row that was run, or why not.
pub type Ran = Result<Measured, String>;

impl Page {
    /// Of the rows in the order of the table. Pictures of `pictures` images are shown.
    pub fn new(about: About, rows: &[(Row, Ran)], pictures: usize, super_classes: &SuperClasses) -> Page {
        let ran: Vec<&Measured> = rows.iter().filter_map(|(_, ran)| ran.as_ref().ok()).collect();
        let images = common(&ran);
        let metrics: Vec<String> =
            METRICS.iter().map(|&m| m.to_owned()).chain(about.judges.iter().map(|(name, _)| name.clone())).collect();
        let of = |slug: &str| rows.iter().find(|(row, _)| row.slug == slug).and_then(|(_, ran)| ran.as_ref().ok());
        let lines = rows.iter().map(|(row, ran)| {
            let other = row.against.and_then(of);
            line(row, ran, other, &images, metrics.len())
        });
        let ordering = |claim: Claim| {
            let (a, b) = (of(claim.rows.0)?, of(claim.rows.1)?);
            let difference = difference(a, b, &images, Take::Best, claim.metric)?;
            let second = mean(&b.values(&images, Take::Best, claim.metric));
            let (text, metric) = (claim.text.to_owned(), metrics[claim.metric].clone());
            Some(Ordering { text, metric, difference, verdict: claim.order.verdict(difference, second, images.len()) })
        };
        let orderings = claims(about.which, about.judges.len()).into_iter().filter_map(ordering).collect();
        let (count, first) = (metrics.len(), by_class_metric(metrics.len()));
        let (classes, super_classes) = match (about.which, ran.first()) {
            (Which::PerClass, Some(row)) => (
                by_class(row, Some, count, first),
                by_class(row, |class| super_classes.get(class).map(String::as_str), count, first),
            ),
            _ => (vec![], vec![]),
        };
        let shown = if about.which == Which::PerClass { vec![] } else { spread(images.clone(), pictures) };
        Page { format: 1, rows: lines.collect(), orderings, images, metrics, classes, super_classes, shown, about }
    }

    /// What the classes are sorted by, and drawn.
    pub fn class_metric(&self) -> usize {
        by_class_metric(self.metrics.len())
    }

    /// Rows with numbers, as people call them.
    pub fn labels(&self) -> Vec<String> {
        self.rows.iter().filter(|row| row.left_out.is_none()).map(label).collect()
    }
}

/// The first judge, as the paper takes VGG; LPIPS without one.
fn by_class_metric(metrics: usize) -> usize {
    METRICS.len().min(metrics - 1)
}

fn line(row: &Row, ran: &Ran, other: Option<&Measured>, images: &[String], metrics: usize) -> Line {
    let measured = ran.as_ref().ok();
    let by_take = |take| {
        let mean = |measured: &Measured| (0..metrics).map(|m| mean(&measured.values(images, take, m))).collect();
        Some((take, measured.filter(|_| !images.is_empty()).map(mean)?))
    };
    let differences = |take| {
        let (measured, other) = (measured?, other?);
        Some((take, (0..metrics).map(|m| difference(measured, other, images, take, m)).collect()))
    };
    let transform = row.params.transform.as_ref();
    let stage_two = proto::Params { transform: None, ..row.params.clone() };
    Line {
        slug: row.slug.into(),
        name: row.name.into(),
        with: [
            transform.is_some_and(|t| t.spatial != SpatialTransform::None),
            transform.is_some_and(|t| !t.colour.is_empty()),
            matches!(row.params.start, LatentStart::Encoder { .. }),
        ],
        note: row.note.clone(),
        left_out: ran.as_ref().err().cloned(),
        seeds: row.params.seeds,
        evaluations: engine::lane_steps(&stage_two) as f64 / f64::from(row.params.seeds),
        stage_one: stage_one(&row.params),
        lane_steps: measured.map(|m| m.cost(images, |scores| scores.lane_steps as f64)),
        seconds: measured.map(|m| m.cost(images, |scores| scores.seconds)),
        failed: measured.map_or(0, |m| m.failed),
        diverged: measured.map_or(0, |m| m.diverged(images)),
        means: Take::ALL.into_iter().filter_map(by_take).collect(),
        against: row.against.filter(|_| other.is_some()).map(str::to_owned),
        differences: Take::ALL.into_iter().filter_map(differences).collect(),
        paper: [row.paper.average, row.paper.best],
    }
}

/// The page for people.
pub fn markdown(page: &Page, figures: &[Figure]) -> String {
    let mut text = String::new();
    write(&mut text, page, figures).expect("a String takes every write");
    text
}

fn write(text: &mut String, page: &Page, figures: &[Figure]) -> std::fmt::Result {
    let Page { about, images, metrics, rows, .. } = page;
    let About { evaluations, seeds, .. } = about;
    writeln!(text, "# {}\n", about.which.title())?;
    writeln!(text, "| | |\n|:---|:---|")?;
    writeln!(text, "| command | {} |", code(&about.command))?;
    writeln!(text, "| basin | {} |", about.version)?;
    writeln!(text, "| model | {} ({}) |", cell(&about.model), short(&about.model_digest))?;
    writeln!(text, "| data set | {} |", code(&about.dataset))?;
    writeln!(text, "| images | {} with a result in every row: all means are over these |", images.len())?;
    writeln!(
        text,
        "| budget | {seeds} seeds, {evaluations} generator evaluations of each in stage two (the paper: 18 and 1,200) |"
    )?;
    writeln!(text, "| random numbers | seed {} |", about.seed)?;
    for (name, digest) in &about.judges {
        writeln!(text, "| {} | LPIPS under the network {} |", cell(name), short(digest))?;
    }
    writeln!(text)?;
    for note in &about.notes {
        writeln!(text, "{note}\n")?;
    }
    writeln!(
        text,
        "Lower is better. L1 and L2: sum over channels, mean over the object's pixels, in [-1, 1]; LPIPS: under the model's own \
         perceptual network, which the search minimises (the paper's is AlexNet). All are of the image put back into the target's \
         frame, inside the object's mask.\n"
    )?;

    writeln!(text, "## Errors\n\nAverage of the seeds; best of the seeds, for each metric its own.\n")?;
    table(text, page, &[(Take::Average, "average "), (Take::Best, "best ")])?;
    writeln!(text, "\nOf the one seed with the smallest training loss:\n")?;
    table(text, page, &[(Take::Answer, "")])?;
    for row in rows {
        if let Some(note) = &row.note {
            writeln!(text, "\n{}: {note}.", row.name)?;
        }
    }
    for row in rows {
        if let Some(why) = &row.left_out {
            writeln!(text, "\n{} is left out: {}.", label(row), cell(why))?;
        }
    }
    for row in rows.iter().filter(|row| row.diverged > 0) {
        writeln!(text, "\n{}: {} seeds diverged, and are not in the averages.", label(row), row.diverged)?;
    }

    write_classes(text, page, "super-class", &page.super_classes)?;
    write_classes(text, page, "class", &page.classes)?;
    for Figure { file, alt, .. } in figures {
        if page.classes.is_empty() {
            let lines = page.labels();
            let lines =
                std::iter::once("target".to_owned()).chain(lines).enumerate().map(|(i, line)| format!("{} {line}", i + 1));
            let lines = lines.collect::<Vec<_>>().join("; ");
            writeln!(text, "\n## Pictures\n\nFrom top to bottom: {lines}.\n")?;
            writeln!(
                text,
                "The seed with the smallest training loss, put back into the target's frame; grey lies outside of what was generated."
            )?;
        }
        writeln!(text, "\n![{alt}]({file})")?;
    }

    if rows.iter().any(|row| !row.differences.is_empty()) {
        writeln!(text, "\n## Differences\n")?;
        writeln!(
            text,
            "Of each row to another, image by image, with 95 % bootstrap intervals (10,000 resamples of the images); negative: it is lower."
        )?;
        for (take, title) in [(Take::Best, "Best of the seeds"), (Take::Average, "Average of the seeds")] {
            writeln!(text, "\n{title}:\n\n| method | against | {} |", metrics.join(" | "))?;
            writeln!(text, "|---|---|{}", "---|".repeat(metrics.len()))?;
            for row in rows {
                let (Some(differences), Some(against)) = (row.differences.get(&take), &row.against) else { continue };
                let other = rows.iter().find(|row| row.slug == *against).map(label).unwrap_or_default();
                let cells: Vec<String> = differences.iter().map(|d| d.map_or("-".into(), interval)).collect();
                writeln!(text, "| {} | {other} | {} |", label(row), cells.join(" | "))?;
            }
        }
    }

    if !page.orderings.is_empty() {
        writeln!(text, "\n## What the paper says\n")?;
        writeln!(
            text,
            "By the interval of the difference of the best of the seeds, over {} images (fewer than {FEWEST_IMAGES} decide nothing); \
             close: within 5 %, which is our line. Each interval is one of 95 %: of twenty that chance alone made, one decides.\n",
            images.len()
        )?;
        writeln!(text, "| | metric | | difference |\n|:---|:---|:---|---|")?;
        for Ordering { text: claim, metric, difference, verdict } in &page.orderings {
            writeln!(text, "| {claim} | {metric} | {} | {} |", verdict.as_str(), interval(*difference))?;
        }
    }

    writeln!(text, "\n## What it cost\n")?;
    writeln!(
        text,
        "Of an image, over the images above. A lane-step is one generator evaluation of one seed, with a backward pass but for those of CMA.\n"
    )?;
    writeln!(
        text,
        "| method | seeds | evaluations of each in stage two | stage one: candidates x evaluations | lane-steps | device seconds | failed images |"
    )?;
    writeln!(text, "|---|---|---|---|---|---|---|")?;
    for row in rows.iter().filter(|row| row.left_out.is_none()) {
        let stage_one = row.stage_one.map_or("none".into(), |(each, candidates)| format!("{candidates} x {each}"));
        let number = |value: Option<f64>, decimals: usize| value.map_or("-".into(), |v| format!("{v:.decimals$}"));
        let (steps, seconds) = (number(row.lane_steps, 0), number(row.seconds, 2));
        writeln!(
            text,
            "| {} | {} | {:.1} | {stage_one} | {steps} | {seconds} | {} |",
            label(row),
            row.seeds,
            row.evaluations,
            row.failed
        )?;
    }

    if rows.iter().any(|row| row.paper != [None, None]) {
        writeln!(text, "\n## The paper's numbers\n")?;
        writeln!(text, "Other images and BigGAN-deep-256: only the order of the rows can be compared.\n")?;
        let names = ["L1", "L2", "Alex", "VGG"];
        let columns: Vec<String> =
            ["average", "best"].iter().flat_map(|take| names.map(|name| format!("{take} {name}"))).collect();
        writeln!(text, "| method | {} |\n|---|{}", columns.join(" | "), "---|".repeat(columns.len()))?;
        for row in rows.iter().filter(|row| row.paper != [None, None]) {
            let cells = row.paper.iter().flat_map(|numbers| match numbers {
                Some(numbers) => numbers.map(|v| format!("{v:.2}")),
                None => [const { String::new() }; 4],
            });
            writeln!(text, "| {} | {} |", label(row), cells.collect::<Vec<_>>().join(" | "))?;
        }
    }
    Ok(())
}

/// The errors of each class, if they are what the study is about.
fn write_classes(text: &mut String, page: &Page, what: &str, classes: &[ByClass]) -> std::fmt::Result {
    if classes.is_empty() {
        return Ok(());
    }
    let (metrics, by) = (&page.metrics, &page.metrics[page.class_metric()]);
    writeln!(text, "\n## By {what}\n")?;
    writeln!(
        text,
        "Of the one seed with the smallest training loss: mean over the images of a {what}, with its standard error; the \
         largest {by} first.\n"
    )?;
    let columns: Vec<String> = metrics.iter().map(|metric| format!("{metric} | ±")).collect();
    writeln!(text, "| {what} | images | {} |\n|---|---|{}", columns.join(" | "), "---|---|".repeat(metrics.len()))?;
    for ByClass { class, images, errors } in classes {
        let number = |value: Option<f64>| value.map_or("-".into(), |v| format!("{v:.4}"));
        let cells: Vec<String> = errors.iter().map(|e| format!("{} | {}", number(e.mean), number(e.standard_error))).collect();
        writeln!(text, "| {} | {images} | {} |", cell(class), cells.join(" | "))?;
    }
    Ok(())
}

/// The errors of all rows, in the paper's form.
fn table(text: &mut String, page: &Page, takes: &[(Take, &str)]) -> std::fmt::Result {
    let columns: Vec<String> =
        takes.iter().flat_map(|(_, title)| page.metrics.iter().map(move |metric| format!("{title}{metric}"))).collect();
    writeln!(text, "| optimiser | spatial | colour | encoder | {} |", columns.join(" | "))?;
    writeln!(text, "|---|---|---|---|{}", "---|".repeat(columns.len()))?;
    for row in &page.rows {
        let marks = row.with.map(|with| if with { "x" } else { "" }).join(" | ");
        let cells = takes.iter().flat_map(|(take, _)| match row.means.get(take) {
            Some(means) => means.iter().map(|v| format!("{v:.4}")).collect::<Vec<_>>(),
            None => vec!["-".to_owned(); page.metrics.len()],
        });
        writeln!(text, "| {} | {marks} | {} |", row.name, cells.collect::<Vec<_>>().join(" | "))?;
    }
    Ok(())
}

/// Name with what the row has.
fn label(row: &Line) -> String {
    let names = ["spatial", "colour", "encoder"];
    let with = names.iter().zip(row.with).filter(|(_, with)| *with).map(|(name, _)| format!(" + {name}"));
    std::iter::once(row.name.clone()).chain(with).collect()
}

fn interval(i: Interval) -> String {
    format!("{:+.4} ({:+.4} to {:+.4})", i.mean, i.low, i.high)
}

/// The beginning of a digest.
pub fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}
