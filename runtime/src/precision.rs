//! What the values of a program are computed in: where they were rounded, and whether a quantisation lies between them and the
//! inputs. Comparisons take their tolerance from it.

use crate::dtype::DType;
use crate::op::{Class, Op};
use crate::plan::{Source, Stage, Step, ValueId};

/// How a value came about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The coarsest floating-point type that what led to it was rounded to; `None` where elements were only moved.
    pub rounded: Option<DType>,
    /// Whether its elements are steps of a quantisation, moved or not, that was computed from rounded numbers.
    pub steps: bool,
    /// The value with the scale, where its elements are such steps times it.
    pub scale: Option<ValueId>,
    /// Whether it depends on an input.
    pub varies: bool,
}

/// Order of coarseness; only types that numbers are rounded to on the way.
fn coarseness(d: DType) -> u8 {
    match d {
        DType::F64 => 1,
        DType::F32 => 2,
        DType::F16 => 3,
        DType::BF16 => 4,
        _ => 0,
    }
}

/// The coarser of two types.
pub fn coarser(a: Option<DType>, b: Option<DType>) -> Option<DType> {
    match (a, b) {
        (Some(x), Some(y)) => Some(if coarseness(y) > coarseness(x) { y } else { x }),
        (a, b) => a.or(b),
    }
}

/// Operators of ONNX that move elements without computing on them.
const MOVING: &[&str] = &[
    "Compress",
    "Concat",
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "GatherElements",
    "GatherND",
    "Identity",
    "Pad",
    "Reshape",
    "ReverseSequence",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Trilu",
    "Unsqueeze",
    "Where",
];

/// Operators of ONNX whose results are whole steps of what they read.
const STEPPING: &[&str] = &["QuantizeLinear", "DynamicQuantizeLinear", "QLinearMatMul", "QLinearConv", "QLinearAdd"];

enum Role {
    Moves,
    Steps,
    /// Steps times a scale, operand 1.
    Scales,
    Computes,
}

fn role(op: &Op, to: DType) -> Role {
    match op {
        Op::Where {} => Role::Moves,
        Op::Standard { call } => match &call.op[..] {
            n if MOVING.contains(&n) => Role::Moves,
            n if STEPPING.contains(&n) => Role::Steps,
            "DequantizeLinear" => Role::Scales,
            "Cast" if to.is_minifloat() => Role::Steps,
            _ => Role::Computes,
        },
        op if to.is_quantised() && op.info().class != Class::Layout => Role::Steps,
        op if op.info().class == Class::Layout => Role::Moves,
        _ => Role::Computes,
    }
}

/// Whether a step makes steps of a quantisation.
pub fn quantises(stage: &Stage, step: &Step) -> bool {
    let Some(first) = step.outputs.iter().flatten().next() else { return false };
    matches!(role(&step.op, stage.value(*first).ty.dtype), Role::Steps)
}

/// How each value of a stage came about, by index.
pub fn origins(stage: &Stage) -> Vec<Origin> {
    let mut out = vec![Origin::default(); stage.values.len()];
    for (v, o) in stage.values.iter().zip(&mut out) {
        o.varies = matches!(v.source, Source::Input { .. });
    }
    for step in &stage.steps {
        let read: Vec<Origin> = step.inputs.iter().map(|v| out[stage.storage(*v).0]).collect();
        let rounded = read.iter().fold(None, |a, o| coarser(a, o.rounded));
        let varies = read.iter().any(|o| o.varies);
        for id in step.outputs.iter().flatten() {
            let to = stage.value(*id).ty.dtype;
            let own = (coarseness(to) > 0).then_some(to);
            // One rounding of what is exact is the same wherever it happens.
            let cast = matches!(step.op, Op::Cast { .. }) && rounded.is_none();
            let first = read.first().copied().unwrap_or_default();
            // Constants are the same in every program.
            if step.inputs.is_empty() {
                continue;
            }
            out[stage.storage(*id).0] = match role(&step.op, to) {
                Role::Moves => Origin {
                    rounded,
                    steps: read.iter().any(|o| o.steps),
                    scale: read.iter().find_map(|o| o.scale),
                    varies,
                },
                Role::Steps => Origin { rounded, steps: rounded.is_some(), scale: None, varies },
                Role::Scales => Origin {
                    rounded: coarser(rounded, own),
                    steps: first.steps,
                    scale: if first.steps { step.inputs.get(1).copied() } else { None },
                    varies,
                },
                Role::Computes if cast => Origin { rounded: None, varies, ..Origin::default() },
                Role::Computes => Origin { rounded: coarser(rounded, own), varies, ..Origin::default() },
            };
        }
    }
    // A view is what its storage is.
    for i in 0..out.len() {
        out[i] = out[stage.storage(ValueId(i)).0];
    }
    out
}

/// Results that bring floating-point numbers into a program without floating-point inputs: they depend on an input, and every
/// floating-point operand of their step is a weight or constant.
pub fn sources(stage: &Stage) -> Vec<ValueId> {
    let origins = origins(stage);
    let floats = |v: &ValueId| stage.value(*v).ty.dtype.is_float();
    let brings = |s: &&Step| {
        s.inputs.iter().any(|v| origins[v.0].varies) && s.inputs.iter().all(|v| !floats(v) || !origins[v.0].varies)
    };
    stage.steps.iter().filter(brings).flat_map(|s| s.outputs.iter().flatten().copied()).filter(floats).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dim::Dim;
    use crate::dtype::TensorType;
    use crate::plan::Value;

    fn value(name: &str, dtype: DType, source: Source) -> Value {
        Value { name: name.to_owned(), ty: TensorType { dtype, shape: vec![Dim::from(2)] }, source }
    }

    fn standard(op: &str) -> Op {
        let call = crate::standard::Call { op: op.to_owned(), opset: 21, ..Default::default() };
        Op::Standard { call: std::sync::Arc::new(call) }
    }

    fn step(op: Op, inputs: &[usize], output: usize) -> Step {
        Step {
            op,
            inputs: inputs.iter().map(|&i| ValueId(i)).collect(),
            outputs: vec![Some(ValueId(output))],
            origin: vec![],
            rules: vec![],
            why: None,
        }
    }

    #[test]
    fn the_coarsest_rounding_counts_and_moves_do_not() {
        let stage = Stage {
            values: vec![
                value("x", DType::F16, Source::Input { index: 0, part: None }),
                value("wide", DType::F32, Source::Late),
                value("sum", DType::F32, Source::Late),
                value("half", DType::F16, Source::Late),
                value("double", DType::F64, Source::Late),
                value("view", DType::F64, Source::Alias(ValueId(4))),
            ],
            steps: vec![
                step(Op::Cast { to: DType::F32 }, &[0], 1),
                step(Op::Add {}, &[1, 1], 2),
                step(Op::Cast { to: DType::F16 }, &[2], 3),
                step(Op::Cast { to: DType::F64 }, &[3], 4),
            ],
            buffers: vec![],
        };
        let rounded: Vec<Option<DType>> = origins(&stage).iter().map(|o| o.rounded).collect();
        let (f16, f32) = (Some(DType::F16), Some(DType::F32));
        assert_eq!(rounded, [None, None, f32, f16, f16, f16]);
    }

    #[test]
    fn steps_of_a_quantisation_are_followed_to_their_scale() {
        let stage = Stage {
            values: vec![
                value("x", DType::F32, Source::Input { index: 0, part: None }),
                value("y", DType::F32, Source::Late),
                value("scale", DType::F32, Source::Late),
                value("q", DType::U8, Source::Late),
                value("moved", DType::U8, Source::Late),
                value("real", DType::F32, Source::Late),
                value("of_input", DType::U8, Source::Late),
            ],
            steps: vec![
                step(Op::Exp {}, &[0], 1),
                step(standard("QuantizeLinear"), &[1, 2], 3),
                step(standard("Transpose"), &[3], 4),
                step(standard("DequantizeLinear"), &[4, 2], 5),
                step(standard("QuantizeLinear"), &[0, 2], 6),
            ],
            buffers: vec![],
        };
        let o = origins(&stage);
        assert!(o[3].steps && o[4].steps && o[5].steps && o[5].scale == Some(ValueId(2)));
        // Nothing was rounded before it: every program computes the same steps.
        assert!(!o[6].steps);
        assert!(quantises(&stage, &stage.steps[1]) && !quantises(&stage, &stage.steps[2]));
    }

    #[test]
    fn embeddings_bring_floats_into_a_program_of_tokens() {
        let stage = Stage {
            values: vec![
                value("ids", DType::I64, Source::Input { index: 0, part: None }),
                value(
                    "table",
                    DType::F32,
                    Source::Weight { key: "t".into(), weight: "t".into(), range: None, part: None },
                ),
                value("turned", DType::F32, Source::Late),
                value("rows", DType::F32, Source::Late),
                value("y", DType::F32, Source::Late),
            ],
            steps: vec![
                step(standard("Transpose"), &[1], 2),
                step(Op::Gather { axis: 0 }, &[2, 0], 3),
                step(Op::Exp {}, &[3], 4),
            ],
            buffers: vec![],
        };
        assert_eq!(sources(&stage), [ValueId(3)]);
    }
}
