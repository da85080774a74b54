//! Names of values as names of files: which file or array of a caller is which value.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Longer stems are cut and end with a digest; file systems take names of 255 bytes.
const MAX_STEM: usize = 180;

/// The stem of the file of value `i` of a side. Different names have different stems, none leads out of its folder, and none
/// reads as the position of another value: characters that files must not or should not have are written `%XX`.
pub(super) fn stem(name: &str, prefix: &str, i: usize) -> String {
    let plain = escaped(name, false);
    let by_position = ["input", "output"].into_iter().find_map(|p| Some((p, position(&plain, p)?)));
    let own = by_position.is_none_or(|found| found == (prefix, i));
    shortened(if own { plain } else { escaped(name, true) }, name)
}

/// The stems under which value `i` of a side may be found by its name: that of [`stem`]; the name as it is, where it reads as
/// a position; and with `_` for `/`, as other programs write it.
pub(super) fn readable(name: &str, prefix: &str, i: usize) -> Vec<String> {
    let mut all = vec![stem(name, prefix, i)];
    for s in [escaped(name, false), escaped(&name.replace('/', "_"), false)] {
        let s = shortened(s, name);
        if !all.contains(&s) {
            all.push(s);
        }
    }
    all
}

fn shortened(stem: String, name: &str) -> String {
    if stem.len() <= MAX_STEM {
        return stem;
    }
    let mut end = MAX_STEM - 40;
    while !stem.is_char_boundary(end) {
        end -= 1;
    }
    // `%~` occurs in no other stem.
    format!("{}%~{}", &stem[..end], &blake3::hash(name.as_bytes()).to_hex()[..32])
}

/// A name with `%XX` for what files must not have, and for its first character where that is wanted.
fn escaped(name: &str, first: bool) -> String {
    let mut out = String::new();
    for (i, c) in name.char_indices() {
        let awkward = c.is_control() || "/\\%\"<>|?*".contains(c) || i == 0 && (first || c == '.' || c == '-');
        if awkward {
            let mut bytes = [0; 4];
            for b in c.encode_utf8(&mut bytes).bytes() {
                let _ = write!(out, "%{b:02X}");
            }
        } else {
            out.push(c);
        }
    }
    if out.is_empty() { "%".to_owned() } else { out }
}

/// The position that a file or array states: `<prefix>_<i>`, with or without an extension.
pub(super) fn position(name: &str, prefix: &str) -> Option<usize> {
    let stem = name.strip_suffix(".npy").or_else(|| name.strip_suffix(".pb")).unwrap_or(name);
    let digits = stem.strip_prefix(prefix)?.strip_prefix('_')?;
    // `input_01` is a name and no position.
    digits.parse::<usize>().ok().filter(|i| i.to_string() == digits)
}

/// Under what a value may be found.
pub(super) struct Keys {
    pub(super) by_name: Vec<String>,
    pub(super) by_position: Vec<String>,
    /// Whether it may be absent.
    pub(super) optional: bool,
}

impl Keys {
    /// All of them, for people.
    pub(super) fn list(&self) -> String {
        let mut all = self.by_name.clone();
        all.extend(self.by_position.iter().filter(|k| !self.by_name.contains(k)).cloned());
        all.join(", ")
    }

    pub(super) fn into_names(self) -> impl Iterator<Item = String> {
        self.by_name.into_iter().chain(self.by_position)
    }
}

/// By value, the key under which it is found. A folder or archive goes by names or by positions; where only some values
/// have their names, the others may have their positions. What may be either is a problem.
pub(super) fn assign(keys: &[Keys], there: &BTreeSet<String>, problems: &mut Vec<String>) -> Vec<Option<String>> {
    let first = |all: &[String]| all.iter().find(|k| there.contains(*k)).cloned();
    let by_name: Vec<Option<String>> = keys.iter().map(|k| first(&k.by_name)).collect();
    let by_position: Vec<Option<String>> = keys.iter().map(|k| first(&k.by_position)).collect();
    let complete = |found: &[Option<String>]| found.iter().zip(keys).all(|(f, k)| f.is_some() || k.optional);
    let chosen: Vec<Option<String>> = match (complete(&by_name), complete(&by_position)) {
        (false, true) => by_position.clone(),
        _ => by_name.iter().zip(&by_position).map(|(n, p)| n.clone().or_else(|| p.clone())).collect(),
    };
    let mut takers: BTreeMap<&String, Vec<usize>> = BTreeMap::new();
    for (i, k) in chosen.iter().enumerate() {
        if let Some(k) = k {
            takers.entry(k).or_default().push(i);
        }
        // The other reading of the same files.
        if let (Some(n), Some(p)) = (&by_name[i], &by_position[i])
            && n != p
            && complete(&by_name) == complete(&by_position)
        {
            problems.push(format!("{n} and {p} may both be {} {i}: remove one of them", noun(keys, i)));
        }
    }
    for (k, of) in takers.iter().filter(|(_, of)| of.len() > 1) {
        let list: Vec<String> = of.iter().map(|&i| format!("{} {i}", noun(keys, i))).collect();
        problems.push(format!(
            "{k} may be {} by its name or its position: name all files after their values",
            list.join(" or ")
        ));
    }
    chosen
}

fn noun(keys: &[Keys], i: usize) -> &str {
    let key = keys[i].by_position.first().map_or("value", String::as_str);
    key.split('_').next().unwrap_or("value")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stems_differ_and_stay_in_their_folder() {
        let long = "x".repeat(300);
        let other = format!("{long}y");
        let names = [
            "a/b",
            "a_b",
            "a%2Fb",
            "..",
            ".",
            "../x",
            "/x",
            "",
            "%",
            "output_1",
            "%6Futput_1",
            "output_01",
            "a\\b",
            "a\u{0}b",
            "über",
            "x:0",
            "a b",
            "-x",
            &long,
            &other,
            "é",
            "e\u{301}",
        ];
        let stems: BTreeSet<String> = names.iter().map(|n| stem(n, "output", 0)).collect();
        assert_eq!(stems.len(), names.len(), "{stems:?}");
        for s in &stems {
            assert!(!s.contains('/') && !s.starts_with('.') && s.len() <= MAX_STEM && !s.is_empty(), "{s}");
            assert!(position(s, "output").is_none(), "{s}");
        }
        assert_eq!(stem("output_0", "output", 0), "output_0");
        assert_eq!(stem("present.0.key", "output", 3), "present.0.key");
    }

    fn found(names: &[&str], there: &[&str]) -> Result<Vec<Option<String>>, Vec<String>> {
        let keys: Vec<Keys> = names
            .iter()
            .enumerate()
            .map(|(i, n)| Keys {
                by_name: readable(n, "input", i),
                by_position: vec![format!("input_{i}")],
                optional: n.ends_with('?'),
            })
            .collect();
        let mut problems = vec![];
        let got = assign(&keys, &there.iter().map(|s| (*s).to_owned()).collect(), &mut problems);
        if problems.is_empty() { Ok(got) } else { Err(problems) }
    }

    #[test]
    fn names_and_positions_are_told_apart() {
        let is = |names: &[&str], there: &[&str], want: &[&str]| {
            let got: Vec<String> = found(names, there).unwrap().into_iter().flatten().collect();
            assert_eq!(got, want, "{names:?} {there:?}");
        };
        is(&["x", "y"], &["x", "y"], &["x", "y"]);
        is(&["x", "y"], &["input_0", "input_1"], &["input_0", "input_1"]);
        is(&["x", "y"], &["x", "input_1"], &["x", "input_1"]);
        is(&["input_1", "input_2"], &["input_1", "input_2"], &["input_1", "input_2"]);
        is(&["input_1", "input_2"], &["input_0", "input_1"], &["input_0", "input_1"]);
        is(&["input_1", "input_0"], &["%69nput_1", "%69nput_0"], &["%69nput_1", "%69nput_0"]);
        is(&["a/b", "c"], &["a_b", "c"], &["a_b", "c"]);
        is(&["a/b", "a_b"], &["a%2Fb", "a_b"], &["a%2Fb", "a_b"]);
        is(&["x", "w?"], &["x"], &["x"]);
        assert!(found(&["input_1", "input_0"], &["input_0", "input_1"]).is_err());
        assert!(found(&["input_1", "b"], &["input_1"]).is_err());
        assert!(found(&["a/b", "a_b"], &["a_b"]).is_err());
        assert!(found(&["x"], &["x", "input_0"]).is_err());
    }
}
