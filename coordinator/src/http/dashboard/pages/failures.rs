//! Failures by reason: of one run, or of all.

use maud::{Markup, html};
use proto::RunState;
use results::format::words;

use super::parts::{badge, name, text};
use super::{PageFrame, Place};
use crate::http::auth::Role;
use crate::http::percent::encoded;
use client::api::{FailureGroup, RunStatus};

/// `one`: of one run.
pub fn show(frame: &PageFrame, runs: &[(RunStatus, Vec<FailureGroup>)], one: bool) -> Markup {
    let content = html! {
        h1 { "Failures" @if let (true, Some((run, _))) = (one, runs.first()) { " of " a href={ "/runs/" (run.name) } { (name(&run.name)) } } }
        div #failures data-refresh {
            @if runs.iter().all(|(_, groups)| groups.is_empty()) { p.card { "No image has failed." } }
            @for (run, groups) in runs.iter().filter(|(_, groups)| !groups.is_empty()) {
                @let at = format!("/runs/{}", run.name);
                @if !one { h2 { a href={ (at) "/failures" } { (name(&run.name)) } " " (badge(run.state.as_str())) } }
                @for group in groups { (show_group(frame, run, &at, group)) }
            }
        }
    };
    frame.page("Failures", if one { Place::Unlinked } else { Place::Failures }, &content)
}

fn show_group(frame: &PageFrame, run: &RunStatus, at: &str, group: &FailureGroup) -> Markup {
    let reason = group.reason.as_str();
    html! {
        section.card {
            div.run-head {
                strong { (group.images) " × " (words(reason)) }
                a href={ (at) "/images?state=failed&reason=" (reason) } { "all images" }
            }
            div.scroll tabindex="0" role="region" aria-label={ "Failures: " (reason) } {
                table {
                    thead { tr { th { "image" } th { "class" } th { "message" } } }
                    tbody {
                        @for row in &group.examples {
                            tr {
                                td { a href={ (at) "/image?key=" (encoded(&row.image)) } { (name(&row.image)) } }
                                td { (text(row.class.as_deref().unwrap_or_default())) }
                                td { (text(row.message.as_deref().unwrap_or_default())) }
                            }
                        }
                    }
                }
            }
            @if frame.role == Role::Operate {
                @if run.state == RunState::Finished {
                    form.row method="post" action={ (at) "/redrive" } {
                        (frame.key())
                        input type="hidden" name="where" value={ "reason=" (reason) };
                        label { "Seed (optional)" input type="number" min="0" name="seed"; }
                        button { "Redrive" }
                    }
                } @else if run.state == RunState::Cancelled {
                    p.soft { "The run is cancelled." }
                } @else {
                    p.soft { "They can be redriven when the run has finished." }
                }
            }
        }
    }
}
