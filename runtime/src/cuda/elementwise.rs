//! Launches of elementwise chains, and of single elementwise operators.

use super::chain::{CHECK, Chain, MAX_OPERANDS, MAX_RESULTS, Operand};
use super::index::{Axis, MAX_AXES, Walk, blocks, broadcast_steps, row_major};
use super::launch::{Check, DeviceInfo, Launch, LaunchError, View, ViewMut};
use super::source::Kernel;
use crate::dtype::{DType, Literal};
use crate::op::Op;

const FILE: &str = "elementwise.cuh";

/// Threads of a block, at most.
const THREADS: u32 = 256;

/// Threads of a block, at least: fewer where there is little work, so that more multiprocessors take part.
const FEWEST_THREADS: u32 = 64;

/// Bytes that a thread should have on their way before it computes.
const IN_FLIGHT: usize = 64;

/// Units of a thread, at most.
const MOST_UNITS: usize = 4;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Arguments {
    operand: [u64; MAX_OPERANDS],
    result: [u64; MAX_RESULTS],
    axis: [Axis; MAX_AXES],
    step: [[i64; MAX_OPERANDS]; MAX_AXES],
    units: i64,
    tail: i64,
    rank: u32,
    spread: u32,
}

impl Chain {
    /// The kernel for packed units, or for single elements.
    pub fn kernel(&self, packed: bool) -> Kernel {
        let v = self.unit(packed);
        let name = format!("{}_x{v}", self.title());
        let body = format!("run_chain<{name}_steps, {v}, {}>", self.units(packed));
        let mut kernel = Kernel::without_spills(FILE, name, THREADS, "ElementwiseArguments", &body);
        kernel.entry.insert_str(0, &self.source(&format!("{}_steps", kernel.name)));
        kernel
    }

    /// Elements of a unit: 16 bytes of the widest type.
    fn unit(&self, packed: bool) -> usize {
        let widest = self.operands().iter().copied().chain(self.results()).map(DType::size).max().unwrap_or(1);
        if packed { 16 / widest } else { 1 }
    }

    /// Units of a thread.
    fn units(&self, packed: bool) -> usize {
        let bytes = self.unit(packed) * self.operands().iter().map(|d| d.size()).sum::<usize>();
        IN_FLIGHT.div_ceil(bytes.max(1)).clamp(1, MOST_UNITS)
    }

    /// A launch on operands that broadcast to the results' shape. A result may have the memory of an operand of its shape and size.
    pub fn launch(
        &self,
        operands: &[View<'_>],
        results: &[ViewMut<'_>],
        info: &DeviceInfo,
    ) -> Result<Launch, LaunchError> {
        self.launch_as(CHECK, operands, results, info)
    }

    fn launch_as(&self, c: Check, x: &[View<'_>], y: &[ViewMut<'_>], info: &DeviceInfo) -> Result<Launch, LaunchError> {
        let results: Vec<DType> = self.results().collect();
        c.that((x.len(), y.len()) == (self.operands().len(), results.len()), || {
            let (a, b) = (self.operands().len(), results.len());
            format!("{} operands and {} results, expected {a} and {b}", x.len(), y.len())
        })?;
        let Some(whole) = y.first().map(|y| y.shape) else { return c.fail("no result") };
        for (i, (v, &d)) in x.iter().zip(self.operands()).enumerate() {
            c.typed(&format!("operand {i}"), v, d, v.shape)?;
        }
        for (i, (v, &d)) in y.iter().zip(&results).enumerate() {
            c.typed(&format!("result {i}"), v, d, whole)?;
        }
        let shapes: Vec<&[usize]> = x.iter().map(|v| v.shape).collect();
        let computed = self.shapes(&shapes, whole).or_else(|e| c.fail(e))?;
        for (i, s) in self.stored().iter().map(|&i| &computed[i]).enumerate() {
            c.that(s == whole, || format!("result {i} is {s:?}, its memory is for {whole:?}"))?;
        }
        self.check_overlap(c, x, y)?;
        let mut steps = vec![];
        for (i, v) in x.iter().enumerate() {
            match broadcast_steps(whole, v.shape) {
                Some(s) => steps.push(s),
                None => return c.fail(format!("operand {i} {:?} does not broadcast to {whole:?}", v.shape)),
            }
        }
        // The results walk along, so that axes merge only where they do.
        steps.push(row_major(whole));
        let walk = Walk::new(whole, &steps);
        let packed = self.packs(&walk, x, y);
        let v = self.unit(packed);
        let elements: usize = whole.iter().product();
        let units = elements / v;
        let last = walk.rank() - 1;
        let axes = {
            let mut in_units = walk.clone();
            in_units.extents[last] /= v;
            in_units.axes(c)?
        };
        let mut a = Arguments {
            operand: [0; MAX_OPERANDS],
            result: [0; MAX_RESULTS],
            axis: axes,
            step: [[0; MAX_OPERANDS]; MAX_AXES],
            units: units as i64,
            tail: (elements % v) as i64,
            rank: walk.rank() as u32,
            spread: 0,
        };
        a.operand.iter_mut().zip(x).for_each(|(a, v)| *a = v.address);
        a.result.iter_mut().zip(y).for_each(|(a, v)| *a = v.address);
        for (d, from) in walk.steps.iter().enumerate() {
            let scale = if d == last { v as i64 } else { 1 };
            a.step[d].iter_mut().zip(&from[..x.len()]).for_each(|(to, s)| *to = s * scale);
        }
        for (k, step) in walk.steps[last][..x.len()].iter().enumerate() {
            a.spread |= u32::from(*step == 0) << k;
        }
        let per_thread = self.units(packed);
        let (grid, block) = blocks(c, units, per_thread, (THREADS, FEWEST_THREADS), info)?;
        let grid = grid.max(u32::from(a.tail > 0));
        Ok(Launch::new(self.kernel(packed), grid, block, 0, &a))
    }

    /// Whether whole packs can be read and written.
    fn packs(&self, walk: &Walk, x: &[View<'_>], y: &[ViewMut<'_>]) -> bool {
        let v = self.unit(true);
        let (last, outer) = (walk.rank() - 1, walk.rank() > 1);
        let aligned = |w: &View<'_>| w.address.is_multiple_of((v * w.dtype.size()) as u64);
        let operand = |(k, w): (usize, &View<'_>)| match walk.steps[last][k] {
            0 => true,
            1 => aligned(w) && walk.steps[..last].iter().all(|s| s[k] % v as i64 == 0),
            _ => false,
        };
        (!outer || walk.extents[last].is_multiple_of(v)) && x.iter().enumerate().all(operand) && y.iter().all(aligned)
    }

    fn check_overlap(&self, c: Check, x: &[View<'_>], y: &[ViewMut<'_>]) -> Result<(), LaunchError> {
        for (i, r) in y.iter().enumerate() {
            let name = format!("result {i}");
            for (k, v) in x.iter().enumerate() {
                let lead = r.shape.len().saturating_sub(v.shape.len());
                let same_shape = r.shape[lead..] == *v.shape && r.shape[..lead].iter().all(|d| *d == 1);
                if !(same_shape && v.address == r.address && v.dtype.size() == r.dtype.size()) {
                    c.apart((&name, r), (&format!("operand {k}"), v))?;
                }
            }
            for (j, other) in y.iter().enumerate().skip(i + 1) {
                c.apart((&name, r), (&format!("result {j}"), other))?;
            }
        }
        Ok(())
    }
}

/// A chain of one operator.
fn single(op: &Op, types: &[DType]) -> Result<Chain, LaunchError> {
    Chain::new(&[(op.clone(), (0..types.len()).map(Operand::Input).collect())], types, &[0])
}

/// Any elementwise operator by itself: unary and binary ones, `where`, `cast`, `silu_mul`, `gelu_mul`.
pub fn operator(op: &Op, x: &[View<'_>], out: &ViewMut<'_>, info: &DeviceInfo) -> Result<Launch, LaunchError> {
    let c = Check(op.name());
    let types: Vec<DType> = x.iter().map(|v| v.dtype).collect();
    let chain = single(op, &types).or_else(|e| c.fail(e.what))?;
    chain.launch_as(c, x, std::slice::from_ref(out), info)
}

/// x * sigmoid(x).
pub fn silu(x: &View<'_>, out: &ViewMut<'_>, info: &DeviceInfo) -> Result<Launch, LaunchError> {
    operator(&Op::Silu {}, &[*x], out, info)
}

/// Gaussian error linear unit: with erf, or the tanh approximation.
pub fn gelu(x: &View<'_>, tanh: bool, out: &ViewMut<'_>, info: &DeviceInfo) -> Result<Launch, LaunchError> {
    operator(&Op::Gelu { tanh }, &[*x], out, info)
}

/// silu(gate) * up.
pub fn silu_mul(gate: &View<'_>, up: &View<'_>, out: &ViewMut<'_>, info: &DeviceInfo) -> Result<Launch, LaunchError> {
    operator(&Op::SiluMul {}, &[*gate, *up], out, info)
}

/// gelu(gate) * up.
pub fn gelu_mul(
    gate: &View<'_>,
    up: &View<'_>,
    tanh: bool,
    out: &ViewMut<'_>,
    info: &DeviceInfo,
) -> Result<Launch, LaunchError> {
    operator(&Op::GeluMul { tanh }, &[*gate, *up], out, info)
}

/// a + b.
pub fn add(a: &View<'_>, b: &View<'_>, out: &ViewMut<'_>, info: &DeviceInfo) -> Result<Launch, LaunchError> {
    operator(&Op::Add {}, &[*a, *b], out, info)
}

/// a * b.
pub fn mul(a: &View<'_>, b: &View<'_>, out: &ViewMut<'_>, info: &DeviceInfo) -> Result<Launch, LaunchError> {
    operator(&Op::Mul {}, &[*a, *b], out, info)
}

/// x in the element type of the result.
pub fn cast(x: &View<'_>, out: &ViewMut<'_>, info: &DeviceInfo) -> Result<Launch, LaunchError> {
    operator(&Op::Cast { to: out.dtype }, &[*x], out, info)
}

/// x * sigmoid(x) * y, computed in f32 between casts.
pub(super) fn swish_chain(dtype: DType) -> Result<Chain, LaunchError> {
    use Operand::{Input, Step};
    let steps = [
        (Op::Cast { to: DType::F32 }, vec![Input(0)]),
        (Op::Sigmoid {}, vec![Step(0)]),
        (Op::Mul {}, vec![Step(0), Step(1)]),
        (Op::Cast { to: dtype }, vec![Step(2)]),
        (Op::Mul {}, vec![Step(3), Input(1)]),
    ];
    Chain::new(&steps, &[dtype; 2], &[4])
}

/// (codes, scale): e4m3 codes times scales of the result's type.
pub(super) fn dequantize_chain(dtype: DType) -> Result<Chain, LaunchError> {
    use Operand::{Input, Step};
    let steps = [(Op::Cast { to: dtype }, vec![Input(0)]), (Op::Mul {}, vec![Step(0), Input(1)])];
    Chain::new(&steps, &[DType::F8E4M3FN, dtype], &[1])
}

/// (x, r): x + r, and that times a half: an intermediate stays live.
pub(super) fn two_results_chain(dtype: DType) -> Result<Chain, LaunchError> {
    use Operand::{Input, Step};
    let steps = [
        (Op::Add {}, vec![Input(0), Input(1)]),
        (Op::Const { value: Literal::scalar(dtype, 0.5) }, vec![]),
        (Op::Mul {}, vec![Step(0), Step(1)]),
    ];
    Chain::new(&steps, &[dtype; 2], &[2, 0])
}

pub(super) fn catalog() -> Vec<Kernel> {
    const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
    let ops = [
        Op::Silu {},
        Op::Gelu { tanh: false },
        Op::Gelu { tanh: true },
        Op::SiluMul {},
        Op::GeluMul { tanh: false },
        Op::GeluMul { tanh: true },
        Op::Add {},
        Op::Mul {},
    ];
    let mut chains = vec![];
    for d in FLOATS {
        chains.extend(ops.iter().map(|op| single(op, &vec![d; op.info().min_inputs])));
        let others = FLOATS.into_iter().chain([DType::F8E4M3FN]).filter(|to| *to != d);
        chains.extend(others.map(|to| single(&Op::Cast { to }, &[d])));
        chains.push(single(&Op::Cast { to: d }, &[DType::F8E4M3FN]));
        chains.extend([swish_chain(d), dequantize_chain(d), two_results_chain(d)]);
    }
    chains.into_iter().flatten().flat_map(|c| [c.kernel(true), c.kernel(false)]).collect()
}

#[cfg(test)]
mod tests {
    use super::super::launch::view_at as view;
    use super::*;

    const INFO: fn() -> DeviceInfo = DeviceInfo::h200;

    fn bf16(address: u64, shape: &[usize]) -> View<'_> {
        view(address, DType::BF16, shape)
    }

    fn error<T: std::fmt::Debug>(r: Result<T, LaunchError>) -> String {
        r.unwrap_err().to_string()
    }

    #[test]
    fn packs_where_alignment_and_rows_allow_it() {
        let unit = |x: &[usize], y: &[usize], shift: u64| {
            let out = bf16(1 << 30, x);
            let name = mul(&bf16(1 << 20, x), &bf16((1 << 25) + shift, y), &out, &INFO()).unwrap().kernel.name;
            name[name.rfind('x').unwrap() + 1..].to_owned()
        };
        assert_eq!(unit(&[3, 64], &[3, 64], 0), "8");
        assert_eq!(unit(&[3, 5], &[3, 5], 0), "8");
        assert_eq!(unit(&[3, 64], &[64], 0), "8");
        assert_eq!(unit(&[3, 64], &[3, 1], 2), "8");
        assert_eq!(unit(&[3, 64], &[], 2), "8");
        assert_eq!(unit(&[3, 64], &[3, 64], 2), "1");
        assert_eq!(unit(&[3, 63], &[63], 0), "1");
        // Rows of seven columns are walked as one row of 21.
        assert_eq!(unit(&[2, 3, 7], &[2, 3, 7], 0), "8");
    }

    #[test]
    fn blocks_are_smaller_where_there_is_little_work() {
        let launch = |n: usize| {
            let shape = [n];
            let l = silu(&bf16(1 << 40, &shape), &bf16(1 << 50, &shape), &INFO()).unwrap();
            (l.grid, l.block)
        };
        // 8 elements a unit, 4 units a thread.
        assert_eq!(launch(0), (0, 64));
        assert_eq!(launch(1), (1, 64));
        assert_eq!(launch(132 * 64 * 32), (132, 64));
        assert_eq!(launch(132 * 128 * 32), (132, 128));
        assert_eq!(launch(132 * 256 * 32 + 1), (132, 256));
        assert_eq!(launch(132 * 256 * 32 + 8), (133, 256));
        assert_eq!(launch(1 << 33), (1 << 20, 256));
    }

    #[test]
    fn wrong_operands_are_refused() {
        let (s, t) = ([4usize, 8], [8usize]);
        let (a, b, out) = (bf16(1 << 20, &s), bf16(1 << 21, &t), bf16(1 << 22, &s));
        assert!(add(&a, &b, &out, &INFO()).is_ok());
        let f32s = view(1 << 21, DType::F32, &t);
        assert_eq!(error(add(&a, &f32s, &out, &INFO())), "add: step 0, `add`: operands of types bf16 and f32");
        let three = [3usize];
        let e = error(add(&a, &bf16(1 << 21, &three), &out, &INFO()));
        assert!(e.contains("step 0, `add`: [3] does not broadcast with [4, 8]"), "{e}");
        let e = error(add(&b, &b, &out, &INFO()));
        assert_eq!(e, "add: result 0 is [8], its memory is for [4, 8]");
        let e = error(add(&a, &b, &view(1 << 22, DType::F16, &s), &INFO()));
        assert_eq!(e, "add: result 0 is f16[4, 8], expected bf16[4, 8]");
        let e = error(silu(&View { bytes: 63, ..a }, &out, &INFO()));
        assert_eq!(e, "silu: operand 0 bf16[4, 8] needs 64 bytes, its memory has 63");
        // In place is fine for the same shape only.
        assert!(add(&a, &b, &bf16(1 << 20, &s), &INFO()).is_ok());
        let e = error(add(&a, &b, &bf16((1 << 20) + 2, &s), &INFO()));
        assert_eq!(e, "add: result 0 and operand 0 share memory");
        assert!(error(add(&b, &a, &bf16(1 << 21, &s), &INFO())).contains("operand 0 share memory"));
        let e = error(two_results_chain(DType::F32).unwrap().launch(&[a, b], &[out], &INFO()));
        assert_eq!(e, "elementwise: 2 operands and 1 results, expected 2 and 2");
        let nine = [2usize; 18];
        let every_other: Vec<usize> = (0..18).map(|i| 1 + i % 2).collect();
        let (x, y, z) = (bf16(1 << 20, &nine), bf16(1 << 30, &every_other), bf16(1 << 40, &nine));
        assert!(error(add(&x, &y, &z, &INFO())).contains("18 axes after merging"));
        let huge = [1usize << 46];
        let u8s = |address| view(address, DType::U8, &huge);
        let e = error(operator(&Op::Max {}, &[u8s(1 << 50), u8s(1 << 51)], &u8s(1 << 52), &INFO()));
        assert!(e.contains("blocks are needed"), "{e}");
    }

    #[test]
    fn the_catalog_has_what_the_launchers_ask_for() {
        let catalog = catalog();
        let mut names: Vec<&str> = catalog.iter().map(|k| k.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), catalog.len());
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for shape in [[3usize, 64], [3, 63]] {
                let (x, y) = (view(1 << 20, dtype, &shape), view(1 << 22, dtype, &shape));
                let column = view(1 << 21, dtype, &shape[1..]);
                let to = view(1 << 22, DType::F8E4M3FN, &shape);
                let launches = [
                    silu(&x, &y, &INFO()),
                    gelu(&x, true, &y, &INFO()),
                    gelu(&x, false, &y, &INFO()),
                    silu_mul(&x, &column, &y, &INFO()),
                    gelu_mul(&x, &column, true, &y, &INFO()),
                    gelu_mul(&x, &column, false, &y, &INFO()),
                    add(&x, &column, &y, &INFO()),
                    mul(&x, &column, &y, &INFO()),
                    cast(&x, &to, &INFO()),
                    cast(&to, &x, &INFO()),
                ];
                for l in launches {
                    let kernel = l.unwrap().kernel;
                    assert!(catalog.contains(&kernel), "{}", kernel.name);
                }
            }
        }
    }
}
