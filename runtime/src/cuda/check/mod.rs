//! Runs kernels on a device and compares them with references in f64; measures what they move.
//!
//! The same cases run on a GPU (`sinter kernels check`) and, the small ones, on the emulated driver of the tests.

mod all_reduce;
mod all_reduce_norm;
mod apart;
mod bench;
mod copy;
mod elementwise;
mod gather;
mod harness;
mod host;
mod norm;
mod quantize;
mod ranks;
mod reference;
mod report;
mod rotary;
mod rows;
mod small_floats;
mod softmax;

pub use bench::{BenchConfig, Timed, TimedCalls, Timing, copy_bandwidth};
pub use harness::{Difference, Harness, Limit};
pub use report::{BenchmarkResult, CaseResult, Event, FailedBenchmark, Report, RunConfig};

use super::CudaError;

/// Why a case failed.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The device or a launcher failed.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// The kernel computed something else than the reference.
    #[error("{0}")]
    Differs(String),
    /// The reference could not be computed.
    #[error("the reference: {0}")]
    Reference(String),
}

impl From<super::LaunchError> for CheckError {
    fn from(e: super::LaunchError) -> Self {
        CheckError::Cuda(e.into())
    }
}

/// How much memory and time a case takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Size {
    /// Small enough for the emulated driver.
    Small,
    /// For a GPU only.
    Large,
}

type Run = Box<dyn Fn(&Harness<'_>) -> Result<Difference, CheckError> + Send + Sync>;

/// One kernel on one shape.
pub struct Case {
    /// The operator, such as `add_rms_norm`.
    pub kernel: &'static str,
    /// Element type, shape and what else tells cases apart.
    pub label: String,
    /// Where it runs.
    pub size: Size,
    /// Whether its launches wait for each other, so that nothing else may occupy the device.
    pub alone: bool,
    run: Run,
}

impl Case {
    /// A case; `run` computes with the device and with the reference, and compares.
    pub fn new(
        kernel: &'static str,
        label: String,
        size: Size,
        run: impl Fn(&Harness<'_>) -> Result<Difference, CheckError> + Send + Sync + 'static,
    ) -> Case {
        Case { kernel, label, size, alone: false, run: Box::new(run) }
    }

    /// A case of several ranks on the device, whose launches wait for each other.
    pub fn of_ranks(
        kernel: &'static str,
        label: String,
        size: Size,
        run: impl Fn(&Harness<'_>) -> Result<Difference, CheckError> + Send + Sync + 'static,
    ) -> Case {
        Case { alone: true, ..Case::new(kernel, label, size, run) }
    }

    /// Executes the case.
    pub fn run(&self, harness: &Harness<'_>) -> Result<Difference, CheckError> {
        (self.run)(harness)
    }
}

/// Every case, by kernel.
pub fn cases() -> Vec<Case> {
    let families = [
        small_floats::cases(),
        elementwise::cases(),
        copy::cases(),
        gather::cases(),
        rotary::cases(),
        softmax::cases(),
        norm::cases(),
        quantize::cases(),
        all_reduce::cases(),
        all_reduce_norm::cases(),
    ];
    families.into_iter().flatten().collect()
}

type Prepare = Box<dyn Fn(&Harness<'_>) -> Result<TimedCalls, CheckError> + Send + Sync>;

/// A measurement of one kernel on one shape.
pub struct Benchmark {
    /// The operator.
    pub kernel: &'static str,
    /// Element type and shape.
    pub label: String,
    prepare: Prepare,
}

impl Benchmark {
    /// A measurement; `prepare` allocates and fills the buffers.
    pub fn new(
        kernel: &'static str,
        label: String,
        prepare: impl Fn(&Harness<'_>) -> Result<Timed, CheckError> + Send + Sync + 'static,
    ) -> Benchmark {
        Benchmark { kernel, label, prepare: Box::new(move |h| prepare(h).map(TimedCalls::from)) }
    }

    /// A measurement of calls of several launches, or of several ranks.
    pub fn of_calls(
        kernel: &'static str,
        label: String,
        prepare: impl Fn(&Harness<'_>) -> Result<TimedCalls, CheckError> + Send + Sync + 'static,
    ) -> Benchmark {
        Benchmark { kernel, label, prepare: Box::new(prepare) }
    }

    fn prepare(&self, harness: &Harness<'_>) -> Result<TimedCalls, CheckError> {
        (self.prepare)(harness)
    }
}

/// Every measurement, by kernel.
pub fn benchmarks() -> Vec<Benchmark> {
    let families = [
        elementwise::benchmarks(),
        copy::benchmarks(),
        gather::benchmarks(),
        rotary::benchmarks(),
        softmax::benchmarks(),
        norm::benchmarks(),
        quantize::benchmarks(),
        apart::benchmarks(),
    ];
    families.into_iter().flatten().collect()
}
