//! Builds the network of a row as an ONNX model, and computes it in f64.

use std::collections::BTreeMap;

use prost::Message as _;
use sinter::import::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, attribute_proto::AttributeType, tensor_shape_proto, type_proto,
};
use sinter::ir::{DType, Literal};
use sinter_runtime::tensor::Tensor;

use super::rows::{Gamma, Kind, Row};

/// Width of the residual stream: its inverse and root are no numbers of the machine.
pub(crate) const WIDTH: usize = 12;
/// Width inside of a branch.
const INNER: usize = 32;
/// Norms of a network.
pub(crate) const NORMS: usize = 5;
/// Residual sums of a network.
pub(crate) const SUMS: usize = 4;
/// Rows of the example: two sequences of three tokens.
const TOKENS: [usize; 2] = [2, 3];

/// Communication in front of the residual sums.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Comm {
    None,
    /// `com.microsoft::AllReduce`.
    AllReduce,
    /// TensorRT's operator.
    DistCollective,
}

/// Numbers that look random, in [-1, 1), and that f16 and bf16 hold exactly.
fn numbers(seed: u64, n: usize) -> Vec<f64> {
    let mut s = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        ((s >> 40) % 64) as f64 / 32.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn gamma(k: usize) -> Vec<f64> {
    numbers(100 + k as u64, WIDTH).iter().map(|v| 1.0 + v / 2.0).collect()
}

fn beta(k: usize) -> Vec<f64> {
    numbers(200 + k as u64, WIDTH)
}

fn bias(k: usize) -> Vec<f64> {
    numbers(300 + k as u64, WIDTH)
}

/// The two matrices of a branch.
fn matrices(k: usize) -> [Vec<f64>; 2] {
    let scaled = |seed: usize| numbers(seed as u64, WIDTH * INNER).iter().map(|v| v / 4.0).collect();
    [scaled(400 + k), scaled(500 + k)]
}

/// The inputs of a row, and its output when a sum over the ranks multiplies by their number.
pub(crate) fn example(row: &Row, ranks: usize) -> (BTreeMap<String, Tensor>, Vec<f64>) {
    let x = numbers(7, TOKENS[0] * TOKENS[1] * WIDTH);
    let mut shape = TOKENS.to_vec();
    if row.rank == 2 {
        shape = vec![TOKENS[0] * TOKENS[1]];
    }
    shape.push(WIDTH);
    let data: Vec<u8> = x.iter().flat_map(|v| Literal::scalar(row.ty, *v).data).collect();
    let inputs = BTreeMap::from([("x".to_owned(), Tensor::from_bytes(row.ty, &shape, &data).unwrap())]);
    let y = x.chunks(WIDTH).flat_map(|x| network(row, x, ranks as f64)).collect();
    (inputs, y)
}

fn network(row: &Row, x: &[f64], ranks: f64) -> Vec<f64> {
    let mut r = x.to_vec();
    let mut n = row.norm_of(&r, &weight(row, 0), &bias_of_norm(row, 0));
    for k in 0..SUMS {
        let [a, b] = matrices(k);
        let h: Vec<f64> = product(&n, &a, INNER).iter().map(|v| v.tanh()).collect();
        let m = product(&h, &b, WIDTH);
        let c = if row.bias { bias(k) } else { vec![0.0; WIDTH] };
        for i in 0..WIDTH {
            r[i] += row.scale * ranks * m[i] + c[i];
        }
        n = row.norm_of(&r, &weight(row, k + 1), &bias_of_norm(row, k + 1));
    }
    n
}

fn weight(row: &Row, k: usize) -> Vec<f64> {
    match row.gamma {
        Gamma::Vector => gamma(k),
        Gamma::OnePlus => gamma(k).iter().map(|g| 1.0 + g).collect(),
        Gamma::Number(g) => vec![g; WIDTH],
    }
}

fn bias_of_norm(row: &Row, k: usize) -> Vec<f64> {
    if row.beta { beta(k) } else { vec![0.0; WIDTH] }
}

fn product(x: &[f64], m: &[f64], columns: usize) -> Vec<f64> {
    (0..columns).map(|j| x.iter().enumerate().map(|(i, v)| v * m[i * columns + j]).sum()).collect()
}

impl Row {
    /// The norm that the row means, of one token.
    fn norm_of(&self, x: &[f64], w: &[f64], b: &[f64]) -> Vec<f64> {
        let n = x.len() as f64;
        let mean = |v: &dyn Fn(f64) -> f64| x.iter().map(|x| v(*x)).sum::<f64>() / n;
        let centre = if self.kind == Kind::Layer { mean(&|x| x) } else { 0.0 };
        let d: Vec<f64> = x.iter().map(|x| x - centre).collect();
        let square = d.iter().map(|d| d * d).sum::<f64>();
        let divisor = match self.other {
            Some(f) => f(x, self.eps),
            None => (square / n + self.eps).sqrt(),
        };
        (0..x.len()).map(|i| d[i] / divisor * w[i] + b[i]).collect()
    }
}

/// Whether two results agree as far as the row's element type allows.
pub(crate) fn close(row: &Row, found: &[f64], expected: &[f64]) -> Result<(), String> {
    let allowed = match row.ty {
        DType::F16 => 2e-2,
        DType::BF16 => 1.5e-1,
        _ => 2e-5,
    };
    if found.len() != expected.len() {
        return Err(format!("{} elements, not {}", found.len(), expected.len()));
    }
    let scale = expected.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let numbers = found.iter().all(|v| v.is_finite());
    if numbers && worst <= allowed * scale {
        Ok(())
    } else {
        Err(format!("values differ by {worst:.3e}, {:.3e} is allowed", allowed * scale))
    }
}

/// A network under construction.
pub(crate) struct Net<'a> {
    row: &'a Row,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    counter: usize,
}

fn onnx_type(ty: DType) -> i32 {
    match ty {
        DType::F64 => 11,
        DType::F32 => 1,
        DType::F16 => 10,
        DType::BF16 => 16,
        DType::I64 => 7,
        DType::Bool => 9,
        other => panic!("no tensor of {other}"),
    }
}

fn tensor(name: &str, ty: DType, dims: &[usize], values: &[f64]) -> TensorProto {
    let bytes: Vec<u8> = values.iter().flat_map(|v| Literal::scalar(ty, *v).data).collect();
    TensorProto {
        name: Some(name.to_owned()),
        dims: dims.iter().map(|&d| d as i64).collect(),
        data_type: Some(onnx_type(ty)),
        raw_data: Some(bytes.into()),
        ..TensorProto::default()
    }
}

fn value(name: &str, ty: DType, rank: usize) -> ValueInfoProto {
    use tensor_shape_proto::{Dimension, dimension::Value};
    let dim = |value| Dimension { value: Some(value), ..Dimension::default() };
    let names: &[&str] = if rank == 2 { &["tokens"] } else { &["batch", "seq"] };
    let mut dims: Vec<Dimension> = names.iter().map(|n| dim(Value::DimParam((*n).to_owned()))).collect();
    dims.push(dim(Value::DimValue(WIDTH as i64)));
    let tensor = type_proto::Tensor { elem_type: Some(onnx_type(ty)), shape: Some(TensorShapeProto { dim: dims }) };
    let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(ty), ..ValueInfoProto::default() }
}

/// An attribute: a number, a list of integers in brackets, or text.
fn attribute(name: &str, text: &str) -> AttributeProto {
    let mut a = AttributeProto { name: Some(name.to_owned()), ..AttributeProto::default() };
    let kind = if let Some(list) = text.strip_prefix('[') {
        a.ints = list.trim_end_matches(']').split_whitespace().map(|v| v.parse().unwrap()).collect();
        AttributeType::Ints
    } else if let Ok(i) = text.parse::<i64>() {
        a.i = Some(i);
        AttributeType::Int
    } else if let Ok(f) = text.parse::<f32>() {
        a.f = Some(f);
        AttributeType::Float
    } else {
        a.s = Some(text.to_owned().into_bytes());
        AttributeType::String
    };
    a.r#type = Some(kind as i32);
    a
}

/// Names of values, by the names in a script.
type Scope = BTreeMap<String, String>;

impl<'a> Net<'a> {
    /// The network of a row.
    pub(crate) fn of(row: &'a Row, comm: Comm, tp: usize) -> Net<'a> {
        let mut net = Net { row, nodes: vec![], initializers: vec![], counter: 0 };
        let mut r = "x".to_owned();
        let scope = net.parameters(0, &[("x", &r)]);
        let mut n = net.script(row.norm, scope)["y"].clone();
        for k in 0..SUMS {
            let m = net.branch(k, &n);
            let m = net.communicate(comm, tp, m);
            let scope = net.parameters(k + 1, &[("m", &m), ("r", &r)]);
            if let Some(joint) = row.joint {
                let made = net.script(joint, scope);
                (n, r) = (made["y"].clone(), made["s"].clone());
            } else {
                r = net.script(row.sum, scope)["s"].clone();
                let scope = net.parameters(k + 1, &[("x", &r)]);
                n = net.script(row.norm, scope)["y"].clone();
            }
        }
        net.push("Identity", &[&n], &["y"], &[]);
        net
    }

    /// The model file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let graph = GraphProto {
            name: Some("spelling".to_owned()),
            node: self.nodes.clone(),
            initializer: self.initializers.clone(),
            input: vec![value("x", self.row.ty, self.row.rank)],
            output: vec![value("y", self.row.ty, self.row.rank)],
            ..GraphProto::default()
        };
        let opset =
            |domain: &str, version| OperatorSetIdProto { domain: Some(domain.to_owned()), version: Some(version) };
        let opset_import = vec![opset("", self.row.opset), opset("com.microsoft", 1)];
        ModelProto { ir_version: Some(10), opset_import, graph: Some(graph), ..ModelProto::default() }.encode_to_vec()
    }

    fn push(&mut self, op: &str, inputs: &[&str], outputs: &[&str], attrs: &[(&str, String)]) {
        let (domain, op) =
            op.split_once("::").map_or(("", op), |(d, o)| (if d == "ms" { "com.microsoft" } else { d }, o));
        self.nodes.push(NodeProto {
            name: Some(format!("n{}", self.nodes.len())),
            domain: Some(domain.to_owned()),
            op_type: Some(op.to_owned()),
            input: inputs.iter().map(|s| (*s).to_owned()).collect(),
            output: outputs.iter().map(|s| (*s).to_owned()).collect(),
            attribute: attrs.iter().map(|(n, t)| attribute(n, t)).collect(),
            ..NodeProto::default()
        });
    }

    fn fresh(&mut self) -> String {
        self.counter += 1;
        format!("v{}", self.counter)
    }

    fn node(&mut self, op: &str, inputs: &[&str], attrs: &[(&str, String)]) -> String {
        let out = self.fresh();
        self.push(op, inputs, &[&out], attrs);
        out
    }

    fn weight(&mut self, ty: DType, dims: &[usize], values: &[f64]) -> String {
        let name = format!("w{}", self.initializers.len());
        self.initializers.push(tensor(&name, ty, dims, values));
        name
    }

    /// A constant: every other one is a node.
    fn constant(&mut self, ty: DType, dims: &[usize], values: &[f64]) -> String {
        self.counter += 1;
        if self.counter.is_multiple_of(2) {
            return self.weight(ty, dims, values);
        }
        let out = self.fresh();
        self.push("Constant", &[], &[&out], &[]);
        let t = tensor("", ty, dims, values);
        let kind = Some(AttributeType::Tensor as i32);
        let value =
            AttributeProto { name: Some("value".to_owned()), t: Some(t), r#type: kind, ..AttributeProto::default() };
        if let Some(n) = self.nodes.last_mut() {
            n.attribute.push(value);
        }
        out
    }

    /// x to tanh(x a) b.
    fn branch(&mut self, k: usize, x: &str) -> String {
        let [a, b] = matrices(k);
        let ty = self.row.ty;
        let a = self.weight(ty, &[WIDTH, INNER], &a);
        let b = self.weight(ty, &[INNER, WIDTH], &b);
        let h = self.node("MatMul", &[x, &a], &[]);
        let h = self.node("Tanh", &[&h], &[]);
        self.node("MatMul", &[&h, &b], &[])
    }

    fn communicate(&mut self, comm: Comm, tp: usize, m: String) -> String {
        let text = |s: &str| s.to_owned();
        match comm {
            Comm::None => m,
            Comm::AllReduce => self.node("ms::AllReduce", &[&m], &[]),
            Comm::DistCollective => {
                let attrs = [
                    ("collective_operation", text("all_reduce")),
                    ("reduce_op", text("sum")),
                    ("root", text("-1")),
                    ("nb_rank", tp.to_string()),
                ];
                self.node("DistCollective", &[&m], &attrs)
            }
        }
    }

    /// The names that a script may use beside its own: parameters of norm and sum number `k`.
    fn parameters(&mut self, k: usize, more: &[(&str, &str)]) -> Scope {
        let row = self.row;
        let dims = [vec![1; row.gamma_axes - 1], vec![WIDTH]].concat();
        let mut scope: Scope = more.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let mut all = vec![("b", row.gamma_ty, dims.clone(), beta(k)), ("w", row.gamma_ty, dims, gamma(k))];
        all.push(("c", row.ty, vec![WIDTH], bias(k.max(1) - 1)));
        for (name, ty, dims, values) in all {
            let w = self.weight(ty, &dims, &values);
            scope.insert(name.to_owned(), w);
        }
        scope
    }

    /// Adds the nodes of a script: `name = Op(operand, ..){attribute=value}` with semicolons in between.
    fn script(&mut self, text: &str, mut scope: Scope) -> Scope {
        for line in text.split(';').map(str::trim).filter(|l| !l.is_empty()) {
            let (names, call) = line.split_once('=').unwrap_or_else(|| panic!("{line}"));
            let (op, rest) = call.trim().split_once('(').unwrap_or_else(|| panic!("{line}"));
            let (args, rest) = rest.split_once(')').unwrap_or_else(|| panic!("{line}"));
            let args: Vec<String> = args.split(',').map(|a| self.operand(a.trim(), &scope)).collect();
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let attrs: Vec<(String, String)> = rest
                .trim()
                .trim_matches(['{', '}'])
                .split(',')
                .filter_map(|a| a.split_once('='))
                .map(|(n, v)| {
                    (n.trim().to_owned(), if v == "eps" { format!("{:e}", self.row.eps) } else { v.to_owned() })
                })
                .collect();
            let attrs: Vec<(&str, String)> = attrs.iter().map(|(n, v)| (n.as_str(), v.clone())).collect();
            let names: Vec<&str> = names.split(',').map(str::trim).collect();
            if let [name] = names[..] {
                let made = self.call(op, &args, &attrs);
                scope.insert(name.to_owned(), made);
                continue;
            }
            let outs: Vec<String> =
                names.iter().map(|n| if n.is_empty() { String::new() } else { self.fresh() }).collect();
            self.push(op, &args, &outs.iter().map(String::as_str).collect::<Vec<_>>(), &attrs);
            scope.extend(names.iter().map(|n| (*n).to_owned()).zip(outs));
        }
        scope
    }

    /// A name of the script, or a constant `number[:type][shape]`.
    fn operand(&mut self, text: &str, scope: &Scope) -> String {
        if text.is_empty() {
            return String::new();
        }
        if let Some(name) = scope.get(text) {
            return name.clone();
        }
        let (text, dims) = text.split_once('[').map_or((text, ""), |(t, d)| (t, d.trim_end_matches(']')));
        let dims: Vec<usize> = dims.split_whitespace().map(|d| d.parse().unwrap()).collect();
        let (text, ty) = text.split_once(':').unwrap_or((text, ""));
        let ty = match ty {
            "" => self.row.ty,
            "f" => DType::F32,
            "d" => DType::F64,
            "h" => DType::F16,
            "i" => DType::I64,
            "bool" => DType::Bool,
            other => panic!("type {other}"),
        };
        let n = WIDTH as f64;
        let value = match text {
            "eps" => self.row.eps,
            "N" => n,
            "1/N" => 1.0 / n,
            "N*eps" => n * self.row.eps,
            "rootN" => n.sqrt(),
            "1/rootN" => 1.0 / n.sqrt(),
            "N-1" => n - 1.0,
            other => other.parse().unwrap_or_else(|_| panic!("`{other}` is no number")),
        };
        self.constant(ty, &dims, &vec![value; dims.iter().product()])
    }

    /// A node, or several under a short name.
    fn call(&mut self, op: &str, args: &[&str], attrs: &[(&str, String)]) -> String {
        let row = self.row;
        let to = |ty: DType| [("to", onnx_type(ty).to_string())];
        let list = |net: &mut Self, values: &[f64]| net.constant(DType::I64, &[values.len()], values);
        let text = |s: &str| s.to_owned();
        match op {
            // Reductions over the last axis; with 0 it is dropped.
            "Mean" | "Mean0" | "Sum" | "Sum0" | "SumSquare" | "L2" | "L20" => {
                let keep = ("keepdims", text(if op.ends_with('0') { "0" } else { "1" }));
                let onnx = format!("Reduce{}", op.trim_end_matches('0'));
                let since = if op.starts_with("Sum") && !op.starts_with("SumSquare") { 13 } else { 18 };
                if row.opset < since {
                    return self.node(&onnx, args, &[("axes", text("[-1]")), keep]);
                }
                let axes = list(self, &[-1.0]);
                self.node(&onnx, &[args[0], &axes], &[keep])
            }
            "F" => self.node("Cast", args, &to(DType::F32)),
            "T" => self.node("Cast", args, &to(row.ty)),
            "Double" => self.node("Cast", args, &to(DType::F64)),
            "Flat" => {
                let shape = list(self, &[-1.0, WIDTH as f64]);
                self.node("Reshape", &[args[0], &shape], &[])
            }
            // The shape of the second operand.
            "Back" | "ExpandAs" => {
                let shape = self.node("Shape", &[args[1]], &[]);
                self.node(if op == "Back" { "Reshape" } else { "Expand" }, &[args[0], &shape], &[])
            }
            "Swap" => self.node("Transpose", args, &[("perm", text("[1 0 2]"))]),
            "Same" => self.node("Transpose", args, &[("perm", text("[0 1 2]"))]),
            "Unsqueeze" | "Unsqueeze0" | "Squeeze0" => {
                let at = if op.ends_with('0') { 0 } else { -1 };
                let onnx = op.trim_end_matches('0');
                if row.opset < 13 {
                    return self.node(onnx, args, &[("axes", format!("[{at}]"))]);
                }
                let axes = list(self, &[f64::from(at)]);
                self.node(onnx, &[args[0], &axes], &[])
            }
            "Fill" => {
                let shape = list(self, &[1.0]);
                let out = self.node("ConstantOfShape", &[&shape], &[]);
                let t = tensor("", row.ty, &[1], &[row.eps]);
                let kind = Some(AttributeType::Tensor as i32);
                let value =
                    AttributeProto { name: Some(text("value")), t: Some(t), r#type: kind, ..AttributeProto::default() };
                if let Some(n) = self.nodes.last_mut() {
                    n.attribute.push(value);
                }
                out
            }
            "Total" => self.node("Sum", args, attrs),
            _ => self.node(op, args, attrs),
        }
    }
}
