//! Ensembles of decision trees: `TreeEnsemble` of `ai.onnx.ml`.

use super::ml::transformed;
use crate::dim::Dim;
use crate::standard::infer::required;
use crate::standard::tensor::carried;
use crate::standard::{Args, Call, Data, Operand, Partial, StandardError, floats, from_floats};

type Result<T> = std::result::Result<T, StandardError>;
type Results = Result<Vec<Option<Data>>>;
type Types = Result<Vec<Partial>>;

/// A node that asks about one feature.
struct Node {
    mode: i64,
    feature: usize,
    split: f64,
    members: Vec<f64>,
    missing_is_true: bool,
    /// Index of the next node or leaf, and whether it is a leaf; where the answer is no, and where it is yes.
    next: [(usize, bool); 2],
}

impl Node {
    fn answer(&self, x: f64) -> bool {
        if x.is_nan() && self.missing_is_true {
            return true;
        }
        match self.mode {
            0 => x <= self.split,
            1 => x < self.split,
            2 => x >= self.split,
            3 => x > self.split,
            4 => x == self.split,
            5 => x != self.split,
            _ => self.members.contains(&x),
        }
    }
}

struct Ensemble {
    nodes: Vec<Node>,
    /// (weight, target)
    leaves: Vec<(f64, usize)>,
    roots: Vec<usize>,
    targets: usize,
}

/// The elements of a tensor attribute.
fn numbers(c: &Call, name: &str) -> Result<Vec<f64>> {
    match c.constant(name) {
        None => Ok(vec![]),
        Some(t) => match Data::constant(t)? {
            Data::Tensor(t) => Ok(t.to_f64()),
            _ => Err(StandardError::new(format!("`{name}` has no numbers"))),
        },
    }
}

impl Ensemble {
    fn of(c: &Call, features: usize) -> Result<Ensemble> {
        let wrong = |what: &str| StandardError::new(format!("{what} does not fit the other attributes of the trees"));
        let list = |name: &str| c.ints(name).unwrap_or_default();
        let index =
            |v: i64, n: usize, what: &str| usize::try_from(v).ok().filter(|&v| v < n).ok_or_else(|| wrong(what));
        let (modes, splits) = (numbers(c, "nodes_modes")?, numbers(c, "nodes_splits")?);
        let weights = numbers(c, "leaf_weights")?;
        let ids = list("leaf_targetids");
        let targets = usize::try_from(c.int("n_targets").unwrap_or(1)).map_err(|_| wrong("`n_targets`"))?;
        if ids.len() != weights.len() {
            return Err(wrong("`leaf_targetids`"));
        }
        let leaves: Vec<(f64, usize)> = weights
            .iter()
            .zip(ids)
            .map(|(&w, &t)| Ok((w, index(t, targets, "`leaf_targetids`")?)))
            .collect::<Result<_>>()?;
        let n = modes.len();
        let names =
            ["nodes_featureids", "nodes_falsenodeids", "nodes_falseleafs", "nodes_truenodeids", "nodes_trueleafs"];
        if let Some(name) = names.iter().find(|name| list(name).len() != n) {
            return Err(wrong(&format!("`{name}`")));
        }
        // The members of the nodes that ask for a set, one set after the other, each with a NaN at its end.
        let members = numbers(c, "membership_values")?;
        let mut sets = members.split(|v| v.is_nan());
        let missing = list("nodes_missing_value_tracks_true");
        let mut nodes = vec![];
        for (i, &mode) in modes.iter().enumerate() {
            let branch = |id: &str, leaf: &str| -> Result<(usize, bool)> {
                let is_leaf = list(leaf)[i] != 0;
                let count = if is_leaf { leaves.len() } else { n };
                Ok((index(list(id)[i], count, id)?, is_leaf))
            };
            let mode = mode as i64;
            nodes.push(Node {
                mode,
                feature: index(list("nodes_featureids")[i], features, "a feature")?,
                split: splits.get(i).copied().ok_or_else(|| wrong("`nodes_splits`"))?,
                members: if mode == 6 {
                    sets.next().ok_or_else(|| wrong("`membership_values`"))?.to_vec()
                } else {
                    vec![]
                },
                missing_is_true: missing.get(i).is_some_and(|&m| m != 0),
                next: [
                    branch("nodes_falsenodeids", "nodes_falseleafs")?,
                    branch("nodes_truenodeids", "nodes_trueleafs")?,
                ],
            });
        }
        let roots = list("tree_roots").iter().map(|&r| index(r, n, "`tree_roots`")).collect::<Result<_>>()?;
        Ok(Ensemble { nodes, leaves, roots, targets })
    }

    /// The leaf that a sample reaches from a root.
    fn leaf(&self, root: usize, x: &[f64]) -> Result<(f64, usize)> {
        let mut at = root;
        // A tree visits no node twice.
        for _ in 0..=self.nodes.len() {
            let node = &self.nodes[at];
            match node.next[usize::from(node.answer(x[node.feature]))] {
                (leaf, true) => return Ok(self.leaves[leaf]),
                (next, false) => at = next,
            }
        }
        Err(StandardError::new(format!("the tree with the root {root} goes round in a circle")))
    }
}

pub(super) fn tree_ensemble(c: &Call, x: &Args<'_>) -> Results {
    let v = x.tensor(0)?;
    let &[rows, features] = v.shape else {
        return Err(StandardError::new(format!("{:?} is no batch of features", v.shape)));
    };
    let e = Ensemble::of(c, features)?;
    let aggregate = c.int("aggregate_function").unwrap_or(1);
    let post = match c.int("post_transform").unwrap_or(0) {
        0 => "NONE",
        1 => "SOFTMAX",
        2 => "LOGISTIC",
        3 => "SOFTMAX_ZERO",
        4 => "PROBIT",
        p => return Err(StandardError::new(format!("`post_transform` is {p}, which is unknown"))),
    };
    let mut out = vec![];
    for row in floats(&v).chunks_exact(features.max(1)) {
        let mut sums: Vec<Option<f64>> = vec![None; e.targets];
        for &root in &e.roots {
            let (weight, target) = e.leaf(root, row)?;
            let s = &mut sums[target];
            *s = Some(match (aggregate, *s) {
                (0, old) => old.unwrap_or(0.0) + weight / e.roots.len() as f64,
                (1, old) => old.unwrap_or(0.0) + weight,
                (2, old) => old.map_or(weight, |o| o.min(weight)),
                (3, old) => old.map_or(weight, |o| o.max(weight)),
                (a, _) => return Err(StandardError::new(format!("`aggregate_function` is {a}, which is unknown"))),
            });
        }
        let mut line: Vec<f64> = sums.into_iter().map(|s| s.unwrap_or(0.0)).collect();
        transformed(post, &mut line)?;
        out.extend(line);
    }
    Ok(vec![Some(from_floats(v.dtype, &[rows, e.targets], out)?)])
}

pub(super) fn tree_ensemble_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let v = required(x, 0)?;
    Ok(vec![carried(v.ty.dtype, [v.ty.shape.first().cloned(), Some(Dim::from(c.int("n_targets").unwrap_or(1)))])])
}
