//! Programs that measurements start; memory and CPU time of processes, from `/proc` of Linux.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;

/// Clock ticks of `/proc` in a second, on every current Linux.
const TICKS: f64 = 100.0;

/// This program, to be started again.
pub fn this_program() -> Result<Command> {
    Ok(Command::new(std::env::current_exe().context("cannot find this program")?))
}

/// A program in the folder of this one.
pub fn neighbour(name: &str) -> Result<Command> {
    Ok(Command::new(std::env::current_exe().context("cannot find this program")?.with_file_name(name)))
}

/// Runs a program to its end, and reads the JSON that it prints.
pub fn answer<T: DeserializeOwned>(command: &mut Command) -> Result<T> {
    let output = command.stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot start {}", command.get_program().display()))?;
    ensure!(output.status.success(), "{command:?} ends with {}", output.status);
    serde_json::from_slice(&output.stdout).with_context(|| format!("cannot parse the output of {command:?}"))
}

/// Peak memory of a process so far.
pub fn peak_megabytes(process: u32) -> Result<f64> {
    Ok(kilobytes(&format!("/proc/{process}/status"), "VmHWM")? / 1e3)
}

/// What a file of `/proc` gives in kB under a name.
pub fn kilobytes(path: &str, name: &str) -> Result<f64> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(value.with_context(|| format!("{path} has no {name}"))?.trim().trim_end_matches(" kB").parse()?)
}

/// CPU time of a process so far.
pub fn cpu_seconds(process: u32) -> Result<f64> {
    let path = format!("/proc/{process}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(read_stat(&stat).with_context(|| format!("{path} has an unknown form"))?.1)
}

/// CPU time so far of the threads of a process whose names begin with one of `names`.
pub fn thread_seconds(process: u32, names: &[&str]) -> Result<f64> {
    let path = format!("/proc/{process}/task");
    let mut seconds = 0.0;
    for thread in std::fs::read_dir(&path).with_context(|| format!("cannot read {path}"))? {
        // The thread may have ended just now.
        let Ok(stat) = std::fs::read_to_string(thread?.path().join("stat")) else { continue };
        let (name, cpu) = read_stat(&stat).with_context(|| format!("{path} has an unknown form"))?;
        if names.iter().any(|wanted| name.starts_with(wanted)) {
            seconds += cpu;
        }
    }
    Ok(seconds)
}

/// Name and CPU time of a line of `/proc`.
fn read_stat(stat: &str) -> Option<(&str, f64)> {
    // The second field is a name in brackets, which may hold anything; the times are fields 14 and 15.
    let (name, fields) = stat.split_once('(')?.1.rsplit_once(')')?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>().ok()?;
    Some((name, ticks / TICKS))
}
