//! Records of measurements and their pages. A record is written to `<folder>/<name>.json` with the machine that it was measured on, and its
//! page to `<folder>/<name>.md`. No other module writes Markdown.

use std::fmt::Display;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use results::bootstrap::Interval;
use serde::{Deserialize, Serialize};

/// Characters of a line of prose.
const WIDTH: usize = 140;

/// The figures of one measurement.
pub trait Record: Serialize {
    /// File name without its end.
    const NAME: &'static str;

    fn page(&self, machine: &Machine) -> Page;
}

/// Where and when a record was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    pub memory_gigabytes: f64,
    /// As 2026-12-31.
    pub date: String,
    /// Commit of the working tree, if git is installed.
    pub commit: Option<String>,
}

impl Machine {
    pub fn here() -> Result<Machine> {
        let first_line = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
            Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
        };
        Ok(Machine {
            processor: processor()?,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gigabytes: memory_gigabytes()?,
            date: first_line("date", &["+%Y-%m-%d"]).context("cannot run date")?,
            commit: first_line("git", &["rev-parse", "--short=12", "HEAD"]),
        })
    }
}

impl Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} cores of {}, {:.0} GB of memory, {}", self.cores, self.processor, self.memory_gigabytes, self.date)?;
        self.commit.as_ref().map_or(Ok(()), |commit| write!(f, ", commit {commit}"))
    }
}

/// Name of the processor.
pub fn processor() -> Result<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    Ok(name.map_or("an unknown processor", |(_, name)| name.trim()).into())
}

fn memory_gigabytes() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).context("/proc/meminfo has no MemTotal")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1e6)
}

/// Writes the record and its page into `folder`, and prints the page.
pub fn write<R: Record>(record: &R, folder: &Path) -> Result<()> {
    #[derive(Serialize)]
    struct File<'a, R> {
        machine: &'a Machine,
        #[serde(flatten)]
        record: &'a R,
    }
    let machine = &Machine::here()?;
    let page = record.page(machine).to_string();
    let json = serde_json::to_string_pretty(&File { machine, record })? + "\n";
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for (end, text) in [("json", &json), ("md", &page)] {
        let path = folder.join(format!("{}.{end}", R::NAME));
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    print!("{page}");
    Ok(())
}

/// Prints the page of a record and writes nothing.
pub fn show<R: Record>(record: &R) -> Result<()> {
    print!("{}", record.page(&Machine::here()?));
    Ok(())
}

/// A Markdown page: blocks, one after another.
pub struct Page(Vec<String>);

impl Page {
    pub fn new(title: &str) -> Page {
        Page(vec![format!("# {title}")])
    }

    pub fn section(mut self, title: &str) -> Page {
        self.0.push(format!("## {title}"));
        self
    }

    /// A paragraph; its lines are broken anew.
    pub fn text(mut self, text: &str) -> Page {
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
        self.0.push(lines.join("\n"));
        self
    }

    pub fn json(mut self, value: &impl Serialize) -> Page {
        let json = serde_json::to_string(value).expect("records are JSON");
        self.0.push(format!("```json\n{json}\n```"));
        self
    }

    pub fn table<C: Display>(mut self, head: &[C], rows: impl IntoIterator<Item = Vec<String>>) -> Page {
        let mut lines = vec![line(head), format!("|{}", "---|".repeat(head.len()))];
        lines.extend(rows.into_iter().map(|row| {
            assert_eq!(row.len(), head.len(), "a row has a cell for each column");
            line(&row)
        }));
        self.0.push(lines.join("\n"));
        self
    }
}

impl Display for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        writeln!(f, "{}", self.0.join("\n\n"))
    }
}

fn line(cells: &[impl Display]) -> String {
    cells.iter().fold("|".into(), |line, cell| format!("{line} {cell}").trim_end().to_owned() + " |")
}

/// A number with `digits` behind the point; `-` where there is none.
pub fn number(value: impl Into<Option<f64>>, digits: usize) -> String {
    value.into().filter(|value| !value.is_nan()).map_or("-".into(), |value| format!("{value:.digits$}"))
}

/// The mean and the 95 % interval.
pub fn with_interval(Interval { mean, low, high }: &Interval, digits: usize) -> String {
    format!("{mean:.digits$} ({low:.digits$} to {high:.digits$})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Small {
        model: String,
        rates: Vec<(String, Option<f64>)>,
    }

    impl Record for Small {
        const NAME: &'static str = "small";

        fn page(&self, machine: &Machine) -> Page {
            let rows = self.rates.iter().map(|(name, rate)| vec![name.clone(), number(*rate, 1)]);
            Page::new("Small")
                .text(&format!("Model {}\n on {machine}.", self.model))
                .table(&["", "per second"], rows)
                .section("Long")
                .text(&"word ".repeat(40))
        }
    }

    fn small() -> Small {
        Small { model: "fashion32".into(), rates: vec![("one".into(), Some(1.25)), ("two".into(), None)] }
    }

    #[test]
    fn a_page_says_what_its_record_holds() {
        let machine = Machine {
            processor: "A CPU".into(),
            cores: 2,
            memory_gigabytes: 16.4,
            date: "2026-12-31".into(),
            commit: Some("0123456789ab".into()),
        };
        let words = |n: usize| vec!["word"; n].join(" ");
        let expected = format!(
            "# Small\n\nModel fashion32 on 2 cores of A CPU, 16 GB of memory, 2026-12-31, commit 0123456789ab.\n\n\
            | | per second |\n|---|---|\n| one | 1.2 |\n| two | - |\n\n## Long\n\n{}\n{}\n",
            words(28),
            words(12)
        );
        assert_eq!(small().page(&machine).to_string(), expected);
    }

    #[test]
    fn a_record_can_be_read_again_with_its_machine() {
        #[derive(Deserialize)]
        struct File {
            machine: Machine,
            #[serde(flatten)]
            record: Small,
        }
        let folder = tempfile::tempdir().unwrap();
        write(&small(), folder.path()).unwrap();
        let read: File = serde_json::from_slice(&std::fs::read(folder.path().join("small.json")).unwrap()).unwrap();
        assert_eq!(read.record.rates, small().rates);
        assert_eq!(read.machine, Machine::here().unwrap());
        assert!(std::fs::read_to_string(folder.path().join("small.md")).unwrap().starts_with("# Small\n"));
    }
}
