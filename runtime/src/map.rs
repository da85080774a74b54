//! Read-only memory maps of files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use memmap2::Mmap;

/// Every map that exists by its address, so that `release` touches pages of files only.
static MAPS: Mutex<BTreeMap<usize, Weak<Mmap>>> = Mutex::new(BTreeMap::new());

/// The contents of a file, paged in on demand.
pub struct MappedFile {
    /// `None` for an empty file, which cannot be mapped.
    map: Option<Arc<Mmap>>,
}

impl MappedFile {
    /// Maps a file.
    pub fn open(path: &Path) -> io::Result<MappedFile> {
        // Opening a pipe would wait for a writer.
        let meta = std::fs::metadata(path)?;
        if meta.is_dir() {
            return Err(io::Error::other("is a directory"));
        }
        if !meta.is_file() {
            return Err(io::Error::other("is a pipe or device, not a file"));
        }
        let file = File::open(path)?;
        let meta = file.metadata()?;
        if meta.len() == 0 {
            return Ok(MappedFile { map: None });
        }
        // SAFETY: the map is read-only. Were another process to truncate the file meanwhile, reads
        // would end the process with SIGBUS; the documentation asks not to change files in use.
        let map = Arc::new(unsafe { Mmap::map(&file)? });
        let mut maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
        maps.retain(|_, m| m.strong_count() > 0);
        maps.insert(map.as_ptr() as usize, Arc::downgrade(&map));
        Ok(MappedFile { map: Some(map) })
    }
}

/// Tells the operating system that bytes of a mapped file are not needed for now: their pages leave this process
/// and are read from the file again when they are used. Bytes that are not of a mapped file are left alone.
pub fn release(bytes: &[u8]) {
    #[cfg(unix)]
    {
        let start = bytes.as_ptr() as usize;
        let found = {
            let maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
            maps.range(..=start).next_back().and_then(|(&base, map)| Some((start - base, map.upgrade()?)))
        };
        let Some((offset, map)) = found else { return };
        if offset.checked_add(bytes.len()).is_some_and(|end| end <= map.len()) {
            // SAFETY: the map is a read-only one of a file, so its pages hold the same contents when they are
            // read again. It is only advice: without it the pages stay.
            drop(unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, bytes.len()) });
        }
    }
    #[cfg(not(unix))]
    let _ = bytes;
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        self.map.as_ref().map_or(&[], |m| &m[..])
    }
}

impl std::ops::Deref for MappedFile {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.as_ref()
    }
}
