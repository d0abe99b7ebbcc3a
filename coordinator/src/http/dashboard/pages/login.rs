//! The login.

use maud::{Markup, html};

use super::{Frame, Place};

/// `to`: the path to return to.
pub fn show(frame: &Frame, to: &str) -> Markup {
    let content = html! {
        h1 { "Log in" }
        form.card method="post" action="/login" {
            (frame.key())
            input type="hidden" name="to" value=(to);
            label { "Token" input type="password" name="token" autocomplete="current-password" required autofocus; }
            p { button.main { "Log in" } }
        }
    };
    frame.page("Log in", Place::Outside, &content)
}
