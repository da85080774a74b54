//! Differences as text for people.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::{Diff, Hunk, Kind, fused};

/// Names of sites that are shown.
const SHOWN: usize = 4;

/// Operators of a hunk that are named one by one.
const NAMED: usize = 8;

impl Diff {
    /// One line per difference, then the notes. With `full`, the lines of the text form follow each difference.
    pub fn text(&self, full: bool) -> String {
        let mut out = String::new();
        for h in &self.hunks {
            let _ = writeln!(out, "{}", h.line());
            for line in h.sites.iter().filter(|_| full).flat_map(|s| &s.lines) {
                let (sign, line) = line.split_at(1);
                let _ = writeln!(out, "    {sign} {line}");
            }
        }
        for n in &self.notes {
            let _ = writeln!(out, "note: {n}");
        }
        out
    }

    /// Nodes by operator before and after, of the operators whose number changed.
    pub fn stat(&self) -> String {
        let names: BTreeSet<&str> = self.before.keys().chain(self.after.keys()).map(String::as_str).collect();
        let of = |name: &str| {
            let count = |c: &super::Counts| c.get(name).copied().unwrap_or(0);
            (name.to_owned(), count(&self.before), count(&self.after))
        };
        let mut rows: Vec<(String, usize, usize)> = names.into_iter().map(of).filter(|(_, a, b)| a != b).collect();
        rows.push(("fused operators".into(), fused(&self.before), fused(&self.after)));
        rows.push(("all operators".into(), self.before.values().sum(), self.after.values().sum()));
        let width = rows.iter().map(|r| r.0.len()).max().unwrap_or(0);
        let mut out = String::new();
        for (name, a, b) in rows {
            let change = b as i64 - a as i64;
            let _ = writeln!(out, "{name:width$}  {a:>6} -> {b:<6} {change:+}");
        }
        out
    }
}

impl Hunk {
    /// The names of its sites.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.sites.iter().map(|s| s.name.as_str()).filter(|n| !n.is_empty())
    }

    /// The difference on one line.
    pub fn line(&self) -> String {
        let mark = match self.kind {
            Kind::Mapping => "~ mapping",
            Kind::Input | Kind::Output if self.before.is_empty() => "+ ",
            Kind::Input | Kind::Output if self.after.is_empty() => "- ",
            Kind::Input | Kind::Output => "~ ",
            Kind::FusionLost => "- fused",
            Kind::FusionGained => "+ fused",
            Kind::FusionChanged => "~ fused",
            Kind::Replaced => "~ ops",
            Kind::Removed => "- ops",
            Kind::Added => "+ ops",
            Kind::Attributes => "~ attr",
            Kind::Type => "~ type",
            Kind::Stage => "~ stage",
            Kind::Operands => "~ reads",
            Kind::Certificate => "~ calls",
        };
        let mark = match self.kind {
            Kind::Input => format!("{mark}input"),
            Kind::Output => format!("{mark}output"),
            _ => mark.to_owned(),
        };
        let one = match &self.sites[..] {
            [s] => Some(s),
            _ => None,
        };
        let before = side(&self.before, one.map(|s| &s.before[..]));
        let after = side(&self.after, one.map(|s| &s.after[..]));
        let body = match (before.is_empty(), after.is_empty()) {
            (false, false) => format!("{before} -> {after}"),
            _ => before + &after,
        };
        let mut out = format!("{mark:<8} {body}");
        let names: Vec<&str> = self.names().collect();
        // Where operators have their own names, the site needs none.
        let named = one.is_some_and(|s| !s.before.is_empty() || !s.after.is_empty());
        if !named && !names.is_empty() {
            let count = if self.sites.len() > 1 { format!("x{}: ", self.sites.len()) } else { String::new() };
            let more = names.len().saturating_sub(SHOWN);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let _ = write!(out, "   {count}{}{more}", names[..names.len().min(SHOWN)].join(", "));
        }
        if let Some(s) = self.stage {
            let _ = write!(out, "   (stage {s})");
        }
        out
    }
}

/// The operators of one side, with the names of their values where there is one site.
fn side(ops: &[String], names: Option<&[String]>) -> String {
    match names {
        Some(names) if names.len() == ops.len() && ops.len() <= NAMED => {
            let list: Vec<String> = ops.iter().zip(names).map(|(o, n)| format!("{o} {n}")).collect();
            list.join(", ")
        }
        _ if ops.len() <= NAMED => ops.join(", "),
        _ => {
            let mut kinds: Vec<(&str, usize)> = vec![];
            for op in ops {
                match kinds.iter_mut().find(|(o, _)| o == op) {
                    Some((_, n)) => *n += 1,
                    None => kinds.push((op, 1)),
                }
            }
            let list: Vec<String> = kinds.iter().map(|(o, n)| format!("{n} {o}")).collect();
            list.join(", ")
        }
    }
}
