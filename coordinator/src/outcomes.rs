//! Finished images of a run for people: filtered, sorted, a page at a time. Pure.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use proto::{Errors, FailureReason};
use serde::{Deserialize, Serialize};

use client::api::{FailureGroup, ImagePage, ImageQuery, ImageRow, ImageSort, ImageState};
use dataset::SharedStr;
use results::cell::{guarded, plain};
use results::summary::SuperClasses;

#[derive(Clone, Debug, PartialEq)]
pub struct Succeeded {
    /// Key in the data set.
    pub image: SharedStr,
    /// Index into the model's classes.
    pub class: u32,
    pub errors: Errors,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Failed {
    pub reason: FailureReason,
    pub message: Box<str>,
    pub class: Option<Box<str>>,
}

#[derive(Clone, Copy)]
enum Finished<'a> {
    Succeeded(&'a Succeeded),
    /// With its key in the data set.
    Failed(&'a str, &'a Failed),
}

impl<'a> Finished<'a> {
    fn image(self) -> &'a str {
        match self {
            Finished::Succeeded(result) => &result.image,
            Finished::Failed(image, _) => image,
        }
    }
}

/// All finished images of a run.
#[derive(Clone, Debug, Default)]
pub struct Outcomes<'a> {
    pub results: Vec<&'a Succeeded>,
    pub failures: Vec<(&'a str, &'a Failed)>,
    /// Names of the model's classes.
    pub classes: &'a [String],
    /// Super-class of each class; empty: the model has none.
    pub super_classes: &'a [String],
}

/// Results by intervals of the loss, which have one width.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Histogram {
    /// Start of the first interval.
    pub from: f64,
    pub width: f64,
    /// Results in each interval; the last counts all that are larger, too.
    pub counts: Vec<usize>,
}

/// The images of a closed run, from its table.
#[derive(Clone, Debug, Default)]
pub struct Table {
    results: Vec<Succeeded>,
    failures: Vec<(Box<str>, Failed)>,
    classes: Vec<String>,
    super_classes: Vec<String>,
}

impl Table {
    /// Reads `results.csv`, which does not have the super-classes.
    pub fn read(csv: &[u8], super_classes: &SuperClasses) -> Result<Table, csv::Error> {
        #[derive(Deserialize)]
        struct Line {
            image: Box<str>,
            state: ImageState,
            class_name: Option<String>,
            loss: Option<f64>,
            l1: Option<f64>,
            lpips: Option<f64>,
            failure_reason: Option<FailureReason>,
            failure_message: Option<Box<str>>,
        }
        let mut table = Table::default();
        let (mut images, mut ends, mut results) = (String::new(), Vec::new(), Vec::new());
        let mut known: HashMap<String, u32> = HashMap::new();
        let mut index = |table: &mut Table, name: String| {
            *known.entry(name).or_insert_with_key(|name| {
                table.classes.push(name.clone());
                table.classes.len() as u32 - 1
            })
        };
        for line in csv::Reader::from_reader(csv).into_deserialize() {
            let line: Line = line?;
            let class_name = line.class_name.map(|name| plain(&name).to_owned());
            match line.state {
                ImageState::Succeeded => {
                    let class = index(&mut table, class_name.unwrap_or_default());
                    let number = |value: Option<f64>| value.unwrap_or(f64::NAN);
                    let errors = Errors { loss: number(line.loss), l1: number(line.l1), lpips: number(line.lpips) };
                    images.push_str(plain(&line.image));
                    ends.push(images.len());
                    results.push((class, errors));
                }
                ImageState::Failed => {
                    let reason = line.failure_reason.unwrap_or(FailureReason::BadJob);
                    let message = plain(&line.failure_message.unwrap_or_default()).into();
                    if let Some(name) = &class_name {
                        index(&mut table, name.clone());
                    }
                    let class = class_name.map(Into::into);
                    table.failures.push((plain(&line.image).into(), Failed { reason, message, class }));
                }
            }
        }
        if !super_classes.is_empty() {
            let super_class = |name| super_classes.get(name).cloned().unwrap_or_default();
            table.super_classes = table.classes.iter().map(super_class).collect();
        }
        let images = SharedStr::cut(images, ends).into_iter();
        table.results = images.zip(results).map(|(image, (class, errors))| Succeeded { image, class, errors }).collect();
        Ok(table)
    }

    pub fn outcomes(&self) -> Outcomes<'_> {
        let failures = self.failures.iter().map(|(image, failed)| (&**image, failed)).collect();
        let results = self.results.iter().collect();
        Outcomes { results, failures, classes: &self.classes, super_classes: &self.super_classes }
    }
}

impl<'a> Outcomes<'a> {
    /// Classes and super-classes of the images with a result, by name.
    pub fn class_names(&self) -> (Vec<String>, Vec<String>) {
        let mut there = vec![false; self.classes.len()];
        for result in &self.results {
            if let Some(there) = there.get_mut(result.class as usize) {
                *there = true;
            }
        }
        let names = |all: &[String]| -> Vec<String> {
            let names = all.iter().zip(&there).filter(|(name, there)| **there && !name.is_empty());
            names.map(|(name, _)| name).collect::<BTreeSet<_>>().into_iter().cloned().collect()
        };
        (names(self.classes), names(self.super_classes))
    }

    /// As CSV, with fewer columns than `results.csv` has at the end of the run.
    pub fn csv(&self) -> Vec<u8> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        let written = "a Vec takes every write";
        writer
            .write_record(["image", "state", "class_name", "loss", "l1", "lpips", "failure_reason", "failure_message"])
            .expect(written);
        let all = ImageQuery { limit: usize::MAX, ..ImageQuery::default() };
        for row in self.rows(&all).1 {
            let number = |value: Option<f64>| value.map_or_else(String::new, |v| format!("{v:?}"));
            let (loss, l1, lpips) = (number(row.loss), number(row.l1), number(row.lpips));
            let reason = row.reason.map_or("", |reason| reason.as_str());
            let class = row.class.unwrap_or_default();
            writer
                .write_record([
                    &*guarded(&row.image),
                    row.state.as_str(),
                    &guarded(&class),
                    &loss,
                    &l1,
                    &lpips,
                    reason,
                    &guarded(&row.message.unwrap_or_default()),
                ])
                .expect(written);
        }
        writer.into_inner().expect(written)
    }

    pub fn page(&self, query: &ImageQuery) -> ImagePage {
        let limit = if query.limit == 0 { ImageQuery::LIMIT } else { query.limit.min(ImageQuery::MOST) };
        let (total, images) = self.rows(&ImageQuery { limit, ..query.clone() });
        ImagePage { total, images }
    }

    /// How many images match `query`, and the page that it asks for.
    fn rows(&self, query: &ImageQuery) -> (usize, Vec<ImageRow>) {
        let holds = |text: &str, part: &str| part.is_empty() || text.to_lowercase().contains(&part.to_lowercase());
        let is = |name: &str, wanted: &str| wanted.is_empty() || name.eq_ignore_ascii_case(wanted);
        let super_class = |class: usize| self.super_classes.get(class).map_or("", String::as_str);
        let of_class = |(i, class): (usize, &String)| is(class, &query.class) && is(super_class(i), &query.super_class);
        let classes: Vec<bool> = self.classes.iter().enumerate().map(of_class).collect();
        let any_class = query.class.is_empty() && query.super_class.is_empty();
        let names: HashSet<&str> =
            self.classes.iter().zip(&classes).filter(|(_, of)| **of).map(|(name, _)| name.as_str()).collect();
        // A failure may have a class that the model does not have.
        let of_name = |name: &str| names.contains(name) || query.super_class.is_empty() && is(name, &query.class);
        let wanted = |r: &&Succeeded| {
            query.state != Some(ImageState::Failed)
                && query.reason.is_none()
                && classes.get(r.class as usize).copied().unwrap_or(any_class)
                && query.min_loss.is_none_or(|least| r.errors.loss >= least)
                && query.max_loss.is_none_or(|most| r.errors.loss <= most)
                && holds(&r.image, &query.image)
        };
        let by_loss = query.min_loss.is_some() || query.max_loss.is_some();
        let failed = |(image, failed): &(&str, &Failed)| {
            query.state != Some(ImageState::Succeeded)
                && !by_loss
                && query.reason.is_none_or(|reason| failed.reason == reason)
                && of_name(failed.class.as_deref().unwrap_or_default())
                && holds(image, &query.image)
        };
        let results = self.results.iter().copied().filter(wanted).map(Finished::Succeeded);
        let failures = self.failures.iter().copied().filter(failed).map(|(image, failed)| Finished::Failed(image, failed));
        let mut images: Vec<Finished> = results.chain(failures).collect();
        images.sort_unstable_by(|a, b| self.order(query, *a, *b));
        let total = images.len();
        (total, images.into_iter().skip(query.offset).take(query.limit).map(|image| self.row(image)).collect())
    }

    /// The order of two images. By an error, results without the number come after the others, and failures last.
    fn order(&self, query: &ImageQuery, a: Finished<'a>, b: Finished<'a>) -> Ordering {
        let directed = |order: Ordering| if query.descending { order.reverse() } else { order };
        let by_image = || a.image().cmp(b.image());
        let class = |finished| self.class(finished).unwrap_or_default();
        let by_error = |error: fn(&Errors) -> f64| {
            let key = |finished| match finished {
                Finished::Succeeded(result) => (u8::from(!error(&result.errors).is_finite()), error(&result.errors)),
                Finished::Failed(..) => (2, f64::NAN),
            };
            let ((rank, value), (other_rank, other)) = (key(a), key(b));
            rank.cmp(&other_rank).then(directed(value.total_cmp(&other))).then_with(by_image)
        };
        match query.sort {
            ImageSort::Image => directed(by_image()),
            ImageSort::Class => directed(class(a).cmp(&class(b)).then_with(by_image)),
            ImageSort::Loss => by_error(|errors| errors.loss),
            ImageSort::L1 => by_error(|errors| errors.l1),
            ImageSort::Lpips => by_error(|errors| errors.lpips),
        }
    }

    pub fn image(&self, image: &str) -> Option<ImageRow> {
        let results = self.results.iter().copied().map(Finished::Succeeded);
        let failures = self.failures.iter().copied().map(|(image, failed)| Finished::Failed(image, failed));
        results.chain(failures).find(|finished| finished.image() == image).map(|finished| self.row(finished))
    }

    /// Failures by reason, the most frequent first, with up to `examples` images each.
    pub fn failure_groups(&self, examples: usize) -> Vec<FailureGroup> {
        let mut groups: BTreeMap<FailureReason, FailureGroup> = BTreeMap::new();
        for &(image, failed) in &self.failures {
            let empty = FailureGroup { reason: failed.reason, images: 0, examples: vec![] };
            let group = groups.entry(failed.reason).or_insert(empty);
            group.images += 1;
            if group.examples.len() < examples {
                group.examples.push(self.row(Finished::Failed(image, failed)));
            }
        }
        let mut groups: Vec<FailureGroup> = groups.into_values().collect();
        groups.sort_by(|a, b| b.images.cmp(&a.images).then(a.reason.as_str().cmp(b.reason.as_str())));
        groups
    }

    /// The losses in `intervals` of one width, from the smallest to the 99th percentile.
    pub fn losses(&self, intervals: usize) -> Histogram {
        let mut losses: Vec<f64> = self.results.iter().map(|r| r.errors.loss).filter(|v| v.is_finite()).collect();
        losses.sort_unstable_by(f64::total_cmp);
        let (Some(&from), Some(&last)) = (losses.first(), losses.get((losses.len() * 99 / 100).min(losses.len().max(1) - 1)))
        else {
            return Histogram::default();
        };
        let width = ((last - from) / intervals as f64).max(f64::MIN_POSITIVE);
        let mut counts = vec![0; intervals];
        for loss in losses {
            counts[(((loss - from) / width) as usize).min(intervals - 1)] += 1;
        }
        Histogram { from, width, counts }
    }

    fn class(&self, finished: Finished<'a>) -> Option<Cow<'a, str>> {
        match finished {
            Finished::Succeeded(Succeeded { class, .. }) => {
                // A record or a message could name any class.
                Some(self.classes.get(*class as usize).map_or_else(|| class.to_string().into(), |name| name.as_str().into()))
            }
            Finished::Failed(_, failed) => failed.class.as_deref().map(Cow::from),
        }
    }

    fn row(&self, finished: Finished<'a>) -> ImageRow {
        let (state, errors, failed) = match finished {
            Finished::Succeeded(result) => (ImageState::Succeeded, Some(result.errors), None),
            Finished::Failed(_, failed) => (ImageState::Failed, None, Some(failed)),
        };
        let number = |error: fn(Errors) -> f64| errors.map(error).filter(|v| v.is_finite());
        ImageRow {
            image: finished.image().to_owned(),
            class: self.class(finished).map(Cow::into_owned),
            state,
            loss: number(|errors| errors.loss),
            l1: number(|errors| errors.l1),
            lpips: number(|errors| errors.lpips),
            reason: failed.map(|failed| failed.reason),
            message: failed.map(|failed| failed.message.to_string()),
        }
    }
}
