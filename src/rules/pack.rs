//! Rule packs: a folder of rule files, with an optional manifest `pack.json`.
//!
//! The manifest names the pack, its version and the order of its files. Without one, a folder's files are
//! read by name. Nothing is read from the disk here: the caller brings the texts.

use serde_json::Value;

use super::parse::nearest;
use super::sexpr::Span;
use crate::diag::Diagnostic;

/// Name of the manifest in its folder.
pub const MANIFEST: &str = "pack.json";

const KEYS: [&str; 5] = ["name", "version", "description", "sinter", "files"];

/// Rule files that belong together.
#[derive(Clone, Debug)]
pub struct Pack {
    /// From the manifest; unique among the packs that are read together.
    pub name: Option<String>,
    /// From the manifest: `MAJOR.MINOR.PATCH`.
    pub version: Option<String>,
    /// From the manifest: a sentence.
    pub description: Option<String>,
    /// The folder.
    pub folder: String,
    /// Path and text of each rule file, in the order in which they are read.
    pub files: Vec<(String, String)>,
    /// Defects of the manifest, rendered.
    pub(super) defects: Vec<String>,
}

impl Pack {
    /// A folder: the text of its manifest, if it has one, and its `*.rules` files by name with their texts.
    /// Defects of the manifest are kept, and reported by [`RuleSet::load`](super::RuleSet::load).
    pub fn read(folder: &str, manifest: Option<&str>, files: &[(String, String)]) -> Pack {
        let mut files = files.to_vec();
        files.sort();
        let mut pack =
            Pack { name: None, version: None, description: None, folder: folder.to_owned(), files, defects: vec![] };
        if let Some(text) = manifest {
            let mut reader = Reader { path: pack.path(MANIFEST), text, errors: vec![] };
            reader.manifest(&mut pack);
            pack.defects = reader.errors.iter().map(|e| e.render(text)).collect();
        }
        for (name, _) in &mut pack.files {
            *name = join(folder, name);
        }
        pack
    }

    /// The bundled rules, or other files that have no folder.
    pub(super) fn loose<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Pack {
        let files = files.into_iter().map(|(n, t)| (n.to_owned(), t.to_owned())).collect();
        Pack { name: None, version: None, description: None, folder: String::new(), files, defects: vec![] }
    }

    fn path(&self, file: &str) -> String {
        join(&self.folder, file)
    }
}

fn join(folder: &str, file: &str) -> String {
    if folder.is_empty() || folder.ends_with('/') { format!("{folder}{file}") } else { format!("{folder}/{file}") }
}

/// A version as three numbers.
fn version(s: &str) -> Option<[u64; 3]> {
    let parts: Vec<u64> = s
        .split('.')
        .map(|p| (!p.is_empty() && p.bytes().all(|b| b.is_ascii_digit())).then(|| p.parse().ok()).flatten())
        .collect::<Option<_>>()?;
    parts.try_into().ok()
}

/// Whether a name is of lower-case words with `-` between them.
pub fn is_kebab_case(s: &str) -> bool {
    s.starts_with(|c: char| c.is_ascii_lowercase())
        && s.split('-').all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()))
}

struct Reader<'a> {
    path: String,
    text: &'a str,
    errors: Vec<Diagnostic>,
}

/// A key with its value and the place of both.
struct Member {
    key: String,
    key_span: Span,
    value: Value,
    span: Span,
}

impl Reader<'_> {
    fn error(&mut self, message: impl Into<String>, span: &Span, label: impl Into<String>, help: Option<String>) {
        let mut d = Diagnostic::new(&self.path, message, span.clone(), label);
        d.help = help;
        self.errors.push(d);
    }

    fn manifest(&mut self, pack: &mut Pack) {
        match serde_json::from_str(self.text) {
            Ok(Value::Object(_)) => {}
            Ok(_) => return self.error("a manifest must be an object", &(0..self.text.len()), "not { ... }", None),
            Err(e) => {
                let before: usize =
                    self.text.split_inclusive('\n').take(e.line().saturating_sub(1)).map(str::len).sum();
                let mut at = (before + e.column().saturating_sub(1)).min(self.text.len());
                while !self.text.is_char_boundary(at) {
                    at -= 1;
                }
                let message = e.to_string();
                let message = message.split(" at line").next().unwrap_or_default().to_owned();
                return self.error("the manifest is not valid JSON", &(at..at), message, None);
            }
        }
        let start = self.text.find('{').unwrap_or(0);
        let members = members(self.text, start);
        for (i, m) in members.iter().enumerate() {
            if !KEYS.contains(&m.key.as_str()) {
                let known = format!("a manifest has {}", KEYS.join(", "));
                let help = nearest(&m.key, KEYS.into_iter()).unwrap_or(known);
                self.error(format!("unknown key `{}`", m.key), &m.key_span, "here", Some(help));
            } else if members[..i].iter().any(|n| n.key == m.key) {
                self.error(format!("`{}` is given twice", m.key), &m.key_span, "again here", None);
            }
        }
        let get = |key: &str| members.iter().find(|m| m.key == key);
        for key in ["name", "version", "description"] {
            if get(key).is_none() {
                self.error(format!("the manifest has no `{key}`"), &(start..start + 1), "in this object", None);
            }
        }
        if let Some(m) = get("name") {
            pack.name = self.string(m, "a name such as \"my-rules\"", |s| is_kebab_case(s).then(|| s.to_owned()));
        }
        if let Some(m) = get("version") {
            pack.version =
                self.string(m, "a version such as \"1.2.0\"", |s| version(s).is_some().then(|| s.to_owned()));
        }
        if let Some(m) = get("description") {
            pack.description = self.string(m, "a sentence", |s| (!s.trim().is_empty()).then(|| s.to_owned()));
        }
        if let Some(m) = get("sinter") {
            let least = self.string(m, "the oldest version that will do, such as \">=0.1.0\"", |s| {
                version(s.strip_prefix(">=")?.trim())
            });
            let this = env!("CARGO_PKG_VERSION");
            if let (Some(least), Some(now)) = (least, version(this))
                && now < least
            {
                self.error("the pack needs a newer sinter", &m.span, format!("this is {this}"), None);
            }
        }
        if let Some(m) = get("files") {
            self.files(m, pack);
        }
    }

    fn string<T>(&mut self, m: &Member, wanted: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        let out = m.value.as_str().and_then(read);
        if out.is_none() {
            self.error(format!("`{}` must be {wanted}", m.key), &m.span, "this is not", None);
        }
        out
    }

    /// Puts the files of a pack into the order of the manifest.
    fn files(&mut self, m: &Member, pack: &mut Pack) {
        if !m.value.is_array() {
            return self.error("`files` must be a list of file names", &m.span, "not a list", None);
        }
        let mut left: Vec<Option<(String, String)>> = pack.files.drain(..).map(Some).collect();
        let mut seen: Vec<String> = vec![];
        for (value, span) in elements(self.text, m.span.start) {
            let Some(name) = value.as_str() else {
                self.error("`files` must be a list of file names", &span, "not a name", None);
                continue;
            };
            if seen.iter().any(|s| s == name) {
                self.error(format!("`{name}` is listed twice"), &span, "again here", None);
                continue;
            }
            seen.push(name.to_owned());
            let at = left.iter().position(|f| f.as_ref().is_some_and(|(n, _)| n == name));
            match at.and_then(|i| left[i].take()) {
                Some(file) => pack.files.push(file),
                None => {
                    let names = left.iter().flatten().map(|(n, _)| n.as_str());
                    let help = nearest(name, names);
                    let help =
                        help.or_else(|| Some("list the *.rules files of this folder, without a path".to_owned()));
                    self.error(format!("the folder has no rule file `{name}`"), &span, "not found", help);
                }
            }
        }
        for (name, _) in left.iter().flatten() {
            let help = "list every *.rules file of the folder, or leave `files` out".to_owned();
            self.error(format!("the rule file `{name}` is not listed"), &m.span, "in this list", Some(help));
        }
        pack.files.extend(left.into_iter().flatten());
    }
}

/// The members of the object that starts at an offset. The text is valid JSON.
fn members(text: &str, start: usize) -> Vec<Member> {
    let mut out = vec![];
    let mut at = skip(text, start + 1);
    while text[at..].starts_with('"') {
        let key_span = at..end_of(text, at);
        let colon = skip(text, key_span.end);
        let value = skip(text, colon + 1);
        let span = value..end_of(text, value);
        let key = serde_json::from_str(&text[key_span.clone()]).unwrap_or_default();
        at = skip(text, span.end);
        let json = serde_json::from_str(&text[span.clone()]).unwrap_or_default();
        out.push(Member { key, key_span, value: json, span });
        if !text[at..].starts_with(',') {
            break;
        }
        at = skip(text, at + 1);
    }
    out
}

/// The elements of the array that starts at an offset.
fn elements(text: &str, start: usize) -> Vec<(Value, Span)> {
    let mut out = vec![];
    let mut at = skip(text, start + 1);
    while at < text.len() && !text[at..].starts_with(']') {
        let span = at..end_of(text, at);
        at = skip(text, span.end);
        out.push((serde_json::from_str(&text[span.clone()]).unwrap_or_default(), span));
        if !text[at..].starts_with(',') {
            break;
        }
        at = skip(text, at + 1);
    }
    out
}

/// The next offset that is no white space.
fn skip(text: &str, from: usize) -> usize {
    let rest = text.get(from..).unwrap_or("");
    from.min(text.len()) + (rest.len() - rest.trim_start().len())
}

/// Where the value that starts at an offset ends.
fn end_of(text: &str, start: usize) -> usize {
    let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
    for (i, c) in text[start..].char_indices() {
        let here = start + i;
        if quoted {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => {
                    quoted = false;
                    if depth == 0 {
                        return here + 1;
                    }
                }
                _ => {}
            }
            continue;
        }
        match c {
            '"' => quoted = true,
            '{' | '[' => depth += 1,
            '}' | ']' if depth <= 1 => return if depth == 1 { here + 1 } else { here },
            '}' | ']' => depth -= 1,
            ',' if depth == 0 => return here,
            c if depth == 0 && c.is_whitespace() => return here,
            _ => {}
        }
    }
    text.len()
}
