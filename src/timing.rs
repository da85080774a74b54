//! Stage timers for reports.

use std::time::Instant;

/// Milliseconds by stage, in the order in which the stages ran.
#[derive(Clone, Debug, Default)]
pub struct Timings(Vec<(&'static str, f64)>);

impl Timings {
    /// Runs a stage and adds its time under `name`; equal names add up.
    pub fn time<T>(&mut self, name: &'static str, f: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let out = f();
        self.add(name, start.elapsed().as_secs_f64() * 1e3);
        out
    }

    /// Adds milliseconds under a name.
    pub fn add(&mut self, name: &'static str, ms: f64) {
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some((_, t)) => *t += ms,
            None => self.0.push((name, ms)),
        }
    }

    /// The stages with their times.
    pub fn entries(&self) -> &[(&'static str, f64)] {
        &self.0
    }

    /// Milliseconds of all stages.
    pub fn total(&self) -> f64 {
        self.0.iter().map(|(_, t)| t).sum()
    }
}

/// The most memory that the process has held so far, in bytes; 0 where the system does not tell.
pub fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).map_or(0, |kb| kb * 1024)
}
