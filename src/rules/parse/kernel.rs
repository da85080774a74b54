//! Kernels that a file declares by what they compute.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::sides::rest_name;
use super::{RuleParser, Sort, count, nearest};
use crate::ir::{may_be_part, op};
use crate::rules::lang::{Kernel, Template, TemplateHead, VarId};
use crate::rules::sexpr::{Datum, Kind};

impl RuleParser<'_> {
    /// `(kernel NAME (?x ...) [:attrs (?a ...)] [:let ((?v term) ...)] :yield (term ...))`.
    pub(super) fn kernel(&mut self, whole: &Datum, items: &[Datum]) -> Option<Kernel> {
        let [name, operands, rest @ ..] = items else {
            let help = "write `(kernel name (?x ?y) :yield (term))`".to_owned();
            self.error("the kernel has no name or no operands", &whole.span, "in this declaration", Some(help));
            return None;
        };
        let name_span = name.span.clone();
        let name = self.kernel_name(name)?;
        let mut keys: BTreeMap<&str, &Datum> = BTreeMap::new();
        for pair in rest.chunks(2) {
            match pair {
                [Datum { kind: Kind::Key(k), .. }, v] if matches!(k.as_str(), "attrs" | "let" | "yield") => {
                    if keys.insert(k, v).is_some() {
                        self.error(format!("`:{k}` is given twice"), &pair[0].span, "again here", None);
                    }
                }
                [other, ..] => {
                    let help = "a kernel has :attrs, :let and :yield".to_owned();
                    self.error("not understood in a kernel", &other.span, "here", Some(help));
                    return None;
                }
                [] => {}
            }
        }
        let operands = self.declared(operands, Sort::Class, "operands are written (?x ?y)")?;
        let attrs = match keys.get("attrs") {
            Some(d) => self.declared(d, Sort::Attr, "attributes are written (?eps ?axis)")?,
            None => vec![],
        };
        let mut lets = vec![];
        for d in keys.get("let").and_then(|d| d.list()).unwrap_or(&[]) {
            let Some([Datum { kind: Kind::Var(v), span }, term]) = d.list() else {
                self.error("expected `(?v term)`", &d.span, "here", None);
                return None;
            };
            let t = self.template(term)?;
            self.part(&t, term);
            if let Some(old) = self.find(v) {
                let there = self.vars[old].span.clone();
                let e = self.diagnostic(format!("`?{v}` is bound already"), span, "shadowed here");
                self.errors.push(e.at(there, "first bound here"));
                return None;
            }
            lets.push((self.bind(v, Sort::Class, span)?, t));
        }
        let Some(list) = keys.get("yield").and_then(|d| d.list()).filter(|l| !l.is_empty()) else {
            let help = "write `:yield (term)`, a list of the results".to_owned();
            self.error(format!("kernel `{name}` has no results"), &whole.span, "in this declaration", Some(help));
            return None;
        };
        let mut results = vec![];
        for d in list {
            let t = self.template(d)?;
            self.part(&t, d);
            if matches!(&t, Template::Var(v) if operands.contains(v)) {
                let help = "a result is computed by the kernel".to_owned();
                self.error("an operand is no result", &d.span, "returned as it came in", Some(help));
            }
            results.push(t);
        }
        for &v in operands.iter().chain(&attrs) {
            if !self.used.contains(&v) {
                let (name, span) = (self.vars[v].name.clone(), self.vars[v].span.clone());
                self.error(format!("`?{name}` is not used"), &span, "the kernel does not read it", None);
            }
        }
        Some(Kernel {
            name,
            file: self.file.to_owned(),
            line: self.text[..whole.span.start].matches('\n').count() + 1,
            name_span,
            doc: self.comment_above(whole.span.start),
            vars: self.vars.iter().map(|v| v.name.clone()).collect(),
            operands,
            attrs,
            lets,
            results,
        })
    }

    fn kernel_name(&mut self, d: &Datum) -> Option<String> {
        let word = d.sym().unwrap_or("");
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if !word.starts_with(|c: char| c.is_ascii_lowercase()) || !word.bytes().all(plain) {
            let help = "kernels are named like operators: lower-case words with `_` between them".to_owned();
            self.error("no name for a kernel", &d.span, "here", Some(help));
            return None;
        }
        if op::info(word).is_some() || matches!(word, "const") {
            self.error(format!("`{word}` is an operator"), &d.span, "the name is taken", None);
            return None;
        }
        Some(word.to_owned())
    }

    /// New variables in a list.
    fn declared(&mut self, d: &Datum, sort: Sort, help: &str) -> Option<Vec<VarId>> {
        let mut out = vec![];
        for v in d.list().unwrap_or(std::slice::from_ref(d)) {
            match &v.kind {
                Kind::Var(name) if rest_name(name).is_none() && name != "_" => {
                    if let Some(old) = self.find(name) {
                        let there = self.vars[old].span.clone();
                        let e = self.diagnostic(format!("`?{name}` is named twice"), &v.span, "again here");
                        self.errors.push(e.at(there, "first here"));
                        return None;
                    }
                    out.push(self.bind(name, sort, &v.span)?);
                }
                _ => {
                    self.error("expected a list of variables", &v.span, "not a variable", Some(help.to_owned()));
                    return None;
                }
            }
        }
        Some(out)
    }

    /// Refuses operators that may be no part of a kernel.
    fn part(&mut self, t: &Template, d: &Datum) {
        if let Template::Op { head: TemplateHead::Op(kind, _), args, .. } = t {
            let instance = op::instances().into_iter().find(|o| o.name() == kind.0.name);
            if !instance.as_ref().is_some_and(may_be_part) {
                let help = "the parts of a kernel have one result and do not communicate".to_owned();
                let message = format!("`{}` cannot be part of a kernel", kind.0.name);
                self.error(message, &d.span, "in this term", Some(help));
                return;
            }
            args.iter().for_each(|a| self.part(a, d));
        }
    }

    /// A kernel on the right side of a rule.
    pub(super) fn kernel_term(&mut self, kernel: &Arc<Kernel>, d: &Datum, items: &[Datum]) -> Option<Template> {
        let at = items.iter().position(|i| matches!(i.kind, Kind::Key(_))).unwrap_or(items.len());
        let (operands, attrs) = items.split_at(at);
        let declared = format!("declared in line {}", kernel.line);
        if operands.len() != kernel.operands.len() {
            let wanted = count(kernel.operands.len(), "operand");
            let message = format!("kernel `{}` takes {wanted}, not {}", kernel.name, operands.len());
            self.error(message, &d.span, "in this term", Some(declared));
            return None;
        }
        let args: Vec<_> = operands.iter().map(|a| self.template(a)).collect();
        let names: Vec<&str> = kernel.attrs.iter().map(|v| kernel.vars[*v].as_str()).collect();
        let mut values = vec![None; names.len()];
        for pair in attrs.chunks(2) {
            let [Datum { kind: Kind::Key(k), span }, v] = pair else {
                self.error("an attribute has no value", &pair[0].span, "here", None);
                return None;
            };
            let Some(i) = names.iter().position(|n| n == k) else {
                let help = nearest(k, names.iter().copied()).unwrap_or(declared);
                self.error(format!("kernel `{}` has no attribute `{k}`", kernel.name), span, "here", Some(help));
                return None;
            };
            if values[i].replace(self.expr(v)?).is_some() {
                self.error(format!("attribute `{k}` is given twice"), span, "again here", None);
            }
        }
        if let Some(i) = values.iter().position(Option::is_none) {
            let message = format!("attribute `{}` of `{}` is not given", names[i], kernel.name);
            self.error(message, &d.span, "in this term", Some(format!("write `:{} VALUE`", names[i])));
            return None;
        }
        let head = TemplateHead::Kernel(kernel.clone(), values.into_iter().flatten().collect());
        Some(Template::Op { head, args: args.into_iter().collect::<Option<_>>()?, rest: vec![] })
    }
}
