//! `sinter kernels check`: run kernels on a GPU, compare them with their references, and time them.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use clap::Args;
use serde_json::json;
use sinter_runtime::cuda::check::{BenchConfig, Event, Report, RunConfig, Size, benchmarks, cases};
use sinter_runtime::cuda::{Device, driver_present};

use super::super::{Failure, OutFile, Outcome, counted, deliver, say};

/// Options of `sinter kernels check`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Number of the device.
    #[arg(long, value_name = "N", default_value_t = 0)]
    device: usize,
    /// Only cases and measurements whose operator and label, with a space between them, contain one of these texts.
    #[arg(long, value_name = "TEXT")]
    filter: Vec<String>,
    /// Leave out cases and measurements whose operator and label contain one of these texts.
    #[arg(long, value_name = "TEXT")]
    skip: Vec<String>,
    /// Measure the bandwidth of a copy, then the time of each kernel.
    #[arg(long)]
    bench: bool,
    /// Only the small cases: for compute-sanitizer, under which every access is slow.
    #[arg(long)]
    small: bool,
    /// Leave out the cases; with --bench.
    #[arg(long, requires = "bench")]
    no_cases: bool,
    /// Write a report as JSON; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    report: Option<String>,
    /// Append a JSON line to this file when a case or a measurement ends.
    #[arg(long, value_name = "FILE")]
    lines: Option<PathBuf>,
    /// Cases that run at a time, beside those of several ranks, which run alone; 0 is one per core, at most 16.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Fail a case and end the run after this time.
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..))]
    case_seconds: u64,
    /// Write the measurements as a Markdown table.
    #[arg(long, value_name = "FILE", requires = "bench")]
    table: Option<PathBuf>,
}

/// How many queues the driver has for streams. Each rank on a device has a stream, and streams that share a queue wait for each
/// other.
const QUEUES: &str = "CUDA_DEVICE_MAX_CONNECTIONS";

/// Starts the command again with a queue for each stream; the driver reads the number when it is loaded.
fn with_queues() -> Result<(), Failure> {
    if std::env::var_os(QUEUES).is_some() || !driver_present() {
        return Ok(());
    }
    let mut again = Command::new(std::env::current_exe()?);
    again.args(std::env::args_os().skip(1)).env(QUEUES, "32");
    Err(format!("starting again with {QUEUES} set: {}", again.exec()).into())
}

pub(super) fn run(o: &Options) -> Result<Outcome, Failure> {
    let kept = |kernel: &str, label: &str| {
        let name = format!("{kernel} {label}");
        (o.filter.is_empty() || o.filter.iter().any(|t| name.contains(t))) && !o.skip.iter().any(|t| name.contains(t))
    };
    let (mut cases, mut benchmarks) = (cases(), benchmarks());
    let (n_cases, n_benchmarks) = (cases.len(), benchmarks.len());
    cases.retain(|c| !o.no_cases && (!o.small || c.size == Size::Small) && kept(c.kernel, &c.label));
    benchmarks.retain(|b| o.bench && kept(b.kernel, &b.label));
    if cases.is_empty() && benchmarks.is_empty() {
        return Err(format!("none of {n_cases} cases and {n_benchmarks} measurements is left to run").into());
    }
    with_queues()?;
    let report_file = o.report.as_deref().map(OutFile::report).transpose()?;
    let table_file = o.table.as_deref().map(|p| OutFile::open("table", p)).transpose()?;
    let device = Arc::new(Device::open(o.device)?);
    let threads = match o.threads {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get().min(16)),
        n => n,
    };
    let bench = o.bench.then(BenchConfig::standard);
    let config = RunConfig { bench, threads, case_seconds: o.case_seconds };
    let total = cases.len() + benchmarks.len();
    let bar = indicatif::ProgressBar::new(total as u64);
    bar.set_style(indicatif::ProgressStyle::with_template("{pos}/{len} {wide_msg}")?);
    let mut lines = o.lines.as_deref().map(Lines::open).transpose()?;
    let report = Report::run(&device, cases, &benchmarks, &config, |event| {
        if let Event::Begins(what) = event {
            bar.set_message(what.to_owned());
            bar.inc(1);
        }
        if let Some(lines) = &mut lines {
            lines.write(&event);
        }
    })?;
    if let Some(e) = lines.and_then(|l| l.failed) {
        return Err(e);
    }
    bar.finish_and_clear();
    if let Some(file) = table_file {
        file.write(&markdown(&report))?;
    }
    deliver(report_file, &report, &text(&report))?;
    let failures = report.failures();
    failures.iter().for_each(|f| say(f));
    if failures.is_empty() {
        return Ok(Outcome::Done);
    }
    if let Some(name) = &report.abandoned {
        let left = total - report.cases.len() - report.benchmarks.len() - report.failed_benchmarks.len();
        say(&format!("{name} took longer than {} s: {left} cases and measurements were not run", o.case_seconds));
    }
    say(&format!("check failed: {} of {total}", failures.len()));
    Ok(Outcome::CheckFailed)
}

/// Results as JSON lines, each on disk before the next case ends: what a run that is killed leaves behind.
struct Lines {
    path: PathBuf,
    file: File,
    failed: Option<Failure>,
}

impl Lines {
    fn open(path: &Path) -> Result<Lines, Failure> {
        let file = File::options().create(true).append(true).open(path);
        let file = file.map_err(|e| format!("{}: the file of results could not be opened: {e}", path.display()))?;
        Ok(Lines { path: path.to_owned(), file, failed: None })
    }

    fn write(&mut self, event: &Event<'_>) {
        let line = match event {
            Event::Begins(_) => return,
            Event::Case(c) => json!({ "case": c }),
            Event::Copy(bytes_per_s) => json!({ "copy_bytes_per_s": bytes_per_s }),
            Event::Benchmark(b) => json!({ "benchmark": b }),
            Event::Failed(b) => json!({ "failed_benchmark": b }),
        };
        // The first failure counts; the run goes on, for its report may be written elsewhere.
        if let Err(e) = writeln!(self.file, "{line}") {
            let message = format!("{}: a result could not be written: {e}", self.path.display());
            self.failed.get_or_insert_with(|| message.into());
        }
    }
}

fn text(r: &Report) -> String {
    let arch = r.capability;
    let mut t = format!("{} (sm_{arch}), driver for CUDA {}, NVRTC {}\n", r.device, r.driver, r.nvrtc);
    let wide = |f: &mut dyn Iterator<Item = usize>| f.max().unwrap_or(0);
    let kernel = wide(&mut r.cases.iter().map(|c| c.kernel.len()).chain(r.benchmarks.iter().map(|b| b.kernel.len())));
    let label = wide(&mut r.cases.iter().map(|c| c.label.len()).chain(r.benchmarks.iter().map(|b| b.label.len())));
    if !r.cases.is_empty() {
        let _ = writeln!(t, "{:kernel$}  {:label$}  result  max |diff|   relative", "kernel", "case");
    }
    for c in &r.cases {
        let number = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), |v| format!("{v:.3e}"));
        let word = if c.pass { "agrees" } else { "FAILS" };
        let (max, relative) = (number(c.max_abs), number(c.relative));
        let _ = writeln!(t, "{:kernel$}  {:label$}  {word:6}  {max:>10}  {relative:>9}", c.kernel, c.label);
    }
    if let Some(copy) = r.copy_bytes_per_s {
        let _ = writeln!(t, "copy on the device: {:.0} GB/s read and written", copy * 1e-9);
        let _ = writeln!(t, "{:kernel$}  {:label$}  time in us  spread   GB/s  of copy  registers", "kernel", "shape");
    }
    for b in &r.benchmarks {
        let (gb, of, spread) = (b.bytes_per_s * 1e-9, b.of_copy * 100.0, b.spread * 100.0);
        let note = if b.host_bound { "  host-bound" } else { "" };
        let _ = writeln!(
            t,
            "{:kernel$}  {:label$}  {:10.2}  {spread:5.1}%  {gb:5.0}  {of:6.1}%  {:9}{note}",
            b.kernel, b.label, b.us, b.registers
        );
    }
    let passed = r.cases.iter().filter(|c| c.pass).count();
    let _ = writeln!(
        t,
        "{passed} of {} agree, {}",
        counted(r.cases.len(), "case"),
        counted(r.benchmarks.len(), "measurement")
    );
    t
}

fn markdown(r: &Report) -> String {
    let mut t = format!(
        "# {}\n\nsm_{}, driver for CUDA {}, NVRTC {}. A copy on the device reads and writes {:.0} GB/s.\n\n\
         | kernel | shape | time in us | spread | GB/s | of copy | registers | occupancy |\n|---|---|---|---|---|---|---|---|\n",
        r.device,
        r.capability,
        r.driver,
        r.nvrtc,
        r.copy_bytes_per_s.unwrap_or(f64::NAN) * 1e-9
    );
    for b in &r.benchmarks {
        let (gb, of) = (b.bytes_per_s * 1e-9, b.of_copy * 100.0);
        let (spread, occupancy) = (b.spread * 100.0, b.occupancy * 100.0);
        let note = if b.host_bound { " (host-bound)" } else { "" };
        let _ = writeln!(
            t,
            "| `{}` | {} | {:.2}{note} | {spread:.1}% | {gb:.0} | {of:.1}% | {} | {occupancy:.0}% |",
            b.kernel, b.label, b.us, b.registers
        );
    }
    t
}
