//! Times launches with events. The yardstick is the bandwidth of a copy on the same device.

use std::time::Instant;

use super::super::exchange::Group;
use super::super::source::Kernel;
use super::super::{DeviceBuffer, Event, Launch, Stream};
use super::{CheckError, Harness};

/// Most launches between two events, of all ranks together. The driver's queue holds about a thousand; a thread that finds it full waits
/// and keeps the others from launching what the device needs to go on.
const MAX_QUEUED: usize = 256;

/// How measurements are taken.
#[derive(Clone, Copy, Debug)]
pub struct BenchConfig {
    /// Timed rounds; the median counts.
    pub rounds: usize,
    /// Microseconds of work between two events. Short kernels are launched many times.
    pub round_us: f64,
    /// Longest time for which the device is kept busy while the host enqueues a round.
    pub max_hold_us: f64,
    /// Bytes of the buffer that is copied.
    pub copy_bytes: usize,
}

impl BenchConfig {
    /// For a GPU.
    pub fn standard() -> BenchConfig {
        BenchConfig { rounds: 61, round_us: 1000.0, max_hold_us: 20_000.0, copy_bytes: 1 << 30 }
    }
}

/// A prepared measurement: the launches of one round on different buffers, and what each moves.
pub struct Timed {
    /// Launches that are timed one after the other. They use different buffers, so that no round finds its data in the cache.
    pub launches: Vec<Launch>,
    /// Memory that the launches use.
    pub buffers: Vec<DeviceBuffer>,
    /// Bytes that one launch has to read and to write at least.
    pub bytes: u64,
}

/// A prepared measurement of calls of several launches, made by one rank or by several on the device together.
pub struct TimedCalls {
    /// Through which the ranks exchange data; none where there is one rank.
    pub group: Option<Group>,
    /// The calls, on different buffers. A call has for each rank its launches, one after the other.
    pub calls: Vec<Vec<Vec<Launch>>>,
    /// Memory that the launches use.
    pub buffers: Vec<DeviceBuffer>,
    /// Bytes that one call has to read and to write at least, on all ranks together.
    pub bytes: u64,
}

impl From<Timed> for TimedCalls {
    fn from(t: Timed) -> TimedCalls {
        let calls = t.launches.into_iter().map(|l| vec![vec![l]]).collect();
        TimedCalls { group: None, calls, buffers: t.buffers, bytes: t.bytes }
    }
}

/// How long one launch, or one call of all ranks, takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// Median over the rounds, in microseconds.
    pub us: f64,
    /// Distance from the 10th to the 90th percentile, as a share of the median.
    pub spread: f64,
    /// Launches between two events.
    pub launches: usize,
    /// Whether the host took longer to enqueue a round than the device was held busy, so that the time may be the host's.
    pub host_bound: bool,
}

/// `HoldArguments` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct HoldArguments {
    nanoseconds: u64,
}

/// A launch that takes a time and touches no memory. What is enqueued behind it starts without waiting for the host.
fn hold(us: f64) -> Launch {
    let entry = "struct HoldArguments { u64 nanoseconds; };\n\
         extern \"C\" __global__ void __launch_bounds__(32) hold(const __grid_constant__ HoldArguments a) {\n\
           u64 start = nanoseconds();\n\
           while (nanoseconds() - start < a.nanoseconds) {}\n\
         }\n";
    let kernel = Kernel { file: "exchange.cuh", name: "hold".to_owned(), entry: entry.to_owned() };
    Launch::new(kernel, 1, 32, 0, &HoldArguments { nanoseconds: (us * 1e3) as u64 })
}

/// Times work that `enqueue(first, count)` puts on the harness's stream, beginning with its `first` unit. A unit has `launches` launches.
fn time(
    h: &Harness<'_>,
    config: &BenchConfig,
    launches: usize,
    enqueue: impl Fn(usize, usize) -> Result<(), CheckError>,
) -> Result<Timing, CheckError> {
    // The first launches wake the device.
    h.run(&hold(0.0))?;
    enqueue(0, 1)?;
    h.stream.synchronize()?;
    let round = |first: usize, count: usize, hold_us: f64| {
        h.enqueue(&h.stream, &hold(hold_us))?;
        let start = Instant::now();
        let from = h.device.record(&h.stream)?;
        enqueue(first, count)?;
        let to = h.device.record(&h.stream)?;
        let host_us = start.elapsed().as_secs_f64() * 1e6;
        Ok::<_, CheckError>((from.microseconds_to(&to)? / count as f64, host_us))
    };
    let mut first = 1;
    let mut hold_us = config.max_hold_us.min(500.0);
    let (estimate, _) = round(first, 4, hold_us)?;
    first += 4;
    let count =
        (config.round_us / estimate.max(0.1)).ceil().clamp(1.0, (MAX_QUEUED / launches.max(1)).max(1) as f64) as usize;
    let (mut times, mut host_bound) = (vec![], false);
    while times.len() < config.rounds.max(1) {
        let (us, host_us) = round(first, count, hold_us)?;
        first += count;
        if host_us > 0.8 * hold_us && hold_us < config.max_hold_us {
            // The device may have waited for the host.
            hold_us = (2.0 * host_us).max(2.0 * hold_us).min(config.max_hold_us);
            continue;
        }
        host_bound |= host_us > hold_us;
        times.push(us);
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times.get((share * (times.len() - 1) as f64).round() as usize).copied().unwrap_or(f64::NAN);
    Ok(Timing { us: at(0.5), spread: (at(0.9) - at(0.1)) / at(0.5), launches: count, host_bound })
}

impl TimedCalls {
    /// Times a call.
    pub fn time(&self, h: &Harness<'_>, config: &BenchConfig) -> Result<Timing, CheckError> {
        // Loading a module may wait for the device, which does not come to rest while a rank waits for its peers.
        self.calls.iter().flatten().flatten().try_for_each(|l| h.device.load(&l.kernel))?;
        let launches = self.calls.iter().map(|c| c.iter().map(Vec::len).sum()).max().unwrap_or(1);
        let Some(group) = &self.group else {
            return time(h, config, launches, |first, count| self.enqueue_rank(h, &h.stream, 0, first, count));
        };
        let streams = (0..group.ranks()).map(|rank| h.device.rank_stream(rank)).collect::<Result<Vec<_>, _>>()?;
        let timing = time(h, config, launches, |first, count| self.enqueue_ranks(h, &streams, first, count))?;
        streams.iter().enumerate().try_for_each(|(rank, s)| group.check(rank, s))?;
        Ok(timing)
    }

    fn enqueue_rank(
        &self,
        h: &Harness<'_>,
        stream: &Stream,
        rank: usize,
        first: usize,
        count: usize,
    ) -> Result<(), CheckError> {
        let rotating = self.calls.iter().cycle().skip(first % self.calls.len().max(1)).take(count);
        rotating.filter_map(|c| c.get(rank)).flatten().try_for_each(|l| h.enqueue(stream, l))
    }

    /// Each rank has a thread, for an emulated launch returns when it is done.
    fn enqueue_ranks(&self, h: &Harness<'_>, streams: &[Stream], first: usize, count: usize) -> Result<(), CheckError> {
        let start = h.device.record(&h.stream)?;
        let run = |rank: usize, stream: &Stream| {
            stream.wait(&start)?;
            self.enqueue_rank(h, stream, rank, first, count)?;
            Ok(h.device.record(stream)?)
        };
        let run = &run;
        let ends: Vec<Result<Event, CheckError>> = std::thread::scope(|s| {
            let threads: Vec<_> = streams.iter().enumerate().map(|(i, t)| s.spawn(move || run(i, t))).collect();
            let lost = || Err(CheckError::Reference("the thread of a rank panicked".to_owned()));
            threads.into_iter().map(|t| t.join().unwrap_or_else(|_| lost())).collect()
        });
        ends.into_iter().try_for_each(|end| Ok(h.stream.wait(&end?)?))
    }
}

/// Bytes per second that a copy on the device reads and writes.
pub fn copy_bandwidth(h: &Harness<'_>, config: &BenchConfig) -> Result<f64, CheckError> {
    let (from, to) = (h.device.alloc(config.copy_bytes)?, h.device.alloc(config.copy_bytes)?);
    h.device.fill(&h.stream, &from, 1)?;
    let timing =
        time(h, config, 1, |_, count| (0..count).try_for_each(|_| Ok(h.device.copy(&h.stream, &from, &to)?)))?;
    Ok(2.0 * config.copy_bytes as f64 / (timing.us * 1e-6))
}
