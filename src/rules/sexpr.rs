//! S-expressions with byte spans: the surface syntax of rule files.

use std::ops::Range;

/// Bytes of the source.
pub type Span = Range<usize>;

/// What a datum is.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// A bare word.
    Sym(String),
    /// `?name`, without the question mark.
    Var(String),
    /// `:name`, without the colon.
    Key(String),
    /// An integer.
    Int(i64),
    /// A number with a point or an exponent.
    Float(f64),
    /// `( ... )`.
    List(Vec<Datum>),
}

/// A datum with its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Datum {
    /// What it is.
    pub kind: Kind,
    /// Where it stands.
    pub span: Span,
}

/// A defect of the syntax.
#[derive(Clone, Debug, PartialEq)]
pub struct SyntaxError {
    /// What is wrong.
    pub message: String,
    /// Where.
    pub span: Span,
    /// A second place that explains it.
    pub note: Option<(String, Span)>,
}

impl Datum {
    /// The elements of a list.
    pub fn list(&self) -> Option<&[Datum]> {
        match &self.kind {
            Kind::List(v) => Some(v),
            _ => None,
        }
    }

    /// The word, if it is a bare one.
    pub fn sym(&self) -> Option<&str> {
        match &self.kind {
            Kind::Sym(s) => Some(s),
            _ => None,
        }
    }
}

/// Deepest nesting of lists. What reads them is recursive.
const DEPTH: usize = 100;

/// Reads a whole file.
pub fn parse(text: &str) -> Result<Vec<Datum>, SyntaxError> {
    let bytes = text.as_bytes();
    let mut open: Vec<(usize, Vec<Datum>)> = vec![];
    let mut top = vec![];
    let mut i = 0;
    while i < bytes.len() {
        let start = i;
        let datum = match bytes[i] {
            c if c.is_ascii_whitespace() => {
                i += 1;
                continue;
            }
            b';' => {
                while i < bytes.len() && bytes[i] != b'\n' {
                    i += 1;
                }
                continue;
            }
            b'(' if open.len() == DEPTH => {
                return Err(error(&format!("lists are nested deeper than {DEPTH}"), start..start + 1));
            }
            b'(' => {
                open.push((i, vec![]));
                i += 1;
                continue;
            }
            b')' => {
                i += 1;
                match open.pop() {
                    Some((at, items)) => Datum { kind: Kind::List(items), span: at..i },
                    None => return Err(error("this `)` closes nothing", start..i)),
                }
            }
            _ => {
                while i < bytes.len() && !bytes[i].is_ascii_whitespace() && !matches!(bytes[i], b'(' | b')' | b';') {
                    i += 1;
                }
                Datum { kind: atom(&text[start..i]), span: start..i }
            }
        };
        match open.last_mut() {
            Some((_, items)) => items.push(datum),
            None => top.push(datum),
        }
    }
    match open.pop() {
        Some((at, _)) => Err(SyntaxError {
            message: "the file ends inside a list".into(),
            span: text.len()..text.len(),
            note: Some(("it opens here".into(), at..at + 1)),
        }),
        None => Ok(top),
    }
}

fn error(message: &str, span: Span) -> SyntaxError {
    SyntaxError { message: message.into(), span, note: None }
}

fn atom(word: &str) -> Kind {
    if let Some(v) = word.strip_prefix('?') {
        return Kind::Var(v.into());
    }
    if let Some(k) = word.strip_prefix(':') {
        return Kind::Key(k.into());
    }
    if let Ok(n) = word.parse() {
        return Kind::Int(n);
    }
    match word.parse::<f64>() {
        Ok(x) if word.starts_with(|c: char| c.is_ascii_digit() || c == '-') => Kind::Float(x),
        _ => Kind::Sym(word.into()),
    }
}
