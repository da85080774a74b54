//! Plans with random damage are refused or run, but never panic.

mod support;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use serde_json::Value;
use sinter_runtime::executor::{RunConfig, RunError, StepError, run, run_reference};
use sinter_runtime::plan::{Plan, certify, verify};
use sinter_runtime::tensor::Tensor;
use support::*;

/// Replaces the `n`th leaf of a JSON value.
fn damage(v: &mut Value, n: &mut usize, with: &Value) -> bool {
    match v {
        Value::Array(a) => a.iter_mut().any(|v| damage(v, n, with)),
        Value::Object(o) => o.values_mut().any(|v| damage(v, n, with)),
        leaf if *n == 0 => {
            *leaf = with.clone();
            true
        }
        _ => {
            *n -= 1;
            false
        }
    }
}

#[test]
fn damaged_plans_never_panic() {
    let whole = serde_json::to_value(mlp()).unwrap();
    let inputs = named(&[("x", &count(&[2, 4], 1.0))]);
    let mut weights: BTreeMap<(usize, String), Tensor> = BTreeMap::new();
    for rank in 0..4 {
        weights.insert((rank, "w1".to_owned()), count(&[4, 3], 1.0));
        weights.insert((rank, "w2".to_owned()), count(&[3, 2], 1.0));
    }
    let config = RunConfig { timeout: Duration::from_millis(50), ..RunConfig::default() };
    let with = [0, 1, 2, 3, 99, -1].map(Value::from);
    let with = with
        .into_iter()
        .chain(["n", "f16", "i64", "0", "n*n*n*n", "9223372036854775807", "tp", "add"].map(Value::from));
    let mut executed = 0;
    for with in with {
        for leaf in 0.. {
            let mut json = whole.clone();
            if !damage(&mut json, &mut { leaf }, &with) {
                break;
            }
            let Ok(mut plan) = serde_json::from_value::<Plan>(json.clone()) else { continue };
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                drop(verify(&plan));
                run(&plan, &weights, &inputs, &config).map(drop)
            }));
            let check = |r: Result<(), RunError>| {
                if let Err(RunError::Step { source, .. }) = &r {
                    assert!(!matches!(**source, StepError::Panic(_)), "leaf {leaf} = {with}: {}", r.unwrap_err());
                }
            };
            let result = outcome.unwrap_or_else(|_| panic!("leaf {leaf} = {with}"));
            let malformed = matches!(result, Err(RunError::Plan(_)));
            check(result);
            if malformed {
                continue;
            }
            if let Ok(c) = catch_unwind(AssertUnwindSafe(|| certify(&plan.mapping, &plan.stages)))
                .unwrap_or_else(|_| panic!("leaf {leaf} = {with}"))
            {
                plan.certificate = c;
                check(run(&plan, &weights, &inputs, &config).map(drop));
                check(run_reference(&plan, &weights, &inputs, &config).map(drop));
                executed += 1;
            }
        }
    }
    assert!(executed > 100, "{executed}");
}
