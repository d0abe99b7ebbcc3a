//! The images of a run: the page's script fills the grid; without it there is a table.

use maud::{Markup, html};

use super::parts::{name, real, text};
use super::{PageFrame, Place};
use crate::http::percent::{encoded, encoded_query};
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

impl<'a> ImagesPage<'a> {
    pub fn show(&self, frame: &PageFrame) -> Markup {
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
        let names = |names: &'a [String], chosen: &str| {
            let name = |name: &'a String| (name.as_str(), name.as_str(), name.eq_ignore_ascii_case(chosen));
            [("", "all", false)].into_iter().chain(names.iter().map(name)).collect::<Vec<_>>()
        };
        let sorts = [
            (ImageSort::Image, "image", "name"),
            (ImageSort::Class, "class", "class"),
            (ImageSort::Loss, "loss", "loss"),
            (ImageSort::L1, "l1", "L1"),
            (ImageSort::Lpips, "lpips", "LPIPS"),
        ];
        let states = [None, Some(ImageState::Succeeded), Some(ImageState::Failed)].map(|state| {
            let name = state.map_or("", ImageState::as_str);
            (name, state.map_or("all", |_| name), query.state == state)
        });
        let orders = [("false", "ascending", !query.descending), ("true", "descending", query.descending)];
        html! {
            form.row method="get" {
                (select("Class", "class", &names(classes, &query.class)))
                @if !super_classes.is_empty() { (select("Super-class", "super_class", &names(super_classes, &query.super_class))) }
                (select("State", "state", &states))
                label { "Name contains" input name="image" value=(query.image); }
                label { "Loss from" input type="number" step="any" name="min_loss" value=[query.min_loss]; }
                label { "to" input type="number" step="any" name="max_loss" value=[query.max_loss]; }
                (select("Sort by", "sort", &sorts.map(|(sort, value, label)| (value, label, query.sort == sort))))
                (select("Order", "descending", &orders))
                button.main { "Show" }
            }
        }
    }
}

/// `options`: the value, the text, and whether it is chosen.
fn select(label: &str, field: &str, options: &[(&str, &str, bool)]) -> Markup {
    html! {
        label { (label)
            select name=(field) { @for (value, shown, chosen) in options { option value=(value) selected[*chosen] { (text(shown)) } } }
        }
    }
}

/// The part of a query that the grid repeats in its requests.
fn query_string(query: &ImageQuery) -> String {
    let fields = serde_json::to_value(query).expect("plain fields serialise");
    let field = |(name, value): (&String, &serde_json::Value)| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let wanted = !["offset", "limit"].contains(&name.as_str()) && !value.is_null() && !text.is_empty();
        wanted.then(|| (name.clone(), text))
    };
    encoded_query(&fields.as_object().into_iter().flatten().filter_map(field).collect::<Vec<_>>())
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
                        td { (row.reason.map_or(row.state.as_str(), |reason| reason.as_str())) }
                        td.num { (real(row.loss)) } td.num { (real(row.l1)) } td.num { (real(row.lpips)) }
                    }
                }
            }
        }
    }
}
