//! Images without a projection.

use maud::{Markup, html};
use proto::Failure;

use crate::format::{clipped, count, counted, words};
use crate::html::{UntrustedLines, UntrustedName};
use crate::summary::Summary;

/// Failures that the report lists.
pub const MOST: usize = 200;
/// Longest list whose details are open.
const MOST_OPEN: usize = 10;
/// Characters of a failure's message that the report shows.
const MESSAGE_CHARACTERS: usize = 2000;

/// `failures`: at most [`MOST`], by reason.
pub fn section(summary: &Summary, failures: &[Failure]) -> Markup {
    let failed = summary.images.failed;
    if failed == 0 {
        return html! {};
    }
    let reasons: Vec<String> =
        summary.failures.iter().map(|(reason, n)| format!("{} {}", count(*n), words(reason.as_str()))).collect();
    html! {
        section #failures aria-labelledby="failures-title" {
            h2 #failures-title { "Failures" }
            p.lead { "No projection for " (counted(failed, "image")) ": " (reasons.join(", ")) "." }
            @if failed > failures.len() as u64 {
                p.remark { "The first " (MOST) " are listed; all are in " code { "results.csv" } "." }
            }
            details open[failures.len() <= MOST_OPEN] {
                summary { "Images and reasons" }
                ul.failures { @for failure in failures { (item(failure)) } }
            }
        }
    }
}

fn item(failure: &Failure) -> Markup {
    let name = if failure.image.is_empty() { "(no name)" } else { &failure.image };
    html! {
        li {
            p { bdi.name { (UntrustedName(name)) } " " span.tag { (words(failure.reason.as_str())) } }
            p.message { bdi { (UntrustedLines(&clipped(&failure.message, MESSAGE_CHARACTERS))) } }
        }
    }
}
