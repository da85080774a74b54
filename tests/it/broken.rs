//! Builders of small and broken inputs: ONNX models from messages, `.npz` archives.

use std::path::Path;

use prost::Message as _;
use sinter::import::proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, tensor_proto, tensor_shape_proto, type_proto,
};

/// A node.
pub(crate) fn node(name: &str, op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        name: Some(name.to_owned()),
        op_type: Some(op.to_owned()),
        input: inputs.iter().map(|s| (*s).to_owned()).collect(),
        output: outputs.iter().map(|s| (*s).to_owned()).collect(),
        ..NodeProto::default()
    }
}

/// A 4 x 4 initializer of zeros.
pub(crate) fn weight(name: &str) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        dims: vec![4, 4],
        data_type: Some(tensor_proto::DataType::Float as i32),
        raw_data: Some(vec![0; 64].into()),
        ..TensorProto::default()
    }
}

/// A 4 x 4 initializer whose data lies in another file.
pub(crate) fn external(name: &str, location: &str, offset: usize) -> TensorProto {
    let entry = |k: &str, v: &str| StringStringEntryProto { key: Some(k.to_owned()), value: Some(v.to_owned()) };
    TensorProto {
        raw_data: None,
        data_location: Some(tensor_proto::DataLocation::External as i32),
        external_data: vec![entry("location", location), entry("offset", &offset.to_string()), entry("length", "64")],
        ..weight(name)
    }
}

/// An f32 value of shape [n, 4].
pub(crate) fn value(name: &str) -> ValueInfoProto {
    use tensor_shape_proto::{Dimension, dimension::Value};
    let dim = |value| Dimension { value: Some(value), ..Dimension::default() };
    let shape = TensorShapeProto { dim: vec![dim(Value::DimParam("n".to_owned())), dim(Value::DimValue(4))] };
    let tensor = type_proto::Tensor { elem_type: Some(tensor_proto::DataType::Float as i32), shape: Some(shape) };
    let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(ty), ..ValueInfoProto::default() }
}

/// A model from `x` to `y` over opset 18.
pub(crate) fn model(nodes: Vec<NodeProto>, weights: Vec<TensorProto>) -> ModelProto {
    let graph = GraphProto {
        name: Some("broken".to_owned()),
        node: nodes,
        initializer: weights,
        input: vec![value("x")],
        output: vec![value("y")],
        ..GraphProto::default()
    };
    let opset = OperatorSetIdProto { version: Some(18), ..OperatorSetIdProto::default() };
    ModelProto { ir_version: Some(8), opset_import: vec![opset], graph: Some(graph), ..ModelProto::default() }
}

/// `y = x w`.
pub(crate) fn product(weight: TensorProto) -> ModelProto {
    model(vec![node("product", "MatMul", &["x", "w"], &["y"])], vec![weight])
}

/// Writes a model.
pub(crate) fn save(dir: &Path, model: &ModelProto) {
    std::fs::write(dir.join("model.onnx"), model.encode_to_vec()).unwrap();
}

/// Writes `.npy` contents as a `.npz` archive: a zip file without compression.
pub(crate) fn npz(path: &Path, arrays: &[(&str, Vec<u8>)]) {
    let (mut out, mut directory) = (vec![], vec![]);
    for (name, data) in arrays {
        let name = format!("{name}.npy");
        let offset = out.len() as u32;
        // Version, flags, method, time and date; check sum and sizes; lengths of name and extra field.
        let mut head = vec![20, 0, 0, 0, 0, 0, 0, 0, 33, 0];
        head.extend(crc32(data).to_le_bytes());
        head.extend((data.len() as u32).to_le_bytes());
        head.extend((data.len() as u32).to_le_bytes());
        head.extend((name.len() as u16).to_le_bytes());
        head.extend([0, 0]);
        out.extend(b"PK\x03\x04");
        out.extend(&head);
        out.extend(name.as_bytes());
        out.extend(data);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&head);
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (start, n) = (out.len() as u32, arrays.len() as u16);
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend([n.to_le_bytes(), n.to_le_bytes()].concat());
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0, 0]);
    std::fs::write(path, out).unwrap();
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |c, &b| {
        (0..8).fold(c ^ u32::from(b), |c, _| if c & 1 == 1 { (c >> 1) ^ 0xEDB8_8320 } else { c >> 1 })
    })
}
