//! The log of a run: who changed what.

use maud::{Markup, html};
use results::format::utc;

use super::parts::{heads, name, optional, text};
use super::{PageFrame, Place};
use client::api::LogEntry;

pub fn show(frame: &PageFrame, run: &str, entries: &[LogEntry]) -> Markup {
    let content = html! {
        h1 { a href={ "/runs/" (run) } { (name(run)) } " · log" }
        @if entries.is_empty() {
            p.soft { "No change is on record." }
        } @else {
            div.scroll tabindex="0" role="region" aria-label="Changes" {
                table {
                    (heads(&[("time", false), ("change", false), ("by", false), ("address", false), ("details", false)]))
                    tbody {
                        @for entry in entries {
                            tr {
                                td { (optional(utc(entry.time / 1_000_000))) }
                                td { (text(&entry.action)) }
                                td { (text(&entry.who)) }
                                td { (text(entry.address.as_deref().unwrap_or("–"))) }
                                td { (text(&entry.detail)) }
                            }
                        }
                    }
                }
            }
        }
    };
    frame.page(&format!("{run}: log"), Place::Runs, &content)
}
