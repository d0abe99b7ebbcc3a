//! Records of measurements and their pages. A record is written to `<folder>/<name>.json` with the machine that it was measured on, and its
//! page to `<folder>/<name>.md`. The pages are the templates in `bench/pages/`.

use std::fmt::Display;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior, Value as Values, context};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::process::kilobytes;

/// Characters of a line of prose.
const WIDTH: usize = 140;

/// The figures of one measurement.
pub trait Record: Serialize {
    /// File name without its end.
    const NAME: &'static str;
    /// The page, a template: it knows the record's fields, `machine` and what `derived` adds.
    const PAGE: &'static str;

    /// A JSON object of what the page says and the record does not hold.
    fn derived(&self) -> Value {
        json!({})
    }
}

/// Where and when a record was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeasuredOn {
    pub processor: String,
    pub cores: usize,
    pub memory_gigabytes: f64,
    /// As 2026-12-31.
    pub date: String,
    /// Commit of the working tree, if git is installed.
    pub commit: Option<String>,
}

impl MeasuredOn {
    pub fn here() -> Result<MeasuredOn> {
        let first_line = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
            Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
        };
        Ok(MeasuredOn {
            processor: processor()?,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gigabytes: kilobytes("/proc/meminfo", "MemTotal")? / 1e6,
            date: first_line("date", &["+%Y-%m-%d"]).context("cannot run date")?,
            commit: first_line("git", &["rev-parse", "--short=12", "HEAD"]),
        })
    }
}

impl Display for MeasuredOn {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} cores of {}, {:.0} GB of memory, {}", self.cores, self.processor, self.memory_gigabytes, self.date)?;
        self.commit.as_ref().map_or(Ok(()), |commit| write!(f, ", commit {commit}"))
    }
}

pub fn processor() -> Result<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    Ok(name.map_or("an unknown processor", |(_, name)| name.trim()).into())
}

/// Prints the page of a record; writes both into `folder`, if there is one.
pub fn write<R: Record>(record: &R, folder: Option<&Path>) -> Result<()> {
    #[derive(Serialize)]
    struct File<'a, R> {
        machine: &'a MeasuredOn,
        #[serde(flatten)]
        record: &'a R,
    }
    let machine = &MeasuredOn::here()?;
    let write = |end: &str, text: &str| match folder {
        Some(folder) => {
            let path = folder.join(format!("{}.{end}", R::NAME));
            let written = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&path, text));
            written.with_context(|| format!("cannot write {}", path.display()))
        }
        None => Ok(()),
    };
    // The record first: its page can be made again.
    write("json", &(serde_json::to_string_pretty(&File { machine, record })? + "\n"))?;
    let page = page(record, machine)?;
    write("md", &page)?;
    print!("{page}");
    Ok(())
}

/// The page of a record: its template, filled, with the lines of prose broken anew.
fn page<R: Record>(record: &R, machine: &MeasuredOn) -> Result<String> {
    let mut pages = Environment::new();
    pages.set_undefined_behavior(UndefinedBehavior::Strict);
    pages.add_filter("number", number);
    let machine = context! { machine => machine.to_string(), cores => machine.cores };
    let known = context! { ..machine, ..Values::from(Serde(record.derived())), ..Values::from(Serde(record)) };
    let filled = pages.render_str(R::PAGE, known);
    let filled = filled.with_context(|| format!("cannot fill the page {}", R::NAME))?;
    let blocks =
        filled.trim().split("\n\n").map(|block| if block.starts_with(['#', '|', '`']) { block.into() } else { wrapped(block) });
    Ok(blocks.collect::<Vec<_>>().join("\n\n") + "\n")
}

/// A number with `digits` behind the point; `-` without a value.
fn number(value: Option<f64>, digits: usize) -> String {
    value.filter(|value| !value.is_nan()).map_or("-".into(), |value| format!("{value:.digits$}"))
}

/// A paragraph in lines of at most [`WIDTH`] characters.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is a line");
        if line.is_empty() {
            *line = word.into();
        } else if line.chars().count() + 1 + word.chars().count() <= WIDTH {
            *line = format!("{line} {word}");
        } else {
            lines.push(word.into());
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use std::fs::read_to_string;

    use serde::de::DeserializeOwned;

    use super::*;
    use crate::throughput::Throughput;

    fn example<R: Record>(end: &str) -> String {
        read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("pages/examples/{}.{end}", R::NAME))).unwrap()
    }

    /// Reads the example of a record, writes it again, and compares its page with that of the example.
    fn check<R: Record + DeserializeOwned>() {
        let (processor, date, commit) = ("A CPU".into(), "2026-12-31".into(), Some("0123456789ab".into()));
        let machine = MeasuredOn { processor, cores: 2, memory_gigabytes: 16.4, date, commit };
        let record: R = serde_json::from_str(&example::<R>("json")).unwrap();
        assert_eq!(serde_json::to_string_pretty(&record).unwrap() + "\n", example::<R>("json"));
        assert_eq!(page(&record, &machine).unwrap(), example::<R>("md"));
    }

    #[test]
    fn a_page_says_what_its_record_holds() {
        check::<crate::authors::Comparison>();
        check::<crate::coordination::Coordination>();
        check::<crate::dashboard::Dashboard>();
        check::<crate::editing::Editing>();
        check::<crate::gpu::Gpu>();
        check::<crate::networks::Networks>();
        check::<crate::overhead::Overhead>();
        check::<crate::quality::Quality>();
        check::<crate::rounding::Rounding>();
        check::<crate::speed::Speed>();
        check::<Throughput>();
        check::<crate::validation::Validation>();
    }

    #[test]
    fn a_record_can_be_read_again_with_its_machine() {
        #[derive(Deserialize)]
        struct File {
            machine: MeasuredOn,
            #[serde(flatten)]
            record: Throughput,
        }
        let folder = tempfile::tempdir().unwrap();
        let record: Throughput = serde_json::from_str(&example::<Throughput>("json")).unwrap();
        write(&record, Some(folder.path())).unwrap();
        let read: File = serde_json::from_str(&read_to_string(folder.path().join("throughput.json")).unwrap()).unwrap();
        assert_eq!(serde_json::to_value(&read.record).unwrap(), serde_json::to_value(&record).unwrap());
        assert_eq!(read.machine, MeasuredOn::here().unwrap());
        assert!(read_to_string(folder.path().join("throughput.md")).unwrap().starts_with("# Throughput\n"));
    }
}
