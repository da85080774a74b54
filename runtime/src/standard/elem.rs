//! Elements in native form: floating-point ones are computed in f64 and rounded once, integers exactly and wrapped once.

use std::borrow::Cow;

use bytemuck::Pod;
use half::{bf16, f16};

use super::{Data, StandardError, broadcast, broadcast_index, native};
use crate::cpu::convert::float_map;
use crate::cpu::simd::{BLOCK, map, rows};
use crate::dtype::{DType, bf16_from_f64, f16_from_f64};
use crate::minifloat;
use crate::tensor::{Tensor, View};

type Result<T> = std::result::Result<T, StandardError>;

/// A floating-point element.
pub(super) trait Float: Pod + Send + Sync {
    /// Its value.
    fn wide(self) -> f64;
    /// The nearest element.
    fn narrow(v: f64) -> Self;
}

/// An integer element.
pub(super) trait Int: Pod + Send + Sync {
    /// Its value.
    fn wide(self) -> i128;
    /// The element with the same low bits.
    fn wrap(v: i128) -> Self;
}

impl Float for f64 {
    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }
    #[inline(always)]
    fn narrow(v: f64) -> Self {
        v
    }
}

impl Float for f32 {
    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn narrow(v: f64) -> Self {
        v as f32
    }
}

macro_rules! half {
    ($($t:ident $round:ident)*) => {$(
        impl Float for $t {
            fn wide(self) -> f64 {
                self.to_f64()
            }
            fn narrow(v: f64) -> Self {
                $round(v)
            }
        }
    )*};
}
half!(f16 f16_from_f64 bf16 bf16_from_f64);

macro_rules! ints {
    ($($t:ident)*) => {$(
        impl Int for $t {
            fn wide(self) -> i128 {
                i128::from(self)
            }
            fn wrap(v: i128) -> Self {
                v as $t
            }
        }
    )*};
}
ints!(i8 i16 i32 i64 u8 u16 u32 u64);

/// Evaluates an expression with `$t` as the native type of a floating-point element type of at least 16 bits.
macro_rules! by_float {
    ($d:expr, $t:ident => $body:expr, _ => $other:expr) => {
        match $d {
            DType::F32 => {
                type $t = f32;
                $body
            }
            DType::F64 => {
                type $t = f64;
                $body
            }
            DType::F16 => {
                type $t = half::f16;
                $body
            }
            DType::BF16 => {
                type $t = half::bf16;
                $body
            }
            _ => $other,
        }
    };
}
pub(super) use by_float;

/// Evaluates an expression with `$t` as the native type of an integer type of whole bytes.
macro_rules! by_int {
    ($d:expr, $t:ident => $body:expr, _ => $other:expr) => {
        match $d {
            DType::I64 => {
                type $t = i64;
                $body
            }
            DType::I32 => {
                type $t = i32;
                $body
            }
            DType::I16 => {
                type $t = i16;
                $body
            }
            DType::I8 => {
                type $t = i8;
                $body
            }
            DType::U64 => {
                type $t = u64;
                $body
            }
            DType::U32 => {
                type $t = u32;
                $body
            }
            DType::U16 => {
                type $t = u16;
                $body
            }
            DType::U8 => {
                type $t = u8;
                $body
            }
            _ => $other,
        }
    };
}
pub(super) use by_int;

/// Whether elements are integers of whole bytes.
pub(super) fn is_int(d: DType) -> bool {
    by_int!(d, T => {
        let _: [T; 0] = [];
        true
    }, _ => false)
}

/// Whether an integer type has negative numbers.
pub(super) fn is_signed(d: DType) -> bool {
    matches!(d, DType::I64 | DType::I32 | DType::I16 | DType::I8 | DType::I4 | DType::I2)
}

/// Bits of an element as ONNX counts them.
pub(super) fn bits(d: DType) -> u32 {
    match d {
        DType::I4 | DType::U4 | DType::F4E2M1 => 4,
        DType::I2 | DType::U2 => 2,
        d => 8 * d.size() as u32,
    }
}

/// Least and greatest number of an integer type; of booleans, 0 and 1.
pub(super) fn range(d: DType) -> (i128, i128) {
    match d {
        DType::Bool => (0, 1),
        d if is_signed(d) => (-(1 << (bits(d) - 1)), (1 << (bits(d) - 1)) - 1),
        d => (0, (1 << bits(d)) - 1),
    }
}

/// The element type of an ONNX data type number; `Opaque` for strings.
pub(in crate::standard) fn dtype_of_code(code: i64) -> Result<DType> {
    Ok(match code {
        1 => DType::F32,
        2 => DType::U8,
        3 => DType::I8,
        4 => DType::U16,
        5 => DType::I16,
        6 => DType::I32,
        7 => DType::I64,
        8 => DType::Opaque,
        9 => DType::Bool,
        10 => DType::F16,
        11 => DType::F64,
        12 => DType::U32,
        13 => DType::U64,
        16 => DType::BF16,
        17 => DType::F8E4M3FN,
        18 => DType::F8E4M3FNUZ,
        19 => DType::F8E5M2,
        20 => DType::F8E5M2FNUZ,
        21 => DType::U4,
        22 => DType::I4,
        23 => DType::F4E2M1,
        24 => DType::F8E8M0,
        25 => DType::U2,
        26 => DType::I2,
        _ => return Err(StandardError::new(format!("the ONNX data type {code} is not supported"))),
    })
}

/// A number rounded to a floating-point type.
pub(super) fn round_to(d: DType, v: f64) -> f64 {
    match d {
        d if d.is_minifloat() => minifloat::decode(d, minifloat::encode(d, v, true)),
        d => by_float!(d, T => T::narrow(v).wide(), _ => v),
    }
}

/// What an operator says of an element type that it does not take.
pub(super) fn wrong_type(d: DType) -> StandardError {
    StandardError::new(format!("elements of type {d} are not supported"))
}

/// Refuses operands of different element types.
pub(super) fn same_type(a: &View<'_>, b: &View<'_>) -> Result<()> {
    if a.dtype == b.dtype {
        return Ok(());
    }
    Err(StandardError::new(format!("the operands have the different element types {} and {}", a.dtype, b.dtype)))
}

/// A tensor of native elements; there must be as many as the shape says.
pub(super) fn make<T: Pod>(dtype: DType, shape: &[usize], values: impl IntoIterator<Item = T>) -> Result<Data> {
    let mut t = Tensor::zeros(dtype, shape)?;
    let out = bytemuck::try_cast_slice_mut::<u8, T>(t.bytes_mut())
        .map_err(|e| StandardError::new(format!("a result is not aligned: {e}")))?;
    out.iter_mut().zip(values).for_each(|(o, v)| *o = v);
    Ok(t.into())
}

/// A tensor of native elements that `f` computes in parts of at most [`BLOCK`] elements, on all threads: it is given the position
/// of the first one.
pub(super) fn fill<T: Pod + Send>(dtype: DType, shape: &[usize], f: impl Fn(usize, &mut [T]) + Sync) -> Result<Data> {
    fill_by(dtype, shape, BLOCK, f)
}

/// As [`fill`], with parts of `size` elements.
pub(super) fn fill_by<T: Pod + Send>(
    dtype: DType,
    shape: &[usize],
    size: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) -> Result<Data> {
    fill_whole(dtype, shape, |out| {
        rows(out, size, rayon::current_num_threads(), f);
        Ok(())
    })
}

/// A tensor of native elements that `f` writes as a whole; they are zeros before.
pub(super) fn fill_whole<T: Pod>(
    dtype: DType,
    shape: &[usize],
    f: impl FnOnce(&mut [T]) -> Result<()>,
) -> Result<Data> {
    super::count(dtype, shape)?;
    let mut t = Tensor::zeros(dtype, shape)?;
    let out = bytemuck::try_cast_slice_mut::<u8, T>(t.bytes_mut())
        .map_err(|e| StandardError::new(format!("a result is not aligned: {e}")))?;
    f(out)?;
    Ok(t.into())
}

/// A tensor of booleans.
pub(super) fn bools(shape: &[usize], values: impl IntoIterator<Item = bool>) -> Result<Data> {
    make(DType::Bool, shape, values.into_iter().map(u8::from))
}

/// Elements broadcast to a shape.
pub(super) fn spread<'a, T: Pod>(x: Cow<'a, [T]>, from: &[usize], to: &[usize]) -> Result<Cow<'a, [T]>> {
    if from == to {
        return Ok(x);
    }
    if let [v] = x[..] {
        return Ok(Cow::Owned(vec![v; super::count(DType::U8, to)?]));
    }
    Ok(broadcast_index(from, to)?.into_iter().map(|i| x[i]).collect())
}

/// A function of each floating-point element.
pub(super) fn map_float(x: &View<'_>, f: impl Fn(f64) -> f64 + Copy + Sync + 'static) -> Result<Data> {
    if x.dtype == DType::F32 {
        let v = native::<f32>(x);
        return fill(x.dtype, x.shape, |at, out: &mut [f32]| map(&v[at..], out, move |v: f32| f(f64::from(v)) as f32));
    }
    map_other(x, &f)
}

/// As [`map_float`], for the types that are rarer: without a form of its own for each function.
fn map_other(x: &View<'_>, f: &(dyn Fn(f64) -> f64 + Sync)) -> Result<Data> {
    by_float!(x.dtype, T => {
        let v = native::<T>(x);
        fill(x.dtype, x.shape, |at, out: &mut [T]| {
            out.iter_mut().zip(&v[at..]).for_each(|(o, v)| *o = T::narrow(f(v.wide())));
        })
    }, _ => Err(wrong_type(x.dtype)))
}

/// A function of blocks of f32, f16 or bf16 in f32; another one of f64.
pub(super) fn map_blocks(
    x: &View<'_>,
    f: impl Fn(&[f32], &mut [f32]) + Sync,
    wide: impl Fn(f64) -> f64 + Copy + Sync + 'static,
) -> Result<Data> {
    if x.dtype == DType::F64 || !x.dtype.is_float() {
        return map_float(x, wide);
    }
    map_rows(x, 1, f)
}

/// A function of blocks of rows of `width` elements of f32, f16 or bf16, in f32.
pub(super) fn map_rows(x: &View<'_>, width: usize, f: impl Fn(&[f32], &mut [f32]) + Sync) -> Result<Data> {
    super::count(x.dtype, x.shape)?;
    let mut t = Tensor::zeros(x.dtype, x.shape)?;
    float_map(x, &mut t.view_mut(), width, rayon::current_num_threads(), f)
        .map_err(|e| StandardError::new(e.to_string()))?;
    Ok(t.into())
}

/// A function of each integer element.
pub(super) fn map_int(x: &View<'_>, f: impl Fn(i128) -> i128) -> Result<Data> {
    by_int!(
        x.dtype,
        T => make(x.dtype, x.shape, native::<T>(x).iter().map(|v| T::wrap(f(v.wide())))),
        _ => Err(wrong_type(x.dtype))
    )
}

/// A function of each pair of elements of two operands of one floating-point type, broadcast.
pub(super) fn zip_float(a: &View<'_>, b: &View<'_>, f: impl Fn(f64, f64) -> f64) -> Result<Data> {
    same_type(a, b)?;
    let shape = broadcast(&[a.shape, b.shape])?;
    by_float!(a.dtype, T => {
        let (x, y) = (spread(native::<T>(a), a.shape, &shape)?, spread(native::<T>(b), b.shape, &shape)?);
        make(a.dtype, &shape, x.iter().zip(&*y).map(|(x, y)| T::narrow(f(x.wide(), y.wide()))))
    }, _ => Err(wrong_type(a.dtype)))
}

/// A function of each pair of elements of two operands of one integer type, broadcast.
pub(super) fn zip_int(a: &View<'_>, b: &View<'_>, f: impl Fn(i128, i128) -> i128) -> Result<Data> {
    same_type(a, b)?;
    let shape = broadcast(&[a.shape, b.shape])?;
    by_int!(a.dtype, T => {
        let (x, y) = (spread(native::<T>(a), a.shape, &shape)?, spread(native::<T>(b), b.shape, &shape)?);
        make(a.dtype, &shape, x.iter().zip(&*y).map(|(x, y)| T::wrap(f(x.wide(), y.wide()))))
    }, _ => Err(wrong_type(a.dtype)))
}

/// A truth of each pair of elements of two operands of one type, broadcast.
pub(super) fn compare(
    a: &View<'_>,
    b: &View<'_>,
    floats: impl Fn(&f64, &f64) -> bool,
    ints: impl Fn(&i128, &i128) -> bool,
) -> Result<Data> {
    same_type(a, b)?;
    let shape = broadcast(&[a.shape, b.shape])?;
    by_float!(a.dtype, T => {
        let (x, y) = (spread(native::<T>(a), a.shape, &shape)?, spread(native::<T>(b), b.shape, &shape)?);
        bools(&shape, x.iter().zip(&*y).map(|(x, y)| floats(&x.wide(), &y.wide())))
    }, _ => by_int!(a.dtype, T => {
        let (x, y) = (spread(native::<T>(a), a.shape, &shape)?, spread(native::<T>(b), b.shape, &shape)?);
        bools(&shape, x.iter().zip(&*y).map(|(x, y)| ints(&x.wide(), &y.wide())))
    }, _ => match a.dtype {
        DType::Bool => {
            let (x, y) = (spread(native::<u8>(a), a.shape, &shape)?, spread(native::<u8>(b), b.shape, &shape)?);
            let wide = |v: &u8| i128::from(*v != 0);
            bools(&shape, x.iter().zip(&*y).map(|(x, y)| ints(&wide(x), &wide(y))))
        }
        d => Err(wrong_type(d)),
    }))
}

/// A tensor cut into lanes along an axis: element `i` of lane `(o, n)` is at `(o * len + i) * inner + n`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lanes {
    /// Product of the extents before the axis.
    pub(super) outer: usize,
    /// Extent of the axis.
    pub(super) len: usize,
    /// Product of the extents behind the axis.
    pub(super) inner: usize,
}

impl Lanes {
    /// The lanes along one axis.
    pub(super) fn along(shape: &[usize], axis: usize) -> Lanes {
        Lanes { outer: shape[..axis].iter().product(), len: shape[axis], inner: shape[axis + 1..].iter().product() }
    }

    /// The first element of each lane, in row-major order of the other axes. The next ones are `inner` apart.
    pub(super) fn starts(self) -> impl Iterator<Item = usize> {
        (0..self.outer).flat_map(move |o| (0..self.inner).map(move |n| o * self.len * self.inner + n))
    }

    /// Positions of the elements of a lane.
    pub(super) fn lane(self, start: usize) -> impl Iterator<Item = usize> {
        (0..self.len).map(move |i| start + i * self.inner)
    }
}
