//! Weight data: slices of memory-mapped files, never copied at load.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use sinter_runtime::map::MappedFile;
use sinter_runtime::plan::WeightData;
use sinter_runtime::random::RandomWeight;

use super::error::ImportError;
use super::proto::{TensorProto, tensor_proto};
use crate::ir::{DType, Dim, TensorType};

/// The data of one initializer, row-major and little-endian.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Element type and constant shape.
    pub ty: TensorType,
    /// The elements; empty where they are made up.
    pub bytes: Bytes,
    /// How they are made up, where the model's files lack them.
    pub random: Option<RandomWeight>,
}

impl Weight {
    /// The elements, or how they are made up.
    pub fn data(&self) -> WeightData<'_> {
        self.random.as_ref().map_or(WeightData::Bytes(&self.bytes), WeightData::Random)
    }

    /// A weight with its data.
    pub(super) fn new(ty: TensorType, bytes: Bytes) -> Weight {
        Weight { ty, bytes, random: None }
    }
}

/// All weights of a model by name.
#[derive(Clone, Debug, Default)]
pub struct Weights(pub BTreeMap<String, Weight>);

impl Weights {
    /// The weights whose data is made up, by name.
    pub fn random(&self) -> impl Iterator<Item = &RandomWeight> {
        self.0.values().filter_map(|w| w.random.as_ref())
    }
}

/// Data that is made up is made at once for tensors of at most so many bytes, which may be read as constants.
const SMALL: usize = 64;

/// Finds tensor data: inline, or in files beside the model.
pub(super) struct Store {
    dir: PathBuf,
    /// Seed of the data that is made up where there is none.
    seed: Option<u64>,
    files: BTreeMap<PathBuf, Bytes>,
}

/// What helps where data is absent.
const HINT: &str = "; `optimize` and `run` make it up with --random-weights SEED";

/// Maps a file; the bytes keep the map alive.
pub(super) fn map_file(path: &Path) -> std::io::Result<Bytes> {
    Ok(Bytes::from_owner(MappedFile::open(path)?))
}

/// The element type of an ONNX data type number.
pub(crate) fn dtype(code: i32) -> Option<DType> {
    use tensor_proto::DataType as T;
    Some(match T::try_from(code).ok()? {
        T::Double => DType::F64,
        T::Float => DType::F32,
        T::Float16 => DType::F16,
        T::Bfloat16 => DType::BF16,
        T::Int64 => DType::I64,
        T::Int32 => DType::I32,
        T::Int8 => DType::I8,
        T::Uint8 => DType::U8,
        T::Bool => DType::Bool,
        T::Int16 => DType::I16,
        T::Uint16 => DType::U16,
        T::Uint32 => DType::U32,
        T::Uint64 => DType::U64,
        T::Int4 => DType::I4,
        T::Uint4 => DType::U4,
        T::Int2 => DType::I2,
        T::Uint2 => DType::U2,
        T::Float8e4m3fn => DType::F8E4M3FN,
        T::Float8e4m3fnuz => DType::F8E4M3FNUZ,
        T::Float8e5m2 => DType::F8E5M2,
        T::Float8e5m2fnuz => DType::F8E5M2FNUZ,
        T::Float8e8m0 => DType::F8E8M0,
        T::Float4e2m1 => DType::F4E2M1,
        _ => return None,
    })
}

/// The ONNX data type number of an element type.
pub(crate) fn data_type(wanted: DType) -> Option<i32> {
    (1..64).find(|&code| dtype(code) == Some(wanted))
}

/// The ONNX name of a data type number, for messages.
pub(super) fn dtype_name(code: i32) -> String {
    tensor_proto::DataType::try_from(code).map_or_else(|_| format!("data type {code}"), |t| t.as_str_name().to_owned())
}

impl Store {
    pub(super) fn new(model: &Path) -> Store {
        Store { dir: model.parent().unwrap_or(Path::new("")).to_path_buf(), seed: None, files: BTreeMap::new() }
    }

    /// Makes up the data that is absent.
    pub(super) fn random(self, seed: Option<u64>) -> Store {
        Store { seed, ..self }
    }

    /// The type and data of a tensor, checked against each other.
    pub(super) fn load(&mut self, t: &TensorProto) -> Result<Weight, ImportError> {
        let fail = |message: String| ImportError::Weight { tensor: t.name().to_owned(), message };
        let dtype = dtype(t.data_type())
            .ok_or_else(|| fail(format!("element type {} is not supported", dtype_name(t.data_type()))))?;
        let mut elements = 1usize;
        for &d in &t.dims {
            let d = usize::try_from(d).map_err(|_| fail(format!("negative extent {d}")))?;
            elements = elements.checked_mul(d).ok_or_else(|| fail("its shape overflows".into()))?;
        }
        let bits = packed_bits(dtype);
        let want = match bits {
            Some(bits) => elements.checked_mul(bits).map(|n| n.div_ceil(8)),
            None => elements.checked_mul(dtype.size()),
        };
        let want = want.ok_or_else(|| fail("its shape overflows".into()))?;
        let found = if t.data_location() == tensor_proto::DataLocation::External {
            self.external(t, want).map_err(fail)?
        } else if let Some(raw) = &t.raw_data {
            Some(raw.clone())
        } else {
            Some(typed_fields(t, dtype))
        };
        let absent = match &found {
            None => true,
            Some(b) => b.is_empty() && want > 0,
        };
        if let (true, Some(seed)) = (absent, self.seed) {
            let shape: Vec<usize> = t.dims.iter().map(|&d| d as usize).collect();
            let random = RandomWeight::new(seed, t.name(), dtype, &shape).map_err(fail)?;
            let ty = TensorType { dtype, shape: t.dims.iter().map(|&d| Dim::from(d)).collect() };
            if want > SMALL && bits.is_none() {
                return Ok(Weight { ty, bytes: Bytes::new(), random: Some(random) });
            }
            let mut bytes = vec![0; elements * dtype.size()];
            random.fill(0, &mut bytes);
            return Ok(Weight { ty, bytes: bytes.into(), random: None });
        }
        let Some(bytes) = found else { return Err(fail("its data is absent".into())) };
        if absent {
            return Err(fail(format!("shape {:?} of {dtype} needs {want} bytes, but there are none{HINT}", t.dims)));
        }
        if bytes.len() != want {
            return Err(fail(format!(
                "shape {:?} of {dtype} needs {want} bytes, but {} are given",
                t.dims,
                bytes.len()
            )));
        }
        let bytes = match bits {
            Some(bits) => unpack(&bytes, bits, elements, matches!(dtype, DType::I4 | DType::I2)),
            None => bytes,
        };
        let shape = t.dims.iter().map(|&d| Dim::from(d)).collect();
        Ok(Weight { ty: TensorType { dtype, shape }, bytes, random: None })
    }

    /// The data in a file beside the model; `None` where there is no such file and data is made up instead.
    fn external(&mut self, t: &TensorProto, want: usize) -> Result<Option<Bytes>, String> {
        let get = |key: &str| t.external_data.iter().find(|e| e.key() == key).map(|e| e.value());
        let number = |key: &str| match get(key) {
            None => Ok(None),
            Some(v) => v.parse::<usize>().map(Some).map_err(|_| format!("external `{key}` is `{v}`, not a number")),
        };
        let location = get("location").ok_or("external data without a location")?;
        let relative = Path::new(location);
        if location.is_empty() || relative.components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir))
        {
            return Err(format!("external location `{location}` leaves the model's folder; refused"));
        }
        let path = self.dir.join(relative);
        if !self.files.contains_key(&path) {
            // Symbolic links could point outside of the folder as well.
            let real = match path.canonicalize() {
                Ok(real) => real,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    if self.seed.is_some() {
                        return Ok(None);
                    }
                    return Err(format!("external data file {}: {e}{HINT}", path.display()));
                }
                Err(e) => return Err(format!("external data file {}: {e}", path.display())),
            };
            let dir = if self.dir.as_os_str().is_empty() { Path::new(".") } else { &self.dir };
            if !dir.canonicalize().is_ok_and(|d| real.starts_with(d)) {
                return Err(format!("external data file {} leads out of the model's folder; refused", path.display()));
            }
            let map = map_file(&path).map_err(|e| format!("external data file {}: {e}", path.display()))?;
            self.files.insert(path.clone(), map);
        }
        let all = &self.files[&path];
        let offset = number("offset")?.unwrap_or(0);
        let length = number("length")?.unwrap_or(want);
        match offset.checked_add(length) {
            Some(end) if end <= all.len() => Ok(Some(all.slice(offset..end))),
            _ => Err(format!(
                "external data file {} has {} bytes; {length} from {offset} reach past its end",
                path.display(),
                all.len()
            )),
        }
    }
}

/// Bits of an element, for types that are stored several to a byte, low bits first.
pub(crate) fn packed_bits(dtype: DType) -> Option<usize> {
    match dtype {
        DType::I4 | DType::U4 | DType::F4E2M1 => Some(4),
        DType::I2 | DType::U2 => Some(2),
        _ => None,
    }
}

/// One element a byte; signed ones extended.
fn unpack(bytes: &[u8], bits: usize, elements: usize, signed: bool) -> Bytes {
    let per_byte = 8 / bits;
    let element = |i: usize| {
        let code = bytes[i / per_byte] >> (i % per_byte * bits);
        let up = code << (8 - bits);
        if signed { (up as i8 >> (8 - bits)) as u8 } else { up >> (8 - bits) }
    };
    (0..elements).map(element).collect::<Vec<u8>>().into()
}

/// Data in the typed fields of the message, which exporters use for small tensors.
fn typed_fields(t: &TensorProto, dtype: DType) -> Bytes {
    let mut out = Vec::new();
    match dtype {
        DType::F32 => t.float_data.iter().for_each(|v| out.extend(v.to_le_bytes())),
        DType::F64 => t.double_data.iter().for_each(|v| out.extend(v.to_le_bytes())),
        DType::I64 => t.int64_data.iter().for_each(|v| out.extend(v.to_le_bytes())),
        DType::I32 => t.int32_data.iter().for_each(|v| out.extend(v.to_le_bytes())),
        DType::U32 => t.uint64_data.iter().for_each(|v| out.extend((*v as u32).to_le_bytes())),
        DType::U64 => t.uint64_data.iter().for_each(|v| out.extend(v.to_le_bytes())),
        DType::F16 | DType::BF16 | DType::I16 | DType::U16 => {
            t.int32_data.iter().for_each(|v| out.extend((*v as u16).to_le_bytes()));
        }
        _ => t.int32_data.iter().for_each(|v| out.push(*v as u8)),
    }
    Bytes::from(out)
}
