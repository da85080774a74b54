//! Launchers of `norm.cu`: norms over the last axis, alone and fused with the sum before and the quantisation behind them.

use std::fmt;

use super::launch::{Check, type_code, type_name};
use super::{DeviceInfo, Kernel, Launch, LaunchError, View, ViewMut};
use crate::cpu::quantize::{BLOCK, swizzled_len};
use crate::dtype::DType;
use crate::norm::{Kind, Norm, Quant, Sum};
use crate::op::{self, Op};

/// Bytes of a pack.
const PACK: usize = 16;

/// `NormParameters` of norm.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::NoUninit)]
pub(super) struct NormParameters {
    weight: u64,
    bias: u64,
    norm: u64,
    q: u64,
    scale_out: u64,
    scale: u64,
    pub(super) rows: i64,
    pub(super) columns: i64,
    eps: f32,
    floor: f32,
    weight_type: u32,
    bias_type: u32,
    scale_type: u32,
    quotient_type: u32,
}

/// `NormArguments` of norm.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct NormArguments {
    parameters: NormParameters,
    x: u64,
    r: u64,
    sum: u64,
}

/// How rows are divided among threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    /// A warp owns a row, with so many packs per lane.
    Warp(u32),
    /// A block owns a row, with so many packs per thread.
    Block(u32),
    /// A block reads a row several times, in packs.
    LoopPacked,
    /// A block reads a row several times, one element at a time: any length and alignment.
    Loop,
}

impl Path {
    const ALL: [Path; 9] = [
        Path::Warp(1),
        Path::Warp(2),
        Path::Warp(4),
        Path::Block(1),
        Path::Block(2),
        Path::Block(4),
        Path::Block(8),
        Path::LoopPacked,
        Path::Loop,
    ];

    /// The function of norm.cu, and its last argument.
    fn body(self) -> (&'static str, String) {
        match self {
            Path::Warp(packs) => ("norm_warp", packs.to_string()),
            Path::Block(packs) => ("norm_block", packs.to_string()),
            Path::LoopPacked => ("norm_loop", "true".to_owned()),
            Path::Loop => ("norm_loop", "false".to_owned()),
        }
    }

    /// Most threads of a block: what leaves enough registers.
    fn threads(self) -> u32 {
        match self {
            Path::Warp(_) => 256,
            Path::Block(4..) => 512,
            _ => 1024,
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Warp(packs) => write!(f, "warp{packs}"),
            Path::Block(packs) => write!(f, "block{packs}"),
            Path::LoopPacked => f.write_str("loop_packed"),
            Path::Loop => f.write_str("loop"),
        }
    }
}

/// A norm and a quantisation in kernel sources.
pub(super) fn template_names(kind: Option<Kind>, quant: Quant) -> (&'static str, &'static str) {
    let norm = match kind {
        None => "NO_NORM",
        Some(Kind::Rms) => "RMS_NORM",
        Some(Kind::Layer) => "LAYER_NORM",
    };
    let quant = match quant {
        Quant::None => "NO_QUANT",
        Quant::Fp8 => "FP8",
        Quant::Fp8Token { .. } => "FP8_TOKEN",
        Quant::Nvfp4 => "NVFP4",
    };
    (norm, quant)
}

/// What is done with a row: the template arguments of norm.cu between the element type and the path.
#[derive(Clone, Copy)]
pub(super) struct Family {
    name: &'static str,
    add: bool,
    kind: Option<Kind>,
    quant: Quant,
}

impl Family {
    /// A row that is quantised without a norm.
    pub(super) fn quantiser(name: &'static str, quant: Quant) -> Family {
        Family { name, add: false, kind: None, quant }
    }

    fn of(name: &'static str, n: &Norm) -> Family {
        Family { name, add: n.sum != Sum::None, kind: Some(n.kind), quant: n.quant }
    }

    fn kernel(&self, dtype: DType, path: Path) -> Kernel {
        let (norm, quant) = template_names(self.kind, self.quant);
        let (function, last) = path.body();
        let body = format!("{function}<{}, {}, {norm}, {quant}, {last}>", type_name(dtype), self.add);
        let name = format!("{}_{dtype}_{path}", self.name);
        // A plain norm needs the occupancy most, and is the one that fits.
        let new = if self.quant == Quant::None { Kernel::new } else { Kernel::without_spills };
        new("norm.cu", name, path.threads(), "NormArguments", &body)
    }

    /// Every kernel of the family.
    pub(super) fn kernels(&self) -> Vec<Kernel> {
        let types = [DType::F32, DType::F16, DType::BF16];
        types.into_iter().flat_map(|d| Path::ALL.map(|path| self.kernel(d, path))).collect()
    }
}

/// Every kernel of this launcher.
pub(super) fn catalog() -> Vec<Kernel> {
    let norms = op::table().iter().filter_map(|row| Some((row.name, Norm::by_name(row.name)?)));
    let local = norms.filter(|(_, n)| matches!(n.sum, Sum::None | Sum::Local));
    local.flat_map(|(name, n)| Family::of(name, &n).kernels()).collect()
}

/// Operands and results of rows that are normalised or quantised, as they are checked one after the other.
pub(super) struct Rows<'a> {
    c: Check,
    x: View<'a>,
    r: Option<View<'a>>,
    sum: Option<View<'a>>,
    pub(super) parameters: NormParameters,
    operands: Vec<(&'static str, View<'a>)>,
    results: Vec<(&'static str, View<'a>)>,
}

impl<'a> Rows<'a> {
    /// Rows of x; rows without elements are no rows.
    pub(super) fn new(c: Check, x: &View<'a>) -> Result<Rows<'a>, LaunchError> {
        c.float("x", x)?;
        c.view("x", x)?;
        c.that(!x.shape.is_empty(), || "x is a scalar and has no rows".to_owned())?;
        let (columns, rows) = if x.is_empty() { (0, 0) } else { x.rows().unwrap_or((0, 0)) };
        let parameters = NormParameters { rows: rows as i64, columns: columns as i64, ..NormParameters::default() };
        Ok(Rows { c, x: *x, r: None, sum: None, parameters, operands: vec![("x", *x)], results: vec![] })
    }

    /// Operands and results of a norm, in the order of its operator.
    pub(super) fn of_norm(
        c: Check,
        n: &Norm,
        x: &[View<'a>],
        out: &[Option<ViewMut<'a>>],
    ) -> Result<Rows<'a>, LaunchError> {
        let quantised = match n.quant {
            Quant::None => 0,
            Quant::Fp8 => 1,
            Quant::Fp8Token { .. } | Quant::Nvfp4 => 2,
        };
        let (scaled, summed) = (usize::from(n.scale().is_some()), usize::from(n.sum != Sum::None));
        let wanted = (n.summands() + n.parameters() + scaled, 1 + quantised + summed);
        c.that((x.len(), out.len()) == wanted, || {
            format!("{} operands and {} results, expected {} and {}", x.len(), out.len(), wanted.0, wanted.1)
        })?;
        let (summands, rest) = x.split_at(n.summands());
        let (parameters, scale) = rest.split_at(n.parameters());
        let mut rows = Rows::new(c, &summands[0])?;
        if let Some(r) = summands.get(1) {
            c.typed("r", r, rows.x.dtype, rows.x.shape)?;
            rows.operands.push(("r", *r));
            rows.r = Some(*r);
        }
        (rows.parameters.weight, rows.parameters.weight_type) = rows.parameter("weight", &parameters[0])?;
        if let Some(bias) = parameters.get(1) {
            (rows.parameters.bias, rows.parameters.bias_type) = rows.parameter("bias", bias)?;
        }
        rows.parameters.eps = n.eps.0 as f32;
        if let Some(norm) = &out[0] {
            rows.parameters.norm = rows.result("norm", norm, rows.x.dtype, rows.x.shape)?;
        }
        if summed == 1 {
            rows.sum = out[out.len() - 1];
            if let Some(sum) = rows.sum {
                rows.result("sum", &sum, rows.x.dtype, rows.x.shape)?;
            }
        }
        rows.quantise(n.quant, scale.first(), &out[1..1 + quantised])?;
        Ok(rows)
    }

    /// A weight or bias; its address and type.
    fn parameter(&mut self, name: &'static str, v: &View<'a>) -> Result<(u64, u32), LaunchError> {
        let n = self.x.shape.last().copied().unwrap_or(0);
        self.c.float(name, v)?;
        self.c.view(name, v)?;
        let fits = v.shape.iter().filter(|&&d| d != 1).count() <= 1 && v.len() == n;
        self.c.that(fits, || format!("{name} {:?} is for rows of another length than {n}", v.shape))?;
        self.operands.push((name, *v));
        Ok((v.address, type_code(v.dtype)))
    }

    /// A result; its address.
    fn result(
        &mut self,
        name: &'static str,
        v: &ViewMut<'a>,
        dtype: DType,
        shape: &[usize],
    ) -> Result<u64, LaunchError> {
        self.c.typed(name, v, dtype, shape)?;
        self.results.push((name, *v));
        Ok(v.address)
    }

    /// The operand and the results of a quantisation.
    pub(super) fn quantise(
        &mut self,
        quant: Quant,
        scale: Option<&View<'a>>,
        out: &[Option<ViewMut<'a>>],
    ) -> Result<(), LaunchError> {
        let c = self.c;
        let shape = self.x.shape;
        let n = shape.last().copied().unwrap_or(0);
        let with_last = |last: usize| {
            let mut out = shape.to_vec();
            out.iter_mut().rev().take(1).for_each(|d| *d = last);
            out
        };
        if let Some(scale) = scale {
            c.float("scale", scale)?;
            c.view("scale", scale)?;
            c.that(scale.shape.iter().all(|&d| d == 1), || format!("scale {:?} is not one number", scale.shape))?;
            self.operands.push(("scale", *scale));
            (self.parameters.scale, self.parameters.scale_type) = (scale.address, type_code(scale.dtype));
        }
        let needed = |i: usize, name: &str| match out.get(i) {
            Some(Some(v)) => Ok(*v),
            _ => c.fail(format!("the result {name} has no memory")),
        };
        match quant {
            Quant::None => {}
            Quant::Fp8 => {
                self.parameters.q = self.result("q", &needed(0, "q")?, DType::F8E4M3FN, shape)?;
                self.parameters.quotient_type = self.parameters.scale_type;
            }
            Quant::Fp8Token { floor } => {
                let rows_exist = !shape.iter().rev().skip(1).any(|&d| d == 0);
                c.that(n > 0 || !rows_exist, || format!("x {shape:?} has rows without elements, which have no scale"))?;
                self.parameters.q = self.result("q", &needed(0, "q")?, DType::F8E4M3FN, shape)?;
                self.parameters.scale_out = self.result("scales", &needed(1, "scales")?, DType::F32, &with_last(1))?;
                self.parameters.floor = floor.0 as f32;
            }
            Quant::Nvfp4 => {
                c.that(n.is_multiple_of(BLOCK), || {
                    format!("rows of {n} elements do not divide into blocks of {BLOCK}")
                })?;
                c.that(self.parameters.scale_type == type_code(DType::F32), || "scale is not f32".to_owned())?;
                let rows = self.parameters.rows as usize;
                let Some(len) = swizzled_len(rows, self.parameters.columns as usize / BLOCK) else {
                    return c.fail(format!("the scales of {shape:?} are too large"));
                };
                self.parameters.q = self.result("q", &needed(0, "q")?, DType::U8, &with_last(n / 2))?;
                let scales = needed(1, "scales")?;
                self.parameters.scale_out = self.result("scales", &scales, DType::F8E4M3FN, &[len])?;
                c.that(scales.address.is_multiple_of(PACK as u64), || {
                    format!("scales at {:#x} are not aligned to {PACK} bytes", scales.address)
                })?;
            }
        }
        Ok(())
    }

    /// Checks that results share no memory with anything but: sum and norm may be x or r.
    pub(super) fn apart(&self) -> Result<(), LaunchError> {
        for (i, (name, result)) in self.results.iter().enumerate() {
            for (other, operand) in &self.operands {
                let in_place = matches!(*name, "norm" | "sum") && matches!(*other, "x" | "r");
                if !(in_place && operand.address == result.address) {
                    self.c.apart((*name, result), (*other, operand))?;
                }
            }
            for (other, result_after) in &self.results[i + 1..] {
                self.c.apart((*name, result), (*other, result_after))?;
            }
        }
        Ok(())
    }

    /// Whether rows divide into packs that can be loaded and stored at once.
    pub(super) fn packed(&self) -> bool {
        let single = |name: &str| matches!(name, "scale" | "scales");
        let mut views = self.operands.iter().chain(&self.results).filter(|(name, _)| !single(name));
        let per_pack = PACK / self.x.dtype.size();
        (self.parameters.columns as usize).is_multiple_of(per_pack)
            && views.all(|(_, v)| v.address.is_multiple_of(PACK as u64))
    }

    /// The launch that does these rows.
    pub(super) fn launch(&self, family: &Family, info: &DeviceInfo) -> Result<Launch, LaunchError> {
        self.apart()?;
        let (rows, columns) = (self.parameters.rows as usize, self.parameters.columns as usize);
        let nvfp4 = family.quant == Quant::Nvfp4;
        let packs = self.packed().then(|| columns / (PACK / self.x.dtype.size()));
        let path = choose(rows, packs, info);
        // The rows of the scales' padding are done as well.
        let total = if nvfp4 { rows.next_multiple_of(128) } else { rows };
        let threads = |packs: usize| packs.next_multiple_of(32).clamp(32, path.threads() as usize);
        let (grid, block) = match path {
            Path::Warp(_) => {
                let warps = (rows / (2 * info.multiprocessors.max(1) as usize)).clamp(1, path.threads() as usize / 32);
                (total.div_ceil(warps), warps * 32)
            }
            Path::Block(n) => (total, threads(packs.unwrap_or(0).div_ceil(n as usize))),
            _ if nvfp4 => (total, threads(columns / BLOCK)),
            _ => (total, threads(packs.unwrap_or(columns))),
        };
        let Ok(grid) = i32::try_from(grid) else {
            return self.c.fail(format!("x {:?} has {rows} rows, too many for one launch", self.x.shape));
        };
        let a = NormArguments {
            parameters: self.parameters,
            x: self.x.address,
            r: self.r.map_or(0, |r| r.address),
            sum: self.sum.map_or(0, |s| s.address),
        };
        Ok(Launch::new(family.kernel(self.x.dtype, path), grid as u32, block as u32, 0, &a))
    }
}

/// The path for rows of so many packs, if they can be read in packs.
fn choose(rows: usize, packs: Option<usize>, info: &DeviceInfo) -> Path {
    // Where each row has a multiprocessor of its own, more threads make it faster; otherwise several blocks share one.
    let alone = rows <= info.multiprocessors as usize;
    match packs {
        None => Path::Loop,
        Some(..=32) => Path::Warp(1),
        Some(..=1024) if alone => Path::Block(1),
        Some(..=2048) if alone => Path::Block(2),
        Some(..=64) => Path::Warp(2),
        Some(..=128) => Path::Warp(4),
        Some(..=1024) => Path::Block(2),
        Some(..=2048) => Path::Block(4),
        Some(..=4096) => Path::Block(8),
        Some(_) => Path::LoopPacked,
    }
}

/// A norm with operands and results in the order of its operator. Results that are `None` are not stored; codes and scales are needed.
///
/// The sum may be x or r, and the norm may be x or r. Without elements nothing is launched.
pub fn norm(op: &Op, x: &[View<'_>], out: &[Option<ViewMut<'_>>], info: &DeviceInfo) -> Result<Launch, LaunchError> {
    let c = Check(op.name());
    let Some(n) = op.norm().filter(|n| matches!(n.sum, Sum::None | Sum::Local)) else {
        return c.fail("no norm of one rank");
    };
    Rows::of_norm(c, &n, x, out)?.launch(&Family::of(op.name(), &n), info)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::Real;

    const EPS: Real = Real(1e-5);

    fn view(address: u64, dtype: DType, shape: &[usize]) -> View<'_> {
        View { address, dtype, shape, bytes: usize::MAX / 2 }
    }

    /// add_rms_norm of one shape; operands lie far from each other.
    fn add(dtype: DType, shape: &[usize]) -> Launch {
        let w = [shape[shape.len() - 1]];
        let at = |i: u64| i << 40;
        let x = [view(at(1), dtype, shape), view(at(2), dtype, shape), view(at(3), dtype, &w)];
        let out = [Some(view(at(4), dtype, shape)), Some(view(at(5), dtype, shape))];
        norm(&Op::AddRmsNorm { eps: EPS }, &x, &out, &DeviceInfo::h200()).unwrap()
    }

    #[test]
    fn paths_follow_the_shape() {
        let shown = |dtype, shape: &[usize]| add(dtype, shape).to_string();
        let bf16 = DType::BF16;
        assert_eq!(shown(bf16, &[4096, 8192]), "add_rms_norm_bf16_block2 grid 4096 block 512 shared 0");
        assert_eq!(shown(bf16, &[16, 8192]), "add_rms_norm_bf16_block1 grid 16 block 1024 shared 0");
        assert_eq!(shown(bf16, &[1, 16384]), "add_rms_norm_bf16_block2 grid 1 block 1024 shared 0");
        assert_eq!(shown(bf16, &[512, 8, 128]), "add_rms_norm_bf16_warp1 grid 512 block 256 shared 0");
        assert_eq!(shown(bf16, &[4096, 512]), "add_rms_norm_bf16_warp2 grid 512 block 256 shared 0");
        assert_eq!(shown(bf16, &[4096, 1000]), "add_rms_norm_bf16_warp4 grid 512 block 256 shared 0");
        assert_eq!(shown(bf16, &[64, 1000]), "add_rms_norm_bf16_block1 grid 64 block 128 shared 0");
        assert_eq!(shown(bf16, &[300, 5120]), "add_rms_norm_bf16_block2 grid 300 block 320 shared 0");
        assert_eq!(shown(bf16, &[300, 16384]), "add_rms_norm_bf16_block4 grid 300 block 512 shared 0");
        assert_eq!(shown(bf16, &[300, 32768]), "add_rms_norm_bf16_block8 grid 300 block 512 shared 0");
        assert_eq!(shown(bf16, &[3, 65544]), "add_rms_norm_bf16_loop_packed grid 3 block 1024 shared 0");
        assert_eq!(shown(bf16, &[3, 37]), "add_rms_norm_bf16_loop grid 3 block 64 shared 0");
        assert_eq!(shown(DType::F32, &[300, 8192]), "add_rms_norm_f32_block4 grid 300 block 512 shared 0");
        assert_eq!(
            shown(DType::F16, &[0, 8192]),
            "add_rms_norm_f16_block1 grid 0 block 32 shared 0".replace("block1", "warp1")
        );
    }

    #[test]
    fn every_kernel_is_in_the_catalog() {
        let mut catalog = catalog();
        let n = catalog.len();
        assert_eq!(n, 16 * 3 * Path::ALL.len());
        for rows in [1, 7, 100, 5000] {
            for columns in [1, 8, 128, 264, 520, 1000, 1032, 8192, 8200, 16384, 32768, 32776, 70_000] {
                for dtype in [DType::F32, DType::F16, DType::BF16] {
                    let launch = add(dtype, &[rows, columns]);
                    assert!(catalog.contains(&launch.kernel), "{launch}");
                    assert!(launch.kernel.entry.contains("norm_") && launch.block <= 1024, "{launch}");
                }
            }
        }
        catalog.sort();
        catalog.dedup_by(|a, b| a.name == b.name);
        assert_eq!(catalog.len(), n);
    }

    #[test]
    fn unaligned_operands_take_the_loop() {
        let (shape, w) = ([64, 256], [256]);
        for shifted in 0..4 {
            let at = |i: u64| (i << 40) + if i == shifted + 1 { 2 } else { 0 };
            let bf16 = DType::BF16;
            let x = [view(at(1), bf16, &shape), view(at(2), bf16, &w)];
            let out = [Some(view(at(3), bf16, &shape))];
            let launch = norm(&Op::RmsNorm { eps: EPS }, &x, &out, &DeviceInfo::h200()).unwrap();
            let path = if shifted == 3 { "warp1" } else { "loop" };
            assert_eq!(launch.kernel.name, format!("rms_norm_bf16_{path}"));
        }
    }

    #[test]
    fn scales_of_blocks_get_their_padding() {
        let (shape, w) = ([130, 4096], [4096]);
        let at = |i: u64| i << 40;
        let x = [view(at(1), DType::BF16, &shape), view(at(2), DType::F32, &w), view(at(3), DType::F32, &[])];
        let (q, sf) = ([130, 2048], [256 * 256]);
        let mut out = [None, Some(view(at(4), DType::U8, &q)), Some(view(at(5), DType::F8E4M3FN, &sf))];
        let op = Op::RmsNormQuantNvfp4 { eps: EPS };
        let launch = norm(&op, &x, &out, &DeviceInfo::h200()).unwrap();
        assert_eq!(launch.to_string(), "rms_norm_quant_nvfp4_bf16_block1 grid 256 block 512 shared 0");
        let short = [256 * 255];
        out[2] = Some(view(at(5), DType::F8E4M3FN, &short));
        let error = |out: &[Option<View<'_>>]| norm(&op, &x, out, &DeviceInfo::h200()).unwrap_err().what;
        assert!(error(&out).contains("expected f8e4m3fn[65536]"), "{}", error(&out));
        out[2] = Some(view(at(5) + 4, DType::F8E4M3FN, &sf));
        assert!(error(&out).contains("not aligned to 16"));
        out[2] = None;
        assert_eq!(error(&out), "the result scales has no memory");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (shape, w, bf16) = ([64, 256], [256], DType::BF16);
        let at = |i: u64| i << 40;
        let x = [view(at(1), bf16, &shape), view(at(2), bf16, &shape), view(at(3), DType::F32, &w)];
        let out = [Some(view(at(4), bf16, &shape)), Some(view(at(5), bf16, &shape))];
        let op = Op::AddRmsNorm { eps: EPS };
        let run = |x: &[View<'_>], out: &[Option<View<'_>>]| norm(&op, x, out, &DeviceInfo::h200()).map_err(|e| e.what);
        assert!(run(&x, &out).is_ok());
        assert!(run(&x, &[None, None]).is_ok());
        // In place, exactly.
        assert!(run(&x, &[Some(x[0]), Some(x[1])]).is_ok());
        assert!(run(&x, &[Some(x[1]), Some(x[0])]).is_ok());
        let beside = view(at(2) + 512, bf16, &shape);
        assert_eq!(run(&x, &[None, Some(beside)]).unwrap_err(), "sum and r share memory");
        assert_eq!(run(&x, &[out[0], out[0]]).unwrap_err(), "norm and sum share memory");
        let over_weight = view(at(3), bf16, &shape);
        assert_eq!(run(&x, &[Some(over_weight), None]).unwrap_err(), "norm and weight share memory");

        let with = |i: usize, v: View<'static>| {
            let mut all = x.map(|v| View { shape: if v.shape.len() == 1 { &[256] } else { &[64, 256] }, ..v });
            all[i] = v;
            run(&all, &out).unwrap_err()
        };
        assert!(with(0, view(at(1), DType::I64, &[64, 256])).contains("f32, f16 and bf16"));
        assert!(with(1, view(at(1), bf16, &[64, 255])).contains("r is bf16[64, 255], expected bf16[64, 256]"));
        assert!(with(2, view(at(1), bf16, &[255])).contains("another length than 256"));
        assert!(with(2, view(at(1), DType::U8, &[256])).contains("weight has elements of type u8"));
        assert!(with(2, View { bytes: 3, ..view(at(1), bf16, &[256]) }).contains("its memory has 3"));
        assert!(run(&x[..2], &out).unwrap_err().contains("2 operands and 2 results, expected 3 and 2"));
        let scalar = [view(at(1), bf16, &[]); 3];
        assert!(run(&scalar, &out).unwrap_err().contains("scalar"));
        let many = [view(at(1), bf16, &[1 << 32, 1]), view(at(2), bf16, &[1 << 32, 1]), view(at(3), bf16, &[1])];
        assert!(run(&many, &[None, None]).unwrap_err().contains("too many for one launch"));

        let op = Op::AddRmsNormQuantFp8 { eps: EPS };
        let q = view(at(6), DType::F8E4M3FN, &shape);
        let scaled = |dtype, shape: &'static [usize]| {
            let all = [x[0], x[1], x[2], view(at(5), dtype, shape)];
            norm(&op, &all, &[None, Some(q), None], &DeviceInfo::h200()).map_err(|e| e.what)
        };
        assert!(scaled(DType::BF16, &[1, 1]).is_ok());
        assert!(scaled(DType::F32, &[64, 1]).unwrap_err().contains("scale [64, 1] is not one number"));
        assert!(scaled(DType::F64, &[]).unwrap_err().contains("scale has elements of type f64"));
        let op = Op::ArResidualRmsNorm { axis: crate::attr::MeshAxis::Tp, eps: EPS };
        assert!(norm(&op, &x, &out, &DeviceInfo::h200()).unwrap_err().what.contains("one rank"));
    }
}
