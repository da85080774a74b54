//! Places that cannot be written: nothing is left behind, and what was there stays.

use crate::bad_input::{check_all, listing, llama, llama_with};
use crate::{cli, fixtures};

#[test]
fn output_places() {
    let text = check_all(&[
        ("occupied", |d| {
            std::fs::create_dir(d.join("out")).unwrap();
            std::fs::write(d.join("out/thesis.txt"), "mine").unwrap();
            llama_with(d, &[])
        }),
        ("a-file", |d| {
            std::fs::write(d.join("out"), "mine").unwrap();
            llama_with(d, &[])
        }),
        ("under-a-file", |d| {
            std::fs::write(d.join("file"), "mine").unwrap();
            llama(d);
            vec!["optimize", "model.onnx", "-o", "file/out"]
        }),
        ("report-in-no-folder", |d| {
            llama(d);
            vec!["optimize", "model.onnx", "--report", "absent/report.json"]
        }),
        ("report-in-no-folder-beside-a-plan", |d| llama_with(d, &["--report", "absent/report.json"])),
        ("outputs-under-a-file", |d| {
            fixtures::copy(&fixtures::model("llama-dynamo-op18-past"), &d.join("model"));
            std::fs::write(d.join("file"), "mine").unwrap();
            vec!["run", "model/model.onnx", "--inputs", "model", "--outputs", "file/out"]
        }),
        ("report-is-a-folder", |d| {
            std::fs::create_dir(d.join("out")).unwrap();
            llama(d);
            vec!["optimize", "model.onnx", "--report", "out"]
        }),
    ]);
    insta::assert_snapshot!(text);
}

/// A small file system of its own, gone at the end of the test.
struct Mount(tempfile::TempDir);

impl Mount {
    fn tiny() -> Option<Mount> {
        let dir = tempfile::tempdir().unwrap();
        let mount = ["-t", "tmpfs", "-o", "size=256k", "sinter-test"];
        let done = std::process::Command::new("mount").args(mount).arg(dir.path()).output();
        done.is_ok_and(|o| o.status.success()).then(|| Mount(dir))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        drop(std::process::Command::new("umount").arg(self.0.path()).output());
    }
}

#[test]
fn a_full_disk() {
    let Some(mount) = Mount::tiny() else {
        println!("skipped: a small file system cannot be mounted here");
        return;
    };
    let dir = mount.0.path();
    let model = fixtures::model("llama-dynamo-op18-past").join("model.onnx");
    let out = dir.join("out");
    let ended = cli::sinter(dir, &["optimize", model.to_str().unwrap(), "-o", out.to_str().unwrap()]);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert_eq!(ended.stderr.matches("error:").count(), 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("No space left on device"), "{}", ended.stderr);
    assert!(listing(dir).is_empty(), "{:?}", listing(dir));
}

#[test]
fn an_unwritable_folder() {
    use std::os::unix::fs::PermissionsExt as _;
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    llama(dir);
    std::fs::create_dir(dir.join("locked")).unwrap();
    std::fs::set_permissions(dir.join("locked"), std::fs::Permissions::from_mode(0o555)).unwrap();
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sinter"));
    if std::fs::write(dir.join("locked/probe"), "").is_ok() {
        // The superuser may write everywhere; nobody may not.
        command = std::process::Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", env!("CARGO_BIN_EXE_sinter")]);
        let probe = std::process::Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", env!("CARGO_BIN_EXE_sinter"), "--version"])
            .output();
        if !probe.is_ok_and(|o| o.status.success()) {
            println!("skipped: this user may write everywhere, and cannot become another one");
            return;
        }
    }
    let out = command.current_dir(dir).args(["optimize", "model.onnx", "-o", "locked/out"]).output().unwrap();
    let ended = cli::Ended {
        code: out.status.code(),
        stdout: String::new(),
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
    };
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.starts_with("error: cannot write"), "{}", ended.stderr);
}

#[test]
fn a_report_to_a_device() {
    use std::os::unix::fs::FileTypeExt as _;
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    llama(dir);
    // Always full, like /dev/full.
    let made = std::process::Command::new("mknod").current_dir(dir).args(["full", "c", "1", "7"]).output();
    if !made.is_ok_and(|o| o.status.success()) || std::fs::File::options().write(true).open(dir.join("full")).is_err() {
        println!("skipped: no device can be made here");
        return;
    }
    let ended = cli::sinter(dir, &["optimize", "model.onnx", "--report", "full"]);
    let kind = std::fs::metadata(dir.join("full")).unwrap().file_type();
    assert!(kind.is_char_device(), "the device was replaced by a file");
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("No space left on device"), "{}", ended.stderr);
}
