//! The intermediate representation: an SSA graph of typed operators with symbolic shapes.
//!
//! This layer knows no other one but the operator vocabulary of the runtime crate.

mod graph;
mod infer;
mod op_ref;
mod text;
mod verify;

pub use graph::{Graph, Node, NodeId, Output, unique_name};
pub use infer::{InferError, broadcast, broadcasts_always, infer};
pub use op_ref::OpRef;
pub use sinter_runtime::attr::{Attr, AttrKind, MeshAxis, Real, Safe};
pub use sinter_runtime::body::{Body, BodyStep, may_be_part};
pub use sinter_runtime::dim::{Bindings, Dim, Factor, Shape, SliceBounds, count_steps, reshaped, slice_bounds};
pub use sinter_runtime::dtype::{DType, Literal, TensorType};
pub use sinter_runtime::norm::{self, Norm};
pub use sinter_runtime::op::{self, Class, Op, OpInfo};
pub use sinter_runtime::plan::{Mapping, Part};
pub use text::{TextError, parse, print, print_node, value_name};
pub use verify::{VerifyError, verify};
