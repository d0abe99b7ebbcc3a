//! The pages. Pure: what is known in, HTML out. Names of images, runs and workers are hostile text.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use proto::{FailureReason, FineTuned, History, Params, ResultRecord, RunState};
use serde_json::json;

use crate::auth::Role;
use crate::outcomes::Histogram;
use client::api::{
    ClassStatus, FailureGroup, ImagePage, ImageQuery, ImageRow, ImageSort, ImageState, Origin, RunStatus, WorkerStatus,
};
use results::report::chart::{Bar, write_bars};
use results::report::{Name, Text};
use results::summary::Spread;

/// What `by` says in the URL of a run's page that shows errors by super-class.
pub const BY_SUPER_CLASS: &str = "super-class";

/// What every page has.
pub struct Frame<'a> {
    /// Of whoever looks.
    pub role: Role,
    /// What every form holds.
    pub form_key: &'a str,
    /// Whether there is a session that can be ended.
    pub session: bool,
    /// Said once, after something was done: whether it went well, and what.
    pub note: Option<(bool, String)>,
}

/// A link in the head.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Runs,
    Fleet,
    Failures,
    /// None of these.
    Elsewhere,
    /// None, and nothing is told here.
    Outside,
}

impl Frame<'_> {
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
                    a.skip href="#main" { "To the content" }
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
                        @if let Some((well, note)) = &self.note {
                            p.note.error[!well] role="status" { (text(note)) }
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

    /// All runs.
    pub fn runs(&self, runs: &[RunStatus]) -> Markup {
        let content = html! {
            h1 { "Runs" }
            div #runs data-refresh {
                @if runs.is_empty() {
                    p.card { "There is no run yet. " code { "basin submit s3://bucket/images --name first --model fashion32" } " begins one." }
                }
                @for run in runs {
                    (Self::run_card(run, true))
                }
            }
        };
        self.page("Runs", Place::Runs, &content)
    }

    fn run_card(run: &RunStatus, link: bool) -> Markup {
        let settled = run.skipped + run.succeeded + run.failed;
        html! {
            section.card data-run=(run.name) {
                @if link {
                    div.run-head {
                        a href={ "/runs/" (run.name) } { (name(&run.name)) }
                        (badge(run.state))
                    }
                }
                progress max=(run.images.max(1)) value=(settled) aria-label={ "progress of " (run.name) } {}
                div.run-head.soft {
                    span { span data-f="done" { (percent(settled, run.images)) } " of " span data-f="images" { (run.images) } " images" }
                    span { span data-f="succeeded" { (run.skipped + run.succeeded) } " succeeded, " span data-f="failed" { (run.failed) } " failed" }
                    @if matches!(run.state, RunState::Running | RunState::Paused) {
                        span { span data-f="rate" { (optional(run.per_hour.map(|r| format!("{r:.0}")))) } " images/hour" }
                        span { "ready in " span data-f="eta" { (optional(run.eta_seconds.map(duration))) } }
                    }
                    @if run.cost.is_some() {
                        span { "about " span data-f="cost" { (optional(run.cost.map(|c| format!("${c:.2}")))) } }
                    }
                }
                @if let Some(problem) = &run.problem {
                    p.problem data-f="problem" { (text(problem)) }
                }
            }
        }
    }

    /// A run: how it goes, errors by class, losses, the worst and the best images.
    pub fn run(
        &self,
        run: &RunStatus,
        origin: Option<&Origin>,
        by_super_class: bool,
        losses: &Histogram,
        worst: &[ImageRow],
        best: &[ImageRow],
    ) -> Markup {
        let at = format!("/runs/{}", run.name);
        let by = if by_super_class { "super-class" } else { "class" };
        let content = html! {
            div.run-head { h1 { (name(&run.name)) } span data-run=(run.name) { (badge(run.state)) } }
            (Self::run_card(run, false))
            dl.tiles data-run=(run.name) {
                @for (field, label, value) in [
                    ("started", "with workers", run.started), ("queued", "queued", run.queued), ("waiting", "waiting", run.waiting),
                    ("succeeded", "succeeded", run.skipped + run.succeeded), ("failed", "failed", run.failed),
                ] {
                    div { dt { (label) } dd data-f=(field) { (value) } }
                }
            }
            (self.actions(run, &at))
            nav.row aria-label="Of this run" {
                a.button href={ (at) "/images" } { "Images" }
                a.button href={ (at) "/failures" } { "Failures" }
                a.button href={ (at) "/results.csv" } { "results.csv" }
                @if matches!(run.state, RunState::Finished | RunState::Cancelled) {
                    a.button href={ (at) "/results.parquet" } { "results.parquet" }
                    a.button href={ (at) "/report.html" } { "Report" }
                }
            }
            section #classes data-refresh {
                h2 { "Error by " (by) }
                @if !run.super_classes.is_empty() {
                    nav.row aria-label="Errors" {
                        a href=(at) aria-current=[(!by_super_class).then_some("true")] { "by class" }
                        a href={ (at) "?by=" (BY_SUPER_CLASS) } aria-current=[by_super_class.then_some("true")] { "by super-class" }
                    }
                }
                @if run.unread > 0 { p.soft { (run.unread) " results are still being read." } }
                (errors(&at, by, if by_super_class { &run.super_classes } else { &run.classes }))
            }
            div.two {
                section #losses data-refresh {
                    h2 { "Losses" }
                    (histogram(losses))
                }
                @if !run.stage_seconds.is_empty() {
                    section #stages data-refresh {
                        h2 { "Time by stage" }
                        (stages(run))
                    }
                }
            }
            section #extremes data-refresh {
                @for (title, rows, order) in [("Largest loss", worst, "&descending=true"), ("Smallest loss", best, "")] {
                    @if !rows.is_empty() {
                        h2 { (title) " " a.soft href={ (at) "/images?state=succeeded&sort=loss" (order) } { "all" } }
                        div.strip { @for row in rows { (tile(&at, row)) } }
                    }
                }
            }
            @if let Some(origin) = origin { (begun(origin)) }
        };
        self.page(&run.name, Place::Runs, &content)
    }

    fn actions(&self, run: &RunStatus, at: &str) -> Markup {
        let act = format!("{at}/act");
        let stays = matches!(run.state, RunState::Running | RunState::Paused);
        html! {
            @if self.role == Role::Operate && stays {
                div.row {
                    form method="post" action=(act) {
                        (self.key())
                        @if run.state == RunState::Running {
                            button name="state" value="paused" { "Pause" }
                        } @else {
                            button.main name="state" value="running" { "Go on" }
                        }
                        " "
                        button.danger name="state" value="cancelled" data-ask="Cancel this run for good?" { "Cancel" }
                    }
                    form.row method="post" action=(act) {
                        (self.key())
                        label { "Priority" input type="number" min=(i32::MIN) max=(i32::MAX) name="priority" value=(run.priority) required; }
                        button { "Set" }
                    }
                    form.row method="post" action=(act) {
                        (self.key())
                        label { "Jobs a minute (0: no limit)"
                            input type="number" min="0" step="any" name="per_minute" value=(run.per_minute.unwrap_or(0.0)) required; }
                        button { "Set" }
                    }
                }
            }
            @if self.role == Role::Operate && run.state == RunState::Finished {
                details.card data-key="redrive" {
                    summary { "Try images again" }
                    form.row method="post" action={ (at) "/redrive" } {
                        (self.key())
                        label { "Which (as class=Bag,loss>1.5; empty: all failures)" input name="where" size="40"; }
                        label { "Another seed (needed for results)" input type="number" min="0" name="seed"; }
                        button { "Try again" }
                    }
                }
            }
        }
    }

    /// Images of a run: the grid is filled by the page's script; without it, a table.
    pub fn images(
        &self,
        run: &RunStatus,
        query: &ImageQuery,
        page: &ImagePage,
        classes: &[String],
        super_classes: &[String],
        tuned: bool,
    ) -> Markup {
        let at = format!("/runs/{}", run.name);
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
        let content = html! {
            h1 { "Images of " a href=(at) { (name(&run.name)) } }
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
            p.soft role="status" { (page.total) " images" }
            div #grid data-from={ "/v1/runs/" (run.name) "/images" } data-run=(at) data-total=(page.total)
                data-query=(query_string(query)) data-tuned[tuned] {}
            noscript { (table(&at, &page.images)) }
        };
        self.page(&format!("Images of {}", run.name), Place::Runs, &content)
    }

    /// One image. `trace`: where its trace is looked at.
    pub fn image(
        &self,
        run: &RunStatus,
        row: &ImageRow,
        record: Option<&(ResultRecord, History)>,
        trace: Option<&str>,
        edits: bool,
    ) -> Markup {
        let at = format!("/runs/{}", run.name);
        let key = encoded(&row.image);
        let content = html! {
            p.soft { a href=(at) { (name(&run.name)) } " › " a href={ (at) "/images" } { "images" } }
            h1 { (name(&row.image)) }
            p { span class={ "badge " (state_name(row.state)) } { (state_name(row.state)) }
                @if let Some(class) = &row.class { " " (text(class)) } }
            @if let Some(reason) = row.reason {
                section.card { h2 { (spoken(reason)) } p.problem { (text(row.message.as_deref().unwrap_or_default())) }
                    @if self.role == Role::Operate && run.state == RunState::Finished {
                        form method="post" action={ (at) "/redrive" } {
                            (self.key())
                            input type="hidden" name="where" value=(only(&row.image));
                            button { "Try again" }
                        }
                    }
                }
            }
            @if let Some((record, history)) = record {
                (pictures(&at, &key, record))
                @if let Some(tuned) = &record.fine_tuned { (fine_tuned(tuned)) }
                @if edits {
                    h2 { "Edit" }
                    section.card #edit data-edit={ (at) "/edit" } data-image=(row.image) { p.soft { "The edit service is asked …" } }
                }
                (numbers(record))
                (curves(history, record.best))
                (provenance(record, trace))
            }
        };
        self.page(&row.image, Place::Runs, &content)
    }

    /// Workers.
    pub fn fleet(&self, workers: &[WorkerStatus], backlog: usize) -> Markup {
        let content = html! {
            h1 { "Fleet" }
            div #workers data-refresh {
                dl.tiles {
                    div { dt { "workers" } dd { (workers.len()) } }
                    div { dt { "images in their hands" } dd { (workers.iter().map(|w| u64::from(w.alive.images)).sum::<u64>()) } }
                    div { dt { "lane-steps/s" } dd { (format!("{:.0}", workers.iter().map(|w| w.alive.lane_steps_per_second).sum::<f64>())) } }
                    div { dt { "backlog" } dd { (backlog) } }
                }
                @if workers.is_empty() {
                    p.card { "No worker has been heard of in the last minute. " code { "basin-worker" } " starts one." }
                } @else {
                    div.scroll tabindex="0" role="region" aria-label="Workers" {
                        table #workers-table data-sortable {
                            (heads(&[("worker", false), ("does", false), ("devices", false), ("images", true), ("lane-steps/s", true),
                                ("lane-steps", true), ("heard of", true), ("version", false)]))
                            tbody {
                                @for worker in workers {
                                    tr {
                                        td { (name(&worker.name)) }
                                        td { @if worker.alive.images > 0 { "works for " a href={ "/runs/" (worker.alive.run) } { (name(&worker.alive.run)) } }
                                            @else { span.soft { "waits" } } }
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
        self.page("Fleet", Place::Fleet, &content)
    }

    /// Failures by kind: of one run, or of all.
    pub fn failures(&self, runs: &[(RunStatus, Vec<FailureGroup>)], one: bool) -> Markup {
        let content = html! {
            h1 { "Failures" @if let (true, Some((run, _))) = (one, runs.first()) { " of " a href={ "/runs/" (run.name) } { (name(&run.name)) } } }
            div #failures data-refresh {
                @if runs.iter().all(|(_, groups)| groups.is_empty()) { p.card { "No image has failed." } }
                @for (run, groups) in runs.iter().filter(|(_, groups)| !groups.is_empty()) {
                    @let at = format!("/runs/{}", run.name);
                    @if !one { h2 { a href={ (at) "/failures" } { (name(&run.name)) } " " (badge(run.state)) } }
                    @for group in groups { (self.group(run, &at, group)) }
                }
            }
        };
        self.page("Failures", if one { Place::Elsewhere } else { Place::Failures }, &content)
    }

    fn group(&self, run: &RunStatus, at: &str, group: &FailureGroup) -> Markup {
        let reason = group.reason.as_str();
        html! {
            section.card {
                div.run-head {
                    strong { (group.images) " × " (spoken(group.reason)) }
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
                @if self.role == Role::Operate {
                    @if run.state == RunState::Finished {
                        form.row method="post" action={ (at) "/redrive" } {
                            (self.key())
                            input type="hidden" name="where" value={ "reason=" (reason) };
                            label { "Seed (optional)" input type="number" min="0" name="seed"; }
                            button { "Try again" }
                        }
                    } @else if run.state == RunState::Cancelled {
                        p.soft { "The run is cancelled." }
                    } @else {
                        p.soft { "They can be tried again when the run has ended." }
                    }
                }
            }
        }
    }

    /// Asks for a token.
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

    /// Something went wrong.
    pub fn trouble(&self, what: &str) -> Markup {
        self.page(
            "Not done",
            Place::Outside,
            &html! { h1 { "Not done" } p.note.error { (text(what)) } p { a href="/" { "All runs" } } },
        )
    }
}

/// A stranger's text.
fn text(text: &str) -> PreEscaped<String> {
    PreEscaped(Text(text).to_string())
}

/// A stranger's text that may be cut where names are.
fn name(text: &str) -> PreEscaped<String> {
    PreEscaped(Name(text).to_string())
}

fn badge(state: RunState) -> Markup {
    let state = match state {
        RunState::Running => "running",
        RunState::Paused => "paused",
        RunState::Cancelled => "cancelled",
        RunState::Finished => "finished",
    };
    html! { span class={ "badge " (state) } data-f="state" { (state) } }
}

fn state_name(state: ImageState) -> &'static str {
    match state {
        ImageState::Succeeded => "succeeded",
        ImageState::Failed => "failed",
    }
}

fn spoken(reason: FailureReason) -> String {
    reason.as_str().replace('_', " ")
}

fn percent(part: usize, whole: usize) -> String {
    format!("{:.1} %", if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 })
}

fn optional(text: Option<String>) -> String {
    text.unwrap_or_else(|| "–".into())
}

fn real(value: Option<f64>) -> String {
    optional(value.filter(|v| v.is_finite()).map(|v| format!("{v:.4}")))
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

/// For a query of a URL.
pub fn encoded(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~/".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// What was [`encoded`]. Bytes that are no text become question marks.
pub fn decoded(text: &str) -> String {
    let escaped = |text: &str| u8::from_str_radix(text.strip_prefix('%')?.get(..2)?, 16).ok();
    let (mut bytes, mut rest) = (Vec::new(), text);
    while let Some(c) = rest.chars().next() {
        let byte = escaped(rest);
        bytes.extend(byte);
        if byte.is_none() {
            bytes.extend(c.to_string().bytes());
        }
        rest = &rest[if byte.is_some() { 3 } else { c.len_utf8() }..];
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The condition of a redrive that this image alone meets.
fn only(image: &str) -> String {
    let exact = image.replace('\\', "\\\\").replace('*', "\\*");
    format!("image={}", serde_json::to_string(&exact).expect("text serialises"))
}

/// What of a query the grid's requests repeat.
fn query_string(query: &ImageQuery) -> String {
    let fields = serde_json::to_value(query).expect("plain fields serialise");
    let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let wanted = |(name, value): &(&String, &serde_json::Value)| {
        !["offset", "limit"].contains(&name.as_str()) && !value.is_null() && value.as_str() != Some("")
    };
    let fields: Vec<_> = fields.as_object().into_iter().flatten().filter(wanted).collect();
    fields.iter().map(|(name, value)| format!("{name}={}", encoded(&text(value)))).collect::<Vec<_>>().join("&")
}

fn heads(columns: &[(&str, bool)]) -> Markup {
    html! { thead { tr { @for (label, number) in columns { th.num[*number] scope="col" { button type="button" { (label) } } } } } }
}

/// Bars of the classes' mean LPIPS with standard errors, as in Figure 9 of the paper.
fn lpips_bars(by: &str, classes: &[&ClassStatus]) -> String {
    let spread = |c: &ClassStatus| Spread { mean: c.lpips, standard_error: c.lpips_standard_error, ..Spread::over([]) };
    let bars: Vec<Bar> = classes.iter().map(|c| Bar { name: &c.class, images: c.images, spread: spread(c) }).collect();
    let mut page = String::new();
    write_bars(&mut page, by, &bars).expect("a String takes every write");
    page
}

/// Errors by class or super-class as in Figure 9 of the paper: means with their standard errors, the largest first.
fn errors(at: &str, by: &str, classes: &[ClassStatus]) -> Markup {
    let field = by.replace('-', "_");
    let mut sorted: Vec<&ClassStatus> = classes.iter().collect();
    sorted.sort_by(|a, b| b.lpips.unwrap_or(-1.0).total_cmp(&a.lpips.unwrap_or(-1.0)).then_with(|| a.class.cmp(&b.class)));
    html! {
        @if sorted.is_empty() {
            p.soft { "No image has a result yet." }
        } @else {
            (PreEscaped(lpips_bars(by, &sorted)))
            div.row { label { "Filter" input type="search" data-filters="class-table"; } }
            div.scroll tabindex="0" role="region" aria-label={ "Errors by " (by) } {
                table #class-table data-sortable {
                    (heads(&[(by, false), ("images", true), ("loss", true), ("L1", true), ("LPIPS", true), ("± standard error", true)]))
                    tbody {
                        @for class in sorted {
                            tr {
                                td { a href={ (at) "/images?sort=loss&descending=true&" (field) "=" (encoded(&class.class)) } { (text(&class.class)) } }
                                td.num { (class.images) }
                                td.num { (real(class.loss)) }
                                td.num { (real(class.l1)) }
                                td.num { (real(class.lpips)) }
                                td.num { (real(class.lpips_standard_error)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn histogram(losses: &Histogram) -> Markup {
    let from = |i: usize| losses.from + losses.width * i as f64;
    // One empty interval more, or the last bar is cut.
    let edges: Vec<f64> = (0..=losses.counts.len()).map(from).collect();
    let counts: Vec<Option<usize>> = losses.counts.iter().map(|n| Some(*n)).chain([None]).collect();
    let chart = json!({
        "title": "", "bars": true, "x": { "label": "loss", "values": edges }, "series": [{ "label": "images", "values": counts }]
    });
    html! {
        @if losses.counts.is_empty() {
            p.soft { "No image has a result yet." }
        } @else {
            div.chart data-chart=(chart) role="img" aria-label="How many images have which loss; the table below has the numbers" {}
            details data-key="losses" {
                summary { "As a table" }
                table {
                    thead { tr { th.num { "loss from" } th.num { "images" } } }
                    tbody { @for (i, count) in losses.counts.iter().enumerate() { tr { td.num { (format!("{:.4}", from(i))) } td.num { (count) } } } }
                }
            }
        }
    }
}

fn stages(run: &RunStatus) -> Markup {
    let sum: f64 = run.stage_seconds.values().sum();
    let order = ["fetch", "transform_search", "latent_search", "final_descent"];
    let mut in_order: Vec<(&String, &f64)> = run.stage_seconds.iter().collect();
    in_order.sort_by_key(|(stage, _)| order.iter().position(|known| known == stage).unwrap_or(order.len()));
    html! {
        table {
            thead { tr { th { "stage" } th.num { "seconds an image" } th.num { "share" } } }
            tbody {
                @for (stage, seconds) in in_order {
                    tr { td { (text(&stage.replace('_', " "))) } td.num { (format!("{seconds:.2}")) } td.num { (format!("{:.0} %", 100.0 * seconds / sum.max(f64::MIN_POSITIVE))) } }
                }
            }
        }
    }
}

fn tile(at: &str, row: &ImageRow) -> Markup {
    let key = encoded(&row.image);
    html! {
        a.tile href={ (at) "/image?key=" (key) } {
            div.four {
                @for item in ["target", "generated", "inverted"] {
                    img.pixels loading="lazy" alt=(item) src={ (at) "/picture?key=" (key) "&item=" (item) };
                }
            }
            div.name { (text(&row.image)) }
            div.numbers { (text(row.class.as_deref().unwrap_or_default())) " · loss " (real(row.loss)) " · LPIPS " (real(row.lpips)) }
        }
    }
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

fn pictures(at: &str, key: &str, record: &ResultRecord) -> Markup {
    // A point of the transformed picture shows what lies at scale × point + shift of the original; [-1, 1] is the whole of it.
    let seen = record.transform.as_ref().map(|t| {
        let [x, y] = [0, 1].map(|i| (50.0 * (1.0 + t.shift[i] - t.scale[i]), 100.0 * t.scale[i]));
        (x.0, y.0, x.1, y.1)
    });
    let items = [
        ("target", "target"),
        ("transformed", "target, transformed"),
        ("generated", "projection"),
        ("inverted", "projection, inverted"),
    ];
    let tuned = matches!(record.fine_tuned, Some(FineTuned::Kept { .. })).then_some(("tuned", "fine-tuned, inverted"));
    html! {
        div.pictures {
            @for (item, label) in items.into_iter().chain(tuned) {
                figure {
                    div.box {
                        img.pixels src={ (at) "/picture?key=" (key) "&item=" (item) } alt=(label);
                        @if let (Some((x, y, width, height)), "target") = (seen, item) {
                            svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-label="what the transform shows of the target" role="img" {
                                rect x=(x) y=(y) width=(width) height=(height) {}
                            }
                        }
                    }
                    figcaption { (label) }
                }
            }
        }
    }
}

fn fine_tuned(outcome: &FineTuned) -> Markup {
    html! {
        h2 { "Fine-tuning" }
        @match outcome {
            FineTuned::Dropped { why } => { p { "It was no help, and the projection stays: " (text(why)) "." } }
            FineTuned::Kept { steps, distances, lpips, psnr, codes } => {
                @let codes = codes.iter().map(|(code, layers)| format!("{code} in {layers} layers")).collect::<Vec<_>>().join(", ");
                @let fields = [
                    ("loss", real(Some(distances.loss))),
                    ("LPIPS as the loss weighs it", format!("{} before, {} after", real(Some(lpips.0)), real(Some(lpips.1)))),
                    ("L1, LPIPS in the box", format!("{}, {}", real(Some(distances.l1)), real(Some(distances.lpips)))),
                    ("steps", steps.to_string()),
                    ("weights stored as", codes),
                    ("lost by that", psnr.map_or("nothing".into(), |psnr| format!("{psnr:.1} dB signal-to-noise"))),
                ];
                div.scroll tabindex="0" role="region" aria-label="Fine-tuning" {
                    table.values { tbody { @for (label, value) in fields { tr { th scope="row" { (label) } td { (text(&value)) } } } } }
                }
            }
        }
    }
}

fn numbers(record: &ResultRecord) -> Markup {
    html! {
        h2 { "Seeds" }
        div.scroll tabindex="0" role="region" aria-label="Seeds" {
            table #seeds data-sortable {
                (heads(&[("seed", true), ("loss", true), ("inverted loss", true), ("L1", true), ("L2", true), ("LPIPS", true), ("answer", false)]))
                tbody {
                    @for (i, seed) in record.seeds.iter().enumerate() {
                        tr {
                            td.num { (i) }
                            @for value in [seed.loss, seed.inverted_loss, seed.l1, seed.l2, seed.lpips] { td.num { (real(Some(value))) } }
                            td { @if i == record.best { "best" } }
                        }
                    }
                }
            }
        }
    }
}

fn curves(history: &History, best: usize) -> Markup {
    let chart = |title: &str, unit: &str, curves: &[(String, &Vec<f64>)]| {
        let length = curves.iter().map(|(_, c)| c.len()).max().unwrap_or(0);
        let finite = |curve: &[f64]| (0..length).map(|i| curve.get(i).copied().filter(|v| v.is_finite())).collect::<Vec<_>>();
        let series: Vec<_> = curves.iter().map(|(label, c)| json!({ "label": label, "values": finite(c) })).collect();
        let chart =
            json!({ "title": title, "x": { "label": unit, "values": (0..length).collect::<Vec<_>>() }, "series": series });
        let shown: Vec<usize> = (0..length).step_by(length.div_ceil(50).max(1)).collect();
        html! {
            section {
                div.chart data-chart=(chart) role="img" aria-label={ (title) "; the table below has the numbers" } {}
                details data-key=(title) {
                    summary { "As a table" }
                    div.scroll tabindex="0" role="region" aria-label=(title) {
                        table {
                            thead { tr { th.num { (unit) } @for (label, _) in curves { th.num { (label) } } } }
                            tbody { @for i in shown { tr { td.num { (i) } @for (_, c) in curves { td.num { (real(c.get(i).copied())) } } } } }
                        }
                    }
                }
            }
        }
    };
    let descent: Vec<(String, &Vec<f64>)> = history.descent.iter().enumerate().map(|(i, c)| (format!("seed {i}"), c)).collect();
    let (first, rest): (Vec<_>, Vec<_>) = descent.into_iter().enumerate().partition(|(i, _)| *i == best);
    let descent: Vec<(String, &Vec<f64>)> = first.into_iter().chain(rest).map(|(_, c)| c).collect();
    html! {
        h2 { "Losses on the way" }
        div.two {
            @if !history.transform.is_empty() { (chart("Transform search", "generation", &[("best".into(), &history.transform)])) }
            @if !history.latent.is_empty() { (chart("Latent search", "generation", &[("best".into(), &history.latent)])) }
            @if history.descent.iter().any(|c| !c.is_empty()) { (chart("Final descent", "step", &descent)) }
            @if !history.fine_tune.is_empty() { (chart("Fine-tuning", "step", &[("loss and regulariser".into(), &history.fine_tune)])) }
        }
    }
}

/// Where something comes from: names and values, one of which may lead elsewhere; and the parameters.
fn comes_from(fields: &[(&str, String)], (linked, to): (&str, Option<&str>), params: &Params) -> Markup {
    html! {
        h2 { "Where it comes from" }
        div.scroll tabindex="0" role="region" aria-label="Where it comes from" {
            table.values {
                tbody {
                    @for (label, value) in fields {
                        tr {
                            th scope="row" { (label) }
                            td {
                                @match to.filter(|_| *label == linked) {
                                    Some(to) => { a href=(to) rel="noopener" { (text(value)) } }
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

fn begun(Origin { record, began }: &Origin) -> Markup {
    let limit = record.limit.map(|limit| format!(" (at most {limit} images)")).unwrap_or_default();
    let fields = [
        ("data set", format!("{}{limit}", record.dataset)),
        ("model", format!("{} ({})", record.model, record.model_digest)),
        ("profile", format!("{}, {} seeds an image", record.params.described(), record.params.seeds)),
        ("seed", record.seed.to_string()),
        ("began", optional(began.filter(|seconds| *seconds < YEAR_10000).map(utc))),
        ("basin", record.version.clone()),
    ];
    comes_from(&fields, ("", None), &record.params)
}

/// In seconds since 1970: no run begins later.
const YEAR_10000: u64 = 253_402_300_800;

/// A time in seconds since 1970, to the minute.
fn utc(seconds: u64) -> String {
    let (mut year, mut day) = (1970, seconds / 86_400);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 0;
    for days in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < days {
            break;
        }
        (day, month) = (day - days, month + 1);
    }
    format!("{year}-{:02}-{:02} {:02}:{:02} UTC", month + 1, day + 1, seconds / 3600 % 24, seconds / 60 % 60)
}

fn provenance(record: &ResultRecord, trace: Option<&str>) -> Markup {
    let transform = record
        .transform
        .as_ref()
        .map(|t| format!("scale {:.3} × {:.3}, shift {:.3}, {:.3}", t.scale[0], t.scale[1], t.shift[0], t.shift[1]));
    let bbox = record.bbox.map(|b| format!("{:.1}, {:.1}, {:.1} × {:.1} pixels", b.x, b.y, b.width, b.height));
    let fields = [
        ("class", format!("{} ({})", record.class_name, record.class)),
        ("box", bbox.unwrap_or_else(|| "whole image".into())),
        ("transform", transform.unwrap_or_else(|| "none".into())),
        ("model", format!("{} ({})", record.model.name, record.model.digest)),
        ("seed", record.seed.to_string()),
        ("lane-steps", record.lane_steps.to_string()),
        ("device time", format!("{:.1} s", record.seconds)),
        ("identity of the image", record.identity.clone()),
        ("job", record.job.to_string()),
        ("attempt", record.attempt.clone()),
        ("trace", record.trace.clone().unwrap_or_else(|| "–".into())),
        ("basin", record.version.clone()),
    ];
    comes_from(&fields, ("trace", trace), &record.params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        // As `date -u -d @…` says.
        for (seconds, wanted) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_399, "2000-02-28 23:59 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59 UTC"),
            (1_772_323_200, "2026-03-01 00:00 UTC"),
            (4_107_542_399, "2100-02-28 23:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ] {
            assert_eq!(utc(seconds), wanted);
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        for text in ["", "a b", "100 %", "ä/%41\u{202e}\n\"<b>", "%", "%4"] {
            let there = encoded(text);
            assert!(there.is_ascii() && !there.contains(['<', ' ', '"', ';', ',']), "{there}");
            assert_eq!(decoded(&there), text);
        }
        assert_eq!([decoded("%"), decoded("%4"), decoded("%zz%41"), decoded("%ff")], ["%", "%4", "%zzA", "\u{fffd}"]);
    }
}
