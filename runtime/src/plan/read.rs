//! Reads a plan and refuses one that was changed, cut off or made for another version.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rayon::prelude::*;
use safetensors::SafeTensors;
use serde::Deserialize;

use super::verify::{VerifyError, verify};
use super::{
    DEFAULTS_FILE, DIGEST_FILE, InputDecl, PLAN_FILE, Part, Plan, Source, Stage, VERSION, Value, WeightData,
    WeightEntry,
};
use crate::dim::{Bindings, Dim};
use crate::dtype::DType;
use crate::executor::{RunError, WeightSource};
use crate::map::{MappedFile, release};
use crate::random::RandomWeight;
use crate::tensor::{Tensor, for_each_piece};

/// Files are hashed, and released from memory, in pieces of so many bytes.
const PIECE: usize = 1 << 20;

/// Why a plan cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The operating system refused.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The plan was written by another version of the program.
    #[error("{}: plan version {found}, this program reads version {VERSION}: run `sinter optimize` again", path.display())]
    Version {
        /// The plan.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// A file is not the one that was written.
    #[error("{}: {why}; it was changed or damaged after the plan was written: run `sinter optimize` again", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// What differs.
        why: String,
    },
    /// The file is not a plan.
    #[error("{}: not a plan: {why}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What the reader says.
        why: String,
    },
    /// The plan contradicts itself.
    #[error("{}: {source}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The contradictions.
        source: VerifyError,
    },
}

/// The weight files of all ranks, mapped into memory.
pub struct PlanWeights {
    ranks: Vec<Option<RankFile>>,
    /// Parts that no file has, by rank and key: they are made up when they are first read.
    random: BTreeMap<(usize, String), RandomPart>,
    /// Default values of inputs.
    defaults: Option<RankFile>,
}

/// A rank's part of a weight whose data is made up.
struct RandomPart {
    weight: RandomWeight,
    shape: Vec<usize>,
    range: Option<super::Range>,
    cut: Option<(usize, usize, usize)>,
    made: OnceLock<Tensor>,
}

impl RandomPart {
    fn entry(&self, key: &str) -> WeightEntry<'_> {
        WeightEntry {
            key: key.to_owned(),
            dtype: self.weight.dtype,
            shape: self.shape.clone(),
            source: WeightData::Random(&self.weight),
            source_shape: self.weight.shape.clone(),
            range: self.range,
            cut: self.cut,
        }
    }

    fn get(&self, rank: usize, key: &str) -> Result<&[u8], RunError> {
        if self.made.get().is_none() {
            let made = self.entry(key).tensor();
            let made = made.map_err(|e| RunError::Weight { rank, key: key.to_owned(), why: e.to_string() })?;
            // Another thread may have been faster, with the same numbers.
            drop(self.made.set(made));
        }
        Ok(self.made.get().map_or(&[], Tensor::bytes))
    }
}

struct RankFile {
    map: MappedFile,
    tensors: BTreeMap<String, Entry>,
}

struct Entry {
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    data: Range<usize>,
}

impl Entry {
    /// Whether the extents are those of a shape, as far as it is known.
    fn fits(&self, shape: &[Dim]) -> bool {
        let same = |(d, n): (&Dim, &usize)| d.as_const().is_none_or(|d| usize::try_from(d) == Ok(*n));
        shape.len() == self.shape.len() && shape.iter().zip(&self.shape).all(same)
    }
}

/// Loads the plan in a folder and checks all of it.
pub fn load(dir: &Path) -> Result<(Plan, PlanWeights), PlanError> {
    let path = dir.join(PLAN_FILE);
    let json = read(&path)?;
    // The version comes first: other versions may keep their digests elsewhere.
    version(&path, &json)?;
    let digest = read(&dir.join(DIGEST_FILE))?;
    if digest.trim_ascii() != blake3::hash(&json).to_hex().as_bytes() {
        return Err(PlanError::Changed { path, why: format!("its digest is not that in {DIGEST_FILE}") });
    }
    let plan = decode(&path, &json)?;
    let maps = plan.files.par_iter().map(|f| Ok((f.name.clone(), check_file(dir, f)?)));
    let maps: BTreeMap<String, MappedFile> = maps.collect::<Result<_, PlanError>>()?;
    let weights = PlanWeights::new(&plan, maps, dir)?;
    Ok((plan, weights))
}

/// Reads back what a writer has put into the folder `temp`, of which it has the digests, before it becomes the folder `dir`.
pub(super) fn check_written(plan: &Plan, json: &[u8], temp: &Path, dir: &Path) -> Result<(), PlanError> {
    let path = dir.join(PLAN_FILE);
    version(&path, json)?;
    let found = decode(&path, json)?;
    if let Some(why) = difference(plan, &found) {
        return Err(PlanError::Format { path, why });
    }
    let mut maps = BTreeMap::new();
    for f in plan.files.iter().filter(|f| f.name.ends_with(".safetensors")) {
        let file = temp.join(&f.name);
        let map = MappedFile::open(&file).map_err(|source| PlanError::File { path: dir.join(&f.name), source })?;
        maps.insert(f.name.clone(), map);
    }
    PlanWeights::new(plan, maps, dir).map(|_| ())
}

/// The first value of a plan that reads back as another one. Extents are compared by their values, since one expression may
/// have several forms.
fn difference(written: &Plan, read: &Plan) -> Option<String> {
    let stages = |p: &Plan| p.stages.iter().chain(p.reference.as_deref()).cloned().collect::<Vec<Stage>>();
    let (a, b) = (stages(written), stages(read));
    let mut symbols = std::collections::BTreeSet::new();
    a.iter().flat_map(|s| &s.values).flat_map(|v| &v.ty.shape).for_each(|d| d.collect_symbols(&mut symbols));
    let numbers = |scale: i64| symbols.iter().zip(1i64..).map(|(s, i)| (s.clone(), scale * i + 1)).collect();
    let bindings: [Bindings; 3] = [numbers(0), numbers(1), numbers(7)];
    let same_extent = |x: &Dim, y: &Dim| bindings.iter().all(|b| x.eval(b).ok() == y.eval(b).ok());
    let same_value = |x: &Value, y: &Value| {
        let extents = || x.ty.shape.iter().zip(&y.ty.shape).all(|(x, y)| same_extent(x, y));
        (&x.name, x.ty.dtype, &x.source) == (&y.name, y.ty.dtype, &y.source) && x.ty.rank() == y.ty.rank() && extents()
    };
    for (i, (a, b)) in a.iter().zip(&b).enumerate() {
        if let Some((x, y)) = a.values.iter().zip(&b.values).find(|(x, y)| !same_value(x, y)) {
            return Some(format!(
                "value `{}` of stage {i} is {}, and reads back as `{}`, {}",
                x.name, x.ty, y.name, y.ty
            ));
        }
        let ops = |s: &Stage| s.steps.iter().map(|t| t.op.title().to_owned()).collect::<Vec<_>>();
        if a.values.len() != b.values.len() || ops(a) != ops(b) {
            return Some(format!("stage {i} reads back with other values or steps"));
        }
    }
    (a.len() != b.len()).then(|| "it reads back with other stages".to_owned())
}

fn format_error(path: &Path) -> impl Fn(serde_json::Error) -> PlanError + '_ {
    |e| PlanError::Format { path: path.to_owned(), why: e.to_string() }
}

fn version(path: &Path, json: &[u8]) -> Result<(), PlanError> {
    #[derive(Deserialize)]
    struct Head {
        version: u64,
    }
    let head: Head = serde_json::from_slice(json).map_err(format_error(path))?;
    if head.version != u64::from(VERSION) {
        return Err(PlanError::Version { path: path.to_owned(), found: head.version });
    }
    Ok(())
}

fn decode(path: &Path, json: &[u8]) -> Result<Plan, PlanError> {
    let plan: Plan = serde_json::from_slice(json).map_err(format_error(path))?;
    verify(&plan).map_err(|source| PlanError::Malformed { path: path.to_owned(), source })?;
    Ok(plan)
}

fn read(path: &Path) -> Result<Vec<u8>, PlanError> {
    std::fs::read(path).map_err(|source| PlanError::File { path: path.to_owned(), source })
}

fn check_file(dir: &Path, decl: &super::FileDecl) -> Result<MappedFile, PlanError> {
    let path = dir.join(&decl.name);
    if !super::is_plain_name(&decl.name) {
        return Err(PlanError::Format { path: dir.join(PLAN_FILE), why: format!("a file called `{}`", decl.name) });
    }
    let map = MappedFile::open(&path).map_err(|source| PlanError::File { path: path.clone(), source })?;
    let changed = |why: String| Err(PlanError::Changed { path: path.clone(), why });
    if map.len() as u64 != decl.bytes {
        return changed(format!("{} bytes instead of {}", map.len(), decl.bytes));
    }
    let mut hasher = blake3::Hasher::new();
    for piece in map.chunks(PIECE) {
        hasher.update(piece);
        // The file may be larger than memory; what is hashed need not stay.
        release(piece);
    }
    if hasher.finalize().to_hex().as_str() != decl.blake3 {
        return changed("its digest is not that in the plan".to_owned());
    }
    Ok(map)
}

impl RankFile {
    fn parse(map: MappedFile, path: &Path) -> Result<RankFile, PlanError> {
        let format = |why: String| PlanError::Format { path: path.to_owned(), why };
        let (header, meta) = SafeTensors::read_metadata(&map).map_err(|e| format(e.to_string()))?;
        let mut tensors = BTreeMap::new();
        for key in meta.offset_keys() {
            let Some(info) = meta.info(&key) else { continue };
            let (from, to) = info.data_offsets;
            let data = 8 + header + from..8 + header + to;
            if map.get(data.clone()).is_none() {
                return Err(format(format!("tensor `{key}` lies outside the file")));
            }
            tensors.insert(key, Entry { dtype: info.dtype, shape: info.shape.clone(), data });
        }
        Ok(RankFile { map, tensors })
    }
}

/// The element type of the file format in which elements are kept.
pub(super) fn safetensors_dtype(dtype: DType) -> safetensors::Dtype {
    match dtype {
        DType::F64 => safetensors::Dtype::F64,
        DType::F32 => safetensors::Dtype::F32,
        DType::F16 => safetensors::Dtype::F16,
        DType::BF16 => safetensors::Dtype::BF16,
        DType::I64 => safetensors::Dtype::I64,
        DType::I32 => safetensors::Dtype::I32,
        DType::I8 => safetensors::Dtype::I8,
        DType::U8 => safetensors::Dtype::U8,
        DType::Bool => safetensors::Dtype::BOOL,
        DType::I16 => safetensors::Dtype::I16,
        DType::U16 => safetensors::Dtype::U16,
        DType::U32 => safetensors::Dtype::U32,
        DType::U64 => safetensors::Dtype::U64,
        DType::F8E4M3FN => safetensors::Dtype::F8_E4M3,
        DType::F8E5M2 => safetensors::Dtype::F8_E5M2,
        // One code a byte.
        _ => safetensors::Dtype::U8,
    }
}

/// The extents of a weight's value, which are constants.
fn extents(value: &Value) -> Option<Vec<usize>> {
    value.ty.shape.iter().map(|d| usize::try_from(d.as_const()?).ok()).collect()
}

impl PlanWeights {
    /// The weights of a plan in the files of its folder, checked against what the plan says of them.
    fn new(plan: &Plan, mut maps: BTreeMap<String, MappedFile>, dir: &Path) -> Result<PlanWeights, PlanError> {
        let mut take = |name: &str| maps.remove(name).map(|m| RankFile::parse(m, &dir.join(name))).transpose();
        let defaults = take(DEFAULTS_FILE)?;
        let ranks = (0..plan.mapping.world()).map(|r| take(&Plan::weight_file(r))).collect::<Result<_, _>>()?;
        let mut weights = PlanWeights { ranks, random: BTreeMap::new(), defaults };
        for rank in 0..plan.mapping.world() {
            let stage = &plan.stages[rank / plan.mapping.tp];
            stage.values.iter().try_for_each(|v| weights.check_value(plan, rank, v, dir))?;
        }
        if let Some(reference) = &plan.reference {
            for v in &reference.values {
                if let Source::Weight { weight, .. } = &v.source {
                    let whole = Held::find(plan, weight).and_then(|h| Held::check(&h, v));
                    whole.map_err(|why| PlanError::Format { path: dir.join(PLAN_FILE), why })?;
                }
            }
        }
        for input in plan.inputs.iter().filter(|i| i.default) {
            let why = match weights.defaults.as_ref().and_then(|f| f.tensors.get(&input.name)) {
                None => format!("the default value of the input `{}` is missing", input.name),
                Some(e) if e.dtype != safetensors_dtype(input.ty.dtype) || !e.fits(&input.ty.shape) => {
                    format!("the default value of the input `{}` is {:?}{:?}", input.name, e.dtype, e.shape)
                }
                Some(_) => continue,
            };
            return Err(PlanError::Format { path: dir.join(DEFAULTS_FILE), why });
        }
        Ok(weights)
    }

    /// The default value of an input.
    pub fn default(&self, input: &InputDecl) -> Result<Option<Tensor>, RunError> {
        let Some((file, e)) = self.defaults.as_ref().and_then(|f| Some((f, f.tensors.get(&input.name)?))) else {
            return Ok(None);
        };
        let bytes = file.map.get(e.data.clone()).unwrap_or_default();
        let tensor = Tensor::from_bytes(input.ty.dtype, &e.shape, bytes);
        tensor.map(Some).map_err(|e| RunError::Inputs(vec![format!("default value of `{}`: {e}", input.name)]))
    }

    /// Makes up all data that no file has, so that a run need not.
    pub fn prepare(&self) -> Result<(), RunError> {
        self.random.par_iter().try_for_each(|((rank, key), part)| part.get(*rank, key).map(|_| ()))
    }

    fn check_value(&mut self, plan: &Plan, rank: usize, value: &Value, dir: &Path) -> Result<(), PlanError> {
        let Source::Weight { key, weight, range, part } = &value.source else { return Ok(()) };
        let path = dir.join(Plan::weight_file(rank));
        let format = |why: String| Err(PlanError::Format { path: path.clone(), why });
        if let (None, Some(random), Some(shape)) = (self.entry(rank, key), plan.random_weight(weight), extents(value)) {
            let column = |p: &Part| (p.dim, p.of(rank % plan.mapping.tp, plan.mapping.size(p.axis)), p.parts);
            let cut = part.as_ref().map(column);
            let part = RandomPart { weight: random.clone(), shape, range: *range, cut, made: OnceLock::new() };
            return match part.entry(key).check() {
                Ok(()) if value.ty.dtype == random.dtype => {
                    self.random.insert((rank, key.clone()), part);
                    Ok(())
                }
                Ok(()) => format(format!("the weight `{key}` is {}, the plan says {}", random.dtype, value.ty)),
                Err(e) => format(e.to_string()),
            };
        }
        match self.entry(rank, key) {
            None => format(format!("the weight `{key}` is missing")),
            Some(e) if e.dtype != safetensors_dtype(value.ty.dtype) || extents(value).as_ref() != Some(&e.shape) => {
                format(format!("the weight `{key}` is {:?}{:?}, the plan says {}", e.dtype, e.shape, value.ty))
            }
            Some(_) => Ok(()),
        }
    }

    fn entry(&self, rank: usize, key: &str) -> Option<&Entry> {
        self.ranks.get(rank)?.as_ref()?.tensors.get(key)
    }

    fn get(&self, rank: usize, key: &str) -> Result<&[u8], RunError> {
        if let Some(part) = self.random.get(&(rank, key.to_owned())) {
            return part.get(rank, key);
        }
        let missing =
            || RunError::Weight { rank, key: key.to_owned(), why: "not in the rank's weight file".to_owned() };
        let file = self.ranks.get(rank).and_then(Option::as_ref).ok_or_else(missing)?;
        let entry = file.tensors.get(key).ok_or_else(missing)?;
        file.map.get(entry.data.clone()).ok_or_else(missing)
    }

    /// A whole weight of the model, put together from the parts that the ranks hold.
    pub fn whole(&self, plan: &Plan, weight: &str) -> Result<Cow<'_, [u8]>, RunError> {
        let error = |why: String| RunError::Weight { rank: 0, key: weight.to_owned(), why };
        let held = Held::find(plan, weight).map_err(error)?;
        let [one] = &held[..] else {
            // A fused weight that was taken apart: the ranges lie one after the other along one axis.
            let shape = Held::shape_of_all(&held).map_err(error)?;
            let dtype = held[0].value.ty.dtype;
            let len = crate::tensor::byte_len(dtype, &shape).ok_or_else(|| error(format!("{shape:?} is too large")))?;
            let mut whole = vec![0; len];
            for h in &held {
                let piece = self.joined(plan, h, weight)?;
                let Some(r) = h.range else { continue };
                let mut window: Vec<std::ops::Range<usize>> = shape.iter().map(|&n| 0..n).collect();
                window[r.dim] = r.start..r.end;
                let mut at = 0;
                crate::tensor::for_each_run(dtype, &shape, &window, |to| {
                    let n = to.len();
                    whole[to].copy_from_slice(&piece[at..at + n]);
                    at += n;
                });
            }
            return Ok(Cow::Owned(whole));
        };
        self.joined(plan, one, weight)
    }

    /// What the ranks of a stage hold of a weight, joined.
    fn joined(&self, plan: &Plan, held: &Held<'_>, weight: &str) -> Result<Cow<'_, [u8]>, RunError> {
        let error = |why: String| RunError::Weight { rank: 0, key: weight.to_owned(), why };
        let first_rank = plan.mapping.rank(held.stage, 0);
        let Some(part) = held.part.filter(|p| p.parts > 1) else {
            return Ok(Cow::Borrowed(self.get(first_rank, held.key)?));
        };
        let (shape, dtype) = (held.shape().map_err(error)?, held.value.ty.dtype);
        let len = crate::tensor::byte_len(dtype, &shape).ok_or_else(|| error(format!("{shape:?} is too large")))?;
        let mut whole = Vec::new();
        whole.try_reserve_exact(len).map_err(|e| error(e.to_string()))?;
        whole.resize(len, 0);
        for index in 0..part.parts {
            let column = index * plan.mapping.tp / part.parts;
            let piece = self.get(plan.mapping.rank(held.stage, column), held.key)?;
            if piece.len() != len / part.parts {
                return Err(error(format!("part {index} has {} bytes", piece.len())));
            }
            let mut at = 0;
            for_each_piece(dtype, &shape, part.dim, index, part.parts, |r| {
                let n = r.len();
                whole[r].copy_from_slice(&piece[at..at + n]);
                at += n;
            });
        }
        Ok(Cow::Owned(whole))
    }
}

/// Where a weight of the model is held: by a stage, whole or in parts over its columns.
struct Held<'a> {
    stage: usize,
    value: &'a Value,
    key: &'a str,
    range: Option<super::Range>,
    part: Option<Part>,
}

impl<'a> Held<'a> {
    /// Prefers a stage that holds the whole; failing that, one whose ranks hold its parts; failing that,
    /// the ranges that make it up, in order.
    fn find(plan: &'a Plan, name: &str) -> Result<Vec<Held<'a>>, String> {
        let all = plan.stages.iter().enumerate().flat_map(|(i, s)| s.values.iter().map(move |v| (i, v)));
        let mut held: Vec<Held<'a>> = all
            .filter_map(|(stage, value)| match &value.source {
                Source::Weight { key, weight, range, part } if weight == name => {
                    Some(Held { stage, value, key, range: *range, part: *part })
                }
                _ => None,
            })
            .collect();
        if let Some(h) = held.iter().find(|h| h.part.is_some_and(|p| p.axis != crate::attr::MeshAxis::Tp)) {
            return Err(format!("the weight `{name}` is cut along {}", h.part.map_or("nothing", |p| p.axis.name())));
        }
        if held.is_empty() {
            return Err(format!("no rank holds the weight `{name}`"));
        }
        if held.iter().any(|h| h.range.is_none()) {
            held.retain(|h| h.range.is_none());
            let best = held.iter().position(|h| h.part.is_none()).unwrap_or(0);
            return Ok(vec![held.swap_remove(best)]);
        }
        held.sort_by_key(|h| h.range);
        held.dedup_by_key(|h| h.range);
        let ranges: Vec<super::Range> = held.iter().filter_map(|h| h.range).collect();
        super::Range::whole(&ranges).map_err(|at| format!("the ranges of the weight `{name}` leave a gap at {at}"))?;
        Ok(held)
    }

    /// The shape of the weight that all of them make up.
    fn shape_of_all(held: &[Held<'_>]) -> Result<Vec<usize>, String> {
        let mut shape = held[0].shape()?;
        if let (Some(first), Some(last)) = (held[0].range, held[held.len() - 1].range) {
            shape[first.dim] = last.end;
        }
        Ok(shape)
    }

    /// The shape of the whole weight.
    fn shape(&self) -> Result<Vec<usize>, String> {
        let mut shape = extents(self.value).ok_or_else(|| format!("a weight of type {}", self.value.ty))?;
        if let Some(p) = self.part {
            let d = shape.get_mut(p.dim).ok_or_else(|| format!("a cut along axis {}", p.dim))?;
            *d = d.checked_mul(p.parts).ok_or_else(|| "a weight that is too large".to_owned())?;
        }
        Ok(shape)
    }

    /// Checks the whole against a value of the reference program.
    fn check(held: &[Held<'_>], value: &Value) -> Result<(), String> {
        let shape = Held::shape_of_all(held)?;
        if held[0].value.ty.dtype == value.ty.dtype && extents(value).as_ref() == Some(&shape) {
            return Ok(());
        }
        Err(format!("the weight `{}` is {} in the reference program, the ranks hold {shape:?}", value.name, value.ty))
    }
}

impl WeightSource for PlanWeights {
    fn weight(&self, rank: usize, key: &str) -> Result<Cow<'_, [u8]>, RunError> {
        self.get(rank, key).map(Cow::Borrowed)
    }

    fn default(&self, input: &InputDecl) -> Result<Option<Tensor>, RunError> {
        PlanWeights::default(self, input)
    }
}

/// The weights of the reference program, put together from the rank files.
pub struct ReferenceWeights<'a> {
    plan: &'a Plan,
    weights: &'a PlanWeights,
}

impl<'a> ReferenceWeights<'a> {
    /// The whole weights behind a plan's rank files.
    pub fn new(plan: &'a Plan, weights: &'a PlanWeights) -> ReferenceWeights<'a> {
        ReferenceWeights { plan, weights }
    }
}

/// The name of the model's weight behind a key of a stage.
fn weight_name<'a>(stage: &'a Stage, wanted: &str) -> Option<&'a str> {
    stage.values.iter().find_map(|v| match &v.source {
        Source::Weight { key, weight, .. } if key == wanted => Some(weight.as_str()),
        _ => None,
    })
}

impl WeightSource for ReferenceWeights<'_> {
    fn weight(&self, rank: usize, key: &str) -> Result<Cow<'_, [u8]>, RunError> {
        let name = self.plan.reference.as_deref().and_then(|r| weight_name(r, key));
        let missing = || RunError::Weight { rank, key: key.to_owned(), why: "not in the reference program".to_owned() };
        self.weights.whole(self.plan, name.ok_or_else(missing)?)
    }

    fn default(&self, input: &InputDecl) -> Result<Option<Tensor>, RunError> {
        self.weights.default(input)
    }
}
