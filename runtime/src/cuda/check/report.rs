//! Runs cases and measurements, and reports all of them; keys of the report are stable.

use std::sync::Arc;

use serde::Serialize;

use super::super::{Device, Launch};
use super::bench::{BenchConfig, Timing, copy_bandwidth};
use super::{Benchmark, Case, CheckError, Harness};

/// What a device computed, and how fast.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// 1.
    pub schema: u32,
    /// The device's name.
    pub device: String,
    /// Compute capability, such as 90.
    pub capability: u32,
    /// The newest CUDA version that the driver supports.
    pub driver: String,
    /// NVRTC's version.
    pub nvrtc: String,
    /// Bytes per second that a large copy on the device reads and writes, where it was measured.
    pub copy_bytes_per_s: Option<f64>,
    /// The cases.
    pub cases: Vec<CaseResult>,
    /// The measurements.
    pub benchmarks: Vec<BenchmarkResult>,
    /// Measurements that could not be taken.
    pub failed_benchmarks: Vec<FailedBenchmark>,
}

/// Whether a kernel agrees with its reference.
#[derive(Clone, Debug, Serialize)]
pub struct CaseResult {
    /// The operator.
    pub kernel: String,
    /// Element type, shape and what else tells cases apart.
    pub label: String,
    /// Whether it agrees.
    pub pass: bool,
    /// Largest |got - wanted|; of a case that fails it is not known.
    pub max_abs: Option<f64>,
    /// ||got - wanted|| / ||wanted||.
    pub relative: Option<f64>,
    /// Elements compared.
    pub elements: usize,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How fast a kernel is.
#[derive(Clone, Debug, Serialize)]
pub struct BenchmarkResult {
    /// The operator.
    pub kernel: String,
    /// Element type and shape.
    pub label: String,
    /// Median time of one launch, in microseconds.
    pub us: f64,
    /// Distance from the 10th to the 90th percentile, as a share of the median.
    pub spread: f64,
    /// Bytes that have to be read and written.
    pub bytes: u64,
    /// Bytes per second.
    pub bytes_per_s: f64,
    /// Bytes per second as a share of those of the copy.
    pub of_copy: f64,
    /// Launches between two events.
    pub launches: usize,
    /// The entry point.
    pub entry: String,
    /// Blocks.
    pub grid: u32,
    /// Threads of a block.
    pub block: u32,
    /// Registers of a thread.
    pub registers: u32,
    /// Threads that a multiprocessor holds at a time, as a share of its limit.
    pub occupancy: f64,
}

/// A measurement that could not be taken.
#[derive(Clone, Debug, Serialize)]
pub struct FailedBenchmark {
    /// The operator.
    pub kernel: String,
    /// Element type and shape.
    pub label: String,
    /// Why.
    pub reason: String,
}

impl Report {
    /// Runs cases and, with a configuration, measurements. `progress` is told what comes next. Cases that fail are in the
    /// report; an error is one of the device itself.
    pub fn run(
        device: &Arc<Device>,
        cases: &[Case],
        benchmarks: &[Benchmark],
        bench: Option<&BenchConfig>,
        mut progress: impl FnMut(&str),
    ) -> Result<Report, CheckError> {
        let h = Harness::new(device)?;
        let version = |(major, minor): (i32, i32)| format!("{major}.{minor}");
        let mut out = Report {
            schema: 1,
            device: device.info().name.clone(),
            capability: device.info().capability,
            driver: version(device.driver_version()?),
            nvrtc: version(device.compiler().version),
            copy_bytes_per_s: None,
            cases: vec![],
            benchmarks: vec![],
            failed_benchmarks: vec![],
        };
        for case in cases {
            progress(&format!("{} {}", case.kernel, case.label));
            out.cases.push(CaseResult::of(case, &h));
        }
        let Some(config) = bench else { return Ok(out) };
        progress("copy");
        let copy = copy_bandwidth(&h, config)?;
        out.copy_bytes_per_s = Some(copy);
        for b in benchmarks {
            progress(&format!("{} {}", b.kernel, b.label));
            match BenchmarkResult::of(b, &h, config, copy) {
                Ok(r) => out.benchmarks.push(r),
                Err(e) => {
                    let (kernel, label) = (b.kernel.to_owned(), b.label.clone());
                    out.failed_benchmarks.push(FailedBenchmark { kernel, label, reason: e.to_string() });
                }
            }
        }
        Ok(out)
    }

    /// What failed, a line each.
    pub fn failures(&self) -> Vec<String> {
        let cases = self.cases.iter().filter(|c| !c.pass);
        let cases = cases.map(|c| format!("{} {}: {}", c.kernel, c.label, c.reason.as_deref().unwrap_or("")));
        let failed = self.failed_benchmarks.iter();
        cases.chain(failed.map(|b| format!("benchmark {} {}: {}", b.kernel, b.label, b.reason))).collect()
    }
}

impl CaseResult {
    fn of(case: &Case, h: &Harness<'_>) -> CaseResult {
        let (kernel, label) = (case.kernel.to_owned(), case.label.clone());
        match case.run(h) {
            Ok(d) => CaseResult {
                kernel,
                label,
                pass: true,
                max_abs: Some(d.max_abs),
                relative: Some(d.relative),
                elements: d.elements,
                reason: None,
            },
            Err(e) => CaseResult {
                kernel,
                label,
                pass: false,
                max_abs: None,
                relative: None,
                elements: 0,
                reason: Some(e.to_string()),
            },
        }
    }
}

impl BenchmarkResult {
    fn of(b: &Benchmark, h: &Harness<'_>, config: &BenchConfig, copy: f64) -> Result<BenchmarkResult, CheckError> {
        let prepared = b.prepare(h)?;
        let launch = prepared.calls.iter().flatten().flatten().next();
        let launch = launch.ok_or_else(|| CheckError::Reference("the measurement has no launch".to_owned()))?;
        let Timing { us, spread, launches } = prepared.time(h, config)?;
        let bytes_per_s = prepared.bytes as f64 / (us * 1e-6);
        Ok(BenchmarkResult {
            kernel: b.kernel.to_owned(),
            label: b.label.clone(),
            us,
            spread,
            bytes: prepared.bytes,
            bytes_per_s,
            of_copy: bytes_per_s / copy,
            launches,
            entry: launch.kernel.name.clone(),
            grid: launch.grid,
            block: launch.block,
            registers: h.device.registers(&launch.kernel)?,
            occupancy: occupancy(h, launch)?,
        })
    }
}

fn occupancy(h: &Harness<'_>, launch: &Launch) -> Result<f64, CheckError> {
    let blocks = h.device.resident_blocks(&launch.kernel, launch.block, launch.shared)?;
    let most = h.device.info().threads_per_multiprocessor.max(1);
    Ok(f64::from(blocks) * f64::from(launch.block) / f64::from(most))
}
