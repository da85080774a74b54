//! Writes the ONNX files of `sinter optimize --emit onnx`, each whole or not at all.

use std::io::{BufWriter, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use sinter_runtime::plan::Plan;
use tempfile::NamedTempFile;

use super::optimize::progress;
use super::{Failure, counted, temporary, write_error};
use crate::emit::{File, Form, emit};
use crate::import::Weights;

/// A file that is written and has not yet its name.
type Pending = (NamedTempFile, PathBuf);

/// Writes the file of the only rank as `path`, or the files of all ranks into the folder `path`. Gives what is
/// told of it.
pub(super) fn write(path: &Path, plan: &Plan, weights: &Weights, form: Form) -> Result<String, Failure> {
    let world = plan.mapping.world();
    if world == 1 {
        if path.is_dir() {
            return Err(format!("{} is a folder: with one rank, --emit onnx writes a file", path.display()).into());
        }
        let (files, nodes) = rank(path, plan, 0, weights, form)?;
        publish(files)?;
        return Ok(format!("wrote {}: {}\n", path.display(), counted(nodes, "node")));
    }
    if path.exists() && !path.is_dir() {
        return Err(format!("{} is a file: with {world} ranks, --emit onnx writes a folder", path.display()).into());
    }
    let fresh = !path.exists();
    // Every rank's file is written before the first one is named, so that an error leaves no half of them.
    let done = folder(path, plan, weights, form);
    if done.is_err() && fresh {
        // The error is what matters; the folder is empty.
        drop(std::fs::remove_dir(path));
    }
    done
}

fn folder(path: &Path, plan: &Plan, weights: &Weights, form: Form) -> Result<String, Failure> {
    std::fs::create_dir_all(path).map_err(|e| write_error("folder", path, &e))?;
    let world = plan.mapping.world();
    let bar = progress(world as u64, "writing rank");
    let mut all = vec![];
    let mut total = 0;
    for r in 0..world {
        let (files, nodes) = rank(&path.join(format!("rank{r}.onnx")), plan, r, weights, form)?;
        all.extend(files);
        total += nodes;
        bar.inc(1);
    }
    bar.finish_and_clear();
    publish(all)?;
    let collectives = if plan.mapping.tp > 1 { "; AllReduce and AllGather are operators of com.microsoft" } else { "" };
    Ok(format!(
        "wrote rank0.onnx to rank{}.onnx into {}: {}{collectives}\n",
        world - 1,
        path.display(),
        counted(total, "node")
    ))
}

/// Writes the files of a rank under temporary names.
fn rank(
    path: &Path,
    plan: &Plan,
    rank: usize,
    weights: &Weights,
    form: Form,
) -> Result<(Vec<Pending>, usize), Failure> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| format!("{} does not name a file", path.display()))?;
    let name = name.to_str().ok_or_else(|| format!("{}: the name of an ONNX file must be UTF-8", path.display()))?;
    let data_name = format!("{name}.data");
    let file = emit(plan, rank, weights, form, &data_name)?;
    let error = |e: &std::io::Error| write_error("ONNX file", path, &e.kind());
    let mut out = vec![];
    if !file.data.is_empty() {
        let mut temp = temporary(dir).map_err(|e| error(&e))?;
        data(&file, &mut temp).map_err(|e| error(&e))?;
        out.push((temp, dir.join(&data_name)));
    }
    let mut temp = temporary(dir).map_err(|e| error(&e))?;
    temp.write_all(&file.bytes()).map_err(|e| error(&e))?;
    out.push((temp, path.to_owned()));
    Ok((out, file.nodes()))
}

/// Streams the weights to their places.
fn data(file: &File<'_>, temp: &mut NamedTempFile) -> std::io::Result<()> {
    let mut w = BufWriter::with_capacity(1 << 20, temp.as_file_mut());
    for blob in &file.data {
        w.seek(SeekFrom::Start(blob.offset))?;
        blob.write(&mut w)?;
    }
    w.flush()
}

/// Gives the files their names, data before the models that refer to them.
fn publish(files: Vec<Pending>) -> Result<(), Failure> {
    for (temp, path) in files {
        temp.persist(&path).map_err(|e| write_error("ONNX file", &path, &e.error.kind()))?;
    }
    Ok(())
}
