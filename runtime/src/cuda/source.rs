//! The kernels' sources, which are part of the binary, and the entry points that instantiate them.

/// The files of `kernels/` with their text. Every one of them may include the others by name.
pub const FILES: &[(&str, &str)] = &[
    ("common.cuh", include_str!("../../../kernels/common.cuh")),
    ("index.cuh", include_str!("../../../kernels/index.cuh")),
    ("quantize.cuh", include_str!("../../../kernels/quantize.cuh")),
    ("norm.cuh", include_str!("../../../kernels/norm.cuh")),
    ("exchange.cuh", include_str!("../../../kernels/exchange.cuh")),
    ("elementwise.cuh", include_str!("../../../kernels/elementwise.cuh")),
    ("all_reduce.cu", include_str!("../../../kernels/all_reduce.cu")),
    ("all_reduce_norm.cu", include_str!("../../../kernels/all_reduce_norm.cu")),
    ("copy.cu", include_str!("../../../kernels/copy.cu")),
    ("gather.cu", include_str!("../../../kernels/gather.cu")),
    ("norm.cu", include_str!("../../../kernels/norm.cu")),
    ("quantize.cu", include_str!("../../../kernels/quantize.cu")),
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
        Kernel::bounded(file, name, &threads.to_string(), arguments, body)
    }

    /// As [`Kernel::new`], for kernels of which one block has to fit on a multiprocessor and more are not worth spilled
    /// registers: otherwise the compiler spills some to fit in more blocks.
    pub fn without_spills(file: &'static str, name: String, threads: u32, arguments: &str, body: &str) -> Kernel {
        Kernel::bounded(file, name, &format!("{threads}, 1"), arguments, body)
    }

    fn bounded(file: &'static str, name: String, bounds: &str, arguments: &str, body: &str) -> Kernel {
        let entry = format!(
            "extern \"C\" __global__ void __launch_bounds__({bounds}) {name}(const __grid_constant__ {arguments} a) {{ {body}(a); }}\n"
        );
        Kernel { file, name, entry }
    }

    /// The instance that the entry point calls, such as `norm_rows<bf16, true>`.
    pub fn body(&self) -> &str {
        let (_, entry) = self.entry.rsplit_once("__global__").unwrap_or_default();
        let inner = entry.split_once("{ ").and_then(|(_, rest)| rest.split_once("(a); }"));
        inner.map_or("", |(body, _)| body)
    }

    /// Most threads of a block.
    pub fn threads(&self) -> Option<u32> {
        self.entry.split_once("__launch_bounds__(")?.1.split([',', ')']).next()?.trim().parse().ok()
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
        assert_eq!((a.body(), a.threads()), ("f<1>", Some(64)));
        assert!(text.contains("__launch_bounds__(64) b(const __grid_constant__ A a) { f<1>(a); }"), "{text}");
    }
}
