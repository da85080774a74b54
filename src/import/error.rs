//! What can be wrong with a model.

use std::path::PathBuf;

/// Why a model cannot be imported. Always a property of the model's files.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file cannot be read.
    #[error("cannot read {path}: {cause}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The bytes are no ONNX model.
    #[error("{path} is not an ONNX model: {cause}\n  help: the file may be truncated; export or copy it again")]
    Decode {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        cause: String,
    },
    /// The path names something else.
    #[error("{path} is not an ONNX model: it is {what}\n  help: {help}")]
    Foreign {
        /// The file or folder.
        path: PathBuf,
        /// What it is.
        what: String,
        /// What to do.
        help: String,
    },
    /// The model needs an operator set that this version does not read.
    #[error("{path} uses opset {found} of the default domain; this version reads opsets {min} to {max}")]
    Opset {
        /// The file.
        path: PathBuf,
        /// The model's opset.
        found: i64,
        /// Oldest supported.
        min: i64,
        /// Newest supported.
        max: i64,
    },
    /// Operators without an importer, all of them.
    #[error("{} of {total} nodes use operators that sinter does not import:{}\n  help: `sinter show MODEL` prints the graph all the same", nodes.len(), table(nodes))]
    Unknown {
        /// (operator, node name), in graph order.
        nodes: Vec<(String, String)>,
        /// Number of nodes of the graph.
        total: usize,
    },
    /// The graph is not a graph of values each produced once before use.
    #[error("the graph is malformed: {0}")]
    Structure(String),
    /// External data is missing or out of bounds.
    #[error("weight `{tensor}`: {message}")]
    Weight {
        /// The initializer.
        tensor: String,
        /// What is wrong.
        message: String,
    },
    /// One node cannot be imported.
    #[error("node {index} `{name}` ({op}): {message}\n  inputs: {inputs}")]
    Node {
        /// Position in the graph.
        index: usize,
        /// Name of the node, or of its first output.
        name: String,
        /// Operator.
        op: String,
        /// What is wrong.
        message: String,
        /// Its operands with their types.
        inputs: String,
    },
}

fn table(nodes: &[(String, String)]) -> String {
    let mut ops: Vec<&str> = nodes.iter().map(|(op, _)| op.as_str()).collect();
    ops.sort_unstable();
    ops.dedup();
    let mut out = String::new();
    for op in ops {
        let names: Vec<&str> = nodes.iter().filter(|n| n.0 == op).map(|n| n.1.as_str()).collect();
        out += &format!("\n  {op} ({}): {}", names.len(), names.join(", "));
    }
    out
}
