//! The plan: everything that the ranks need in order to run one program together.
//!
//! A plan is a folder: `plan.json` (this structure), one weight file per rank, and for people the text
//! of each stage. All ranks of a stage execute the same steps (SPMD); they differ in the weight parts
//! that they hold and in their place in the groups. `rank = stage * tp + column`.

mod certify;
mod read;
mod verify;
mod write;

pub use certify::{CertificateError, certify, is_collective, tensor_group, transfer_group};
pub use read::{PlanError, PlanWeights, ReferenceWeights, load};
pub(crate) use verify::structure;
pub use verify::{VerifyError, verify};
pub use write::{PlanWriter, WeightData, WeightEntry, WriteError};

use serde::{Deserialize, Serialize};

use crate::attr::MeshAxis;
use crate::dim::{Bindings, Dim, Shape};
use crate::dtype::{DType, TensorType};
use crate::op::Op;
use crate::random::RandomWeight;

/// The version of the plan format that this crate reads and writes.
pub const VERSION: u32 = 1;

/// The name of the file that holds the plan.
pub const PLAN_FILE: &str = "plan.json";

/// The name of the file that holds the default values of inputs, by the names of the inputs.
pub const DEFAULTS_FILE: &str = "defaults.safetensors";

/// The name of the file that holds the digest of [`PLAN_FILE`].
pub const DIGEST_FILE: &str = "plan.json.blake3";

/// Whether a name stays within the folder.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}

/// A program for `mapping.world()` ranks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Format version, [`VERSION`].
    pub version: u32,
    /// Name of the model.
    pub model: String,
    /// Sizes of the mesh axes.
    pub mapping: Mapping,
    /// Inputs in the model's order.
    pub inputs: Vec<InputDecl>,
    /// Outputs in the model's order.
    pub outputs: Vec<OutputDecl>,
    /// One program per pipeline stage.
    pub stages: Vec<Stage>,
    /// Proof that the collectives match and cannot deadlock; checked again when the plan is read.
    pub certificate: Certificate,
    /// The unoptimised program for one rank, from which `run --verify` computes what is right.
    /// Its weights are put together from the rank files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<Box<Stage>>,
    /// What the program takes for granted about the extents of its inputs, checked before it runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub assumptions: Vec<Assumption>,
    /// Weights of the model whose data is made up, sorted by name. The weight files lack them: ranks make their parts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub random: Vec<RandomWeight>,
    /// The other files of the folder with their digests, sorted by name.
    #[serde(default)]
    pub files: Vec<FileDecl>,
}

/// Sizes of the mesh axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mapping {
    /// Tensor parallel size: ranks that share each stage's weights.
    pub tp: usize,
    /// Pipeline parallel size: number of stages.
    pub pp: usize,
}

impl Mapping {
    /// Number of ranks.
    pub fn world(&self) -> usize {
        self.tp * self.pp
    }

    /// The rank in a column of a stage.
    pub fn rank(&self, stage: usize, column: usize) -> usize {
        stage * self.tp + column
    }

    /// Number of ranks along an axis.
    pub fn size(&self, axis: MeshAxis) -> usize {
        match axis {
            MeshAxis::Tp => self.tp,
            MeshAxis::Pp => self.pp,
        }
    }
}

/// Something about extents that a program takes for granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assumption {
    /// An extent, or what is computed from extents.
    pub left: Dim,
    /// How it relates to the other side.
    pub relation: Relation,
    /// The other side.
    pub right: Dim,
    /// What asks for it, such as a node of the model.
    pub why: String,
}

/// How two extents relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Relation {
    /// They are equal.
    #[serde(rename = "=")]
    Equal,
    /// They differ.
    #[serde(rename = "!=")]
    Different,
    /// The left one is at most the right one.
    #[serde(rename = "<=")]
    AtMost,
    /// The left one is at least the right one.
    #[serde(rename = ">=")]
    AtLeast,
}

impl Relation {
    /// Whether it holds between two numbers.
    pub fn holds(self, a: i64, b: i64) -> bool {
        match self {
            Relation::Equal => a == b,
            Relation::Different => a != b,
            Relation::AtMost => a <= b,
            Relation::AtLeast => a >= b,
        }
    }
}

impl std::fmt::Display for Assumption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let relation = match self.relation {
            Relation::Equal => "=",
            Relation::Different => "!=",
            Relation::AtMost => "<=",
            Relation::AtLeast => ">=",
        };
        write!(f, "{} {relation} {}", self.left, self.right)
    }
}

/// An input of the program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputDecl {
    /// Its name in the model.
    pub name: String,
    /// Element type and symbolic shape of the whole tensor.
    #[serde(flatten)]
    pub ty: TensorType,
    /// The shape that the model declares, where [`Plan::assumptions`] make another of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub declared: Option<Shape>,
    /// What it is, where it is no tensor of numbers: the text form of [`Kind`](crate::standard::Kind).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Whether [`DEFAULTS_FILE`] has a value for it, which is used where the caller gives none.
    #[serde(default, skip_serializing_if = "is_false")]
    pub default: bool,
}

fn is_false(b: &bool) -> bool {
    !b
}

impl InputDecl {
    /// The extents as the model declares them.
    pub fn shape(&self) -> &Shape {
        self.declared.as_ref().unwrap_or(&self.ty.shape)
    }

    /// The type as the model declares it.
    pub fn declared_type(&self) -> TensorType {
        TensorType { dtype: self.ty.dtype, shape: self.shape().clone() }
    }
}

/// An output of the program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputDecl {
    /// Its name in the model.
    pub name: String,
    /// Type of the whole tensor.
    #[serde(flatten)]
    pub ty: TensorType,
    /// The stage that produces it.
    pub stage: usize,
    /// The value in that stage.
    pub value: ValueId,
    /// `None`: every rank of the stage holds the whole tensor. Otherwise the host joins the parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
    /// What it is, where it is no tensor of numbers: the text form of [`Kind`](crate::standard::Kind).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}

/// A cut along one axis of the mesh: rank i of `size` ranks holds part `i * parts / size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// The tensor axis that is cut.
    pub dim: usize,
    /// The mesh axis.
    pub axis: MeshAxis,
    /// Number of distinct parts; divides the size of the mesh axis.
    pub parts: usize,
}

/// The positions from `start` up to but without `end` along one axis of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// The axis.
    pub dim: usize,
    /// First position.
    pub start: usize,
    /// Position after the last.
    pub end: usize,
}

impl Range {
    /// The axis and extent of the whole that sorted ranges make up; the error is the first position that
    /// no range has, or that two have.
    pub fn whole(sorted: &[Range]) -> Result<(usize, usize), usize> {
        let dim = sorted.first().map_or(0, |r| r.dim);
        let step = |at, r: &Range| if (r.dim, r.start) == (dim, at) { Ok(r.end) } else { Err(at) };
        Ok((dim, sorted.iter().try_fold(0, step)?))
    }
}

impl Part {
    /// The part that the rank at `index` of `size` ranks holds.
    pub fn of(&self, index: usize, size: usize) -> usize {
        index * self.parts / size
    }
}

/// Index into [`Stage::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ValueId(pub usize);

/// What the ranks of one pipeline stage do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Every tensor that occurs.
    pub values: Vec<Value>,
    /// The steps in the order in which every rank executes them.
    pub steps: Vec<Step>,
    /// Storage for the results of steps.
    pub buffers: Vec<Buffer>,
}

/// A tensor of a stage; types are per rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Value {
    /// A name that is unique in the stage. Where the model has the same tensor, it is the model's name.
    pub name: String,
    /// Element type and symbolic shape on one rank.
    #[serde(flatten)]
    pub ty: TensorType,
    /// Where its data comes from.
    pub source: Source,
}

/// Where the data of a value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A graph input by index into [`Plan::inputs`], whole or cut by the host.
    Input {
        /// Index into [`Plan::inputs`].
        index: usize,
        /// The part that a rank is given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        part: Option<Part>,
    },
    /// A tensor in the rank's weight file.
    Weight {
        /// Key in the rank's weight file.
        key: String,
        /// Name of the model's weight of which it is (a part).
        weight: String,
        /// The columns or rows of the model's weight that it has, where a fused weight was taken apart.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        range: Option<Range>,
        /// How it (the range, where there is one) was cut.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        part: Option<Part>,
    },
    /// The result of a step, stored in a buffer by index into [`Stage::buffers`].
    Buffer(usize),
    /// The same bytes as another value (a reshape).
    Alias(ValueId),
    /// The result of a step whose extents only execution shows, or that is no tensor of numbers.
    Late,
}

/// One step: an operator on values. Leaf operators (`const`, `dims`, `range`) are steps without operands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// What to compute.
    pub op: Op,
    /// Operands.
    #[serde(rename = "in", default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<ValueId>,
    /// Results; `None` for a result of a tuple that nothing reads.
    #[serde(rename = "out", default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<Option<ValueId>>,
    /// Names of the ONNX nodes that this step computes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub origin: Vec<String>,
    /// Names of the rules that led to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<String>,
    /// The entry of the compiler's record that derives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<u32>,
}

/// Storage that several values use one after the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Buffer {
    /// Its size is the largest of these, in bytes.
    pub bytes: Vec<Dim>,
}

/// A file of the plan folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileDecl {
    /// Name within the folder.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3 digest of the contents, in hexadecimal.
    pub blake3: String,
}

/// What each rank communicates, in order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// The groups of ranks that communicate, each with its sequence, equal on every member.
    pub groups: Vec<GroupCertificate>,
}

/// The communication of one group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupCertificate {
    /// Such as `tp0` (the tensor group of stage 0) or `pp0-1.0` (stage 0 to 1, column 0).
    pub group: String,
    /// Its members.
    pub ranks: Vec<usize>,
    /// The sequence.
    pub calls: Vec<Call>,
}

/// One collective, or one transfer between two stages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// Operator name.
    pub op: String,
    /// Element type.
    pub dtype: DType,
    /// Shape that each rank contributes.
    pub shape: Shape,
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}{:?}", self.op, self.dtype, self.shape)
    }
}

impl Stage {
    /// The value with an index.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0]
    }

    /// The value whose storage `id` uses, following aliases.
    pub fn storage(&self, mut id: ValueId) -> ValueId {
        while let Source::Alias(of) = self.values[id.0].source {
            id = of;
        }
        id
    }

    /// Bytes of a buffer under `bindings`.
    pub fn buffer_bytes(&self, index: usize, bindings: &Bindings) -> Result<i64, String> {
        self.buffers[index].bytes.iter().map(|d| d.eval(bindings)).try_fold(0, |m, b| Ok(m.max(b?)))
    }
}

impl Plan {
    /// The symbols that get their values only from results of standard operators.
    pub fn late_symbols(&self) -> std::collections::BTreeSet<String> {
        let mut out = std::collections::BTreeSet::new();
        for step in self.stages.iter().chain(self.reference.as_deref()).flat_map(|s| &s.steps) {
            if let Op::Standard { call } = &step.op {
                call.results.iter().flat_map(|t| &t.shape).filter_map(Dim::as_sym).for_each(|s| {
                    out.insert(s.to_owned());
                });
            }
        }
        out
    }

    /// A weight of the model whose data is made up.
    pub fn random_weight(&self, name: &str) -> Option<&RandomWeight> {
        self.random.binary_search_by(|w| w.name.as_str().cmp(name)).ok().map(|i| &self.random[i])
    }

    /// The file that holds the weights of a rank.
    pub fn weight_file(rank: usize) -> String {
        format!("rank{rank}.safetensors")
    }
}
