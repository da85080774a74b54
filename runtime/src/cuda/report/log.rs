//! What a compiler's log says: resources of each kernel, and messages that are no information.

use std::collections::BTreeMap;

/// What a kernel takes on one architecture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of static shared memory of a block.
    pub shared: u32,
    /// Bytes of a thread's stack, in local memory.
    pub stack: u32,
    /// Bytes of registers that are stored to local memory and loaded from there, as instructions.
    pub spilled: u32,
}

/// A log, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// What each entry point takes.
    pub kernels: BTreeMap<String, Usage>,
    /// Warnings and everything else that is not information of ptxas, one message each.
    pub messages: Vec<String>,
}

/// Reads the log of a compilation with `--ptxas-options=--verbose`.
///
/// A kernel's lines follow its name. What a function that was not inlined spills counts for the kernel before it.
pub fn read_log(text: &str) -> Log {
    let mut log = Log::default();
    let mut current: Option<String> = None;
    let mut message = String::new();
    for line in text.lines() {
        let Some(rest) = line.strip_prefix("ptxas") else {
            if line.trim().is_empty() {
                finish(&mut message, &mut log.messages);
            } else {
                message += line;
                message.push('\n');
            }
            continue;
        };
        finish(&mut message, &mut log.messages);
        let (kind, said) = rest.split_once(':').map_or(("", rest), |(k, s)| (k.trim(), s.trim()));
        if kind.is_empty() {
            // The line that goes on from the one above: `ptxas         .     0 bytes stack frame, ..`.
            let said = said.trim_start().trim_start_matches('.');
            if let Some(usage) = current.as_ref().and_then(|k| log.kernels.get_mut(k)) {
                usage.stack = usage.stack.max(before(said, " bytes stack frame").unwrap_or(0));
                for what in [" bytes spill stores", " bytes spill loads"] {
                    usage.spilled = usage.spilled.saturating_add(before(said, what).unwrap_or(0));
                }
            }
            continue;
        }
        if kind != "info" || said.starts_with("(C") {
            // Spills are told by the numbers, with the kernel's name.
            if !said.starts_with("Registers are spilled") {
                log.messages.push(line.to_owned());
            }
            continue;
        }
        if let Some(name) = said.strip_prefix("Compiling entry function '").and_then(|s| s.split('\'').next()) {
            log.kernels.insert(name.to_owned(), Usage::default());
            current = Some(name.to_owned());
        }
        if let Some(usage) = current.as_ref().and_then(|k| log.kernels.get_mut(k)).filter(|_| said.starts_with("Used "))
        {
            usage.registers = before(said, " registers").unwrap_or(0);
            usage.shared = before(said, " bytes smem").unwrap_or(0);
            usage.stack = usage.stack.max(before(said, " bytes cumulative stack size").unwrap_or(0));
        }
    }
    finish(&mut message, &mut log.messages);
    log
}

/// Ends a message of several lines. The advice on how to silence warnings is none.
fn finish(message: &mut String, messages: &mut Vec<String>) {
    let text = std::mem::take(message);
    let text = text.trim_end();
    if !text.is_empty() && !text.starts_with("Remark: The warnings can be suppressed") {
        messages.push(text.to_owned());
    }
}

/// The number that stands before a phrase.
fn before(text: &str, phrase: &str) -> Option<u32> {
    let head = &text[..text.find(phrase)?];
    let digits = head.len() - head.bytes().rev().take_while(u8::is_ascii_digit).count();
    head[digits..].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
x.cu(13): warning #177-D: variable \"unused\" was declared but never referenced
  extern \"C\" __global__ void k_warn(const __grid_constant__ A a){ int unused = 3; }
                                                                       ^

Remark: The warnings can be suppressed with \"-diag-suppress <warning-number>\"

ptxas warning : Registers are spilled to local memory in function 'k_spill', 116 bytes spill stores, 96 bytes spill loads
ptxas info    : 24 bytes gmem, 48 bytes cmem[4]
ptxas info    : Compiling entry function 'k_spill' for 'sm_80'
ptxas info    : Function properties for k_spill
ptxas         .     120 bytes stack frame, 116 bytes spill stores, 96 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 120 bytes cumulative stack size, 384 bytes cmem[0]
ptxas info    : Compile time = 75.414 ms
ptxas info    : Compiling entry function 'k_two' for 'sm_80'
ptxas info    : Function properties for k_two
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 1024 bytes smem, 384 bytes cmem[0]
ptxas info    : Compile time = 31.305 ms
";

    #[test]
    fn each_kernel_has_its_numbers() {
        let log = read_log(LOG);
        let names: Vec<&str> = log.kernels.keys().map(String::as_str).collect();
        assert_eq!(names, ["k_spill", "k_two"]);
        assert_eq!(log.kernels["k_spill"], Usage { registers: 64, shared: 0, stack: 120, spilled: 212 });
        assert_eq!(log.kernels["k_two"], Usage { registers: 32, shared: 1024, stack: 0, spilled: 0 });
    }

    #[test]
    fn everything_but_information_is_a_message() {
        let log = read_log(LOG);
        assert_eq!(log.messages.len(), 1, "{:?}", log.messages);
        assert!(log.messages[0].starts_with("x.cu(13): warning #177-D"), "{:?}", log.messages);
        assert!(log.messages[0].contains("int unused = 3"), "{:?}", log.messages);
        let other = "ptxas warning : Stack size for entry function 'k' cannot be statically determined\n\
                     ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized\n\
                     something else\n";
        assert_eq!(read_log(other).messages.len(), 3);
        assert_eq!(read_log(""), Log::default());
    }

    #[test]
    fn functions_that_are_not_inlined_count_for_their_kernel() {
        let log = read_log(
            "ptxas info    : Compiling entry function 'k' for 'sm_90'\n\
             ptxas info    : Function properties for k\n\
             ptxas         .     8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
             ptxas info    : Function properties for callee\n\
             ptxas         .     40 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n\
             ptxas info    : Used 24 registers, used 0 barriers, 48 bytes cumulative stack size\n",
        );
        assert_eq!(log.kernels["k"], Usage { registers: 24, shared: 0, stack: 48, spilled: 16 });
        assert!(log.messages.is_empty(), "{:?}", log.messages);
    }
}
