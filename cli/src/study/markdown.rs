//! The page of a study as Markdown. Pure.

use std::fmt::Display;

use results::bootstrap::Interval;

use super::claims::FEWEST_IMAGES;
use super::files::Figure;
use super::measured::{ByClass, Take};
use super::page::{CheckedClaim, Provenance, RowNumbers, StudyPage, class_metric};

pub fn markdown(page: &StudyPage, figures: &[Figure]) -> String {
    [
        head(page),
        errors(page),
        classes(page, "super-class", &page.super_classes),
        classes(page, "class", &page.classes),
        figures.iter().map(|figure| picture(page, figure)).collect(),
        differences(page),
        claims(page),
        cost(page),
        paper(page),
    ]
    .concat()
}

fn head(page: &StudyPage) -> String {
    let about = &page.about;
    let mut rows = provenance(&about.provenance);
    let budget = format!(
        "{} seeds, {} generator evaluations of each in stage two (the paper: 18 and 1,200)",
        about.seeds, about.evaluations
    );
    let images = format!("{} with a result in every row: all means are over these", page.images.len());
    let run = [("images", images), ("budget", budget), ("random numbers", format!("seed {}", about.seed))];
    rows.extend(run.map(|(name, value)| vec![name.to_owned(), value]));
    let judge = |(name, digest): &(String, String)| vec![cell(name), format!("LPIPS under the network {}", short(digest))];
    rows.extend(about.judges.iter().map(judge));
    let notes: String = about.notes.iter().map(|note| format!("{note}\n\n")).collect();
    format!(
        "# {}\n\n{}\n{notes}Lower is better. L1 and L2: sum over channels, mean over the object's pixels, in [-1, 1]; LPIPS: under the \
         model's own perceptual network, which the search minimises (the paper's is AlexNet). All are measured on the inverted image, \
         inside the object's mask.\n\n",
        about.which.title(),
        table(&["", ""], 2, rows),
    )
}

/// The first rows of the table above a study's numbers.
pub fn provenance(Provenance { command, version, dataset, model, model_digest }: &Provenance) -> Vec<Vec<String>> {
    let model = format!("{} ({})", cell(model), short(model_digest));
    let rows = [("command", code(command)), ("basin", version.clone()), ("model", model), ("data set", code(dataset))];
    rows.map(|(name, value)| vec![name.to_owned(), value]).into()
}

fn errors(page: &StudyPage) -> String {
    let mut text = format!(
        "## Errors\n\nAverage of the seeds; best of the seeds, for each metric its own.\n\n{}\nThe seed with the smallest training \
         loss:\n\n{}",
        error_table(page, &[(Take::Average, "average "), (Take::Best, "best ")]),
        error_table(page, &[(Take::Answer, "")]),
    );
    for row in &page.rows {
        text.extend(row.note.iter().map(|note| format!("\n{}: {note}.\n", row.name)));
    }
    for row in &page.rows {
        text.extend(row.left_out.iter().map(|why| format!("\n{} is left out: {}.\n", row.label(), cell(why))));
    }
    for row in page.rows.iter().filter(|row| row.diverged > 0) {
        text += &format!("\n{}: {} seeds diverged; the averages leave them out.\n", row.label(), row.diverged);
    }
    text
}

/// The errors of all rows, in the paper's form.
fn error_table(page: &StudyPage, takes: &[(Take, &str)]) -> String {
    let metrics = takes.iter().flat_map(|(_, title)| page.metrics.iter().map(move |metric| format!("{title}{metric}")));
    let head: Vec<String> = ["optimiser", "spatial", "colour", "encoder"].map(str::to_owned).into_iter().chain(metrics).collect();
    let row = |row: &RowNumbers| -> Vec<String> {
        let marks = row.with.map(|with| if with { "x" } else { "" }.to_owned());
        let means = takes.iter().flat_map(|(take, _)| match row.means.get(take) {
            Some(means) => means.iter().map(|v| format!("{v:.4}")).collect::<Vec<_>>(),
            None => vec!["-".to_owned(); page.metrics.len()],
        });
        std::iter::once(row.name.clone()).chain(marks).chain(means).collect()
    };
    table(&head, 0, page.rows.iter().map(row))
}

/// The errors of each class; empty without classes.
fn classes(page: &StudyPage, what: &str, classes: &[ByClass]) -> String {
    if classes.is_empty() {
        return String::new();
    }
    let metrics = page.metrics.iter().flat_map(|metric| [metric.clone(), "±".to_owned()]);
    let head: Vec<String> = [what, "images"].map(str::to_owned).into_iter().chain(metrics).collect();
    let row = |ByClass { class, images, errors }: &ByClass| -> Vec<String> {
        let errors = errors.iter().flat_map(|e| [e.mean, e.standard_error]).map(|value| number(value, 4));
        [cell(class), images.to_string()].into_iter().chain(errors).collect()
    };
    format!(
        "\n## By {what}\n\nThe seed with the smallest training loss: mean over the images of a {what}, with its standard error; the \
         largest {} first.\n\n{}",
        page.metrics[class_metric(&page.metrics)],
        table(&head, 0, classes.iter().map(row)),
    )
}

fn picture(page: &StudyPage, Figure { file, alt, .. }: &Figure) -> String {
    let image = format!("\n![{alt}]({file})\n");
    if !page.classes.is_empty() {
        return image;
    }
    let ran = page.rows.iter().filter(|row| row.left_out.is_none());
    let lines = std::iter::once("target".to_owned()).chain(ran.map(RowNumbers::label)).enumerate();
    let lines: Vec<String> = lines.map(|(i, line)| format!("{} {line}", i + 1)).collect();
    format!(
        "\n## Pictures\n\nFrom top to bottom: {}.\n\nThe inverted image of the seed with the smallest training loss; grey lies outside \
         of the generated picture.\n{image}",
        lines.join("; "),
    )
}

fn differences(page: &StudyPage) -> String {
    if page.rows.iter().all(|row| row.differences.is_empty()) {
        return String::new();
    }
    let head: Vec<&str> = ["method", "against"].into_iter().chain(page.metrics.iter().map(String::as_str)).collect();
    let label = |slug: &str| page.rows.iter().find(|row| row.slug == slug).map(RowNumbers::label).unwrap_or_default();
    let of = |take: Take| {
        let row = |row: &RowNumbers| -> Option<Vec<String>> {
            let (differences, against) = (row.differences.get(&take)?, row.against.as_ref()?);
            let differences = differences.iter().map(|d| d.map_or("-".into(), interval));
            Some([row.label(), label(against)].into_iter().chain(differences).collect())
        };
        table(&head, 0, page.rows.iter().filter_map(row))
    };
    format!(
        "\n## Differences\n\nEach row minus the row that it is compared with, image by image, with 95 % bootstrap intervals (10,000 \
         resamples of the images); negative: the row is lower.\n\nBest of the seeds:\n\n{}\nAverage of the seeds:\n\n{}",
        of(Take::Best),
        of(Take::Average),
    )
}

fn claims(page: &StudyPage) -> String {
    if page.orderings.is_empty() {
        return String::new();
    }
    let row = |c: &CheckedClaim| vec![c.text.clone(), c.metric.clone(), c.verdict.as_str().to_owned(), interval(c.difference)];
    format!(
        "\n## What the paper says\n\nThe interval of the difference (best of the seeds, {} images) decides; below {FEWEST_IMAGES} images \
         a claim is always undecided. Close: within 5 %, a limit of this study. These are 95 % intervals: chance alone decides one \
         claim in twenty.\n\n{}",
        page.images.len(),
        table(&["", "metric", "", "difference"], 3, page.orderings.iter().map(row)),
    )
}

fn cost(page: &StudyPage) -> String {
    let head = [
        "method",
        "seeds",
        "evaluations of each in stage two",
        "stage one: candidates x evaluations",
        "lane-steps",
        "device seconds",
        "failed images",
    ];
    let row = |row: &RowNumbers| {
        vec![
            row.label(),
            row.seeds.to_string(),
            format!("{:.1}", row.evaluations),
            row.stage_one.map_or("none".into(), |(each, candidates)| format!("{candidates} x {each}")),
            number(row.lane_steps, 0),
            number(row.seconds, 2),
            row.failed.to_string(),
        ]
    };
    let ran = page.rows.iter().filter(|row| row.left_out.is_none());
    format!(
        "\n## What it cost\n\nMean over the images above. A lane-step is one generator evaluation of one seed, with a backward pass except \
         in CMA.\n\n{}",
        table(&head, 0, ran.map(row)),
    )
}

fn paper(page: &StudyPage) -> String {
    let rows: Vec<&RowNumbers> = page.rows.iter().filter(|row| row.paper != [None, None]).collect();
    if rows.is_empty() {
        return String::new();
    }
    let columns = ["average", "best"].iter().flat_map(|take| ["L1", "L2", "Alex", "VGG"].map(|name| format!("{take} {name}")));
    let head: Vec<String> = std::iter::once("method".to_owned()).chain(columns).collect();
    let row = |row: &&RowNumbers| -> Vec<String> {
        let numbers = row.paper.iter().flat_map(|numbers| match numbers {
            Some(numbers) => numbers.map(|v| format!("{v:.2}")),
            None => [const { String::new() }; 4],
        });
        std::iter::once(row.label()).chain(numbers).collect()
    };
    format!(
        "\n## The paper's numbers\n\nThe paper has other images and BigGAN-deep-256: only the order of the rows can be compared.\n\n{}",
        table(&head, 0, rows.iter().map(row)),
    )
}

/// A table whose first `left` columns are aligned to the left: they are text, and others are numbers. Cells are Markdown.
pub fn table<C: Display>(head: &[C], left: usize, rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let rule: String = (0..head.len()).map(|i| if i < left { ":---|" } else { "---|" }).collect();
    let rows: String = rows.into_iter().map(line).collect();
    format!("{}|{rule}\n{rows}", line(head.iter().map(C::to_string).collect()))
}

/// Text as Markdown that stays in its cell of a table and means nothing there.
pub fn cell(text: &str) -> String {
    let mut cell = String::new();
    for c in text.chars() {
        match c {
            '\n' | '\r' => cell.push(' '),
            '\\' | '|' | '`' | '*' | '_' | '~' | '[' | ']' | '<' | '&' => cell.extend(['\\', c]),
            c => cell.push(c),
        }
    }
    cell
}

/// Text as code that stays in its cell of a table.
pub fn code(text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let (fence, gap) = ("`".repeat(longest + 1), if longest > 0 { " " } else { "" });
    format!("{fence}{gap}{}{gap}{fence}", text.replace(['\n', '\r'], " ").replace('|', "\\|"))
}

pub fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or("-".into(), |v| format!("{v:.decimals$}"))
}

fn interval(i: Interval) -> String {
    format!("{:+.4} ({:+.4} to {:+.4})", i.mean, i.low, i.high)
}
