//! Memory through which the ranks of a group exchange data; `kernels/exchange.cuh` tells how.

use std::sync::Arc;
use std::time::Duration;

use super::launch::Check;
use super::{CudaError, Device, DeviceBuffer, LaunchError, Result, Stream};

/// Most ranks of a group.
pub const MAX_RANKS: usize = 8;

/// A word that no rank has written yet.
const EMPTY: u32 = 0x8000_0000;

/// Bytes of a pack, the unit that ranks send.
pub(super) const PACK: usize = 16;

/// `Exchange` of exchange.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::NoUninit)]
pub(super) struct ExchangeArguments {
    buffers: [u64; MAX_RANKS],
    state: u64,
    capacity: i64,
    patience: u64,
    rank: u32,
    unused: u32,
}

/// `ExchangeState` of exchange.cuh.
#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct State {
    serial: u32,
    phase: u32,
    blocks_done: u32,
    used: [u32; 3],
    failed: u32,
    failed_peer: u32,
    failed_serial: u32,
}

/// One rank of a group, as its launches see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub(super) arguments: ExchangeArguments,
    /// Number of ranks.
    pub ranks: usize,
    /// Ranks of the group that share the rank's device; their blocks have to be resident together.
    pub ranks_on_device: usize,
    /// Bytes that one call may use of a buffer.
    pub capacity: usize,
}

impl Member {
    /// Checks that a call has the bytes of workspace that it needs; `None` are more than can be counted.
    pub(super) fn has_room(
        &self,
        c: Check,
        needed: Option<usize>,
        what: impl FnOnce() -> String,
    ) -> std::result::Result<(), LaunchError> {
        c.that(needed.is_some_and(|n| n <= self.capacity), || match needed {
            Some(n) => format!("{} needs {n} bytes of workspace per call, the group has {}", what(), self.capacity),
            None => format!("{} is too large", what()),
        })
    }

    /// A member with made-up addresses, for tests of launchers. Launching with it is undefined.
    pub fn imagined(rank: usize, ranks: usize, ranks_on_device: usize, capacity: usize) -> Member {
        let mut buffers = [0; MAX_RANKS];
        buffers.iter_mut().take(ranks).enumerate().for_each(|(i, b)| *b = 0x1_0000_0000 * (i as u64 + 1));
        let arguments = ExchangeArguments {
            buffers,
            state: 0x1000,
            capacity: (capacity / PACK) as i64,
            patience: 0,
            rank: rank as u32,
            unused: 0,
        };
        Member { arguments, ranks, ranks_on_device, capacity }
    }
}

/// The memory of a group of ranks in one process: three buffers and a state for each.
///
/// A call is one launch on every rank, each on a stream of its own, in the same order on all ranks. Where one rank does not take part,
/// the others give up after `patience`; the group then has to be made anew.
pub struct Group {
    devices: Vec<Arc<Device>>,
    buffers: Vec<DeviceBuffer>,
    states: Vec<DeviceBuffer>,
    capacity: usize,
    patience: Duration,
}

impl Group {
    /// A group with the devices of its ranks; several ranks may share one. `capacity` is in bytes per call.
    pub fn new(devices: &[Arc<Device>], capacity: usize, patience: Duration) -> Result<Group> {
        let n = devices.len();
        let refuse = |what: String| Err(CudaError::Launch(LaunchError { kernel: "all_reduce", what }));
        if !matches!(n, 2 | 4 | 8) {
            return refuse(format!("a group of {n} ranks; 2, 4 and 8 are supported"));
        }
        let capacity = capacity.next_multiple_of(PACK);
        let Some(bytes) = capacity.checked_mul(3).filter(|_| capacity > 0 && capacity / PACK <= u32::MAX as usize)
        else {
            return refuse(format!("a capacity of {capacity} bytes"));
        };
        for (i, a) in devices.iter().enumerate() {
            devices.iter().skip(i + 1).try_for_each(|b| a.reach(b).and_then(|()| b.reach(a)))?;
        }
        let buffers = devices.iter().map(|d| d.alloc(bytes)).collect::<Result<Vec<_>>>()?;
        let states = devices.iter().map(|d| d.alloc(size_of::<State>())).collect::<Result<Vec<_>>>()?;
        let group = Group { devices: devices.to_vec(), buffers, states, capacity, patience };
        group.reset()?;
        Ok(group)
    }

    /// Empties all buffers, as after [`Group::new`]. No call may be under way.
    pub fn reset(&self) -> Result<()> {
        self.reset_at(0)
    }

    /// Like [`Group::reset`], and gives the next call a number. Numbers wrap after 2^32 calls.
    pub fn reset_at(&self, serial: u32) -> Result<()> {
        const CHUNK: usize = 1 << 20;
        let empty = vec![EMPTY; CHUNK / 4];
        let bytes: &[u8] = bytemuck::cast_slice(&empty);
        for (rank, ((device, buffer), state)) in self.devices.iter().zip(&self.buffers).zip(&self.states).enumerate() {
            let stream = device.rank_stream(rank)?;
            for start in (0..buffer.len()).step_by(CHUNK) {
                let n = CHUNK.min(buffer.len() - start);
                device.upload_at(&stream, buffer, start, &bytes[..n])?;
            }
            device.upload(&stream, state, bytemuck::bytes_of(&State { serial, ..State::default() }))?;
        }
        Ok(())
    }

    /// Number of ranks.
    pub fn ranks(&self) -> usize {
        self.devices.len()
    }

    /// A rank of the group; `None` beyond the last.
    pub fn member(&self, rank: usize) -> Option<Member> {
        let own = self.devices.get(rank)?;
        let mut buffers = [0; MAX_RANKS];
        buffers.iter_mut().zip(&self.buffers).for_each(|(a, b)| *a = b.address());
        let arguments = ExchangeArguments {
            buffers,
            state: self.states[rank].address(),
            capacity: (self.capacity / PACK) as i64,
            patience: u64::try_from(self.patience.as_nanos()).unwrap_or(u64::MAX),
            rank: rank as u32,
            unused: 0,
        };
        let same = |d: &&Arc<Device>| d.ordinal() == own.ordinal();
        let ranks_on_device = self.devices.iter().filter(same).count();
        Some(Member { arguments, ranks: self.ranks(), ranks_on_device, capacity: self.capacity })
    }

    /// Waits for the rank's stream, and tells whether one of its calls waited in vain.
    pub fn check(&self, rank: usize, stream: &Stream) -> Result<()> {
        let (Some(device), Some(buffer)) = (self.devices.get(rank), self.states.get(rank)) else {
            return Err(CudaError::NoDevice(format!("no rank {rank} in a group of {}", self.ranks())));
        };
        stream.synchronize()?;
        let mut state = State::default();
        device.download(stream, buffer, bytemuck::bytes_of_mut(&mut state))?;
        if state.failed == 0 {
            return Ok(());
        }
        Err(CudaError::Exchange {
            rank,
            peer: state.failed_peer as usize,
            call: state.failed_serial,
            waited_ms: u64::try_from(self.patience.as_millis()).unwrap_or(u64::MAX),
        })
    }
}
