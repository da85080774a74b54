//! Nodes of an older version of an operator in the form of a newer one, one version at a time.

use sinter_runtime::standard::Kind;

use super::builder::{Builder, graph, graph_value, int, node, string};
use super::versions::{self, Step};
use super::{EmitError, Result};
use crate::import::proto::{AttributeProto, ValueInfoProto};
use crate::ir::{DType, Literal};

/// A value that a node reads: its name, and what is known about it.
#[derive(Clone, Debug, Default)]
pub(super) struct Operand {
    /// Empty for an operand that is absent.
    pub(super) name: String,
    pub(super) kind: Kind,
}

impl Operand {
    /// Element type, where it is known.
    fn dtype(&self) -> Option<DType> {
        self.kind.dtype().filter(|d| *d != DType::Opaque)
    }

    /// Extents along its axes, where the rank is known and they are constant.
    fn fixed(&self) -> Option<Vec<i64>> {
        self.kind.extents()?.iter().map(|d| d.as_ref()?.as_const()).collect()
    }
}

/// What is done to the results of a node.
type After = Box<dyn FnOnce(&mut Builder, &mut [String]) -> Result<()>>;

/// A node that is not written yet.
pub(super) struct Draft {
    pub(super) op: String,
    pub(super) inputs: Vec<Operand>,
    pub(super) attributes: Vec<AttributeProto>,
    /// By position, whether something reads the result.
    pub(super) wanted: Vec<bool>,
    /// Whether it was an `Upsample`, which makes no extent smaller.
    pub(super) grows: bool,
    /// What follows the node, in order.
    pub(super) after: Vec<After>,
}

impl Draft {
    fn find(&self, name: &str) -> Option<&AttributeProto> {
        self.attributes.iter().find(|a| a.name() == name)
    }

    /// Removes an attribute.
    fn take(&mut self, name: &str) -> Option<AttributeProto> {
        let at = self.attributes.iter().position(|a| a.name() == name)?;
        Some(self.attributes.remove(at))
    }

    fn take_int(&mut self, name: &str) -> Option<i64> {
        self.take(name).map(|a| a.i())
    }

    fn take_float(&mut self, name: &str) -> Option<f64> {
        self.take(name).map(|a| f64::from(a.f()))
    }

    fn text(&self, name: &str) -> Option<String> {
        self.find(name).map(|a| String::from_utf8_lossy(a.s()).into_owned())
    }

    fn set(&mut self, value: AttributeProto) {
        let _ = self.take(value.name());
        self.attributes.push(value);
    }

    /// Gives the node an operand.
    fn put(&mut self, position: usize, name: String, kind: Kind) {
        if self.inputs.len() <= position {
            self.inputs.resize_with(position + 1, Operand::default);
        }
        self.inputs[position] = Operand { name, kind };
    }

    /// Gives the node a vector of integers as an operand.
    fn put_ints(&mut self, b: &mut Builder, position: usize, values: &[i64]) -> Result<()> {
        let name = b.ints(values)?;
        self.put(position, name, Kind::Unknown);
        Ok(())
    }

    /// Whether an operand is there.
    fn has(&self, position: usize) -> bool {
        self.inputs.get(position).is_some_and(|i| !i.name.is_empty())
    }
}

/// Why a node has no newer form; the operator and its opset are added.
type Outcome = std::result::Result<(), Refusal>;

/// A refusal in words, or an error of its own.
pub(super) enum Refusal {
    Why(String),
    Error(EmitError),
}

impl From<EmitError> for Refusal {
    fn from(e: EmitError) -> Refusal {
        Refusal::Error(e)
    }
}

impl From<&str> for Refusal {
    fn from(why: &str) -> Refusal {
        Refusal::Why(why.to_owned())
    }
}

type Convert = fn(&mut Draft, &mut Builder) -> Outcome;

/// Versions that say in other words what the one before says, or add to it what its nodes do not use: attributes with defaults
/// that are the meaning before, operands and results that may be absent, negative axes. A version that only takes more element
/// types is not listed.
const SAME: &[(&str, &[i64])] = &[
    ("Abs", &[13]),
    ("Add", &[14]),
    ("ArgMax", &[11, 12, 13]),
    ("ArgMin", &[11, 12, 13]),
    ("Attention", &[24, 25]),
    ("AveragePool", &[10, 11, 19, 22]),
    ("BatchNormalization", &[15]),
    ("BitShift", &[28]),
    ("Cast", &[9, 13, 19, 24]),
    ("CastLike", &[19, 24]),
    ("Ceil", &[13]),
    ("Clip", &[13]),
    ("Compress", &[11]),
    ("Concat", &[11]),
    ("Constant", &[11, 12]),
    ("Conv", &[11]),
    ("ConvTranspose", &[11]),
    ("DepthToSpace", &[11]),
    ("DequantizeLinear", &[13, 19, 21, 23]),
    ("Div", &[14]),
    ("Dropout", &[22]),
    ("EyeLike", &[22]),
    ("Flatten", &[11]),
    ("Floor", &[13]),
    ("GRU", &[14]),
    ("Gather", &[11, 13]),
    ("GatherND", &[12]),
    ("Gemm", &[11]),
    ("Hardmax", &[11]),
    ("If", &[11]),
    ("LSTM", &[14, 22]),
    ("LogSoftmax", &[11]),
    ("Loop", &[11, 13]),
    ("LpPool", &[11, 18]),
    ("Max", &[8]),
    ("MaxPool", &[8, 10, 11, 12, 22]),
    ("MaxUnpool", &[11]),
    ("Mean", &[8]),
    ("MeanVarianceNormalization", &[13]),
    ("Min", &[8]),
    ("Mod", &[13, 28]),
    ("Mul", &[14]),
    ("NonMaxSuppression", &[11]),
    ("OneHot", &[11]),
    ("OptionalGetElement", &[18]),
    ("OptionalHasElement", &[18]),
    ("Pad", &[13, 18, 19]),
    ("QuantizeLinear", &[13, 19, 21, 23, 25, 28]),
    ("RNN", &[14]),
    ("ReduceL1", &[11, 13]),
    ("ReduceL2", &[11, 13]),
    ("ReduceLogSum", &[11, 13]),
    ("ReduceLogSumExp", &[11, 13]),
    ("ReduceMax", &[11, 12, 13, 20]),
    ("ReduceMean", &[11, 13]),
    ("ReduceMin", &[11, 12, 13, 20]),
    ("ReduceProd", &[11, 13]),
    ("ReduceSum", &[11]),
    ("ReduceSumSquare", &[11, 13]),
    ("Reshape", &[14]),
    ("Resize", &[18, 19]),
    ("Scan", &[11]),
    ("ScatterElements", &[16, 18]),
    ("ScatterND", &[16, 18]),
    ("Shape", &[15]),
    ("Slice", &[11, 13]),
    ("Softmax", &[11]),
    ("SpaceToDepth", &[28]),
    ("Split", &[11]),
    ("Squeeze", &[11, 23]),
    ("Sub", &[14]),
    ("Sum", &[8]),
    ("TopK", &[11]),
    ("Transpose", &[21, 25]),
    ("Unsqueeze", &[11, 23]),
];

/// Versions that mean something else by the same node.
const CHANGES: &[(&str, i64, Convert)] = &[
    ("BatchNormalization", 9, batch_norm_9),
    ("BatchNormalization", 14, batch_norm_14),
    ("Clip", 11, clip_11),
    ("DFT", 20, dft_20),
    ("Dropout", 10, dropout_10),
    ("Dropout", 12, dropout_12),
    ("GridSample", 20, grid_sample_20),
    ("GroupNormalization", 21, group_norm_21),
    ("Hardmax", 13, one_axis_13),
    ("LogSoftmax", 13, one_axis_13),
    ("Pad", 11, pad_11),
    ("Range", 27, range_27),
    ("ReduceL1", 18, axes_operand),
    ("ReduceL2", 18, axes_operand),
    ("ReduceLogSum", 18, axes_operand),
    ("ReduceLogSumExp", 18, axes_operand),
    ("ReduceMax", 18, axes_operand),
    ("ReduceMean", 18, axes_operand),
    ("ReduceMin", 18, axes_operand),
    ("ReduceProd", 18, axes_operand),
    ("ReduceSum", 13, axes_operand),
    ("ReduceSumSquare", 18, axes_operand),
    ("Resize", 11, resize_11),
    ("Resize", 13, resize_13),
    ("RoiAlign", 16, roi_align_16),
    ("Scan", 9, scan_9),
    ("Scatter", 11, scatter_11),
    ("Slice", 10, slice_10),
    ("Softmax", 13, one_axis_13),
    ("Split", 13, split_13),
    ("Split", 18, split_18),
    ("Squeeze", 13, axes_operand),
    ("TopK", 10, top_k_10),
    ("Unsqueeze", 13, axes_operand),
    ("Upsample", 9, upsample_9),
    ("Upsample", 10, upsample_10),
];

/// Whether something is known about a version of an operator that does not follow from the table of schemas.
fn known(op: &str, version: i64) -> Option<Option<Convert>> {
    if let Some((_, _, c)) = CHANGES.iter().find(|(o, v, _)| *o == op && *v == version) {
        return Some(Some(*c));
    }
    SAME.iter().any(|(o, vs)| *o == op && vs.contains(&version)).then_some(None)
}

/// Brings a node of the default domain from one opset to a newer one.
pub(super) fn convert(b: &mut Builder, d: &mut Draft, domain: &str, from: i64, to: i64) -> Outcome {
    let mut at = from;
    loop {
        let history = versions::history(domain, &d.op).unwrap_or_default();
        let Some(next) = history.iter().find(|s| at < s.since && s.since <= to) else { return Ok(()) };
        let unknown =
            || Refusal::Why(format!("opset {} changed the operator in a way that is not supported", next.since));
        let before = versions::at(domain, &d.op, at).ok_or_else(|| Refusal::from(versions::NONE))?;
        match if domain.is_empty() { known(&d.op, next.since) } else { None } {
            Some(Some(change)) => change(d, b)?,
            Some(None) => {}
            None if before.step(next) == Step::Same => {}
            None => return Err(unknown()),
        }
        at = next.since;
    }
}

/// A scalar of the element type of an operand.
fn like(b: &mut Builder, x: &Operand, value: f64) -> Result<String> {
    match x.dtype() {
        Some(dtype) => b.scalar(dtype, value),
        None => {
            let v = b.scalar(DType::F32, value)?;
            Ok(b.op("CastLike", &[&v, &x.name], vec![]))
        }
    }
}

fn batch_norm_9(d: &mut Draft, _: &mut Builder) -> Outcome {
    match d.take_int("spatial") {
        Some(0) => Err("statistics of each position (`spatial` = 0) are not supported by later opsets".into()),
        _ => Ok(()),
    }
}

fn batch_norm_14(d: &mut Draft, _: &mut Builder) -> Outcome {
    if d.wanted[1..].contains(&true) {
        return Err("results of training are not supported".into());
    }
    d.wanted.truncate(1);
    Ok(())
}

fn clip_11(d: &mut Draft, b: &mut Builder) -> Outcome {
    for (position, name) in [(1, "min"), (2, "max")] {
        if let Some(v) = d.take_float(name) {
            let bound = like(b, &d.inputs[0], v)?;
            d.put(position, bound, Kind::Unknown);
        }
    }
    Ok(())
}

fn dft_20(d: &mut Draft, b: &mut Builder) -> Outcome {
    let axis = d.take_int("axis").unwrap_or(1);
    let axis = b.constant(&Literal::ints(DType::I64, vec![], &[axis]))?;
    d.put(2, axis, Kind::Unknown);
    Ok(())
}

/// The mask was of the type of the data.
fn dropout_10(d: &mut Draft, _: &mut Builder) -> Outcome {
    if d.wanted.get(1) == Some(&true) {
        let x = d.inputs[0].name.clone();
        d.after.push(Box::new(move |b, results| {
            results[1] = b.op("CastLike", &[&results[1], &x], vec![]);
            Ok(())
        }));
    }
    Ok(())
}

/// Nothing is dropped where nothing is trained.
fn dropout_12(d: &mut Draft, _: &mut Builder) -> Outcome {
    let _ = d.take("ratio");
    Ok(())
}

fn grid_sample_20(d: &mut Draft, _: &mut Builder) -> Outcome {
    let mode = d.text("mode");
    let mode = match mode.as_deref() {
        None | Some("bilinear") => "linear",
        Some("bicubic") => "cubic",
        Some(other) => other,
    };
    d.set(string("mode", mode));
    Ok(())
}

/// Scale and bias were those of groups, and are those of channels.
fn group_norm_21(d: &mut Draft, b: &mut Builder) -> Outcome {
    let groups = d.find("num_groups").map(AttributeProto::i).ok_or("attribute `num_groups` is missing")?;
    let channels = b.op("Shape", &[&d.inputs[0].name], vec![int("start", 1), int("end", 2)]);
    let n = b.ints(&[groups])?;
    let each = b.op("Div", &[&channels, &n], vec![]);
    let shape = b.op("Concat", &[&n, &each], vec![int("axis", 0)]);
    let (last, all) = (b.ints(&[1])?, b.ints(&[-1])?);
    for x in d.inputs.iter_mut().skip(1) {
        let column = b.op("Unsqueeze", &[&x.name, &last], vec![]);
        let copies = b.op("Expand", &[&column, &shape], vec![]);
        x.name = b.op("Reshape", &[&copies, &all], vec![]);
        x.kind = x.kind.with(None);
    }
    Ok(())
}

/// The operand was seen as a matrix: all axes from `axis` on were one.
fn one_axis_13(d: &mut Draft, b: &mut Builder) -> Outcome {
    let axis = d.take_int("axis").unwrap_or(1);
    d.set(int("axis", -1));
    let x = d.inputs[0].clone();
    let rank = x.kind.extents().map(|e| e.len() as i64);
    if axis == -1 || rank.is_some_and(|r| axis == r - 1) {
        return Ok(());
    }
    let shape = b.op("Shape", &[&x.name], vec![]);
    d.inputs[0].name = b.op("Flatten", &[&x.name], vec![int("axis", axis)]);
    d.inputs[0].kind = x.kind.with(None);
    d.after.push(Box::new(move |b, results| {
        results[0] = b.op("Reshape", &[&results[0], &shape], vec![int("allowzero", 1)]);
        Ok(())
    }));
    Ok(())
}

fn pad_11(d: &mut Draft, b: &mut Builder) -> Outcome {
    let pads = d.take("pads").ok_or("attribute `pads` is missing")?;
    d.put_ints(b, 1, &pads.ints)?;
    if let Some(v) = d.take_float("value").filter(|v| *v != 0.0) {
        let value = like(b, &d.inputs[0], v)?;
        d.put(2, value, Kind::Unknown);
    }
    Ok(())
}

/// Steps of 16-bit numbers were added up as they are; what was computed in was left open.
fn range_27(_: &mut Draft, _: &mut Builder) -> Outcome {
    Ok(())
}

/// Axes were an attribute.
fn axes_operand(d: &mut Draft, b: &mut Builder) -> Outcome {
    match d.take("axes") {
        Some(axes) if !axes.ints.is_empty() => Ok(d.put_ints(b, 1, &axes.ints)?),
        _ => Ok(()),
    }
}

/// Positions were those of `asymmetric`. The nearest one was the one before along axes that grow, and the one behind along
/// axes that shrink: those are two nodes now, and each leaves the other's axes as they are.
fn resize_11(d: &mut Draft, b: &mut Builder) -> Outcome {
    let asymmetric = string("coordinate_transformation_mode", "asymmetric");
    let mut scales = std::mem::take(&mut d.inputs[1]);
    d.set(asymmetric.clone());
    if d.text("mode").is_none_or(|m| m == "nearest") {
        let before = string("nearest_mode", "floor");
        if d.grows {
            d.set(before);
        } else {
            let one = b.scalar(DType::F32, 1.0)?;
            let up = b.op("Max", &[&scales.name, &one], vec![]);
            scales.name = b.op("Min", &[&scales.name, &one], vec![]);
            let mode = string("mode", "nearest");
            d.inputs[0].name = b.op("Resize", &[&d.inputs[0].name, "", &up], vec![asymmetric, mode, before]);
            d.inputs[0].kind = d.inputs[0].kind.with(None);
            d.set(string("nearest_mode", "ceil"));
        }
    }
    d.put(2, scales.name, scales.kind);
    Ok(())
}

/// Operands that were empty are absent.
fn resize_13(d: &mut Draft, _: &mut Builder) -> Outcome {
    if d.text("coordinate_transformation_mode").as_deref() == Some("tf_half_pixel_for_nn") {
        return Err("coordinate_transformation_mode `tf_half_pixel_for_nn` is not supported by later opsets".into());
    }
    let crops = d.text("coordinate_transformation_mode").as_deref() == Some("tf_crop_and_resize");
    if d.has(1) && !crops {
        d.inputs[1] = Operand::default();
    }
    if d.has(2) && (d.has(3) || d.inputs[2].fixed().is_some_and(|e| e.contains(&0))) {
        d.inputs[2] = Operand::default();
    }
    Ok(())
}

fn roi_align_16(d: &mut Draft, _: &mut Builder) -> Outcome {
    d.set(string("coordinate_transformation_mode", "output_half_pixel"));
    Ok(())
}

/// A loop over a batch of sequences: a scan over the batch whose body is the scan over one sequence.
fn scan_9(d: &mut Draft, b: &mut Builder) -> Outcome {
    if d.has(0) {
        return Err("sequence lengths are not supported by later opsets".into());
    }
    if !d.inputs.is_empty() {
        d.inputs.remove(0);
    }
    if let Some(mut directions) = d.take("directions") {
        directions.name = Some("scan_input_directions".to_owned());
        d.attributes.push(directions);
    }
    let outer: Vec<String> = d.inputs.iter().map(|_| b.unique("row")).collect();
    let results: Vec<String> = d.wanted.iter().map(|_| b.unique("row")).collect();
    let inner = node("", "Scan", &outer, &results, std::mem::take(&mut d.attributes));
    let info = |n: &String| ValueInfoProto { name: Some(n.clone()), ..ValueInfoProto::default() };
    let body = graph("rows", outer.iter().map(info).collect(), vec![inner], results.iter().map(info).collect());
    d.attributes = vec![graph_value("body", body), int("num_scan_inputs", outer.len() as i64)];
    Ok(())
}

fn scatter_11(d: &mut Draft, _: &mut Builder) -> Outcome {
    d.op = "ScatterElements".to_owned();
    Ok(())
}

fn slice_10(d: &mut Draft, b: &mut Builder) -> Outcome {
    for (position, name) in [(1, "starts"), (2, "ends"), (3, "axes")] {
        match d.take(name) {
            Some(v) => d.put_ints(b, position, &v.ints)?,
            None if position < 3 => return Err("`starts` or `ends` is missing".into()),
            None => {}
        }
    }
    Ok(())
}

fn split_13(d: &mut Draft, b: &mut Builder) -> Outcome {
    match d.take("split") {
        Some(v) if !v.ints.is_empty() => Ok(d.put_ints(b, 1, &v.ints)?),
        _ => Ok(()),
    }
}

/// The number of parts was that of the results.
fn split_18(d: &mut Draft, _: &mut Builder) -> Outcome {
    if !d.has(1) {
        d.inputs.truncate(1);
        d.set(int("num_outputs", d.wanted.len() as i64));
    }
    Ok(())
}

fn top_k_10(d: &mut Draft, b: &mut Builder) -> Outcome {
    let k = d.take_int("k").ok_or("attribute `k` is missing")?;
    Ok(d.put_ints(b, 1, &[k])?)
}

fn upsample_9(d: &mut Draft, b: &mut Builder) -> Outcome {
    let scales = d.take("scales").ok_or("attribute `scales` is missing")?;
    let data = scales.floats.iter().flat_map(|v| v.to_le_bytes()).collect();
    let scales = b.constant(&Literal { dtype: DType::F32, shape: vec![scales.floats.len()], data })?;
    d.put(1, scales, Kind::Unknown);
    Ok(())
}

/// Gone: `Resize` took its place.
fn upsample_10(d: &mut Draft, _: &mut Builder) -> Outcome {
    d.op = "Resize".to_owned();
    d.grows = true;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import;

    /// A version of which the table does not say by itself that it means the same has a row in `SAME` or `CHANGES`, and
    /// every row is of a version that exists.
    #[test]
    fn every_change_of_an_operator_is_known() {
        let mut missing = vec![];
        for (domain, op) in sinter_runtime::standard::names() {
            let Some(history) = versions::history(domain, op) else {
                assert!(domain.contains('.') && domain != "ai.onnx.ml", "{domain} {op} is in no schema");
                continue;
            };
            if !domain.is_empty() {
                continue;
            }
            for w in history.windows(2) {
                let [before, next] = w else { continue };
                if next.since > versions::OLDEST && known(op, next.since).is_none() && before.step(next) != Step::Same {
                    missing.push(format!("{op} {}: {:?}", next.since, before.step(next)));
                }
            }
        }
        assert_eq!(missing, Vec::<String>::new());
        let same = SAME.iter().flat_map(|(op, versions)| versions.iter().map(move |v| (*op, *v)));
        for (op, version) in same.chain(CHANGES.iter().map(|(op, v, _)| (*op, *v))) {
            let history = versions::history("", op).unwrap();
            let at = history.iter().position(|s| s.since == version);
            let at = at.unwrap_or_else(|| panic!("there is no version {version} of {op}"));
            assert_ne!(
                history[at - 1].step(&history[at]),
                Step::Same,
                "{op} {version}: the table says that it is the same"
            );
            assert!(version <= import::MAX_OPSET);
        }
        assert!(SAME.is_sorted_by(|a, b| a.0 < b.0) && CHANGES.is_sorted_by(|a, b| (a.0, a.1) < (b.0, b.1)));
    }
}
