//! The table of what kernels take: `kernels/TABLE.md`, and its comparison with a new compilation.

use std::collections::BTreeMap;

use super::Usage;

/// Registers and memory of kernels on some architectures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Major and minor version of NVRTC.
    pub nvrtc: (i32, i32),
    /// Compute capabilities, the columns.
    pub archs: Vec<u32>,
    /// For each kernel its numbers, one for each column.
    pub rows: BTreeMap<String, Vec<Usage>>,
}

/// Why a table could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line}: {what}")]
pub struct TableError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong there.
    pub what: String,
}

type Part = (&'static str, fn(&Usage) -> u32);

/// What a comparison looks at.
const PARTS: &[Part] =
    &[("registers", |u| u.registers), ("shared", |u| u.shared), ("stack", |u| u.stack), ("spilled", |u| u.spilled)];

const TITLE: &str = "# Registers and memory of the kernels";
const VERSION: &str = "Compiled by NVRTC ";

impl Table {
    /// The table as Markdown; [`Table::parse`] reads it.
    pub fn markdown(&self) -> String {
        let (major, minor) = self.nvrtc;
        let mut t = format!(
            "{TITLE}\n\n{VERSION}{major}.{minor}. `make kernels` compiles again and compares, `make kernels-bless` writes this file.\n\
             A cell has the registers of a thread; where there are any, also bytes of static shared memory of a block, and of a\n\
             thread's stack and spilled registers.\n\n| kernel |"
        );
        self.archs.iter().for_each(|a| t += &format!(" sm_{a} |"));
        t += "\n|---|";
        self.archs.iter().for_each(|_| t += "---|");
        t.push('\n');
        for (name, row) in &self.rows {
            t += &format!("| `{name}` |");
            row.iter().for_each(|u| t += &format!(" {} |", cell(u)));
            t.push('\n');
        }
        t
    }

    /// Reads a table.
    pub fn parse(text: &str) -> Result<Table, TableError> {
        let error = |line: usize, what: &str| TableError { line, what: what.to_owned() };
        let lines: Vec<(usize, &str)> = text.lines().enumerate().map(|(i, l)| (i + 1, l)).collect();
        let version = lines.iter().find_map(|(n, l)| Some((*n, l.strip_prefix(VERSION)?)));
        let (n, version) = version.ok_or_else(|| error(1, &format!("no line starts with `{VERSION}`")))?;
        let mut numbers = version.split('.').map(str::parse::<i32>);
        let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
            return Err(error(n, "the version of NVRTC is no pair of numbers"));
        };
        let mut table = Table { nvrtc: (major, minor), archs: vec![], rows: BTreeMap::new() };
        for (n, line) in lines.iter().filter(|(_, l)| l.starts_with('|') && !l.starts_with("|-")) {
            let mut cells = line.trim_matches('|').split('|').map(str::trim);
            let first = cells.next().unwrap_or_default();
            if first == "kernel" {
                let archs: Option<Vec<u32>> = cells.map(|c| c.strip_prefix("sm_")?.parse().ok()).collect();
                table.archs = archs.ok_or_else(|| error(*n, "a column is not called sm_ and a number"))?;
                continue;
            }
            let row: Option<Vec<Usage>> = cells.map(parse_cell).collect();
            let row = row.filter(|r| r.len() == table.archs.len());
            let row =
                row.ok_or_else(|| error(*n, "a cell is missing, or is not `40`, `40, 128 shared` or the like"))?;
            if table.rows.insert(first.trim_matches('`').to_owned(), row).is_some() {
                return Err(error(*n, &format!("a second row of {first}")));
            }
        }
        if table.archs.is_empty() {
            return Err(error(1, "no line `| kernel | sm_80 |` names the columns"));
        }
        Ok(table)
    }

    /// What differs from a recorded table: kernels that are new or gone, numbers above the recorded ones. Only the columns
    /// of this table count, and only the kernels that `kept` accepts.
    pub fn differences(&self, recorded: &Table, kept: impl Fn(&str) -> bool) -> Vec<String> {
        let mut out = vec![];
        for arch in self.archs.iter().filter(|a| !recorded.archs.contains(a)) {
            out.push(format!("sm_{arch}: not in the table"));
        }
        for name in recorded.rows.keys().filter(|n| kept(n) && !self.rows.contains_key(*n)) {
            out.push(format!("{name}: in the table, but not a kernel any more"));
        }
        for (name, row) in self.rows.iter().filter(|(n, _)| kept(n)) {
            let Some(old) = recorded.rows.get(name) else {
                out.push(format!("{name}: new, not in the table"));
                continue;
            };
            for (arch, now) in self.archs.iter().zip(row) {
                let column = recorded.archs.iter().position(|a| a == arch);
                let Some(then) = column.and_then(|i| old.get(i)) else { continue };
                let more: Vec<String> = PARTS
                    .iter()
                    .filter(|(_, part)| part(now) > part(then))
                    .map(|(what, part)| format!("{} {what} for {}", part(now), part(then)))
                    .collect();
                if !more.is_empty() {
                    out.push(format!("{name} sm_{arch}: {}", more.join(", ")));
                }
            }
        }
        out
    }

    /// The kernels that spill registers.
    pub fn spills(&self) -> Vec<String> {
        let mut out = vec![];
        for (name, row) in &self.rows {
            for (arch, u) in self.archs.iter().zip(row).filter(|(_, u)| u.spilled > 0) {
                out.push(format!("{name} sm_{arch}: {} bytes of registers are spilled", u.spilled));
            }
        }
        out
    }
}

fn cell(u: &Usage) -> String {
    let mut t = String::new();
    for (what, part) in PARTS {
        match *what {
            "registers" => t += &part(u).to_string(),
            _ if part(u) > 0 => t += &format!(", {} {what}", part(u)),
            _ => {}
        }
    }
    t
}

fn parse_cell(text: &str) -> Option<Usage> {
    let mut parts = text.split(", ");
    let mut u = Usage { registers: parts.next()?.parse().ok()?, ..Usage::default() };
    for p in parts {
        let (n, what) = p.split_once(' ')?;
        let place = match what {
            "shared" => &mut u.shared,
            "stack" => &mut u.stack,
            "spilled" => &mut u.spilled,
            _ => return None,
        };
        *place = n.parse().ok()?;
    }
    Some(u)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(registers: u32) -> Usage {
        Usage { registers, ..Usage::default() }
    }

    fn table(rows: &[(&str, [Usage; 2])]) -> Table {
        let rows = rows.iter().map(|(n, r)| ((*n).to_owned(), r.to_vec())).collect();
        Table { nvrtc: (13, 0), archs: vec![80, 90], rows }
    }

    #[test]
    fn a_table_reads_back() {
        let full = Usage { registers: 64, shared: 128, stack: 40, spilled: 212 };
        let t = table(&[("b", [usage(8), full]), ("a", [Usage { shared: 4, ..usage(255) }, usage(1)])]);
        let text = t.markdown();
        assert!(
            text.contains("| `a` | 255, 4 shared | 1 |\n| `b` | 8 | 64, 128 shared, 40 stack, 212 spilled |"),
            "{text}"
        );
        assert_eq!(Table::parse(&text), Ok(t.clone()));
        assert_eq!(t.spills(), ["b sm_90: 212 bytes of registers are spilled"]);
    }

    #[test]
    fn damaged_tables_are_refused_with_the_line() {
        let text = table(&[("a", [usage(8), usage(8)])]).markdown();
        let error = |from: &str, to: &str| Table::parse(&text.replace(from, to)).unwrap_err().to_string();
        assert!(error("NVRTC 13.0", "NVRTC x").contains("line 3: the version"));
        assert!(error("Compiled by", "By").contains("no line starts with"));
        assert!(error("| sm_80 |", "| x |").contains("sm_ and a number"));
        assert!(error("| `a` | 8 |", "| `a` |").contains("a cell is missing"));
        assert!(error("| `a` | 8 |", "| `a` | 8, 4 of it |").contains("a cell is missing"));
        assert!(error("| kernel |", "kernel").contains("a cell is missing"));
        assert!(Table::parse(&(text.clone() + "| `a` | 8 | 8 |\n")).unwrap_err().what.contains("second row"));
        assert!(Table::parse("").is_err());
    }

    #[test]
    fn rows_above_the_record_new_and_missing_ones_differ() {
        let recorded = table(&[("a", [usage(8), usage(8)]), ("b", [usage(8), usage(8)]), ("gone", [usage(8); 2])]);
        let now = table(&[
            ("a", [usage(9), Usage { stack: 8, ..usage(8) }]),
            ("b", [usage(8), usage(7)]),
            ("new", [usage(1); 2]),
        ]);
        let all = now.differences(&recorded, |_| true);
        assert_eq!(
            all,
            [
                "gone: in the table, but not a kernel any more",
                "a sm_80: 9 registers for 8",
                "a sm_90: 8 stack for 0",
                "new: new, not in the table",
            ]
        );
        assert!(recorded.differences(&recorded, |_| true).is_empty());
        assert_eq!(now.differences(&recorded, |n| n == "b"), Vec::<String>::new());
        let other = Table { archs: vec![80, 100], ..now };
        assert_eq!(other.differences(&recorded, |n| n == "b"), ["sm_100: not in the table"]);
    }
}
