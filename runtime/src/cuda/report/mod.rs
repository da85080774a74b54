//! Compiles kernels with NVRTC for several architectures, and reports registers, memory and every warning. Needs no GPU.

mod log;
mod table;

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::source::{Kernel, module_source};
use super::{Compiler, CudaError, Result, Target};

pub use log::{Log, Usage, read_log};
pub use table::{Table, TableError};

/// Most kernels of one program. The headers of a program are read once, and a program is compiled by one thread.
const BATCH: usize = 16;

/// The architectures for which kernels are compiled where none are named.
pub const ARCHS: &[u32] = &[80, 90, 100];

/// A compilation of kernels for several architectures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What each kernel takes. A kernel that does not compile on some architecture has no row.
    pub table: Table,
    /// Warnings, errors and spills, each told once.
    pub problems: Vec<String>,
    /// Number of programs, over all architectures.
    pub programs: usize,
}

/// The programs of a catalogue: kernels of one file, by name, at most sixteen of them.
pub fn batches(kernels: &[Kernel]) -> Vec<Vec<&Kernel>> {
    let mut files: BTreeMap<&str, Vec<&Kernel>> = BTreeMap::new();
    kernels.iter().for_each(|k| files.entry(k.file).or_default().push(k));
    let mut out = vec![];
    for mut list in files.into_values() {
        list.sort();
        out.extend(list.chunks(BATCH).map(<[&Kernel]>::to_vec));
    }
    out
}

/// Compiles kernels for each architecture, on all cores.
pub fn compile_all(compiler: &Compiler, kernels: &[Kernel], archs: &[u32]) -> Result<Report> {
    if let Some(arch) = archs.iter().find(|a| !compiler.supported.contains(a)) {
        let (major, minor) = compiler.version;
        return Err(CudaError::NoDevice(format!(
            "NVRTC {major}.{minor} makes no code for compute capability {arch}; it supports {:?}",
            compiler.supported
        )));
    }
    let batches = batches(kernels);
    let jobs: Vec<(&[&Kernel], u32)> =
        archs.iter().flat_map(|&a| batches.iter().map(move |b| (b.as_slice(), a))).collect();
    let logs: Vec<Result<Log>> = jobs.par_iter().map(|(batch, arch)| compile(compiler, batch, *arch)).collect();
    let mut rows: BTreeMap<String, BTreeMap<u32, Usage>> = BTreeMap::new();
    let mut messages: BTreeMap<(&str, String), Vec<u32>> = BTreeMap::new();
    for ((batch, arch), log) in jobs.iter().zip(logs) {
        let file = batch.first().map_or("", |k| k.file);
        let log = match log {
            Ok(log) => log,
            Err(CudaError::Compile { log, .. }) => Log { kernels: BTreeMap::new(), messages: vec![log] },
            Err(e) => return Err(e),
        };
        for m in log.messages {
            let archs = messages.entry((file, m)).or_default();
            if !archs.contains(arch) {
                archs.push(*arch);
            }
        }
        for (name, usage) in log.kernels {
            rows.entry(name).or_default().insert(*arch, usage);
        }
    }
    let mut problems: Vec<String> = messages
        .into_iter()
        .map(|((file, message), archs)| {
            let archs: Vec<String> = archs.iter().map(|a| format!("sm_{a}")).collect();
            format!("{file} ({}): {message}", archs.join(", "))
        })
        .collect();
    let columns = |row: &BTreeMap<u32, Usage>| archs.iter().map(|a| row.get(a).copied()).collect::<Option<Vec<_>>>();
    let mut table = Table { nvrtc: compiler.version, archs: archs.to_vec(), rows: BTreeMap::new() };
    for k in kernels {
        match rows.get(&k.name).and_then(columns) {
            Some(row) => {
                table.rows.insert(k.name.clone(), row);
            }
            // The message that says why is there already.
            None if !problems.is_empty() => {}
            None => problems.push(format!("{}: the log of ptxas does not name `{}`", k.file, k.name)),
        }
    }
    problems.extend(table.spills());
    Ok(Report { table, problems, programs: jobs.len() })
}

fn compile(compiler: &Compiler, batch: &[&Kernel], arch: u32) -> Result<Log> {
    let name = batch.first().map_or("", |k| k.name.as_str());
    compiler.compile(name, &module_source(batch), Target::Machine(arch), true).map(|c| read_log(&c.log))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_holds_kernels_of_one_file_by_name() {
        let k = |file, i: usize| Kernel::new(file, format!("k{i:02}"), 32, "A", "f");
        let kernels: Vec<Kernel> = (0..20).rev().map(|i| k("b.cu", i)).chain([k("a.cu", 99)]).collect();
        let batches = batches(&kernels);
        let names: Vec<Vec<&str>> = batches.iter().map(|b| b.iter().map(|k| k.name.as_str()).collect()).collect();
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [1, BATCH, 20 - BATCH]);
        assert_eq!((names[0][0], names[1][0], names[2][3]), ("k99", "k00", "k19"));
    }

    #[test]
    fn names_in_the_catalogue_are_unique_and_say_what_they_instantiate() {
        let catalog = super::super::catalog();
        let names: std::collections::BTreeSet<&str> = catalog.iter().map(|k| k.name.as_str()).collect();
        assert_eq!(names.len(), catalog.len());
        for k in &catalog {
            assert!(!k.body().is_empty() && k.threads().is_some_and(|n| n <= 1024), "{}: {}", k.name, k.entry);
        }
    }
}
