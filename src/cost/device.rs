//! Device profiles: what a kernel and a transfer cost, and for which shapes.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::ir::{Bindings, DType, Dim};

/// The device that costs are estimated for unless another is named.
pub const DEFAULT: &str = include_str!("../../fixtures/devices/h200.json");

/// A device and the shapes that matter on it. See `fixtures/devices/*.json`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// A short name.
    pub name: String,
    /// Where the figures come from.
    pub source: String,
    /// Memory bandwidth that kernels reach.
    pub bytes_per_s: f64,
    /// Peak rate by element type, in operations per second.
    pub flops: BTreeMap<DType, f64>,
    /// Time to start a kernel.
    pub launch_ns: u64,
    /// All-reduce and all-gather.
    pub collective: Link,
    /// Transfers between stages.
    pub transfer: Link,
    /// Representative shapes; costs are summed over them.
    pub profiles: Vec<Profile>,
}

/// Time of a transfer: `alpha_ns` plus bytes over bandwidth.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Latency.
    pub alpha_ns: u64,
    /// Bandwidth per rank and direction.
    pub bytes_per_s: f64,
}

/// Values for the symbols of a model.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Such as `decode`.
    pub name: String,
    /// By part of the symbol's name, so that `batch` also stands for `batch_size`.
    pub symbols: BTreeMap<String, i64>,
    /// For every other symbol.
    pub default: i64,
}

/// A profile file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("device profile {name}: {message}")]
pub struct DeviceError {
    /// File or device.
    pub name: String,
    /// What is wrong.
    pub message: String,
}

impl Device {
    /// Reads a profile.
    pub fn parse(name: &str, json: &str) -> Result<Device, DeviceError> {
        let error = |message: String| DeviceError { name: name.to_owned(), message };
        let d: Device = serde_json::from_str(json).map_err(|e| error(e.to_string()))?;
        let rates = [d.bytes_per_s, d.collective.bytes_per_s, d.transfer.bytes_per_s];
        if rates.iter().chain(d.flops.values()).any(|r| r.is_nan() || *r <= 0.0) || !d.flops.contains_key(&DType::F32) {
            return Err(error("rates must be positive, and `flops` must have `f32`".into()));
        }
        if d.profiles.is_empty() {
            return Err(error("no profile of shapes".into()));
        }
        Ok(d)
    }

    /// Peak rate for an element type; that of f32 where none is given.
    pub fn peak(&self, dtype: DType) -> f64 {
        self.flops.get(&dtype).or_else(|| self.flops.get(&DType::F32)).copied().unwrap_or(1e12)
    }
}

impl Profile {
    /// Values for all symbols in `dims`.
    pub fn bind<'d>(&self, dims: impl Iterator<Item = &'d Dim>) -> Bindings {
        let mut names = std::collections::BTreeSet::new();
        dims.for_each(|d| d.collect_symbols(&mut names));
        names
            .into_iter()
            .map(|n| {
                let lower = n.to_lowercase();
                let exact = self.symbols.get(&lower);
                let part = || self.symbols.iter().find(|(k, _)| lower.contains(k.as_str())).map(|(_, v)| v);
                let value = exact.or_else(part).copied().unwrap_or(self.default);
                (n, value)
            })
            .collect()
    }
}
