//! The cost model: estimated time of a step in nanoseconds, summed over the device's profiles.
//!
//! Compute is a roofline, `max(flops / peak, bytes / bandwidth) + launch`; a collective takes
//! `alpha + bytes * beta` with the byte counts of ring algorithms (all-reduce 2 (n-1)/n, all-gather
//! (n-1)/n of the result). Views, leaves and what the host does before the program starts are free.

mod device;

pub use device::{DEFAULT, Device, DeviceError, Link, Profile};

use crate::ir::{Bindings, Dim, Graph, Mapping, Op, TensorType};

/// What extraction minimises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objective {
    /// Time, and a price on every weight byte that a rank holds beyond its share.
    Memory,
    /// Time alone.
    Latency,
}

/// Price of a surplus weight byte. `--tp N` is a demand to divide the weights, so the price outweighs
/// any time that a whole weight could save: a byte is worth as much as moving half a megabyte.
const SURPLUS_NS_PER_BYTE: u64 = 100;

/// Estimates for one model on one device under one mapping.
#[derive(Clone, Debug)]
pub struct CostModel {
    device: Device,
    mapping: Mapping,
    objective: Objective,
    profiles: Vec<Bindings>,
}

impl CostModel {
    /// A model with the symbols of a graph bound to the profiles of a device.
    pub fn new(device: Device, mapping: Mapping, objective: Objective, graph: &Graph) -> CostModel {
        let dims = || graph.nodes().flat_map(|(_, n)| n.types.iter().flat_map(|t| t.shape.iter()));
        let profiles = device.profiles.iter().map(|p| p.bind(dims())).collect();
        CostModel { device, mapping, objective, profiles }
    }

    /// The values that the profiles give to the symbols.
    pub fn profiles(&self) -> &[Bindings] {
        &self.profiles
    }

    /// The device and its profiles in words.
    pub fn describe(&self) -> String {
        let names: Vec<&str> = self.device.profiles.iter().map(|p| p.name.as_str()).collect();
        format!("{} ({})", self.device.name, names.join(" + "))
    }

    /// Size of a tensor in a profile, in bytes.
    fn bytes(&self, t: &TensorType, profile: &Bindings) -> f64 {
        elements(&t.shape, profile) * t.dtype.size() as f64
    }

    /// Estimated time of one step, in nanoseconds over all profiles.
    pub fn time(&self, op: &Op, inputs: &[&[TensorType]], outputs: &[TensorType]) -> u64 {
        self.profiles.iter().map(|p| self.time_in(op, inputs, outputs, p)).sum()
    }

    fn time_in(&self, op: &Op, inputs: &[&[TensorType]], outputs: &[TensorType], p: &Bindings) -> u64 {
        let d = &self.device;
        let sum = |ts: &[TensorType]| ts.iter().map(|t| self.bytes(t, p)).sum::<f64>();
        let read: f64 = inputs.iter().map(|t| sum(t)).sum();
        let written = sum(outputs);
        let moved = |bytes: f64| nanoseconds(bytes / d.bytes_per_s);
        let ranks = self.mapping.tp as f64;
        let link = |l: &Link, bytes: f64| l.alpha_ns + nanoseconds(bytes / l.bytes_per_s);
        let first = || inputs.first().map_or(0.0, |t| sum(t));
        match op {
            Op::Input { .. } | Op::Weight { .. } | Op::Const { .. } | Op::Dims { .. } => 0,
            Op::Reshape { .. } | Op::Get { .. } | Op::Output { .. } | Op::OutputSharded { .. } => 0,
            // Of each expert's matrix, what some token has chosen is read once.
            Op::ExpertMatmul { .. } => {
                let matrices = inputs.iter().skip(1).filter(|t| t[0].rank() == 3).map(|t| sum(t)).sum::<f64>();
                let experts = inputs[1][0].shape.first().map_or(1.0, |d| elements(std::slice::from_ref(d), p)).max(1.0);
                let chosen = elements(&inputs[2][0].shape, p).min(experts) / experts;
                let width = inputs[0][0].shape.last().map_or(1.0, |d| elements(std::slice::from_ref(d), p));
                let compute = nanoseconds(2.0 * elements(&outputs[0].shape, p) * width / d.peak(outputs[0].dtype));
                d.launch_ns + compute.max(moved(read - matrices * (1.0 - chosen) + written))
            }
            Op::Matmul { .. } | Op::Attention { .. } => {
                let flops = flops(op, inputs, outputs, p);
                let compute = nanoseconds(flops / d.peak(outputs[0].dtype));
                d.launch_ns + compute.max(moved(read + written))
            }
            // Only the rows that are taken are read.
            Op::Gather { .. } | Op::GatherNd { .. } | Op::VocabGather { .. } | Op::Slice { .. } | Op::Shard { .. } => {
                d.launch_ns + moved(2.0 * written)
            }
            Op::AllReduce { .. } => link(&d.collective, 2.0 * (ranks - 1.0) / ranks * first()),
            Op::AllGather { .. } => link(&d.collective, (ranks - 1.0) / ranks * written),
            // The kernel reduces and normalises in one pass: residual read, norm and sum written.
            op if op.norm().is_some_and(|n| n.axis().is_some()) => {
                link(&d.collective, 2.0 * (ranks - 1.0) / ranks * first()) + moved(read - first() + written)
            }
            Op::Boundary { .. } => link(&d.transfer, first()),
            Op::Send { .. } | Op::Recv { .. } => 0,
            _ => d.launch_ns + moved(read + written),
        }
    }

    /// Price of holding a weight whole that the tensor axis could divide, in nanoseconds.
    ///
    /// A weight that is cut into fewer parts than there are ranks has no price: that happens only where
    /// neighbouring ranks share a key head, and to gather finer parts would cost a collective per layer.
    pub fn surplus(&self, weight: &TensorType) -> u64 {
        if self.objective == Objective::Latency || !weight.is_matrix() || self.mapping.tp == 1 {
            return 0;
        }
        let bytes = weight.bytes().as_const().unwrap_or(0).unsigned_abs();
        bytes.saturating_sub(bytes / self.mapping.tp as u64).saturating_mul(SURPLUS_NS_PER_BYTE)
    }
}

fn elements(shape: &[Dim], p: &Bindings) -> f64 {
    shape.iter().map(|d| d.eval(p).unwrap_or(1) as f64).product()
}

/// Seconds in nanoseconds: at most what sums of some thousand times can hold.
fn nanoseconds(seconds: f64) -> u64 {
    ((seconds * 1e9) as u64).min(1 << 50)
}

/// Floating-point operations of a product or an attention.
fn flops(op: &Op, inputs: &[&[TensorType]], outputs: &[TensorType], p: &Bindings) -> f64 {
    let out = elements(&outputs[0].shape, p);
    let last = |i: usize| inputs[i][0].shape.last().map_or(1.0, |d| d.eval(p).unwrap_or(1) as f64);
    match op {
        Op::Matmul { .. } => 2.0 * out * last(0),
        _ => {
            let keys = inputs[1][0].shape.get(2).map_or(1.0, |d| d.eval(p).unwrap_or(1) as f64);
            2.0 * out * keys * (1.0 + last(0) / last(2).max(1.0))
        }
    }
}
