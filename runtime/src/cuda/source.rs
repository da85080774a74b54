//! The kernels' sources, which are part of the binary, and the entry points that instantiate them.

/// The files of `kernels/` with their text. Every one of them may include the others by name.
pub const FILES: &[(&str, &str)] = &[
    ("common.cuh", include_str!("../../../kernels/common.cuh")),
    ("index.cuh", include_str!("../../../kernels/index.cuh")),
    ("elementwise.cuh", include_str!("../../../kernels/elementwise.cuh")),
    ("copy.cu", include_str!("../../../kernels/copy.cu")),
    ("gather.cu", include_str!("../../../kernels/gather.cu")),
    ("rotary.cu", include_str!("../../../kernels/rotary.cu")),
    ("softmax.cu", include_str!("../../../kernels/softmax.cu")),
];

/// A kernel: the file that holds its code, and the entry point that instantiates it.
///
/// Files in `kernels/` are templates. An entry point is one `extern "C"` function with one parameter, a
/// structure of arguments, so that a program holds only the instances that a plan needs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kernel {
    /// The file of [`FILES`] that it instantiates.
    pub file: &'static str,
    /// The name of the entry point.
    pub name: String,
    /// The entry point's text.
    pub entry: String,
}

impl Kernel {
    /// An entry point that calls `body` with its arguments, for blocks of at most `threads` threads.
    ///
    /// `arguments` is the structure's name in the file, `body` the instance, such as `norm_rows<bf16, true>`.
    pub fn new(file: &'static str, name: String, threads: u32, arguments: &str, body: &str) -> Kernel {
        let entry = format!(
            "extern \"C\" __global__ void __launch_bounds__({threads}) {name}(const __grid_constant__ {arguments} a) {{ {body}(a); }}\n"
        );
        Kernel { file, name, entry }
    }
}

/// The text of a program that holds the given kernels; files are included in the order of [`FILES`].
pub fn module_source(kernels: &[&Kernel]) -> String {
    let mut text = String::new();
    for (file, _) in FILES {
        if kernels.iter().any(|k| k.file == *file) {
            text += &format!("#include \"{file}\"\n");
        }
    }
    kernels.iter().for_each(|k| text += &k.entry);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_includes_a_file_once() {
        let k = |name: &str| Kernel::new("common.cuh", name.to_owned(), 64, "A", "f<1>");
        let (a, b) = (k("a"), k("b"));
        let text = module_source(&[&a, &b]);
        assert_eq!(text.matches("#include").count(), 1);
        assert!(text.contains("__launch_bounds__(64) b(const __grid_constant__ A a) { f<1>(a); }"), "{text}");
    }
}
