//! Input and expected values: `.npz` files, and folders in ONNX's own test-data layout.

use std::collections::BTreeMap;
use std::path::Path;

use prost::Message as _;
use sinter_runtime::io::{read_npy_file, read_npz, write_npy};
use sinter_runtime::plan::{InputDecl, OutputDecl};
use sinter_runtime::standard::{Data, Kind, Strings};
use sinter_runtime::tensor::Tensor;

use super::Failure;
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
}

impl Declared {
    /// Whether it may be a tensor of numbers, of a rank that only execution shows.
    fn is_tensor(&self) -> bool {
        matches!(self.kind.as_deref().and_then(Kind::parse), None | Some(Kind::Unknown | Kind::Tensor(_)))
    }
}

impl From<&InputDecl> for Declared {
    fn from(d: &InputDecl) -> Declared {
        Declared { name: d.name.clone(), dtype: d.ty.dtype, kind: d.kind.clone() }
    }
}

impl From<&OutputDecl> for Declared {
    fn from(d: &OutputDecl) -> Declared {
        Declared { name: d.name.clone(), dtype: d.ty.dtype, kind: d.kind.clone() }
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

    fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name) || self.data.contains_key(name)
    }
}

/// Reads the values with the given names and types. NumPy has no bfloat16, so that f32 arrays
/// stand for bf16 tensors, rounded to nearest. In a folder, value i is `<name>.npy`, `<prefix>_<i>.npy` or
/// `<prefix>_<i>.pb`; what is no tensor of numbers is read from the latter or `<name>.pb`. All that is missing or surplus is
/// reported at once.
pub(super) fn read(path: &Path, prefix: &str, declared: &[Declared]) -> Result<Values, Failure> {
    let mut out = Values::default();
    let mut problems = vec![];
    if path.is_dir() {
        for (i, d) in declared.iter().enumerate() {
            let name = &d.name;
            let files = match d.dtype {
                DType::Opaque if !d.is_tensor() => vec![format!("{name}.pb"), format!("{prefix}_{i}.pb")],
                _ => vec![format!("{name}.npy"), format!("{prefix}_{i}.npy"), format!("{prefix}_{i}.pb")],
            };
            match files.iter().map(|f| path.join(f)).find(|p| p.is_file()) {
                None => problems.push(format!("`{name}`: there is none of {}", files.join(", "))),
                Some(file) => match read_file(&file, d) {
                    Ok(t) => out.insert(name.clone(), t),
                    Err(e) => problems.push(format!("`{name}`: {e}")),
                },
            }
        }
        for i in declared.len()..declared.len() + 64 {
            if ["npy", "pb"].iter().any(|e| path.join(format!("{prefix}_{i}.{e}")).is_file()) {
                problems.push(format!("{prefix}_{i} is surplus: there are {} {prefix}s", declared.len()));
            }
        }
    } else {
        for (name, tensor) in read_npz(path)? {
            // An array may also be named by position.
            let by_position = name.strip_prefix(prefix).and_then(|r| r.strip_prefix('_')?.parse::<usize>().ok());
            match declared.iter().find(|d| d.name == name).or_else(|| declared.get(by_position?)) {
                Some(d) => out.insert(d.name.clone(), tensor.into()),
                None => problems.push(format!("array `{name}` is no {prefix}")),
            }
        }
        for d in declared.iter().filter(|d| !out.contains(&d.name)) {
            let hint = if d.dtype == DType::Opaque {
                "; it is no array, so that it needs a folder with .pb files"
            } else {
                ""
            };
            problems.push(format!("`{}` is missing{hint}", d.name));
        }
    }
    for d in declared {
        if let Some(t) = out.tensors.get_mut(&d.name)
            && (d.dtype, t.dtype) == (DType::BF16, DType::F32)
        {
            let bytes: Vec<u8> =
                t.to_f64().iter().flat_map(|v| sinter_runtime::dtype::bf16_from_f64(*v).to_le_bytes()).collect();
            *t = Tensor::from_bytes(d.dtype, &t.shape, &bytes)?;
        }
    }
    if problems.is_empty() {
        return Ok(out);
    }
    let known = declared.iter().map(|d| d.name.as_str()).collect::<Vec<_>>().join(", ");
    Err(format!("{}: {}\n  the {prefix}s are: {known}", path.display(), problems.join("\n  ")).into())
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
pub(super) fn write(dir: &Path, tensors: &[(String, Tensor)], data: &[(String, Data)]) -> Result<(), Failure> {
    std::fs::create_dir_all(dir).map_err(|e| format!("cannot create {}: {e}", dir.display()))?;
    let file = |name: &str, extension: &str| dir.join(format!("{}.{extension}", name.replace('/', "_")));
    for (name, t) in tensors {
        write_npy(&file(name, "npy"), t)?;
    }
    for (name, d) in data {
        let bytes = match d {
            Data::Sequence(s) => sequence_message(name, s)?.encode_to_vec(),
            Data::Optional(o) => optional_message(name, o.as_deref())?.encode_to_vec(),
            tensor => tensor_message(name, tensor)?.encode_to_vec(),
        };
        let path = file(name, "pb");
        std::fs::write(&path, bytes).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
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
