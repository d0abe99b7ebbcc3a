//! The pages. Each has a file of its own, except the login and the page of a refusal. Pure: data in, HTML out. Names of images, runs and
//! workers may be hostile.

pub mod failures;
pub mod fleet;
pub mod image;
pub mod images;
pub mod log;
mod parts;
pub mod run;
pub mod runs;

use maud::{DOCTYPE, Markup, html};

use crate::http::auth::Role;
use client::api::Outage;
use parts::text;
use results::format::duration;

pub struct PageFrame {
    pub role: Role,
    /// Every form sends it.
    pub form_key: String,
    /// Whether there is a session to log out of.
    pub session: bool,
    /// Shown once after an action: whether it succeeded, and a text.
    pub note: Option<(bool, String)>,
    /// What the coordinator waits for.
    pub outages: Vec<Outage>,
}

/// The place of a page in the navigation.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Runs,
    Fleet,
    Failures,
    /// Not linked in the navigation.
    Unlinked,
    /// Outside the session: no live updates, no logout.
    Outside,
}

impl PageFrame {
    fn page(&self, title: &str, place: Place, content: &Markup) -> Markup {
        let link = |to: &str, text: &str, here: Place| {
            html! { a href=(to) aria-current=[(here == place).then_some("page")] { (text) } }
        };
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    title { (text(title)) " · basin" }
                    link rel="icon" href="/favicon.ico" type="image/svg+xml";
                    link rel="stylesheet" href="/ui/uplot.css";
                    link rel="stylesheet" href="/ui/style.css";
                    script src="/ui/uplot.js" defer {}
                    script src="/ui/live.js" defer {}
                }
                body {
                    a.skip href="#main" { "Skip to the content" }
                    header.top {
                        a.brand href="/" { "basin" }
                        nav aria-label="Pages" {
                            (link("/", "Runs", Place::Runs))
                            (link("/fleet", "Fleet", Place::Fleet))
                            (link("/failures", "Failures", Place::Failures))
                        }
                        @if place != Place::Outside { span #line role="status" { "connecting" } }
                        button #theme type="button" { "Dark / light" }
                        @if self.session && place != Place::Outside {
                            form method="post" action="/logout" { (self.key()) button { "Log out" } }
                        }
                    }
                    main #main {
                        div #outages data-refresh role="status" {
                            @for outage in &self.outages {
                                p.note.error { (duration(outage.seconds)) ": " (text(&outage.text())) }
                            }
                        }
                        @if let Some((succeeded, note)) = &self.note {
                            p.note.error[!succeeded] role="status" { (text(note)) }
                        }
                        (content)
                    }
                }
            }
        }
    }

    fn key(&self) -> Markup {
        html! { input type="hidden" name="form_key" value=(self.form_key); }
    }

    /// The login, which leads back to the path `to`.
    pub fn login(&self, to: &str) -> Markup {
        let content = html! {
            h1 { "Log in" }
            form.card method="post" action="/login" {
                (self.key())
                input type="hidden" name="to" value=(to);
                label { "Token" input type="password" name="token" autocomplete="current-password" required autofocus; }
                p { button.main { "Log in" } }
            }
        };
        self.page("Log in", Place::Outside, &content)
    }

    /// The page of a refusal.
    pub fn trouble(&self, what: &str) -> Markup {
        let content = html! { h1 { "Request refused" } p.note.error { (text(what)) } p { a href="/" { "All runs" } } };
        self.page("Request refused", Place::Outside, &content)
    }
}
