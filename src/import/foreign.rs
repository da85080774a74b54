//! Files that are taken for ONNX models, and what to do with them.

/// What a file is, and what to do with it.
pub(super) struct Foreign {
    pub(super) what: &'static str,
    pub(super) help: &'static str,
}

const EXPORT: &str =
    "it holds weights or code and no ONNX graph; export the model, with `torch.onnx.export` or optimum for example";

/// Forms of files by their first bytes.
const BEGINNINGS: &[(&[u8], &str, &str)] = &[
    (b"\x1f\x8b", "compressed with gzip", "unpack it with `gunzip`"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard", "unpack it with `unzstd`"),
    (b"\xfd7zXZ\0", "compressed with xz", "unpack it with `unxz`"),
    (b"BZh", "compressed with bzip2", "unpack it with `bunzip2`"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it, and name the model in it"),
    (b"GGUF", "a GGUF file", EXPORT),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)", "convert the model with tf2onnx"),
    (b"\x93NUMPY", "a NumPy array", "name the model's .onnx file"),
    (b"\x80\x02", "a pickle (an old PyTorch checkpoint)", EXPORT),
    (b"\x80\x03", "a pickle", EXPORT),
    (b"\x80\x04", "a pickle", EXPORT),
    (b"\x80\x05", "a pickle", EXPORT),
    (b"version https://git-lfs", "a Git LFS pointer", "fetch the file itself with `git lfs pull`"),
    (b"\x7fELF", "a program or library", "name the model's .onnx file"),
];

/// Recognises a file that is not an ONNX model.
pub(super) fn recognise(bytes: &[u8]) -> Option<Foreign> {
    let is = |what, help| Some(Foreign { what, help });
    if bytes.is_empty() {
        return is("empty", "export or copy it again");
    }
    if let Some((_, what, help)) = BEGINNINGS.iter().find(|(start, ..)| bytes.starts_with(start)) {
        return is(what, help);
    }
    let holds = |text: &[u8]| bytes[..bytes.len().min(1 << 16)].windows(text.len()).any(|w| w == text);
    if bytes.starts_with(b"PK\x03\x04") {
        return match () {
            () if holds(b"data.pkl") || holds(b"/version") => is("a PyTorch file (.pt)", EXPORT),
            () if holds(b".npy") => is("an archive of NumPy arrays (.npz)", "name the model's .onnx file"),
            () => is("a ZIP archive", "unpack it, and name the model in it"),
        };
    }
    match bytes.get(4..8) {
        Some(b"TFL3") => return is("a TensorFlow Lite model", "convert it with tf2onnx"),
        Some(b"ORTM") => {
            return is("in ONNX Runtime's own format (.ort)", "name the .onnx file that it was made from");
        }
        _ => {}
    }
    let length = bytes.get(..8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    if length.is_some_and(|n| n < bytes.len() as u64) && bytes.get(8..10) == Some(b"{\"") {
        return is("a safetensors file", EXPORT);
    }
    let mut start = &bytes[..bytes.len().min(1 << 12)];
    // The last character may be cut off.
    while let Err(e) = std::str::from_utf8(start) {
        if e.error_len().is_some() || e.valid_up_to() == start.len() {
            return None;
        }
        start = &start[..e.valid_up_to()];
    }
    let text = std::str::from_utf8(start).ok()?.trim_start_matches('\u{feff}').trim_start();
    if text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\u{c}')) {
        return None;
    }
    let lower = text.get(..text.len().min(64)).unwrap_or(text).to_ascii_lowercase();
    match () {
        () if lower.starts_with("<!doctype html") || lower.starts_with("<html") => {
            is("a web page", "download the file itself")
        }
        () if lower.starts_with("graph \"") => {
            is("a graph in sinter's text form", "`show` and `diff` read it under a name that ends with .sir")
        }
        () if lower.starts_with("ir_version:") || lower.starts_with("<ir_version:") || lower.starts_with("graph {") => {
            is("an ONNX model in text form", "convert it with `onnx.save` first")
        }
        () if lower.starts_with('{') || lower.starts_with('[') => is("a JSON file", "name the model's .onnx file"),
        () => is("a text file", "name the model's .onnx file"),
    }
}

#[cfg(test)]
mod tests {
    use super::recognise;

    #[test]
    fn files_are_called_by_their_kind() {
        let what = |b: &[u8]| recognise(b).map(|f| f.what);
        assert_eq!(what(b""), Some("empty"));
        assert_eq!(what(b"\x1f\x8b\x08\0\0"), Some("compressed with gzip"));
        assert_eq!(what(b"PK\x03\x04..archive/data.pkl"), Some("a PyTorch file (.pt)"));
        assert_eq!(what(b"PK\x03\x04..x.npy"), Some("an archive of NumPy arrays (.npz)"));
        assert_eq!(what(b"\x02\0\0\0\0\0\0\0{\"a\":0}"), Some("a safetensors file"));
        assert_eq!(what(b"hello\n"), Some("a text file"));
        assert_eq!(what("über alles".as_bytes()), Some("a text file"));
        assert_eq!(what(b"<!DOCTYPE html><html>"), Some("a web page"));
        assert_eq!(what(b"{\"a\": 1}"), Some("a JSON file"));
        assert_eq!(what(b"\x08\x0a\x12\x00\xff"), None);
    }
}
