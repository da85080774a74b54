//! Reports of cases and measurements, on the emulated driver.

use std::time::Duration;

use serde_json::Value;
use sinter_runtime::cuda::all_reduce::{Way, all_reduce};
use sinter_runtime::cuda::check::{
    BenchConfig, Benchmark, Case, CheckError, Difference, Event, Limit, Report, RunConfig, Size, Timed, TimedCalls,
    benchmarks,
};
use sinter_runtime::cuda::exchange::Group;
use sinter_runtime::cuda::{Kernel, Launch};
use sinter_runtime::dtype::DType;
use sinter_runtime::tensor::Tensor;

use crate::emulator;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct ScaleArguments {
    x: u64,
    y: u64,
    n: u64,
}

/// y = 2x on one block of 64 elements.
fn scale(x: u64, y: u64) -> Launch {
    let entry = "struct ScaleArguments { const float* x; float* y; u64 n; };\n\
         extern \"C\" __global__ void __launch_bounds__(64) scale(const __grid_constant__ ScaleArguments a) {\n\
           if (threadIdx.x < a.n) a.y[threadIdx.x] = 2.0f * a.x[threadIdx.x];\n\
         }\n";
    let kernel = Kernel { file: "common.cuh", name: "scale".to_owned(), entry: entry.to_owned() };
    Launch::new(kernel, 1, 64, 0, &ScaleArguments { x, y, n: 64 })
}

fn doubled(expected: f64) -> impl Fn(&sinter_runtime::cuda::check::Harness<'_>) -> Result<Difference, CheckError> {
    move |h| {
        let input = Tensor::from_f32(&[64], &[1.5; 64]).map_err(|e| CheckError::Reference(e.to_string()))?;
        let (x, y) = (h.upload(&input)?, h.result(DType::F32, &[64])?);
        h.run(&scale(x.address(), y.address()))?;
        h.compare("y", &h.download(&y, DType::F32, &[64])?, &[expected; 64], Limit::Exact)
    }
}

fn small() -> BenchConfig {
    BenchConfig { rounds: 5, round_us: 200.0, max_hold_us: 0.0, copy_bytes: 1 << 20 }
}

fn measured(bench: BenchConfig) -> RunConfig {
    RunConfig { bench: Some(bench), ..RunConfig::serial() }
}

#[test]
fn a_report_has_every_key_and_names_what_failed() {
    let cases = vec![
        Case::new("scale", "right".to_owned(), Size::Small, doubled(3.0)),
        Case::new("scale", "wrong".to_owned(), Size::Small, doubled(4.0)),
    ];
    let benchmarks = [
        Benchmark::new("scale", "f32 64".to_owned(), |h| {
            let buffers = (0..4).map(|_| h.result(DType::F32, &[64])).collect::<Result<Vec<_>, _>>()?;
            let launches = vec![
                scale(buffers[0].address(), buffers[1].address()),
                scale(buffers[2].address(), buffers[3].address()),
            ];
            Ok(Timed { launches, buffers, bytes: 512 })
        }),
        Benchmark::new("scale", "nothing".to_owned(), |_| Ok(Timed { launches: vec![], buffers: vec![], bytes: 0 })),
    ];
    let mut told = vec![];
    let report = Report::run(emulator::device(), cases, &benchmarks, &measured(small()), |event| {
        if let Event::Begins(what) = event {
            told.push(what.to_owned());
        }
    })
    .unwrap();
    assert_eq!(told, ["scale right", "scale wrong", "copy", "scale f32 64", "scale nothing"]);
    let failures = report.failures();
    assert_eq!(failures.len(), 2, "{failures:?}");
    assert_eq!(failures[0], "scale wrong: y: element 0 of f32[64] is 3, expected 4");
    assert!(failures[1].starts_with("benchmark scale nothing: "), "{failures:?}");

    let json: Value = serde_json::to_value(&report).unwrap();
    assert_eq!((&json["schema"], &json["capability"]), (&Value::from(1), &Value::from(90)));
    assert_eq!((&json["device"], &json["driver"]), (&Value::from("emulated device"), &Value::from("13.0")));
    assert_eq!(json["nvrtc"], "13.0");
    assert_eq!((&json["cases"][0]["pass"], &json["cases"][1]["pass"]), (&Value::from(true), &Value::from(false)));
    for key in ["kernel", "label", "pass", "max_abs", "relative", "elements"] {
        assert!(json["cases"].as_array().unwrap().iter().all(|c| c.get(key).is_some()), "{key} in {json:#}");
    }
    let b = &json["benchmarks"][0];
    assert_eq!((&b["kernel"], &b["label"], &b["entry"]), (&"scale".into(), &"f32 64".into(), &"scale".into()));
    assert_eq!((&b["bytes"], &b["grid"], &b["block"]), (&512.into(), &1.into(), &64.into()));
    let number = |key: &str| b[key].as_f64().unwrap_or_else(|| panic!("{key} in {json:#}"));
    assert!(number("us") > 0.0 && number("spread") >= 0.0 && number("launches") >= 1.0, "{json:#}");
    assert!((number("bytes_per_s") - 512.0 / (number("us") * 1e-6)).abs() < 1.0, "{json:#}");
    let copy = json["copy_bytes_per_s"].as_f64().unwrap();
    assert!((number("of_copy") - number("bytes_per_s") / copy).abs() < 1e-9, "{json:#}");
    assert!(number("registers") > 0.0 && number("occupancy") > 0.0, "{json:#}");
}

#[test]
fn without_measurements_there_is_no_bandwidth() {
    let cases = vec![Case::new("scale", "right".to_owned(), Size::Small, doubled(3.0))];
    let report = Report::run(emulator::device(), cases, &[], &RunConfig::serial(), |_| {}).unwrap();
    assert_eq!((report.copy_bytes_per_s, report.benchmarks.len()), (None, 0));
    assert!(report.failures().is_empty());
}

#[test]
fn cases_run_side_by_side_and_are_reported_in_order() {
    let case = |i: usize, expected| Case::new("scale", format!("{i}"), Size::Small, doubled(expected));
    let cases = (0..12).map(|i| case(i, if i == 7 { 4.0 } else { 3.0 })).collect();
    let config = RunConfig { threads: 4, ..RunConfig::serial() };
    let mut ended = 0;
    let report = Report::run(emulator::device(), cases, &[], &config, |event| {
        ended += usize::from(matches!(event, Event::Case(_)));
    })
    .unwrap();
    assert_eq!(ended, 12);
    assert!(report.cases.iter().enumerate().all(|(i, c)| c.label == format!("{i}") && c.pass == (i != 7)));
}

#[test]
fn a_case_beyond_its_time_ends_the_run() {
    let slow = Case::new("scale", "slow".to_owned(), Size::Small, |_| {
        std::thread::sleep(Duration::from_secs(30));
        Ok(Difference::default())
    });
    let never = Case::of_ranks("scale", "never".to_owned(), Size::Small, doubled(3.0));
    let config = RunConfig { threads: 2, case_seconds: 1, ..RunConfig::serial() };
    let cases = vec![Case::new("scale", "right".to_owned(), Size::Small, doubled(3.0)), slow, never];
    let report = Report::run(emulator::device(), cases, &[], &config, |_| {}).unwrap();
    assert_eq!(report.abandoned.as_deref(), Some("scale slow"));
    assert_eq!(report.failures(), ["scale slow: took longer than 1 s; the run ends here"]);
    assert_eq!(report.cases.len(), 2);
}

#[test]
fn calls_of_several_ranks_are_timed_together() {
    let benchmark = Benchmark::of_calls("all_reduce", "f32 8, 2 ranks".to_owned(), |h| {
        let (dtype, shape) = (DType::F32, [8]);
        let capacity = Way::ALL[0].capacity(2, 32).ok_or_else(|| CheckError::Reference("too large".to_owned()))?;
        let group = Group::new(&vec![h.device.clone(); 2], capacity, Duration::from_secs(20))?;
        let (mut calls, mut buffers) = (vec![], vec![]);
        for _ in 0..2 {
            let mut call = vec![];
            for rank in 0..2 {
                let (x, y) = (h.result(dtype, &shape)?, h.result(dtype, &shape)?);
                let member = group.member(rank).unwrap();
                let (from, to) = (x.view(dtype, &shape), y.view(dtype, &shape));
                call.push(vec![all_reduce(Way::ALL[0], &member, &from, None, &to, h.device.info())?]);
                buffers.extend([x, y]);
            }
            calls.push(call);
        }
        Ok(TimedCalls { group: Some(group), calls, buffers, bytes: 128 })
    });
    let report = Report::run(emulator::device(), vec![], &[benchmark], &measured(small()), |_| {}).unwrap();
    assert!(report.failures().is_empty(), "{:?}", report.failures());
    assert!(report.benchmarks[0].us > 0.0);
}

#[test]
fn fused_and_separate_kernels_are_prepared_and_launched() {
    let kept = |b: &Benchmark| {
        let one = b.kernel == "add_then_rms_norm" && b.label == "bf16[1, 8192]";
        one || b.label == "bf16[1, 8192], 2 ranks"
    };
    let benchmarks: Vec<Benchmark> = benchmarks().into_iter().filter(kept).collect();
    assert!(benchmarks.len() >= 3);
    let config = BenchConfig { rounds: 1, round_us: 0.0, ..small() };
    let report = Report::run(emulator::device(), vec![], &benchmarks, &measured(config), |_| {}).unwrap();
    assert!(report.failures().is_empty(), "{:?}", report.failures());
    assert_eq!(report.benchmarks.len(), benchmarks.len());
}
