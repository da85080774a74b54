//! How ranks exchange data: the trait that kernels use, and the exchange in memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::attr::MeshAxis;
use crate::dim::Bindings;
use crate::standard::Data;
use crate::tensor::{View, ViewMut};

/// Why a rank could not communicate.
#[derive(Debug, thiserror::Error)]
pub enum CommError {
    /// The rank does something else than the plan's certificate says.
    #[error("rank {rank}, position {position} of group {group}: expected {expected}, got {got}")]
    Mismatch {
        /// The rank.
        rank: usize,
        /// The group.
        group: String,
        /// Position in the group's sequence.
        position: usize,
        /// What the certificate says.
        expected: String,
        /// What the rank does.
        got: String,
    },
    /// Other ranks did not arrive in time.
    #[error("waited {} s at position {position} of group {group} for rank {missing:?}", waited.as_secs_f64())]
    Timeout {
        /// The group.
        group: String,
        /// Position in the group's sequence.
        position: usize,
        /// The ranks that did not arrive.
        missing: Vec<usize>,
        /// How long the rank waited.
        waited: Duration,
    },
    /// Another rank failed, so this one stops.
    #[error("stopped because another rank failed")]
    Stopped,
}

/// The place of a rank in the mesh, and its exchange with others.
pub trait Communicator {
    /// Position of this rank along an axis.
    fn index(&self, axis: MeshAxis) -> usize;

    /// Number of ranks along an axis.
    fn size(&self, axis: MeshAxis) -> usize;

    /// Gives `x` to all ranks of the tensor group and returns what each of them gave, in rank order.
    fn exchange(&mut self, op: &'static str, x: &View<'_>) -> Result<Vec<Arc<[u8]>>, CommError>;

    /// Sends to the rank of the same column in another stage, without waiting for it.
    fn send(&mut self, stage: usize, tag: i64, x: &View<'_>) -> Result<(), CommError>;

    /// Receives from the rank of the same column in another stage.
    fn recv(&mut self, stage: usize, tag: i64, out: &mut ViewMut<'_>) -> Result<(), CommError>;
}

/// One call of a group: what has been given so far.
struct Round {
    given: Vec<Option<Arc<[u8]>>>,
    taken: usize,
}

/// Tag and data of a parcel, and what is no tensor of numbers.
type Received = (i64, Arc<[u8]>, Option<Data>);

/// Data on its way from one rank to another.
struct Parcel {
    tag: i64,
    data: Arc<[u8]>,
    /// What is no tensor of numbers.
    value: Option<Data>,
    /// Symbols that the sender has bound, so that the receiver knows the extents.
    bindings: Arc<Bindings>,
}

#[derive(Default)]
struct State {
    stopped: bool,
    rounds: BTreeMap<(String, usize), Round>,
    parcels: BTreeMap<(usize, usize), VecDeque<Parcel>>,
}

/// The meeting point of all ranks of one process.
pub(crate) struct Hub {
    state: Mutex<State>,
    wake: Condvar,
    timeout: Duration,
    /// Steps that the ranks have finished; while it grows, nobody gives up.
    steps: AtomicUsize,
}

impl Hub {
    pub(crate) fn new(timeout: Duration) -> Hub {
        Hub { state: Mutex::default(), wake: Condvar::new(), timeout, steps: AtomicUsize::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A rank that panics while it holds the lock leaves a state that is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes every rank stop at its next step or at once where it waits.
    pub(crate) fn stop(&self) {
        self.lock().stopped = true;
        self.wake.notify_all();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Notes that a rank has finished a step.
    pub(crate) fn advance(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// What has been given or sent and that nobody took.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let state = self.lock();
        let rounds = state.rounds.keys().map(|(group, serial)| format!("call {serial} of group {group}"));
        let parcels = state.parcels.iter().filter(|(_, q)| !q.is_empty());
        rounds.chain(parcels.map(|((from, to), q)| format!("{} transfers from rank {from} to {to}", q.len()))).collect()
    }

    /// Waits until `ready` yields something.
    fn wait<T>(
        &self,
        mut ready: impl FnMut(&mut State) -> Option<T>,
        late: impl FnOnce(&State, Duration) -> CommError,
    ) -> Result<T, CommError> {
        let (mut since, mut seen) = (Instant::now(), self.steps.load(Ordering::Relaxed));
        let mut state = self.lock();
        loop {
            if state.stopped {
                return Err(CommError::Stopped);
            }
            if let Some(v) = ready(&mut state) {
                return Ok(v);
            }
            let Some(left) = self.timeout.checked_sub(since.elapsed()).filter(|d| !d.is_zero()) else {
                let steps = self.steps.load(Ordering::Relaxed);
                if steps == seen {
                    return Err(late(&state, since.elapsed()));
                }
                (since, seen) = (Instant::now(), steps);
                continue;
            };
            state = self.wake.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Gives `data` as member `index` of `ranks` in call `serial` of a group; returns what all gave.
    pub(crate) fn exchange(
        &self,
        group: &str,
        serial: usize,
        position: usize,
        ranks: &[usize],
        index: usize,
        data: Arc<[u8]>,
    ) -> Result<Vec<Arc<[u8]>>, CommError> {
        let key = (group.to_owned(), serial);
        {
            let mut state = self.lock();
            let round =
                state.rounds.entry(key.clone()).or_insert_with(|| Round { given: vec![None; ranks.len()], taken: 0 });
            round.given[index] = Some(data);
            if round.given.iter().all(Option::is_some) {
                self.wake.notify_all();
            }
        }
        self.wait(
            |state| {
                let round = state.rounds.get_mut(&key)?;
                let all: Vec<Arc<[u8]>> = round.given.iter().cloned().collect::<Option<_>>()?;
                round.taken += 1;
                if round.taken == ranks.len() {
                    state.rounds.remove(&key);
                }
                Some(all)
            },
            |state, waited| {
                let given = state.rounds.get(&key).map(|r| &r.given);
                let absent = |i: usize| given.is_none_or(|g| g[i].is_none());
                let missing = ranks.iter().enumerate().filter(|(i, _)| absent(*i)).map(|(_, &r)| r).collect();
                CommError::Timeout { group: group.to_owned(), position, missing, waited }
            },
        )
    }

    pub(crate) fn send(
        &self,
        from: usize,
        to: usize,
        tag: i64,
        data: Arc<[u8]>,
        value: Option<Data>,
        bindings: Arc<Bindings>,
    ) {
        self.lock().parcels.entry((from, to)).or_default().push_back(Parcel { tag, data, value, bindings });
        self.wake.notify_all();
    }

    /// The symbols that come with the next parcel from a rank, which stays.
    pub(crate) fn peek(
        &self,
        from: usize,
        to: usize,
        group: &str,
        position: usize,
    ) -> Result<Arc<Bindings>, CommError> {
        self.wait(
            |state| Some(state.parcels.get(&(from, to))?.front()?.bindings.clone()),
            |_, waited| CommError::Timeout { group: group.to_owned(), position, missing: vec![from], waited },
        )
    }

    /// The next parcel from a rank, with its tag.
    pub(crate) fn recv(&self, from: usize, to: usize, group: &str, position: usize) -> Result<Received, CommError> {
        self.wait(
            |state| state.parcels.get_mut(&(from, to))?.pop_front().map(|p| (p.tag, p.data, p.value)),
            |_, waited| CommError::Timeout { group: group.to_owned(), position, missing: vec![from], waited },
        )
    }
}

/// The communicator of a single rank that has no peers.
pub struct Solo;

impl Communicator for Solo {
    fn index(&self, _: MeshAxis) -> usize {
        0
    }

    fn size(&self, _: MeshAxis) -> usize {
        1
    }

    fn exchange(&mut self, _: &'static str, x: &View<'_>) -> Result<Vec<Arc<[u8]>>, CommError> {
        Ok(vec![x.bytes.into()])
    }

    fn send(&mut self, _: usize, _: i64, _: &View<'_>) -> Result<(), CommError> {
        Err(CommError::Stopped)
    }

    fn recv(&mut self, _: usize, _: i64, _: &mut ViewMut<'_>) -> Result<(), CommError> {
        Err(CommError::Stopped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exchange_returns_rank_order_and_leaves_nothing() {
        let hub = Hub::new(Duration::from_secs(10));
        std::thread::scope(|s| {
            for i in 0..3u8 {
                let hub = &hub;
                s.spawn(move || {
                    for serial in 0..50 {
                        let all = hub.exchange("g", serial, serial, &[0, 1, 2], i.into(), [i].into()).unwrap();
                        assert_eq!(all.iter().map(|a| a[0]).collect::<Vec<_>>(), [0, 1, 2]);
                    }
                });
            }
        });
        assert!(hub.leftovers().is_empty());
    }

    #[test]
    fn waiting_ends_in_time_and_on_stop() {
        let hub = Hub::new(Duration::from_millis(20));
        let late = hub.exchange("g", 0, 0, &[4, 7], 0, [1].into()).unwrap_err();
        assert!(matches!(&late, CommError::Timeout { missing, .. } if *missing == [7]), "{late}");
        assert_eq!(hub.leftovers(), ["call 0 of group g"]);
        assert!(hub.recv(3, 0, "pp", 2).unwrap_err().to_string().contains("rank [3]"));

        let hub = Hub::new(Duration::from_secs(60));
        std::thread::scope(|s| {
            let waiting = s.spawn(|| hub.recv(0, 1, "pp", 0));
            std::thread::sleep(Duration::from_millis(20));
            hub.stop();
            assert!(matches!(waiting.join().unwrap(), Err(CommError::Stopped)));
        });
    }
}
