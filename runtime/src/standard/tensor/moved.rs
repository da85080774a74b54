//! Elements that are moved and not computed on: numbers of any type, and strings.

use crate::cpu::convert::{typed, typed_mut};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::standard::{Arg, Args, Data, Operand, Partial, StandardError, Strings, count, from_bytes, from_ints};
use crate::tensor::{Tensor, View};

type Result<T> = std::result::Result<T, StandardError>;

/// A tensor of numbers or of strings.
#[derive(Clone, Copy)]
pub(in crate::standard) struct Source<'a> {
    /// Extents.
    pub(in crate::standard) shape: &'a [usize],
    kind: Kind<'a>,
}

#[derive(Clone, Copy)]
enum Kind<'a> {
    Bytes(DType, &'a [u8]),
    Texts(&'a [String]),
}

impl<'a> Source<'a> {
    /// The operand at a position, which must be a tensor.
    pub(in crate::standard) fn of(x: &Args<'a>, i: usize) -> Result<Source<'a>> {
        match x.required(i)? {
            Arg::Tensor(v) => Ok(Source::view(v)),
            Arg::Other(d) => Source::data(d)
                .ok_or_else(|| StandardError::new(format!("operand {i} is {}, not a tensor", d.describe()))),
        }
    }

    /// A tensor of numbers.
    pub(in crate::standard) fn view(v: View<'a>) -> Source<'a> {
        Source { shape: v.shape, kind: Kind::Bytes(v.dtype, v.bytes) }
    }

    /// A value, if it is a tensor.
    pub(in crate::standard) fn data(d: &'a Data) -> Option<Source<'a>> {
        match d {
            Data::Tensor(t) => Some(Source::view(t.view())),
            Data::Strings(s) => Some(Source { shape: &s.shape, kind: Kind::Texts(&s.values) }),
            _ => None,
        }
    }

    /// Element type; [`DType::Opaque`] for strings.
    pub(in crate::standard) fn dtype(&self) -> DType {
        match self.kind {
            Kind::Bytes(d, _) => d,
            Kind::Texts(_) => DType::Opaque,
        }
    }

    /// Number of axes.
    pub(in crate::standard) fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Number of elements.
    pub(in crate::standard) fn len(&self) -> usize {
        match self.kind {
            Kind::Bytes(d, b) => b.len() / d.size(),
            Kind::Texts(t) => t.len(),
        }
    }

    /// The strings, where it has strings.
    pub(in crate::standard) fn texts(&self) -> Option<&'a [String]> {
        match self.kind {
            Kind::Texts(t) => Some(t),
            Kind::Bytes(..) => None,
        }
    }

    /// The numbers, where it has numbers.
    pub(in crate::standard) fn numbers(&self) -> Option<View<'a>> {
        match self.kind {
            Kind::Texts(_) => None,
            Kind::Bytes(dtype, bytes) => Some(View { dtype, shape: self.shape, bytes }),
        }
    }

    /// The same elements with other extents.
    pub(in crate::standard) fn reshaped(&self, shape: &[usize]) -> Result<Data> {
        let fits = |n: usize| match n == self.len() {
            true => Ok(()),
            false => Err(StandardError::new(format!(
                "{:?} cannot become {shape:?}: the number of elements differs",
                self.shape
            ))),
        };
        match self.kind {
            Kind::Bytes(d, b) => {
                fits(count(d, shape)?)?;
                from_bytes(d, shape, b)
            }
            Kind::Texts(t) => {
                fits(count(DType::U8, shape)?)?;
                Ok(Strings { shape: shape.to_vec(), values: t.to_vec() }.into())
            }
        }
    }

    /// Elements whose position is the sum of `offset` and, per axis of `walk`, the index times the stride. `shape` has as many
    /// elements as `walk`.
    pub(in crate::standard) fn strided(
        &self,
        shape: &[usize],
        walk: &[usize],
        strides: &[isize],
        offset: isize,
    ) -> Result<Data> {
        let (mut walk, mut strides) = (walk.to_vec(), strides.to_vec());
        // Trailing axes whose elements lie side by side move together.
        let mut block = 1usize;
        while let (Some(&n), Some(&s)) = (walk.last(), strides.last())
            && (n == 1 || s == block as isize)
        {
            walk.pop();
            strides.pop();
            block *= n;
        }
        if count(DType::U8, shape)? == 0 {
            return assemble(shape, 1, &[*self], []);
        }
        assemble(shape, block, &[*self], Walk::new(&walk, &strides, offset).map(|i| (0, i)))
    }

    /// Runs of `block` elements that start at the given positions.
    pub(in crate::standard) fn take(
        &self,
        shape: &[usize],
        block: usize,
        starts: impl IntoIterator<Item = usize>,
    ) -> Result<Data> {
        assemble(shape, block, &[*self], starts.into_iter().map(|i| (0, i)))
    }
}

/// Positions of a strided walk in row-major order of its extents.
pub(in crate::standard) struct Walk {
    shape: Vec<usize>,
    strides: Vec<isize>,
    at: Vec<usize>,
    position: isize,
    left: usize,
}

impl Walk {
    /// A walk over `shape` from a position; each axis adds its stride. The extents' product must fit into memory.
    pub(in crate::standard) fn new(shape: &[usize], strides: &[isize], offset: isize) -> Walk {
        Walk {
            shape: shape.to_vec(),
            strides: strides.to_vec(),
            at: vec![0; shape.len()],
            position: offset,
            left: shape.iter().product(),
        }
    }
}

impl Iterator for Walk {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        // A negative position becomes one beyond every tensor, which readers refuse.
        let found = self.position as usize;
        for d in (0..self.shape.len()).rev() {
            self.at[d] += 1;
            self.position += self.strides[d];
            if self.at[d] < self.shape[d] {
                break;
            }
            self.position -= self.strides[d] * self.at[d] as isize;
            self.at[d] = 0;
        }
        Some(found)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

/// A tensor made of runs of `block` elements: each pick names a source and the position where its run starts. All sources
/// have one element type.
pub(in crate::standard) fn assemble(
    shape: &[usize],
    block: usize,
    sources: &[Source<'_>],
    picks: impl IntoIterator<Item = (usize, usize)>,
) -> Result<Data> {
    let first = sources.first().ok_or_else(|| StandardError::new("there is no operand"))?;
    if let Some(other) = sources.iter().find(|s| s.dtype() != first.dtype()) {
        return Err(StandardError::new(format!(
            "operands of {} and {} do not go together",
            first.dtype(),
            other.dtype()
        )));
    }
    let outside = |at: usize| StandardError::new(format!("position {} is outside an operand", at as isize));
    let picks = picks.into_iter().take(count(DType::U8, shape)? / block.max(1));
    let few = || StandardError::new(format!("there are not as many elements as {shape:?} has"));
    if let Kind::Texts(_) = first.kind {
        let n = count(DType::U8, shape)?;
        let mut values: Vec<String> = vec![];
        for (s, at) in picks {
            let texts = sources.get(s).and_then(Source::texts).unwrap_or_default();
            let run = at.checked_add(block).and_then(|end| texts.get(at..end)).ok_or_else(|| outside(at))?;
            values.extend_from_slice(run);
        }
        if values.len() != n {
            return Err(few());
        }
        return Ok(Strings { shape: shape.to_vec(), values }.into());
    }
    let dtype = first.dtype();
    count(dtype, shape)?;
    let mut out = Tensor::zeros(dtype, shape)?;
    let bytes: Vec<&[u8]> = sources
        .iter()
        .map(|s| match s.kind {
            Kind::Bytes(_, b) => b,
            Kind::Texts(_) => &[],
        })
        .collect();
    let complete = match (block, dtype.size()) {
        (1, 1) => singles::<u8>(&mut out, &bytes, picks),
        (1, 2) => singles::<u16>(&mut out, &bytes, picks),
        (1, 4) => singles::<u32>(&mut out, &bytes, picks),
        (1, 8) => singles::<u64>(&mut out, &bytes, picks),
        (_, size) => {
            let run = block * size;
            let mut picks = picks;
            let mut done = true;
            for o in out.bytes_mut().chunks_exact_mut(run.max(1)) {
                let Some((s, at)) = picks.next() else {
                    done = false;
                    break;
                };
                let start = at.checked_mul(size).ok_or_else(|| outside(at))?;
                let from = start.checked_add(run).and_then(|end| bytes.get(s)?.get(start..end));
                o.copy_from_slice(from.ok_or_else(|| outside(at))?);
            }
            Ok(done)
        }
    };
    match complete {
        Ok(true) => Ok(out.into()),
        Ok(false) => Err(few()),
        Err(at) => Err(outside(at)),
    }
}

/// Copies single elements; whether there were enough of them. The error is a position outside its source.
fn singles<T: bytemuck::Pod>(
    out: &mut Tensor,
    sources: &[&[u8]],
    picks: impl IntoIterator<Item = (usize, usize)>,
) -> std::result::Result<bool, usize> {
    let sources: Vec<_> = sources.iter().map(|b| typed::<T>(b)).collect();
    let Ok(out) = typed_mut::<T>(out.bytes_mut()) else { return Ok(false) };
    let mut picks = picks.into_iter();
    for o in out {
        let Some((s, at)) = picks.next() else { return Ok(false) };
        *o = *sources.get(s).and_then(|s| s.get(at)).ok_or(at)?;
    }
    Ok(true)
}

/// A vector of 64-bit integers.
pub(in crate::standard) fn from_i64(values: &[i64]) -> Result<Data> {
    from_ints(DType::I64, &[values.len()], values.iter().map(|&v| i128::from(v)))
}

/// An index into an extent; negative ones count from the end.
pub(in crate::standard) fn index(i: i64, extent: usize) -> Result<usize> {
    let at = if i < 0 { i.saturating_add(extent as i64) } else { i };
    usize::try_from(at)
        .ok()
        .filter(|&a| a < extent)
        .ok_or_else(|| StandardError::new(format!("index {i} is outside the extent {extent}")))
}

/// Axes counted from the front, each once.
pub(in crate::standard) fn axes(list: &[i64], rank: usize) -> Result<Vec<usize>> {
    let found: Vec<usize> = list.iter().map(|&a| crate::standard::axis(a, rank)).collect::<Result<_>>()?;
    if let Some((_, a)) = found.iter().enumerate().find(|(i, a)| found[..*i].contains(a)) {
        return Err(StandardError::new(format!("axis {a} is named twice")));
    }
    Ok(found)
}

/// A shape given as data.
pub(in crate::standard) fn extents(list: &[i64]) -> Result<Vec<usize>> {
    list.iter()
        .map(|&d| usize::try_from(d).map_err(|_| StandardError::new(format!("the shape {list:?} has the extent {d}"))))
        .collect()
}

/// A result of moved elements: what holds strings has no extents.
pub(in crate::standard) fn carried(dtype: DType, shape: impl IntoIterator<Item = Option<Dim>>) -> Partial {
    if dtype == DType::Opaque {
        return Partial::opaque();
    }
    Partial { dtype, shape: Some(shape.into_iter().collect()) }
}

/// A result of moved elements whose rank is known at most.
pub(in crate::standard) fn unknown(dtype: DType, rank: Option<usize>) -> Partial {
    match rank {
        Some(n) => carried(dtype, vec![None; n]),
        None if dtype == DType::Opaque => Partial::opaque(),
        None => Partial::unranked(dtype),
    }
}

/// The extents of an operand.
pub(in crate::standard) fn dims(x: &Operand<'_>) -> Vec<Option<Dim>> {
    x.ty.shape.iter().cloned().map(Some).collect()
}

/// The number of elements of a vector operand, where it is constant.
pub(in crate::standard) fn length(x: &Operand<'_>) -> Option<usize> {
    match &x.ty.shape[..] {
        [d] if x.ty.dtype != DType::Opaque => usize::try_from(d.as_const()?).ok(),
        _ => None,
    }
}
