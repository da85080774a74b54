//! Element types, tensor types and small literal tensors.

use std::fmt;

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use crate::dim::{Dim, Shape};
use crate::minifloat;

/// The element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE 754 binary64.
    F64,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    BF16,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// 8-bit signed integer.
    I8,
    /// 8-bit unsigned integer.
    U8,
    /// Boolean, one byte, 0 or 1.
    Bool,
    /// 16-bit signed integer. This type and those that follow only pass through standard operators.
    I16,
    /// 16-bit unsigned integer.
    U16,
    /// 32-bit unsigned integer.
    U32,
    /// 64-bit unsigned integer.
    U64,
    /// 4-bit signed integer, one a byte.
    I4,
    /// 4-bit unsigned integer, one a byte.
    U4,
    /// 2-bit signed integer, one a byte.
    I2,
    /// 2-bit unsigned integer, one a byte.
    U2,
    /// 8-bit float: 4 exponent bits, 3 mantissa bits, no infinity.
    F8E4M3FN,
    /// As `F8E4M3FN` with exponent bias 8, and no negative zero.
    F8E4M3FNUZ,
    /// 8-bit float: 5 exponent bits, 2 mantissa bits.
    F8E5M2,
    /// As `F8E5M2` with exponent bias 16, no infinity, and no negative zero.
    F8E5M2FNUZ,
    /// A power of two: 8 exponent bits, no sign.
    F8E8M0,
    /// 4-bit float: 2 exponent bits, 1 mantissa bit; one a byte.
    F4E2M1,
    /// No tensor of numbers: strings, a sequence, an optional value. Only standard operators take it.
    Opaque,
}

impl DType {
    /// The element types that sinter's own operators compute with, and rules speak of.
    pub const CORE: [DType; 9] =
        [DType::F64, DType::F32, DType::F16, DType::BF16, DType::I64, DType::I32, DType::I8, DType::U8, DType::Bool];

    /// The element types of quantised tensors: sinter's own operators move and convert them, and do not compute with them.
    pub const QUANTISED: [DType; 2] = [DType::F8E4M3FN, DType::F4E2M1];

    /// The element types that rules speak of: those of `CORE`, then those of `QUANTISED`.
    pub const OWN: [DType; 11] = [
        DType::F64,
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::I64,
        DType::I32,
        DType::I8,
        DType::U8,
        DType::Bool,
        DType::F8E4M3FN,
        DType::F4E2M1,
    ];

    /// Every element type of a tensor.
    pub const ALL: [DType; 23] = [
        DType::F64,
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::I64,
        DType::I32,
        DType::I8,
        DType::U8,
        DType::Bool,
        DType::I16,
        DType::U16,
        DType::U32,
        DType::U64,
        DType::I4,
        DType::U4,
        DType::I2,
        DType::U2,
        DType::F8E4M3FN,
        DType::F8E4M3FNUZ,
        DType::F8E5M2,
        DType::F8E5M2FNUZ,
        DType::F8E8M0,
        DType::F4E2M1,
    ];

    /// The floating-point types of at most eight bits.
    pub const MINIFLOATS: [DType; 6] =
        [DType::F8E4M3FN, DType::F8E4M3FNUZ, DType::F8E5M2, DType::F8E5M2FNUZ, DType::F8E8M0, DType::F4E2M1];

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::F64 | DType::I64 | DType::U64 => 8,
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::F16 | DType::BF16 | DType::I16 | DType::U16 => 2,
            _ => 1,
        }
    }

    /// The name used in every text and JSON form, such as `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I64 => "i64",
            DType::I32 => "i32",
            DType::I8 => "i8",
            DType::U8 => "u8",
            DType::Bool => "bool",
            DType::I16 => "i16",
            DType::U16 => "u16",
            DType::U32 => "u32",
            DType::U64 => "u64",
            DType::I4 => "i4",
            DType::U4 => "u4",
            DType::I2 => "i2",
            DType::U2 => "u2",
            DType::F8E4M3FN => "f8e4m3fn",
            DType::F8E4M3FNUZ => "f8e4m3fnuz",
            DType::F8E5M2 => "f8e5m2",
            DType::F8E5M2FNUZ => "f8e5m2fnuz",
            DType::F8E8M0 => "f8e8m0",
            DType::F4E2M1 => "f4e2m1",
            DType::Opaque => "opaque",
        }
    }

    /// The inverse of [`DType::name`].
    pub fn parse(name: &str) -> Option<DType> {
        DType::ALL.into_iter().chain([DType::Opaque]).find(|d| d.name() == name)
    }

    /// Whether sinter's own operators compute with it.
    pub fn is_core(self) -> bool {
        DType::CORE.contains(&self)
    }

    /// Whether it is an element type of quantised tensors.
    pub fn is_quantised(self) -> bool {
        DType::QUANTISED.contains(&self)
    }

    /// Whether it is a floating-point type of at most eight bits.
    pub fn is_minifloat(self) -> bool {
        DType::MINIFLOATS.contains(&self)
    }

    /// Whether elements are floating-point numbers of at least 16 bits.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is known about a tensor before it exists: element type and symbolic shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// One symbolic extent per axis.
    pub shape: Shape,
}

impl TensorType {
    /// A type from its parts.
    pub fn new(dtype: DType, shape: impl Into<Shape>) -> Self {
        TensorType { dtype, shape: shape.into() }
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Number of elements.
    pub fn elements(&self) -> Dim {
        self.shape.iter().fold(Dim::from(1), |n, d| &n * d)
    }

    /// Whether more than one axis is longer than 1.
    pub fn is_matrix(&self) -> bool {
        self.shape.iter().filter(|d| d.as_const() != Some(1)).count() > 1
    }

    /// Size in bytes.
    pub fn bytes(&self) -> Dim {
        &self.elements() * &Dim::from(self.dtype.size() as i64)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, d) in self.shape.iter().enumerate() {
            write!(f, "{}{d}", if i == 0 { "" } else { ", " })?;
        }
        f.write_str("]")
    }
}

/// A small tensor that is part of the program text: scalars, axes, scale factors.
///
/// `data` holds the elements in row-major order, little-endian.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Literal {
    /// Element type.
    pub dtype: DType,
    /// Extents; empty for a scalar.
    pub shape: Vec<usize>,
    /// Raw elements, `dtype.size()` bytes each.
    pub data: Vec<u8>,
}

impl Literal {
    /// A scalar of the given type that holds `value`, rounded to the type.
    pub fn scalar(dtype: DType, value: f64) -> Literal {
        let mut data = Vec::new();
        push_element(dtype, value, value as i64, &mut data);
        Literal { dtype, shape: vec![], data }
    }

    /// A vector (or a scalar when `shape` is empty) of integers.
    pub fn ints(dtype: DType, shape: Vec<usize>, values: &[i64]) -> Literal {
        let mut data = Vec::new();
        for &v in values {
            push_element(dtype, v as f64, v, &mut data);
        }
        Literal { dtype, shape, data }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.data.len() / self.dtype.size()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The elements as `f64`; integers beyond 2^53 lose precision.
    pub fn to_f64(&self) -> Vec<f64> {
        self.data.chunks_exact(self.dtype.size()).map(|b| element_f64(self.dtype, b)).collect()
    }

    /// The elements as integers; `None` for floating-point types.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        if self.dtype.is_float() || self.dtype.is_minifloat() {
            return None;
        }
        Some(self.data.chunks_exact(self.dtype.size()).map(|b| element_i64(self.dtype, b)).collect())
    }

    /// The value of a tensor whose elements are all equal.
    pub fn splat(&self) -> Option<f64> {
        let mut chunks = self.data.chunks_exact(self.dtype.size());
        let first = chunks.next()?;
        chunks.all(|c| c == first).then(|| element_f64(self.dtype, first))
    }

    /// The type with constant extents.
    pub fn tensor_type(&self) -> TensorType {
        TensorType::new(self.dtype, self.shape.iter().map(|&d| Dim::from(d as i64)).collect::<Vec<_>>())
    }

    /// Reads the form that `Display` writes: `f32(0.5)`, `i64[2](1, 2)`.
    pub fn parse(text: &str) -> Option<Literal> {
        let (head, rest) = text.split_once('(')?;
        let body = rest.strip_suffix(')')?;
        let (dtype, shape) = match head.split_once('[') {
            None => (DType::parse(head)?, vec![]),
            Some((d, s)) => {
                let s = s.strip_suffix(']')?;
                let dims: Option<Vec<usize>> =
                    s.split(',').map(str::trim).filter(|t| !t.is_empty()).map(|t| t.parse().ok()).collect();
                (DType::parse(d)?, dims?)
            }
        };
        let mut data = Vec::new();
        let mut n = 0;
        for item in body.split(',').map(str::trim).filter(|t| !t.is_empty()) {
            n += 1;
            match dtype {
                DType::Bool => data.push(match item {
                    "true" => 1,
                    "false" => 0,
                    _ => return None,
                }),
                d if d.is_float() || d.is_minifloat() => push_element(d, item.parse().ok()?, 0, &mut data),
                DType::U64 => data.extend(item.parse::<u64>().ok()?.to_le_bytes()),
                d => push_element(d, 0.0, item.parse().ok()?, &mut data),
            }
        }
        (n == shape.iter().product::<usize>()).then_some(Literal { dtype, shape, data })
    }
}

impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.dtype)?;
        if !self.shape.is_empty() {
            write!(f, "{:?}", self.shape)?;
        }
        f.write_str("(")?;
        for (i, b) in self.data.chunks_exact(self.dtype.size()).enumerate() {
            f.write_str(if i == 0 { "" } else { ", " })?;
            match self.dtype {
                DType::Bool => write!(f, "{}", b[0] != 0)?,
                // Shortest decimal that reads back to the same element.
                DType::F32 => write!(f, "{}", f32::from_le_bytes([b[0], b[1], b[2], b[3]]))?,
                d if d.is_float() || d.is_minifloat() => write!(f, "{}", element_f64(d, b))?,
                DType::U64 => write!(f, "{}", element_i64(DType::U64, b) as u64)?,
                d => write!(f, "{}", element_i64(d, b))?,
            }
        }
        f.write_str(")")
    }
}

fn array<const N: usize>(b: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&b[..N]);
    out
}

/// One little-endian element as `f64`.
pub fn element_f64(dtype: DType, b: &[u8]) -> f64 {
    match dtype {
        DType::F64 => f64::from_le_bytes(array(b)),
        DType::F32 => f64::from(f32::from_le_bytes(array(b))),
        DType::F16 => f16::from_le_bytes(array(b)).to_f64(),
        DType::BF16 => bf16::from_le_bytes(array(b)).to_f64(),
        DType::U64 => u64::from_le_bytes(array(b)) as f64,
        d if d.is_minifloat() => minifloat::decode(d, b[0]),
        d => element_i64(d, b) as f64,
    }
}

/// One little-endian element of an integer or boolean type; `u64` beyond the range of `i64` wraps.
pub fn element_i64(dtype: DType, b: &[u8]) -> i64 {
    match dtype {
        DType::I64 => i64::from_le_bytes(array(b)),
        DType::I32 => i64::from(i32::from_le_bytes(array(b))),
        DType::I8 | DType::I4 | DType::I2 => i64::from(b[0] as i8),
        DType::U8 | DType::U4 | DType::U2 => i64::from(b[0]),
        DType::Bool => i64::from(b[0] != 0),
        DType::I16 => i64::from(i16::from_le_bytes(array(b))),
        DType::U16 => i64::from(u16::from_le_bytes(array(b))),
        DType::U32 => i64::from(u32::from_le_bytes(array(b))),
        DType::U64 => u64::from_le_bytes(array(b)) as i64,
        DType::Opaque => 0,
        d => element_f64(d, b) as i64,
    }
}

/// v in f32, rounded to odd: where v lies between two f32, the one with the odd last bit. Rounded once more to a type of at most 22 bits of
/// precision, that is v correctly rounded (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008). The conversions of the
/// `half` crate from f64 drop the lower 32 bits and decide ties without them.
fn to_odd(v: f64) -> f32 {
    let near = v as f32;
    let back = f64::from(near);
    if back == v || v.is_nan() {
        return near;
    }
    // Towards zero, then odd.
    let bits = near.to_bits();
    f32::from_bits(if back.abs() > v.abs() { bits - 1 } else { bits } | 1)
}

/// v correctly rounded to f16.
pub fn f16_from_f64(v: f64) -> f16 {
    f16::from_f32(to_odd(v))
}

/// v correctly rounded to bf16.
pub fn bf16_from_f64(v: f64) -> bf16 {
    bf16::from_f32(to_odd(v))
}

/// Appends one element: `float` for floating-point types, rounded; `int` for the others, wrapped.
pub(crate) fn push_element(dtype: DType, float: f64, int: i64, out: &mut Vec<u8>) {
    match dtype {
        DType::F64 => out.extend(float.to_le_bytes()),
        DType::F32 => out.extend((float as f32).to_le_bytes()),
        DType::F16 => out.extend(f16_from_f64(float).to_le_bytes()),
        DType::BF16 => out.extend(bf16_from_f64(float).to_le_bytes()),
        DType::I64 => out.extend(int.to_le_bytes()),
        DType::I32 => out.extend((int as i32).to_le_bytes()),
        DType::I8 => out.extend((int as i8).to_le_bytes()),
        DType::U8 => out.push(int as u8),
        DType::Bool => out.push(u8::from(int != 0)),
        DType::I16 | DType::U16 => out.extend((int as u16).to_le_bytes()),
        DType::U32 => out.extend((int as u32).to_le_bytes()),
        DType::U64 => out.extend((int as u64).to_le_bytes()),
        DType::I4 => out.push((((int as i8) << 4) >> 4) as u8),
        DType::U4 => out.push(int as u8 & 15),
        DType::I2 => out.push((((int as i8) << 6) >> 6) as u8),
        DType::U2 => out.push(int as u8 & 3),
        DType::Opaque => {}
        d => out.push(minifloat::encode(d, float, true)),
    }
}

impl Serialize for Literal {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Literal {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Literal::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("`{text}` is not a literal tensor")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_are_decided_by_all_bits_of_an_f64() {
        let tiny = 0.5f64.powi(40);
        // Half-way between two bf16, and a little more and less.
        let tie = 2.0 + 21.0 / 128.0;
        assert_eq!(bf16_from_f64(tie).to_f64(), 2.15625);
        assert_eq!(bf16_from_f64(tie + tiny).to_f64(), 2.171875);
        assert_eq!(bf16_from_f64(-tie - tiny).to_f64(), -2.171875);
        assert_eq!(bf16_from_f64(tie - tiny).to_f64(), 2.15625);
        let tie = 1.0 + 0.5f64.powi(11);
        assert_eq!(f16_from_f64(tie).to_f64(), 1.0);
        assert_eq!(f16_from_f64(tie + tiny).to_f64(), 1.0 + 0.5f64.powi(10));
        assert_eq!(f16_from_f64(-tie - tiny).to_f64(), -1.0 - 0.5f64.powi(10));
        // 65520 is half-way to what would be the next f16.
        assert_eq!(f16_from_f64(65_519.999_999).to_f64(), 65504.0);
        assert_eq!(f16_from_f64(65520.0).to_f64(), f64::INFINITY);
        assert_eq!(
            (bf16_from_f64(f64::MAX).to_f64(), f16_from_f64(-f64::MAX).to_f64()),
            (f64::INFINITY, -f64::INFINITY)
        );
        assert!(f16_from_f64(f64::NAN).is_nan() && bf16_from_f64(f64::NAN).is_nan());
        assert_eq!(bf16_from_f64(-0.0).to_bits(), 0x8000);
    }

    #[test]
    fn roundings_to_16_bits_are_to_the_nearest() {
        let mut state = 7u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let nearest = |v: f64, got: f64, below: f64, above: f64| {
            let off = (v - got).abs();
            off <= (v - below).abs() && off <= (v - above).abs()
        };
        for _ in 0..200_000 {
            // Magnitudes from 2^-30 to 2^15, with the lower bits near a tie every other time.
            let bits = next();
            let low = if bits & 1 == 0 { next() & 0xf_ffff } else { 1 << 41 | (next() & 3) };
            let v = f64::from_bits((993 + bits % 45) << 52 | ((next() >> 12) & !0x3ff_ffff_ffff) | low);
            let (h, b) = (f16_from_f64(v), bf16_from_f64(v));
            let step = |bits: u16, by: i32| (i32::from(bits) + by).max(0) as u16;
            let f = |by| f16::from_bits(step(h.to_bits(), by)).to_f64();
            assert!(nearest(v, f(0), f(-1), f(1)), "{v:e} as f16");
            let f = |by| bf16::from_bits(step(b.to_bits(), by)).to_f64();
            assert!(nearest(v, f(0), f(-1), f(1)), "{v:e} as bf16");
        }
    }
}
