//! The vocabulary of guards and attribute expressions.
//!
//! Each function is one row of the table below: name, parameter kinds, a sentence for people, and its
//! meaning. `None` means that the function has no value there, and the rule does not apply.

use super::facts::Facts;
use crate::ir::{Attr, DType, Dim, Mapping, MeshAxis, Real, Shape};

/// What an expression evaluates to.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    /// An attribute value.
    Attr(Attr),
    /// An e-class.
    Class(&'a Facts),
    /// Several e-classes.
    Classes(Vec<&'a Facts>),
}

/// Kind of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An e-class, written as a variable of the pattern.
    Class,
    /// Any number of e-classes, written `?x...`.
    Classes,
    /// An integer or symbolic extent.
    Number,
    /// A list of integers or extents.
    List,
    /// A mesh axis.
    Axis,
    /// `true` or `false`.
    Bool,
    /// Any attribute value.
    Any,
}

/// A function of the vocabulary.
pub struct Function {
    /// Its name in rule files.
    pub name: &'static str,
    /// Kinds of its parameters.
    pub params: &'static [Kind],
    /// One sentence.
    pub doc: &'static str,
    eval: fn(&Args<'_, '_>) -> Option<Attr>,
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Function {
    /// Applies it.
    pub fn call(&self, values: &[Value<'_>], mapping: &Mapping) -> Option<Attr> {
        (self.eval)(&Args { values, mapping })
    }
}

/// Looks a function up by name.
pub fn function(name: &str) -> Option<&'static Function> {
    FUNCTIONS.iter().find(|f| f.name == name)
}

struct Args<'v, 'f> {
    values: &'v [Value<'f>],
    mapping: &'v Mapping,
}

impl<'f> Args<'_, 'f> {
    fn class(&self, i: usize) -> Option<&'f Facts> {
        match self.values.get(i)? {
            Value::Class(f) => Some(f),
            _ => None,
        }
    }

    fn attr(&self, i: usize) -> Option<&Attr> {
        match self.values.get(i)? {
            Value::Attr(a) => Some(a),
            _ => None,
        }
    }

    fn dim(&self, i: usize) -> Option<Dim> {
        match self.attr(i)? {
            Attr::Int(n) => Some(Dim::from(*n)),
            Attr::Dim(d) => Some(d.clone()),
            _ => None,
        }
    }

    fn int(&self, i: usize) -> Option<i64> {
        self.dim(i)?.as_const()
    }

    fn axis(&self, i: usize) -> Option<MeshAxis> {
        match self.attr(i)? {
            Attr::Axis(a) => Some(*a),
            _ => None,
        }
    }

    fn list(&self, i: usize) -> Option<Shape> {
        match self.attr(i)? {
            Attr::Ints(v) => Some(v.iter().map(|&n| Dim::from(n)).collect()),
            Attr::Dims(v) => Some(v.clone()),
            _ => None,
        }
    }

    fn real(&self, i: usize) -> Option<f64> {
        match self.attr(i)? {
            Attr::Real(r) => Some(r.0),
            Attr::Int(n) => Some(*n as f64),
            _ => None,
        }
    }

    /// The extent of a class along an axis.
    fn extent(&self, class: usize, axis: usize) -> Option<Dim> {
        let shape = &self.class(class)?.ty().shape;
        shape.get(usize::try_from(self.int(axis)?).ok()?).cloned()
    }
}

fn yes(b: bool) -> Option<Attr> {
    Some(Attr::Bool(b))
}

fn number(d: Dim) -> Option<Attr> {
    Some(match d.as_const() {
        Some(n) => Attr::Int(n),
        None => Attr::Dim(d),
    })
}

/// The axis of `y` that broadcasting aligns with axis `d` of `x`.
fn aligned(y: &Facts, x: &Facts, d: i64) -> Option<i64> {
    Some(d + y.ty().rank() as i64 - x.ty().rank() as i64)
}

/// Whether `y` has extent 1, or no axis, where `x` has axis `d`.
fn broadcasts_over(y: &Facts, x: &Facts, d: i64) -> bool {
    match aligned(y, x, d).and_then(|e| usize::try_from(e).ok()) {
        None => true,
        Some(e) => y.ty().shape.get(e).is_some_and(|n| n.as_const() == Some(1)),
    }
}

fn product(dims: &[Dim]) -> Dim {
    dims.iter().fold(Dim::from(1), |p, d| &p * d)
}

/// The axis of `to` along which `parts` contiguous parts of axis `d` of `from` lie after a reshape.
fn reshape_axis(from: &[Dim], to: &[Dim], d: usize, parts: i64) -> Option<usize> {
    let before = product(from.get(..d)?);
    let mut prefix = Dim::from(1);
    for (e, n) in to.iter().enumerate() {
        if prefix == before && n.as_const() != Some(1) {
            n.div_exact(&Dim::from(parts))?;
            return Some(e);
        }
        prefix = &prefix * n;
    }
    None
}

/// Whether a constant is a number of a rule, up to the rounding of its element type.
pub fn is_close(value: f64, want: f64, dtype: DType) -> bool {
    let relative = match dtype {
        DType::F64 => 1e-9,
        DType::F32 => 1e-6,
        DType::F16 => 1e-3,
        DType::BF16 => 8e-3,
        _ => 0.0,
    };
    (value - want).abs() <= relative * want.abs()
}

/// Whether every value of one floating-point type is one of another.
fn widens(from: DType, to: DType) -> bool {
    match (from, to) {
        (a, b) if a == b => a.is_float(),
        (DType::F16 | DType::BF16, DType::F32 | DType::F64) | (DType::F32, DType::F64) => true,
        _ => false,
    }
}

use Kind::{Any, Axis, Bool, Class, Classes, List, Number};

/// Every function of the vocabulary.
pub static FUNCTIONS: &[Function] = &[
    Function {
        name: "replicated",
        params: &[Class, Axis],
        doc: "Every rank of the axis holds the same value.",
        eval: |a| yes(a.class(0)?.replicated(a.axis(1)?)),
    },
    Function {
        name: "weight",
        params: &[Class],
        doc: "Computed from weights and constants alone.",
        eval: |a| yes(a.class(0)?.weight),
    },
    Function {
        name: "leaf",
        params: &[Class],
        doc: "A weight, a constant or a graph input: a part of it is cut before the program starts, at no cost.",
        eval: |a| yes(a.class(0)?.leaf),
    },
    Function {
        name: "free",
        params: &[Class],
        doc: "Computed from graph inputs, constants and vectors alone, so that each stage may recompute it.",
        eval: |a| yes(a.class(0)?.free),
    },
    Function {
        name: "constant",
        params: &[Class],
        doc: "A constant whose elements are all equal.",
        eval: |a| yes(a.class(0)?.constant.as_ref().is_some_and(|c| c.splat().is_some())),
    },
    Function {
        name: "scalar",
        params: &[Class],
        doc: "A constant without axes. `scalar-operand` brings constants of one element to this form.",
        eval: |a| yes(a.class(0)?.constant.as_ref().is_some_and(|c| c.shape.is_empty())),
    },
    Function {
        name: "value",
        params: &[Class],
        doc: "The number that all elements of a constant are equal to.",
        eval: |a| Some(Attr::Real(Real(a.class(0)?.constant.as_ref()?.splat()?))),
    },
    Function {
        name: "same-shape",
        params: &[Class, Class],
        doc: "The two tensors have equal shapes, for all values of the symbols.",
        eval: |a| yes(a.class(0)?.ty().shape == a.class(1)?.ty().shape),
    },
    Function {
        name: "same-dtype",
        params: &[Class, Class],
        doc: "The two tensors have equal element types.",
        eval: |a| yes(a.class(0)?.ty().dtype == a.class(1)?.ty().dtype),
    },
    Function {
        name: "dtype",
        params: &[Class],
        doc: "The element type.",
        eval: |a| Some(Attr::DType(a.class(0)?.ty().dtype)),
    },
    Function {
        name: "float",
        params: &[Class],
        doc: "The elements are floating-point numbers.",
        eval: |a| yes(a.class(0)?.ty().dtype.is_float()),
    },
    Function {
        name: "close",
        params: &[Class, Number],
        doc: "The elements of a constant all equal the number, up to the rounding of their type.",
        eval: |a| {
            let f = a.class(0)?;
            let value = f.constant.as_ref().and_then(|c| c.splat());
            let want = a.real(1)?;
            yes(value.is_some_and(|v| is_close(v, want, f.ty().dtype)))
        },
    },
    Function {
        name: "widens",
        params: &[Any, Any],
        doc: "Every number of the first floating-point type is one of the second.",
        eval: |a| match (a.attr(0)?, a.attr(1)?) {
            (Attr::DType(from), Attr::DType(to)) => yes(widens(*from, *to)),
            _ => None,
        },
    },
    Function {
        name: "vector-of",
        params: &[Class, Class],
        doc: "The first tensor is a vector as long as the last axis of the second.",
        eval: |a| {
            let (v, x) = (a.class(0)?.ty(), a.class(1)?.ty());
            yes(v.rank() == 1 && x.shape.last() == v.shape.first())
        },
    },
    Function {
        name: "rank",
        params: &[Class],
        doc: "Number of axes.",
        eval: |a| Some(Attr::Int(a.class(0)?.ty().rank() as i64)),
    },
    Function {
        name: "elements",
        params: &[Class],
        doc: "Number of elements.",
        eval: |a| number(a.class(0)?.ty().elements()),
    },
    Function {
        name: "last",
        params: &[Class],
        doc: "Index of the last axis.",
        eval: |a| Some(Attr::Int(a.class(0)?.ty().rank() as i64 - 1)),
    },
    Function { name: "dim", params: &[Class, Number], doc: "Extent along an axis.", eval: |a| number(a.extent(0, 1)?) },
    Function {
        name: "shape",
        params: &[Class],
        doc: "All extents.",
        eval: |a| Some(Attr::Dims(a.class(0)?.ty().shape.clone())),
    },
    Function {
        name: "size",
        params: &[Axis],
        doc: "Number of ranks along a mesh axis.",
        eval: |a| Some(Attr::Int(a.mapping.size(a.axis(0)?) as i64)),
    },
    Function {
        name: "divides",
        params: &[Number, Number],
        doc: "The first number is greater than 1 and divides the second without remainder; false for an axis of one rank.",
        eval: |a| {
            let n = a.dim(0)?;
            yes(n.as_const().is_none_or(|n| n > 1) && a.dim(1)?.div_exact(&n).is_some())
        },
    },
    Function {
        name: "=",
        params: &[Any, Any],
        doc: "The two values are equal.",
        eval: |a| match (a.dim(0), a.dim(1), a.list(0), a.list(1)) {
            (Some(x), Some(y), _, _) => yes(x == y),
            (_, _, Some(x), Some(y)) => yes(x == y),
            _ => yes(a.attr(0)? == a.attr(1)?),
        },
    },
    Function {
        name: "!=",
        params: &[Number, Number],
        doc: "The two numbers differ.",
        eval: |a| yes(a.int(0)? != a.int(1)?),
    },
    Function {
        name: "<",
        params: &[Number, Number],
        doc: "The first number is smaller.",
        eval: |a| yes(a.int(0)? < a.int(1)?),
    },
    Function { name: "+", params: &[Number, Number], doc: "Sum.", eval: |a| number(&a.dim(0)? + &a.dim(1)?) },
    Function { name: "-", params: &[Number, Number], doc: "Difference.", eval: |a| number(&a.dim(0)? - &a.dim(1)?) },
    Function {
        name: "*",
        params: &[Any, Any],
        doc: "Product of extents or of numbers.",
        eval: |a| match (a.dim(0), a.dim(1)) {
            (Some(x), Some(y)) => number(&x * &y),
            _ => Some(Attr::Real(Real(a.real(0)? * a.real(1)?))),
        },
    },
    Function {
        name: "/",
        params: &[Any, Any],
        doc: "Quotient of numbers; of extents only where nothing remains.",
        eval: |a| match (a.attr(0)?, a.attr(1)?) {
            (Attr::Real(_), _) | (_, Attr::Real(_)) => {
                let d = a.real(1)?;
                let n = a.real(0)?;
                (d != 0.0).then_some(Attr::Real(Real(n / d)))
            }
            _ => number(a.dim(0)?.div_exact(&a.dim(1)?)?),
        },
    },
    Function {
        name: "root",
        params: &[Any],
        doc: "The square root of a positive number.",
        eval: |a| a.real(0).filter(|x| *x > 0.0).map(|x| Attr::Real(Real(x.sqrt()))),
    },
    Function {
        name: "larger",
        params: &[Number, Number],
        doc: "The larger of two numbers.",
        eval: |a| match (a.int(0), a.int(1)) {
            (Some(x), Some(y)) => Some(Attr::Int(x.max(y))),
            _ => {
                let (x, y) = (a.real(0)?, a.real(1)?);
                (!x.is_nan() && !y.is_nan()).then(|| Attr::Real(Real(x.max(y))))
            }
        },
    },
    Function {
        name: "if",
        params: &[Bool, Any, Any],
        doc: "The second value if the first is true, else the third.",
        eval: |a| match a.attr(0)? {
            Attr::Bool(b) => a.attr(if *b { 1 } else { 2 }).cloned(),
            _ => None,
        },
    },
    Function {
        name: "not",
        params: &[Bool],
        doc: "Negation.",
        eval: |a| match a.attr(0)? {
            Attr::Bool(b) => yes(!b),
            _ => None,
        },
    },
    Function {
        name: "only",
        params: &[Number],
        doc: "The list of one integer.",
        eval: |a| Some(Attr::Ints(vec![a.int(0)?])),
    },
    Function {
        name: "axes",
        params: &[Number],
        doc: "The list 0, 1, .. of so many axes in order.",
        eval: |a| Some(Attr::Ints((0..a.int(0)?).collect())),
    },
    Function {
        name: "split",
        params: &[List, Number, Number],
        doc: "A shape with the extent of one axis divided into parts.",
        eval: |a| {
            let mut s = a.list(0)?;
            let d = s.get_mut(usize::try_from(a.int(1)?).ok()?)?;
            *d = d.div_exact(&a.dim(2)?)?;
            Some(Attr::Dims(s))
        },
    },
    Function {
        name: "split-last",
        params: &[List, Number],
        doc: "A shape with the last axis in two, the second of the given extent.",
        eval: |a| {
            let mut s = a.list(0)?;
            let (last, width) = (s.pop()?, a.dim(1)?);
            s.push(last.div_exact(&width)?);
            s.push(width);
            Some(Attr::Dims(s))
        },
    },
    Function {
        name: "with",
        params: &[List, Number, Number],
        doc: "A shape with the extent of one axis replaced.",
        eval: |a| {
            let mut s = a.list(0)?;
            *s.get_mut(usize::try_from(a.int(1)?).ok()?)? = a.dim(2)?;
            Some(Attr::Dims(s))
        },
    },
    Function {
        name: "item",
        params: &[List, Number],
        doc: "An element of a list.",
        eval: |a| number(a.list(0)?.get(usize::try_from(a.int(1)?).ok()?)?.clone()),
    },
    Function {
        name: "index",
        params: &[List, Number],
        doc: "The position of a number in a list.",
        eval: |a| {
            let n = a.dim(1)?;
            Some(Attr::Int(a.list(0)?.iter().position(|d| *d == n)? as i64))
        },
    },
    Function {
        name: "length",
        params: &[List],
        doc: "Number of elements of a list.",
        eval: |a| Some(Attr::Int(a.list(0)?.len() as i64)),
    },
    Function {
        name: "reshape-axis",
        params: &[List, List, Number, Number],
        doc: "(from, to, axis, parts): the axis of shape `to` along which the parts of an axis of shape `from` lie.",
        eval: |a| {
            let d = usize::try_from(a.int(2)?).ok()?;
            Some(Attr::Int(reshape_axis(&a.list(0)?, &a.list(1)?, d, a.int(3)?)? as i64))
        },
    },
    Function {
        name: "gathered",
        params: &[Class, Number, Number],
        doc: "The shape after the parts along an axis are joined.",
        eval: |a| {
            let mut s = a.class(0)?.ty().shape.clone();
            let d = s.get_mut(usize::try_from(a.int(1)?).ok()?)?;
            *d = &*d * &a.dim(2)?;
            Some(Attr::Dims(s))
        },
    },
    Function {
        name: "aligned-axis",
        params: &[Class, Class, Number],
        doc: "(y, x, axis): the axis of y that broadcasting aligns with an axis of x.",
        eval: |a| {
            let e = aligned(a.class(0)?, a.class(1)?, a.int(2)?)?;
            (e >= 0).then_some(Attr::Int(e))
        },
    },
    Function {
        name: "broadcasts-over",
        params: &[Class, Class, Number],
        doc: "(y, x, axis): y has extent 1, or no axis at all, where x has that axis.",
        eval: |a| yes(broadcasts_over(a.class(0)?, a.class(1)?, a.int(2)?)),
    },
    Function {
        name: "all-broadcast-over",
        params: &[Classes, Class, Number],
        doc: "`broadcasts-over` and replicated over tp, for each of several tensors.",
        eval: |a| {
            let (x, d) = (a.class(1)?, a.int(2)?);
            match a.values.first()? {
                Value::Classes(ys) => yes(ys.iter().all(|y| broadcasts_over(y, x, d) && y.replicated(MeshAxis::Tp))),
                _ => None,
            }
        },
    },
    Function {
        name: "covers-shape",
        params: &[Class, Class],
        doc: "The second tensor broadcasts to the shape of the first.",
        eval: |a| {
            let (x, y) = (&a.class(0)?.ty().shape, &a.class(1)?.ty().shape);
            yes(crate::ir::broadcast(x, y).is_ok_and(|s| s == *x))
        },
    },
    Function {
        name: "compose",
        params: &[List, List],
        doc: "The permutation that first permutes by the first list, then by the second.",
        eval: |a| {
            let (p, q) = (a.list(0)?, a.list(1)?);
            let at = |i: &Dim| p.get(usize::try_from(i.as_const()?).ok()?)?.as_const();
            Some(Attr::Ints(q.iter().map(at).collect::<Option<_>>()?))
        },
    },
    Function {
        name: "swaps-last-two",
        params: &[List],
        doc: "The permutation exchanges the last two axes and keeps the others.",
        eval: |a| {
            let p: Vec<i64> = a.list(0)?.iter().map(Dim::as_const).collect::<Option<_>>()?;
            let n = p.len() as i64;
            let lead = (n - 2).max(0);
            yes(n >= 2 && p[..lead as usize].iter().copied().eq(0..lead) && p[lead as usize..] == [n - 1, n - 2])
        },
    },
    Function {
        name: "swap-last-two",
        params: &[Number],
        doc: "The permutation of a rank that exchanges the last two axes.",
        eval: |a| {
            let n = a.int(0)?;
            if n < 2 {
                return None;
            }
            let mut p: Vec<i64> = (0..n).collect();
            p.swap(n as usize - 1, n as usize - 2);
            Some(Attr::Ints(p))
        },
    },
    Function {
        name: "merges-batch",
        params: &[Class, List, List],
        doc: "(x, merged, restored): `merged` joins all but the last two axes of x into one, and `restored` is x with its last two axes exchanged.",
        eval: |a| {
            let x = &a.class(0)?.ty().shape;
            let (merged, restored) = (a.list(1)?, a.list(2)?);
            let n = x.len();
            if n < 3 {
                return None;
            }
            let mut swapped = x.clone();
            swapped.swap(n - 1, n - 2);
            yes(merged == vec![product(&x[..n - 2]), x[n - 2].clone(), x[n - 1].clone()] && restored == swapped)
        },
    },
    Function {
        name: "repeats-heads",
        params: &[Class, List, List, List],
        doc: "(k, a, b, c): reshape to a, expansion to b, reshape to c repeat each head of k in place.",
        eval: |a| {
            let k = &a.class(0)?.ty().shape;
            let (one, many, out) = (a.list(1)?, a.list(2)?, a.list(3)?);
            if k.len() != 4 || one.len() != 5 || many.len() != 5 || out.len() != 4 {
                return yes(false);
            }
            let d = |i: usize| k[i].clone();
            yes(one == vec![d(0), d(1), Dim::from(1), d(2), d(3)]
                && many == vec![d(0), d(1), many[2].clone(), d(2), d(3)]
                && out == vec![d(0), &d(1) * &many[2], d(2), d(3)])
        },
    },
];
