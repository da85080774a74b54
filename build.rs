//! Compiles the ONNX protocol buffer schema; no system `protoc` is needed.

fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-changed=proto");
    let set = protox::compile(["proto/onnx-ml.proto", "proto/onnx-data.proto"], ["proto"])
        .map_err(|e| std::io::Error::other(format!("{e:?}")))?;
    let mut config = prost_build::Config::new();
    // Tensor data stays a slice of the mapped file.
    config.bytes([".onnx.TensorProto.raw_data"]);
    config.compile_fds(set)
}
