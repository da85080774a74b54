fn main() {
    for a in std::env::args().skip(1) {
        match sinter::import::open(std::path::Path::new(&a)).and_then(|m| m.import()) {
            Ok(i) => {
                let t = sinter::ir::print(&i.graph);
                sinter::ir::verify(&i.graph).unwrap();
                let p = sinter::ir::parse(&t).unwrap();
                assert_eq!(sinter::ir::print(&p), t);
                if std::env::var("P").is_ok() { println!("{t}"); }
                println!("ok {a} {}", i.graph.len());
            }
            Err(e) => println!("FAIL {a}: {e}"),
        }
    }
}
