//! `sinter kernels check`: run kernels on a GPU, compare them with their references, and time them.

use std::fmt::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use clap::Args;
use sinter_runtime::cuda::check::{BenchConfig, Report, Size, benchmarks, cases};
use sinter_runtime::cuda::{Device, driver_present};

use super::super::{Failure, OutFile, Outcome, counted, deliver, say};

/// Options of `sinter kernels check`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Number of the device.
    #[arg(long, value_name = "N", default_value_t = 0)]
    device: usize,
    /// Only cases and measurements whose operator and label, with a space between them, contain this text.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
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
    let filter = o.filter.as_deref().unwrap_or("");
    let kept = |kernel: &str, label: &str| format!("{kernel} {label}").contains(filter);
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
    let config = o.bench.then(BenchConfig::standard);
    let bar = indicatif::ProgressBar::new((cases.len() + benchmarks.len()) as u64);
    bar.set_style(indicatif::ProgressStyle::with_template("{pos}/{len} {wide_msg}")?);
    let report = Report::run(&device, &cases, &benchmarks, config.as_ref(), |what| {
        bar.set_message(what.to_owned());
        bar.inc(1);
    })?;
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
    say(&format!("check failed: {} of {}", failures.len(), cases.len() + benchmarks.len()));
    Ok(Outcome::CheckFailed)
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
        let _ = writeln!(
            t,
            "{:kernel$}  {:label$}  {:10.2}  {spread:5.1}%  {gb:5.0}  {of:6.1}%  {:9}",
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
        let _ = writeln!(
            t,
            "| `{}` | {} | {:.2} | {spread:.1}% | {gb:.0} | {of:.1}% | {} | {occupancy:.0}% |",
            b.kernel, b.label, b.us, b.registers
        );
    }
    t
}
