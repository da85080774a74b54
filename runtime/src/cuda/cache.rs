//! Compiled modules on disk, by the hash of everything that determines them.

use std::path::{Path, PathBuf};

use super::source::FILES;
use super::{Compiler, Image, Target};

/// First bytes of a cached file, before the digest of its contents.
const MAGIC: &[u8] = b"sinter module 1\n";

/// The variable that names the folder; an empty value switches the cache off.
const FOLDER: &str = "SINTER_KERNEL_CACHE";

/// A folder of compiled modules.
///
/// A cache that cannot be read or written costs time and nothing else: damaged files are compiled again, and a full disk
/// leaves no file behind.
#[derive(Clone, Debug)]
pub struct ModuleCache {
    folder: Option<PathBuf>,
}

impl ModuleCache {
    /// The user's cache: `SINTER_KERNEL_CACHE`, else `sinter/kernels` in `XDG_CACHE_HOME` or `~/.cache`.
    pub fn of_user() -> ModuleCache {
        if let Some(folder) = std::env::var_os(FOLDER) {
            return ModuleCache { folder: Some(folder).filter(|f| !f.is_empty()).map(PathBuf::from) };
        }
        let home = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let base = home("XDG_CACHE_HOME").or_else(|| Some(home("HOME")?.join(".cache")));
        ModuleCache { folder: base.map(|b| b.join("sinter").join("kernels")) }
    }

    /// A cache in a folder.
    pub fn at(folder: &Path) -> ModuleCache {
        ModuleCache { folder: Some(folder.to_owned()) }
    }

    /// What identifies a module: its source, every file it may include, the options, which name the architecture, and NVRTC's version. Devices
    /// of one architecture share modules.
    pub fn key(source: &str, target: Target, compiler: &Compiler) -> String {
        let mut h = blake3::Hasher::new();
        let mut part = |bytes: &[u8]| {
            h.update(&(bytes.len() as u64).to_le_bytes());
            h.update(bytes);
        };
        part(source.as_bytes());
        for (name, text) in FILES {
            part(name.as_bytes());
            part(text.as_bytes());
        }
        Compiler::options(target, false).iter().for_each(|o| part(o.as_bytes()));
        part(format!("{}.{}", compiler.version.0, compiler.version.1).as_bytes());
        h.finalize().to_hex().to_string()
    }

    /// A module that was stored before, if it is whole.
    pub fn load(&self, key: &str) -> Option<Image> {
        let bytes = std::fs::read(self.path(key)?).ok()?;
        let (digest, image) = bytes.strip_prefix(MAGIC)?.split_at_checked(blake3::OUT_LEN)?;
        (blake3::hash(image).as_bytes() == digest).then(|| image.to_vec())
    }

    /// Stores a module; whether that succeeded.
    pub fn store(&self, key: &str, image: &[u8]) -> bool {
        let Some(path) = self.path(key) else { return false };
        let Some(folder) = path.parent() else { return false };
        // The name is unique per process and module, so that no two writers share a file.
        let temporary = folder.join(format!(".{key}.{}", std::process::id()));
        let bytes = [MAGIC, blake3::hash(image).as_bytes(), image].concat();
        let done = std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(&temporary, bytes))
            .and_then(|()| std::fs::rename(&temporary, &path))
            .is_ok();
        if !done {
            // Nothing half-written stays; where this fails too, there is nothing to remove.
            let _ = std::fs::remove_file(&temporary);
        }
        done
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{key}.bin")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiler(minor: i32) -> Compiler {
        Compiler { version: (13, minor), supported: vec![80, 90] }
    }

    #[test]
    fn a_key_follows_source_target_and_version() {
        let key = |source: &str, target, minor| ModuleCache::key(source, target, &compiler(minor));
        let base = key("a", Target::Machine(90), 0);
        assert_eq!(base, key("a", Target::Machine(90), 0));
        let others = [
            key("b", Target::Machine(90), 0),
            key("a", Target::Machine(80), 0),
            key("a", Target::Ptx(90), 0),
            key("a", Target::Machine(90), 1),
        ];
        assert!(others.iter().all(|o| *o != base));
    }

    #[test]
    fn damaged_files_are_not_loaded_and_failures_leave_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let cache = ModuleCache::at(&folder.path().join("deep"));
        assert_eq!(cache.load("k"), None);
        assert!(cache.store("k", b"image"));
        assert_eq!(cache.load("k").as_deref(), Some(&b"image"[..]));
        let path = folder.path().join("deep").join("k.bin");
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(cache.load("k"), None);
        std::fs::write(&path, &bytes[..20]).unwrap();
        assert_eq!(cache.load("k"), None);

        // A folder below a file cannot be made.
        let blocked = ModuleCache::at(&path.join("x"));
        assert!(!blocked.store("k", b"image"));
        assert_eq!(std::fs::read_dir(folder.path().join("deep")).unwrap().count(), 1);
    }

    #[test]
    fn the_target_is_the_device_or_the_newest_ptx_below_it() {
        let c = compiler(0);
        assert_eq!(c.target(90).unwrap(), Target::Machine(90));
        assert_eq!(c.target(120).unwrap(), Target::Ptx(90));
        assert!(c.target(75).unwrap_err().to_string().contains("75"));
    }
}
