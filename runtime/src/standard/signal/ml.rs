//! Operators of `ai.onnx.ml` on features: labels, scales and linear models.

use std::collections::HashMap;

use crate::dim::Dim;
use crate::dtype::DType;
use crate::standard::infer::required;
use crate::standard::tensor::{Source, carried, dims};
use crate::standard::{
    Args, Call, Constant, Data, Operand, Partial, StandardError, Strings, floats, from_floats, from_ints,
};

type Result<T> = std::result::Result<T, StandardError>;
type Results = Result<Vec<Option<Data>>>;
type Types = Result<Vec<Partial>>;

pub(super) fn array_feature_extractor(_: &Call, x: &Args<'_>) -> Results {
    let data = Source::of(x, 0)?;
    let list = x.ints(1)?.ok_or_else(|| StandardError::new("operand 1, the indices, is missing"))?;
    let &n = data.shape.last().ok_or_else(|| StandardError::new("a scalar has no features"))?;
    let at: Vec<usize> = list
        .iter()
        .map(|&i| {
            usize::try_from(i).ok().filter(|&i| i < n).ok_or_else(|| StandardError::new(format!("feature {i} of {n}")))
        })
        .collect::<Result<_>>()?;
    let mut shape = if data.rank() == 1 { vec![1, 1] } else { data.shape.to_vec() };
    let last = shape.len() - 1;
    shape[last] = at.len();
    let rows = data.len() / n.max(1);
    Ok(vec![Some(data.take(&shape, 1, (0..rows).flat_map(|r| at.iter().map(move |i| r * n + i)))?)])
}

pub(super) fn array_feature_extractor_type(_: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let (data, at) = (required(x, 0)?, required(x, 1)?);
    if data.ty.dtype == DType::Opaque {
        return Ok(vec![Partial::opaque()]);
    }
    let mut shape = if data.rank() == 1 { vec![Some(Dim::from(1)); 2] } else { dims(&data) };
    if let Some(d) = shape.last_mut() {
        *d = Some(at.ty.elements());
    }
    Ok(vec![carried(data.ty.dtype, shape)])
}

pub(super) fn binarizer(c: &Call, x: &Args<'_>) -> Results {
    let v = x.tensor(0)?;
    let threshold = c.float("threshold").unwrap_or(0.0);
    Ok(vec![Some(from_floats(v.dtype, v.shape, floats(&v).into_iter().map(|v| f64::from(u8::from(v > threshold))))?)])
}

/// A label as a key: floats by their bits, so that NaN is one key and both zeros are one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Label {
    Number(u64),
    Text(String),
}

impl Label {
    fn number(v: f64) -> Label {
        Label::Number(if v == 0.0 {
            0
        } else if v.is_nan() {
            f64::NAN.to_bits()
        } else {
            v.to_bits()
        })
    }
}

/// Labels with their element type.
struct Labels {
    dtype: DType,
    numbers: Vec<f64>,
    texts: Vec<String>,
}

impl Labels {
    fn constant(t: &Constant) -> Result<Labels> {
        match Data::constant(t)? {
            Data::Tensor(t) => Ok(Labels { dtype: t.dtype, numbers: t.to_f64(), texts: vec![] }),
            Data::Strings(s) => Ok(Labels { dtype: DType::Opaque, numbers: vec![], texts: s.values.clone() }),
            _ => Err(StandardError::new("labels that are no tensor")),
        }
    }

    /// The labels of the attributes `prefix_tensor`, `prefix_strings` and so on.
    fn of(c: &Call, prefix: &str) -> Result<Option<Labels>> {
        let name = |kind: &str| format!("{prefix}_{kind}");
        if let Some(t) = c.constant(&name("tensor")) {
            return Labels::constant(t).map(Some);
        }
        if let Some(t) = c.texts(&name("strings")) {
            return Ok(Some(Labels { dtype: DType::Opaque, numbers: vec![], texts: t.to_vec() }));
        }
        if let Some(t) = c.ints(&name("int64s")) {
            return Ok(Some(Labels {
                dtype: DType::I64,
                numbers: t.iter().map(|&v| v as f64).collect(),
                texts: vec![],
            }));
        }
        Ok(c.floats(&name("floats")).map(|numbers| Labels { dtype: DType::F32, numbers, texts: vec![] }))
    }

    fn len(&self) -> usize {
        self.numbers.len().max(self.texts.len())
    }

    fn label(&self, i: usize) -> Label {
        match self.texts.get(i) {
            Some(t) => Label::Text(t.clone()),
            None => Label::number(self.numbers.get(i).copied().unwrap_or(0.0)),
        }
    }

    /// What unknown labels become, at position 0.
    fn default_of(c: &Call, dtype: DType) -> Result<Labels> {
        if let Some(t) = c.constant("default_tensor") {
            return Labels::constant(t);
        }
        let text = c.text("default_string").unwrap_or("_Unused").to_owned();
        Ok(match dtype {
            DType::Opaque => Labels { dtype, numbers: vec![], texts: vec![text] },
            d if d.is_float() => {
                Labels { dtype, numbers: vec![c.float("default_float").unwrap_or(-0.0)], texts: vec![] }
            }
            _ => Labels { dtype, numbers: vec![c.int("default_int64").unwrap_or(-1) as f64], texts: vec![] },
        })
    }
}

/// Keys, values and the default of `LabelEncoder`; its first version maps between strings and their positions.
fn encoder(c: &Call, text: bool) -> Result<(Labels, Labels, Labels)> {
    let (keys, values) = match c.texts("classes_strings") {
        Some(t) => {
            let names = Labels { dtype: DType::Opaque, numbers: vec![], texts: t.to_vec() };
            let places = Labels { dtype: DType::I64, numbers: (0..t.len()).map(|i| i as f64).collect(), texts: vec![] };
            if text { (names, places) } else { (places, names) }
        }
        None => {
            let missing = |what: &str| StandardError::new(format!("the {what} are missing"));
            (
                Labels::of(c, "keys")?.ok_or_else(|| missing("keys"))?,
                Labels::of(c, "values")?.ok_or_else(|| missing("values"))?,
            )
        }
    };
    if keys.len() != values.len() {
        return Err(StandardError::new(format!("{} keys for {} values", keys.len(), values.len())));
    }
    let default = Labels::default_of(c, values.dtype)?;
    Ok((keys, values, default))
}

pub(super) fn label_encoder(c: &Call, x: &Args<'_>) -> Results {
    let data = Source::of(x, 0)?;
    let (keys, values, default) = encoder(c, data.texts().is_some())?;
    let mut table: HashMap<Label, usize> = HashMap::new();
    for i in 0..keys.len() {
        table.insert(keys.label(i), i);
    }
    let labels: Vec<Label> = match (data.texts(), data.numbers()) {
        (Some(t), _) => t.iter().cloned().map(Label::Text).collect(),
        (_, Some(v)) => floats(&v).into_iter().map(Label::number).collect(),
        _ => vec![],
    };
    let found = labels.iter().map(|l| table.get(l).copied());
    Ok(vec![Some(match values.dtype {
        DType::Opaque => {
            let text = |i: Option<usize>| {
                i.and_then(|i| values.texts.get(i)).or(default.texts.first()).cloned().unwrap_or_default()
            };
            Strings { shape: data.shape.to_vec(), values: found.map(text).collect() }.into()
        }
        d => {
            let number = |i: Option<usize>| {
                i.and_then(|i| values.numbers.get(i)).or(default.numbers.first()).copied().unwrap_or(0.0)
            };
            match d.is_float() || d.is_minifloat() {
                true => from_floats(d, data.shape, found.map(number))?,
                false => from_ints(d, data.shape, found.map(|i| number(i) as i128))?,
            }
        }
    })])
}

pub(super) fn label_encoder_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let data = required(x, 0)?;
    let text = data.ty.dtype == DType::Opaque;
    let (_, values, _) = encoder(c, text)?;
    Ok(vec![match (text, values.dtype) {
        (_, DType::Opaque) => Partial::opaque(),
        (true, d) => Partial::unranked(d),
        (false, d) => carried(d, dims(&data)),
    }])
}

pub(super) fn scaler(c: &Call, x: &Args<'_>) -> Results {
    let v = x.tensor(0)?;
    let n = v.shape.last().copied().unwrap_or(1);
    let list = |name: &str, default: f64| c.floats(name).filter(|l| !l.is_empty()).unwrap_or_else(|| vec![default]);
    let (offset, scale) = (list("offset", 0.0), list("scale", 1.0));
    if [&offset, &scale].iter().any(|l| l.len() != 1 && l.len() != n) {
        return Err(StandardError::new(format!(
            "{} offsets and {} scales for {n} features",
            offset.len(),
            scale.len()
        )));
    }
    let at = |l: &[f64], i: usize| l[if l.len() == 1 { 0 } else { i % n }];
    let out = floats(&v).into_iter().enumerate().map(|(i, v)| (v - at(&offset, i)) * at(&scale, i));
    Ok(vec![Some(from_floats(DType::F32, v.shape, out)?)])
}

pub(super) fn normalizer(c: &Call, x: &Args<'_>) -> Results {
    let v = x.tensor(0)?;
    let n = v.shape.last().copied().unwrap_or(1).max(1);
    let mut values = floats(&v);
    for row in values.chunks_exact_mut(n) {
        let norm = match c.text("norm").unwrap_or("MAX") {
            "MAX" => row.iter().fold(0.0, |m: f64, v| m.max(v.abs())),
            "L1" => row.iter().map(|v| v.abs()).sum(),
            "L2" => row.iter().map(|v| v * v).sum::<f64>().sqrt(),
            m => return Err(StandardError::new(format!("`norm` is `{m}`; there are MAX, L1 and L2"))),
        };
        row.iter_mut().for_each(|v| *v /= norm.max(1e-30));
    }
    Ok(vec![Some(from_floats(DType::F32, v.shape, values)?)])
}

pub(super) fn same_f32(_: &Call, x: &[Option<Operand<'_>>]) -> Types {
    Ok(vec![carried(DType::F32, dims(&required(x, 0)?))])
}

/// Applies the attribute `post_transform` to the scores of a row.
pub(super) fn transformed(name: &str, row: &mut [f64]) -> Result<()> {
    let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    match name {
        "NONE" => {}
        "LOGISTIC" => row.iter_mut().for_each(|v| *v = 1.0 / (1.0 + (-*v).exp())),
        "SOFTMAX" | "SOFTMAX_ZERO" => {
            let zero = name == "SOFTMAX_ZERO";
            // The variant leaves scores of zero at zero.
            row.iter_mut()
                .for_each(|v| *v = if zero && v.abs() <= 1e-7 { *v * (-top).exp() } else { (*v - top).exp() });
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|v| *v = if sum == 0.0 { 0.5 } else { *v / sum });
        }
        other => return Err(StandardError::new(format!("the `post_transform` {other} is not supported"))),
    }
    Ok(())
}

/// Features times coefficients, a row of scores per sample.
fn scores(c: &Call, x: &Args<'_>, targets: Option<usize>) -> Result<(Vec<f64>, usize, usize)> {
    let v = x.tensor(0)?;
    let (rows, n) = match *v.shape {
        [n] => (1, n),
        [rows, n] => (rows, n),
        _ => return Err(StandardError::new(format!("{:?} is no batch of features", v.shape))),
    };
    let coefficients = c.floats("coefficients").unwrap_or_default();
    let targets = targets.unwrap_or(coefficients.len() / n.max(1));
    let intercepts = c.floats("intercepts").unwrap_or_default();
    if coefficients.len() != targets * n || !intercepts.is_empty() && intercepts.len() != targets {
        return Err(StandardError::new(format!(
            "{} coefficients and {} intercepts for {n} features",
            coefficients.len(),
            intercepts.len()
        )));
    }
    let values = floats(&v);
    let mut out = vec![];
    for row in values.chunks_exact(n.max(1)) {
        for t in 0..targets {
            let sum: f64 = row.iter().zip(&coefficients[t * n..]).map(|(a, b)| a * b).sum();
            out.push(sum + intercepts.get(t).copied().unwrap_or(0.0));
        }
    }
    Ok((out, rows, targets))
}

pub(super) fn linear_regressor(c: &Call, x: &Args<'_>) -> Results {
    let targets = usize::try_from(c.int("targets").unwrap_or(1)).unwrap_or(0);
    let (mut out, rows, targets) = scores(c, x, Some(targets))?;
    for row in out.chunks_exact_mut(targets.max(1)) {
        transformed(c.text("post_transform").unwrap_or("NONE"), row)?;
    }
    Ok(vec![Some(from_floats(DType::F32, &[rows, targets], out)?)])
}

/// The number of samples.
fn samples(x: &[Option<Operand<'_>>]) -> Result<Option<Dim>> {
    let v = required(x, 0)?;
    Ok(if v.rank() == 2 { v.ty.shape.first().cloned() } else { Some(Dim::from(1)) })
}

pub(super) fn linear_regressor_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    Ok(vec![carried(DType::F32, [samples(x)?, Some(Dim::from(c.int("targets").unwrap_or(1)))])])
}

pub(super) fn linear_classifier(c: &Call, x: &Args<'_>) -> Results {
    let (mut out, rows, mut n) = scores(c, x, None)?;
    let names = c.texts("classlabels_strings").filter(|t| !t.is_empty());
    let ids = c.ints("classlabels_ints").filter(|t| !t.is_empty());
    let classes = names.map_or(0, <[String]>::len).max(ids.map_or(0, <[i64]>::len));
    if n == 1 && classes == 2 {
        out = out.into_iter().flat_map(|v| [-v, v]).collect();
        n = 2;
    }
    if classes != n {
        return Err(StandardError::new(format!("{classes} labels for {n} scores are not supported")));
    }
    let mut best = vec![];
    for row in out.chunks_exact_mut(n.max(1)) {
        transformed(c.text("post_transform").unwrap_or("NONE"), row)?;
        best.push(row.iter().enumerate().fold(0, |b, (i, v)| if *v > row[b] { i } else { b }));
    }
    let labels: Data = match (names, ids) {
        (Some(t), _) => Strings { shape: vec![rows], values: best.iter().map(|&i| t[i].clone()).collect() }.into(),
        (_, Some(t)) => from_ints(DType::I64, &[rows], best.iter().map(|&i| i128::from(t[i])))?,
        _ => return Err(StandardError::new("there are no labels")),
    };
    Ok(vec![Some(labels), Some(from_floats(DType::F32, &[rows, n], out)?)])
}

pub(super) fn linear_classifier_type(c: &Call, x: &[Option<Operand<'_>>]) -> Types {
    let names = c.texts("classlabels_strings").filter(|t| !t.is_empty());
    let n = names.map_or(0, <[String]>::len).max(c.ints("classlabels_ints").map_or(0, <[i64]>::len));
    let rows = samples(x)?;
    let labels = if names.is_some() { Partial::opaque() } else { carried(DType::I64, [rows.clone()]) };
    Ok(vec![labels, carried(DType::F32, [rows, Some(Dim::from(n as i64))])])
}
