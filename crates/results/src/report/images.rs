//! The table of images, with their pictures and loss curves.

use std::collections::{BTreeMap, HashMap};

use maud::{Markup, html};
use proto::ResultRecord;
use proto::keys::Item;

use super::album::Album;
use super::{BEST, PICTURES, Pictures, WORST, transform};
use crate::chart;
use crate::format::{count, counted, decimal};
use crate::html::{Untrusted, UntrustedName};
use crate::summary::{SeedMetric, Summary};

/// `rows`: the results that are shown, in their order; `tuned`: an image of the run was fine-tuned.
pub fn section(summary: &Summary, rows: &[ResultRecord], tuned: bool, pictures: &HashMap<String, Pictures>) -> Markup {
    if rows.is_empty() {
        return html! {};
    }
    let mut album = Album::default();
    let table = table(rows, tuned, pictures, &mut album);
    html! {
        section #images aria-labelledby="images-title" {
            h2 #images-title { "Images" }
            p.lead {
                "Each with its best seed, the largest loss first. Transformed is the target under the transform that was found. \
                 Inverted is the projection moved back into the target’s frame. Grey there is what \
                 lies outside of the picture that was moved. The curve is the loss of every seed in the final descent, the best seed \
                 on top."
                @if rows.iter().filter_map(|r| r.transform.as_ref()).any(transform::has_limit) {
                    " “Limit” marks a value at the end of the range that the search may use."
                }
            }
            @if (rows.len() as u64) < summary.images.succeeded {
                p.remark {
                    "This run has " (count(summary.images.succeeded)) " results. The report shows the " (WORST) " with the largest and the "
                    (BEST) " with the smallest loss; " code { "results.parquet" } " and " code { "results.csv" } " have all."
                }
            }
            (controls(rows))
            (table)
            p.empty hidden { "No image matches." }
            @if album.left_out > 0 {
                p.remark { (counted(album.left_out, "picture")) " left out to keep this file small." }
            }
        }
    }
}

/// The script shows them.
fn controls(rows: &[ResultRecord]) -> Markup {
    let mut classes: BTreeMap<&str, u64> = BTreeMap::new();
    for record in rows {
        *classes.entry(&record.class_name).or_insert(0) += 1;
    }
    html! {
        div.controls {
            label { "Find " input #find type="search" placeholder="name or class" autocomplete="off"; }
            label {
                "Class "
                select #class {
                    option value="" { "all" }
                    @for (name, n) in classes { option value=(Untrusted(name)) { (Untrusted(name)) " (" (n) ")" } }
                }
            }
            p #count role="status" { (counted(rows.len() as u64, "image")) }
        }
    }
}

fn table(rows: &[ResultRecord], tuned: bool, pictures: &HashMap<String, Pictures>, album: &mut Album) -> Markup {
    let columns = &PICTURES[..PICTURES.len() - usize::from(!tuned)];
    let none = Pictures::default();
    html! {
        table.images role="table" aria-labelledby="images-title" {
            thead role="rowgroup" {
                tr role="row" {
                    (sort_header("name", "Image"))
                    (sort_header("class", "Class"))
                    @for (name, _) in columns { (header(name)) }
                    (header("Loss curve"))
                    (sort_header("loss", "Loss"))
                    (sort_header("l1", "L1"))
                    (sort_header("lpips", "LPIPS"))
                    (header("Transform"))
                }
            }
            tbody role="rowgroup" {
                @for record in rows { (row(record, pictures.get(&record.image).unwrap_or(&none), columns, album)) }
            }
        }
    }
}

fn header(name: &str) -> Markup {
    html! { th.plain scope="col" role="columnheader" { (name) } }
}

/// A header that is a button.
fn sort_header(key: &str, name: &str) -> Markup {
    let sorted = if key == "loss" { "descending" } else { "none" };
    html! { th scope="col" role="columnheader" data-key=(key) aria-sort=(sorted) { button type="button" { (name) } } }
}

fn row(record: &ResultRecord, pictures: &Pictures, columns: &[(&str, Item)], album: &mut Album) -> Markup {
    let [loss, l1, lpips] = [SeedMetric::Loss, SeedMetric::L1, SeedMetric::Lpips].map(|m| m.best_seed(record));
    // JavaScript's Number("") is 0; "Infinity" keeps what has no number beside the worst.
    let sortable = |value: Option<f64>| value.map_or("Infinity".into(), |v| v.to_string());
    html! {
        tr role="row" data-name=(Untrusted(&record.image)) data-class=(Untrusted(&record.class_name))
            data-loss=(sortable(loss)) data-l1=(sortable(l1)) data-lpips=(sortable(lpips))
        {
            th.name scope="row" role="rowheader" { bdi { (UntrustedName(&record.image)) } }
            td.class role="cell" { bdi { (UntrustedName(&record.class_name)) } }
            @for (name, item) in columns { (picture(name, pictures.png.get(item), album)) }
            td.curve role="cell" { @if let Some(history) = &pictures.history { (chart::curves(history, record.best)) } }
            @for (name, value) in [("Loss", loss), ("L1", l1), ("LPIPS", lpips)] {
                td.number role="cell" data-label=(name) { (decimal(value, 3)) }
            }
            td.transform role="cell" {
                @match &record.transform {
                    None => { span.quiet { "none" } }
                    Some(found) => { (transform::list(found)) }
                }
            }
        }
    }
}

fn picture(name: &str, png: Option<&Vec<u8>>, album: &mut Album) -> Markup {
    html! {
        td.picture role="cell" {
            figure {
                @match png.and_then(|png| album.embed(png)) {
                    Some(picture) => {
                        img class=[(!picture.scaled).then_some("pixels")] width="96" height="96" loading="lazy" decoding="async"
                            alt=(name) src=(picture.url);
                    }
                    None => { div.missing title="no picture" {} }
                }
                figcaption aria-hidden="true" { (name) }
            }
        }
    }
}
