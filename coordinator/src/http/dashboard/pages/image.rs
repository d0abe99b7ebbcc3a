//! One image: its pictures, numbers, curves and provenance.

use maud::{Markup, html};
use proto::{FineTuned, History, ResultRecord, RunState};
use results::format::words;
use serde_json::json;

use super::parts::{heads, name, optional, provenance, real, text};
use super::{PageFrame, Place};
use crate::http::auth::Role;
use crate::http::percent::encoded;
use client::api::{ImageRow, RunStatus};

pub struct OneImage<'a> {
    pub run: &'a RunStatus,
    pub row: &'a ImageRow,
    /// `None` of an image that failed.
    pub record: Option<&'a (ResultRecord, History)>,
    /// URL of its trace.
    pub trace: Option<&'a str>,
    /// There is an edit service.
    pub edits: bool,
}

impl OneImage<'_> {
    pub fn show(&self, frame: &PageFrame) -> Markup {
        let OneImage { run, row, record, trace, edits } = *self;
        let at = format!("/runs/{}", run.name);
        let key = encoded(&row.image);
        let content = html! {
            p.soft { a href=(at) { (name(&run.name)) } " › " a href={ (at) "/images" } { "images" } }
            h1 { (name(&row.image)) }
            p { span class={ "badge " (row.state.as_str()) } { (row.state.as_str()) }
                @if let Some(class) = &row.class { " " (text(class)) } }
            @if let Some(reason) = row.reason {
                section.card { h2 { (words(reason.as_str())) } p.problem { (text(row.message.as_deref().unwrap_or_default())) }
                    @if frame.role == Role::Operate && run.state == RunState::Finished {
                        form method="post" action={ (at) "/redrive" } {
                            (frame.key())
                            input type="hidden" name="where" value=(only(&row.image));
                            button { "Retry" }
                        }
                    }
                }
            }
            @if let Some((record, history)) = record {
                (pictures(&at, &key, record))
                @if let Some(tuned) = &record.fine_tuned { (fine_tuned(tuned)) }
                @if edits {
                    h2 { "Edit" }
                    section.card #edit data-edit={ (at) "/edit" } data-image=(row.image) { p.soft { "Loading the edit service …" } }
                }
                (numbers(record))
                (curves(history, record.best))
                (origin_of(record, trace))
            }
        };
        frame.page(&row.image, Place::Runs, &content)
    }
}

/// A condition that only this image matches.
fn only(image: &str) -> String {
    let exact = image.replace('\\', "\\\\").replace('*', "\\*");
    format!("image={}", serde_json::to_string(&exact).expect("text serialises"))
}

fn pictures(at: &str, key: &str, record: &ResultRecord) -> Markup {
    // The corners of the transformed picture, in percent of the target's sides.
    let seen = record.transform.as_ref().map(|t| {
        let corners = [[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]].map(|corner| {
            let [x, y] = t.point(corner).map(|v| 50.0 * (1.0 + v));
            format!("{x},{y}")
        });
        corners.join(" ")
    });
    let items = [
        ("target", "target"),
        ("transformed", "target, transformed"),
        ("generated", "projection"),
        ("inverted", "projection, inverted"),
    ];
    let tuned = matches!(record.fine_tuned, Some(FineTuned::Kept { .. })).then_some(("tuned", "fine-tuned, inverted"));
    html! {
        div.pictures {
            @for (item, label) in items.into_iter().chain(tuned) {
                figure {
                    div.box {
                        img.pixels src={ (at) "/picture?key=" (key) "&item=" (item) } alt=(label);
                        @if let (Some(points), "target") = (&seen, item) {
                            svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-label="part of the target that the transform shows" role="img" {
                                polygon points=(points) {}
                            }
                        }
                    }
                    figcaption { (label) }
                }
            }
        }
    }
}

fn fine_tuned(outcome: &FineTuned) -> Markup {
    html! {
        h2 { "Fine-tuning" }
        @match outcome {
            FineTuned::Dropped { why } => { p { "Fine-tuning did not help, and the projection stays: " (text(why)) "." } }
            FineTuned::Kept { steps, distances, lpips, psnr, codes } => {
                @let codes = codes.iter().map(|(code, layers)| format!("{code} in {layers} layers")).collect::<Vec<_>>().join(", ");
                @let fields = [
                    ("loss", real(Some(distances.loss))),
                    ("LPIPS, weighted as in the loss", format!("{} before, {} after", real(Some(lpips.0)), real(Some(lpips.1)))),
                    ("L1, LPIPS in the box", format!("{}, {}", real(Some(distances.l1)), real(Some(distances.lpips)))),
                    ("steps", steps.to_string()),
                    ("weights stored as", codes),
                    ("loss by rounding", psnr.map_or("none".into(), |psnr| format!("{psnr:.1} dB signal-to-noise"))),
                ];
                div.scroll tabindex="0" role="region" aria-label="Fine-tuning" {
                    table.values { tbody { @for (label, value) in fields { tr { th scope="row" { (label) } td { (text(&value)) } } } } }
                }
            }
        }
    }
}

fn numbers(record: &ResultRecord) -> Markup {
    html! {
        h2 { "Seeds" }
        div.scroll tabindex="0" role="region" aria-label="Seeds" {
            table #seeds data-sortable {
                (heads(&[("seed", true), ("loss", true), ("inverted loss", true), ("L1", true), ("L2", true), ("LPIPS", true), ("best", false)]))
                tbody {
                    @for (i, seed) in record.seeds.iter().enumerate() {
                        tr {
                            td.num { (i) }
                            @for value in [seed.loss, seed.inverted_loss, seed.l1, seed.l2, seed.lpips] { td.num { (real(Some(value))) } }
                            td { @if i == record.best { "best" } }
                        }
                    }
                }
            }
        }
    }
}

fn curves(history: &History, best: usize) -> Markup {
    let chart = |title: &str, unit: &str, curves: &[(String, &Vec<f64>)]| {
        let length = curves.iter().map(|(_, c)| c.len()).max().unwrap_or(0);
        let finite = |curve: &[f64]| (0..length).map(|i| curve.get(i).copied().filter(|v| v.is_finite())).collect::<Vec<_>>();
        let series: Vec<_> = curves.iter().map(|(label, c)| json!({ "label": label, "values": finite(c) })).collect();
        let chart =
            json!({ "title": title, "x": { "label": unit, "values": (0..length).collect::<Vec<_>>() }, "series": series });
        let shown: Vec<usize> = (0..length).step_by(length.div_ceil(50).max(1)).collect();
        html! {
            section {
                div.chart data-chart=(chart) role="img" aria-label={ (title) "; the table below has the numbers" } {}
                details data-key=(title) {
                    summary { "As a table" }
                    div.scroll tabindex="0" role="region" aria-label=(title) {
                        table {
                            thead { tr { th.num { (unit) } @for (label, _) in curves { th.num { (label) } } } }
                            tbody { @for i in shown { tr { td.num { (i) } @for (_, c) in curves { td.num { (real(c.get(i).copied())) } } } } }
                        }
                    }
                }
            }
        }
    };
    let descent: Vec<(String, &Vec<f64>)> = history.descent.iter().enumerate().map(|(i, c)| (format!("seed {i}"), c)).collect();
    let (first, rest): (Vec<_>, Vec<_>) = descent.into_iter().enumerate().partition(|(i, _)| *i == best);
    let descent: Vec<(String, &Vec<f64>)> = first.into_iter().chain(rest).map(|(_, c)| c).collect();
    html! {
        h2 { "Loss curves" }
        div.two {
            @if !history.transform.is_empty() { (chart("Transform search", "generation", &[("best".into(), &history.transform)])) }
            @if !history.latent.is_empty() { (chart("Latent search", "generation", &[("best".into(), &history.latent)])) }
            @if history.descent.iter().any(|c| !c.is_empty()) { (chart("Final descent", "step", &descent)) }
            @if !history.fine_tune.is_empty() { (chart("Fine-tuning", "step", &[("loss and regulariser".into(), &history.fine_tune)])) }
        }
    }
}

fn origin_of(record: &ResultRecord, trace: Option<&str>) -> Markup {
    let transform = record.transform.as_ref().map(|t| {
        let mut text = format!("scale {:.3} × {:.3}, shift {:.3}, {:.3}", t.scale[0], t.scale[1], t.shift[0], t.shift[1]);
        if t.rotation != 0.0 {
            text += &format!(", rotation {:.1}°", t.rotation);
        }
        if t.perspective != [0.0, 0.0] {
            text += &format!(", perspective {:.3}, {:.3}", t.perspective[0], t.perspective[1]);
        }
        text
    });
    let likely = record.found.iter().flat_map(|found| &found.likely).map(|(name, p)| format!("{name} {:.0} %", 100.0 * p));
    let likely: Vec<String> = likely.collect();
    let class = match likely.is_empty() {
        true => format!("{} ({})", record.class_name, record.class),
        false => format!("{} ({}); likely were {}", record.class_name, record.class, likely.join(", ")),
    };
    let bbox = record.bbox.map(|b| format!("{:.1}, {:.1}, {:.1} × {:.1} pixels", b.x, b.y, b.width, b.height));
    let fields = [
        ("class", class),
        ("box", bbox.unwrap_or_else(|| "whole image".into())),
        ("transform", transform.unwrap_or_else(|| "none".into())),
        ("model", format!("{} ({})", record.model.name, record.model.digest)),
        ("seed", record.seed.to_string()),
        ("lane-steps", record.lane_steps.to_string()),
        ("device time", format!("{:.1} s", record.seconds)),
        ("identity of the image", record.identity.clone()),
        ("job", record.job.to_string()),
        ("attempt", record.attempt.clone()),
        ("trace", optional(record.trace.clone())),
        ("basin", record.version.clone()),
    ];
    provenance(&fields, trace.map(|url| ("trace", url)), &record.params)
}
