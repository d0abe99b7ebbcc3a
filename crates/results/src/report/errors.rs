//! Errors by class, by super-class and over all images.

use std::collections::BTreeMap;

use maud::{Markup, html};

use crate::chart::{self, Bar};
use crate::format::{count, counted, decimal};
use crate::html::Untrusted;
use crate::summary::{SeedMetric, Spread, Summary};

const CLASS_METRICS: [SeedMetric; 4] = [SeedMetric::Lpips, SeedMetric::L1, SeedMetric::L2, SeedMetric::Loss];

struct Group<'a> {
    name: &'a str,
    images: u64,
    error: &'a BTreeMap<SeedMetric, Spread>,
}

impl Group<'_> {
    fn spread(&self, metric: SeedMetric) -> Spread {
        self.error.get(&metric).copied().unwrap_or_default()
    }
}

pub fn by_class(summary: &Summary) -> Markup {
    let classes = summary.classes.iter().map(|c| Group { name: &c.name, images: c.images, error: &c.error });
    groups(("class", "Class"), classes.collect())
}

/// Super-classes without images are left out.
pub fn by_super_class(summary: &Summary) -> Markup {
    let super_classes = summary.super_classes.iter().filter(|s| s.images > 0);
    let super_classes = super_classes.map(|s| Group { name: &s.name, images: s.images, error: &s.error });
    groups(("super-class", "Super-class"), super_classes.collect())
}

/// `by`: what the groups are, also with a capital. Groups with equal errors keep their order.
fn groups((by, title): (&str, &str), mut groups: Vec<Group>) -> Markup {
    if groups.is_empty() {
        return html! {};
    }
    let mean = |g: &Group| g.spread(SeedMetric::Lpips).mean.unwrap_or(f64::INFINITY);
    groups.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
    let bars: Vec<Bar> =
        groups.iter().map(|g| Bar { name: g.name, images: g.images, spread: g.spread(SeedMetric::Lpips) }).collect();
    let id = format!("{by}es");
    html! {
        section id=(id) aria-labelledby={ (id) "-title" } {
            h2 id={ (id) "-title" } { "Error by " (by) }
            p.lead { "Mean LPIPS of the best seed with its standard error, hardest " (by) " first." }
            (chart::bars(by, &bars))
            details {
                summary { "The same as a table" }
                div.scroll tabindex="0" role="region" aria-label={ "Error by " (by) } { (table(title, &groups)) }
            }
        }
    }
}

fn table(title: &str, groups: &[Group]) -> Markup {
    html! {
        table.numbers {
            thead {
                tr {
                    th scope="col" { (title) }
                    th scope="col" { "Images" }
                    @for metric in CLASS_METRICS {
                        th scope="col" { (metric.label()) }
                        th scope="col" { "±" }
                    }
                }
            }
            tbody {
                @for group in groups {
                    tr {
                        th scope="row" { bdi { (Untrusted(group.name)) } }
                        td { (count(group.images)) }
                        @for spread in CLASS_METRICS.map(|metric| group.spread(metric)) {
                            td { (decimal(spread.mean, 3)) }
                            td.quiet { (decimal(spread.standard_error, 3)) }
                        }
                    }
                }
            }
        }
    }
}

/// As the paper's Table 1: the average and the best of the seeds, and before both the best seed, which is the answer.
pub fn overall(summary: &Summary) -> Markup {
    html! {
        section #errors aria-labelledby="errors-title" {
            h2 #errors-title { "Error over all images" }
            p.lead {
                "For each image its seeds give one number (columns); shown is its mean over all images. The search began with "
                (counted(summary.run.params.seeds.into(), "seed")) "; those that were left at its end count."
            }
            table.numbers {
                thead {
                    tr {
                        td {}
                        th scope="col" { "Best seed" }
                        th.quiet scope="col" { "±" }
                        th scope="col" { "Median" }
                        th scope="col" { "Average of seeds" }
                        th scope="col" { "Best of seeds" }
                    }
                }
                tbody {
                    @for (metric, error) in &summary.overall {
                        tr {
                            th scope="row" { (metric.label()) }
                            td { (decimal(error.best_seed.mean, 3)) }
                            td.quiet { (decimal(error.best_seed.standard_error, 3)) }
                            td { (decimal(error.best_seed.median, 3)) }
                            td { (decimal(error.seeds_mean.mean, 3)) }
                            td { (decimal(error.seeds_min.mean, 3)) }
                        }
                    }
                }
            }
            p.remark {
                "The best seed is the one with the smallest loss; beside it "
                span.wide { "the standard error (±) and " }
                "the median. Best of seeds is the minimum of each metric on its own. Loss is what the search made small, and all \
                 other numbers are measured after inverting the transform, inside the object’s box. Lower is better."
            }
        }
    }
}
