//! The images of a run: the page's script fills the grid; without it there is a table.

use maud::{Markup, html};

use super::parts::{name, real, state_name, text};
use super::{Frame, Place};
use crate::http::percent::encoded;
use client::api::{ImagePage, ImageQuery, ImageRow, ImageSort, ImageState, RunStatus};

pub struct ImagesPage<'a> {
    pub run: &'a RunStatus,
    pub query: &'a ImageQuery,
    pub page: &'a ImagePage,
    pub classes: &'a [String],
    pub super_classes: &'a [String],
    /// The run fine-tunes.
    pub tuned: bool,
}

impl ImagesPage<'_> {
    pub fn show(&self, frame: &Frame) -> Markup {
        let ImagesPage { run, query, page, tuned, .. } = *self;
        let at = format!("/runs/{}", run.name);
        let content = html! {
            h1 { "Images of " a href=(at) { (name(&run.name)) } }
            (self.form())
            p.soft role="status" { (page.total) " images" }
            div #grid data-from={ "/v1/runs/" (run.name) "/images" } data-run=(at) data-total=(page.total)
                data-query=(query_string(query)) data-tuned[tuned] {}
            noscript { (table(&at, &page.images)) }
        };
        frame.page(&format!("Images of {}", run.name), Place::Runs, &content)
    }

    fn form(&self) -> Markup {
        let ImagesPage { query, classes, super_classes, .. } = *self;
        let sorts = [
            (ImageSort::Image, "image", "name"),
            (ImageSort::Class, "class", "class"),
            (ImageSort::Loss, "loss", "loss"),
            (ImageSort::L1, "l1", "L1"),
            (ImageSort::Lpips, "lpips", "LPIPS"),
        ];
        let states = [
            (None, "", "all"),
            (Some(ImageState::Succeeded), "succeeded", "succeeded"),
            (Some(ImageState::Failed), "failed", "failed"),
        ];
        html! {
            form.row method="get" {
                label { "Class"
                    select name="class" {
                        option value="" { "all" }
                        @for class in classes { option value=(class) selected[class.eq_ignore_ascii_case(&query.class)] { (text(class)) } }
                    }
                }
                @if !super_classes.is_empty() {
                    label { "Super-class"
                        select name="super_class" {
                            option value="" { "all" }
                            @for name in super_classes {
                                option value=(name) selected[name.eq_ignore_ascii_case(&query.super_class)] { (text(name)) }
                            }
                        }
                    }
                }
                label { "State"
                    select name="state" {
                        @for (state, value, label) in states { option value=(value) selected[query.state == state] { (label) } }
                    }
                }
                label { "Name contains" input name="image" value=(query.image); }
                label { "Loss from" input type="number" step="any" name="min_loss" value=[query.min_loss]; }
                label { "to" input type="number" step="any" name="max_loss" value=[query.max_loss]; }
                label { "Sort by"
                    select name="sort" {
                        @for (sort, value, label) in sorts { option value=(value) selected[query.sort == sort] { (label) } }
                    }
                }
                label { "Order"
                    select name="descending" {
                        option value="false" selected[!query.descending] { "ascending" }
                        option value="true" selected[query.descending] { "descending" }
                    }
                }
                button.main { "Show" }
            }
        }
    }
}

/// The part of a query that the grid repeats in its requests.
fn query_string(query: &ImageQuery) -> String {
    let fields = serde_json::to_value(query).expect("plain fields serialise");
    let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let wanted = |(name, value): &(&String, &serde_json::Value)| {
        !["offset", "limit"].contains(&name.as_str()) && !value.is_null() && value.as_str() != Some("")
    };
    let fields: Vec<_> = fields.as_object().into_iter().flatten().filter(wanted).collect();
    fields.iter().map(|(name, value)| format!("{name}={}", encoded(&text(value)))).collect::<Vec<_>>().join("&")
}

fn table(at: &str, rows: &[ImageRow]) -> Markup {
    html! {
        table {
            thead { tr { th { "image" } th { "class" } th { "state" } th.num { "loss" } th.num { "L1" } th.num { "LPIPS" } } }
            tbody {
                @for row in rows {
                    tr {
                        td { a href={ (at) "/image?key=" (encoded(&row.image)) } { (name(&row.image)) } }
                        td { (text(row.class.as_deref().unwrap_or_default())) }
                        td { (row.reason.map_or(state_name(row.state), |reason| reason.as_str())) }
                        td.num { (real(row.loss)) } td.num { (real(row.l1)) } td.num { (real(row.lpips)) }
                    }
                }
            }
        }
    }
}
