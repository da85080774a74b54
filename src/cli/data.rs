//! Input and expected values: `.npz` files, and folders in ONNX's own test-data layout.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use prost::Message as _;
use sinter_runtime::dtype::bf16_from_f64;
use sinter_runtime::io::{Npz, read_npy_file, stored_as, write_npy};
use sinter_runtime::plan::{InputDecl, OutputDecl};
use sinter_runtime::standard::{Data, Kind, Strings};
use sinter_runtime::tensor::Tensor;

use super::names::{self, Keys};
use super::{Failure, plural};
use crate::import::proto::{OptionalProto, SequenceProto, TensorProto};
use crate::import::{read_tensor, tensor_code};
use crate::ir::DType;

/// ONNX's number of the element type of strings.
const STRING: i32 = 8;
/// ONNX's numbers of the kinds of elements of sequences and optional values.
const TENSOR: i32 = 1;
const SEQUENCE: i32 = 3;
const OPTIONAL: i32 = 5;

/// A value that a file is to hold.
pub(super) struct Declared {
    name: String,
    dtype: DType,
    /// What it is, where it is no tensor of numbers.
    kind: Option<String>,
    /// Whether it may be absent.
    default: bool,
}

impl Declared {
    /// Whether it may be a tensor of numbers, of a rank that only execution shows.
    fn is_tensor(&self) -> bool {
        matches!(self.kind.as_deref().and_then(Kind::parse), None | Some(Kind::Unknown | Kind::Tensor(_)))
    }
}

impl From<&InputDecl> for Declared {
    fn from(d: &InputDecl) -> Declared {
        Declared { name: d.name.clone(), dtype: d.ty.dtype, kind: d.kind.clone(), default: d.default }
    }
}

impl From<&OutputDecl> for Declared {
    fn from(d: &OutputDecl) -> Declared {
        Declared { name: d.name.clone(), dtype: d.ty.dtype, kind: d.kind.clone(), default: false }
    }
}

/// Values by name.
#[derive(Default)]
pub(super) struct Values {
    /// Tensors of numbers.
    pub(super) tensors: BTreeMap<String, Tensor>,
    /// All others.
    pub(super) data: BTreeMap<String, Data>,
}

impl Values {
    fn insert(&mut self, name: String, d: Data) {
        match d {
            Data::Tensor(t) => drop(self.tensors.insert(name, (*t).clone())),
            other => drop(self.data.insert(name, other)),
        }
    }
}

/// What is read: the inputs of a model, or its outputs.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    /// `input` or `output`.
    pub(super) prefix: &'a str,
    pub(super) values: &'a [Declared],
    /// The values of the other side, whose files may lie in the same folder.
    pub(super) others: &'a [Declared],
}

/// Reads the values with the given names and types. NumPy has no bfloat16, so that f32 arrays
/// stand for bf16 tensors, rounded to nearest. In a folder, value i is `<name>.npy` (the name as [`names::stem`] writes it),
/// `<prefix>_<i>.npy` or `<prefix>_<i>.pb`; sequences, strings and optional values are read from the latter or `<name>.pb`. All that is
/// missing, surplus or ambiguous is reported at once.
pub(super) fn read(path: &Path, side: Side<'_>) -> Result<Values, Failure> {
    let Side { prefix, values: declared, .. } = side;
    let mut out = Values::default();
    let mut problems = vec![];
    if path.is_dir() {
        folder(path, side, &mut out, &mut problems)?;
    } else {
        archive(path, side, &mut out, &mut problems)?;
    }
    for d in declared {
        let Some(t) = out.tensors.get_mut(&d.name) else { continue };
        if (d.dtype, t.dtype) == (DType::BF16, DType::F32) {
            let bytes: Vec<u8> = t.to_f64().iter().flat_map(|v| bf16_from_f64(*v).to_le_bytes()).collect();
            *t = Tensor::from_bytes(d.dtype, &t.shape, &bytes)?;
        } else if d.dtype != t.dtype && d.dtype != DType::Opaque && stored_as(d.dtype) == t.dtype {
            // NumPy has no such element type: the array holds its codes.
            *t = Tensor::from_bytes(d.dtype, &t.shape, t.bytes())?;
        }
    }
    if problems.is_empty() {
        return Ok(out);
    }
    let known = declared.iter().map(|d| d.name.as_str()).collect::<Vec<_>>().join(", ");
    Err(format!("{}: {}\n  the {prefix}s are: {known}", path.display(), problems.join("\n  ")).into())
}

/// The files in which value `i` of a side may lie: by its name, and by its position.
fn files(prefix: &str, i: usize, d: &Declared) -> Keys {
    let both = |stem: String, by_position: bool| match d.dtype {
        DType::Opaque if !d.is_tensor() => vec![format!("{stem}.pb")],
        _ if by_position => vec![format!("{stem}.npy"), format!("{stem}.pb")],
        _ => vec![format!("{stem}.npy")],
    };
    let by_name = names::readable(&d.name, prefix, i).into_iter().flat_map(|stem| both(stem, false));
    Keys { by_name: by_name.collect(), by_position: both(format!("{prefix}_{i}"), true), optional: d.default }
}

/// Reads the files of a folder.
fn folder(path: &Path, side: Side<'_>, out: &mut Values, problems: &mut Vec<String>) -> Result<(), Failure> {
    let Side { prefix, values: declared, others } = side;
    let error = |e: std::io::Error| format!("cannot read the folder {}: {e}", path.display());
    let mut there = BTreeSet::new();
    for entry in std::fs::read_dir(path).map_err(error)? {
        let file = entry.map_err(error)?.path();
        let name = file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if file.is_file() && (name.ends_with(".npy") || name.ends_with(".pb")) {
            there.insert(name);
        }
    }
    let keys: Vec<Keys> = declared.iter().enumerate().map(|(i, d)| files(prefix, i, d)).collect();
    let found = names::assign(&keys, &there, problems);
    for (i, d) in declared.iter().enumerate() {
        match &found[i] {
            None if d.default => {}
            None => problems.push(format!("`{}`: there is none of {}", d.name, keys[i].list())),
            Some(file) => match read_file(&path.join(file), d) {
                Ok(t) => out.insert(d.name.clone(), t),
                Err(e) => problems.push(format!("`{}`: {e}", d.name)),
            },
        }
    }
    let other = if prefix == "input" { "output" } else { "input" };
    let of_others: BTreeSet<String> =
        others.iter().enumerate().flat_map(|(i, d)| files(other, i, d).into_names()).collect();
    let is_other = |f: &String| of_others.contains(f) || names::position(f, other).is_some();
    for f in there.iter().filter(|f| !found.iter().flatten().any(|g| g == *f) && !is_other(f)) {
        problems.push(surplus(&format!("the file {f}"), names::position(f, prefix), side));
    }
    Ok(())
}

/// Says that nothing reads a file or array.
fn surplus(what: &str, position: Option<usize>, side: Side<'_>) -> String {
    let (prefix, n) = (side.prefix, side.values.len());
    match position {
        Some(i) if i >= n => {
            format!("{what} is surplus: there {} {n} {prefix}{}", if n == 1 { "is" } else { "are" }, plural(n))
        }
        Some(i) => format!("{what} is surplus: `{}` is read from another one", side.values[i].name),
        None => format!("{what} is surplus: no {prefix} has this name"),
    }
}

/// Reads the arrays of an `.npz` file.
fn archive(path: &Path, side: Side<'_>, out: &mut Values, problems: &mut Vec<String>) -> Result<(), Failure> {
    let Side { prefix, values: declared, .. } = side;
    let mut npz = Npz::open(path)?;
    let mut there = BTreeSet::new();
    for name in npz.names() {
        if !there.insert(name.to_owned()) {
            problems.push(format!("two arrays are called `{name}`"));
        }
    }
    let keys = declared.iter().enumerate().map(|(i, d)| Keys {
        by_name: vec![d.name.clone()],
        by_position: vec![format!("{prefix}_{i}")],
        optional: d.default,
    });
    let keys: Vec<Keys> = keys.collect();
    let found = names::assign(&keys, &there, problems);
    for (d, found) in declared.iter().zip(&found) {
        let hint =
            if d.dtype == DType::Opaque { "; it is no array, so that it needs a folder with .pb files" } else { "" };
        let array = match found {
            Some(name) => npz.read(name)?,
            None => None,
        };
        match array {
            Some(t) => out.insert(d.name.clone(), t.into()),
            None if d.default => {}
            None => problems.push(format!("`{}` is missing{hint}", d.name)),
        }
    }
    for name in there.iter().filter(|n| !found.iter().flatten().any(|f| f == *n)) {
        problems.push(surplus(&format!("the array `{name}`"), names::position(name, prefix), side));
    }
    Ok(())
}

fn read_file(path: &Path, d: &Declared) -> Result<Data, Failure> {
    if path.extension().is_none_or(|e| e != "pb") {
        return Ok(read_npy_file(path)?.into());
    }
    let error = |e: &dyn std::fmt::Display| Failure::from(format!("{}: {e}", path.display()));
    let bytes = std::fs::read(path).map_err(|e| error(&e))?;
    // Without a kind, the file is a tensor.
    let kind = d.kind.as_deref().and_then(Kind::parse).unwrap_or_default();
    match kind {
        Kind::Sequence(_) => sequence(&SequenceProto::decode(&bytes[..]).map_err(|e| error(&e))?),
        Kind::Optional(_) => optional(&OptionalProto::decode(&bytes[..]).map_err(|e| error(&e))?),
        _ => tensor(&TensorProto::decode(&bytes[..]).map_err(|e| error(&e))?),
    }
    .map_err(|e| error(&e))
}

/// A tensor message of numbers or strings.
fn tensor(t: &TensorProto) -> Result<Data, String> {
    if t.data_type() != STRING {
        let (dtype, shape, bytes) = read_tensor(t).map_err(|e| e.to_string())?;
        return Ok(Tensor::from_bytes(dtype, &shape, &bytes).map_err(|e| e.to_string())?.into());
    }
    let shape: Vec<usize> = t
        .dims
        .iter()
        .map(|&d| usize::try_from(d).map_err(|_| format!("a negative extent {d}")))
        .collect::<Result<_, _>>()?;
    let n = shape.iter().try_fold(1usize, |a, &d| a.checked_mul(d));
    if n != Some(t.string_data.len()) {
        return Err(format!("{} strings for the shape {shape:?}", t.string_data.len()));
    }
    let text = |b: &Vec<u8>| String::from_utf8(b.clone()).map_err(|_| "a string is not UTF-8".to_owned());
    let values = t.string_data.iter().map(text).collect::<Result<_, _>>()?;
    Ok(Strings { shape, values }.into())
}

fn sequence(s: &SequenceProto) -> Result<Data, String> {
    let elements: Result<Vec<Data>, String> = match s.elem_type() {
        TENSOR => s.tensor_values.iter().map(tensor).collect(),
        SEQUENCE => s.sequence_values.iter().map(sequence).collect(),
        OPTIONAL => s.optional_values.iter().map(optional).collect(),
        0 => Ok(vec![]),
        other => Err(format!("a sequence of elements of kind {other} is not supported")),
    };
    Ok(Data::Sequence(elements?))
}

fn optional(o: &OptionalProto) -> Result<Data, String> {
    let element = match o.elem_type() {
        TENSOR => o.tensor_value.as_ref().map(tensor).transpose()?,
        SEQUENCE => o.sequence_value.as_ref().map(sequence).transpose()?,
        OPTIONAL => o.optional_value.as_ref().map(|o| optional(o)).transpose()?,
        0 => None,
        other => return Err(format!("an optional value of kind {other} is not supported")),
    };
    Ok(Data::Optional(element.map(Box::new)))
}

/// Writes outputs into a folder: tensors of numbers as `<name>.npy`, all others as `<name>.pb` in ONNX's messages.
/// `order` has the names of all outputs.
pub(super) fn write(
    dir: &Path,
    order: &[Declared],
    tensors: &[(String, Tensor)],
    data: &[(String, Data)],
) -> Result<(), Failure> {
    std::fs::create_dir_all(dir).map_err(|e| format!("cannot create {}: {e}", dir.display()))?;
    let file = |name: &str, extension: &str| {
        let i = order.iter().position(|d| d.name == name).unwrap_or(order.len());
        dir.join(format!("{}.{extension}", names::stem(name, "output", i)))
    };
    let tensors: Vec<_> = tensors.iter().map(|(name, t)| (file(name, "npy"), name, t)).collect();
    let data: Vec<_> = data.iter().map(|(name, d)| (file(name, "pb"), name, d)).collect();
    // Files of an earlier run make room, so that what is there afterwards was written by this one.
    let paths = || tensors.iter().map(|t| &t.0).chain(data.iter().map(|d| &d.0));
    let refused = |path: &Path, e: &dyn std::fmt::Display| format!("cannot replace {}: {e}", path.display());
    if let Some(path) = paths().find(|p| p.is_dir()) {
        return Err(refused(path, &"it is a folder").into());
    }
    for path in paths() {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(refused(path, &e).into()),
            _ => {}
        }
    }
    let fresh = |path: &Path, name: &str| match path.symlink_metadata() {
        // File systems that ignore case, for example.
        Ok(_) => Err(format!(
            "cannot write the output `{name}`: the file system takes {} for the file of another output",
            path.display()
        )),
        Err(_) => Ok(()),
    };
    for (path, name, t) in &tensors {
        fresh(path, name)?;
        write_npy(path, t)?;
    }
    for (path, name, d) in &data {
        let bytes = match d {
            Data::Sequence(s) => sequence_message(name, s)?.encode_to_vec(),
            Data::Optional(o) => optional_message(name, o.as_deref())?.encode_to_vec(),
            tensor => tensor_message(name, tensor)?.encode_to_vec(),
        };
        fresh(path, name)?;
        std::fs::write(path, bytes).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    }
    Ok(())
}

fn tensor_message(name: &str, d: &Data) -> Result<TensorProto, Failure> {
    let dims = |shape: &[usize]| shape.iter().map(|&d| d as i64).collect();
    let name = Some(name.to_owned());
    match d {
        Data::Strings(s) => Ok(TensorProto {
            name,
            dims: dims(&s.shape),
            data_type: Some(STRING),
            string_data: s.values.iter().map(|t| t.clone().into_bytes()).collect(),
            ..Default::default()
        }),
        Data::Tensor(t) => match tensor_code(t.dtype) {
            Some(code) => Ok(TensorProto {
                name,
                dims: dims(&t.shape),
                data_type: Some(code),
                raw_data: Some(t.bytes().to_vec().into()),
                ..Default::default()
            }),
            None => Err(format!("writing {} within a sequence is not supported", t.dtype).into()),
        },
        other => Err(format!("`{}` is no tensor", other.describe()).into()),
    }
}

fn sequence_message(name: &str, s: &[Data]) -> Result<SequenceProto, Failure> {
    let mut out = SequenceProto { name: Some(name.to_owned()), elem_type: Some(TENSOR), ..Default::default() };
    for d in s {
        match d {
            Data::Sequence(inner) => {
                out.elem_type = Some(SEQUENCE);
                out.sequence_values.push(sequence_message("", inner)?);
            }
            Data::Optional(inner) => {
                out.elem_type = Some(OPTIONAL);
                out.optional_values.push(optional_message("", inner.as_deref())?);
            }
            tensor => out.tensor_values.push(tensor_message("", tensor)?),
        }
    }
    Ok(out)
}

fn optional_message(name: &str, d: Option<&Data>) -> Result<OptionalProto, Failure> {
    let mut out = OptionalProto { name: Some(name.to_owned()), elem_type: Some(0), ..Default::default() };
    match d {
        None => {}
        Some(Data::Sequence(s)) => {
            out.elem_type = Some(SEQUENCE);
            out.sequence_value = Some(sequence_message("", s)?);
        }
        Some(Data::Optional(o)) => {
            out.elem_type = Some(OPTIONAL);
            out.optional_value = Some(Box::new(optional_message("", o.as_deref())?));
        }
        Some(tensor) => {
            out.elem_type = Some(TENSOR);
            out.tensor_value = Some(tensor_message("", tensor)?);
        }
    }
    Ok(out)
}
