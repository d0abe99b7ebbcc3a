//! The workers.

use maud::{Markup, html};

use super::parts::{duration, heads, name, text};
use super::{PageFrame, Place};
use client::api::WorkerStatus;

pub fn show(frame: &PageFrame, workers: &[WorkerStatus], backlog: usize) -> Markup {
    let content = html! {
        h1 { "Fleet" }
        div #workers data-refresh {
            dl.tiles {
                div { dt { "workers" } dd { (workers.len()) } }
                div { dt { "images in work" } dd { (workers.iter().map(|w| u64::from(w.alive.images)).sum::<u64>()) } }
                div { dt { "lane-steps/s" } dd { (format!("{:.0}", workers.iter().map(|w| w.alive.lane_steps_per_second).sum::<f64>())) } }
                div { dt { "backlog" } dd { (backlog) } }
            }
            @if workers.is_empty() {
                p.card { "No worker has sent a heartbeat in the last minute. Start one with " code { "basin-worker" } "." }
            } @else {
                div.scroll tabindex="0" role="region" aria-label="Workers" {
                    table #workers-table data-sortable {
                        (heads(&[("worker", false), ("run", false), ("devices", false), ("images", true), ("lane-steps/s", true),
                            ("lane-steps", true), ("last heartbeat", true), ("version", false)]))
                        tbody {
                            @for worker in workers {
                                tr {
                                    td { (name(&worker.name)) }
                                    td { @if worker.alive.images > 0 { a href={ "/runs/" (worker.alive.run) } { (name(&worker.alive.run)) } }
                                        @else if worker.alive.waiting_for.is_none() { span.soft { "idle" } }
                                        @if let Some(place) = &worker.alive.waiting_for { " waits for the " (text(place)) } }
                                    td { (text(&worker.alive.devices)) }
                                    td.num data-value=(worker.alive.images) { (worker.alive.images) " of " (worker.alive.slots) }
                                    td.num { (format!("{:.0}", worker.alive.lane_steps_per_second)) }
                                    td.num { (worker.alive.lane_steps) }
                                    td.num data-value=(worker.silent_seconds) { (duration(worker.silent_seconds)) " ago" }
                                    td { (text(&worker.alive.version)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    };
    frame.page("Fleet", Place::Fleet, &content)
}
