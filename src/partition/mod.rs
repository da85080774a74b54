//! Partition: assigns the raised graph to pipeline stages and inserts `boundary` on what crosses.
//!
//! A cut is *narrow* where a single tensor crosses: after each residual sum. A layer runs from one
//! attention to the next; in hybrids with few attentions, and where there are more stages than attentions, from one narrow cut
//! behind a matrix product to the next. Stages are contiguous runs of layers with the smallest possible cost of the most
//! expensive one. Values that
//! follow from graph inputs and vectors alone belong to no stage: every stage computes what it needs.

use std::collections::BTreeMap;

use crate::cost::CostModel;
use crate::ir::{Graph, NodeId, Op, TensorType};
use crate::saturate::analysis::facts;

/// Why a graph cannot be partitioned as asked.
#[derive(Debug, thiserror::Error)]
pub enum PartitionError {
    /// More stages than layers.
    #[error("--pp {pp} is impossible: {}", too_few(*layers))]
    TooManyStages {
        /// Stages asked for.
        pp: usize,
        /// Layers found.
        layers: usize,
    },
    /// `--pp-partition` does not fit.
    #[error("--pp-partition {}: {message}", list(given))]
    BadPartition {
        /// What was given.
        given: Vec<usize>,
        /// What is wrong.
        message: String,
    },
    /// The tensor-parallel size does not divide the heads.
    #[error(
        "--tp {tp} is impossible: attention `{node}` has {heads} query heads and {kv_heads} key heads\n  help: tp must divide the query heads, and divide the key heads or be a multiple of them; possible here: {possible}"
    )]
    Heads {
        /// Size asked for.
        tp: usize,
        /// The attention.
        node: String,
        /// Query heads.
        heads: i64,
        /// Key heads.
        kv_heads: i64,
        /// Sizes that fit.
        possible: String,
    },
    /// A defect of the compiler.
    #[error("partition: {0}")]
    Internal(String),
}

/// Why so many layers are too few, and what to do.
fn too_few(layers: usize) -> String {
    match layers {
        0 => {
            "no layers are found in the model, so that it cannot be divided into stages\n  help: use --pp 1".to_owned()
        }
        1 => "the model has 1 layer, and each stage needs at least one\n  help: use --pp 1".to_owned(),
        n => format!("the model has {n} layers, and each stage needs at least one\n  help: use --pp {n} or less"),
    }
}

fn list(sizes: &[usize]) -> String {
    sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Checks that the tensor axis can divide every attention.
pub fn check_heads(graph: &Graph, tp: usize) -> Result<(), PartitionError> {
    for (_, n) in graph.nodes() {
        if !matches!(n.op, Op::Attention { .. }) {
            continue;
        }
        let heads = |i: usize| graph.node(n.inputs[i]).ty().shape[1].as_const();
        let (Some(q), Some(k)) = (heads(0), heads(1)) else { continue };
        let fits = |t: i64| q % t == 0 && (k % t == 0 || t % k == 0);
        if !fits(tp as i64) {
            let possible: Vec<String> = (1..=q).filter(|&t| fits(t)).map(|t| t.to_string()).collect();
            return Err(PartitionError::Heads {
                tp,
                node: n.name.clone(),
                heads: q,
                kv_heads: k,
                possible: possible.join(", "),
            });
        }
    }
    Ok(())
}

/// Assigns stages. `layers_per_stage` overrides the balance by cost.
pub fn partition(
    graph: &Graph,
    pp: usize,
    layers_per_stage: Option<&[usize]>,
    cost: &CostModel,
) -> Result<Graph, PartitionError> {
    let facts = facts(graph).map_err(PartitionError::Internal)?;
    let bound: Vec<bool> = facts.iter().map(|f| !f.free && !f.weight && !f.leaf).collect();
    let [coarse, fine] = layers(graph, &bound, cost);
    let wanted = layers_per_stage.map_or(pp, |given| given.iter().sum());
    let hybrid = fine.len() > 3 * coarse.len() + 2;
    let layers = if coarse.len() < wanted || hybrid { fine } else { coarse };
    if let Some(given) = layers_per_stage {
        let fail = |message: String| Err(PartitionError::BadPartition { given: given.to_vec(), message });
        if given.len() != pp {
            return fail(format!("{} numbers for {pp} stages", given.len()));
        }
        if given.contains(&0) {
            return fail("a stage without a layer".into());
        }
        if given.iter().sum::<usize>() != layers.len() {
            return fail(format!(
                "the numbers add up to {}, but the model has {} layer{}",
                given.iter().sum::<usize>(),
                layers.len(),
                if layers.len() == 1 { "" } else { "s" }
            ));
        }
    }
    if pp == 1 {
        return Ok(graph.clone());
    }
    if pp > layers.len() {
        return Err(PartitionError::TooManyStages { pp, layers: layers.len() });
    }
    let sizes = match layers_per_stage {
        Some(given) => given.to_vec(),
        None => balance(&layers.iter().map(|l| l.cost).collect::<Vec<_>>(), pp),
    };
    // The first node of each stage after the first.
    let mut starts = vec![];
    let mut at = 0;
    for s in &sizes[..pp - 1] {
        at += s;
        starts.push(layers[at].start);
    }
    Ok(cut(graph, &bound, &starts))
}

struct Layer {
    /// The first node.
    start: NodeId,
    cost: u64,
}

/// What lies between two narrow cuts.
struct Segment {
    start: NodeId,
    attention: bool,
    product: bool,
    cost: u64,
}

/// The layers, each from an attention on, and each from a matrix product on. What precedes the first counts for it, what
/// follows the last for that.
fn layers(graph: &Graph, bound: &[bool], cost: &CostModel) -> [Vec<Layer>; 2] {
    // The last reader of each bound value tells how many are live after each node.
    let mut last = vec![0usize; graph.len()];
    for (id, n) in graph.nodes().filter(|(id, _)| bound[id.index()]) {
        for i in &n.inputs {
            last[i.index()] = id.index();
        }
    }
    // A mask or position bias that several layers read is no obstacle to a cut.
    let mut mask = vec![false; graph.len()];
    for (_, n) in graph.nodes().filter(|(_, n)| matches!(n.op, Op::Attention { .. })) {
        n.inputs.iter().skip(3).for_each(|m| mask[m.index()] = true);
    }
    let mut ends = vec![0usize; graph.len()];
    (0..graph.len()).filter(|&i| bound[i] && !mask[i]).for_each(|i| ends[last[i].max(i)] += 1);
    let mut live = 0usize;
    let mut segments: Vec<Segment> = vec![];
    let mut open: Option<Segment> = None;
    for (id, n) in graph.nodes().filter(|(id, _)| bound[id.index()]) {
        let operands: Vec<&[TensorType]> = n.inputs.iter().map(|&i| &graph.node(i).types[..]).collect();
        let s = open.get_or_insert(Segment { start: id, attention: false, product: false, cost: 0 });
        s.attention |= matches!(n.op, Op::Attention { .. });
        s.product |= matches!(n.op, Op::Matmul { .. } | Op::ExpertMatmul { .. } | Op::Attention { .. });
        s.cost += cost.time(&n.op, &operands, &n.types);
        live += usize::from(!mask[id.index()]);
        live -= ends[id.index()];
        if live <= 1 {
            segments.extend(open.take());
        }
    }
    segments.extend(open);
    let from = |begins: &dyn Fn(&Segment) -> bool| {
        let mut layers: Vec<Layer> = vec![];
        let mut before = 0;
        for s in &segments {
            if begins(s) {
                layers.push(Layer { start: s.start, cost: s.cost + std::mem::take(&mut before) });
            } else {
                match layers.last_mut() {
                    Some(l) => l.cost += s.cost,
                    None => before += s.cost,
                }
            }
        }
        layers
    };
    [from(&|s| s.attention), from(&|s| s.product)]
}

/// Numbers of layers per stage with the smallest most expensive stage; among those the most even.
fn balance(costs: &[u64], pp: usize) -> Vec<usize> {
    let n = costs.len();
    let mut sum = vec![0u64; n + 1];
    for (i, c) in costs.iter().enumerate() {
        sum[i + 1] = sum[i] + c;
    }
    // best[k][i]: the first i layers on k stages, as (largest cost, sum of squares of sizes, last size).
    let worst = (u64::MAX, usize::MAX, 0);
    let mut best = vec![vec![worst; n + 1]; pp + 1];
    best[0][0] = (0, 0, 0);
    for k in 1..=pp {
        for i in k..=n {
            for j in k - 1..i {
                let (cost, squares, _) = best[k - 1][j];
                if cost < u64::MAX {
                    let candidate = (cost.max(sum[i] - sum[j]), squares + (i - j) * (i - j), i - j);
                    best[k][i] = best[k][i].min(candidate);
                }
            }
        }
    }
    let mut sizes = vec![];
    let mut i = n;
    for k in (1..=pp).rev() {
        let size = best[k][i].2;
        sizes.push(size);
        i -= size;
    }
    sizes.reverse();
    sizes
}

/// Inserts boundaries before the given nodes.
fn cut(graph: &Graph, bound: &[bool], starts: &[NodeId]) -> Graph {
    let mut out = Graph::new(&graph.name);
    let mut map: Vec<NodeId> = Vec::with_capacity(graph.len());
    let mut stage: Vec<usize> = vec![0; graph.len()];
    let mut crossing: BTreeMap<(NodeId, usize), NodeId> = BTreeMap::new();
    for (id, n) in graph.nodes() {
        let mut node = n.clone();
        if bound[id.index()] {
            let follows = n.inputs.iter().any(|i| bound[i.index()]);
            let here = match n.op {
                // What crosses is a tensor: a result of a tuple is taken where the tuple is made.
                Op::Get { .. } => n.inputs.iter().map(|i| stage[i.index()]).max().unwrap_or(0),
                _ if follows => starts.iter().filter(|s| **s <= id).count(),
                _ => 0,
            };
            stage[id.index()] = here;
            node.stage = Some(here);
            for i in &mut node.inputs {
                let from = stage[i.index()];
                *i = if bound[i.index()] && from < here {
                    *crossing.entry((*i, here)).or_insert_with(|| {
                        let of = graph.node(*i);
                        out.push(crate::ir::Node {
                            op: Op::Boundary { stage: here as i64 },
                            inputs: vec![map[i.index()]],
                            types: of.types.clone(),
                            name: format!("{}.stage{here}", of.name),
                            origin: vec![],
                            rules: vec![],
                            why: None,
                            stage: Some(here),
                        })
                    })
                } else {
                    map[i.index()]
                };
            }
        } else {
            node.inputs.iter_mut().for_each(|i| *i = map[i.index()]);
        }
        map.push(out.push(node));
    }
    for o in graph.outputs() {
        out.push_output(crate::ir::Output { value: map[o.value.index()], ..o.clone() });
    }
    out
}
