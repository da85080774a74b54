//! Several ranks on one device: a thread and a stream for each.

use std::time::Duration;

use super::super::exchange::Group;
use super::super::{CudaError, Stream};
use super::{CheckError, Harness, host};
use crate::dtype::DType;
use crate::tensor::Tensor;

/// How long a rank waits for the others before it gives up.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Deterministic numbers that differ by seed.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }

    /// Numbers in [-1, 1).
    pub(super) fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0).collect()
    }
}

/// Runs `body` for every rank on a thread with a stream of its own; returns what they return, or the first error. An error
/// of the exchange is reported after others, for it may only follow from them.
///
/// `prepare` makes what a rank needs, one rank after the other, before any thread starts: allocations, uploads, modules. Each of these
/// may wait for the device, and while a rank's kernel waits for its peers the device does not come to rest. For the same reason
/// everything lives until all ranks have joined.
pub(super) fn on_ranks<P: Sync, T: Send>(
    h: &Harness<'_>,
    ranks: usize,
    prepare: impl Fn(usize) -> Result<P, CheckError>,
    body: impl Fn(usize, &P, &Stream) -> Result<T, CheckError> + Sync,
) -> Result<Vec<T>, CheckError> {
    let streams = (0..ranks).map(|rank| h.device.rank_stream(rank)).collect::<Result<Vec<_>, _>>()?;
    let prepared = (0..ranks).map(prepare).collect::<Result<Vec<_>, _>>()?;
    // The ranks' streams do not wait for the harness's, on which results were filled.
    h.stream.synchronize()?;
    let results: Vec<Result<T, CheckError>> = std::thread::scope(|s| {
        let threads: Vec<_> = streams
            .iter()
            .zip(&prepared)
            .enumerate()
            .map(|(rank, (stream, prepared))| {
                let body = &body;
                s.spawn(move || body(rank, prepared, stream))
            })
            .collect();
        let lost = || Err(CheckError::Reference("the thread of a rank panicked".to_owned()));
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| lost())).collect()
    });
    streams.iter().try_for_each(Stream::synchronize)?;
    drop(prepared);
    let exchange = |r: &Result<T, CheckError>| matches!(r, Err(CheckError::Cuda(CudaError::Exchange { .. })));
    let (waited, others): (Vec<_>, Vec<_>) = results.into_iter().partition(exchange);
    let done = others.into_iter().collect::<Result<Vec<T>, _>>()?;
    match waited.into_iter().next() {
        Some(Err(e)) => Err(e),
        _ => Ok(done),
    }
}

/// A pause of up to 60 microseconds, so that ranks meet in every order.
pub(super) fn pause(random: &mut Random) {
    let us = random.below(60);
    if us > 20 {
        std::thread::sleep(Duration::from_micros(us));
    }
}

/// A group on the harness's device. Its calls are numbered from shortly before the counter wraps.
pub(super) fn group(h: &Harness<'_>, ranks: usize, capacity: usize) -> Result<Group, CheckError> {
    let group = Group::new(&vec![h.device.clone(); ranks], capacity, PATIENCE)?;
    group.reset_at(0xffff_fffd)?;
    Ok(group)
}

/// What the ranks gave, summed in f32 rank after rank, then the residual; rounded once.
pub(super) fn sum_of_ranks(x: &[Tensor], residual: Option<&Tensor>) -> Result<Tensor, CheckError> {
    let Some(first) = x.first() else { return Err(CheckError::Reference("no ranks".to_owned())) };
    let mut sum = vec![0f32; first.len()];
    for t in x.iter().chain(residual) {
        sum.iter_mut().zip(t.to_f64()).for_each(|(s, v)| *s += v as f32);
    }
    tensor(first.dtype, &first.shape, &sum)
}

/// A tensor of rounded numbers.
pub(super) fn tensor(dtype: DType, shape: &[usize], values: &[f32]) -> Result<Tensor, CheckError> {
    host::tensor(dtype, shape, values.iter().map(|&v| f64::from(v)))
}
