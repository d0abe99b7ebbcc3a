//! `report.html`: a run as one page for a person. Pure: records and pictures in, HTML out.
//!
//! The file loads nothing: style, script and pictures are inside, and a content security policy forbids the rest, so that a
//! name that slipped through the escaping still could not run. It reads without JavaScript; the script only sorts and filters.
//! Names and messages come from strangers: every text goes through [`Text`].

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Display, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use proto::{ColourTransform, Failure, History, ResultRecord, Transform};
use sha2::{Digest, Sha256};

use crate::summary::{Counts, Metric, Spread, Summary};

pub mod chart;
mod picture;
mod sheet;

use picture::Album;
pub use picture::png_url;
pub use sheet::sheet;

const STYLE: &str = include_str!("report/report.css");
const SCRIPT: &str = include_str!("report/report.js");

/// Images with the largest loss that the report shows.
pub const WORST: usize = 200;
/// Images with the smallest loss that the report shows.
pub const BEST: usize = 50;
/// Failures that the report lists.
const FAILURES: usize = 200;
/// Characters of a failure's message that the report shows.
const MESSAGE_CHARACTERS: usize = 2000;

// Ends of the ranges that the search stays in: those of `projector::transform`, which links torch. A hue is a turn and has none.
const SCALE_LIMITS: (f64, f64) = (0.02, 10.0);
const SHIFT_LIMITS: (f64, f64) = (-1.0, 1.0);
const FACTOR_LIMITS: (f64, f64) = (0.667, 1.5);
/// Distance to an end at which a value counts as being there.
const AT_LIMIT: f64 = 1e-6;

/// What the report shows of one image, as the store has it. What is missing is left blank.
#[derive(Clone, Debug, Default)]
pub struct Pictures {
    /// PNG: the image in the generator's size.
    pub target: Option<Vec<u8>>,
    /// PNG: the target under the transform that was found.
    pub transformed: Option<Vec<u8>>,
    /// PNG: the best projection.
    pub generated: Option<Vec<u8>>,
    /// PNG: the same, back in the target's frame.
    pub inverted: Option<Vec<u8>>,
    /// PNG: as `inverted`, of the generator that was fitted to the image.
    pub tuned: Option<Vec<u8>>,
    /// Loss curves.
    pub history: Option<History>,
}

/// The results that the report shows, the largest loss first: all of them, or the [`WORST`] and the [`BEST`] of a large run.
/// The caller reads the pictures of these.
pub fn shown(results: &[ResultRecord]) -> Vec<&ResultRecord> {
    let mut shown: Vec<&ResultRecord> = results.iter().collect();
    // Without a finite loss something is wrong: first.
    let loss = |r: &ResultRecord| Metric::Loss.best_seed(r).unwrap_or(f64::INFINITY);
    shown.sort_by(|a, b| loss(b).total_cmp(&loss(a)).then_with(|| a.image.cmp(&b.image)));
    if shown.len() > WORST + BEST {
        shown.drain(WORST..shown.len() - BEST);
    }
    shown
}

/// The page. `pictures` by name of the image.
pub fn report_html(
    summary: &Summary,
    results: &[ResultRecord],
    failures: &[Failure],
    pictures: &HashMap<String, Pictures>,
) -> String {
    let mut page = String::new();
    write_page(&mut page, summary, results, failures, pictures).expect("a String takes every write");
    page
}

fn write_page(
    page: &mut String,
    summary: &Summary,
    results: &[ResultRecord],
    failures: &[Failure],
    pictures: &HashMap<String, Pictures>,
) -> fmt::Result {
    write_head(page, &summary.run.name, " class=\"static\"", &[STYLE], &[SCRIPT])?;
    write_header(page, summary)?;
    write_tiles(page, summary)?;
    page.push_str("<div class=\"pair\">\n");
    let classes = summary.classes.iter().map(|c| Group { name: &c.name, images: c.images, error: &c.error });
    write_groups(page, "class", classes.collect())?;
    write_errors(page, summary)?;
    page.push_str("</div>\n");
    let super_classes = summary.super_classes.iter().filter(|s| s.images > 0);
    let super_classes = super_classes.map(|s| Group { name: &s.name, images: s.images, error: &s.error });
    write_groups(page, "super-class", super_classes.collect())?;
    write_failures(page, summary, failures)?;
    write_images(page, results, pictures)?;
    writeln!(page, "</main>\n<script>{SCRIPT}</script>\n</body>\n</html>")
}

/// A page in the looks of the report, without a script. `style` is what `body`, HTML, needs besides.
pub fn plain_page(title: &str, style: &str, body: &str) -> String {
    let mut page = String::new();
    write_head(&mut page, title, "", &[STYLE, style], &[]).expect("a String takes every write");
    page + body + "</main>\n</body>\n</html>\n"
}

/// Up to the beginning of the page's contents. `attributes` are those of the root.
fn write_head(page: &mut String, title: &str, attributes: &str, styles: &[&str], scripts: &[&str]) -> fmt::Result {
    let hashes = |texts: &[&str]| match texts {
        [] => "'none'".to_owned(),
        texts => texts.iter().map(|text| format!("'{}'", csp_hash(text))).collect::<Vec<_>>().join(" "),
    };
    let (style, script) = (hashes(styles), hashes(scripts));
    write!(
        page,
        r#"<!doctype html>
<html lang="en"{attributes}>
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src {style}; script-src {script}; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{} · basin</title>
"#,
        Text(title),
    )?;
    for style in styles {
        writeln!(page, "<style>{style}</style>")?;
    }
    page.push_str("</head>\n<body>\n<main>\n");
    Ok(())
}

fn write_header(page: &mut String, summary: &Summary) -> fmt::Result {
    let run = &summary.run;
    let digest: String = run.model.digest.chars().take(12).collect();
    let params = serde_json::to_string_pretty(&run.params).expect("plain structs with string keys serialise");
    write!(
        page,
        r#"<header>
<p class="kicker">basin · projection report</p>
<h1>{name}</h1>
{unfinished}<dl class="provenance">
<div><dt>Model</dt><dd>{model} <span class="quiet">{resolution} × {resolution}, <code title="{full}">{digest}</code></span></dd></div>
<div><dt>Data set</dt><dd>{dataset}</dd></div>
<div><dt>Profile</dt><dd>{profile}, {seeds} per image</dd></div>
<div><dt>Random seed</dt><dd>{seed}</dd></div>
<div><dt>Version</dt><dd>basin {version}</dd></div>
</dl>
<details><summary>All parameters</summary><pre tabindex="0">{params}</pre></details>
</header>
"#,
        name = Name(&run.name),
        unfinished = Unfinished(summary.images),
        model = Text(&run.model.name),
        resolution = run.model.resolution,
        full = Text(&run.model.digest),
        digest = Text(&digest),
        dataset = Text(&run.dataset),
        profile = Text(&run.params.described()),
        seeds = Counted(run.params.seeds.into(), "seed"),
        seed = run.seed,
        version = Text(&run.version),
        params = Lines(&params),
    )
}

fn write_tiles(page: &mut String, summary: &Summary) -> fmt::Result {
    let images = summary.images;
    let spread = |metric: Metric| summary.overall.get(&metric).map_or(Spread::over([]), |m| m.best_seed);
    let (lpips, l1, loss) = (spread(Metric::Lpips), spread(Metric::L1), spread(Metric::Loss));
    let share = match images.total {
        0 => "no images".into(),
        total => {
            let of = if images.left() > 0 { "so far" } else { "of all" };
            format!("{:.1} % {of}", 100.0 * images.failed as f64 / total as f64)
        }
    };
    let all = images.total + images.left();
    let tiles = [
        ("Succeeded", Count(images.succeeded).to_string(), format!("of {}", Counted(all, "image"))),
        ("Failed", Count(images.failed).to_string(), share),
        ("Mean LPIPS", Real(lpips.mean).to_string(), PlusMinus(lpips).to_string()),
        ("Mean L1", Real(l1.mean).to_string(), PlusMinus(l1).to_string()),
        ("Median loss", Real(loss.median).to_string(), format!("mean {}", Real(loss.mean))),
        ("Device time", Duration(summary.seconds).to_string(), Counted(summary.lane_steps, "lane-step").to_string()),
    ];
    page.push_str("<dl class=\"tiles\">\n");
    for (label, value, note) in tiles {
        let alarm = if label == "Failed" && images.failed > 0 { " class=\"alarm\"" } else { "" };
        writeln!(page, "<div{alarm}><dt>{label}</dt><dd class=\"value\">{value}</dd><dd class=\"note\">{note}</dd></div>")?;
    }
    page.push_str("</dl>\n");
    Ok(())
}

/// A class or a super-class.
struct Group<'a> {
    name: &'a str,
    images: u64,
    error: &'a BTreeMap<Metric, Spread>,
}

impl Group<'_> {
    fn spread(&self, metric: Metric) -> Spread {
        self.error.get(&metric).map_or(Spread::over([]), |s| *s)
    }
}

/// `by`: what the groups are. Of those that are equal the first comes first.
fn write_groups(page: &mut String, by: &str, mut groups: Vec<Group>) -> fmt::Result {
    if groups.is_empty() {
        return Ok(());
    }
    let lpips = |g: &Group| g.spread(Metric::Lpips);
    let mean = |g: &Group| lpips(g).mean.unwrap_or(f64::INFINITY);
    groups.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
    write!(
        page,
        "<section id=\"{by}es\" aria-labelledby=\"{by}es-title\">\n<h2 id=\"{by}es-title\">Error by {by}</h2>\n\
         <p class=\"lead\">Mean LPIPS of the best seed with its standard error, hardest {by} first.</p>\n",
    )?;
    let bars: Vec<chart::Bar> = groups.iter().map(|g| chart::Bar { name: g.name, images: g.images, spread: lpips(g) }).collect();
    chart::write_bars(page, by, &bars)?;
    write!(
        page,
        "<details><summary>The same as a table</summary>\n<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Error by {by}\">\
         <table class=\"numbers\">\n<thead><tr><th scope=\"col\">{}{}</th><th scope=\"col\">Images</th>",
        by[..1].to_uppercase(),
        &by[1..],
    )?;
    for metric in CLASS_METRICS {
        write!(page, "<th scope=\"col\">{}</th><th scope=\"col\">±</th>", label(metric))?;
    }
    page.push_str("</tr></thead>\n<tbody>\n");
    for group in &groups {
        write!(page, "<tr><th scope=\"row\"><bdi>{}</bdi></th><td>{}</td>", Text(group.name), Count(group.images))?;
        for metric in CLASS_METRICS {
            let spread = group.spread(metric);
            write!(page, "<td>{}</td><td class=\"quiet\">{}</td>", Real(spread.mean), Real(spread.standard_error))?;
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody></table></div></details>\n</section>\n");
    Ok(())
}

const CLASS_METRICS: [Metric; 4] = [Metric::Lpips, Metric::L1, Metric::L2, Metric::Loss];

/// As the paper's Table 1: the average and the best of the seeds, and here the answer before both.
fn write_errors(page: &mut String, summary: &Summary) -> fmt::Result {
    write!(
        page,
        "<section id=\"errors\" aria-labelledby=\"errors-title\">\n<h2 id=\"errors-title\">Error over all images</h2>\n\
         <p class=\"lead\">For each image its {} give one number (columns); shown is its mean over all images.</p>\n\
         <table class=\"numbers\">\n<thead><tr><td></td><th scope=\"col\">Best seed</th><th scope=\"col\" class=\"quiet\">±</th>\
         <th scope=\"col\">Median</th><th scope=\"col\">Average of seeds</th><th scope=\"col\">Best of seeds</th></tr></thead>\n<tbody>\n",
        Counted(u64::from(summary.run.params.seeds), "seed"),
    )?;
    for (metric, error) in &summary.overall {
        writeln!(
            page,
            "<tr><th scope=\"row\">{}</th><td>{}</td><td class=\"quiet\">{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            label(*metric),
            Real(error.best_seed.mean),
            Real(error.best_seed.standard_error),
            Real(error.best_seed.median),
            Real(error.seeds_mean.mean),
            Real(error.seeds_min.mean),
        )?;
    }
    page.push_str(
        "</tbody></table>\n<p class=\"remark\">The best seed is the one with the smallest loss, and the answer; beside it \
         <span class=\"wide\">the standard error (±) and </span>the median. Best of seeds is the minimum of each metric on its own. Loss is measured on the \
         transformed target, all other numbers after inverting the transform, inside the object’s box. Lower is better.</p>\n</section>\n",
    );
    Ok(())
}

fn write_failures(page: &mut String, summary: &Summary, failures: &[Failure]) -> fmt::Result {
    if failures.is_empty() {
        return Ok(());
    }
    let mut sorted: Vec<&Failure> = failures.iter().collect();
    sorted.sort_by(|a, b| a.reason.cmp(&b.reason).then_with(|| a.image.cmp(&b.image)));
    page.push_str("<section id=\"failures\" aria-labelledby=\"failures-title\">\n<h2 id=\"failures-title\">Failures</h2>\n");
    let reasons: Vec<String> =
        summary.failures.iter().map(|(reason, n)| format!("{} {}", Count(*n), spoken(reason.as_str()))).collect();
    writeln!(
        page,
        "<p class=\"lead\">No projection for {}: {}.</p>",
        Counted(failures.len() as u64, "image"),
        reasons.join(", ")
    )?;
    if sorted.len() > FAILURES {
        writeln!(page, "<p class=\"remark\">The first {FAILURES} are listed; all are in <code>results.csv</code>.</p>")?;
    }
    let open = if sorted.len() <= 10 { " open" } else { "" };
    writeln!(page, "<details{open}><summary>Images and reasons</summary>\n<ul class=\"failures\">")?;
    for failure in sorted.into_iter().take(FAILURES) {
        let name = if failure.image.is_empty() { "(no name)" } else { &failure.image };
        writeln!(
            page,
            "<li><p><bdi class=\"name\">{}</bdi> <span class=\"tag\">{}</span></p><p class=\"message\"><bdi>{}</bdi></p></li>",
            Name(name),
            spoken(failure.reason.as_str()),
            Lines(&clipped(&failure.message, MESSAGE_CHARACTERS)),
        )?;
    }
    page.push_str("</ul></details>\n</section>\n");
    Ok(())
}

fn write_images(page: &mut String, results: &[ResultRecord], pictures: &HashMap<String, Pictures>) -> fmt::Result {
    if results.is_empty() {
        return Ok(());
    }
    let rows = shown(results);
    page.push_str("<section id=\"images\" aria-labelledby=\"images-title\">\n<h2 id=\"images-title\">Images</h2>\n");
    page.push_str(
        "<p class=\"lead\">Each with its best seed, the largest loss first. Transformed is the target under the transform that was \
         found: what the projection was compared with. Inverted is the projection moved back into the target’s frame. Grey there is \
         what lies outside of the picture that was moved. The curve is the loss of every seed in the final descent, the best seed \
         on top.",
    );
    if rows.iter().filter_map(|r| r.transform.as_ref()).any(has_limit) {
        page.push_str(" “Limit” marks a value at the end of the range that the search may use.");
    }
    page.push_str("</p>\n");
    if rows.len() < results.len() {
        writeln!(
            page,
            "<p class=\"remark\">This run has {} results. The report shows the {WORST} with the largest and the {BEST} with the \
             smallest loss; <code>results.parquet</code> and <code>results.csv</code> have all.</p>",
            Count(results.len() as u64),
        )?;
    }
    write_controls(page, &rows)?;
    page.push_str(
        "<table class=\"images\" role=\"table\" aria-labelledby=\"images-title\">\n<thead role=\"rowgroup\"><tr role=\"row\">",
    );
    for (key, name) in [("name", "Image"), ("class", "Class")] {
        write_sort(page, key, name)?;
    }
    let tuned = results.iter().any(|record| record.fine_tuned.is_some());
    let columns = ["Target", "Transformed", "Projection", "Inverted"].into_iter().chain(tuned.then_some("Fine-tuned"));
    for name in columns.chain(["Loss curve"]) {
        write!(page, "<th scope=\"col\" role=\"columnheader\" class=\"plain\">{name}</th>")?;
    }
    for (key, name) in [("loss", "Loss"), ("l1", "L1"), ("lpips", "LPIPS")] {
        write_sort(page, key, name)?;
    }
    page.push_str(
        "<th scope=\"col\" role=\"columnheader\" class=\"plain\">Transform</th></tr></thead>\n<tbody role=\"rowgroup\">\n",
    );
    let mut album = Album::default();
    let none = Pictures::default();
    for record in rows {
        write_row(page, record, pictures.get(&record.image).unwrap_or(&none), tuned, &mut album)?;
    }
    page.push_str("</tbody></table>\n<p class=\"empty\" hidden>No image matches.</p>\n");
    if album.left_out > 0 {
        writeln!(page, "<p class=\"remark\">{} left out to keep this file small.</p>", Counted(album.left_out, "picture"))?;
    }
    page.push_str("</section>\n");
    Ok(())
}

fn write_controls(page: &mut String, rows: &[&ResultRecord]) -> fmt::Result {
    let mut classes: BTreeMap<&str, u64> = BTreeMap::new();
    for record in rows {
        *classes.entry(&record.class_name).or_insert(0) += 1;
    }
    page.push_str(
        "<div class=\"controls\"><label>Find <input type=\"search\" id=\"find\" placeholder=\"name or class\" autocomplete=\"off\"></label>\
         <label>Class <select id=\"class\"><option value=\"\">all</option>",
    );
    for (name, n) in classes {
        write!(page, "<option value=\"{0}\">{0} ({n})</option>", Text(name))?;
    }
    writeln!(page, "</select></label><p id=\"count\" role=\"status\">{}</p></div>", Counted(rows.len() as u64, "image"),)
}

/// A column header that is a button.
fn write_sort(page: &mut String, key: &str, name: &str) -> fmt::Result {
    let sorted = if key == "loss" { "descending" } else { "none" };
    write!(
        page,
        "<th scope=\"col\" role=\"columnheader\" data-key=\"{key}\" aria-sort=\"{sorted}\"><button type=\"button\">{name}</button></th>"
    )
}

/// `tuned`: whether the run has a column for that.
fn write_row(page: &mut String, record: &ResultRecord, pictures: &Pictures, tuned: bool, album: &mut Album) -> fmt::Result {
    let [loss, l1, lpips] = [Metric::Loss, Metric::L1, Metric::Lpips].map(|m| m.best_seed(record));
    // JavaScript's Number("") is 0; "Infinity" keeps what has no number beside the worst.
    let sortable = |value: Option<f64>| value.map_or("Infinity".into(), |v| v.to_string());
    write!(
        page,
        "<tr role=\"row\" data-name=\"{0}\" data-class=\"{1}\" data-loss=\"{2}\" data-l1=\"{3}\" data-lpips=\"{4}\">\
         <th scope=\"row\" role=\"rowheader\" class=\"name\"><bdi>{5}</bdi></th><td role=\"cell\" class=\"class\"><bdi>{6}</bdi></td>",
        Text(&record.image),
        Text(&record.class_name),
        sortable(loss),
        sortable(l1),
        sortable(lpips),
        Name(&record.image),
        Name(&record.class_name),
    )?;
    let four = [
        ("Target", &pictures.target),
        ("Transformed", &pictures.transformed),
        ("Projection", &pictures.generated),
        ("Inverted", &pictures.inverted),
    ];
    for (name, png) in four.into_iter().chain(tuned.then_some(("Fine-tuned", &pictures.tuned))) {
        write!(page, "<td role=\"cell\" class=\"picture\"><figure>")?;
        match png.as_deref().and_then(|png| album.embed(png)) {
            Some(picture) => write!(
                page,
                "<img{} width=\"96\" height=\"96\" loading=\"lazy\" decoding=\"async\" alt=\"{name}\" src=\"{}\">",
                if picture.scaled { "" } else { " class=\"pixels\"" },
                picture.url,
            )?,
            None => page.push_str("<div class=\"missing\" title=\"no picture\"></div>"),
        }
        write!(page, "<figcaption aria-hidden=\"true\">{name}</figcaption></figure></td>")?;
    }
    page.push_str("<td role=\"cell\" class=\"curve\">");
    if let Some(history) = &pictures.history {
        chart::write_curves(page, history, record.best)?;
    }
    page.push_str("</td>");
    for (name, value) in [("Loss", loss), ("L1", l1), ("LPIPS", lpips)] {
        write!(page, "<td role=\"cell\" class=\"number\" data-label=\"{name}\">{}</td>", Real(value))?;
    }
    page.push_str("<td role=\"cell\" class=\"transform\">");
    match &record.transform {
        None => page.push_str("<span class=\"quiet\">none</span>"),
        Some(transform) => write_transform(page, transform)?,
    }
    page.push_str("</td></tr>\n");
    Ok(())
}

fn write_transform(page: &mut String, transform: &Transform) -> fmt::Result {
    let Transform { scale, shift, colour } = transform;
    let row = |page: &mut String, name: &str, values: &[f64], limits: Option<(f64, f64)>| {
        let numbers: Vec<String> = values.iter().map(|v| Signless(*v).to_string()).collect();
        write!(page, "<div><dt>{name}</dt><dd>{}", numbers.join(", "))?;
        if let Some((low, high)) = limits.filter(|limits| values.iter().any(|v| at_limit(*v, *limits))) {
            write!(
                page,
                " <span class=\"tag\" title=\"the search may use {} to {}\">limit</span>",
                Minus(low.to_string()),
                high
            )?;
        }
        write!(page, "</dd></div>")
    };
    page.push_str("<dl>");
    row(page, "scale", if scale[0] == scale[1] { &scale[..1] } else { scale }, Some(SCALE_LIMITS))?;
    row(page, "shift", shift, Some(SHIFT_LIMITS))?;
    for (colour, value) in colour {
        row(page, colour_name(*colour), &[*value], colour_limits(*colour))?;
    }
    page.push_str("</dl>");
    Ok(())
}

fn has_limit(transform: &Transform) -> bool {
    transform.scale.iter().any(|v| at_limit(*v, SCALE_LIMITS))
        || transform.shift.iter().any(|v| at_limit(*v, SHIFT_LIMITS))
        || transform.colour.iter().any(|(c, v)| colour_limits(*c).is_some_and(|limits| at_limit(*v, limits)))
}

fn at_limit(value: f64, (low, high): (f64, f64)) -> bool {
    value <= low + AT_LIMIT || value >= high - AT_LIMIT
}

fn colour_limits(colour: ColourTransform) -> Option<(f64, f64)> {
    (colour != ColourTransform::Hue).then_some(FACTOR_LIMITS)
}

fn label(metric: Metric) -> &'static str {
    match metric {
        Metric::Loss => "Loss",
        Metric::InvertedLoss => "Inverted loss",
        Metric::L1 => "L1",
        Metric::L2 => "L2",
        Metric::Lpips => "LPIPS",
    }
}

fn colour_name(colour: ColourTransform) -> &'static str {
    match colour {
        ColourTransform::Brightness => "brightness",
        ColourTransform::Contrast => "contrast",
        ColourTransform::Saturation => "saturation",
        ColourTransform::Hue => "hue",
        ColourTransform::Gamma => "gamma",
    }
}

fn spoken(reason: &str) -> String {
    reason.replace('_', " ")
}

fn clipped(text: &str, characters: usize) -> String {
    match text.char_indices().nth(characters) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn csp_hash(text: &str) -> String {
    format!("sha256-{}", BASE64.encode(Sha256::digest(text.as_bytes())))
}

/// A stranger's text, safe between tags and in a quoted attribute. Control characters, and those that turn the direction of
/// the text around them, are written as Rust would.
pub struct Text<'a>(pub &'a str);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                    write!(f, "{}", c.escape_unicode())?
                }
                c if c.is_control() => write!(f, "{}", c.escape_default())?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// A stranger's name, which may be broken after `_`, `/` and `-`. Not for attributes.
pub struct Name<'a>(pub &'a str);

impl Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in self.0.split_inclusive(['_', '/', '-']) {
            write!(f, "{}{}", Text(part), if part.ends_with(['_', '/', '-']) { "<wbr>" } else { "" })?;
        }
        Ok(())
    }
}

/// A paragraph that says that the run has not ended, or nothing.
struct Unfinished(Counts);

impl Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { total, .. } = self.0;
        match self.0.left() {
            0 => Ok(()),
            left => writeln!(f, "<p class=\"unfinished\">Unfinished: {} of {}</p>", Count(total), Counted(total + left, "image")),
        }
    }
}

/// A stranger's text of several lines.
struct Lines<'a>(&'a str);

impl Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, line) in self.0.lines().enumerate() {
            write!(f, "{}{}", if i > 0 { "\n" } else { "" }, Text(line))?;
        }
        Ok(())
    }
}

/// Three decimals, or a dash.
struct Real(Option<f64>);

impl Display for Real {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(value) if value.is_finite() => write!(f, "{}", Minus(format!("{value:.3}"))),
            _ => f.write_str("–"),
        }
    }
}

/// Two decimals, and no sign before a zero.
struct Signless(f64);

impl Display for Signless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:.2}", self.0);
        write!(f, "{}", if text == "-0.00" { Minus("0.00".into()) } else { Minus(text) })
    }
}

/// A number with a minus sign as wide as its digits.
struct Minus(String);

impl Display for Minus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.replace('-', "−"))
    }
}

/// The standard error of a mean.
struct PlusMinus(Spread);

impl Display for PlusMinus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.standard_error {
            Some(error) => write!(f, "± {} std. error", Real(Some(error))),
            None => f.write_str("no standard error"),
        }
    }
}

/// Digits in groups of three.
struct Count(u64);

impl Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (i, digit) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) {
                f.write_char(',')?;
            }
            f.write_char(digit)?;
        }
        Ok(())
    }
}

/// So many of something.
struct Counted(u64, &'static str);

impl Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{}", Count(self.0), self.1, if self.0 == 1 { "" } else { "s" })
    }
}

/// Seconds as a person says them.
struct Duration(f64);

impl Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.round() as u64;
        match seconds {
            0..60 => write!(f, "{:.1} s", self.0),
            60..3600 => write!(f, "{} min {:02} s", seconds / 60, seconds % 60),
            _ => write!(f, "{} h {:02} min", Count(seconds / 3600), seconds % 3600 / 60),
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::Params;

    use super::*;

    #[test]
    fn text_can_neither_leave_its_place_nor_turn_the_line() {
        assert_eq!(Text("<a href='x'>&\"").to_string(), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;");
        assert_eq!(Text("a\0\u{1b}[2J\u{202e}gnp.exe ümlaut").to_string(), "a\\u{0}\\u{1b}[2J\\u{202e}gnp.exe ümlaut");
        assert_eq!([Text("a\n<b>").to_string(), Lines("a\n<b>\r\n").to_string()], ["a\\n&lt;b&gt;", "a\n&lt;b&gt;"]);
    }

    #[test]
    fn a_name_breaks_between_its_words_and_stays_text() {
        assert_eq!(Name("a_b/c-d.png").to_string(), "a_<wbr>b/<wbr>c-<wbr>d.png");
        assert_eq!(Name("</script>_").to_string(), "&lt;/<wbr>script&gt;_<wbr>");
    }

    #[test]
    fn parameters_that_are_no_profile_s_any_more_say_so() {
        let changed = Params { seeds: 3, ..Params::fast() };
        let own = Params { profile: "mine".into(), ..Params::fast() };
        assert_eq!([&Params::fast(), &changed, &own].map(Params::described), ["fast", "fast (changed)", "mine"]);
    }

    #[test]
    fn a_value_at_the_end_of_its_range_is_marked() {
        let transform = |shift, brightness| Transform {
            scale: [1.0, 1.0],
            shift: [shift, 0.0],
            colour: vec![(ColourTransform::Brightness, brightness), (ColourTransform::Hue, -0.5)],
        };
        let row = |t: &Transform| {
            let mut page = String::new();
            write_transform(&mut page, t).expect("a String takes every write");
            page.matches("limit</span>").count()
        };
        assert_eq!(
            [transform(0.1, 1.2), transform(0.1, 0.667), transform(-1.0, 1.5)].map(|t| (row(&t), has_limit(&t))),
            [(0, false), (1, true), (2, true)]
        );
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(
            [Count(0), Count(999), Count(1000), Count(1234567)].map(|c| c.to_string()),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(
            [Duration(1.25), Duration(61.0), Duration(7260.0)].map(|d| d.to_string()),
            ["1.2 s", "1 min 01 s", "2 h 01 min"]
        );
        assert_eq!([Real(None), Real(Some(f64::NAN)), Real(Some(-0.5))].map(|r| r.to_string()), ["–", "–", "−0.500"]);
        assert_eq!([Signless(-0.001), Signless(-0.25)].map(|s| s.to_string()), ["0.00", "−0.25"]);
    }
}
