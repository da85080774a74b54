//! Loops that are compiled for the widest vectors of the processor, and run on several threads where that pays.
#![allow(clippy::needless_range_loop, reason = "the compiler vectorises loops over the indices of several arrays")]

use rayon::prelude::*;

/// Elements of a block: its f32 values stay in the first-level cache.
pub(crate) const BLOCK: usize = 4096;

/// Runs `f` compiled for AVX2 and FMA where the processor has them. `f` and what it calls must be `#[inline(always)]`: code
/// that is not inlined is compiled for the processors that every build supports. A form for AVX-512 would be a third copy of
/// every loop.
#[inline(always)]
pub(crate) fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    if let Some(v) = pulp::x86::V3::try_new() {
        return pulp::Simd::vectorize(v, f);
    }
    f()
}

/// Calls `f(start, part)` for the parts of `out` of `size` elements each (the last may be shorter), with more than one thread at
/// the same time.
pub(crate) fn parts<T: Send>(out: &mut [T], size: usize, threads: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let size = size.max(1);
    if threads <= 1 || out.len() <= size {
        out.chunks_mut(size).enumerate().for_each(|(i, part)| f(i * size, part));
    } else {
        out.par_chunks_mut(size).enumerate().for_each(|(i, part)| f(i * size, part));
    }
}

/// As [`parts`] where the work for an element is small: a thread takes as many parts at a time as make a [`BLOCK`].
pub(crate) fn rows<T: Send>(out: &mut [T], size: usize, threads: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let size = size.max(1);
    let several = BLOCK.div_ceil(size) * size;
    parts(out, several, threads, |start, several| {
        several.chunks_mut(size).enumerate().for_each(|(i, part)| f(start + i * size, part));
    });
}

/// Replaces each element.
///
/// Here and below `f` owns what it uses (`'static`): a variable that is captured by reference would be read anew after each store,
/// which might have changed it, and the loop would not be vectorised.
#[inline(always)]
pub(crate) fn each<T: Copy>(v: &mut [T], f: impl Fn(T) -> T + 'static) {
    vectorised(
        #[inline(always)]
        move || {
            for x in v.iter_mut() {
                *x = f(*x);
            }
        },
    );
}

/// Computes each element of `out` from that of `x`.
#[inline(always)]
pub(crate) fn map<A: Copy, B>(x: &[A], out: &mut [B], f: impl Fn(A) -> B + 'static) {
    vectorised(
        #[inline(always)]
        move || {
            for (o, &v) in out.iter_mut().zip(x) {
                *o = f(v);
            }
        },
    );
}

/// Replaces each element of `x` by a function of it and that of `y`.
#[inline(always)]
pub(crate) fn pairs<T: Copy>(x: &mut [T], y: &[T], f: impl Fn(T, T) -> T + 'static) {
    vectorised(
        #[inline(always)]
        move || {
            for (x, &y) in x.iter_mut().zip(y) {
                *x = f(*x, y);
            }
        },
    );
}

/// Partial results of a reduction, which become one in a fixed order.
const LANES: usize = 16;

/// Reduces a slice. `join` must be associative but for rounding; `start` is its neutral element.
#[inline(always)]
pub(crate) fn fold<A: Copy, T: Copy>(
    x: &[T],
    start: A,
    each: impl Fn(A, T) -> A + 'static,
    join: impl Fn(A, A) -> A + 'static,
) -> A {
    vectorised(
        #[inline(always)]
        move || {
            let mut lanes = [start; LANES];
            let (whole, rest) = x.as_chunks::<LANES>();
            for v in whole {
                for i in 0..LANES {
                    lanes[i] = each(lanes[i], v[i]);
                }
            }
            for (l, &v) in lanes.iter_mut().zip(rest) {
                *l = each(*l, v);
            }
            lanes.into_iter().fold(start, join)
        },
    )
}

/// The sum in f64.
pub(crate) fn sum(x: &[f32]) -> f64 {
    fold(x, 0.0, |s, v| s + f64::from(v), |a, b| a + b)
}

/// The sum of the squared distances from a number, in f64.
pub(crate) fn squares(x: &[f32], from: f64) -> f64 {
    let square = move |s: f64, v: f32| {
        let d = f64::from(v) - from;
        s + d * d
    };
    fold(x, 0.0, square, |a, b| a + b)
}

/// The greatest number, NaN left out; -infinity where there is none.
pub(crate) fn max(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    fold(x, f32::NEG_INFINITY, larger, larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reductions_take_every_element() {
        for n in [0, 1, 15, 16, 17, 1000] {
            let v: Vec<f32> = (0..n).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
            let want: f64 = v.iter().map(|&v| f64::from(v)).sum();
            assert_eq!(sum(&v), want);
            assert_eq!(squares(&v, 1.0), v.iter().map(|&v| (f64::from(v) - 1.0).powi(2)).sum::<f64>());
            assert_eq!(max(&v), v.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }

    #[test]
    fn parts_cover_the_whole() {
        for threads in [1, 2] {
            let mut v = vec![0usize; 1003];
            parts(&mut v, 100, threads, |start, part| {
                part.iter_mut().enumerate().for_each(|(i, o)| *o = start + i);
            });
            assert!(v.iter().enumerate().all(|(i, &o)| i == o));
        }
    }
}
