//! Sums of products by Einstein's notation.

use std::collections::BTreeMap;

use super::matmul::{Numbers, multiply};
use super::moved::{Walk, carried};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::standard::infer::required;
use crate::standard::{Args, Call, Data, Operand, Partial, StandardError, count, strides};

type Result<T> = std::result::Result<T, StandardError>;
type Results = Result<Vec<Option<Data>>>;
type Types = Result<Vec<Partial>>;

/// A letter of the equation, or an axis of the ellipsis counted from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    Hidden(usize),
    Letter(char),
}

/// The labels of each operand's axes and of the result's.
struct Equation {
    operands: Vec<Vec<Label>>,
    result: Vec<Label>,
}

impl Equation {
    fn parse(text: &str, ranks: &[usize]) -> Result<Equation> {
        let wrong = |why: &str| StandardError::new(format!("the equation `{text}`: {why}"));
        let clean: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let (left, right) = match clean.split_once("->") {
            Some((l, r)) => (l, Some(r)),
            None => (&clean[..], None),
        };
        let terms: Vec<&str> = left.split(',').collect();
        if terms.len() != ranks.len() {
            return Err(wrong(&format!("{} terms for {} operands", terms.len(), ranks.len())));
        }
        // Letters of a term, with how many axes the ellipsis stands for.
        let labels = |term: &str, hidden: &dyn Fn(usize) -> Result<usize>| -> Result<Vec<Label>> {
            let letters = |t: &str| -> Result<Vec<Label>> {
                t.chars()
                    .map(|c| {
                        if c.is_ascii_alphabetic() {
                            Ok(Label::Letter(c))
                        } else {
                            Err(wrong(&format!("`{c}` is no letter")))
                        }
                    })
                    .collect()
            };
            match term.split_once("...") {
                None => letters(term),
                Some((a, b)) => {
                    let (a, b) = (letters(a)?, letters(b)?);
                    let n = hidden(a.len() + b.len())?;
                    Ok(a.into_iter().chain((0..n).rev().map(Label::Hidden)).chain(b).collect())
                }
            }
        };
        let mut operands = vec![];
        let mut widest = 0;
        for (i, (term, &rank)) in terms.iter().zip(ranks).enumerate() {
            let misfit = || wrong(&format!("`{term}` does not name the {rank} axes of operand {i}"));
            let found = labels(term, &|n| rank.checked_sub(n).ok_or_else(misfit))?;
            if found.len() != rank {
                return Err(misfit());
            }
            widest = widest.max(found.iter().filter(|l| matches!(l, Label::Hidden(_))).count());
            operands.push(found);
        }
        let result = match right {
            Some(r) => labels(r, &|_| Ok(widest))?,
            None => {
                // The ellipsis, then the letters that occur once, in alphabetical order.
                let mut letters: BTreeMap<Label, usize> = BTreeMap::new();
                for l in operands.iter().flatten() {
                    *letters.entry(*l).or_default() += 1;
                }
                let once = letters.iter().filter(|(l, n)| matches!(l, Label::Letter(_)) && **n == 1).map(|(l, _)| *l);
                (0..widest).rev().map(Label::Hidden).chain(once).collect()
            }
        };
        for (i, l) in result.iter().enumerate() {
            if result[..i].contains(l) || !operands.iter().any(|o| o.contains(l)) {
                return Err(wrong(&format!("{l:?} of the result occurs twice, or in no operand")));
            }
        }
        Ok(Equation { operands, result })
    }
}

/// A tensor with a label for each axis.
struct Labelled<'a> {
    labels: Vec<Label>,
    shape: Vec<usize>,
    values: Numbers<'a>,
}

impl Labelled<'_> {
    /// The elements in the order of the given labels. A label that it has twice takes the diagonal.
    fn ordered(&self, order: &[Label], extents: &BTreeMap<Label, usize>) -> Labelled<'static> {
        let own = strides(&self.shape);
        let shape: Vec<usize> = order.iter().map(|l| extents[l]).collect();
        let step = |l: &Label| -> isize {
            let axes = self.labels.iter().zip(&own).zip(&self.shape).filter(|((m, _), _)| *m == l);
            axes.map(|((_, s), &n)| if n == 1 { 0 } else { *s as isize }).sum()
        };
        let steps: Vec<isize> = order.iter().map(step).collect();
        let at: Vec<usize> = Walk::new(&shape, &steps, 0).collect();
        Labelled { labels: order.to_vec(), shape, values: self.values.pick(&at) }
    }

    /// The sum over all labels but those to keep.
    fn summed(&self, keep: &[Label], extents: &BTreeMap<Label, usize>) -> Labelled<'static> {
        let (mut kept, mut gone) = (vec![], vec![]);
        for l in &self.labels {
            let list = if keep.contains(l) { &mut kept } else { &mut gone };
            if !list.contains(l) {
                list.push(*l);
            }
        }
        let all = self.ordered(&[&kept[..], &gone].concat(), extents);
        let shape = all.shape[..kept.len()].to_vec();
        let n: usize = all.shape[kept.len()..].iter().product();
        Labelled { labels: kept, values: all.values.sums(n, shape.iter().product()), shape }
    }
}

pub(super) fn einsum(c: &Call, x: &Args<'_>) -> Results {
    let views = (0..x.len()).map(|i| x.tensor(i)).collect::<Result<Vec<_>>>()?;
    let first = *views.first().ok_or_else(|| StandardError::new("there is no operand"))?;
    if let Some(v) = views.iter().find(|v| v.dtype != first.dtype) {
        return Err(StandardError::new(format!("a product of {} and {}", first.dtype, v.dtype)));
    }
    let ranks: Vec<usize> = views.iter().map(|v| v.shape.len()).collect();
    let equation = Equation::parse(c.text("equation").unwrap_or_default(), &ranks)?;
    let mut extents: BTreeMap<Label, usize> = BTreeMap::new();
    for (labels, v) in equation.operands.iter().zip(&views) {
        for (l, &n) in labels.iter().zip(v.shape) {
            let e = extents.entry(*l).or_insert(1);
            match (*e, n) {
                (a, b) if a == b || b == 1 => {}
                (1, b) => *e = b,
                (a, b) => {
                    return Err(StandardError::new(format!(
                        "{l:?} is {a} and {b} in `{}`",
                        c.text("equation").unwrap_or_default()
                    )));
                }
            }
        }
    }
    let mut done: Option<Labelled<'static>> = None;
    for (i, (labels, v)) in equation.operands.iter().zip(&views).enumerate() {
        let later = |l: &Label| equation.result.contains(l) || equation.operands[i + 1..].iter().any(|o| o.contains(l));
        // An axis of 1 that stands for a longer one repeats its element: it needs no label.
        let mut part = Labelled { labels: vec![], shape: vec![], values: Numbers::of(v) };
        for (l, &n) in labels.iter().zip(v.shape) {
            if n != 1 || extents[l] == 1 {
                part.labels.push(*l);
                part.shape.push(n);
            }
        }
        let other: Vec<Label> = done.as_ref().map(|d| d.labels.clone()).unwrap_or_default();
        let keep: Vec<Label> = part.labels.iter().filter(|l| later(l) || other.contains(l)).copied().collect();
        let part = part.summed(&keep, &extents);
        done = Some(match done {
            None => part,
            Some(d) => {
                let keep: Vec<Label> =
                    d.labels.iter().filter(|l| later(l) || part.labels.contains(l)).copied().collect();
                contract(&d.summed(&keep, &extents), &part, &later, &extents)?
            }
        });
    }
    let done = done.ok_or_else(|| StandardError::new("there is no operand"))?;
    let keep = done.summed(&equation.result, &extents);
    // A label of which only axes of 1 were seen.
    let out = keep.ordered(&equation.result, &extents);
    Ok(vec![Some(out.values.finish(first.dtype, &out.shape)?)])
}

/// The product of two tensors, summed over what both have and nobody wants any more.
fn contract(
    a: &Labelled<'_>,
    b: &Labelled<'_>,
    wanted: &dyn Fn(&Label) -> bool,
    extents: &BTreeMap<Label, usize>,
) -> Result<Labelled<'static>> {
    let both = |keep: bool| -> Vec<Label> {
        a.labels.iter().filter(|l| b.labels.contains(l) && wanted(l) == keep).copied().collect()
    };
    let (batch, inner) = (both(true), both(false));
    let only = |x: &Labelled<'_>, y: &Labelled<'_>| -> Vec<Label> {
        x.labels.iter().filter(|l| !y.labels.contains(l)).copied().collect()
    };
    let (rows, columns) = (only(a, b), only(b, a));
    let size = |l: &[Label]| {
        l.iter()
            .try_fold(1usize, |n, l| n.checked_mul(extents[l]))
            .ok_or_else(|| StandardError::new("the product is too large"))
    };
    let (n_batch, m, k, n) = (size(&batch)?, size(&rows)?, size(&inner)?, size(&columns)?);
    count(DType::F64, &[n_batch, m, n])?;
    let left = a.ordered(&[&batch[..], &rows, &inner].concat(), extents);
    let right = b.ordered(&[&batch[..], &columns, &inner].concat(), extents);
    let pairs: Vec<_> = (0..n_batch).map(|i| (i, i)).collect();
    let values = multiply(&left.values, &right.values, (m, k, n), (false, true), &pairs)?;
    let labels = [&batch[..], &rows, &columns].concat();
    let shape = labels.iter().map(|l| extents[l]).collect();
    Ok(Labelled { labels, shape, values })
}

pub(super) fn einsum_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let first = required(x, 0)?;
    let operands: Vec<Operand<'_>> = x.iter().flatten().copied().collect();
    let ranks: Vec<usize> = operands.iter().map(Operand::rank).collect();
    let equation = Equation::parse(c.text("equation").unwrap_or_default(), &ranks)?;
    let mut extents: BTreeMap<Label, Option<Dim>> = BTreeMap::new();
    for (labels, o) in equation.operands.iter().zip(&operands) {
        for (l, d) in labels.iter().zip(&o.ty.shape) {
            let one = |d: &Dim| d.as_const() == Some(1);
            let next = match extents.get(l) {
                None => Some(d.clone()),
                Some(Some(e)) if e == d || one(d) => Some(e.clone()),
                Some(Some(e)) if one(e) => Some(d.clone()),
                Some(Some(e)) if e.as_const().is_some() && d.as_const().is_some() => {
                    return Err(StandardError::new(format!("{l:?} is {e} and {d}")));
                }
                Some(Some(e)) if e.as_const().is_some() => Some(e.clone()),
                Some(_) if d.as_const().is_some_and(|n| n != 1) => Some(d.clone()),
                Some(_) => None,
            };
            extents.insert(*l, next);
        }
    }
    Ok(vec![carried(first.ty.dtype, equation.result.iter().map(|l| extents.get(l).cloned().flatten()))])
}
