//! Runs cases and measurements, and reports all of them; keys of the report are stable.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

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
    /// The case that ran beyond its time and ended the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abandoned: Option<String>,
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
    /// Whether the time may be the host's, which enqueued launches more slowly than the device executed them.
    pub host_bound: bool,
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

/// How cases and measurements are run.
#[derive(Clone, Copy, Debug)]
pub struct RunConfig {
    /// How measurements are taken; none are without it.
    pub bench: Option<BenchConfig>,
    /// Cases that run at a time. Their references are computed on the host, a core each; cases of several ranks run alone.
    pub threads: usize,
    /// Seconds after which a case has failed. The run ends with it, for the device may never come to rest.
    pub case_seconds: u64,
}

impl RunConfig {
    /// Cases only, one after the other.
    pub fn serial() -> RunConfig {
        RunConfig { bench: None, threads: 1, case_seconds: 600 }
    }
}

/// What happens in a run.
pub enum Event<'a> {
    /// A case or a measurement begins.
    Begins(&'a str),
    /// A case has ended.
    Case(&'a CaseResult),
    /// The bandwidth of a copy was measured, in bytes per second.
    Copy(f64),
    /// A measurement was taken.
    Benchmark(&'a BenchmarkResult),
    /// A measurement could not be taken.
    Failed(&'a FailedBenchmark),
}

/// What the threads of a run send.
enum Message {
    Begins(usize),
    Ends(usize, CaseResult),
}

/// Runs the cases `which` of all on one thread, until none is left.
fn work(device: &Arc<Device>, cases: &[Case], which: &[usize], next: &AtomicUsize, out: &Sender<Message>) {
    let harness = Harness::new(device);
    while let Some(&i) = which.get(next.fetch_add(1, Ordering::Relaxed)) {
        let Some(case) = cases.get(i) else { continue };
        // Nobody listens after a case that took too long.
        if out.send(Message::Begins(i)).is_err() {
            return;
        }
        let result = match &harness {
            Ok(h) => CaseResult::of(case, h),
            Err(e) => CaseResult::failed(case, e.to_string()),
        };
        if out.send(Message::Ends(i, result)).is_err() {
            return;
        }
    }
}

impl Report {
    /// Runs cases and, with a configuration, measurements; `tell` hears of each as it begins and ends. Cases that fail are in the
    /// report; an error is one of the device itself.
    pub fn run(
        device: &Arc<Device>,
        cases: Vec<Case>,
        benchmarks: &[Benchmark],
        config: &RunConfig,
        mut tell: impl FnMut(Event<'_>),
    ) -> Result<Report, CheckError> {
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
            abandoned: None,
        };
        let cases = Arc::new(cases);
        let mut done = BTreeMap::new();
        for alone in [false, true] {
            let which: Vec<usize> = (0..cases.len()).filter(|&i| cases[i].alone == alone).collect();
            let threads = if alone { 1 } else { config.threads };
            let stuck = run_cases(device, &cases, which, threads, config.case_seconds, &mut done, &mut tell);
            if let Some(name) = stuck {
                out.abandoned = Some(name);
                break;
            }
        }
        out.cases = done.into_values().collect();
        let Some(bench) = config.bench.as_ref().filter(|_| out.abandoned.is_none()) else { return Ok(out) };
        let h = Harness::new(device)?;
        tell(Event::Begins("copy"));
        let copy = copy_bandwidth(&h, bench)?;
        tell(Event::Copy(copy));
        out.copy_bytes_per_s = Some(copy);
        for b in benchmarks {
            tell(Event::Begins(&format!("{} {}", b.kernel, b.label)));
            match BenchmarkResult::of(b, &h, bench, copy) {
                Ok(r) => {
                    tell(Event::Benchmark(&r));
                    out.benchmarks.push(r);
                }
                Err(e) => {
                    let (kernel, label) = (b.kernel.to_owned(), b.label.clone());
                    let failed = FailedBenchmark { kernel, label, reason: e.to_string() };
                    tell(Event::Failed(&failed));
                    out.failed_benchmarks.push(failed);
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

/// Runs cases on threads and collects their results by position. Returns the name of a case that took too long; its thread is left
/// behind.
fn run_cases(
    device: &Arc<Device>,
    cases: &Arc<Vec<Case>>,
    which: Vec<usize>,
    threads: usize,
    seconds: u64,
    done: &mut BTreeMap<usize, CaseResult>,
    tell: &mut impl FnMut(Event<'_>),
) -> Option<String> {
    let (sender, receiver) = channel();
    let (which, next) = (Arc::new(which), Arc::new(AtomicUsize::new(0)));
    for _ in 0..threads.clamp(1, which.len().max(1)) {
        let (device, cases, which, next) = (device.clone(), cases.clone(), which.clone(), next.clone());
        let sender = sender.clone();
        std::thread::spawn(move || work(&device, &cases, &which, &next, &sender));
    }
    drop(sender);
    let limit = Duration::from_secs(seconds);
    let name = |i: usize| format!("{} {}", cases[i].kernel, cases[i].label);
    let mut running: BTreeMap<usize, Instant> = BTreeMap::new();
    loop {
        match receiver.recv_timeout(Duration::from_millis(200)) {
            Ok(Message::Begins(i)) => {
                running.insert(i, Instant::now());
                tell(Event::Begins(&name(i)));
            }
            Ok(Message::Ends(i, result)) => {
                running.remove(&i);
                tell(Event::Case(&result));
                done.insert(i, result);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if let Some((&i, _)) = running.iter().find(|(_, since)| since.elapsed() > limit) {
            let result = CaseResult::failed(&cases[i], format!("took longer than {seconds} s; the run ends here"));
            tell(Event::Case(&result));
            done.insert(i, result);
            return Some(name(i));
        }
    }
    // A thread that panicked leaves its case behind.
    for i in running.into_keys() {
        let result = CaseResult::failed(&cases[i], "the thread of the case panicked".to_owned());
        tell(Event::Case(&result));
        done.insert(i, result);
    }
    None
}

impl CaseResult {
    fn failed(case: &Case, reason: String) -> CaseResult {
        CaseResult {
            kernel: case.kernel.to_owned(),
            label: case.label.clone(),
            pass: false,
            max_abs: None,
            relative: None,
            elements: 0,
            reason: Some(reason),
        }
    }

    fn of(case: &Case, h: &Harness<'_>) -> CaseResult {
        match case.run(h) {
            Ok(d) => CaseResult {
                kernel: case.kernel.to_owned(),
                label: case.label.clone(),
                pass: true,
                max_abs: Some(d.max_abs),
                relative: Some(d.relative),
                elements: d.elements,
                reason: None,
            },
            Err(e) => CaseResult::failed(case, e.to_string()),
        }
    }
}

impl BenchmarkResult {
    fn of(b: &Benchmark, h: &Harness<'_>, config: &BenchConfig, copy: f64) -> Result<BenchmarkResult, CheckError> {
        let prepared = b.prepare(h)?;
        let launch = prepared.calls.iter().flatten().flatten().next();
        let launch = launch.ok_or_else(|| CheckError::Reference("the measurement has no launch".to_owned()))?;
        let Timing { us, spread, launches, host_bound } = prepared.time(h, config)?;
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
            host_bound,
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
