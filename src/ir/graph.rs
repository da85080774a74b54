//! `Graph`: the program between any two stages of the compiler.

use petgraph::Direction;
use petgraph::graph::{DiGraph, NodeIndex};

use super::{InferError, Op, Part, TensorType, infer};

/// Index of a node. A node may only refer to earlier nodes, so index order is a topological order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

impl NodeId {
    /// As an index into per-node tables.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// An operator applied to values. A node with several results is a tuple, read by `get`.
#[derive(Clone, Debug)]
pub struct Node {
    /// What is computed.
    pub op: Op,
    /// The operands, all earlier nodes.
    pub inputs: Vec<NodeId>,
    /// One type per result, as `infer` gives them.
    pub types: Vec<TensorType>,
    /// Unique in the graph; where the model names the value, that name.
    pub name: String,
    /// Names of the ONNX nodes whose work this is.
    pub origin: Vec<String>,
    /// Names of the rules that made it.
    pub rules: Vec<String>,
    /// The entry of the compilation's record that derives it.
    pub why: Option<u32>,
    /// The pipeline stage, once the graph is partitioned; `None` where every stage may compute it.
    pub stage: Option<usize>,
}

impl Node {
    /// The type of a node with one result.
    pub fn ty(&self) -> &TensorType {
        &self.types[0]
    }
}

/// A named result of the graph.
#[derive(Clone, Debug)]
pub struct Output {
    /// The model's name for it.
    pub name: String,
    /// The value.
    pub value: NodeId,
    /// Whether it is a cache that the caller feeds back, so that its parts may stay on their ranks.
    pub state: bool,
    /// How the value is cut over the ranks; `None` where every rank holds the whole.
    pub part: Option<Part>,
}

/// A program: nodes in topological order, and the results.
///
/// ```
/// use sinter::ir::{DType, Dim, Graph, Op, TensorType};
/// let mut g = Graph::new("example");
/// let ty = TensorType::new(DType::F32, vec![Dim::sym("n"), Dim::from(8)]);
/// let x = g.input("x", ty);
/// let y = g.add("y", Op::Neg {}, &[x]).unwrap();
/// g.output("y", y);
/// assert_eq!(sinter::ir::print(&g).lines().count(), 5);
/// ```
#[derive(Clone, Debug)]
pub struct Graph {
    /// Name of the model.
    pub name: String,
    /// Edge weights are operand positions.
    nodes: DiGraph<Node, u32>,
    outputs: Vec<Output>,
}

impl Graph {
    /// A graph without nodes.
    pub fn new(name: &str) -> Graph {
        Graph { name: name.to_owned(), nodes: DiGraph::new(), outputs: vec![] }
    }

    /// Appends a node whose types are inferred. The name is made unique by a suffix where it is taken.
    pub fn add(&mut self, name: &str, op: Op, inputs: &[NodeId]) -> Result<NodeId, InferError> {
        let operands: Vec<&[TensorType]> = inputs.iter().map(|&i| &self.node(i).types[..]).collect();
        let types = infer(&op, &operands)?;
        Ok(self.push(Node {
            op,
            inputs: inputs.to_vec(),
            types,
            name: name.to_owned(),
            origin: vec![],
            rules: vec![],
            why: None,
            stage: None,
        }))
    }

    /// Appends a node as it is; `verify` finds out whether it is right.
    pub fn push(&mut self, node: Node) -> NodeId {
        let inputs = node.inputs.clone();
        let id = self.nodes.add_node(node);
        for (position, i) in inputs.iter().enumerate() {
            self.nodes.add_edge(NodeIndex::new(i.index()), id, position as u32);
        }
        NodeId(id.index() as u32)
    }

    /// Appends a graph input.
    pub fn input(&mut self, name: &str, ty: TensorType) -> NodeId {
        self.leaf(name, Op::Input { name: name.to_owned(), dtype: ty.dtype, shape: ty.shape.clone() }, ty)
    }

    /// Appends a weight.
    pub fn weight(&mut self, name: &str, ty: TensorType) -> NodeId {
        self.leaf(name, Op::Weight { name: name.to_owned(), dtype: ty.dtype, shape: ty.shape.clone() }, ty)
    }

    fn leaf(&mut self, name: &str, op: Op, ty: TensorType) -> NodeId {
        let name = name.to_owned();
        self.push(Node {
            op,
            inputs: vec![],
            types: vec![ty],
            name,
            origin: vec![],
            rules: vec![],
            why: None,
            stage: None,
        })
    }

    /// Declares a value that every rank holds whole as a result.
    pub fn output(&mut self, name: &str, value: NodeId) {
        self.push_output(Output { name: name.to_owned(), value, state: false, part: None });
    }

    /// Declares a result.
    pub fn push_output(&mut self, output: Output) {
        self.outputs.push(output);
    }

    /// The node with an id.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[NodeIndex::new(id.index())]
    }

    /// The node with an id, to annotate it. Operands must not be changed.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[NodeIndex::new(id.index())]
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.node_count()
    }

    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every node in topological order.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = NodeId> + use<> {
        (0..self.len() as u32).map(NodeId)
    }

    /// Every node with its id, in topological order.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = (NodeId, &Node)> {
        self.nodes.node_indices().map(|i| (NodeId(i.index() as u32), &self.nodes[i]))
    }

    /// The nodes that read a value, in topological order, each once.
    pub fn users(&self, id: NodeId) -> Vec<NodeId> {
        let mut out: Vec<NodeId> = self
            .nodes
            .neighbors_directed(NodeIndex::new(id.index()), Direction::Outgoing)
            .map(|n| NodeId(n.index() as u32))
            .collect();
        out.sort_unstable();
        out.dedup();
        out
    }

    /// The results in the model's order.
    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// The results, to annotate them.
    pub fn outputs_mut(&mut self) -> &mut [Output] {
        &mut self.outputs
    }

    /// Exchanges all results for others.
    pub fn replace_outputs(&mut self, outputs: Vec<Output>) {
        self.outputs = outputs;
    }

    /// A copy without the nodes that no output needs. Inputs stay, because the caller supplies them.
    pub fn without_dead_nodes(&self) -> Graph {
        let mut live = vec![false; self.len()];
        for o in &self.outputs {
            live[o.value.index()] = true;
        }
        for (id, node) in self.nodes().rev() {
            if matches!(node.op, Op::Input { .. }) {
                live[id.index()] = true;
            }
            if live[id.index()] {
                for i in &node.inputs {
                    live[i.index()] = true;
                }
            }
        }
        let mut out = Graph::new(&self.name);
        let mut map = vec![NodeId(u32::MAX); self.len()];
        for (id, node) in self.nodes().filter(|(id, _)| live[id.index()]) {
            let mut node = node.clone();
            for i in &mut node.inputs {
                *i = map[i.index()];
            }
            map[id.index()] = out.push(node);
        }
        for o in &self.outputs {
            out.push_output(Output { value: map[o.value.index()], ..o.clone() });
        }
        out
    }
}

/// A name that `taken` does not have, which it has from then on: `base`, or `base.2` and so on.
pub fn unique_name(taken: &mut std::collections::BTreeSet<String>, base: &str) -> String {
    let mut name = base.to_owned();
    let mut i = 1;
    while !taken.insert(name.clone()) {
        i += 1;
        name = format!("{base}.{i}");
    }
    name
}
