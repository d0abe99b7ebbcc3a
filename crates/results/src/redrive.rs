//! The conditions that select the images of a redrive. Pure.
//!
//! A failure can be retried as it is, since its cause may be fixed. A result is projected again only with another seed, since the same
//! job gives the same result (`docs/src/adr/0007-redrive.md`).

use std::cmp::Ordering::{self, Equal, Greater, Less};

use proto::{Failure, FailureReason, ResultRecord};

use crate::run::{Outcome, class_name, image};
use crate::summary::SeedMetric;

/// The images to project again, and their seed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Redrive {
    /// Selects images that meet one of these; empty selects all failures.
    wheres: Vec<Where>,
    seed: Option<u64>,
}

/// Conditions, all of which must hold.
#[derive(Clone, Debug, PartialEq)]
struct Where {
    text: String,
    conditions: Vec<Condition>,
}

/// A value of an image, and the orderings of it and the condition's own that are wanted.
#[derive(Clone, Debug, PartialEq)]
struct Condition {
    value: Value,
    wanted: &'static [Ordering],
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Class(String),
    Reason(FailureReason),
    Image(String),
    Error(SeedMetric, f64),
}

const EQUAL: &[Ordering] = &[Equal];
const OTHER: &[Ordering] = &[Less, Greater];
/// The longer ones first.
const OPERATORS: [(&str, &[Ordering]); 6] =
    [("!=", OTHER), ("<=", &[Less, Equal]), (">=", &[Greater, Equal]), ("=", EQUAL), ("<", &[Less]), (">", &[Greater])];

impl Redrive {
    /// All failures, with the run's seed.
    pub fn failures() -> Redrive {
        Redrive::default()
    }

    /// Images that meet one of `wheres`, each of which is conditions joined by commas; with `seed` instead of the run's. Without a seed
    /// only failures are selected. An error is a sentence for people.
    pub fn parse(wheres: &[String], seed: Option<u64>) -> Result<Redrive, String> {
        let parse = |text: &String| -> Result<Where, String> {
            let conditions = split(text).into_iter().map(Condition::parse).collect::<Result<_, _>>()?;
            Ok(Where { text: text.clone(), conditions })
        };
        let wheres = wheres.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        for Where { text, conditions } in &wheres {
            let errors = conditions.iter().any(|c| matches!(c.value, Value::Error(..)));
            if errors && conditions.iter().any(|c| matches!(c.value, Value::Reason(..))) {
                return Err(format!(
                    "no image can meet {text:?}: failures have a reason, and only results have a loss or an error"
                ));
            }
            if errors && seed.is_none() {
                return Err(format!(
                    "{text:?} selects results, and the same job gives the same result: name another seed (--seed N)"
                ));
            }
        }
        if seed.is_some() && wheres.is_empty() {
            return Err("--seed needs --where: select the images, or submit another run for all of them".into());
        }
        Ok(Redrive { wheres, seed })
    }

    pub fn seed(&self) -> Option<u64> {
        self.seed
    }

    /// The conditions, as they were written.
    pub fn wheres(&self) -> Vec<String> {
        self.wheres.iter().map(|w| w.text.clone()).collect()
    }

    pub fn wants_failure(&self, failure: &Failure) -> bool {
        self.wheres.is_empty() || self.wants(Err(failure))
    }

    pub fn wants_result(&self, record: &ResultRecord) -> bool {
        self.seed.is_some() && self.wants(Ok(record))
    }

    fn wants(&self, outcome: Outcome) -> bool {
        self.wheres.iter().any(|w| w.conditions.iter().all(|condition| condition.holds(outcome)))
    }
}

impl Condition {
    fn parse(text: &str) -> Result<Condition, String> {
        let text = text.trim();
        let shape = || format!("{text:?} is not a condition such as class=Bag or loss>1.5");
        let name = text.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
        let (field, rest) = text.split_at(name);
        let rest = rest.trim_start();
        let (sign, wanted) = *OPERATORS.iter().find(|(sign, _)| rest.starts_with(sign)).ok_or_else(shape)?;
        let value = unquote(rest[sign.len()..].trim()).ok_or_else(shape)?;
        if let Some(metric) = SeedMetric::ALL.into_iter().find(|m| m.as_str() == field) {
            let number = value.parse().ok().filter(|v: &f64| v.is_finite());
            let number = number.ok_or_else(|| format!("{text:?}: {value:?} is not a number"))?;
            return Ok(Condition { value: Value::Error(metric, number), wanted });
        }
        let compared = wanted == EQUAL || wanted == OTHER;
        let value = match field {
            "class" | "image" | "reason" if !compared => {
                return Err(format!("{text:?}: {field} can be compared with = and != only"));
            }
            "class" => Value::Class(value),
            "image" => Value::Image(value),
            "reason" => Value::Reason(serde_json::from_value(value.into()).map_err(|error| format!("{text:?}: {error}"))?),
            _ => {
                let known = SeedMetric::ALL.map(SeedMetric::as_str).join(", ");
                return Err(format!("{text:?}: unknown field {field:?}; the fields are class, image, reason, {known}"));
            }
        };
        Ok(Condition { value, wanted })
    }

    fn holds(&self, outcome: Outcome) -> bool {
        let equal = match (&self.value, outcome) {
            // Class names are compared as those of data sets.
            (Value::Class(class), _) => class.eq_ignore_ascii_case(class_name(outcome).unwrap_or_default()),
            (Value::Image(pattern), _) => fits(pattern, image(outcome)),
            (Value::Reason(reason), Err(failure)) => failure.reason == *reason,
            (Value::Error(metric, number), Ok(record)) => {
                let ordering = metric.best_seed(record).and_then(|value| value.partial_cmp(number));
                return ordering.is_some_and(|ordering| self.wanted.contains(&ordering));
            }
            (Value::Reason(_), Ok(_)) | (Value::Error(..), Err(_)) => return false,
        };
        equal == (self.wanted == EQUAL)
    }
}

/// Splits at the commas outside of quotes.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (i, c) in text.char_indices() {
        match c {
            '"' if !escaped => quoted = !quoted,
            ',' if !quoted => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
        escaped = c == '\\' && !escaped;
    }
    parts.push(&text[start..]);
    parts
}

/// A value in quotes is a JSON string, any other stands for itself; `None` if it is empty or the quotes do not close.
fn unquote(value: &str) -> Option<String> {
    if value.contains('"') { serde_json::from_str(value).ok() } else { Some(value.to_owned()).filter(|v| !v.is_empty()) }
}

/// Whether `text` matches `pattern`, in which `*` stands for anything, `\*` for a star and `\\` for a backslash.
fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = vec![String::new()];
    let mut rest = pattern.chars().peekable();
    while let Some(c) = rest.next() {
        let part = parts.last_mut().expect("there is one");
        match c {
            '*' => parts.push(String::new()),
            '\\' => part.push(rest.next_if(|c| ['*', '\\'].contains(c)).unwrap_or(c)),
            c => part.push(c),
        }
    }
    let [first, middle @ .., last] = &parts[..] else { return parts[0] == text };
    let Some(mut text) = text.strip_prefix(first.as_str()) else { return false };
    for part in middle {
        match text.find(part) {
            Some(at) => text = &text[at + part.len()..],
            None => return false,
        }
    }
    text.ends_with(last.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::tests::{failure, record, seed};

    fn parse(wheres: &[&str], seed: Option<u64>) -> Result<Redrive, String> {
        Redrive::parse(&wheres.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>(), seed)
    }

    fn bag(image: &str, loss: f64) -> ResultRecord {
        record(image, 0, "Bag, small", 0, vec![seed(loss, 0.5, 0.25)])
    }

    #[test]
    fn every_condition_of_one_where_must_hold() {
        let wants = |wheres: &[&str]| {
            let redrive = parse(wheres, Some(1)).expect("conditions");
            let results = [bag("a/1.png", 1.0), bag("b/2.png", 2.0), bag("b/3.jpg", f64::NAN)];
            results.iter().map(|r| redrive.wants_result(r)).collect::<Vec<_>>()
        };
        assert_eq!(wants(&["loss>1"]), [false, true, false]);
        assert_eq!(wants(&["loss >= 1", "image=b/3.jpg"]), [true, true, true]);
        assert_eq!(wants(&["image=b/*,loss!=1"]), [false, true, false]);
        assert_eq!(wants(&[r#"class="bag, SMALL",image!=*.png"#]), [false, false, true]);
        assert_eq!(wants(&["lpips<=0.25,l1<0.5"]), [false; 3]);
        assert_eq!(wants(&["reason=diverged"]), [false; 3]);
        assert_eq!(wants(&["image=*/*.p*g"]), [true, true, false]);
        assert_eq!(wants(&["image=b**.jpg"]), [false, false, true]);
    }

    #[test]
    fn a_star_and_a_backslash_can_be_meant_as_they_are() {
        let meant = |pattern: &str| ["a*.png", "ab.png", r"a\.png", r"a\*.png"].map(|image| fits(pattern, image));
        assert_eq!(meant("a*.png"), [true; 4]);
        assert_eq!(meant(r"a\*.png"), [true, false, false, false]);
        assert_eq!([meant(r"a\\.png"), meant(r"a\.png")], [[false, false, true, false]; 2]);
        assert_eq!(meant(r"a\\\*.png"), [false, false, false, true]);
        assert_eq!(meant(r"a\\*"), [false, false, true, true]);
    }

    #[test]
    fn a_failure_needs_no_seed_and_a_result_does() {
        let mut odd = failure("a.png", FailureReason::Diverged, "m");
        assert!(parse(&[], None).expect("all failures").wants_failure(&odd));
        assert!(parse(&["reason=diverged"], None).expect("failures").wants_failure(&odd));
        assert!(!parse(&["reason!=diverged"], None).expect("failures").wants_failure(&odd));
        assert!(!parse(&["reason=diverged,class=Bag"], None).expect("failures").wants_failure(&odd));
        odd.class_name = Some("BAG".into());
        assert!(parse(&["reason=diverged,class=Bag"], None).expect("failures").wants_failure(&odd));
        assert!(!parse(&["image=a*"], None).expect("failures").wants_result(&bag("a.png", 1.0)));
        assert!(!parse(&["loss>0"], Some(1)).expect("results").wants_failure(&odd));
    }

    #[test]
    fn conditions_that_cannot_hold_are_refused_with_the_reason() {
        let every: [(&[&str], Option<u64>, &str); 10] = [
            (&["loss>1"], None, "--seed"),
            (&[], Some(1), "--where"),
            (&["loss>1,reason=diverged"], Some(1), "failures have a reason"),
            (&["reason=sad"], None, "diverged"),
            (&["size>3"], Some(1), "inverted_loss"),
            (&["loss>much"], Some(1), "not a number"),
            (&["class<Bag"], None, "= and != only"),
            (&["class="], None, "not a condition"),
            (&["class=\"Bag"], None, "not a condition"),
            (&["class=Bag\""], None, "not a condition"),
        ];
        for (wheres, seed, why) in every {
            let refusal = parse(wheres, seed).expect_err("is refused");
            assert!(refusal.contains(why), "{refusal}");
        }
    }
}
