//! Caches of keys and values.

use super::convert::ints;
use super::{KernelError, Result, expect};
use crate::tensor::{View, ViewMut};

/// (past, new, length): the cache after the new tokens, by row as long as `length`, then zeros up to `tokens`.
pub(super) fn append(x: &[View<'_>], tokens: i64, out: &mut ViewMut<'_>) -> Result {
    let (past, new, length) = (&x[0], &x[1], &x[2]);
    let misfit =
        || KernelError::Shape(format!("a cache {:?} with {:?} and lengths {:?}", past.shape, new.shape, length.shape));
    let (&[b, h, p, d], &[nb, nh, s, nd]) = (past.shape, new.shape) else { return Err(misfit()) };
    if (nb, nh, nd) != (b, h, d) || length.shape != [b] {
        return Err(misfit());
    }
    if past.dtype != new.dtype {
        return Err(KernelError::Mixed(past.dtype, new.dtype));
    }
    let t = usize::try_from(tokens).map_err(|_| misfit())?;
    expect(out, past.dtype, &[b, h, t, d])?;
    let entry = d * past.dtype.size();
    let kept: Vec<usize> = ints(length)?
        .iter()
        .map(|&n| {
            let kept = usize::try_from(n.saturating_sub(s as i64)).unwrap_or(0);
            let fits = kept <= p && kept.checked_add(s).is_some_and(|end| end <= t);
            if fits { Ok(kept) } else { Err(KernelError::Index { index: n, extent: t.min(p.saturating_add(s)) }) }
        })
        .collect::<Result<_>>()?;
    if out.is_empty() {
        return Ok(());
    }
    for (i, row) in out.bytes.chunks_exact_mut(t * entry).enumerate() {
        let kept = kept[i / h];
        let (old, rest) = row.split_at_mut(kept * entry);
        let (fresh, zeros) = rest.split_at_mut(s * entry);
        old.copy_from_slice(&past.bytes[i * p * entry..][..kept * entry]);
        fresh.copy_from_slice(&new.bytes[i * s * entry..][..s * entry]);
        zeros.fill(0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{error, f32s, i64s, run_f64};
    use crate::dim::Dim;
    use crate::dtype::DType;
    use crate::op::Op;

    #[test]
    fn rows_of_different_lengths() {
        let op = |n: i64| Op::Append { tokens: Dim::from(n) };
        let past = f32s(&[3, 1, 2, 1], &[1., 2., 3., 4., 5., 6.]);
        let new = f32s(&[3, 1, 1, 1], &[10., 20., 30.]);
        let y = run_f64(op(3), &[&past, &new, &i64s(&[3], &[3, 2, 0])], DType::F32, &[3, 1, 3, 1]);
        assert_eq!(y, [1., 2., 10., 3., 20., 0., 30., 0., 0.]);
        let e = error(op(3), &[&past, &new, &i64s(&[3], &[4, 2, 1])], DType::F32, &[3, 1, 3, 1]);
        assert!(e.contains("index 4 is outside the extent 3"), "{e}");
        let e = error(op(2), &[&past, &new, &i64s(&[3], &[3, 2, 1])], DType::F32, &[3, 1, 2, 1]);
        assert!(e.contains("index 3 is outside the extent 2"), "{e}");
        // A cache that is as long as it will ever be.
        let y = run_f64(op(2), &[&past, &new, &i64s(&[3], &[1, 2, 2])], DType::F32, &[3, 1, 2, 1]);
        assert_eq!(y, [10., 0., 3., 20., 5., 30.]);
    }
}
