//! The values that standard operators read and make.

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::Arc;

use super::{Constant, StandardError};
use crate::cpu::convert::typed;
use crate::dtype::{DType, element_f64, element_i64, push_element};
use crate::minifloat;
use crate::tensor::{Tensor, View, byte_len};

type Result<T> = std::result::Result<T, StandardError>;

/// A value that a standard operator makes, or that a caller gives.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// A tensor of numbers.
    Tensor(Arc<Tensor>),
    /// A tensor of strings.
    Strings(Arc<Strings>),
    /// A sequence; its elements are of one kind.
    Sequence(Vec<Data>),
    /// An optional value.
    Optional(Option<Box<Data>>),
}

/// A tensor of strings in row-major order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strings {
    /// Extents.
    pub shape: Vec<usize>,
    /// Elements.
    pub values: Vec<String>,
}

impl From<Tensor> for Data {
    fn from(t: Tensor) -> Data {
        Data::Tensor(Arc::new(t))
    }
}

impl From<Strings> for Data {
    fn from(s: Strings) -> Data {
        Data::Strings(Arc::new(s))
    }
}

impl Data {
    /// The value as an operand.
    pub fn arg(&self) -> Arg<'_> {
        match self {
            Data::Tensor(t) => Arg::Tensor(t.view()),
            other => Arg::Other(other),
        }
    }

    /// The tensor of a constant.
    pub fn constant(c: &Constant) -> Result<Data> {
        if c.dtype != DType::Opaque {
            return Ok(Tensor::from_bytes(c.dtype, &c.shape, &c.data)?.into());
        }
        if c.texts.len() != c.shape.iter().product::<usize>() {
            return Err(StandardError::new("a constant has another number of strings than its shape"));
        }
        Ok(Strings { shape: c.shape.clone(), values: c.texts.clone() }.into())
    }

    /// Element type, [`DType::Opaque`] for all that is no tensor of numbers.
    pub fn dtype(&self) -> DType {
        match self {
            Data::Tensor(t) => t.dtype,
            _ => DType::Opaque,
        }
    }

    /// What it is, for messages.
    pub fn describe(&self) -> String {
        self.arg().describe()
    }
}

/// An operand.
#[derive(Clone, Copy)]
pub enum Arg<'a> {
    /// A tensor of numbers.
    Tensor(View<'a>),
    /// Anything else.
    Other(&'a Data),
}

impl Arg<'_> {
    /// The operand as a value of its own.
    pub fn to_data(&self) -> Result<Data> {
        match self {
            Arg::Tensor(v) => Ok(Tensor::from_bytes(v.dtype, v.shape, v.bytes)?.into()),
            Arg::Other(d) => Ok((*d).clone()),
        }
    }

    /// What it is, for messages.
    pub fn describe(&self) -> String {
        match self {
            Arg::Tensor(v) => format!("{}{:?}", v.dtype, v.shape),
            Arg::Other(Data::Tensor(t)) => format!("{}{:?}", t.dtype, t.shape),
            Arg::Other(Data::Strings(s)) => format!("strings{:?}", s.shape),
            Arg::Other(Data::Sequence(s)) => format!("a sequence of {}", s.len()),
            Arg::Other(Data::Optional(None)) => "an empty optional".to_owned(),
            Arg::Other(Data::Optional(Some(d))) => format!("an optional {}", d.describe()),
        }
    }
}

/// The operands of a call by position; those of bodies follow in `captured`.
pub struct Args<'a> {
    /// By position; `None` where the operand is absent.
    pub at: Vec<Option<Arg<'a>>>,
    /// Values that bodies read from the surrounding graph.
    pub captured: Vec<Arg<'a>>,
}

impl<'a> Args<'a> {
    /// The operand at a position.
    pub fn get(&self, i: usize) -> Option<Arg<'a>> {
        self.at.get(i).copied().flatten()
    }

    /// Whether there is an operand at a position.
    pub fn has(&self, i: usize) -> bool {
        self.get(i).is_some()
    }

    /// Number of positions.
    pub fn len(&self) -> usize {
        self.at.len()
    }

    /// Whether there is no position.
    pub fn is_empty(&self) -> bool {
        self.at.is_empty()
    }

    /// The operand at a position, which must be there.
    pub fn required(&self, i: usize) -> Result<Arg<'a>> {
        self.get(i).ok_or_else(|| StandardError::new(format!("operand {i} is missing")))
    }

    /// A tensor of numbers that must be there.
    pub fn tensor(&self, i: usize) -> Result<View<'a>> {
        match self.required(i)? {
            Arg::Tensor(v) => Ok(v),
            Arg::Other(Data::Tensor(t)) => Ok(t.view()),
            Arg::Other(d) => {
                Err(StandardError::new(format!("operand {i} is {}, not a tensor of numbers", d.describe())))
            }
        }
    }

    /// A tensor of numbers, where it is there.
    pub fn optional(&self, i: usize) -> Result<Option<View<'a>>> {
        if self.has(i) { self.tensor(i).map(Some) } else { Ok(None) }
    }

    /// A tensor of strings that must be there.
    pub fn strings(&self, i: usize) -> Result<&'a Strings> {
        match self.required(i)? {
            Arg::Other(Data::Strings(s)) => Ok(s),
            a => Err(StandardError::new(format!("operand {i} is {}, not a tensor of strings", a.describe()))),
        }
    }

    /// A sequence that must be there.
    pub fn sequence(&self, i: usize) -> Result<&'a [Data]> {
        match self.required(i)? {
            Arg::Other(Data::Sequence(s)) => Ok(s),
            a => Err(StandardError::new(format!("operand {i} is {}, not a sequence", a.describe()))),
        }
    }

    /// The elements of an integer tensor, where it is there.
    pub fn ints(&self, i: usize) -> Result<Option<Vec<i64>>> {
        let Some(v) = self.optional(i)? else { return Ok(None) };
        if v.dtype.is_float() || v.dtype.is_minifloat() {
            return Err(StandardError::new(format!("operand {i} is {}, not integers", v.dtype)));
        }
        Ok(Some(match v.dtype {
            DType::I64 => typed(v.bytes).into_owned(),
            d => v.bytes.chunks_exact(d.size()).map(|b| element_i64(d, b)).collect(),
        }))
    }

    /// The only element of a tensor, where it is there.
    pub fn scalar(&self, i: usize) -> Result<Option<f64>> {
        let Some(v) = self.optional(i)? else { return Ok(None) };
        match &floats(&v)[..] {
            [x] => Ok(Some(*x)),
            _ => Err(StandardError::new(format!("operand {i} has the shape {:?}, not one element", v.shape))),
        }
    }
}

/// The elements as `f64`; 64-bit integers beyond 2^53 lose precision.
pub fn floats(v: &View<'_>) -> Vec<f64> {
    match v.dtype {
        DType::F32 => typed::<f32>(v.bytes).iter().map(|&x| f64::from(x)).collect(),
        DType::F64 => typed::<f64>(v.bytes).into_owned(),
        d => v.bytes.chunks_exact(d.size()).map(|b| element_f64(d, b)).collect(),
    }
}

/// The elements of an integer or boolean tensor, exactly.
pub fn integers(v: &View<'_>) -> Vec<i128> {
    let exact = |b: &[u8]| match v.dtype {
        DType::U64 => i128::from(element_i64(DType::U64, b) as u64),
        d => i128::from(element_i64(d, b)),
    };
    v.bytes.chunks_exact(v.dtype.size()).map(exact).collect()
}

/// The elements in native form where the type is `T`'s.
pub fn native<'a, T: bytemuck::Pod>(v: &View<'a>) -> Cow<'a, [T]> {
    typed(v.bytes)
}

/// A result may not have more bytes: data can ask for any shape, and memory that is touched is not refused but ends the process.
const MAX_BYTES: usize = 1 << 32;

thread_local! {
    /// The limit of this thread.
    static LIMIT: Cell<usize> = const { Cell::new(MAX_BYTES) };
}

/// Runs `compute` with a limit of the bytes of each result.
pub fn with_limit<T>(bytes: usize, compute: impl FnOnce() -> T) -> T {
    let before = LIMIT.replace(bytes);
    let result = compute();
    LIMIT.set(before);
    result
}

/// Number of elements; an error where a shape is too large to exist.
pub fn count(dtype: DType, shape: &[usize]) -> Result<usize> {
    let bytes = byte_len(dtype, shape);
    bytes.filter(|&b| b <= LIMIT.get()).map(|b| b / dtype.size()).ok_or_else(|| StandardError {
        too_large: true,
        ..StandardError::new(format!("{dtype}{shape:?} has more than {} bytes, the limit of a result", LIMIT.get()))
    })
}

/// A tensor of floating-point numbers, each rounded to the type. An integer type takes them truncated and wrapped.
pub fn from_floats(dtype: DType, shape: &[usize], values: impl IntoIterator<Item = f64>) -> Result<Data> {
    let n = count(dtype, shape)?;
    let mut data = Vec::new();
    for v in values {
        match dtype {
            d if d.is_minifloat() => data.push(minifloat::encode(d, v, true)),
            d => push_element(d, v, v as i64, &mut data),
        }
    }
    finish(dtype, shape, n, &data)
}

/// A tensor of integers, each wrapped to the type. A floating-point type takes them rounded.
pub fn from_ints(dtype: DType, shape: &[usize], values: impl IntoIterator<Item = i128>) -> Result<Data> {
    let n = count(dtype, shape)?;
    let mut data = Vec::new();
    for v in values {
        push_element(dtype, v as f64, v as i64, &mut data);
    }
    finish(dtype, shape, n, &data)
}

/// A tensor of booleans.
pub fn from_bools(shape: &[usize], values: impl IntoIterator<Item = bool>) -> Result<Data> {
    from_ints(DType::Bool, shape, values.into_iter().map(i128::from))
}

/// A tensor of elements that are moved and not computed on.
pub fn from_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<Data> {
    Ok(Tensor::from_bytes(dtype, shape, bytes)?.into())
}

fn finish(dtype: DType, shape: &[usize], n: usize, data: &[u8]) -> Result<Data> {
    if data.len() != n * dtype.size() {
        return Err(StandardError::new(format!("{} elements for {dtype}{shape:?}", data.len() / dtype.size())));
    }
    from_bytes(dtype, shape, data)
}

/// An axis counted from the front.
pub fn axis(axis: i64, rank: usize) -> Result<usize> {
    let a = if axis < 0 { axis.saturating_add(rank as i64) } else { axis };
    usize::try_from(a)
        .ok()
        .filter(|&a| a < rank)
        .ok_or_else(|| StandardError::new(format!("axis {axis} is outside rank {rank}")))
}

/// The shape that operands have together by NumPy's rules.
pub fn broadcast(shapes: &[&[usize]]) -> Result<Vec<usize>> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut out = vec![1; rank];
    for s in shapes {
        for (o, &d) in out[rank - s.len()..].iter_mut().zip(*s) {
            match (*o, d) {
                (a, b) if a == b => {}
                (1, b) => *o = b,
                (_, 1) => {}
                _ => return Err(StandardError::new(format!("{shapes:?} do not broadcast"))),
            }
        }
    }
    Ok(out)
}

/// For each element of `shape` in row-major order, the index of the element of an operand that is broadcast to it.
pub fn broadcast_index(operand: &[usize], shape: &[usize]) -> Result<Vec<usize>> {
    let n = count(DType::U8, shape)?;
    let lead = shape.len().saturating_sub(operand.len());
    let mut stride = vec![0usize; shape.len()];
    let mut step = 1;
    for (i, &d) in operand.iter().enumerate().rev() {
        stride[lead + i] = if d == 1 { 0 } else { step };
        step *= d;
    }
    let mut at = vec![0usize; shape.len()];
    let mut index = 0;
    let mut out = Vec::with_capacity(n);
    for _ in 0..n {
        out.push(index);
        for d in (0..shape.len()).rev() {
            at[d] += 1;
            index += stride[d];
            if at[d] < shape[d] {
                break;
            }
            index -= stride[d] * at[d];
            at[d] = 0;
        }
    }
    Ok(out)
}

/// Row-major strides in elements.
pub fn strides(shape: &[usize]) -> Vec<usize> {
    let mut out = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        out[i - 1] = out[i] * shape[i];
    }
    out
}
