//! What the run is, and its main numbers.

use maud::{Markup, html};

use crate::format::{count, counted, decimal, exact_duration, percent};
use crate::html::{Untrusted, UntrustedLines, UntrustedName};
use crate::summary::{Counts, SeedMetric, Spread, Summary};

pub fn header(summary: &Summary) -> Markup {
    let run = &summary.run;
    let digest: String = run.model.digest.chars().take(12).collect();
    let params = serde_json::to_string_pretty(&run.params).expect("plain structs with string keys serialise");
    let (images, left) = (summary.images.total, summary.images.left());
    html! {
        header {
            p.kicker { "basin · projection report" }
            h1 { (UntrustedName(&run.name)) }
            @if left > 0 { p.unfinished { "Unfinished: " (count(images)) " of " (counted(images + left, "image")) } }
            dl.provenance {
                div {
                    dt { "Model" }
                    dd {
                        (Untrusted(&run.model.name)) " "
                        span.quiet {
                            (run.model.resolution) " × " (run.model.resolution) ", "
                            code title=(Untrusted(&run.model.digest)) { (Untrusted(&digest)) }
                        }
                    }
                }
                div { dt { "Data set" } dd { (Untrusted(&run.dataset)) } }
                div {
                    dt { "Profile" }
                    dd { (Untrusted(&run.params.described())) ", " (counted(run.params.seeds.into(), "seed")) " per image" }
                }
                div { dt { "Run seed" } dd { (run.seed) } }
                div { dt { "Version" } dd { "basin " (Untrusted(&run.version)) } }
            }
            details { summary { "All parameters" } pre tabindex="0" { (UntrustedLines(&params)) } }
        }
    }
}

pub fn tiles(summary: &Summary) -> Markup {
    let images = summary.images;
    let spread = |metric: SeedMetric| summary.overall.get(&metric).map(|m| m.best_seed).unwrap_or_default();
    let (lpips, l1, loss) = (spread(SeedMetric::Lpips), spread(SeedMetric::L1), spread(SeedMetric::Loss));
    let mean = |spread: Spread| {
        let error = spread.standard_error.map(|error| format!("± {} std. error", decimal(Some(error), 3)));
        (decimal(spread.mean, 3), error.unwrap_or("no standard error".into()))
    };
    let all = images.total + images.left();
    let tile = |label: &str, (value, note): (String, String), alarm: bool| {
        html! {
            div class=[alarm.then_some("alarm")] {
                dt { (label) }
                dd.value { (value) }
                dd.note { (note) }
            }
        }
    };
    html! {
        dl.tiles {
            (tile("Succeeded", (count(images.succeeded), format!("of {}", counted(all, "image"))), false))
            (tile("Failed", (count(images.failed), share_of_failures(images)), images.failed > 0))
            (tile("Mean LPIPS", mean(lpips), false))
            (tile("Mean L1", mean(l1), false))
            (tile("Median loss", (decimal(loss.median, 3), format!("mean {}", decimal(loss.mean, 3))), false))
            (tile("Device time", (exact_duration(summary.seconds), counted(summary.lane_steps, "lane-step")), false))
        }
    }
}

fn share_of_failures(images: Counts) -> String {
    match (images.total, images.left()) {
        (0, _) => "no images".into(),
        (total, 0) => format!("{} of all", percent(images.failed, total)),
        (total, _) => format!("{} so far", percent(images.failed, total)),
    }
}

#[cfg(test)]
mod tests {
    use proto::Params;

    #[test]
    fn changed_parameters_of_a_profile_say_so() {
        let changed = Params { seeds: 3, ..Params::fast() };
        let own = Params { profile: "mine".into(), ..Params::fast() };
        assert_eq!([&Params::fast(), &changed, &own].map(Params::described), ["fast", "fast (changed)", "mine"]);
    }
}
