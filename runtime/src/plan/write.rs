//! Writes a plan as a folder, all of it or nothing.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{DEFAULTS_FILE, DIGEST_FILE, FileDecl, PLAN_FILE, Plan, PlanError, Range};
use crate::dtype::DType;
use crate::map;
use crate::random::RandomWeight;
use crate::tensor::{Tensor, byte_len, for_each_run};

/// Why a plan could not be written. Nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The operating system refused.
    #[error("cannot write {}: {source}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The folder exists and holds something else than a plan.
    #[error("{} exists and is not a plan: choose another folder, or empty it", .0.display())]
    Occupied(PathBuf),
    /// A weight's bytes, shape and cut do not fit together.
    #[error("weight `{key}`: {why}")]
    Weight {
        /// Key in the rank's file.
        key: String,
        /// What does not fit.
        why: String,
    },
    /// The name of a file would lie outside the folder, or is taken.
    #[error("`{0}` cannot be the name of a file of the plan")]
    Name(String),
    /// What was written does not read back as the plan.
    #[error(
        "no plan was written to {}: it would not read back as it is ({source})\n  this is a defect of sinter; please report it with the model",
        path.display()
    )]
    Unreadable {
        /// Where the plan was to be.
        path: PathBuf,
        /// What the reader says.
        source: Box<PlanError>,
    },
    /// The plan cannot be written as JSON.
    #[error("the plan cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Weight data is written, and released from memory, in pieces of so many bytes.
const PIECE: usize = 1 << 20;

/// The elements of a whole weight.
#[derive(Clone, Copy, Debug)]
pub enum WeightData<'a> {
    /// In row-major order, little-endian.
    Bytes(&'a [u8]),
    /// Made up.
    Random(&'a RandomWeight),
}

/// A weight, or a part of one, for one rank's file.
pub struct WeightEntry<'a> {
    /// Key in the file.
    pub key: String,
    /// Element type.
    pub dtype: DType,
    /// Shape of the part.
    pub shape: Vec<usize>,
    /// The whole weight's elements.
    pub source: WeightData<'a>,
    /// The whole weight's shape.
    pub source_shape: Vec<usize>,
    /// What is taken of it first; `None`: all.
    pub range: Option<Range>,
    /// `(dim, index, parts)`: part `index` of `parts` of that along `dim`. `None`: all of it.
    pub cut: Option<(usize, usize, usize)>,
}

impl WeightEntry<'_> {
    /// Whether data, shapes and cut fit together.
    pub fn check(&self) -> Result<(), WriteError> {
        let error = |why: String| Err(WriteError::Weight { key: self.key.clone(), why });
        let whole = byte_len(self.dtype, &self.source_shape);
        match self.source {
            WeightData::Bytes(b) if whole != Some(b.len()) => {
                return error(format!("{} bytes for {}{:?}", b.len(), self.dtype, self.source_shape));
            }
            WeightData::Random(r) if r.dtype != self.dtype || r.shape != self.source_shape => {
                return error(format!("{}{:?} for {}{:?}", r.dtype, r.shape, self.dtype, self.source_shape));
            }
            WeightData::Random(r) => r.check().or_else(error)?,
            WeightData::Bytes(_) => {}
        }
        let mut shape = self.source_shape.clone();
        if let Some(r) = self.range {
            match shape.get_mut(r.dim) {
                Some(d) if r.start <= r.end && r.end <= *d => *d = r.end - r.start,
                _ => return error(format!("{r:?} of {:?}", self.source_shape)),
            }
        }
        if let Some((dim, index, parts)) = self.cut {
            match shape.get_mut(dim) {
                Some(d) if index < parts && *d % parts == 0 => *d /= parts,
                _ => return error(format!("part {index} of {parts} along axis {dim} of {shape:?}")),
            }
        }
        if shape != self.shape {
            return error(format!("the part has shape {shape:?}, not {:?}", self.shape));
        }
        Ok(())
    }

    /// Length of the part in bytes.
    pub fn bytes(&self) -> usize {
        byte_len(self.dtype, &self.shape).unwrap_or(0)
    }

    /// Writes the part; it is never held in memory as a whole.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        self.check().map_err(io::Error::other)?;
        let source = match self.source {
            WeightData::Bytes(all) => all,
            WeightData::Random(w) => return self.write_random(w, out),
        };
        let mut result = Ok(());
        let mut done = None;
        for_each_run(self.dtype, &self.source_shape, &self.window(), |r| {
            let start = *done.get_or_insert(r.start);
            let mut released = start;
            for at in r.clone().step_by(PIECE) {
                let end = r.end.min(at + PIECE);
                if result.is_ok() {
                    result = out.write_all(&source[at..end]);
                }
                // What has been written need not stay in memory.
                if end - released >= PIECE {
                    map::release(&source[released..end]);
                    released = end;
                }
            }
            done = Some(released);
        });
        map::release(&source[done.unwrap_or(0)..]);
        result
    }

    fn write_random(&self, w: &RandomWeight, out: &mut dyn Write) -> io::Result<()> {
        let mut piece = vec![0; PIECE.min(self.bytes())];
        let mut result = Ok(());
        for_each_run(self.dtype, &self.source_shape, &self.window(), |r| {
            for at in r.clone().step_by(PIECE) {
                let piece = &mut piece[..PIECE.min(r.end - at)];
                if result.is_ok() {
                    w.fill(at / self.dtype.size(), piece);
                    result = out.write_all(piece);
                }
            }
        });
        result
    }

    /// The part as a tensor, for ranks that take their weights from memory.
    pub fn tensor(&self) -> Result<Tensor, WriteError> {
        self.check()?;
        let error = |e: crate::tensor::TensorError| WriteError::Weight { key: self.key.clone(), why: e.to_string() };
        let mut out = Tensor::zeros(self.dtype, &self.shape).map_err(error)?;
        let mut at = 0;
        for_each_run(self.dtype, &self.source_shape, &self.window(), |r| {
            let to = &mut out.bytes_mut()[at..at + r.len()];
            at += r.len();
            match self.source {
                WeightData::Bytes(all) => to.copy_from_slice(&all[r]),
                WeightData::Random(w) => w.fill(r.start / self.dtype.size(), to),
            }
        });
        Ok(out)
    }

    /// The positions along each axis that the entry has.
    fn window(&self) -> Vec<std::ops::Range<usize>> {
        let mut window: Vec<std::ops::Range<usize>> = self.source_shape.iter().map(|&n| 0..n).collect();
        if let Some(r) = self.range {
            window[r.dim] = r.start..r.end;
        }
        if let Some((dim, index, parts)) = self.cut {
            let w = &mut window[dim];
            let step = w.len() / parts;
            *w = w.start + index * step..w.start + (index + 1) * step;
        }
        window
    }
}

/// Writes a plan next to its place and moves it there at the end.
pub struct PlanWriter {
    target: PathBuf,
    temp: PathBuf,
    files: Vec<FileDecl>,
    done: bool,
}

/// Counts bytes and computes the digest of all that passes.
struct Hashed {
    file: File,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Write for Hashed {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.file.write(buf)?;
        self.hasher.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

static SERIAL: AtomicUsize = AtomicUsize::new(0);

impl PlanWriter {
    /// Starts a plan that will be the folder `dir`, which must not exist, be empty or hold a plan.
    pub fn create(dir: &Path) -> Result<PlanWriter, WriteError> {
        let error = |path: &Path| {
            let path = path.to_owned();
            move |source| WriteError::File { path, source }
        };
        // A link to a folder is followed, so that the folder and not the link is replaced.
        let target = if dir.exists() { fs::canonicalize(dir).map_err(error(dir))? } else { dir.to_owned() };
        let Some(name) = target.file_name() else { return Err(WriteError::Occupied(target)) };
        let parent = match target.parent() {
            Some(p) if !p.as_os_str().is_empty() => p.to_owned(),
            _ => PathBuf::from("."),
        };
        replaceable(&target)?;
        fs::create_dir_all(&parent).map_err(error(&parent))?;
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let temp = parent.join(format!(".{}.{}-{serial}.tmp", name.to_string_lossy(), std::process::id()));
        fs::create_dir(&temp).map_err(error(&temp))?;
        Ok(PlanWriter { target, temp, files: vec![], done: false })
    }

    /// Writes the weight file of a rank. Entries are streamed; a part is never held in memory as a whole.
    pub fn weights(&mut self, rank: usize, tensors: &[WeightEntry<'_>]) -> Result<(), WriteError> {
        self.tensors(&Plan::weight_file(rank), tensors)
    }

    /// Writes the default values of inputs.
    pub fn defaults(&mut self, tensors: &[WeightEntry<'_>]) -> Result<(), WriteError> {
        self.tensors(DEFAULTS_FILE, tensors)
    }

    fn tensors(&mut self, name: &str, tensors: &[WeightEntry<'_>]) -> Result<(), WriteError> {
        let mut sorted: Vec<&WeightEntry<'_>> = tensors.iter().collect();
        // Large elements first, so that every tensor is aligned to its element size.
        sorted.sort_by(|a, b| b.dtype.size().cmp(&a.dtype.size()).then_with(|| a.key.cmp(&b.key)));
        let mut header = serde_json::Map::new();
        let mut offset = 0;
        for w in &sorted {
            w.check()?;
            let end = offset + w.bytes();
            let dtype = super::read::safetensors_dtype(w.dtype);
            let row = serde_json::json!({ "dtype": dtype, "shape": w.shape, "data_offsets": [offset, end] });
            if w.key == "__metadata__" || header.insert(w.key.clone(), row).is_some() {
                return Err(WriteError::Weight { key: w.key.clone(), why: "the key is taken".to_owned() });
            }
            offset = end;
        }
        let mut header = serde_json::to_vec(&header)?;
        header.resize((8 + header.len()).next_multiple_of(64) - 8, b' ');
        self.file(name, |f| {
            f.write_all(&(header.len() as u64).to_le_bytes())?;
            f.write_all(&header)?;
            for w in &sorted {
                w.write(f)?;
            }
            Ok(())
        })
    }

    /// Writes a text file.
    pub fn text(&mut self, name: &str, contents: &str) -> Result<(), WriteError> {
        self.file(name, |f| f.write_all(contents.as_bytes()))
    }

    /// Writes the plan itself, with the list of its files, and moves the folder to its place.
    pub fn finish(mut self, mut plan: Plan) -> Result<(), WriteError> {
        self.files.sort_by(|a, b| a.name.cmp(&b.name));
        plan.files = std::mem::take(&mut self.files);
        let mut json = serde_json::to_string_pretty(&plan)?;
        json.push('\n');
        self.text(PLAN_FILE, &json)?;
        let digest = self.files.iter().find(|f| f.name == PLAN_FILE).map(|f| f.blake3.clone()).unwrap_or_default();
        self.text(DIGEST_FILE, &format!("{digest}\n"))?;
        let unreadable = |source| WriteError::Unreadable { path: self.target.clone(), source: Box::new(source) };
        super::read::check_written(&plan, json.as_bytes(), &self.temp, &self.target).map_err(unreadable)?;
        self.publish()?;
        self.done = true;
        Ok(())
    }

    fn file(&mut self, name: &str, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), WriteError> {
        if !super::is_plain_name(name) || self.files.iter().any(|f| f.name == name) {
            return Err(WriteError::Name(name.to_owned()));
        }
        let path = self.temp.join(name);
        let run = || {
            let hashed = Hashed { file: File::create_new(&path)?, hasher: blake3::Hasher::new(), bytes: 0 };
            let mut f = BufWriter::with_capacity(1 << 20, hashed);
            write(&mut f)?;
            f.into_inner().map_err(io::IntoInnerError::into_error)
        };
        let done = run().map_err(|source| WriteError::File { path: self.target.join(name), source })?;
        let blake3 = done.hasher.finalize().to_hex().to_string();
        self.files.push(FileDecl { name: name.to_owned(), bytes: done.bytes, blake3 });
        Ok(())
    }

    fn publish(&self) -> Result<(), WriteError> {
        let error = |source| WriteError::File { path: self.target.clone(), source };
        replaceable(&self.target)?;
        if !self.target.join(PLAN_FILE).exists() {
            // Renaming replaces an empty folder as well as none.
            return fs::rename(&self.temp, &self.target).map_err(error);
        }
        let aside = self.temp.with_extension("old");
        fs::rename(&self.target, &aside).map_err(error)?;
        if let Err(e) = fs::rename(&self.temp, &self.target) {
            fs::rename(&aside, &self.target).map_err(error)?;
            return Err(error(e));
        }
        fs::remove_dir_all(&aside).map_err(|source| WriteError::File { path: aside, source })
    }
}

/// Whether a plan may take the place of what is there.
fn replaceable(target: &Path) -> Result<(), WriteError> {
    let occupied = || WriteError::Occupied(target.to_owned());
    match fs::read_dir(target) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => Err(occupied()),
        Err(source) => Err(WriteError::File { path: target.to_owned(), source }),
        Ok(mut entries) => {
            let empty = entries.next().is_none();
            if empty || target.join(PLAN_FILE).is_file() { Ok(()) } else { Err(occupied()) }
        }
    }
}

impl Drop for PlanWriter {
    fn drop(&mut self) {
        if !self.done {
            // An error is under way already, and the folder is only a leftover.
            drop(fs::remove_dir_all(&self.temp));
        }
    }
}
