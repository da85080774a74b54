//! The text form of a graph, and its parser. `parse(print(g))` gives `g` again.
//!
//! ```text
//! graph "name" {
//!   input %x: f32[batch, 64]
//!   weight %w: f32[64]
//!   %y: f32[batch, 64] = rms_norm(%x, %w) {eps = 1e-6}   ; node_3
//!   output "y" = %y
//! }
//! ```
//! A comment runs from `;` to the end of the line. `@1` after a type is the pipeline stage.

use std::collections::HashMap;
use std::fmt::Write as _;

use sinter_runtime::attr::split_top_level;

use super::{Attr, DType, Dim, Graph, MeshAxis, Node, NodeId, Op, Output, Part, TensorType, op};

/// A line that cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line}: {message}")]
pub struct TextError {
    /// From 1.
    pub line: usize,
    /// What is wrong with it.
    pub message: String,
}

/// The text of a graph.
pub fn print(graph: &Graph) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "graph {} {{", Attr::Str(graph.name.clone()));
    for id in graph.ids() {
        let _ = writeln!(out, "  {}", print_node(graph, id));
    }
    for o in graph.outputs() {
        let _ = write!(out, "  output {} = {}", Attr::Str(o.name.clone()), value_name(&graph.node(o.value).name));
        if o.state {
            out.push_str(" state");
        }
        if let Some(p) = o.part {
            let _ = write!(out, " parts {} of axis {} over {}", p.parts, p.dim, p.axis.name());
        }
        out.push('\n');
    }
    out.push_str("}\n");
    out
}

/// The line of a node, without indentation.
pub fn print_node(graph: &Graph, id: NodeId) -> String {
    let node = graph.node(id);
    let name = value_name(&node.name);
    let types: Vec<String> = node.types.iter().map(TensorType::to_string).collect();
    let stage = node.stage.map_or(String::new(), |s| format!(" @{s}"));
    match &node.op {
        Op::Input { name: n, .. } if *n == node.name => format!("input {name}: {}", types[0]),
        Op::Weight { name: n, .. } if *n == node.name => format!("weight {name}: {}", types[0]),
        op => {
            let inputs: Vec<String> = node.inputs.iter().map(|&i| value_name(&graph.node(i).name)).collect();
            let text = op.to_string();
            let (head, attrs) = text.split_once(' ').unwrap_or((&text, ""));
            let space = if attrs.is_empty() { "" } else { " " };
            let types = if types.len() == 1 { types[0].clone() } else { format!("({})", types.join(", ")) };
            format!("{name}: {types}{stage} = {head}({}){space}{attrs}", inputs.join(", "))
        }
    }
}

fn plain(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '.' | '/' | ':' | '-' | '#'))
}

/// How a value is written: `%name`, in quotes where the name holds other characters.
pub fn value_name(name: &str) -> String {
    if plain(name) { format!("%{name}") } else { format!("%{}", Attr::Str(name.to_owned())) }
}

/// Reads the form that `print` writes.
pub fn parse(text: &str) -> Result<Graph, TextError> {
    let mut p = Reader { graph: Graph::new(""), names: HashMap::new(), line: 0 };
    let mut open = None;
    for (i, raw) in text.lines().enumerate() {
        p.line = i + 1;
        let line = strip_comment(raw).trim();
        if line.is_empty() {
            continue;
        }
        match open {
            None => {
                let head = line.strip_prefix("graph").and_then(|l| l.trim().strip_suffix('{'));
                let name = head.and_then(|h| serde_json::from_str::<String>(h.trim()).ok());
                p.graph = Graph::new(&name.ok_or_else(|| p.error("expected `graph \"name\" {`"))?);
                open = Some(true);
            }
            Some(true) if line == "}" => open = Some(false),
            Some(true) => p.statement(line)?,
            Some(false) => return Err(p.error("nothing may follow the closing `}`")),
        }
    }
    match open {
        Some(false) => Ok(p.graph),
        _ => Err(p.error("the graph is not closed with `}`")),
    }
}

fn strip_comment(line: &str) -> &str {
    let mut quoted = false;
    let mut escaped = false;
    for (i, c) in line.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ';' if !quoted => return &line[..i],
            _ => {}
        }
    }
    line
}

struct Reader {
    graph: Graph,
    names: HashMap<String, NodeId>,
    line: usize,
}

type Result1<T> = Result<T, TextError>;

impl Reader {
    fn error(&self, message: impl Into<String>) -> TextError {
        TextError { line: self.line, message: message.into() }
    }

    fn statement(&mut self, line: &str) -> Result1<()> {
        if let Some(rest) = line.strip_prefix("input ") {
            let (name, ty) = self.declaration(rest)?;
            let id = self.graph.input(&name, ty);
            return self.define(name, id);
        }
        if let Some(rest) = line.strip_prefix("weight ") {
            let (name, ty) = self.declaration(rest)?;
            let id = self.graph.weight(&name, ty);
            return self.define(name, id);
        }
        if let Some(rest) = line.strip_prefix("output ") {
            return self.output(rest);
        }
        let (name, rest) = self.name(line)?;
        let rest = rest.trim().strip_prefix(':').ok_or_else(|| self.error("expected `:` after the name"))?;
        let (head, call) = rest.split_once(" = ").ok_or_else(|| self.error("expected ` = `"))?;
        let (types, stage) = match head.rsplit_once('@') {
            Some((t, s)) => {
                (t.trim(), Some(s.trim().parse().map_err(|_| self.error(format!("`@{}` is no stage", s.trim())))?))
            }
            None => (head.trim(), None),
        };
        let types: Vec<TensorType> = match types.strip_prefix('(').and_then(|t| t.strip_suffix(')')) {
            Some(list) => split_top_level(list).into_iter().map(|t| self.tensor_type(t)).collect::<Result1<_>>()?,
            None => vec![self.tensor_type(types)?],
        };
        let open = call.find('(').ok_or_else(|| self.error("expected `op(...)`"))?;
        let close = matching(call, open).ok_or_else(|| self.error("the operand list is not closed"))?;
        let args = call[open + 1..close].trim();
        let mut inputs = vec![];
        for a in if args.is_empty() { vec![] } else { split_top_level(args) } {
            let (n, _) = self.name(a.trim())?;
            inputs.push(*self.names.get(&n).ok_or_else(|| self.error(format!("`%{n}` is not defined above")))?);
        }
        let op = self.op(call[..open].trim(), call[close + 1..].trim())?;
        let node = Node { op, inputs, types, name: name.clone(), origin: vec![], rules: vec![], why: None, stage };
        let id = self.graph.push(node);
        self.define(name, id)
    }

    fn define(&mut self, name: String, id: NodeId) -> Result1<()> {
        match self.names.insert(name.clone(), id) {
            None => Ok(()),
            Some(_) => Err(self.error(format!("`%{name}` is defined twice"))),
        }
    }

    fn declaration(&self, rest: &str) -> Result1<(String, TensorType)> {
        let (name, rest) = self.name(rest.trim())?;
        let ty = rest.trim().strip_prefix(':').ok_or_else(|| self.error("expected `:` after the name"))?;
        Ok((name, self.tensor_type(ty)?))
    }

    fn output(&mut self, rest: &str) -> Result1<()> {
        let (name, rest) = rest.split_once(" = ").ok_or_else(|| self.error("expected `output \"name\" = %value`"))?;
        let name =
            serde_json::from_str::<String>(name.trim()).map_err(|_| self.error("the output's name is not quoted"))?;
        let (value, rest) = self.name(rest.trim())?;
        let value = *self.names.get(&value).ok_or_else(|| self.error(format!("`%{value}` is not defined above")))?;
        let words: Vec<&str> = rest.split_whitespace().collect();
        let (state, words) = match words.split_first() {
            Some((&"state", rest)) => (true, rest),
            _ => (false, &words[..]),
        };
        let part = match words {
            [] => None,
            ["parts", parts, "of", "axis", dim, "over", axis] => {
                let bad = || self.error("expected `parts N of axis N over tp`");
                Some(Part {
                    parts: parts.parse().map_err(|_| bad())?,
                    dim: dim.parse().map_err(|_| bad())?,
                    axis: MeshAxis::parse(axis).ok_or_else(bad)?,
                })
            }
            _ => return Err(self.error(format!("unexpected `{}`", words.join(" ")))),
        };
        self.graph.push_output(Output { name, value, state, part });
        Ok(())
    }

    /// The name at the start of the text, and what follows.
    fn name<'a>(&self, text: &'a str) -> Result1<(String, &'a str)> {
        let body = text.strip_prefix('%').ok_or_else(|| self.error(format!("expected `%name`, found `{text}`")))?;
        if body.starts_with('"') {
            let mut de = serde_json::Deserializer::from_str(body).into_iter::<String>();
            return match de.next() {
                Some(Ok(s)) => Ok((s, &body[de.byte_offset()..])),
                _ => Err(self.error("the quoted name is not closed")),
            };
        }
        // A colon belongs to the name unless a space follows it.
        let end = body
            .char_indices()
            .find(|&(i, c)| !plain(&c.to_string()) || c == ':' && body[i + 1..].starts_with([' ', '\t']))
            .map_or(body.len(), |(i, _)| i);
        if end == 0 {
            return Err(self.error("empty name"));
        }
        Ok((body[..end].to_owned(), &body[end..]))
    }

    fn tensor_type(&self, text: &str) -> Result1<TensorType> {
        let text = text.trim();
        let bad = || self.error(format!("`{text}` is not a type such as `f32[batch, 64]`"));
        let (dtype, dims) = text.split_once('[').ok_or_else(bad)?;
        let dims = dims.strip_suffix(']').ok_or_else(bad)?.trim();
        let shape = if dims.is_empty() { vec![] } else { split_top_level(dims) };
        Ok(TensorType {
            dtype: DType::parse(dtype.trim()).ok_or_else(bad)?,
            shape: shape.into_iter().map(Dim::parse).collect::<Result<_, _>>().map_err(|e| self.error(e))?,
        })
    }

    fn op(&self, name: &str, attrs: &str) -> Result1<Op> {
        let info = op::info(name).ok_or_else(|| self.error(format!("no operator is called `{name}`")))?;
        let mut given: HashMap<&str, &str> = HashMap::new();
        if !attrs.is_empty() {
            let body = attrs.strip_prefix('{').and_then(|a| a.strip_suffix('}'));
            let body = body.ok_or_else(|| self.error(format!("expected `{{attr = value}}`, found `{attrs}`")))?;
            for item in split_top_level(body) {
                let (k, v) = item
                    .split_once('=')
                    .ok_or_else(|| self.error(format!("expected `attr = value`, found `{item}`")))?;
                if !info.attrs.iter().any(|a| a.name == k.trim()) {
                    return Err(self.error(format!("`{name}` has no attribute `{}`", k.trim())));
                }
                given.insert(k.trim(), v);
            }
        }
        let values: Result1<Vec<Attr>> = info
            .attrs
            .iter()
            .map(|a| match given.get(a.name) {
                Some(text) => Attr::parse(a.kind, text).ok_or_else(|| {
                    self.error(format!("`{}` cannot be `{}` (expected {:?})", a.name, text.trim(), a.kind))
                }),
                None => a.default.clone().ok_or_else(|| self.error(format!("`{name}` lacks attribute `{}`", a.name))),
            })
            .collect();
        Op::from_attrs(name, &values?).ok_or_else(|| self.error(format!("`{name}` is malformed")))
    }
}

fn matching(text: &str, open: usize) -> Option<usize> {
    let mut depth = 0;
    let (mut quoted, mut escaped) = (false, false);
    for (i, c) in text.char_indices().skip_while(|(i, _)| *i < open) {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if quoted => {}
            '(' => depth += 1,
            ')' => {
                depth -= 1;
                if depth == 0 {
                    return Some(i);
                }
            }
            _ => {}
        }
    }
    None
}
