//! Buffer planning: values whose lifetimes do not overlap share storage.
//!
//! Results of standard operators, and what depends on their extents, are stored outside of buffers. Sizes are symbolic. A buffer is reused first where its size is the same expression, then where it is
//! large enough in every profile, then the largest free one grows; only then is a new one made. A result
//! never shares storage with an operand of its own step.

use std::collections::BTreeSet;

use sinter_runtime::plan::{Buffer, Source, Stage, ValueId};

use crate::ir::{Bindings, Dim, Op};

/// Gives every step result a buffer. `keep` are results that must survive to the end.
pub(super) fn assign(stage: &mut Stage, keep: &[ValueId], sizes: &[Bindings], known: &BTreeSet<String>) {
    let storage: Vec<ValueId> = (0..stage.values.len()).map(|i| stage.storage(ValueId(i))).collect();
    let mut last = vec![0usize; stage.values.len()];
    for (i, s) in stage.steps.iter().enumerate() {
        for v in s.inputs.iter().chain(s.outputs.iter().flatten()) {
            last[storage[v.0].0] = i;
        }
    }
    for v in keep {
        last[storage[v.0].0] = usize::MAX;
    }
    let eval = |d: &Dim| sizes.iter().map(|b| d.eval(b).unwrap_or(0)).collect::<Vec<i64>>();
    let mut buffers: Vec<(Buffer, Vec<i64>)> = vec![];
    let mut free: Vec<usize> = vec![];
    let mut expiring: Vec<Vec<usize>> = vec![vec![]; stage.steps.len()];
    for i in 0..stage.steps.len() {
        for v in stage.steps[i].outputs.clone().into_iter().flatten() {
            let bytes = stage.values[v.0].ty.bytes();
            let mut symbols = BTreeSet::new();
            bytes.collect_symbols(&mut symbols);
            // Nothing can be planned for extents that only execution shows.
            if matches!(stage.steps[i].op, Op::Standard { .. }) || !symbols.is_subset(known) {
                stage.values[v.0].source = Source::Late;
                continue;
            }
            let want = eval(&bytes);
            let fits = |b: usize| buffers[b].1.iter().zip(&want).all(|(have, want)| have >= want);
            let total = |b: &usize| buffers[*b].1.iter().sum::<i64>();
            let found = free
                .iter()
                .position(|&b| buffers[b].0.bytes == [bytes.clone()])
                .or_else(|| {
                    let smallest = free.iter().copied().filter(|&b| fits(b)).min_by_key(|b| (total(b), *b));
                    smallest.and_then(|s| free.iter().position(|&b| b == s))
                })
                .or_else(|| {
                    let largest = free.iter().copied().max_by_key(|b| (total(b), usize::MAX - *b));
                    largest.and_then(|s| free.iter().position(|&b| b == s))
                });
            let b = match found {
                Some(at) => free.remove(at),
                None => {
                    buffers.push((Buffer { bytes: vec![] }, vec![0; sizes.len()]));
                    buffers.len() - 1
                }
            };
            if !buffers[b].0.bytes.contains(&bytes) {
                buffers[b].0.bytes.push(bytes);
            }
            buffers[b].1.iter_mut().zip(&want).for_each(|(have, want)| *have = (*have).max(*want));
            stage.values[v.0].source = Source::Buffer(b);
            if last[v.0] < usize::MAX {
                expiring[last[v.0]].push(b);
            }
        }
        free.append(&mut expiring[i]);
        free.sort_unstable();
    }
    stage.buffers = buffers.into_iter().map(|(b, _)| b).collect();
}
