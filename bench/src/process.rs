//! Memory and CPU time of processes, from `/proc` of Linux.

use anyhow::{Context, Result};

/// Clock ticks of `/proc` in a second, on every current Linux.
const TICKS: f64 = 100.0;

/// Peak memory of a process so far.
pub fn peak_megabytes(process: u32) -> Result<f64> {
    let path = format!("/proc/{process}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).with_context(|| format!("{path} has no VmHWM"))?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1e3)
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
