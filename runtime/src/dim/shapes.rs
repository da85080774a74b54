//! What ONNX makes of the operands of slices, ranges and reshapes, for any values of the symbols.

use super::{Atom, Dim, Repr};

/// A slice along one axis, its bounds counted from the front and within the axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceBounds {
    /// First position.
    pub start: Dim,
    /// The position behind the last; before it, where the step is negative.
    pub end: Dim,
    /// Number of elements.
    pub count: Dim,
}

/// Number of elements from `start` up to but without `end`, or down to it.
pub fn count_steps(start: &Dim, end: &Dim, step: i64) -> Dim {
    let zero = Dim::from(0);
    let (from, to) = if step < 0 { (end, start) } else { (start, end) };
    let stride = step.unsigned_abs();
    let one = stride == 1;
    let span = match (from.as_atom(), to.as_atom()) {
        // Parts that are clamped at one end have their extent where they are clamped.
        (Some(Atom::Max(d)), None | Some(Atom::Sym(_))) if one => (to - &d.0).smaller(&(to - &d.1)),
        (Some(Atom::Min(d)), None | Some(Atom::Sym(_))) if one => (to - &d.0).larger(&(to - &d.1)),
        _ => to - from,
    };
    let span = span.larger(&zero);
    match i64::try_from(stride) {
        Ok(1) => span,
        Ok(s) => (&span + &Dim::from(s - 1)).floor_div(&Dim::from(s)),
        // Steps of 2^63 never reach a second element.
        Err(_) => span.smaller(&Dim::from(1)),
    }
}

/// The bounds of a slice of an axis of `extent`: negative ones count from the end, and all are clamped. The step is not 0.
pub fn slice_bounds(start: &Dim, end: &Dim, step: i64, extent: &Dim) -> SliceBounds {
    // Where the axis is empty, so is the slice; a last position does not exist then.
    let last = extent - &Dim::from(1);
    let (low, high) = if step < 0 { (Dim::from(-1), last.clone()) } else { (Dim::from(0), extent.clone()) };
    let lowest_start = if step < 0 { Dim::from(0).smaller(&high) } else { low.clone() };
    let (start, end) = (within(start, extent, &lowest_start, &high), within(end, extent, &low, &high));
    let count = count_steps(&start, &end, step);
    SliceBounds { start, end, count }
}

fn within(v: &Dim, extent: &Dim, low: &Dim, high: &Dim) -> Dim {
    let clamp = |d: &Dim| d.smaller(high).larger(low);
    match v.as_const() {
        // Beyond every extent; sums with it would leave 64 bits.
        Some(c) if c > super::MAX_EXTENT => return high.clone(),
        Some(c) if c < -super::MAX_EXTENT => return low.clone(),
        _ => {}
    }
    if v.is_natural() {
        return clamp(v);
    }
    let from_end = (v + extent).smaller(high).larger(low);
    if (&Dim::from(-1) - v).is_natural() {
        return from_end;
    }
    // Which end it counts from depends on its sign.
    let negative = v.less(&Dim::from(0));
    if (&Dim::from(0) - v).is_natural() && *low == Dim::from(0) {
        return &negative * &from_end;
    }
    clamp(&(v + &(&negative * extent)))
}

/// The shape that `Reshape` gives: -1 is what is left, and 0 copies an extent if `copies`. `None` is an extent that only execution
/// shows. The error says why no extents of the symbols fit.
///
/// An extent that is 0 at run time copies as well, which makes long expressions of plain ones. With `nonzero`, products of
/// symbols go there instead, and the shape is right where they are 1 or more.
pub fn reshaped(
    shape: &[Dim],
    target: &[Dim],
    copies: bool,
    mut nonzero: Option<&mut Vec<Dim>>,
) -> Result<Vec<Option<Dim>>, String> {
    let (zero, one) = (Dim::from(0), Dim::from(1));
    let product = |s: &mut dyn Iterator<Item = &Dim>| s.fold(one.clone(), |p, d| &p * d);
    let all = product(&mut shape.iter());
    // The other extents stay as they are: this one does too, whatever number says so.
    if shape.len() == target.len() && copies {
        let changed: Vec<usize> = (0..shape.len()).filter(|&i| shape[i] != target[i]).collect();
        if let [i] = changed[..]
            && target.iter().enumerate().all(|(j, d)| j == i || d.bounds().0 > 0)
            && target[i].as_const().is_none()
        {
            return Ok(shape.iter().cloned().map(Some).collect());
        }
    }
    let mut out: Vec<Option<Dim>> = vec![];
    let (mut free, mut open, mut doubtful) = (None, false, vec![]);
    for (i, d) in target.iter().enumerate() {
        out.push(match d.as_const() {
            Some(-1) if free.replace(i).is_some() => {
                return Err(format!("the shape {target:?} leaves more than one extent open"));
            }
            Some(-1) => None,
            Some(0) if copies => {
                Some(shape.get(i).cloned().ok_or_else(|| {
                    format!("the shape {target:?} copies axis {i}, but there are {} axes", shape.len())
                })?)
            }
            Some(n) if n < -1 => return Err(format!("the shape {target:?} has the extent {n}")),
            Some(_) => Some(d.clone()),
            None if !d.is_natural() => {
                open = true;
                None
            }
            None => {
                if copies && d.bounds().0 < 1 && shape.get(i).is_some_and(|s| s != d) {
                    doubtful.push(i);
                }
                Some(d.clone())
            }
        });
    }
    // An extent that is 0 at run time copies too.
    for i in doubtful {
        let (Some(d), Some(have)) = (out[i].clone(), shape.get(i)) else { continue };
        let mut others = out.iter().enumerate().filter(|(j, _)| *j != i);
        let fixed = free.is_none() && others.all(|(_, d)| d.as_ref().is_some_and(|d| d.bounds().0 > 0));
        // There are no elements then, so that what is copied is 0 as well.
        if d.vanishes_with(have) || fixed && !open && product(&mut out.iter().flatten()) == all {
            continue;
        }
        if let Some(list) = nonzero.as_deref_mut().filter(|_| d.is_polynomial()) {
            list.push(d);
            continue;
        }
        out[i] = Some(&d + &(&(&one - &d.smaller(&one)) * have));
    }
    if let (Some(i), false) = (free, open) {
        let rest = product(&mut out.iter().flatten());
        out[i] = match all.div_exact(&rest) {
            Some(d) => Some(d),
            None if rest == zero => return Err(format!("the shape {target:?} leaves an extent open beside one of 0")),
            // It divides, or there is no such tensor.
            None => Some(all.floor_div(&rest)),
        };
    }
    Ok(out)
}

impl Dim {
    /// Whether the other one is 0 wherever this product of symbols is.
    fn vanishes_with(&self, other: &Dim) -> bool {
        let Repr::Sum(terms) = &self.0 else { return false };
        let [(atoms, _)] = &terms[..] else { return false };
        atoms.iter().all(|a| match a {
            Atom::Sym(s) => other.div_exact(&Dim::sym(s)).is_some(),
            _ => false,
        })
    }

    /// Whether it is a sum of products of symbols, none of them negative.
    fn is_polynomial(&self) -> bool {
        let Repr::Sum(terms) = &self.0 else { return true };
        terms.iter().all(|(m, c)| *c > 0 && m.iter().all(|a| matches!(a, Atom::Sym(_))))
    }
}
