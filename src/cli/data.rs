//! Input and expected tensors: `.npz` files, and folders in ONNX's own test-data layout.

use std::collections::BTreeMap;
use std::path::Path;

use prost::Message as _;
use sinter_runtime::io::{read_npy_file, read_npz};
use sinter_runtime::tensor::Tensor;

use super::Failure;
use crate::import::proto::TensorProto;
use crate::import::read_tensor;
use crate::ir::DType;

/// Reads the tensors with the given names and element types. NumPy has no bfloat16, so that f32 arrays
/// stand for bf16 tensors, rounded to nearest. In a folder, tensor i is `<name>.npy`, `<prefix>_<i>.npy` or
/// `<prefix>_<i>.pb`. All that is missing or surplus is reported at once.
pub(super) fn read(
    path: &Path,
    prefix: &str,
    declared: &[(String, DType)],
) -> Result<BTreeMap<String, Tensor>, Failure> {
    let names: Vec<String> = declared.iter().map(|(n, _)| n.clone()).collect();
    let mut out: BTreeMap<String, Tensor> = BTreeMap::new();
    let mut problems = vec![];
    if path.is_dir() {
        for (i, name) in names.iter().enumerate() {
            let files = [format!("{name}.npy"), format!("{prefix}_{i}.npy"), format!("{prefix}_{i}.pb")];
            match files.iter().map(|f| path.join(f)).find(|p| p.is_file()) {
                None => problems.push(format!("`{name}`: there is none of {}", files.join(", "))),
                Some(file) => match read_file(&file) {
                    Ok(t) => {
                        out.insert(name.clone(), t);
                    }
                    Err(e) => problems.push(format!("`{name}`: {e}")),
                },
            }
        }
        for i in names.len()..names.len() + 64 {
            if ["npy", "pb"].iter().any(|e| path.join(format!("{prefix}_{i}.{e}")).is_file()) {
                problems.push(format!("{prefix}_{i} is surplus: there are {} {prefix}s", names.len()));
            }
        }
    } else {
        for (name, tensor) in read_npz(path)? {
            // An array may also be named by position.
            let by_position = name.strip_prefix(prefix).and_then(|r| r.strip_prefix('_')?.parse::<usize>().ok());
            match names.iter().find(|n| **n == name).or_else(|| names.get(by_position?)) {
                Some(n) => {
                    out.insert(n.clone(), tensor);
                }
                None => problems.push(format!("array `{name}` is no {prefix}")),
            }
        }
        for n in names.iter().filter(|n| !out.contains_key(*n)) {
            problems.push(format!("`{n}` is missing"));
        }
    }
    for (name, dtype) in declared {
        if let Some(t) = out.get_mut(name)
            && (*dtype, t.dtype) == (DType::BF16, DType::F32)
        {
            let bytes: Vec<u8> = t.to_f64().iter().flat_map(|v| half::bf16::from_f64(*v).to_le_bytes()).collect();
            *t = Tensor::from_bytes(*dtype, &t.shape, &bytes)?;
        }
    }
    if problems.is_empty() {
        return Ok(out);
    }
    let known = names.join(", ");
    Err(format!("{}: {}\n  the {prefix}s are: {known}", path.display(), problems.join("\n  ")).into())
}

fn read_file(path: &Path) -> Result<Tensor, Failure> {
    if path.extension().is_some_and(|e| e == "pb") {
        let error = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let bytes = std::fs::read(path).map_err(|e| error(&e))?;
        let proto = TensorProto::decode(&bytes[..]).map_err(|e| error(&e))?;
        let (dtype, shape, bytes) = read_tensor(&proto).map_err(|e| error(&e))?;
        return Ok(Tensor::from_bytes(dtype, &shape, &bytes)?);
    }
    Ok(read_npy_file(path)?)
}
