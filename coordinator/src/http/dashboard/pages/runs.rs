//! The list of runs.

use maud::{Markup, html};
use results::format::percent;

use super::parts::{badge, duration, name, optional, text};
use super::{PageFrame, Place};
use client::api::RunStatus;

pub fn show(frame: &PageFrame, runs: &[RunStatus]) -> Markup {
    let content = html! {
        h1 { "Runs" }
        div #runs data-refresh {
            @if runs.is_empty() {
                p.card { "There is no run yet. Submit one: " code { "basin submit s3://bucket/images --name first --model fashion32" } }
            }
            @for run in runs {
                (card(run, true))
            }
        }
    };
    frame.page("Runs", Place::Runs, &content)
}

/// What an operator has to know of a run.
fn notes(run: &RunStatus) -> Vec<String> {
    let paused = run.paused_because.as_ref().map(|why| format!("Paused: {why}"));
    let deleting = run.deleting.map(|objects| format!("This run is being deleted: {objects} objects are gone."));
    let notification = run.notification_problem.as_ref().map(|why| format!("Notification: {why}"));
    [paused, deleting, notification].into_iter().flatten().collect()
}

/// Progress of a run. `link`: with its name.
pub(super) fn card(run: &RunStatus, link: bool) -> Markup {
    let settled = run.skipped + run.succeeded + run.failed;
    html! {
        section.card data-run=(run.name) {
            @if link {
                div.run-head {
                    a href={ "/runs/" (run.name) } { (name(&run.name)) }
                    (badge(run.state.as_str()))
                }
            }
            progress max=(run.images.max(1)) value=(settled) aria-label={ "progress of " (run.name) } {}
            div.run-head.soft {
                span { span data-f="done" { (percent(settled as u64, run.images as u64)) } " of " span data-f="images" { (run.images) } " images" }
                span { span data-f="succeeded" { (run.skipped + run.succeeded) } " succeeded, " span data-f="failed" { (run.failed) } " failed" }
                @if !run.state.is_closed() {
                    span { span data-f="rate" { (optional(run.per_hour.map(|r| format!("{r:.0}")))) } " images/hour" }
                    span { "time left " span data-f="eta" { (optional(run.eta_seconds.map(duration))) } }
                }
                @if run.cost.is_some() {
                    span { "about " span data-f="cost" { (optional(run.cost.map(|c| format!("${c:.2}")))) } }
                }
            }
            @if let Some(budget) = run.budget_hours {
                p.soft { (format!("{:.2} of {budget} worker hours used", run.worker_hours)) }
            }
            @for why in notes(run) {
                p.problem { (text(&why)) }
            }
            @if let Some(problem) = &run.problem {
                p.problem data-f="problem" { (text(problem)) }
            }
        }
    }
}
