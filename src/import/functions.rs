//! Local functions and bodies of control flow, whose nodes join the graph around them under names of their own.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::context::{OpError, Result};
use super::proto::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};

/// Calls of local functions within each other, and bodies within each other, go no deeper.
pub(super) const MAX_DEPTH: usize = 128;
/// Calls of local functions may grow the graph to this many nodes.
pub(super) const MAX_NODES: usize = 1 << 21;

/// Says that functions expand to too many nodes.
pub(super) fn too_large() -> String {
    format!("the local functions expand to more than {MAX_NODES} nodes, which is not supported")
}

/// The versions of operator sets by domain; the default domain is empty.
pub(super) type Opsets = HashMap<String, i64>;

/// Domain, name and overload of a local function.
type Key<'a> = (&'a str, &'a str, &'a str);

/// The local functions of a model.
#[derive(Default)]
pub(super) struct Functions<'a>(HashMap<Key<'a>, &'a FunctionProto>);

fn domain(d: &str) -> &str {
    if d == "ai.onnx" { "" } else { d }
}

impl<'a> Functions<'a> {
    /// All functions; the first of those with one name.
    pub(super) fn new(model: &'a ModelProto) -> Functions<'a> {
        let mut all = HashMap::new();
        for f in &model.functions {
            all.entry((domain(f.domain()), f.name(), f.overload())).or_insert(f);
        }
        Functions(all)
    }

    /// The function that a node calls.
    pub(super) fn called(&self, n: &NodeProto) -> Option<&'a FunctionProto> {
        if self.0.is_empty() {
            return None;
        }
        self.0.get(&(domain(n.domain()), n.op_type(), n.overload())).copied()
    }
}

impl<'a> Functions<'a> {
    /// Number of nodes that nodes stand for; those of bodies and of calls too deep to be inlined aside.
    pub(super) fn expanded(&self, nodes: &[NodeProto]) -> usize {
        self.expanded_from(nodes, &mut HashMap::new(), 0)
    }

    fn expanded_from(&self, nodes: &[NodeProto], known: &mut HashMap<Key<'a>, usize>, depth: usize) -> usize {
        let mut total = nodes.len();
        for f in nodes.iter().filter_map(|n| self.called(n)) {
            let key = (f.domain(), f.name(), f.overload());
            let n = match known.get(&key) {
                Some(n) => *n,
                None if depth >= MAX_DEPTH => 0,
                None => {
                    // A call of itself is found when it is inlined.
                    known.insert(key, 0);
                    let n = self.expanded_from(&f.node, known, depth + 1);
                    known.insert(key, n);
                    n
                }
            };
            total = total.saturating_add(n);
        }
        total
    }

    /// The nodes of the functions that nodes call, directly or not.
    pub(super) fn reachable(&self, nodes: &'a [NodeProto]) -> Vec<&'a NodeProto> {
        let mut seen: HashSet<Key<'a>> = HashSet::new();
        let mut out: Vec<&NodeProto> = vec![];
        let mut next: Vec<&'a FunctionProto> = nodes.iter().filter_map(|n| self.called(n)).collect();
        while let Some(f) = next.pop() {
            if seen.insert((f.domain(), f.name(), f.overload())) {
                out.extend(&f.node);
                next.extend(f.node.iter().filter_map(|n| self.called(n)));
            }
        }
        out
    }
}

/// The versions that a list of operator sets states.
pub(super) fn opsets(list: &[super::proto::OperatorSetIdProto]) -> Opsets {
    list.iter().map(|o| (domain(o.domain()).to_owned(), o.version())).collect()
}

/// Names that values have, so that new ones differ from them.
#[derive(Default)]
pub(super) struct Names(HashSet<String>);

impl Names {
    /// Every name of a model's graph, its functions and the bodies in them.
    pub(super) fn of(model: &ModelProto) -> Names {
        let mut names = Names::default();
        model.graph.iter().for_each(|g| names.graph(g));
        model.functions.iter().for_each(|f| names.nodes(&f.node));
        names
    }

    fn graph(&mut self, g: &GraphProto) {
        self.0.extend(g.input.iter().map(|v| v.name().to_owned()));
        self.0.extend(g.initializer.iter().map(|t| t.name().to_owned()));
        self.nodes(&g.node);
    }

    fn nodes(&mut self, nodes: &[NodeProto]) {
        for n in nodes {
            self.0.extend(n.output.iter().cloned());
            n.attribute.iter().filter_map(|a| a.g.as_ref()).for_each(|g| self.graph(g));
        }
    }

    /// A name that no value has yet.
    pub(super) fn fresh(&mut self, mut base: String) -> String {
        while !self.0.insert(base.clone()) {
            base.push('\'');
        }
        base
    }
}

/// What is inlined.
pub(super) struct Body<'a> {
    /// Formal operands.
    inputs: Vec<&'a str>,
    outputs: Vec<&'a str>,
    nodes: &'a [NodeProto],
    initializers: &'a [TensorProto],
    declared: Vec<&'a ValueInfoProto>,
    /// Attributes of the call of a function; `None` for a body, which may read values around it.
    attrs: Option<HashMap<&'a str, &'a AttributeProto>>,
}

/// The nodes of a body under names that no other value has.
pub(super) struct Inlined<'a> {
    pub(super) nodes: Vec<NodeProto>,
    pub(super) initializers: Vec<(String, &'a TensorProto)>,
    /// Names of the results.
    pub(super) outputs: Vec<String>,
    /// Types that the model states, by new name.
    pub(super) declared: Vec<(String, &'a ValueInfoProto)>,
}

impl<'a> Body<'a> {
    /// The body of a function, with the attributes of a call of it.
    pub(super) fn function(f: &'a FunctionProto, call: &'a NodeProto) -> Body<'a> {
        let given = |name: &str| call.attribute.iter().find(|a| a.name() == name);
        let mut attrs: HashMap<&str, &AttributeProto> = HashMap::new();
        for name in &f.attribute {
            if let Some(a) = given(name) {
                attrs.insert(name, a);
            }
        }
        for default in &f.attribute_proto {
            attrs.insert(default.name(), given(default.name()).unwrap_or(default));
        }
        Body {
            inputs: f.input.iter().map(String::as_str).collect(),
            outputs: f.output.iter().map(String::as_str).collect(),
            nodes: &f.node,
            initializers: &[],
            declared: f.value_info.iter().collect(),
            attrs: Some(attrs),
        }
    }

    /// The body of a control-flow operator.
    pub(super) fn graph(g: &'a GraphProto) -> Body<'a> {
        Body {
            inputs: g.input.iter().map(ValueInfoProto::name).collect(),
            outputs: g.output.iter().map(ValueInfoProto::name).collect(),
            nodes: &g.node,
            initializers: &g.initializer,
            declared: g.value_info.iter().chain(&g.output).collect(),
            attrs: None,
        }
    }

    /// The nodes for operands with the given names; an absent operand has none.
    pub(super) fn inline(&self, names: &mut Names, prefix: &str, operands: &[String]) -> Result<Inlined<'a>> {
        if operands.len() > self.inputs.len() {
            return Err(OpError::from(format!(
                "it has {} operands, {prefix} takes {}",
                operands.len(),
                self.inputs.len()
            )));
        }
        let mut map: HashMap<&str, String> = HashMap::new();
        for (i, formal) in self.inputs.iter().enumerate() {
            map.insert(formal, operands.get(i).cloned().unwrap_or_default());
        }
        let mut initializers = vec![];
        for t in self.initializers {
            let name = names.fresh(format!("{prefix}/{}", t.name()));
            if map.insert(t.name(), name.clone()).is_some() {
                return Err(OpError::from(format!("`{}` is defined twice in {prefix}", t.name())));
            }
            initializers.push((name, t));
        }
        for o in self.nodes.iter().flat_map(|n| &n.output).filter(|o| !o.is_empty()) {
            let name = names.fresh(format!("{prefix}/{o}"));
            if map.insert(o, name).is_some() {
                return Err(OpError::from(format!("`{o}` is defined twice in {prefix}")));
            }
        }
        let rename = Rename { map: &map, attrs: self.attrs.as_ref() };
        let mut nodes = Vec::with_capacity(self.nodes.len());
        for n in self.nodes {
            let mut n = n.clone();
            rename.node(&mut n, &BTreeSet::new())?;
            n.name = Some(format!("{prefix}/{}", super::node_name(&n)));
            for o in n.output.iter_mut().filter(|o| !o.is_empty()) {
                if let Some(name) = map.get(o.as_str()) {
                    o.clone_from(name);
                }
            }
            nodes.push(n);
        }
        let outputs = self.outputs.iter().map(|o| rename.name(o)).collect::<Result<_>>()?;
        let declared = self.declared.iter().filter_map(|v| Some((map.get(v.name())?.clone(), *v))).collect();
        Ok(Inlined { nodes, initializers, outputs, declared })
    }
}

/// New names for the values of a body, and the attributes that it refers to.
struct Rename<'a> {
    map: &'a HashMap<&'a str, String>,
    attrs: Option<&'a HashMap<&'a str, &'a AttributeProto>>,
}

impl Rename<'_> {
    fn name(&self, name: &str) -> Result<String> {
        match self.map.get(name) {
            Some(new) => Ok(new.clone()),
            // A body reads values around it, a function does not.
            None if self.attrs.is_none() => Ok(name.to_owned()),
            None => Err(OpError::from(format!("`{name}` is neither an operand of the function nor a result in it"))),
        }
    }

    /// Renames operands and resolves attributes, results aside. `local` are names of bodies around the node.
    fn node(&self, n: &mut NodeProto, local: &BTreeSet<String>) -> Result<()> {
        for i in n.input.iter_mut().filter(|i| !i.is_empty() && !local.contains(*i)) {
            *i = self.name(i)?;
        }
        let mut kept = Vec::with_capacity(n.attribute.len());
        for mut a in std::mem::take(&mut n.attribute) {
            if !a.ref_attr_name().is_empty() {
                let Some(given) = self.attrs.and_then(|all| all.get(a.ref_attr_name())) else {
                    // The call leaves it out, and so does the node.
                    continue;
                };
                kept.push(AttributeProto { name: a.name.clone(), ..(*given).clone() });
                continue;
            }
            for g in a.g.iter_mut().chain(&mut a.graphs) {
                self.graph(g, local)?;
            }
            kept.push(a);
        }
        n.attribute = kept;
        Ok(())
    }

    fn graph(&self, g: &mut GraphProto, outer: &BTreeSet<String>) -> Result<()> {
        let mut local = outer.clone();
        local.extend(g.input.iter().map(|v| v.name().to_owned()));
        local.extend(g.initializer.iter().map(|t| t.name().to_owned()));
        local.extend(g.node.iter().flat_map(|n| n.output.iter().cloned()));
        for n in &mut g.node {
            self.node(n, &local)?;
        }
        for o in g.output.iter_mut().filter(|o| !local.contains(o.name())) {
            o.name = Some(self.name(o.name())?);
        }
        Ok(())
    }
}

/// Names that the bodies of a node read from around it, in no particular order.
pub(super) fn captured(n: &NodeProto) -> BTreeSet<&str> {
    fn graph<'a>(g: &'a GraphProto, out: &mut BTreeSet<&'a str>) {
        let mut inner = BTreeSet::new();
        for n in &g.node {
            inner.extend(n.input.iter().map(String::as_str));
            n.attribute.iter().filter_map(|a| a.g.as_ref()).for_each(|g| graph(g, &mut inner));
        }
        inner.extend(g.output.iter().map(ValueInfoProto::name));
        g.input.iter().for_each(|v| {
            inner.remove(v.name());
        });
        g.initializer.iter().for_each(|t| {
            inner.remove(t.name());
        });
        g.node.iter().flat_map(|n| &n.output).for_each(|o| {
            inner.remove(o.as_str());
        });
        inner.remove("");
        out.extend(inner);
    }
    let mut out = BTreeSet::new();
    n.attribute.iter().filter_map(|a| a.g.as_ref()).for_each(|g| graph(g, &mut out));
    out
}

/// Number of nodes of a graph, those of bodies included.
pub(super) fn size(g: &GraphProto) -> usize {
    let inner = |n: &NodeProto| n.attribute.iter().filter_map(|a| a.g.as_ref()).map(size).sum::<usize>();
    g.node.iter().map(|n| 1 + inner(n)).sum()
}
