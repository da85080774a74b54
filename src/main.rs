use sinter::*;
use std::time::Instant;
fn main() {
    let rules = match rules::RuleSet::bundled() { Ok(r) => r, Err(e) => { println!("{e}"); return; } };
    let tp: usize = std::env::var("TP").map_or(1, |t| t.parse().unwrap());
    for a in std::env::args().skip(1) {
        let t = Instant::now();
        let i = match import::open(std::path::Path::new(&a)).and_then(|m| m.import()) { Ok(i) => i, Err(e) => { println!("FAIL {a} {e}"); continue } };
        let t1 = t.elapsed();
        let mapping = ir::Mapping { tp, pp: 1 };
        let dev = cost::Device::parse("h200", cost::DEFAULT).unwrap();
        let cm = cost::CostModel::new(dev, mapping, cost::Objective::Memory, &i.graph);
        let mut g = i.graph;
        for phases in [&[rules::Phase::Raise][..], &[rules::Phase::Shard, rules::Phase::Fuse]] {
            let t = Instant::now();
            let mut p = saturate::load(&g);
            let t2 = t.elapsed();
            let t = Instant::now();
            let mut made = vec![];
            for ph in phases {
                let s = match saturate::saturate(&mut p.eg, &rules.phase(*ph), &mapping, saturate::SaturateConfig::standard(), &mut made) { Ok(s) => s, Err(e) => { println!("{e}"); return } };
                println!("{ph:?} {} it {} nodes {} classes {}", s.stop, s.iterations, s.e_nodes, s.e_classes);
                if std::env::var("S").is_ok() { println!("{:?}", s.rules.iter().filter(|r| r.1.matches > 0).collect::<Vec<_>>()); }
            }
            p.made = made;
            let t3 = t.elapsed();
            let t = Instant::now();
            let x = extract::extract(&p, &g, &cm).unwrap();
            println!("load {t2:?} saturate {t3:?} extract {:?} {:?}", t.elapsed(), x.stats);
            g = x.graph;
            ir::verify(&g).unwrap();
            for o in ["present."] { let _ = o; }
            if phases.len() == 1 {
                let outs = g.outputs().to_vec();
                for (k, o) in outs.iter().enumerate() {
                    let n = g.node(o.value);
                    let st = matches!(n.op, ir::Op::Concat{..}) && n.inputs.iter().any(|&i| matches!(g.node(i).op, ir::Op::Input{..}));
                    g.outputs_mut()[k].state = st;
                }
            }
        }
        let mut c = std::collections::BTreeMap::new();
        for (_, n) in g.nodes() { *c.entry(n.op.name()).or_insert(0) += 1; }
        if std::env::var("P").is_ok() { println!("{}", ir::print(&g)); }
        println!("{a} import {t1:?} {c:?}");
    }
}
