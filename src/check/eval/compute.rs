//! Reductions, soft-max, matrix products, norms, rotary embedding and attention, by their definitions.

use super::elementwise::larger;
use super::layout::{broadcast, spread, steps, walk};
use super::{Array, Local, Reason, Result, axis, elements, fits, misfit};
use crate::ir::{Class, DType, Op, Real, Safe};

/// How a row is reduced.
enum Kind {
    Sum,
    Mean,
    Max,
}

fn dot(a: impl Iterator<Item = f64>, b: impl Iterator<Item = f64>) -> f64 {
    a.zip(b).map(|(x, y)| x * y).sum()
}

/// Soft-max in place; `safe` says when it is zeros instead of NaN.
fn softmax(row: &mut [f64], safe: Safe) {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, larger);
    if safe == Safe::Masked && max == f64::NEG_INFINITY {
        row.fill(0.0);
        return;
    }
    row.iter_mut().for_each(|v| *v = (*v - max).exp());
    let sum: f64 = row.iter().sum();
    if safe == Safe::Always && sum.is_nan() {
        row.fill(0.0);
        return;
    }
    row.iter_mut().for_each(|v| *v /= sum);
}

impl Local<'_> {
    /// The results of an operator that does not communicate, not yet rounded.
    pub(super) fn compute(&self) -> Result<Vec<Array>> {
        match self.op {
            Op::Where {} => self.select(),
            Op::Dequantize { bits } => self.dequantize(*bits),
            Op::QuantizeFp8 {} => self.quantize_fp8(),
            Op::Fp8Scale { floor } => self.fp8_scale(floor.0),
            Op::Fp4Scale {} => self.fp4_scale(),
            Op::QuantizeFp4 {} => self.quantize_fp4(),
            Op::QuantizeNvfp4 {} => self.quantize_nvfp4(),
            Op::UnpackFp4 {} => self.unpack_fp4(),
            Op::UnswizzleScales { shape } => self.unswizzle_scales(shape),
            Op::ReduceSum { axes, keepdims } => self.reduce(Kind::Sum, axes, *keepdims),
            Op::ReduceMean { axes, keepdims } => self.reduce(Kind::Mean, axes, *keepdims),
            Op::ReduceMax { axes, keepdims } => self.reduce(Kind::Max, axes, *keepdims),
            Op::SiluMul {} | Op::GeluMul { .. } => {
                self.floats(2)?;
                self.binary()
            }
            op => match op.info().class {
                Class::Unary => self.unary(),
                Class::Binary | Class::Commutative => self.binary(),
                Class::Layout => self.moved(),
                _ => self.float_only(),
            },
        }
    }

    fn float_only(&self) -> Result<Vec<Array>> {
        // A mask of attention may be boolean, and norms may have parameters of another type.
        self.floats(1)?;
        match *self.op {
            Op::Softmax { axis, safe } => self.softmax(axis, safe),
            Op::Largest { k } => self.largest(k),
            Op::ExpertMatmul { bits } => self.expert_matmul(bits),
            Op::Matmul { trans_b } => self.matmul(trans_b),
            Op::RmsNorm { eps } => self.norm(self.x[0], self.x[1], None, eps).map(|n| vec![n]),
            Op::LayerNorm { eps } => self.norm(self.x[0], self.x[1], Some(self.x[2]), eps).map(|n| vec![n]),
            Op::Rotary { interleaved } => self.rotary(interleaved),
            Op::Attention { scale, causal, softcap, safe } => self.attention(scale.0, causal, softcap.0, safe),
            ref op => Err(Reason::Unsupported(format!("the operator `{}`", op.name()))),
        }
    }

    /// Checks that the first operands have one floating-point type.
    fn floats(&self, n: usize) -> Result<()> {
        match self.dtypes.iter().take(n).find(|d| !d.is_float() || **d != self.dtypes[0]) {
            Some(d) => misfit(format!("an operand of type {d}")),
            None => Ok(()),
        }
    }

    fn reduce(&self, kind: Kind, axes: &[i64], keepdims: bool) -> Result<Vec<Array>> {
        let (x, dtype) = (self.x[0], self.dtypes[0]);
        if dtype == DType::Bool {
            return Err(Reason::Unsupported(format!("{dtype}")));
        }
        let rank = x.shape.len();
        let cut = axes.iter().map(|&a| axis(a, rank)).collect::<Result<Vec<_>>>()?;
        let (mut shape, mut kept, mut gone) = (vec![], vec![], vec![]);
        for (i, (&extent, step)) in x.shape.iter().zip(steps(&x.shape)).enumerate() {
            if cut.contains(&i) {
                gone.push((extent, step));
                shape.extend(keepdims.then_some(1));
            } else {
                kept.push((extent, step));
                shape.push(extent);
            }
        }
        fits(&shape, &self.declared[0])?;
        if shape.contains(&0) {
            return Ok(vec![Array::new(&shape, vec![])]);
        }
        let row = walk(gone);
        if row.is_empty() && !dtype.is_float() && !matches!(kind, Kind::Sum) {
            return misfit(format!("nothing to reduce in {:?}", x.shape));
        }
        let reduce = |start: usize| {
            let v = row.iter().map(|p| x.data[start + p]);
            match kind {
                Kind::Max => v.fold(f64::NEG_INFINITY, larger),
                Kind::Sum => v.sum(),
                Kind::Mean => v.sum::<f64>() / row.len() as f64,
            }
        };
        Ok(vec![Array::new(&shape, walk(kept).into_iter().map(reduce).collect())])
    }

    fn softmax(&self, along: i64, safe: Safe) -> Result<Vec<Array>> {
        let x = self.x[0];
        let a = axis(along, x.shape.len())?;
        fits(&x.shape, &self.declared[0])?;
        if x.data.is_empty() {
            return Ok(vec![x.clone()]);
        }
        let all = steps(&x.shape);
        let starts = walk((0..x.shape.len()).filter(|&i| i != a).map(|i| (x.shape[i], all[i])));
        let mut data = x.data.clone();
        let mut row = vec![0.0; x.shape[a]];
        for s in starts {
            row.iter_mut().enumerate().for_each(|(i, r)| *r = x.data[s + i * all[a]]);
            softmax(&mut row, safe);
            row.iter().enumerate().for_each(|(i, r)| data[s + i * all[a]] = *r);
        }
        Ok(vec![Array::new(&x.shape, data)])
    }

    fn matmul(&self, trans_b: bool) -> Result<Vec<Array>> {
        self.floats(2)?;
        let (a, b) = (self.x[0], self.x[1]);
        let outside = || Reason::Misfit(format!("{:?} times {:?}", a.shape, b.shape));
        let (m, k, a_lead) = match a.shape[..] {
            [k] => (1, k, &[][..]),
            [ref lead @ .., m, k] => (m, k, lead),
            [] => return Err(outside()),
        };
        let [ref b_lead @ .., r, c] = b.shape[..] else { return Err(outside()) };
        let (kb, n) = if trans_b { (c, r) } else { (r, c) };
        if k != kb {
            return Err(outside());
        }
        let lead = broadcast(a_lead, b_lead)?;
        let mut shape = lead.clone();
        shape.extend((a.shape.len() > 1).then_some(m));
        shape.push(n);
        fits(&shape, &self.declared[0])?;
        let total = elements(&shape)?;
        let mut data = vec![0.0; total];
        if total == 0 || k == 0 {
            return Ok(vec![Array::new(&shape, data)]);
        }
        let matrices = spread(a_lead, &lead)?.into_iter().zip(spread(b_lead, &lead)?);
        for ((i, j), out) in matrices.zip(data.chunks_exact_mut(m * n)) {
            let b = &b.data[j * k * n..(j + 1) * k * n];
            for (row, out) in a.data[i * m * k..(i + 1) * m * k].chunks_exact(k).zip(out.chunks_exact_mut(n)) {
                if trans_b {
                    out.iter_mut()
                        .zip(b.chunks_exact(k))
                        .for_each(|(o, col)| *o = dot(row.iter().copied(), col.iter().copied()));
                } else {
                    for (x, line) in row.iter().zip(b.chunks_exact(n)) {
                        out.iter_mut().zip(line).for_each(|(o, y)| *o += x * y);
                    }
                }
            }
        }
        Ok(vec![Array::new(&shape, data)])
    }

    /// Root mean square norm, or layer norm where there is a bias.
    fn norm(&self, x: &Array, weight: &Array, bias: Option<&Array>, eps: Real) -> Result<Array> {
        fits(&x.shape, &self.declared[0])?;
        let Some(&n) = x.shape.last() else { return misfit("a norm of a scalar") };
        if [Some(weight), bias].into_iter().flatten().any(|p| p.shape[..] != [n]) {
            return misfit(format!("the parameters do not fit rows of {n}"));
        }
        let mut data = x.data.clone();
        for row in data.chunks_exact_mut(n.max(1)) {
            let mean = if bias.is_some() { row.iter().sum::<f64>() / n as f64 } else { 0.0 };
            let square = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n as f64;
            let deviation = (square + eps.0).sqrt();
            for (i, v) in row.iter_mut().enumerate() {
                *v = (*v - mean) / deviation * weight.data[i] + bias.map_or(0.0, |b| b.data[i]);
            }
        }
        Ok(Array::new(&x.shape, data))
    }

    fn rotary(&self, interleaved: bool) -> Result<Vec<Array>> {
        self.floats(3)?;
        let [x, cos, sin] = self.x else { return misfit("`rotary` takes three operands") };
        fits(&x.shape, &self.declared[0])?;
        let mut pairs = x.shape.clone();
        let Some(width) = pairs.last_mut().filter(|w| w.is_multiple_of(2)) else {
            return misfit(format!("no pairs in the last axis of {:?}", x.shape));
        };
        *width /= 2;
        let half = *width;
        let angles = spread(&cos.shape, &pairs)?.into_iter().zip(spread(&sin.shape, &pairs)?);
        let mut data = x.data.clone();
        for (i, (ic, is)) in angles.enumerate() {
            let (row, j) = (i / half * 2 * half, i % half);
            let (first, second) = if interleaved { (row + 2 * j, row + 2 * j + 1) } else { (row + j, row + half + j) };
            let (c, s) = (cos.data[ic], sin.data[is]);
            data[first] = c * x.data[first] - s * x.data[second];
            data[second] = s * x.data[first] + c * x.data[second];
        }
        Ok(vec![Array::new(&x.shape, data)])
    }

    /// Scores are scaled, capped, masked, and cut by causality, in this order.
    fn attention(&self, scale: f64, causal: bool, softcap: f64, safe: Safe) -> Result<Vec<Array>> {
        self.floats(3)?;
        let (q, k, v) = (self.x[0], self.x[1], self.x[2]);
        let outside = || Reason::Misfit(format!("queries {:?}, keys {:?}, values {:?}", q.shape, k.shape, v.shape));
        let ([batch, heads, s, d], [_, groups, t, _], [.., width]) = (&q.shape[..], &k.shape[..], &v.shape[..]) else {
            return Err(outside());
        };
        let (batch, heads, s, d, groups, t, width) = (*batch, *heads, *s, *d, *groups, *t, *width);
        if k.shape != [batch, groups, t, d]
            || v.shape != [batch, groups, t, width]
            || groups == 0
            || !heads.is_multiple_of(groups)
        {
            return Err(outside());
        }
        let shape = vec![batch, heads, s, width];
        fits(&shape, &self.declared[0])?;
        let mut data = vec![0.0; elements(&shape)?];
        if data.is_empty() {
            return Ok(vec![Array::new(&shape, data)]);
        }
        // Steps of the mask per axis of [batch, heads, queries, keys].
        let mut mask_steps = [0usize; 4];
        if let Some(mask) = self.x.get(3) {
            let scores = [batch, heads, s, t];
            let fit = mask.shape.len() <= 4;
            let lead = 4 - mask.shape.len().min(4);
            if !fit || mask.shape.iter().zip(&scores[lead..]).any(|(&m, &n)| m != n && m != 1) {
                return misfit(format!("a mask {:?} for scores {scores:?}", mask.shape));
            }
            for (i, step) in steps(&mask.shape).into_iter().enumerate() {
                mask_steps[lead + i] = if mask.shape[i] == 1 { 0 } else { step };
            }
        }
        let sinks = match self.x.get(4) {
            Some(sink) => Some((sink, spread(&sink.shape, &[batch, heads, s, 1])?)),
            None => None,
        };
        let boolean = self.dtypes.get(3) == Some(&DType::Bool);
        let mut scores = vec![0.0; t];
        for (row, out) in data.chunks_exact_mut(width).enumerate() {
            let (b, h, i) = (row / s / heads, row / s % heads, row % s);
            let kv = b * groups + h / (heads / groups);
            let query = &q.data[row * d..(row + 1) * d];
            for (j, score) in scores.iter_mut().enumerate() {
                let key = &k.data[(kv * t + j) * d..(kv * t + j + 1) * d];
                *score = scale * dot(query.iter().copied(), key.iter().copied());
                if softcap != 0.0 {
                    *score = softcap * (*score / softcap).tanh();
                }
                if let Some(mask) = self.x.get(3) {
                    let at = [b, h, i, j].iter().zip(mask_steps).map(|(x, step)| x * step).sum::<usize>();
                    if !boolean {
                        *score += mask.data[at];
                    } else if mask.data[at] == 0.0 {
                        *score = f64::NEG_INFINITY;
                    }
                }
                // The last query sees every key: the first t - s keys are a cache.
                if causal && j + s > i + t {
                    *score = f64::NEG_INFINITY;
                }
            }
            match &sinks {
                None => softmax(&mut scores, safe),
                Some((sink, at)) => {
                    scores.push(sink.data[at[row]]);
                    softmax(&mut scores, safe);
                    scores.pop();
                }
            }
            for (j, weight) in scores.iter().enumerate() {
                let value = &v.data[(kv * t + j) * width..(kv * t + j + 1) * width];
                out.iter_mut().zip(value).for_each(|(o, v)| *o += weight * v);
            }
        }
        Ok(vec![Array::new(&shape, data)])
    }

    /// (number - zero) * scale, with the numbers in the bits of bytes.
    fn dequantize(&self, bits: i64) -> Result<Vec<Array>> {
        let (packed, scale) = (self.x[0], self.x[1]);
        let outside = || Reason::Misfit(format!("{:?} of {bits} bits, scales {:?}", packed.shape, scale.shape));
        let (Some(runs), true) = (scale.shape.last(), matches!(bits, 1 | 2 | 4 | 8)) else { return Err(outside()) };
        let mut shape = packed.shape.clone();
        let width = shape.last_mut().ok_or_else(outside)?;
        *width *= 8 / bits as usize;
        let lead = |s: &[usize]| s[..s.len() - 1].to_vec();
        if *runs == 0 || *width % *runs != 0 || lead(&packed.shape) != lead(&scale.shape) {
            return Err(outside());
        }
        let run = *width / *runs;
        fits(&shape, &self.declared[0])?;
        let zero = |r: usize| self.x.get(2).map_or(2f64.powi(bits as i32 - 1), |z| z.data[r]);
        if self.x.get(2).is_some_and(|z| z.shape != scale.shape) {
            return Err(outside());
        }
        let numbers = packed.data.iter().flat_map(|&byte| {
            (0..8 / bits).map(move |i| (byte / 2f64.powi((i * bits) as i32)).floor() % 2f64.powi(bits as i32))
        });
        let data = numbers.enumerate().map(|(i, n)| (n - zero(i / run.max(1))) * scale.data[i / run.max(1)]);
        Ok(vec![Array::new(&shape, data.collect())])
    }

    /// The k largest of each row, and where they are.
    fn largest(&self, k: i64) -> Result<Vec<Array>> {
        let x = self.x[0];
        let width = x.shape.last().copied().unwrap_or(0);
        let k = usize::try_from(k).ok().filter(|&k| k <= width).ok_or(Reason::Misfit(format!("{k} of {width}")))?;
        let (mut values, mut at) = (vec![], vec![]);
        for row in x.data.chunks_exact(width.max(1)) {
            let mut order: Vec<usize> = (0..width).collect();
            order.sort_by(|&a, &b| {
                row[b].partial_cmp(&row[a]).unwrap_or_else(|| row[b].total_cmp(&row[a])).then(b.cmp(&a))
            });
            values.extend(order[..k].iter().map(|&i| row[i]));
            at.extend(order[..k].iter().map(|&i| i as f64));
        }
        Ok(vec![Array::new(&self.declared[0], values), Array::new(&self.declared[0], at)])
    }

    /// Each row times the transposed matrix of its expert.
    fn expert_matmul(&self, bits: i64) -> Result<Vec<Array>> {
        let (x, expert) = (self.x[0], self.x[2]);
        let unpacked = match bits {
            0 => None,
            _ => {
                let mut shape = self.x[1].shape.clone();
                let width = shape.last_mut().ok_or_else(|| Reason::Misfit("a scalar".to_owned()))?;
                *width *= 8 / bits.clamp(1, 8) as usize;
                let declared = [shape];
                let mut operands = vec![self.x[1]];
                operands.extend(&self.x[3..]);
                let part = Local { x: &operands, declared: &declared, ..*self };
                part.dequantize(bits)?.pop()
            }
        };
        let w = unpacked.as_ref().unwrap_or(self.x[1]);
        let (&[tokens, own, k], &[experts, n, wk], &[t, slots]) = (&x.shape[..], &w.shape[..], &expert.shape[..])
        else {
            return misfit("three, three and two axes are needed");
        };
        if wk != k || t != tokens || !(own == slots || own == 1) {
            return misfit(format!("{:?} times the experts {:?}", x.shape, w.shape));
        }
        let shape = vec![tokens, slots, n];
        fits(&shape, &self.declared[0])?;
        let mut data = Vec::with_capacity(elements(&shape)?);
        for (i, &e) in expert.data.iter().enumerate() {
            // Negative ones count from the end.
            let at = if e < 0.0 { e + experts as f64 } else { e };
            if !(0.0..experts as f64).contains(&at) {
                return Err(Reason::Index { index: e, extent: experts });
            }
            let e = at;
            let row = if own == 1 { i / slots } else { i } * k;
            for column in 0..n {
                let start = (e as usize * n + column) * k;
                let (a, b) = (&x.data[row..row + k], &w.data[start..start + k]);
                data.push(dot(a.iter().copied(), b.iter().copied()));
            }
        }
        Ok(vec![Array::new(&shape, data)])
    }
}
