//! Tensors in NumPy's files: `.npy` and `.npz`.
//!
//! The extents in a header are not trusted: nothing larger than the data that is there is allocated.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use crate::dtype::DType;
use crate::tensor::{Tensor, byte_len};

/// Why a file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IoError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// The contents are not what NumPy writes.
    #[error("not a NumPy array: {0}")]
    Format(String),
    /// The array's element type has no counterpart here.
    #[error(
        "an array of type `{0}`; supported are f8, f4, f2, i8, i4, i2, i1, u8, u4, u2, u1, b1 in little-endian order and bfloat16"
    )]
    DType(String),
    /// A problem with one array of an archive.
    #[error("{}: array `{name}`: {source}", path.display())]
    Member {
        /// The archive.
        path: PathBuf,
        /// Name of the array.
        name: String,
        /// The problem.
        source: Box<IoError>,
    },
}

fn format(why: impl Into<String>) -> IoError {
    IoError::Format(why.into())
}

/// Longer headers are refused; NumPy's own have fewer than 200 bytes.
const MAX_HEADER: usize = 1 << 16;

/// Reads the contents of a `.npy` file.
pub fn read_npy(bytes: &[u8]) -> Result<Tensor, IoError> {
    let mut rest = bytes;
    let header = read_header(&mut rest)?;
    let Header { dtype, shape, .. } = &header;
    let n = byte_len(*dtype, shape).ok_or_else(|| format(format!("{dtype}{shape:?} is too large")))?;
    if rest.len() != n {
        return Err(format(format!("{dtype}{shape:?} needs {n} bytes, there are {}", rest.len())));
    }
    tensor(&header, rest)
}

/// Reads a `.npy` file.
pub fn read_npy_file(path: &Path) -> Result<Tensor, IoError> {
    let file = |source| IoError::File { path: path.to_owned(), source };
    let map = crate::map::MappedFile::open(path).map_err(file)?;
    read_npy(&map).map_err(|e| file(std::io::Error::other(e.to_string())))
}

/// What a `.npy` file says of its array.
struct Header {
    dtype: DType,
    shape: Vec<usize>,
    /// Whether the first index runs fastest.
    by_columns: bool,
}

fn tensor(header: &Header, bytes: &[u8]) -> Result<Tensor, IoError> {
    let Header { dtype, shape, by_columns } = header;
    let mut t = Tensor::from_bytes(*dtype, shape, bytes).map_err(|e| format(e.to_string()))?;
    if *by_columns && shape.len() > 1 {
        by_rows(shape, dtype.size(), bytes, t.bytes_mut());
    }
    if *dtype == DType::Bool {
        t.bytes_mut().iter_mut().for_each(|b| *b = u8::from(*b != 0));
    }
    Ok(t)
}

/// Elements whose first index runs fastest, in the order in which the last one does.
fn by_rows(shape: &[usize], size: usize, from: &[u8], to: &mut [u8]) {
    let strides: Vec<usize> = shape
        .iter()
        .scan(size, |s, &d| {
            let stride = *s;
            *s *= d;
            Some(stride)
        })
        .collect();
    let mut index = vec![0; shape.len()];
    let mut at = 0;
    for element in to.chunks_exact_mut(size) {
        element.copy_from_slice(&from[at..at + size]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
}

/// Reads magic, version and header, and leaves the source at the first element.
fn read_header(source: &mut impl Read) -> Result<Header, IoError> {
    let mut exact = |n: usize| {
        let mut v = vec![0; n];
        source.read_exact(&mut v).map_err(|e| format(format!("the header ends early: {e}"))).map(|()| v)
    };
    let magic = exact(8)?;
    if &magic[..6] != b"\x93NUMPY" {
        return Err(format("it does not start with `\\x93NUMPY`"));
    }
    let len = match magic[6] {
        1 => exact(2)?.iter().rev().fold(0usize, |n, &b| n << 8 | usize::from(b)),
        2 | 3 => exact(4)?.iter().rev().fold(0usize, |n, &b| n << 8 | usize::from(b)),
        v => return Err(format(format!("format version {v}"))),
    };
    if len > MAX_HEADER {
        return Err(format(format!("a header of {len} bytes")));
    }
    let header = exact(len)?;
    let header = String::from_utf8_lossy(&header);
    let value = |key: &str| {
        let at = [format!("'{key}'"), format!("\"{key}\"")].iter().find_map(|k| Some(header.find(k)? + k.len()))?;
        Some(header[at..].trim_start().strip_prefix(':')?.trim_start())
    };
    let missing = |key: &str| format(format!("the header has no `{key}`"));
    let descr = value("descr").ok_or_else(|| missing("descr"))?;
    let quote = descr.chars().next().filter(|c| *c == '\'' || *c == '"');
    let Some(quote) = quote else { return Err(IoError::DType("a record".to_owned())) };
    let descr = descr[1..].split(quote).next().unwrap_or_default();
    let dtype = dtype_of(descr).ok_or_else(|| IoError::DType(descr.to_owned()))?;
    let order = value("fortran_order").ok_or_else(|| missing("fortran_order"))?;
    let by_columns = match order {
        o if o.starts_with("True") => true,
        o if o.starts_with("False") => false,
        _ => return Err(format("`fortran_order` is neither True nor False")),
    };
    let shape = value("shape").and_then(|s| s.strip_prefix('(')?.split_once(')')).ok_or_else(|| missing("shape"))?.0;
    let shape = shape
        .split(',')
        .map(str::trim)
        .filter(|s| !s.is_empty())
        .map(|s| s.trim_end_matches('L').parse().map_err(|_| format(format!("an extent of `{s}`"))))
        .collect::<Result<Vec<usize>, _>>()?;
    Ok(Header { dtype, shape, by_columns })
}

fn dtype_of(descr: &str) -> Option<DType> {
    let plain = descr.strip_prefix(['<', '=', '|']).unwrap_or(descr);
    Some(match plain {
        "f8" => DType::F64,
        "f4" => DType::F32,
        "f2" => DType::F16,
        "i8" => DType::I64,
        "i4" => DType::I32,
        "i1" => DType::I8,
        "u1" => DType::U8,
        "b1" | "?" => DType::Bool,
        "i2" => DType::I16,
        "u2" => DType::U16,
        "u4" => DType::U32,
        "u8" => DType::U64,
        // ml_dtypes has no descriptor of its own; NumPy writes its bfloat16 as two untyped bytes.
        "V2" | "bfloat16" => DType::BF16,
        _ => return None,
    })
}

/// The element type of the array in which elements are written: another one where NumPy lacks theirs.
pub fn stored_as(dtype: DType) -> DType {
    dtype_of(descr(dtype)).unwrap_or(dtype)
}

fn descr(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "<f8",
        DType::F32 => "<f4",
        DType::F16 => "<f2",
        DType::BF16 => "<V2",
        DType::I64 => "<i8",
        DType::I32 => "<i4",
        DType::I8 => "|i1",
        DType::U8 => "|u1",
        DType::Bool => "|b1",
        DType::I16 => "<i2",
        DType::U16 => "<u2",
        DType::U32 => "<u4",
        DType::U64 => "<u8",
        // NumPy has no such types; their codes are written as bytes.
        DType::I4 | DType::I2 => "|i1",
        _ => "|u1",
    }
}

/// An `.npz` archive, whose arrays are read one by one.
pub struct Npz {
    path: PathBuf,
    archive: zip::ZipArchive<BufReader<File>>,
    /// By array, its name and place in the archive.
    names: Vec<(String, usize)>,
}

impl Npz {
    /// Opens an archive and reads its directory.
    pub fn open(path: &Path) -> Result<Npz, IoError> {
        let file = |source| IoError::File { path: path.to_owned(), source };
        let zip_error = |e: zip::result::ZipError| file(std::io::Error::other(e.to_string()));
        if !std::fs::metadata(path).map_err(file)?.is_file() {
            return Err(file(std::io::Error::other("is neither a folder nor a file")));
        }
        let opened = File::open(path).map_err(file)?;
        let mut archive = zip::ZipArchive::new(BufReader::new(opened)).map_err(zip_error)?;
        let mut names = vec![];
        for i in 0..archive.len() {
            let entry = archive.by_index_raw(i).map_err(zip_error)?;
            if let Some(name) = entry.name().strip_suffix(".npy") {
                names.push((name.to_owned(), i));
            }
        }
        Ok(Npz { path: path.to_owned(), archive, names })
    }

    /// The names of all arrays, in the order of the archive.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|(name, _)| name.as_str())
    }

    /// Reads an array; `None` where there is none of the name.
    pub fn read(&mut self, name: &str) -> Result<Option<Tensor>, IoError> {
        let Some((_, i)) = self.names.iter().find(|(n, _)| n == name) else { return Ok(None) };
        let path = self.path.clone();
        let zip_error = |e: zip::result::ZipError| IoError::File {
            path: path.clone(),
            source: std::io::Error::other(e.to_string()),
        };
        let mut entry = self.archive.by_index(*i).map_err(zip_error)?;
        let member = |e| IoError::Member { path: path.clone(), name: name.to_owned(), source: Box::new(e) };
        read_member(&mut entry).map(Some).map_err(member)
    }
}

fn read_member(entry: &mut impl Read) -> Result<Tensor, IoError> {
    let header = read_header(entry)?;
    let Header { dtype, shape, .. } = &header;
    let n = byte_len(*dtype, shape).ok_or_else(|| format(format!("{dtype}{shape:?} is too large")))?;
    // Grows with the data that is there, and stops behind the last element.
    let mut data = vec![];
    let read = entry.take(n as u64 + 1).read_to_end(&mut data).map_err(|e| format(e.to_string()))?;
    if read != n {
        let relation = if read < n { "there are fewer" } else { "there are more" };
        return Err(format(format!("{dtype}{shape:?} needs {n} bytes, {relation}")));
    }
    tensor(&header, &data)
}

/// Writes a `.npy` file.
pub fn write_npy(path: &Path, tensor: &Tensor) -> Result<(), IoError> {
    let shape: String = tensor.shape.iter().map(|d| format!("{d}, ")).collect();
    // One extent keeps its comma, which makes it a tuple for Python.
    let shape = if tensor.shape.len() == 1 { shape.trim_end() } else { shape.trim_end_matches(", ") };
    let mut header = format!("{{'descr': '{}', 'fortran_order': False, 'shape': ({shape}), }}", descr(tensor.dtype));
    // The data starts at a multiple of 64; the prefix has ten bytes and the header ends with a newline.
    let padding = (10 + header.len() + 1).next_multiple_of(64) - (10 + header.len() + 1);
    header.extend(std::iter::repeat_n(' ', padding));
    header.push('\n');
    let len = u16::try_from(header.len()).map_err(|_| format("a shape with too many axes"))?;
    let write = || {
        let mut f = File::create(path)?;
        f.write_all(b"\x93NUMPY\x01\x00")?;
        f.write_all(&len.to_le_bytes())?;
        f.write_all(header.as_bytes())?;
        f.write_all(tensor.bytes())
    };
    write().map_err(|source| IoError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(header: &str, data: &[u8]) -> Vec<u8> {
        let mut v = b"\x93NUMPY\x01\x00".to_vec();
        v.extend((header.len() as u16).to_le_bytes());
        v.extend(header.as_bytes());
        v.extend(data);
        v
    }

    #[test]
    fn written_arrays_read_back() {
        let dir = std::env::temp_dir().join(format!("sinter-io-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("x.npy");
        for dtype in DType::CORE.into_iter().chain([DType::I16, DType::U16, DType::U32, DType::U64]) {
            for shape in [&[][..], &[3], &[2, 3], &[0, 4]] {
                let mut t = Tensor::zeros(dtype, shape).unwrap();
                t.bytes_mut().iter_mut().enumerate().for_each(|(i, b)| *b = (i % 2) as u8);
                write_npy(&path, &t).unwrap();
                assert_eq!(read_npy_file(&path).unwrap(), t);
                assert_eq!(std::fs::read(&path).unwrap().len() % 64, t.bytes().len() % 64);
            }
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn reads_archives() {
        let path = std::env::temp_dir().join(format!("sinter-io-{}.npz", std::process::id()));
        let mut z = zip::ZipWriter::new(File::create(&path).unwrap());
        for (name, method) in [("a.npy", zip::CompressionMethod::Stored), ("b/c.npy", zip::CompressionMethod::Deflated)]
        {
            z.start_file(name, zip::write::SimpleFileOptions::default().compression_method(method)).unwrap();
            z.write_all(&npy("{'descr': '<i4', 'fortran_order': False, 'shape': (2,), }", &[1, 0, 0, 0, 2, 0, 0, 0]))
                .unwrap();
        }
        z.start_file("d.npy", zip::write::SimpleFileOptions::default()).unwrap();
        z.write_all(&npy("{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999,), }", &[])).unwrap();
        z.finish().unwrap();
        let mut npz = Npz::open(&path).unwrap();
        assert_eq!(npz.names().collect::<Vec<_>>(), ["a", "b/c", "d"]);
        assert_eq!(npz.read("a").unwrap().unwrap().to_f64(), [1.0, 2.0]);
        assert!(npz.read("x").unwrap().is_none());
        let e = npz.read("d").unwrap_err().to_string();
        assert!(e.contains("array `d`") && e.contains("there are fewer"), "{e}");
        let mut z = zip::ZipWriter::new(File::create(&path).unwrap());
        z.start_file("b/c.npy", zip::write::SimpleFileOptions::default()).unwrap();
        z.write_all(&npy("{'descr': '<i4', 'fortran_order': False, 'shape': (), }", &[7, 0, 0, 0])).unwrap();
        z.finish().unwrap();
        assert_eq!(Npz::open(&path).unwrap().read("b/c").unwrap().unwrap().to_f64(), [7.0]);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn reads_arrays_by_columns() {
        let read = |shape: &str, data: &[u8]| {
            read_npy(&npy(&format!("{{'descr': '|u1', 'fortran_order': True, 'shape': {shape}, }}"), data)).unwrap()
        };
        assert_eq!(read("(2, 3)", &[0, 3, 1, 4, 2, 5]).bytes(), [0, 1, 2, 3, 4, 5]);
        let t = read("(2, 3, 2)", &[0, 6, 2, 8, 4, 10, 1, 7, 3, 9, 5, 11]);
        assert_eq!((t.bytes(), &t.shape[..]), (&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11][..], &[2, 3, 2][..]));
        assert_eq!(read("(3,)", &[1, 2, 3]).bytes(), [1, 2, 3]);
        assert_eq!(read("()", &[7]).bytes(), [7]);
        assert!(read("(2, 0, 3)", &[]).bytes().is_empty());
    }

    #[test]
    fn refuses_what_it_cannot_read() {
        let with = |descr: &str, order: &str, shape: &str, data: &[u8]| {
            read_npy(&npy(&format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"), data))
        };
        assert!(with("'<f4'", "Maybe", "(1,)", &[0; 4]).is_err());
        assert!(matches!(with("'<c8'", "False", "(1,)", &[0; 8]), Err(IoError::DType(d)) if d == "<c8"));
        assert!(matches!(with("'>f4'", "False", "(1,)", &[0; 4]), Err(IoError::DType(_))));
        assert!(matches!(with("[('a', '<f4')]", "False", "(1,)", &[0; 4]), Err(IoError::DType(_))));
        assert!(with("'<f4'", "False", "(2,)", &[0; 4]).is_err());
        assert!(with("'<f4'", "False", "(-1,)", &[0; 4]).is_err());
        assert!(with("'<f8'", "False", "(18446744073709551615, 2)", &[]).is_err());
        assert_eq!(with("'<V2'", "False", "()", &[0x80, 0x3f]).unwrap().to_f64(), [1.0]);
        let whole = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", &[0; 4]);
        for n in 0..whole.len() {
            assert!(read_npy(&whole[..n]).is_err());
        }
        for i in 0..whole.len() {
            for b in [0, 0x27, 0x28, 0xff] {
                let mut bad = whole.clone();
                bad[i] = b;
                drop(read_npy(&bad));
            }
        }
    }
}
