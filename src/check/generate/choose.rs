//! What operands and attributes an operator may have: types and values that it accepts.

use super::super::hints::Hint;
use super::super::random::Random;
use super::super::shapes::{self, ty};
use super::{Attempt, Builder, FLOATS, Miss};
use crate::ir::norm::Quant;
use crate::ir::{Attr, AttrKind, Class, DType, Dim, MeshAxis, Norm, OpInfo, Real, Safe, TensorType};
use crate::rules::eval::{self, Bind};
use crate::rules::lang::{AttrPattern, VarId};

impl Builder<'_> {
    /// A type for operand `i`, given the types of those that are chosen already.
    pub(super) fn operand_type(
        &mut self,
        info: &'static OpInfo,
        i: usize,
        attrs: &[Option<Attr>],
        want: &TensorType,
        known: &[Option<TensorType>],
    ) -> Attempt<TensorType> {
        let attr = |name: &str| info.attrs.iter().position(|a| a.name == name).and_then(|p| attrs[p].clone());
        let int = |name: &str| match attr(name) {
            Some(Attr::Int(n)) => Some(n),
            _ => None,
        };
        let sibling = known.iter().flatten().next().cloned();
        if let Some(n) = Norm::by_name(info.name) {
            return Ok(self.norm_operand(i, &n, want, known));
        }
        let r = &mut *self.random;
        let pool = &self.pool;
        let shape = want.shape.clone();
        Ok(match info.name {
            "not" | "and" | "or" => match &sibling {
                Some(s) => ty(DType::Bool, shapes::partner(r, pool, &s.shape)),
                None => ty(DType::Bool, shape),
            },
            "cast" | "is_nan" => {
                let dtype = match r.below(20) {
                    0 if want.dtype.is_float() => *r.pick(&DType::QUANTISED),
                    0..=4 => *r.pick(&[DType::I64, DType::Bool, DType::I32]),
                    _ => *r.pick(&FLOATS),
                };
                ty(if info.name == "is_nan" { *r.pick(&FLOATS) } else { dtype }, shape)
            }
            "where" => {
                let dtype = if i == 0 { DType::Bool } else { want.dtype };
                let dtype = match known.get(if i == 1 { 2 } else { 1 }).cloned().flatten() {
                    Some(t) if i > 0 => t.dtype,
                    _ => dtype,
                };
                let base = sibling.map_or(shape, |s| s.shape);
                ty(dtype, shapes::broadcasts_to(r, &base))
            }
            _ if matches!(info.class, Class::Binary | Class::Commutative)
                || matches!(info.name, "silu_mul" | "gelu_mul") =>
            {
                match sibling {
                    Some(s) => ty(s.dtype, shapes::partner(r, pool, &s.shape)),
                    None => {
                        let compares =
                            matches!(info.name, "equal" | "less" | "less_equal" | "greater" | "greater_equal");
                        let dtype = if compares || want.dtype == DType::Bool { *r.pick(&FLOATS) } else { want.dtype };
                        ty(dtype, if r.chance(15) { shapes::broadcasts_to(r, &shape) } else { shape })
                    }
                }
            }
            _ if info.class == Class::Unary => {
                let any = matches!(info.name, "neg" | "abs" | "relu") && want.dtype != DType::Bool;
                if any { want.clone() } else { ty(self.float(want.dtype), shape) }
            }
            "reduce_sum" | "reduce_mean" | "reduce_max" | "softmax" => {
                let shape = if shape.is_empty() { pool.shape(r, 2) } else { shape };
                ty(self.float(want.dtype), shape)
            }
            "matmul" => self.matmul_operand(i, attr("trans_b") == Some(Attr::Bool(true)), want, known),
            "fp8_scale" => {
                let shape = if shape.is_empty() { pool.shape(r, 2) } else { shape };
                ty(self.float(want.dtype), shape)
            }
            "fp4_scale" | "quantize_fp4" | "quantize_nvfp4" => {
                let last = info.max_inputs - 1;
                match (i, known[0].as_ref().map(|x| x.shape.clone())) {
                    (0, _) => {
                        let mut s = if shape.is_empty() { pool.shape(r, 2) } else { shape };
                        if let Some(d) = s.last_mut() {
                            *d = blocks(r);
                        }
                        ty(self.float(want.dtype), s)
                    }
                    (i, _) if i == last => ty(DType::F32, vec![Dim::from(1); r.below(2)]),
                    (_, None) => return Err(Miss::Untyped),
                    (_, Some(mut s)) => {
                        let d = s.last_mut().ok_or(Miss::Untyped)?;
                        *d = d.div_exact(&Dim::from(16)).ok_or(Miss::Untyped)?;
                        ty(DType::F8E4M3FN, s)
                    }
                }
            }
            "rotary" => match (i, &known[0]) {
                (0, _) | (_, None) => {
                    let mut s = if shape.is_empty() { pool.shape(r, 3) } else { shape };
                    let n = s.len();
                    s[n - 1] = pool.even(r);
                    ty(self.float(want.dtype), s)
                }
                (_, Some(x)) => {
                    let (last, lead) = x.shape.split_last().ok_or(Miss::Untyped)?;
                    let mut s = shapes::broadcasts_to(r, lead);
                    s.push(last.div_exact(&Dim::from(2)).ok_or(Miss::Untyped)?);
                    ty(x.dtype, s)
                }
            },
            "attention" => self.attention_operand(i, want, known)?,
            "expert_matmul" => self.expert_operand(i, attr("bits"), want, known)?,
            "append" | "dequantize" => self.cache_or_packed(info, i, attr("bits"), want, known)?,
            "reshape" => {
                let s = if r.chance(30) { shape } else { shapes::reshaped(r, &shape) };
                ty(want.dtype, s)
            }
            "transpose" => {
                let p = shapes::permutation(r, shape.len());
                ty(want.dtype, p.iter().map(|&i| shape[i as usize].clone()).collect())
            }
            "expand" => ty(want.dtype, shapes::broadcasts_to(r, &shape)),
            "concat" => match sibling {
                None => {
                    let mut s = if shape.is_empty() { pool.shape(r, 1) } else { shape };
                    if let Some(d) = int("axis").and_then(|a| s.get_mut(usize::try_from(a).ok()?)) {
                        *d = pool.dim(r);
                    }
                    if r.chance(15) {
                        let i = r.below(s.len());
                        s[i] = Dim::from(1);
                    }
                    ty(want.dtype, s)
                }
                Some(mut t) => {
                    if r.chance(40)
                        && let Some(d) = int("axis").and_then(|a| t.shape.get_mut(usize::try_from(a).ok()?))
                    {
                        *d = pool.dim(r);
                    }
                    t
                }
            },
            "gather" | "vocab_gather" => {
                if i == 0 {
                    let rank = if info.name == "gather" && r.chance(20) { 1 + r.below(3) } else { 2 };
                    let mut s = pool.shape(r, rank);
                    if r.chance(60) {
                        s[0] = pool.multiple(r);
                    }
                    ty(want.dtype, s)
                } else {
                    let rank = 1 + r.below(2);
                    ty(*r.pick(&[DType::I64, DType::I64, DType::I32]), pool.shape(r, rank))
                }
            }
            "gather_nd" => {
                if i == 0 {
                    let rank = 2 + r.below(2);
                    ty(want.dtype, pool.shape(r, rank))
                } else {
                    let mut s = pool.shape(r, 2);
                    s[1] = Dim::from(1);
                    ty(DType::I64, s)
                }
            }
            "shard" => {
                let mut s = if shape.is_empty() { pool.shape(r, 1) } else { shape };
                let d = r.below(s.len());
                s[d] = &s[d] * &Dim::from(int("parts").unwrap_or(1));
                ty(want.dtype, s)
            }
            "all_gather" | "output_sharded" => {
                let mut s = if shape.is_empty() { pool.shape(r, 1) } else { shape };
                let d = r.below(s.len());
                if let Some(part) = s[d].div_exact(&Dim::from(int("parts").unwrap_or(1))) {
                    s[d] = part;
                }
                ty(want.dtype, s)
            }
            _ => want.clone(),
        })
    }

    /// An operand of a norm: what it sums, its parameters, or the scale of its quantised form.
    fn norm_operand(&mut self, i: usize, n: &Norm, want: &TensorType, known: &[Option<TensorType>]) -> TensorType {
        let nvfp4 = n.quant == Quant::Nvfp4;
        if n.scale() == Some(i) {
            let dtype = if nvfp4 { DType::F32 } else { *self.random.pick(&FLOATS) };
            return ty(dtype, vec![Dim::from(1); self.random.below(2)]);
        }
        match known.iter().take(n.summands()).flatten().next().cloned() {
            Some(x) if i < n.summands() => x,
            Some(x) => self.parameter(&x),
            None => {
                let (r, pool) = (&mut *self.random, &self.pool);
                let mut shape = if want.shape.is_empty() { pool.shape(r, 2) } else { want.shape.clone() };
                if let Some(d) = shape.last_mut().filter(|_| nvfp4) {
                    *d = blocks(r);
                }
                ty(self.float(want.dtype), shape)
            }
        }
    }

    /// Weight or bias of a norm: a vector, of the same element type most often.
    fn parameter(&mut self, x: &TensorType) -> TensorType {
        let dtype = if self.random.chance(80) { x.dtype } else { *self.random.pick(&FLOATS) };
        ty(dtype, x.shape.last().cloned().into_iter().collect())
    }

    fn matmul_operand(
        &mut self,
        i: usize,
        trans_b: bool,
        want: &TensorType,
        known: &[Option<TensorType>],
    ) -> TensorType {
        let dtype = known.iter().flatten().next().map(|t| t.dtype);
        let dtype = dtype.unwrap_or_else(|| self.float(want.dtype));
        let (r, pool) = (&mut *self.random, &self.pool);
        if i == 0 {
            let mut s = if want.shape.len() < 2 { pool.shape(r, 2) } else { want.shape.clone() };
            let n = s.len();
            s[n - 1] = match &known[1] {
                Some(b) if b.rank() >= 2 => b.shape[b.rank() - if trans_b { 1 } else { 2 }].clone(),
                _ => pool.dim(r),
            };
            return ty(dtype, s);
        }
        let a = known[0].as_ref().map_or(&want.shape, |t| &t.shape);
        let k = a.last().cloned().unwrap_or_else(|| Dim::from(2));
        let n = if r.chance(50) { pool.multiple(r) } else { pool.dim(r) };
        let lead = a.get(..a.len().saturating_sub(2)).unwrap_or(&[]);
        let mut s = if r.chance(50) { vec![] } else { shapes::broadcasts_to(r, lead) };
        s.extend(if trans_b { [n, k] } else { [k, n] });
        ty(dtype, s)
    }

    fn attention_operand(&mut self, i: usize, want: &TensorType, known: &[Option<TensorType>]) -> Attempt<TensorType> {
        let at = |i: usize| known.get(i).cloned().flatten().filter(|t: &TensorType| t.rank() == 4);
        let dtype = known.iter().take(3).flatten().next().map(|t| t.dtype);
        let dtype = dtype.unwrap_or_else(|| self.float(want.dtype));
        let (r, pool) = (&mut *self.random, &self.pool);
        let any = || [0, 1, 2].into_iter().find_map(at);
        let Some(other) = any() else {
            let s = if want.rank() == 4 { want.shape.clone() } else { pool.shape(r, 4) };
            return Ok(ty(dtype, s));
        };
        let (q, k, v) = (at(0), at(1), at(2));
        let mut s = other.shape.clone();
        match i {
            0 => {
                let groups = Dim::from(1 + r.below(3) as i64);
                s[1] = &s[1] * &groups;
                s[2] = if r.chance(50) { s[2].clone() } else { pool.dim(r) };
                if let Some(k) = k {
                    s[3].clone_from(&k.shape[3]);
                }
            }
            1 | 2 => {
                if let Some(same) = if i == 1 { &v } else { &k } {
                    s[1].clone_from(&same.shape[1]);
                    s[2].clone_from(&same.shape[2]);
                } else {
                    s[2] = if r.chance(50) { s[2].clone() } else { pool.dim(r) };
                    match r.below(4) {
                        0 => s[1] = Dim::from(1),
                        1 => {
                            let parts = Dim::from(*r.pick(&[2, 3]));
                            s[1] = s[1].div_exact(&parts).unwrap_or_else(|| s[1].clone());
                        }
                        _ => {}
                    }
                }
                match (&q, &k) {
                    (Some(q), _) if i == 1 => s[3].clone_from(&q.shape[3]),
                    _ if i == 2 && r.chance(40) => s[3] = pool.dim(r),
                    _ => {}
                }
            }
            _ => {
                let (q, k) = (q.ok_or(Miss::Untyped)?, k.ok_or(Miss::Untyped)?);
                let keys = if i == 3 { k.shape[2].clone() } else { Dim::from(1) };
                let scores = [q.shape[0].clone(), q.shape[1].clone(), q.shape[2].clone(), keys];
                let mask = shapes::broadcasts_to(r, &scores);
                let dtype = if i == 3 && r.chance(25) { DType::Bool } else { dtype };
                return Ok(ty(dtype, mask));
            }
        }
        Ok(ty(dtype, s))
    }

    /// An operand of `expert_matmul`: few experts, so that random positions name one.
    fn expert_operand(
        &mut self,
        i: usize,
        bits: Option<Attr>,
        want: &TensorType,
        known: &[Option<TensorType>],
    ) -> Attempt<TensorType> {
        let at = |i: usize| known.get(i).cloned().flatten().map(|t| t.shape);
        let dtype = known.first().cloned().flatten().map(|t| t.dtype);
        let dtype = dtype.unwrap_or_else(|| self.float(want.dtype));
        let (r, pool) = (&mut *self.random, &self.pool);
        let per_byte = Dim::from(match bits {
            Some(Attr::Int(b)) if b > 0 => 8 / b.min(8),
            _ => 1,
        });
        let packed = per_byte.as_const() != Some(1) || matches!(bits, Some(Attr::Int(8)));
        Ok(match (i, at(0), at(1)) {
            (0, None, w) => {
                let mut s = if want.rank() == 3 { want.shape.clone() } else { pool.shape(r, 3) };
                s[2] = match w {
                    Some(w) if w.len() == 3 => &w[2] * &per_byte,
                    _ => &pool.dim(r) * &per_byte,
                };
                if r.chance(50) {
                    s[1] = Dim::from(1);
                }
                ty(dtype, s)
            }
            (1, Some(x), _) => {
                let n = if r.chance(60) { pool.multiple(r) } else { pool.dim(r) };
                let k = x.last().and_then(|k| k.div_exact(&per_byte)).ok_or(Miss::Untyped)?;
                ty(if packed { DType::U8 } else { dtype }, vec![Dim::from(4), n, k])
            }
            (2, Some(x), _) if x.len() == 3 => ty(DType::I64, vec![x[0].clone(), x[1].clone()]),
            (3, _, Some(w)) if w.len() == 3 => {
                let runs = if r.chance(70) { w[2].clone() } else { Dim::from(1) };
                ty(dtype, vec![w[0].clone(), w[1].clone(), runs])
            }
            (4, ..) => match at(3) {
                Some(s) => ty(if r.chance(60) { DType::U8 } else { dtype }, s),
                None => return Err(Miss::Untyped),
            },
            _ => return Err(Miss::Untyped),
        })
    }

    /// An operand of `append` or `dequantize`.
    fn cache_or_packed(
        &mut self,
        info: &'static OpInfo,
        i: usize,
        bits: Option<Attr>,
        want: &TensorType,
        known: &[Option<TensorType>],
    ) -> Attempt<TensorType> {
        let at = |i: usize| known.get(i).cloned().flatten();
        let (dtype, other) = (self.float(want.dtype), known.iter().flatten().next().cloned());
        let (r, pool) = (&mut *self.random, &self.pool);
        if info.name == "append" {
            return Ok(match (i, other) {
                (2, Some(x)) => ty(*r.pick(&[DType::I64, DType::I32]), x.shape.first().cloned().into_iter().collect()),
                (_, Some(mut x)) if x.rank() == 4 => {
                    x.shape[2] = pool.dim(r);
                    x
                }
                _ => ty(dtype, if want.rank() == 4 { want.shape.clone() } else { pool.shape(r, 4) }),
            });
        }
        let Some(Attr::Int(bits)) = bits else { return Err(Miss::Untyped) };
        Ok(match (i, at(0), at(1)) {
            (0, _, Some(s)) => {
                let mut shape = s.shape;
                let n = shape.len().checked_sub(1).ok_or(Miss::Untyped)?;
                shape[n] = &shape[n] * &pool.dim(r);
                ty(DType::U8, shape)
            }
            (0, ..) => {
                let mut shape = if want.rank() < 2 { pool.shape(r, 2) } else { want.shape.clone() };
                let n = shape.len() - 1;
                shape[n] = shape[n].div_exact(&Dim::from(8 / bits.max(1))).unwrap_or_else(|| pool.multiple(r));
                ty(DType::U8, shape)
            }
            (1, Some(packed), _) => {
                let mut shape = packed.shape;
                let n = shape.len().checked_sub(1).ok_or(Miss::Untyped)?;
                match r.below(3) {
                    0 => shape[n] = Dim::from(1),
                    1 => shape[n] = shape[n].div_exact(&Dim::from(2)).unwrap_or_else(|| shape[n].clone()),
                    _ => {}
                }
                ty(dtype, shape)
            }
            (_, _, Some(s)) => ty(if r.chance(60) { DType::U8 } else { s.dtype }, s.shape),
            _ => return Err(Miss::Untyped),
        })
    }

    /// A value for an attribute, given the types of the operands.
    pub(super) fn attr(
        &mut self,
        p: &AttrPattern,
        info: &'static OpInfo,
        index: usize,
        x: &[TensorType],
        want: &TensorType,
        others: &[Option<Attr>],
    ) -> Attempt<Attr> {
        let v = match p {
            AttrPattern::Is(a) => return Ok(a.clone()),
            AttrPattern::Var(v) => *v,
        };
        if let Some(Bind::Attr(a)) = &self.binds[v] {
            return Ok(a.clone());
        }
        let a = &info.attrs[index];
        let hint = self.hint(v);
        let mut chosen = None;
        if self.random.chance(90) {
            let known = hint.equals.iter().find_map(|e| eval::eval(self, e, &self.binds, &self.mapping));
            chosen = known.and_then(|a2| a2.coerce(a.kind));
            if let (None, Some((f, x, at))) = (&chosen, hint.shape_of) {
                chosen = self.shape_for(f, x, at);
            }
        }
        let value = match chosen {
            Some(c) => c,
            None => self.any_attr(info, index, x, want, others, &hint)?,
        };
        self.binds[v] = Some(Bind::Attr(value.clone()));
        Ok(value)
    }

    /// The shapes that the guards `repeats-heads` and `merges-batch` ask for.
    fn shape_for(&mut self, function: &str, x: VarId, at: usize) -> Option<Attr> {
        let s = self.ty(self.bound(x)?).shape.clone();
        if s.len() != 4 {
            return None;
        }
        let times = Dim::from(1 + self.turn as i64 % 3);
        let [b, h, t, d] = [0, 1, 2, 3].map(|i| s[i].clone());
        Some(Attr::Dims(match (function, at) {
            ("repeats-heads", 1) => vec![b, h, Dim::from(1), t, d],
            ("repeats-heads", 2) => vec![b, h, times, t, d],
            ("repeats-heads", 3) => vec![b, &h * &times, t, d],
            ("tiles-heads", 1) => vec![b, Dim::from(1), h, t, d],
            ("tiles-heads", 2) => vec![b, times, h, t, d],
            ("tiles-heads", 3) => vec![b, &h * &times, t, d],
            ("merges-batch", 1) => vec![&b * &h, t, d],
            ("merges-batch", 2) => vec![b, h, d, t],
            _ => return None,
        }))
    }

    fn any_attr(
        &mut self,
        info: &'static OpInfo,
        index: usize,
        x: &[TensorType],
        want: &TensorType,
        others: &[Option<Attr>],
        hint: &Hint,
    ) -> Attempt<Attr> {
        let r = &mut *self.random;
        let a = &info.attrs[index];
        let rank = x.first().map_or(want.rank(), TensorType::rank);
        let shape = x.first().map_or(&want.shape, |t| &t.shape);
        let axis = |r: &mut Random, rank: usize| {
            let last = rank.saturating_sub(1);
            (if r.chance(40) { last } else { r.below(rank.max(1)) }) as i64
        };
        Ok(match (a.name, a.kind) {
            ("dim" | "axis", AttrKind::Int) => Attr::Int(axis(r, rank)),
            ("axes", _) => {
                let mut axes: Vec<i64> = (0..rank as i64).filter(|_| r.chance(40)).collect();
                if axes.is_empty() || r.chance(60) {
                    axes = vec![rank as i64 - 1];
                }
                Attr::Ints(axes)
            }
            ("perm", _) if hint.swaps_last_two && rank >= 2 && r.chance(80) => {
                let mut p: Vec<i64> = (0..rank as i64).collect();
                p.swap(rank - 1, rank - 2);
                Attr::Ints(p)
            }
            ("perm", _) => Attr::Ints(shapes::permutation(r, rank)),
            ("shape", _) if info.name == "expand" => {
                let s = shape.iter().map(|d| if d.as_const() == Some(1) { self.pool.dim(r) } else { d.clone() });
                Attr::Dims(s.collect())
            }
            ("shape", _) => {
                let product = |s: &[Dim]| s.iter().fold(Dim::from(1), |p, d| &p * d);
                let fits = product(shape) == product(&want.shape);
                Attr::Dims(if fits && r.chance(60) { want.shape.clone() } else { shapes::reshaped(r, shape) })
            }
            ("start" | "end", _) => {
                let at = info.attrs.iter().position(|b| b.name == "axis").and_then(|p| others[p].clone());
                let Some(Attr::Int(axis)) = at else { return Err(Miss::Untyped) };
                let n = usize::try_from(axis).ok().and_then(|d| shape.get(d)).and_then(Dim::as_const);
                let Some(n) = n else { return Err(Miss::Untyped) };
                let start = info.attrs.iter().position(|b| b.name == "start").and_then(|p| others[p].clone());
                let value = match (a.name, start.and_then(|s| s.coerce(AttrKind::Int))) {
                    ("end", Some(Attr::Int(s))) => *r.pick(&[n, n, n / 2, s + (n - s + 1) / 2, s + 1]),
                    _ => *r.pick(&[0, 0, n / 2, r_below(n)]),
                };
                Attr::Dim(Dim::from(value.clamp(0, n)))
            }
            ("step", _) => Attr::Int(if r.chance(70) { 1 } else { 2 }),
            ("parts", _) => Attr::Int(if r.chance(85) { self.mapping.tp as i64 } else { self.divisor() }),
            ("stage", _) => Attr::Int(1),
            ("index", _) => Attr::Int(r.below(2) as i64),
            ("batch_dims", _) => Attr::Int(0),
            ("bits", _) => Attr::Int(*r.pick(&[2, 4, 8])),
            ("tokens", _) => {
                let axes = x.iter().take(2).filter_map(|t| t.shape.get(2));
                Attr::Dim(axes.fold(Dim::from(0), |n, d| &n + d))
            }
            ("eps", _) => Attr::Real(Real(*r.pick(&[1e-5, 1e-6, 1e-12, 1e-20, 0.25, 1.5]))),
            ("softcap", _) => Attr::Real(Real(*r.pick(&[0.0, 0.0, 2.5, 30.0]))),
            (_, AttrKind::Real) => Attr::Real(Real(*r.pick(&[1.0, 0.125, 0.7, -0.3, 2.0]))),
            (_, AttrKind::Bool) => Attr::Bool(r.chance(50)),
            (_, AttrKind::DType) => {
                Attr::DType(if r.chance(70) && want.dtype.is_float() { want.dtype } else { *r.pick(&FLOATS) })
            }
            (_, AttrKind::Axis) => Attr::Axis(MeshAxis::Tp),
            (_, AttrKind::Safe) => Attr::Safe(*r.pick(&[Safe::No, Safe::Masked, Safe::Always])),
            (_, AttrKind::Str) => Attr::Str("y".to_owned()),
            (_, AttrKind::Int) => Attr::Int(r.below(3) as i64),
            _ => return Err(Miss::Untyped),
        })
    }

    fn divisor(&mut self) -> i64 {
        let tp = self.mapping.tp as i64;
        let all: Vec<i64> = (1..=tp).filter(|d| tp % d == 0).collect();
        *self.random.pick(&all)
    }
}

/// A position below `n` that depends on nothing else.
fn r_below(n: i64) -> i64 {
    (n - 1).max(0) / 3
}

/// An extent that divides into blocks of 16.
fn blocks(r: &mut Random) -> Dim {
    Dim::from(16 * (1 + r.below(3) as i64))
}
