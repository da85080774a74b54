//! How long `optimize` takes, and how that grows with the number of layers.
//!
//! The bundled two-layer Llama export is stretched to more layers by repeating its second one. Times are
//! the best of several runs in one process; the ratio between sizes is what matters on a noisy machine.
//! With `SINTER_TESTBED` set, or a `testbed` folder in `../shared`, the 80-layer export there is timed too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use prost::Message as _;
use sinter::explain;
use sinter::import::{self, proto::ModelProto};
use sinter::ir::Mapping;
use sinter::lower::weight_entries;
use sinter::pipeline::{CompileConfig, Compiled, compile};
use sinter::rules::RuleSet;
use sinter_runtime::plan::PlanWriter;

const RUNS: usize = 7;

type Failure = Box<dyn std::error::Error>;

#[allow(clippy::print_stdout, reason = "a benchmark prints its table")]
fn main() -> Result<(), Failure> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fixture = root.join("fixtures/models/llama-dynamo-op18-past/model.onnx");
    let dir = tempfile::tempdir()?;
    println!(
        "{:28} {:>5} {:>8} {:>8} {:>6}  {:>9} {:>9}",
        "model", "ranks", "nodes", "e-nodes", "fused", "best ms", "ms/layer"
    );
    let mut first = None;
    for layers in [20, 80, 320] {
        let path = dir.path().join(format!("llama-{layers}.onnx"));
        let mut model = ModelProto::decode(&std::fs::read(&fixture)?[..])?;
        stretch(&mut model, layers)?;
        std::fs::write(&path, model.encode_to_vec())?;
        let ms = report(&path, &format!("stretched llama, {layers}"), layers, Mapping { tp: 2, pp: 2 }, dir.path())?;
        let (l, t) = *first.get_or_insert((layers, ms));
        if l != layers {
            println!("{:28} {:.1} times the layers cost {:.1} times the time", "", layers as f64 / l as f64, ms / t);
        }
    }
    let testbed = std::env::var_os("SINTER_TESTBED").map_or_else(|| root.join("../shared/testbed"), PathBuf::from);
    let real = testbed.join("llama80-dynamo-op18-past/model.onnx");
    if real.is_file() {
        for mapping in [Mapping { tp: 1, pp: 1 }, Mapping { tp: 2, pp: 1 }, Mapping { tp: 2, pp: 2 }] {
            report(&real, "llama80-dynamo-op18-past", 80, mapping, dir.path())?;
        }
    } else {
        println!("skipped: llama80-dynamo-op18-past is not in {}", testbed.display());
    }
    println!("peak memory of the process: {:.0} MiB", sinter::timing::peak_rss_bytes() as f64 / 1048576.0);
    Ok(())
}

#[allow(clippy::print_stdout, reason = "a benchmark prints its table")]
fn report(path: &Path, name: &str, layers: usize, mapping: Mapping, dir: &Path) -> Result<f64, Failure> {
    let mut best = f64::INFINITY;
    let mut last = None;
    for _ in 0..RUNS {
        let start = Instant::now();
        last = Some(optimize(path, mapping, &dir.join("plan"))?);
        best = best.min(start.elapsed().as_secs_f64() * 1e3);
    }
    let (nodes, c) = last.ok_or("no run")?;
    let fused: usize = sinter::lower::step_counts(&c.plan.stages).1.values().sum();
    let e_nodes = c.saturate.last().map_or(0, |(_, s)| s.e_nodes);
    println!(
        "{name:28} {:>5} {nodes:>8} {e_nodes:>8} {fused:>6}  {best:>9.1} {:>9.2}",
        mapping.world(),
        best / layers as f64
    );
    let stages: Vec<String> = c.timings.entries().iter().map(|(n, ms)| format!("{n} {ms:.1}")).collect();
    println!("{:28} last run: {}", "", stages.join(", "));
    let start = Instant::now();
    let bytes = serde_json::to_string(&c.record)?.len();
    let ms = start.elapsed().as_secs_f64() * 1e3;
    println!("{:28} record: {} entries, {} KiB, {ms:.1} ms to put in text", "", c.record.entries.len(), bytes / 1024);
    Ok(best)
}

/// The whole of `sinter optimize`, plan folder included.
fn optimize(path: &Path, mapping: Mapping, out: &Path) -> Result<(usize, Compiled), Failure> {
    let model = import::open(path)?.import()?;
    let c = compile(&model, &CompileConfig::standard(mapping, RuleSet::bundled()?)?)?;
    let mut w = PlanWriter::create(out)?;
    for rank in 0..mapping.world() {
        w.weights(rank, &weight_entries(&c.plan, rank, &model.weights)?)?;
    }
    w.text(explain::FILE, &serde_json::to_string(&c.record)?)?;
    w.finish(c.plan.clone())?;
    Ok((model.n_nodes, c))
}

/// Repeats the second layer of the bundled export until there are `layers`.
fn stretch(model: &mut ModelProto, layers: usize) -> Result<(), Failure> {
    let graph = model.graph.as_mut().ok_or("no graph")?;
    let (input, output) = ("add_10", "add_18");
    // The layer: what depends on its input or its cache, and leads to its output or its cache.
    let mut inside: BTreeSet<String> =
        [input, "past_key_values.1.key", "past_key_values.1.value"].map(str::to_owned).into();
    let mut forward = vec![];
    for (i, n) in graph.node.iter().enumerate() {
        if n.input.iter().any(|x| inside.contains(x)) {
            inside.extend(n.output.iter().cloned());
            forward.push(i);
        }
    }
    let mut wanted: BTreeSet<String> = [output, "present.1.key", "present.1.value"].map(str::to_owned).into();
    let mut body = vec![];
    for &i in forward.iter().rev() {
        if graph.node[i].output.iter().any(|x| wanted.contains(x)) {
            wanted.extend(graph.node[i].input.iter().filter(|x| *x != input).cloned());
            body.push(i);
        }
    }
    body.reverse();
    let body: Vec<_> = body.into_iter().map(|i| graph.node[i].clone()).collect();
    let weights: BTreeMap<String, usize> = graph
        .initializer
        .iter()
        .enumerate()
        .filter(|(_, t)| t.dims.iter().product::<i64>() >= 64)
        .map(|(i, t)| (t.name().to_owned(), i))
        .collect();
    let tail = graph.node.iter().position(|n| n.output.iter().any(|o| o == output)).ok_or("no second layer")? + 1;
    let rest = graph.node.split_off(tail);
    let mut last = output.to_owned();
    for k in 2..layers {
        let made: BTreeSet<&String> = body.iter().flat_map(|n| &n.output).collect();
        let rename = |x: &String| match x.as_str() {
            x if x == input => last.clone(),
            x if x.contains("values.1.") || x.contains("present.1.") => x.replacen(".1.", &format!(".{k}."), 1),
            x if made.contains(&x.to_owned()) || weights.contains_key(x) => format!("{x}.{k}"),
            x => x.to_owned(),
        };
        let mut used = BTreeSet::new();
        for n in &body {
            let mut n = n.clone();
            used.extend(n.input.iter().filter(|x| weights.contains_key(*x)).cloned());
            n.input = n.input.iter().map(rename).collect();
            n.output = n.output.iter().map(rename).collect();
            n.name = Some(format!("{}.{k}", n.name()));
            graph.node.push(n);
        }
        for w in used {
            let mut t = graph.initializer[weights[&w]].clone();
            t.name = Some(format!("{w}.{k}"));
            graph.initializer.push(t);
        }
        for list in [&mut graph.input, &mut graph.output] {
            let copies: Vec<_> = list.iter().filter(|v| v.name().contains(".1.")).cloned().collect();
            for mut v in copies {
                v.name = Some(v.name().replacen(".1.", &format!(".{k}."), 1));
                list.push(v);
            }
        }
        last = format!("{output}.{k}");
    }
    for mut n in rest {
        n.input.iter_mut().filter(|x| *x == output).for_each(|x| x.clone_from(&last));
        graph.node.push(n);
    }
    Ok(())
}
