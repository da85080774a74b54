//! Finds the values of symbols in the shapes of the inputs, and checks the inputs against the plan.

use std::collections::{BTreeMap, BTreeSet};

use super::RunError;
use crate::dim::{Bindings, Dim, MAX_EXTENT};
use crate::dtype::DType;
use crate::plan::{Assumption, InputDecl};
use crate::standard::Data;
use crate::tensor::Tensor;

/// Binds every symbol, or reports all that does not fit.
pub(super) fn bind(
    decls: &[InputDecl],
    assumptions: &[Assumption],
    inputs: &BTreeMap<String, Tensor>,
    data: &BTreeMap<String, Data>,
) -> Result<Bindings, RunError> {
    let mut problems = vec![];
    for name in inputs.keys().chain(data.keys()).filter(|n| !decls.iter().any(|d| d.name == **n)) {
        problems.push(format!("`{name}` is no input of the model"));
    }
    let mut given = vec![];
    for decl in decls {
        let is_opaque = decl.ty.dtype == DType::Opaque;
        let other = data.get(&decl.name);
        let ty = decl.declared_type();
        match inputs.get(&decl.name) {
            _ if is_opaque && other.is_some() => {}
            None if is_opaque => {
                problems.push(format!("`{}` is missing: strings, a sequence or an optional value", decl.name));
            }
            None if other.is_some() => {
                let got = other.map_or(String::new(), Data::describe);
                problems.push(format!("`{}`: expected {ty}, got {got}", decl.name));
            }
            None => problems.push(format!("`{}` is missing, expected {ty}", decl.name)),
            Some(t) if t.dtype != decl.ty.dtype || t.shape.len() != decl.ty.rank() => {
                problems.push(format!("`{}`: expected {ty}, got {}{:?}", decl.name, t.dtype, t.shape));
            }
            Some(t) => given.push((decl, t)),
        }
    }
    // Where a symbol got its value, for messages.
    let mut bindings = Bindings::new();
    let mut places: BTreeMap<&str, String> = BTreeMap::new();
    for &(decl, t) in &given {
        for (axis, &n) in t.shape.iter().enumerate() {
            for d in [&decl.shape()[axis], &decl.ty.shape[axis]] {
                let Some(s) = d.as_sym().filter(|s| !bindings.contains_key(*s)) else { continue };
                bindings.insert(s.to_owned(), n as i64);
                places.insert(s, format!("axis {axis} of `{}`", decl.name));
            }
            if n as i64 > MAX_EXTENT {
                problems.push(format!("`{}`: axis {axis} has {n} elements; the limit is {MAX_EXTENT}", decl.name));
            }
        }
    }
    for &(decl, t) in &given {
        for (axis, (d, &n)) in decl.shape().iter().zip(&t.shape).enumerate() {
            // A symbol may be unbound only because the input that binds it was refused above.
            let Ok(expected) = d.eval(&bindings) else { continue };
            if expected != n as i64 {
                let meaning = if d.as_const().is_some() { String::new() } else { format!("{d} = ") };
                let (name, ty) = (&decl.name, decl.declared_type());
                problems.push(format!(
                    "`{name}`: expected {ty} with {meaning}{expected} on axis {axis}, got {}{:?}",
                    t.dtype, t.shape
                ));
            }
        }
    }
    for a in assumptions {
        let (left, right) = match (a.left.eval(&bindings), a.right.eval(&bindings)) {
            (Ok(left), Ok(right)) if a.relation.holds(left, right) => continue,
            (Ok(left), Ok(right)) => (left, right),
            // Of an input that was refused above.
            _ => continue,
        };
        let mut symbols = BTreeSet::new();
        a.left.collect_symbols(&mut symbols);
        a.right.collect_symbols(&mut symbols);
        let values: Vec<String> = symbols
            .iter()
            .filter_map(|s| Some(format!("{} is {}, {}", Dim::sym(s), bindings.get(s)?, places.get(s.as_str())?)))
            .collect();
        let sides = if a.right.as_const().is_some() { format!("{left}") } else { format!("{left} and {right}") };
        problems.push(format!("the program is for {a} ({}), found {sides}: {}", a.why, values.join("; ")));
    }
    let mut seen = BTreeSet::new();
    problems.retain(|p| seen.insert(p.clone()));
    if problems.is_empty() { Ok(bindings) } else { Err(RunError::Inputs(problems)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::TensorType;

    fn decl(name: &str, shape: &[&str]) -> InputDecl {
        let shape: Vec<Dim> = shape.iter().map(|s| Dim::parse(s).unwrap()).collect();
        InputDecl {
            name: name.to_owned(),
            ty: TensorType::new(DType::F32, shape),
            declared: None,
            kind: None,
            default: false,
        }
    }

    fn given(list: &[(&str, &[usize])]) -> BTreeMap<String, Tensor> {
        list.iter().map(|(n, s)| ((*n).to_owned(), Tensor::zeros(DType::F32, s).unwrap())).collect()
    }

    #[test]
    fn bare_symbols_bind_and_sums_are_checked() {
        let decls =
            [decl("mask", &["batch", "past + seq"]), decl("ids", &["batch", "seq"]), decl("cache", &["past", "4"])];
        let b = bind(&decls, &[], &given(&[("mask", &[2, 8]), ("ids", &[2, 3]), ("cache", &[5, 4])]), &BTreeMap::new())
            .unwrap();
        assert_eq!((b["batch"], b["seq"], b["past"]), (2, 3, 5));
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let decls =
            [decl("mask", &["batch", "past + seq"]), decl("ids", &["batch", "seq"]), decl("cache", &["past", "4"])];
        let e = bind(
            &decls,
            &[],
            &given(&[("mask", &[3, 9]), ("ids", &[2, 3]), ("cache", &[5, 6]), ("x", &[])]),
            &BTreeMap::new(),
        )
        .unwrap_err();
        let e = e.to_string();
        for part in [
            "`x` is no input",
            "past + seq = 8 on axis 1",
            "batch = 3 on axis 0",
            "`cache`: expected f32[past, 4] with 4 on axis 1, got f32[5, 6]",
        ] {
            assert!(e.contains(part), "{part}: {e}");
        }
        let e =
            bind(&decls, &[], &given(&[("ids", &[2]), ("cache", &[5, 4])]), &BTreeMap::new()).unwrap_err().to_string();
        assert!(e.contains("`mask` is missing, expected f32[batch, past + seq]") && e.contains("got f32[2]"), "{e}");
    }
}
