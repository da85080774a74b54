//! Finds the values of symbols in the shapes of the inputs, and checks the inputs against the plan.

use std::collections::BTreeMap;

use super::RunError;
use crate::dim::Bindings;
use crate::dtype::DType;
use crate::plan::InputDecl;
use crate::standard::Data;
use crate::tensor::Tensor;

/// Binds every symbol, or reports all that does not fit.
pub(super) fn bind(
    decls: &[InputDecl],
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
        match inputs.get(&decl.name) {
            _ if is_opaque && other.is_some() => {}
            None if is_opaque => {
                problems.push(format!("`{}` is missing: strings, a sequence or an optional value", decl.name));
            }
            None if other.is_some() => {
                let got = other.map_or(String::new(), Data::describe);
                problems.push(format!("`{}`: expected {}, got {got}", decl.name, decl.ty));
            }
            None => problems.push(format!("`{}` is missing, expected {}", decl.name, decl.ty)),
            Some(t) if t.dtype != decl.ty.dtype || t.shape.len() != decl.ty.rank() => {
                problems.push(format!("`{}`: expected {}, got {}{:?}", decl.name, decl.ty, t.dtype, t.shape));
            }
            Some(t) => given.push((decl, t)),
        }
    }
    let mut bindings = Bindings::new();
    for &(decl, t) in &given {
        for (d, &n) in decl.ty.shape.iter().zip(&t.shape) {
            if let Some(s) = d.as_sym() {
                bindings.entry(s.to_owned()).or_insert(n as i64);
            }
        }
    }
    for &(decl, t) in &given {
        for (axis, (d, &n)) in decl.ty.shape.iter().zip(&t.shape).enumerate() {
            // A symbol may be unbound only because the input that binds it was refused above.
            let Ok(expected) = d.eval(&bindings) else { continue };
            if expected != n as i64 {
                let meaning = if d.as_const().is_some() { String::new() } else { format!("{d} = ") };
                let (name, ty) = (&decl.name, &decl.ty);
                problems.push(format!(
                    "`{name}`: expected {ty} with {meaning}{expected} on axis {axis}, got {}{:?}",
                    t.dtype, t.shape
                ));
            }
        }
    }
    if problems.is_empty() { Ok(bindings) } else { Err(RunError::Inputs(problems)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dim::Dim;
    use crate::dtype::TensorType;

    fn decl(name: &str, shape: &[&str]) -> InputDecl {
        let shape: Vec<Dim> = shape.iter().map(|s| Dim::parse(s).unwrap()).collect();
        InputDecl { name: name.to_owned(), ty: TensorType::new(DType::F32, shape), kind: None, default: false }
    }

    fn given(list: &[(&str, &[usize])]) -> BTreeMap<String, Tensor> {
        list.iter().map(|(n, s)| ((*n).to_owned(), Tensor::zeros(DType::F32, s).unwrap())).collect()
    }

    #[test]
    fn bare_symbols_bind_and_sums_are_checked() {
        let decls =
            [decl("mask", &["batch", "past + seq"]), decl("ids", &["batch", "seq"]), decl("cache", &["past", "4"])];
        let b =
            bind(&decls, &given(&[("mask", &[2, 8]), ("ids", &[2, 3]), ("cache", &[5, 4])]), &BTreeMap::new()).unwrap();
        assert_eq!((b["batch"], b["seq"], b["past"]), (2, 3, 5));
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let decls =
            [decl("mask", &["batch", "past + seq"]), decl("ids", &["batch", "seq"]), decl("cache", &["past", "4"])];
        let e = bind(
            &decls,
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
        let e = bind(&decls, &given(&[("ids", &[2]), ("cache", &[5, 4])]), &BTreeMap::new()).unwrap_err().to_string();
        assert!(e.contains("`mask` is missing, expected f32[batch, past + seq]") && e.contains("got f32[2]"), "{e}");
    }
}
