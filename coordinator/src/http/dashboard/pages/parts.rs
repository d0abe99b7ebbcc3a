//! Parts that several pages use.

use maud::{Markup, html};
use proto::Params;
use results::format::ABSENT;
use results::html::{Untrusted, UntrustedName};

/// Escapes hostile text.
pub(super) fn text(text: &str) -> Untrusted<'_> {
    Untrusted(text)
}

/// Escapes a hostile name, which may break across lines.
pub(super) fn name(text: &str) -> UntrustedName<'_> {
    UntrustedName(text)
}

pub(super) fn badge(state: &str) -> Markup {
    html! { span class={ "badge " (state) } data-f="state" { (state) } }
}

pub(super) fn optional(text: Option<String>) -> String {
    text.unwrap_or_else(|| ABSENT.into())
}

pub(super) fn real(value: Option<f64>) -> String {
    optional(value.filter(|v| v.is_finite()).map(|v| format!("{v:.4}")))
}

pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

pub(super) fn heads(columns: &[(&str, bool)]) -> Markup {
    html! { thead { tr { @for (label, number) in columns { th.num[*number] scope="col" { button type="button" { (label) } } } } } }
}

/// The origin of a run or of a result. `linked`: the label of the value with a link, and its URL.
pub(super) fn provenance(fields: &[(&str, String)], linked: Option<(&str, &str)>, params: &Params) -> Markup {
    let link = |label: &str| linked.filter(|(field, _)| *field == label).map(|(_, url)| url);
    html! {
        h2 { "Provenance" }
        div.scroll tabindex="0" role="region" aria-label="Provenance" {
            table.values {
                tbody {
                    @for (label, value) in fields {
                        tr {
                            th scope="row" { (label) }
                            td {
                                @match link(label) {
                                    Some(url) => { a href=(url) rel="noopener" { (text(value)) } }
                                    None => { (text(value)) }
                                }
                            }
                        }
                    }
                }
            }
        }
        details data-key="params" { summary { "Parameters" } pre { (serde_json::to_string_pretty(params).expect("plain structs serialise")) } }
    }
}
