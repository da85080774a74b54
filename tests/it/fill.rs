//! TEMPORARY
use sinter::ir;
#[test]
fn fill() {
    for e in std::fs::read_dir(crate::fixtures::root().join("tests/cases/saturate")).unwrap() {
        let p = e.unwrap().path();
        let text = std::fs::read_to_string(&p).unwrap();
        let head: String = text.lines().take_while(|l| l.starts_with(';')).map(|l| format!("{l}\n")).collect();
        let g = match ir::parse(&text) { Ok(g) => g, Err(e) => { println!("BAD {}: {e}", p.display()); continue } };
        let mut out = ir::Graph::new(&g.name);
        let mut ok = true;
        for (_, n) in g.nodes() {
            let mut n = n.clone();
            if !matches!(n.op, ir::Op::Input { .. } | ir::Op::Weight { .. }) {
                let xs: Vec<&[ir::TensorType]> = n.inputs.iter().map(|&i| &out.node(i).types[..]).collect();
                match ir::infer(&n.op, &xs) { Ok(t) => n.types = t, Err(e) => { println!("BAD {}: {} {e}", p.display(), n.name); ok = false; break } }
            }
            out.push(n);
        }
        if !ok { continue }
        for o in g.outputs() { out.push_output(o.clone()); }
        std::fs::write(&p, head + &ir::print(&out)).unwrap();
    }
}
