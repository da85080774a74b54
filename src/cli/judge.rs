//! Verdicts of `sinter run`: outputs held against expected ones and against the unoptimised program, by what the model computes
//! in; and where a difference begins and how ill-conditioned that tensor is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use sinter_runtime::compare::{self, Comparison, Judge, Tolerance};
use sinter_runtime::dtype::DType;
use sinter_runtime::executor::{self, Alter, RunConfig, RunResult, WeightSource};
use sinter_runtime::op::Op;
use sinter_runtime::plan::{Plan, Source, Stage, ValueId};
use sinter_runtime::precision::{self, Origin, coarser};
use sinter_runtime::standard::Data;
use sinter_runtime::tensor::Tensor;

use super::{Failure, data};

/// Outputs against others.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    pub(super) max_abs: f64,
    pub(super) max_rel: f64,
    pub(super) pass: bool,
    /// Outputs that differ too much.
    pub(super) failed: Vec<String>,
    /// What passes for a reason that should be known: single steps of a quantisation, overflow on both sides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) notes: Vec<String>,
    /// Tolerance by the type that outputs are computed in: absolute, relative.
    tolerance: BTreeMap<&'static str, [f64; 2]>,
    /// The first output that differs too much.
    #[serde(skip)]
    first: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Verify {
    #[serde(flatten)]
    pub(super) check: Check,
    /// The first tensor that differs, in the order of the unoptimised program.
    pub(super) first_bad: Option<String>,
}

/// Where a difference begins, and what it may come from.
#[derive(Debug, Serialize)]
pub(super) struct Diagnosis {
    /// The first tensor that differs.
    tensor: String,
    /// Whether the unoptimised program gives what was expected, where that was given and the plan does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    unoptimised_agrees: Option<bool>,
    /// The first tensor of the unoptimised program that exceeds the range of f16 although its operands do not.
    #[serde(skip_serializing_if = "Option::is_none")]
    overflow: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    conditioning: Option<Conditioning>,
}

/// What a small change of the inputs does to a tensor of the unoptimised program.
#[derive(Debug, Serialize)]
struct Conditioning {
    /// Relative change of the floating-point inputs; of what the model looks up, where it has none.
    perturbation: f64,
    /// Largest change of the tensor, relative to its largest magnitude.
    change: f64,
    /// The quotient of the two.
    amplification: f64,
    /// The type that the tensor is computed in.
    computed_in: &'static str,
    /// Whether rounding in that type, amplified as much, reaches the difference that was found.
    rounding_explains: bool,
}

impl Diagnosis {
    /// In words.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut out = vec![];
        match self.unoptimised_agrees {
            Some(true) => {
                out.push("the unoptimised program agrees with the expected outputs: an optimisation is at fault".to_owned());
            }
            Some(false) => out.push(
                "the unoptimised program differs from the expected outputs, too: look at the import, the kernels or the \
                 expected values"
                    .to_owned(),
            ),
            None => {}
        }
        if let Some(name) = &self.overflow {
            out.push(format!(
                "`{name}` exceeds the range of f16 in the unoptimised program; what reads it cannot be compared"
            ));
        }
        if let Some(c) = &self.conditioning {
            out.push(format!(
                "conditioning of `{}`: a relative change of {:.0e} in the inputs changes it by {:.1e} (amplification {:.1e})",
                self.tensor, c.perturbation, c.change, c.amplification
            ));
            out.push(match c.rounding_explains {
                true => format!("rounding in {} may cause a difference of this size at these inputs", c.computed_in),
                false => format!("rounding in {} does not explain a difference of this size", c.computed_in),
            });
        }
        out
    }
}

/// What is said about a run.
pub(super) struct Verdict {
    pub(super) expect: Option<Check>,
    pub(super) verify: Option<Verify>,
    pub(super) diagnosis: Option<Diagnosis>,
}

/// What verdicts need beside the results.
pub(super) struct Judging<'a> {
    plan: &'a Plan,
    /// Weights of the ranks, and of the unoptimised program.
    weights: (&'a dyn WeightSource, &'a dyn WeightSource),
    inputs: &'a data::Values,
    config: RunConfig<'a>,
    given: Option<Tolerance>,
    /// By index of the unoptimised program's values.
    origins: Vec<Origin>,
    by_name: BTreeMap<&'a str, ValueId>,
}

/// A run of the unoptimised program.
struct Reference {
    result: RunResult,
    overflow: Option<String>,
}

impl<'a> Judging<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        weights: (&'a dyn WeightSource, &'a dyn WeightSource),
        inputs: &'a data::Values,
        config: RunConfig<'a>,
        given: Option<Tolerance>,
    ) -> Judging<'a> {
        let stage = plan.reference.as_deref();
        let names = stage.iter().flat_map(|s| &s.values).enumerate().map(|(i, v)| (v.name.as_str(), ValueId(i)));
        Judging {
            plan,
            weights,
            inputs,
            config,
            given,
            origins: stage.map(precision::origins).unwrap_or_default(),
            by_name: names.collect(),
        }
    }

    /// All verdicts.
    pub(super) fn all(
        &self,
        result: &RunResult,
        expected: Option<&data::Values>,
        verify: bool,
        time_ms: &mut BTreeMap<&'static str, f64>,
    ) -> Result<Verdict, Failure> {
        let mut expect = expected.map(|e| self.check(result, e, None));
        let wrong = expect.as_ref().is_some_and(|c| !c.pass);
        let mut reference = None;
        if verify {
            let found = self.reference(None)?;
            time_ms.insert("reference", found.result.total_ms.iter().copied().fold(f64::INFINITY, f64::min));
            reference = Some(found);
        } else if wrong {
            // Without it the verdict stands, unexplained.
            reference = self.reference(None).ok();
        }
        if let (true, Some(e), Some(r)) = (wrong, expected, &reference) {
            // Scales of quantisations and overflow are known by now.
            expect = Some(self.check(result, e, Some(r)));
        }
        let Some(reference) = reference else { return Ok(Verdict { expect, verify: None, diagnosis: None }) };
        let whole = |r: &RunResult| data::Values {
            tensors: r.outputs.iter().cloned().collect(),
            data: r.data.iter().cloned().collect(),
        };
        let mut followed = None;
        let mut checked =
            if verify { Some(self.check(result, &whole(&reference.result), Some(&reference))) } else { None };
        if checked.as_ref().is_some_and(|c| !c.pass)
            && let Some((again, notes)) = self.follow(result, &reference)?
        {
            let mut c = self.check(result, &whole(&again.result), Some(&again));
            c.notes.splice(0..0, notes);
            checked = Some(c);
            followed = Some(again);
        }
        let against = followed.as_ref().unwrap_or(&reference);
        let mut first_bad = None;
        if checked.as_ref().is_some_and(|c| !c.pass) {
            first_bad = self.first_bad(&result.trace, against);
        }
        let failed = [expect.as_ref(), checked.as_ref()].into_iter().flatten().any(|c| !c.pass);
        let diagnosis = if failed {
            self.diagnose(result, expected, (expect.as_ref(), checked.as_ref()), first_bad.as_ref(), against)
        } else {
            None
        };
        let verify = checked.map(|check| Verify {
            check,
            first_bad: first_bad.map(|(name, d)| match d.reason {
                None => format!("{name} (max |difference| {:.3e})", d.max_abs),
                Some(why) => format!("{name} ({why})"),
            }),
        });
        Ok(Verdict { expect, verify, diagnosis })
    }

    fn stage(&self) -> Option<&'a Stage> {
        self.plan.reference.as_deref()
    }

    fn origin(&self, name: &str) -> Origin {
        self.by_name.get(name).and_then(|v| self.origins.get(v.0)).copied().unwrap_or_default()
    }

    /// How a value is judged.
    fn judge(&self, name: &str, dtype: DType, reference: Option<&Reference>) -> Judge {
        let origin = self.origin(name);
        let computed = coarser(Some(dtype), origin.rounded).unwrap_or(dtype);
        let tolerance = self.given.unwrap_or_else(|| Tolerance::of(if dtype.is_float() { computed } else { dtype }));
        let step = match origin.scale {
            _ if self.given.is_some() || !origin.steps => None,
            _ if !dtype.is_float() => Some(1.0),
            scale => scale.and_then(|s| self.largest(s, reference)),
        };
        let overflowed = reference.is_some_and(|r| r.overflow.is_some()) && computed == DType::F16;
        Judge { tolerance, computed, step, overflowed }
    }

    /// The largest magnitude of a value of the unoptimised program that is known.
    fn largest(&self, id: ValueId, reference: Option<&Reference>) -> Option<f64> {
        let stage = self.stage()?;
        let value = stage.value(stage.storage(id));
        let of = |t: &Tensor| t.to_f64().into_iter().map(f64::abs).fold(0.0, f64::max);
        if let Some(t) = reference.and_then(|r| r.result.trace.get(&value.name)) {
            return Some(of(t));
        }
        match &value.source {
            Source::Weight { key, .. } => {
                let bytes = self.weights.1.weight(0, key).ok()?;
                let n = bytes.len() / value.ty.dtype.size().max(1);
                Tensor::from_bytes(value.ty.dtype, &[n], &bytes).ok().map(|t| of(&t))
            }
            _ => stage.steps.iter().find(|s| s.outputs.contains(&Some(stage.storage(id)))).and_then(|s| match &s.op {
                Op::Const { value } => Tensor::from_literal(value).ok().map(|t| of(&t)),
                _ => None,
            }),
        }
    }

    fn check(&self, actual: &RunResult, expected: &data::Values, reference: Option<&Reference>) -> Check {
        let mut out = Check {
            max_abs: 0.0,
            max_rel: 0.0,
            pass: true,
            failed: vec![],
            notes: vec![],
            tolerance: BTreeMap::new(),
            first: None,
        };
        let mut pairs: Vec<(&String, usize, Comparison)> = vec![];
        for (name, t) in &actual.outputs {
            let Some(e) = expected.tensors.get(name) else { continue };
            let how = self.judge(name, t.dtype, reference);
            let of = if how.tolerance.name == "given" { t.dtype.name() } else { how.tolerance.name };
            let of = if of == "exact" { t.dtype.name() } else { of };
            out.tolerance.insert(of, [how.tolerance.abs, how.tolerance.rel]);
            pairs.push((name, t.len(), compare::judge(t, e, &how)));
        }
        for (name, d) in &actual.data {
            let tensor = || expected.tensors.get(name).cloned().map(Data::from);
            let Some(e) = expected.data.get(name).cloned().or_else(tensor) else { continue };
            let tolerance = |t: &Tensor| self.given.unwrap_or_else(|| Tolerance::of(t.dtype));
            pairs.push((name, 0, compare::compare_data(d, &e, &tolerance)));
        }
        for (name, n, c) in pairs {
            out.max_abs = out.max_abs.max(c.max_abs);
            out.max_rel = out.max_rel.max(c.max_rel);
            if c.pass && c.one_step > 0 {
                out.notes.push(format!("{name}: {} of {n} elements differ by one quantisation step", c.one_step));
            }
            if c.pass && c.overflow > 0 {
                out.notes.push(format!("{name}: {} of {n} elements overflow f16 on both sides", c.overflow));
            }
            if !c.pass {
                out.pass = false;
                let why = c.reason.unwrap_or_else(|| {
                    format!("max |difference| {:.3e} at {:?}", c.max_abs, c.worst.unwrap_or_default())
                });
                out.failed.push(format!("{name}: {why}"));
                out.first.get_or_insert_with(|| name.clone());
            }
        }
        out
    }

    /// Runs the unoptimised program.
    fn reference(&self, alter: Option<Alter<'_>>) -> Result<Reference, Failure> {
        self.reference_on(&self.inputs.tensors, alter)
    }

    fn reference_on(&self, inputs: &BTreeMap<String, Tensor>, alter: Option<Alter<'_>>) -> Result<Reference, Failure> {
        let config = RunConfig { alter, ..self.config };
        let result = executor::run_reference(self.plan, self.weights.1, inputs, &config)?;
        let overflow = self.overflow(&result);
        Ok(Reference { result, overflow })
    }

    /// The first f16 value that is not finite although all operands of its step are.
    fn overflow(&self, r: &RunResult) -> Option<String> {
        let stage = self.stage()?;
        let finite = |t: &Tensor| !t.dtype.is_float() || t.to_f64().iter().all(|v| v.is_finite());
        let all_finite = |id: &ValueId| {
            let v = stage.value(stage.storage(*id));
            match &v.source {
                _ if !v.ty.dtype.is_float() => true,
                Source::Input { .. } => self.inputs.tensors.get(&v.name).is_none_or(finite),
                Source::Weight { key, .. } => self.weights.1.weight(0, key).ok().is_none_or(|bytes| {
                    let n = bytes.len() / v.ty.dtype.size().max(1);
                    Tensor::from_bytes(v.ty.dtype, &[n], &bytes).ok().is_none_or(|t| finite(&t))
                }),
                _ => r.trace.get(&v.name).is_none_or(finite),
            }
        };
        let steps = stage.steps.iter().filter(|s| !s.inputs.is_empty());
        steps.flat_map(|s| s.outputs.iter().flatten().map(move |o| (s, o))).find_map(|(s, o)| {
            let v = stage.value(*o);
            let over = v.ty.dtype == DType::F16 && r.trace.get(&v.name).is_some_and(|t| !finite(t));
            (over && s.inputs.iter().all(all_finite)).then(|| v.name.clone())
        })
    }

    fn first_bad(&self, trace: &BTreeMap<String, Tensor>, reference: &Reference) -> Option<(String, Comparison)> {
        let order = self.stage().into_iter().flat_map(|s| &s.values).map(|v| v.name.as_str());
        let how = |name: &str, t: &Tensor| self.judge(name, t.dtype, Some(reference));
        let (name, c) = compare::bisect_by(trace, &reference.result.trace, order, how)?;
        Some((name.to_owned(), c))
    }

    /// Runs the unoptimised program once more where quantisations of the plan took the neighbouring step, for as few elements as
    /// rounding explains: with the plan's steps in their place. `None` where there is no such quantisation.
    fn follow(&self, actual: &RunResult, reference: &Reference) -> Result<Option<(Reference, Vec<String>)>, Failure> {
        let Some(stage) = self.stage() else { return Ok(None) };
        let steps = stage.steps.iter().filter(|s| precision::quantises(stage, s));
        let names: BTreeSet<&str> = steps
            .flat_map(|s| s.outputs.iter().flatten())
            .map(|v| stage.value(*v).name.as_str())
            .filter(|n| self.origin(n).steps && actual.trace.get(*n) != reference.result.trace.get(*n))
            .filter(|n| actual.trace.contains_key(*n))
            .collect();
        if names.is_empty() || self.given.is_some() {
            return Ok(None);
        }
        let notes = Mutex::new(vec![]);
        let alter = |name: &str, dtype: DType, shape: &[usize], bytes: &mut [u8]| {
            let Some(t) = actual.trace.get(name).filter(|_| names.contains(name)) else { return };
            let Ok(own) = Tensor::from_bytes(dtype, shape, bytes) else { return };
            let c = compare::judge(t, &own, &self.judge(name, dtype, None));
            if c.pass && t.bytes() != own.bytes() {
                let pairs = t.bytes().chunks_exact(dtype.size()).zip(own.bytes().chunks_exact(dtype.size()));
                let n = pairs.filter(|(a, b)| a != b).count();
                bytes.copy_from_slice(t.bytes());
                let note = format!("{name}: {n} of {} elements differ by one quantisation step", t.len());
                notes.lock().unwrap_or_else(PoisonError::into_inner).push(note);
            }
        };
        let again = self.reference(Some(&alter))?;
        let notes = notes.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok((!notes.is_empty()).then_some((again, notes)))
    }

    fn diagnose(
        &self,
        result: &RunResult,
        expected: Option<&data::Values>,
        (expect, verify): (Option<&Check>, Option<&Check>),
        first_bad: Option<&(String, Comparison)>,
        reference: &Reference,
    ) -> Option<Diagnosis> {
        let mut unoptimised_agrees = None;
        if let (Some(e), Some(false)) = (expected, expect.map(|c| c.pass)) {
            unoptimised_agrees = Some(self.check(&reference.result, e, Some(reference)).pass);
        }
        // Where it begins: within the plan, or else with the first output.
        let mut found = first_bad.cloned();
        if found.is_none() && verify.is_none() && unoptimised_agrees == Some(true) {
            let traced = executor::run(self.plan, self.weights.0, &self.inputs.tensors, &self.config).ok()?;
            found = self.first_bad(&traced.trace, reference);
        }
        let (tensor, difference) = match found {
            Some((name, c)) => (name, c.max_abs),
            None => {
                let name = [expect, verify].into_iter().flatten().find_map(|c| c.first.clone())?;
                let (_, t) = result.outputs.iter().find(|(n, _)| *n == name)?;
                let against = match (unoptimised_agrees, expected) {
                    (Some(_), Some(e)) => e.tensors.get(&name)?,
                    _ => &reference.result.outputs.iter().find(|(n, _)| *n == name)?.1,
                };
                let c = compare::judge(t, against, &self.judge(&name, t.dtype, Some(reference)));
                (name, c.max_abs)
            }
        };
        let conditioning = self.conditioning(&tensor, difference, reference);
        Some(Diagnosis { tensor, unoptimised_agrees, overflow: reference.overflow.clone(), conditioning })
    }

    /// Perturbs the floating-point inputs, or where there are none what the model looks up, and compares a tensor.
    fn conditioning(&self, name: &str, difference: f64, reference: &Reference) -> Option<Conditioning> {
        let stage = self.stage()?;
        let mut inputs = self.inputs.tensors.clone();
        let mut perturbation = 0.0f64;
        for t in inputs.values_mut().filter(|t| t.dtype.is_float() && !t.is_empty()) {
            perturbation = perturbation.max(compare::perturbation(t.dtype));
            let dtype = t.dtype;
            compare::perturb(dtype, t.bytes_mut());
        }
        let mut sources = BTreeSet::new();
        if perturbation == 0.0 {
            for v in precision::sources(stage) {
                let value = stage.value(v);
                perturbation = perturbation.max(compare::perturbation(value.ty.dtype));
                sources.insert(value.name.as_str());
            }
        }
        if perturbation == 0.0 {
            return None;
        }
        let alter = |name: &str, dtype: DType, _: &[usize], bytes: &mut [u8]| {
            if sources.contains(name) {
                compare::perturb(dtype, bytes);
            }
        };
        let perturbed = self.reference_on(&inputs, Some(&alter)).ok()?;
        let of = |r: &Reference| -> Option<Tensor> {
            let output = || r.result.outputs.iter().find(|(n, _)| n == name).map(|(_, t)| t.clone());
            r.result.trace.get(name).cloned().or_else(output)
        };
        let (before, after) = (of(reference)?, of(&perturbed)?);
        let change = compare::change(&before, &after)?;
        let magnitude = before.to_f64().into_iter().filter(|v| v.is_finite()).map(f64::abs).fold(0.0, f64::max);
        let computed = self.judge(name, before.dtype, None).computed;
        // Half the distance of neighbours of 1.
        let rounding = match computed {
            DType::F16 => 2f64.powi(-11),
            DType::BF16 => 2f64.powi(-8),
            DType::F64 => 2f64.powi(-53),
            _ => 2f64.powi(-24),
        };
        let amplification = change.rel / perturbation;
        let explained = 16.0 * amplification.max(1.0) * rounding * magnitude;
        Some(Conditioning {
            perturbation,
            change: change.rel,
            amplification,
            computed_in: computed.name(),
            rounding_explains: difference <= explained,
        })
    }
}
