//! Versions of the default domain. Importers and standard operators follow the forms of opset 11 and later; of older forms, only
//! those that mean the same are read.

use super::proto::NodeProto;

/// Oldest opset of the default domain that is read.
pub const MIN_OPSET: i64 = 1;
/// Newest opset of the default domain that is read.
pub const MAX_OPSET: i64 = 27;

/// From here on every operator is read.
const MODERN: i64 = 11;

/// (first opset of the form that is read, operators)
const FORMS: &[(i64, &[&str])] = &[
    (
        1,
        &[
            "ArgMax", "ArgMin", "AveragePool", "Constant", "Conv", "ConvTranspose", "DepthToSpace", "Flatten", "Gather",
            "GlobalAveragePool", "GlobalMaxPool", "Identity", "If", "LogSoftmax", "Loop", "LpNormalization", "MatMul",
            "MaxPool", "Not", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "ReduceL1",
            "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
            "ReduceSumSquare", "Shape", "Size", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Squeeze", "Transpose",
            "Unsqueeze",
        ],
    ),
    (2, &["Split"]),
    (4, &["Concat"]),
    (5, &["Reshape"]),
    (
        6,
        &[
            "Abs", "Cast", "Ceil", "Elu", "Exp", "Floor", "HardSigmoid", "InstanceNormalization", "LeakyRelu", "Log", "Neg",
            "Reciprocal", "Relu", "Selu", "Sigmoid", "Sqrt", "Tanh", "Tile",
        ],
    ),
    (
        7,
        &[
            "Acos", "Add", "And", "Asin", "Atan", "Cos", "Div", "Dropout", "Equal", "GRU", "Gemm", "Greater", "LSTM", "Less",
            "Mul", "Multinomial", "Or", "PRelu", "Pow", "RNN", "Sin", "Sub", "Tan", "Upsample", "Xor",
        ],
    ),
    (8, &["Expand", "Max", "Mean", "Min", "Scan", "Sum"]),
    (
        9,
        &[
            "Acosh", "Asinh", "Atanh", "BatchNormalization", "Compress", "ConstantOfShape", "Cosh", "Erf", "EyeLike", "IsNaN",
            "MaxUnpool", "NonZero", "OneHot", "Scatter", "Shrink", "Sign", "Sinh", "TfIdfVectorizer", "Where",
        ],
    ),
    (
        10,
        &[
            "ConvInteger", "DequantizeLinear", "IsInf", "MatMulInteger", "Mod", "NonMaxSuppression", "QLinearConv",
            "QLinearMatMul", "QuantizeLinear", "ReverseSequence", "RoiAlign", "Slice", "StringNormalizer", "ThresholdedRelu",
            "TopK",
        ],
    ),
];

/// Why a node of an old opset is not read.
pub(super) fn refused(n: &NodeProto, opset: i64) -> Option<String> {
    if opset >= MODERN || !matches!(n.domain(), "" | "ai.onnx") {
        return None;
    }
    let op = n.op_type();
    let first = FORMS.iter().find(|(_, ops)| ops.contains(&op)).map_or(MODERN, |f| f.0);
    (opset < first).then(|| {
        format!(
            "the form of `{op}` in opset {opset} is not supported, that of opset {first} is; convert the model with \
             `onnx.version_converter.convert_version`"
        )
    })
}
