//! Counts of runs of words: `TfIdfVectorizer`.

use std::collections::HashMap;

use crate::dim::Dim;
use crate::dtype::DType;
use crate::standard::infer::required;
use crate::standard::tensor::{Source, carried, unknown};
use crate::standard::{Args, Call, Data, Operand, Partial, StandardError, count, from_floats, integers};

type Result<T> = std::result::Result<T, StandardError>;
type Results = Result<Vec<Option<Data>>>;
type Types = Result<Vec<Partial>>;

/// A word or a number that stands for one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Word {
    Text(String),
    Number(i128),
}

/// The attributes, checked.
struct Vectorizer {
    /// Where runs are counted.
    columns: HashMap<Vec<Word>, usize>,
    width: usize,
    lengths: (usize, usize),
    skips: usize,
}

fn size(c: &Call, name: &str) -> Result<usize> {
    let v = c.required_int(name)?;
    usize::try_from(v).ok().filter(|&v| v < 1 << 20).ok_or_else(|| StandardError::new(format!("`{name}` is {v}")))
}

/// The columns of the result.
fn width(c: &Call) -> Result<usize> {
    let columns = c.ints("ngram_indexes").unwrap_or_default();
    let top = columns.iter().max().and_then(|&m| usize::try_from(m).ok());
    if columns.iter().any(|&i| i < 0) {
        return Err(StandardError::new("`ngram_indexes` has a negative column"));
    }
    top.map(|t| t + 1).ok_or_else(|| StandardError::new("attribute `ngram_indexes` is missing"))
}

impl Vectorizer {
    fn of(c: &Call) -> Result<Vectorizer> {
        let pool: Vec<Word> = match (c.texts("pool_strings"), c.ints("pool_int64s")) {
            (Some(t), _) if !t.is_empty() => t.iter().cloned().map(Word::Text).collect(),
            (_, Some(i)) => i.iter().map(|&i| Word::Number(i128::from(i))).collect(),
            _ => return Err(StandardError::new("there is no pool of runs")),
        };
        let lengths = (size(c, "min_gram_length")?.max(1), size(c, "max_gram_length")?);
        let starts = c.ints("ngram_counts").unwrap_or_default();
        let place = c.ints("ngram_indexes").unwrap_or_default();
        let mut columns = HashMap::new();
        let mut id = 0;
        for (i, &start) in starts.iter().enumerate() {
            let end = starts.get(i + 1).map_or(pool.len() as i64, |&e| e);
            let part = usize::try_from(start).ok().zip(usize::try_from(end).ok()).and_then(|(s, e)| pool.get(s..e));
            let part = part.ok_or_else(|| {
                StandardError::new(format!("`ngram_counts` is {starts:?}, the pool has {}", pool.len()))
            })?;
            for run in part.chunks_exact(i + 1) {
                let column = place.get(id).and_then(|&p| usize::try_from(p).ok());
                let column = column.ok_or_else(|| StandardError::new(format!("run {id} has no column")))?;
                id += 1;
                if (lengths.0..=lengths.1).contains(&run.len()) {
                    columns.insert(run.to_vec(), column);
                }
            }
        }
        Ok(Vectorizer { columns, width: width(c)?, lengths, skips: size(c, "max_skip_count")? })
    }

    /// Adds the runs of a row.
    fn count(&self, row: &[Word], out: &mut [f64]) {
        let (mut least, most) = self.lengths;
        for step in 1..=self.skips + 1 {
            for start in 0..row.len() {
                let mut run = vec![];
                let mut at = start;
                while run.len() < most && at < row.len() {
                    run.push(row[at].clone());
                    at += step;
                    if run.len() >= least
                        && let Some(&column) = self.columns.get(&run)
                    {
                        out[column] += 1.0;
                    }
                }
            }
            // Words alone are not counted again with a greater step.
            if least == 1 {
                least = 2;
                if least > most {
                    break;
                }
            }
        }
    }
}

pub(super) fn tf_idf(c: &Call, x: &Args<'_>) -> Results {
    let data = Source::of(x, 0)?;
    let words: Vec<Word> = match (data.texts(), data.numbers()) {
        (Some(t), _) => t.iter().cloned().map(Word::Text).collect(),
        (_, Some(v)) => integers(&v).into_iter().map(Word::Number).collect(),
        _ => vec![],
    };
    let v = Vectorizer::of(c)?;
    let (rows, per_row, shape) = match *data.shape {
        [] => (1, 1, vec![v.width]),
        [n] => (1, n, vec![v.width]),
        [rows, n] => (rows, n, vec![rows, v.width]),
        _ => return Err(StandardError::new(format!("{:?} is neither words nor rows of them", data.shape))),
    };
    count(DType::F64, &shape)?;
    let weights = c.floats("weights").unwrap_or_default();
    // By column, as ONNX Runtime and ONNX's reference read them.
    let weight = |column: usize| weights.get(column).copied().unwrap_or(1.0);
    let mut out = vec![];
    for r in 0..rows {
        let mut line = vec![0.0; v.width];
        v.count(&words[r * per_row..(r + 1) * per_row], &mut line);
        for (i, n) in line.iter_mut().enumerate() {
            *n = match c.text("mode") {
                Some("TF") => *n,
                Some("IDF") => {
                    if *n > 0.0 {
                        weight(i)
                    } else {
                        0.0
                    }
                }
                Some("TFIDF") => *n * weight(i),
                m => return Err(StandardError::new(format!("`mode` is {m:?}; there are TF, IDF and TFIDF"))),
            };
        }
        out.extend(line);
    }
    Ok(vec![Some(from_floats(DType::F32, &shape, out)?)])
}

pub(super) fn tf_idf_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let x = required(x, 0)?;
    let width = Some(Dim::from(width(c)? as i64));
    Ok(vec![match (&x.ty.shape[..], x.ty.dtype) {
        (_, DType::Opaque) => unknown(DType::F32, None),
        ([rows, _], _) => carried(DType::F32, [Some(rows.clone()), width]),
        _ => carried(DType::F32, [width]),
    }])
}
