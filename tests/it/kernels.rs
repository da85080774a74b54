//! CUDA kernels on a machine without CUDA: what is refused, the table of registers, the scripts for a GPU.

use std::path::Path;
use std::process::Command;

use crate::cli::Ended;
use crate::fixtures::root;

/// Runs the program with variables of the environment.
fn sinter(dir: &Path, env: &[(&str, &str)], args: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sinter"));
    command.current_dir(dir).args(args).env_remove("SINTER_NVRTC").envs(env.iter().copied());
    ended(&mut command)
}

fn ended(command: &mut Command) -> Ended {
    let out = command.output().unwrap();
    let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
    Ended { code: out.status.code(), stdout: text(&out.stdout), stderr: text(&out.stderr) }
}

/// One error that contains a text, and nothing else.
fn refused(ended: &Ended, text: &str) {
    assert_eq!(ended.code, Some(2), "{}\n{}", ended.stdout, ended.stderr);
    assert_eq!((ended.stderr.matches("error:").count(), ended.stderr.lines().count()), (1, 1), "{}", ended.stderr);
    assert!(ended.stderr.contains(text), "no `{text}` in {}", ended.stderr);
    assert!(ended.stdout.is_empty(), "{}", ended.stdout);
}

/// Makes a library from C++ beside the cases, which the loader finds by its name.
fn library(source: &str, folder: &Path, name: &str, options: &[&str]) {
    let source = root().join("tests/cases/kernels").join(source);
    let out = Command::new("c++")
        .args(["-std=c++17", "-fPIC", "-shared", "-Wall", "-Werror"])
        .args(options)
        .arg(format!("-Wl,-soname,{name}"))
        .arg(source)
        .arg("-o")
        .arg(folder.join(name))
        .output()
        .expect("a C++ compiler: install g++");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn kernels_are_listed_without_cuda() {
    let temp = tempfile::tempdir().unwrap();
    let empty = temp.path().to_str().unwrap();
    let listed = sinter(temp.path(), &[("SINTER_NVRTC", empty)], &["kernels", "list"]);
    assert_eq!(listed.code, Some(0), "{}", listed.stderr);
    let catalog = sinter_runtime::cuda::catalog();
    assert!(!catalog.is_empty());
    for k in &catalog {
        let line = listed.stdout.lines().find(|l| l.split_whitespace().nth(1) == Some(&k.name));
        let line = line.unwrap_or_else(|| panic!("{} is not listed", k.name));
        assert!(line.starts_with(k.file) && line.ends_with(k.body()), "{line}");
    }
    assert!(listed.stdout.ends_with(&format!("{} kernels\n", catalog.len())), "{}", listed.stdout);
    let one = &catalog[0].name;
    let chosen = sinter(temp.path(), &[], &["kernels", "list", "--only", one]).stdout;
    assert!(chosen.contains(one.as_str()) && chosen.lines().count() <= catalog.len(), "{chosen}");
    refused(&sinter(temp.path(), &[], &["kernels", "list", "--only", "no such"]), "see `sinter kernels list`");
}

#[test]
fn what_is_missing_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let empty = temp.path().to_str().unwrap();
    let env = [("SINTER_NVRTC", empty)];
    let missing = "NVRTC (libnvrtc.so) was not found: SINTER_NVRTC is";
    refused(&sinter(temp.path(), &env, &["kernels", "compile"]), missing);
    // Where there is a driver, NVRTC is what is missing.
    refused(&sinter(temp.path(), &env, &["kernels", "check", "--report", "report.json"]), "was not found: ");
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0, "no report is left behind");
    refused(&sinter(temp.path(), &env, &["kernels", "check", "--filter", "no such"]), "is left to run");
    refused(&sinter(temp.path(), &env, &["kernels", "compile", "--check", "absent.md"]), "cannot read absent.md");
}

#[test]
fn libraries_that_are_too_old_are_named_with_the_function() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    library("nvrtc.cpp", dir, "libnvrtc.so", &[]);
    let env = [("SINTER_NVRTC", dir.to_str().unwrap())];
    let error = "NVRTC (libnvrtc.so) has no function `nvrtcGetNumSupportedArchs`; one of CUDA 12.8 or newer is needed";
    refused(&sinter(dir, &env, &["kernels", "compile"]), error);
    // The same file lacks all functions of a driver.
    library("nvrtc.cpp", dir, "libcuda.so", &[]);
    let env = [("LD_LIBRARY_PATH", dir.to_str().unwrap())];
    refused(&sinter(dir, &env, &["kernels", "check"]), "the CUDA driver (libcuda.so) has no function `cuInit`");
}

#[test]
fn kernels_are_compared_with_their_table() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    library("nvrtc.cpp", dir, "libnvrtc.so", &["-DCOMPLETE"]);
    let nvrtc = ("SINTER_NVRTC", dir.to_str().unwrap());
    let compile = |env: &[(&str, &str)], args: &[&str], code: i32| {
        let ended = sinter(dir, &[&[nvrtc], env].concat(), &[&["kernels", "compile"], args].concat());
        assert_eq!(ended.code, Some(code), "{args:?}\n{}\n{}", ended.stdout, ended.stderr);
        ended
    };
    let n = sinter_runtime::cuda::catalog().len();
    let name = sinter_runtime::cuda::catalog()[0].name.clone();
    let done = compile(&[], &["--table", "table.md"], 0).stdout;
    assert!(done.starts_with(&format!("NVRTC 13.0: {n} kernels for sm_80, sm_90, sm_100 in ")), "{done}");
    let table = std::fs::read_to_string(dir.join("table.md")).unwrap();
    assert!(table.contains(&format!("| `{name}` | 32, 128 shared | 32, 128 shared | 32, 128 shared |")), "{table}");
    // Printed where no file is named, for some kernels and architectures.
    let shown = compile(&[], &["--only", &name, "--arch", "90"], 0).stdout;
    assert!(shown.contains("| kernel | sm_90 |"), "{shown}");

    compile(&[], &["--check", "table.md"], 0);
    compile(&[("FAKE_REGISTERS", "31")], &["--check", "table.md"], 0);
    let more = compile(&[("FAKE_REGISTERS", "33")], &["--check", "table.md", "--only", &name], 1).stderr;
    assert!(more.contains(&format!("{name} sm_80: 33 registers for 32\n")), "{more}");
    assert!(more.contains("check failed: ") && more.contains("`make kernels-bless` accepts"), "{more}");
    std::fs::write(dir.join("other.md"), table.replace(&format!("`{name}`"), "`gone`")).unwrap();
    let other = compile(&[], &["--check", "other.md"], 1).stderr;
    assert!(other.starts_with("gone: in the table, but not a kernel any more\n"), "{other}");
    assert!(other.contains(&format!("{name}: new, not in the table\n")), "{other}");

    let spilled = compile(&[("FAKE_SPILL", "8")], &["--only", &name], 1).stderr;
    assert!(spilled.contains(&format!("{name} sm_100: 8 bytes of registers are spilled\n")), "{spilled}");
    let warned = compile(&[("FAKE_WARNING", "x.cu(1): warning #177-D: unused")], &["--only", &name], 1).stderr;
    assert!(warned.contains("(sm_80, sm_90, sm_100): x.cu(1): warning #177-D: unused\n"), "{warned}");

    let error = |args: &[&str], text: &str| {
        refused(&sinter(dir, &[nvrtc], &[&["kernels", "compile"], args].concat()), text);
    };
    error(&["--arch", "70"], "NVRTC 13.0 makes no code for compute capability 70; it supports [80, 90, 100]");
    std::fs::write(dir.join("older.md"), table.replace("NVRTC 13.0", "NVRTC 12.8")).unwrap();
    error(&["--check", "older.md"], "older.md was made by NVRTC 12.8, this is NVRTC 13.0");
    std::fs::write(dir.join("torn.md"), "nothing").unwrap();
    error(&["--check", "torn.md"], "torn.md is no table of kernels: line 1");
}

#[test]
fn the_check_on_a_gpu_says_that_there_is_none() {
    let path = ["/usr/bin", "/bin"];
    if path.iter().any(|p| Path::new(p).join("nvidia-smi").exists()) {
        println!("skipped: this machine may have a GPU");
        return;
    }
    let script = root().join("benches/gpu/check.sh");
    refused_script(&ended(Command::new("bash").arg(script).env("PATH", path.join(":"))));
}

fn refused_script(ended: &Ended) {
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert_eq!(ended.stderr, "gpu-check: this machine has no NVIDIA GPU (nvidia-smi sees none)\n");
}

#[test]
fn the_comparison_with_pytorch_judges_its_numbers() {
    let folder = root().join("benches/gpu");
    let python = |args: &[&str]| {
        // No bytecode is left in the folder.
        Command::new("python3").arg("-B").args(args).current_dir(&folder).output()
    };
    let Ok(out) = python(&["-m", "unittest", "-q", "test_torch_compare"]) else {
        println!("skipped: there is no python3");
        return;
    };
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    for file in ["torch_compare.py", "triton_kernels.py"] {
        let out = python(&["-c", "import ast, sys; ast.parse(open(sys.argv[1]).read())", file]).unwrap();
        assert!(out.status.success(), "{file}: {}", String::from_utf8_lossy(&out.stderr));
    }
}
