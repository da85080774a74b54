//! Operators that quantise, and the numbers of eight and four bits, by their definitions.

use super::elementwise::larger;
use super::layout::{broadcast, spread};
use super::{Array, Local, Reason, Result, Rounding, elements, fits, misfit};
use crate::ir::{DType, Dim};

/// Elements of a row that share a block scale.
const BLOCK: usize = 16;

/// The nearest number of a quantised type, ties to even; what is too large becomes the largest.
pub(super) fn round(to: DType, v: f64) -> f64 {
    let (mantissa, least, largest) = if to == DType::F4E2M1 { (1, 0, 6.0) } else { (3, -6, 448.0) };
    if v.is_nan() {
        // Four bits have no NaN: negative zero stands for it.
        return if to == DType::F4E2M1 { -0.0 } else { v };
    }
    if v.abs() >= largest {
        return largest.copysign(v);
    }
    let mut exponent = least;
    while v.abs() >= 2f64.powi(exponent + 1) {
        exponent += 1;
    }
    let step = 2f64.powi(exponent - mantissa);
    ((v / step).round_ties_even() * step).copysign(v)
}

/// The code of a number of f4e2m1.
fn code(v: f64) -> usize {
    let magnitude = match v.abs() {
        m if m < 2.0 => 2.0 * m,
        m if m < 4.0 => m + 2.0,
        m => m / 2.0 + 4.0,
    };
    magnitude as usize + if v.is_sign_negative() { 8 } else { 0 }
}

fn number(code: usize) -> f64 {
    let magnitude = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][code % 8];
    if code < 8 { magnitude } else { -magnitude }
}

/// Place of a block scale among the swizzled ones, and their number.
struct Tiles {
    rows: usize,
    blocks: usize,
}

impl Tiles {
    fn of(lead: &[usize], blocks: usize) -> Result<Tiles> {
        Ok(Tiles { rows: elements(lead)?, blocks })
    }

    fn len(&self) -> Result<usize> {
        elements(&[self.rows.div_ceil(128), self.blocks.div_ceil(4), 512])
    }

    /// Axes from the slowest: tile of rows, tile of blocks, row in its group of 32, group, block in its tile.
    fn at(&self, row: usize, block: usize) -> usize {
        let (tile, across, inner, group) = (row / 128, block / 4, row % 32, row % 128 / 32);
        (((tile * self.blocks.div_ceil(4) + across) * 32 + inner) * 4 + group) * 4 + block % 4
    }
}

impl Local<'_> {
    /// As the arithmetic of f32 stores it, where results are rounded.
    fn f32(&self, v: f64) -> f64 {
        if self.by == Rounding::Storage { f64::from(v as f32) } else { v }
    }

    fn narrow(&self, operands: &[usize]) -> Result<()> {
        match operands.iter().map(|&i| self.dtypes[i]).find(|d| !d.is_float() || *d == DType::F64) {
            Some(d) => Err(Reason::Unsupported(format!("{d}"))),
            None => Ok(()),
        }
    }

    fn scale(&self, operand: usize) -> Result<f64> {
        match (&self.x[operand].data[..], self.dtypes[operand]) {
            (&[s], DType::F32) => Ok(s),
            _ => misfit(format!("a scale {:?} of {}", self.x[operand].shape, self.dtypes[operand])),
        }
    }

    /// The first operand with its shape but for the last extent, and the number of blocks in a row.
    fn blocks(&self) -> Result<(&Array, &[usize], usize)> {
        self.narrow(&[0])?;
        let x = self.x[0];
        match x.shape.split_last() {
            Some((&n, lead)) if n.is_multiple_of(BLOCK) => Ok((x, lead, n / BLOCK)),
            _ => misfit(format!("rows of {:?} do not divide into blocks of {BLOCK}", x.shape)),
        }
    }

    pub(super) fn quantize_fp8(&self) -> Result<Vec<Array>> {
        self.narrow(&[0, 1])?;
        let (x, s) = (self.x[0], self.x[1]);
        if broadcast(&x.shape, &s.shape)? != x.shape {
            return misfit(format!("a scale {:?} for {:?}", s.shape, x.shape));
        }
        fits(&x.shape, &self.declared[0])?;
        let pairs = x.data.iter().zip(spread(&s.shape, &x.shape)?);
        let mut data: Vec<f64> = pairs.map(|(v, i)| self.f32(v / s.data[i])).collect();
        if self.by == Rounding::Storage {
            self.by.store(self.dtypes[1], &mut data)?;
        }
        Ok(vec![Array::new(&x.shape, data)])
    }

    pub(super) fn fp8_scale(&self, floor: f64) -> Result<Vec<Array>> {
        self.narrow(&[0])?;
        let x = self.x[0];
        let Some((&n, lead)) = x.shape.split_last() else { return misfit("a scalar has no rows") };
        let shape = [lead, &[1]].concat();
        fits(&shape, &self.declared[0])?;
        let row = |r: usize| largest(&x.data[r * n..(r + 1) * n]);
        let data = (0..elements(&shape)?).map(|r| larger(self.f32(row(r) / 448.0), self.f32(floor))).collect();
        Ok(vec![Array::new(&shape, data)])
    }

    pub(super) fn fp4_scale(&self) -> Result<Vec<Array>> {
        let (x, lead, blocks) = self.blocks()?;
        let shape = [lead, &[blocks]].concat();
        fits(&shape, &self.declared[0])?;
        let data = self.block_scales(x, self.scale(1)?);
        Ok(vec![Array::new(&shape, data)])
    }

    /// Rounded to eight bits.
    fn block_scales(&self, x: &Array, scale: f64) -> Vec<f64> {
        let of = |block: &[f64]| self.f32(self.f32(largest(block) / 6.0) * scale);
        x.data.chunks_exact(BLOCK).map(|block| round(DType::F8E4M3FN, of(block))).collect()
    }

    /// Rounded to four bits.
    fn codes(&self, x: &Array, blocks: &[f64], scale: f64) -> Vec<f64> {
        let mut out = Vec::with_capacity(x.data.len());
        for (block, &b) in x.data.chunks_exact(BLOCK).zip(blocks) {
            let factor = if b == 0.0 { 0.0 } else { self.f32(scale / b) };
            out.extend(block.iter().map(|v| round(DType::F4E2M1, self.f32(v * factor))));
        }
        out
    }

    pub(super) fn quantize_fp4(&self) -> Result<Vec<Array>> {
        let (x, lead, blocks) = self.blocks()?;
        let given = self.x[1];
        if given.shape != [lead, &[blocks]].concat() || self.dtypes[1] != DType::F8E4M3FN {
            return misfit(format!("block scales {:?} of {} for {:?}", given.shape, self.dtypes[1], x.shape));
        }
        fits(&x.shape, &self.declared[0])?;
        let data = self.codes(x, &given.data, self.scale(2)?);
        Ok(vec![Array::new(&x.shape, data)])
    }

    pub(super) fn quantize_nvfp4(&self) -> Result<Vec<Array>> {
        let (x, lead, blocks) = self.blocks()?;
        let [packed, swizzled] = self.declared else { return misfit("two results") };
        fits(&[lead, &[blocks * BLOCK / 2]].concat(), packed)?;
        let tiles = Tiles::of(lead, blocks)?;
        let len = tiles.len()?;
        fits(&[len], swizzled)?;
        let scale = self.scale(1)?;
        let scales = self.block_scales(x, scale);
        let codes = self.codes(x, &scales, scale);
        let bytes = codes.chunks_exact(2).map(|p| (code(p[0]) + 16 * code(p[1])) as f64).collect();
        let mut placed = vec![0.0; len];
        scales.iter().enumerate().for_each(|(i, &b)| placed[tiles.at(i / blocks, i % blocks)] = b);
        Ok(vec![Array::new(packed, bytes), Array::new(swizzled, placed)])
    }

    pub(super) fn unpack_fp4(&self) -> Result<Vec<Array>> {
        let q = self.x[0];
        let Some((&n, lead)) = q.shape.split_last().filter(|_| self.dtypes[0] == DType::U8) else {
            return misfit(format!("packed numbers {:?} of {}", q.shape, self.dtypes[0]));
        };
        let shape = [lead, &[n.saturating_mul(2)]].concat();
        fits(&shape, &self.declared[0])?;
        let pair = |v: &f64| {
            let byte = *v as usize;
            [number(byte % 16), number(byte / 16 % 16)]
        };
        Ok(vec![Array::new(&shape, q.data.iter().flat_map(pair).collect())])
    }

    pub(super) fn unswizzle_scales(&self, shape: &[Dim]) -> Result<Vec<Array>> {
        let (sf, shape) = (self.x[0], self.shape(shape)?);
        fits(&shape, &self.declared[0])?;
        let Some((&blocks, lead)) = shape.split_last().filter(|_| self.dtypes[0] == DType::F8E4M3FN) else {
            return misfit(format!("scales {:?} of {}", sf.shape, self.dtypes[0]));
        };
        let tiles = Tiles::of(lead, blocks)?;
        if sf.shape != [tiles.len()?] {
            return misfit(format!("{:?} are no swizzled scales of {shape:?}", sf.shape));
        }
        let data = (0..elements(&shape)?).map(|i| sf.data[tiles.at(i / blocks, i % blocks)]).collect();
        Ok(vec![Array::new(&shape, data)])
    }
}

/// The largest magnitude, 0 of nothing.
fn largest(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |m, v| larger(m, v.abs()))
}
