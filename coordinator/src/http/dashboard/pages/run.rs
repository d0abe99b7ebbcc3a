//! A run: its progress, errors by class, losses, the images with the largest and the smallest loss.

use maud::{Markup, html};
use proto::{RunState, Stage};
use results::chart::{Bar, bars};
use results::format::{utc, words};
use results::summary::Spread;
use serde_json::json;

use super::parts::{badge, heads, name, optional, provenance, real, text};
use super::runs::card;
use super::{PageFrame, Place};
use crate::http::auth::Role;
use crate::http::percent::encoded;
use crate::outcomes::Histogram;
use client::api::{ClassStatus, ImageRow, Origin, RunStatus};

/// What `by` says in the URL of a run's page that shows errors by super-class.
pub const BY_SUPER_CLASS: &str = "super-class";

pub struct RunPage<'a> {
    pub run: &'a RunStatus,
    pub origin: Option<&'a Origin>,
    /// Errors by super-class instead of by class.
    pub by_super_class: bool,
    pub losses: &'a Histogram,
    /// Images with the largest loss.
    pub worst: &'a [ImageRow],
    /// Images with the smallest loss.
    pub best: &'a [ImageRow],
}

impl RunPage<'_> {
    pub fn show(&self, frame: &PageFrame) -> Markup {
        let RunPage { run, losses, .. } = *self;
        let at = format!("/runs/{}", run.name);
        let content = html! {
            div.run-head { h1 { (name(&run.name)) } span data-run=(run.name) { (badge(run.state.as_str())) } }
            div #progress data-refresh { (card(run, false)) }
            dl.tiles data-run=(run.name) {
                @for (field, label, value) in [
                    ("started", "with workers", run.started), ("queued", "queued", run.queued), ("waiting", "waiting", run.waiting),
                    ("succeeded", "succeeded", run.skipped + run.succeeded), ("failed", "failed", run.failed),
                ] {
                    div { dt { (label) } dd data-f=(field) { (value) } }
                }
            }
            (actions(frame, run, &at))
            nav.row aria-label="This run" {
                a.button href={ (at) "/images" } { "Images" }
                a.button href={ (at) "/failures" } { "Failures" }
                a.button href={ (at) "/log" } { "Log" }
                a.button href={ (at) "/results.csv" } { "results.csv" }
                @if run.state.is_closed() {
                    a.button href={ (at) "/results.parquet" } { "results.parquet" }
                    a.button href={ (at) "/report.html" } { "Report" }
                }
            }
            (self.errors(&at))
            div.two {
                section #losses data-refresh {
                    h2 { "Losses" }
                    (histogram(losses))
                }
                @if !run.stage_seconds.is_empty() {
                    section #stages data-refresh {
                        h2 { "Time by stage" }
                        (stages(run))
                    }
                }
            }
            section #extremes data-refresh {
                @for (title, rows, order) in [("Largest loss", self.worst, "&descending=true"), ("Smallest loss", self.best, "")] {
                    @if !rows.is_empty() {
                        h2 { (title) " " a.soft href={ (at) "/images?state=succeeded&sort=loss" (order) } { "all" } }
                        div.strip { @for row in rows { (tile(&at, row)) } }
                    }
                }
            }
            @if let Some(origin) = self.origin { (origin_of(origin)) }
        };
        frame.page(&run.name, Place::Runs, &content)
    }

    fn errors(&self, at: &str) -> Markup {
        let by = if self.by_super_class { BY_SUPER_CLASS } else { "class" };
        html! {
            section #classes data-refresh {
                h2 { "Error by " (by) }
                @if !self.run.super_classes.is_empty() {
                    nav.row aria-label="Errors" {
                        a href=(at) aria-current=[(!self.by_super_class).then_some("true")] { "by class" }
                        a href={ (at) "?by=" (BY_SUPER_CLASS) } aria-current=[self.by_super_class.then_some("true")] { "by super-class" }
                    }
                }
                @if self.run.unread > 0 { p.soft { (self.run.unread) " results are still being read." } }
                (errors(at, by, if self.by_super_class { &self.run.super_classes } else { &self.run.classes }))
            }
        }
    }
}

fn actions(frame: &PageFrame, run: &RunStatus, at: &str) -> Markup {
    let act = format!("{at}/act");
    html! {
        @if frame.role == Role::Operate && !run.state.is_closed() {
            div.row {
                form method="post" action=(act) {
                    (frame.key())
                    @if run.state == RunState::Running {
                        button name="state" value="paused" { "Pause" }
                    } @else {
                        button.main name="state" value="running" { "Resume" }
                    }
                    " "
                    button.danger name="state" value="cancelled" data-ask="Cancel this run permanently?" { "Cancel" }
                }
                form.row method="post" action=(act) {
                    (frame.key())
                    label { "Priority" input type="number" min=(i32::MIN) max=(i32::MAX) name="priority" value=(run.priority) required; }
                    button { "Set" }
                }
                form.row method="post" action=(act) {
                    (frame.key())
                    label { "Jobs a minute (0: no limit)"
                        input type="number" min="0" step="any" name="per_minute" value=(run.per_minute.unwrap_or(0.0)) required; }
                    button { "Set" }
                }
                form.row method="post" action=(act) {
                    (frame.key())
                    label { "Budget in worker hours (0: none)"
                        input type="number" min="0" step="any" name="budget_hours" value=(run.budget_hours.unwrap_or(0.0)) required; }
                    button { "Set" }
                }
            }
        }
        @if frame.role == Role::Operate && run.state == RunState::Finished {
            details.card data-key="redrive" {
                summary { "Redrive images" }
                form.row method="post" action={ (at) "/redrive" } {
                    (frame.key())
                    label { "Conditions, such as class=Bag,loss>1.5 (empty: all failures)" input name="where" size="40"; }
                    label { "New seed (required for results)" input type="number" min="0" name="seed"; }
                    button { "Redrive" }
                }
            }
        }
    }
}

/// Bars of the mean LPIPS with standard errors, as in Figure 9 of the paper.
fn lpips_bars(by: &str, classes: &[&ClassStatus]) -> Markup {
    let spread = |c: &ClassStatus| Spread { mean: c.lpips, standard_error: c.lpips_standard_error, ..Spread::over([]) };
    let classes: Vec<Bar> = classes.iter().map(|c| Bar { name: &c.class, images: c.images, spread: spread(c) }).collect();
    bars(by, &classes)
}

/// Means with their standard errors, the largest first, as in Figure 9 of the paper.
fn errors(at: &str, by: &str, classes: &[ClassStatus]) -> Markup {
    let field = by.replace('-', "_");
    let mut sorted: Vec<&ClassStatus> = classes.iter().collect();
    sorted.sort_by(|a, b| b.lpips.unwrap_or(-1.0).total_cmp(&a.lpips.unwrap_or(-1.0)).then_with(|| a.class.cmp(&b.class)));
    html! {
        @if sorted.is_empty() {
            p.soft { "No image has a result yet." }
        } @else {
            (lpips_bars(by, &sorted))
            div.row { label { "Filter" input type="search" data-filters="class-table"; } }
            div.scroll tabindex="0" role="region" aria-label={ "Errors by " (by) } {
                table #class-table data-sortable {
                    (heads(&[(by, false), ("images", true), ("loss", true), ("L1", true), ("LPIPS", true), ("± standard error", true)]))
                    tbody {
                        @for class in sorted {
                            tr {
                                td { a href={ (at) "/images?sort=loss&descending=true&" (field) "=" (encoded(&class.class)) } { (text(&class.class)) } }
                                td.num { (class.images) }
                                td.num { (real(class.loss)) }
                                td.num { (real(class.l1)) }
                                td.num { (real(class.lpips)) }
                                td.num { (real(class.lpips_standard_error)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn histogram(losses: &Histogram) -> Markup {
    let from = |i: usize| losses.from + losses.width * i as f64;
    // One empty interval more, or the last bar is cut.
    let edges: Vec<f64> = (0..=losses.counts.len()).map(from).collect();
    let counts: Vec<Option<usize>> = losses.counts.iter().map(|n| Some(*n)).chain([None]).collect();
    let chart = json!({
        "title": "", "bars": true, "x": { "label": "loss", "values": edges }, "series": [{ "label": "images", "values": counts }]
    });
    html! {
        @if losses.counts.is_empty() {
            p.soft { "No image has a result yet." }
        } @else {
            div.chart data-chart=(chart) role="img" aria-label="How many images have which loss; the table below has the numbers" {}
            details data-key="losses" {
                summary { "As a table" }
                table {
                    thead { tr { th.num { "loss from" } th.num { "images" } } }
                    tbody { @for (i, count) in losses.counts.iter().enumerate() { tr { td.num { (format!("{:.4}", from(i))) } td.num { (count) } } } }
                }
            }
        }
    }
}

fn stages(run: &RunStatus) -> Markup {
    let sum: f64 = run.stage_seconds.values().sum();
    let mut in_order: Vec<(&String, &f64)> = run.stage_seconds.iter().collect();
    in_order.sort_by_key(|(stage, _)| Stage::rank(stage));
    html! {
        table {
            thead { tr { th { "stage" } th.num { "seconds an image" } th.num { "share" } } }
            tbody {
                @for (stage, seconds) in in_order {
                    tr { td { (text(&words(stage))) } td.num { (format!("{seconds:.2}")) } td.num { (format!("{:.0} %", 100.0 * seconds / sum.max(f64::MIN_POSITIVE))) } }
                }
            }
        }
    }
}

fn tile(at: &str, row: &ImageRow) -> Markup {
    let key = encoded(&row.image);
    html! {
        a.tile href={ (at) "/image?key=" (key) } {
            div.four {
                @for item in ["target", "generated", "inverted"] {
                    img.pixels loading="lazy" alt=(item) src={ (at) "/picture?key=" (key) "&item=" (item) };
                }
            }
            div.name { (text(&row.image)) }
            div.numbers { (text(row.class.as_deref().unwrap_or_default())) " · loss " (real(row.loss)) " · LPIPS " (real(row.lpips)) }
        }
    }
}

fn origin_of(Origin { record, began }: &Origin) -> Markup {
    let limit = record.limit.map(|limit| format!(" (at most {limit} images)")).unwrap_or_default();
    let fields = [
        ("data set", format!("{}{limit}", record.dataset)),
        ("model", format!("{} ({})", record.model, record.model_digest)),
        ("profile", format!("{}, {} seeds an image", record.params.described(), record.params.seeds)),
        ("run seed", record.seed.to_string()),
        ("submitted", optional(began.and_then(utc))),
        ("basin", record.version.clone()),
    ];
    provenance(&fields, None, &record.params)
}
