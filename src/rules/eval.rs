//! Evaluates guards, attribute expressions and the operators of templates under a match.

use smallvec::SmallVec;

use super::facts::Facts;
use super::lang::{Expr, Guard, GuardKind, Kernel, Pattern, Template, TemplateHead, VarId};
use super::vocab::Value;
use crate::ir::{Attr, Body, BodyStep, Literal, Mapping, Op, OpRef, TensorType, infer};

/// What a variable is bound to. Tensors are named by `I`: e-classes in an e-graph, nodes in a graph.
#[derive(Clone, Debug, PartialEq)]
pub enum Bind<I> {
    /// A tensor.
    Class(I),
    /// Several tensors.
    Classes(SmallVec<[I; 4]>),
    /// An attribute value.
    Attr(Attr),
    /// An operator with its attributes.
    Op(OpRef),
}

/// Values of a rule's variables, by number.
pub type Binds<I> = [Option<Bind<I>>];

/// Where the facts of tensors are to be had.
pub trait Known<I> {
    /// The facts of a tensor.
    fn facts(&self, id: I) -> &Facts;
}

/// The value of an expression; `None` where it has none.
pub fn eval<I: Copy>(known: &impl Known<I>, expr: &Expr, binds: &Binds<I>, mapping: &Mapping) -> Option<Attr> {
    match expr {
        Expr::Lit(a) => Some(a.clone()),
        Expr::Var(v) => match binds[*v].as_ref()? {
            Bind::Attr(a) => Some(a.clone()),
            _ => None,
        },
        Expr::Call(f, args, _) => {
            let values: Option<SmallVec<[Value<'_>; 4]>> = args
                .iter()
                .map(|a| match a {
                    Expr::Var(v) => Some(match binds[*v].as_ref()? {
                        Bind::Class(id) => Value::Class(known.facts(*id)),
                        Bind::Classes(ids) => Value::Classes(ids.iter().map(|&i| known.facts(i)).collect()),
                        Bind::Attr(a) => Value::Attr(a.clone()),
                        Bind::Op(_) => return None,
                    }),
                    other => eval(known, other, binds, mapping).map(Value::Attr),
                })
                .collect();
            f.call(&values?, mapping)
        }
    }
}

/// The value of an expression as a number, for a constant; `None` where it has none.
pub fn number<I: Copy>(known: &impl Known<I>, expr: &Expr, binds: &Binds<I>, mapping: &Mapping) -> Option<f64> {
    match eval(known, expr, binds, mapping)? {
        Attr::Real(r) => Some(r.0),
        Attr::Int(n) => Some(n as f64),
        _ => None,
    }
}

/// Checks one guard; a binding becomes part of the match.
pub fn holds<I: Copy>(known: &impl Known<I>, guard: &Guard, binds: &mut Binds<I>, mapping: &Mapping) -> bool {
    match &guard.kind {
        GuardKind::Holds(e) => eval(known, e, binds, mapping) == Some(Attr::Bool(true)),
        GuardKind::Let(v, e) => match eval(known, e, binds, mapping) {
            Some(a) => {
                binds[*v] = Some(Bind::Attr(a));
                true
            }
            None => false,
        },
    }
}

/// The operator of a template on operands of the given facts; `None` where an attribute has no value.
pub fn template_op<I: Copy>(
    known: &impl Known<I>,
    head: &TemplateHead,
    binds: &Binds<I>,
    mapping: &Mapping,
    operands: &[&Facts],
) -> Option<OpRef> {
    match head {
        TemplateHead::Var(v) => match binds[*v].as_ref()? {
            Bind::Op(op) => Some(op.clone()),
            _ => None,
        },
        TemplateHead::Op(kind, exprs) => {
            let attrs: Option<Vec<Attr>> =
                exprs.iter().zip(&kind.0.attrs).map(|(e, a)| eval(known, e, binds, mapping)?.coerce(a.kind)).collect();
            Op::from_attrs(kind.0.name, &attrs?).map(OpRef::new)
        }
        TemplateHead::Kernel(kernel, exprs) => {
            let attrs: Option<Vec<Attr>> = exprs.iter().map(|e| eval(known, e, binds, mapping)).collect();
            kernel_op(kernel, &attrs?, operands, mapping)
        }
    }
}

/// A declared kernel with its body written out for operands of known types; `None` where the body has no
/// type there.
fn kernel_op(kernel: &Kernel, attrs: &[Attr], operands: &[&Facts], mapping: &Mapping) -> Option<OpRef> {
    if operands.len() != kernel.operands.len() || operands.iter().any(|f| f.types.len() != 1) {
        return None;
    }
    let mut w = Writer {
        kernel,
        facts: operands.iter().map(|f| plain(f.ty().clone(), None)).collect(),
        binds: vec![None; kernel.vars.len()],
        mapping,
        steps: vec![],
    };
    kernel.operands.iter().enumerate().for_each(|(i, v)| w.binds[*v] = Some(Bind::Class(i)));
    kernel.attrs.iter().zip(attrs).for_each(|(v, a)| w.binds[*v] = Some(Bind::Attr(a.clone())));
    for (v, t) in &kernel.lets {
        let n = w.write(t)?;
        w.binds[*v] = Some(Bind::Class(n));
    }
    let results = kernel.results.iter().map(|t| w.write(t)).collect::<Option<Vec<_>>>()?;
    let body = Body { name: kernel.name.clone(), operands: operands.len(), steps: w.steps, results };
    body.is_sound().then(|| OpRef::new(Op::Kernel { body }))
}

/// What is known of a tensor inside of a kernel: its type, and its value where it is a constant.
fn plain(ty: TensorType, constant: Option<Literal>) -> Facts {
    Facts { constant, ..Facts::of_types([ty].into()) }
}

/// Writes the body of a kernel. Tensors are numbers: first the operands, then the steps.
struct Writer<'k> {
    kernel: &'k Kernel,
    facts: Vec<Facts>,
    binds: Vec<Option<Bind<usize>>>,
    mapping: &'k Mapping,
    steps: Vec<BodyStep>,
}

impl Known<usize> for Vec<Facts> {
    fn facts(&self, id: usize) -> &Facts {
        &self[id]
    }
}

impl Writer<'_> {
    fn write(&mut self, t: &Template) -> Option<usize> {
        match t {
            Template::Var(v) => match self.binds[*v].as_ref()? {
                Bind::Class(n) => Some(*n),
                _ => None,
            },
            Template::Const { value, like } => {
                let Some(Bind::Class(like)) = &self.binds[*like] else { return None };
                let dtype = self.facts[*like].ty().dtype;
                let value = number(&self.facts, value, &self.binds, self.mapping)?;
                self.step(Op::Const { value: Literal::scalar(dtype, value) }, vec![])
            }
            Template::Op { head, args, .. } => {
                let inputs = args.iter().map(|a| self.write(a)).collect::<Option<Vec<_>>>()?;
                let operands: Vec<&Facts> = inputs.iter().map(|&n| &self.facts[n]).collect();
                let op = template_op(&self.facts, head, &self.binds, self.mapping, &operands)?;
                self.step((*op).clone(), inputs)
            }
        }
    }

    fn step(&mut self, op: Op, inputs: Vec<usize>) -> Option<usize> {
        let known = self.steps.iter().position(|s| s.op == op && s.inputs == inputs);
        if let Some(i) = known {
            return Some(self.kernel.operands.len() + i);
        }
        let types: Vec<&[TensorType]> = inputs.iter().map(|&n| &self.facts[n].types[..]).collect();
        let ty = infer(&op, &types).ok()?.into_iter().next()?;
        let constant = match &op {
            Op::Const { value } => Some(value.clone()),
            _ => None,
        };
        self.facts.push(plain(ty.clone(), constant));
        self.steps.push(BodyStep { op, inputs, ty });
        Some(self.facts.len() - 1)
    }
}

/// Whether the numbers of a pattern leave the shape of a result alone: with scalars in their place the
/// result would have the same types. A number that is written as a larger constant might widen it.
pub fn numbers_are_neutral(op: &Op, operands: &[&[TensorType]], args: &[Pattern], result: &[TensorType]) -> bool {
    let is_number = |i: usize| matches!(args.get(i), Some(Pattern::Number(_)));
    let widens = |i: usize| is_number(i) && operands[i].first().is_some_and(|t| t.rank() > 0);
    if !(0..operands.len()).any(widens) {
        return true;
    }
    let scalars: Vec<Vec<TensorType>> =
        operands.iter().map(|t| t.iter().map(|t| TensorType { dtype: t.dtype, shape: vec![] }).collect()).collect();
    let plain: Vec<&[TensorType]> =
        (0..operands.len()).map(|i| if is_number(i) { &scalars[i][..] } else { operands[i] }).collect();
    infer(op, &plain).is_ok_and(|t| t == result)
}

/// The operands that a template splices in for its optional and remaining variables; `None` where one is
/// not bound to tensors.
pub fn spliced<I: Copy>(rest: &[VarId], binds: &Binds<I>) -> Option<SmallVec<[I; 4]>> {
    let mut out = SmallVec::new();
    for &v in rest {
        match binds[v].as_ref()? {
            Bind::Classes(ids) => out.extend(ids.iter().copied()),
            _ => return None,
        }
    }
    Some(out)
}
