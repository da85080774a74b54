//! The text form of expressions.
//!
//! A symbol that is no plain identifier is quoted: `"batch-size"`. A quote or backslash in its name has a backslash before it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Atom, Dim, Repr};

/// Deeper nesting than this is refused, as the parser recurses. Compiled expressions are held below it.
const MAX_DEPTH: usize = 200;
/// Expressions of more terms are refused: they multiply.
const MAX_TERMS: usize = 4096;

/// Whether a name reads back as one symbol without quotes.
fn is_plain(name: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_' || c == '.' || c == ':';
    name.chars().all(part) && name.starts_with(|c: char| !c.is_ascii_digit() && part(c)) && name.parse::<i64>().is_err()
}

fn symbol(f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
    if is_plain(name) {
        return f.write_str(name);
    }
    f.write_str("\"")?;
    for c in name.chars() {
        if matches!(c, '"' | '\\') {
            f.write_str("\\")?;
        }
        write!(f, "{c}")?;
    }
    f.write_str("\"")
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms = match &self.0 {
            Repr::Const(n) => return write!(f, "{n}"),
            Repr::Sum(t) => t,
        };
        // The constant sorts first; printing it last reads as people write it.
        for (i, (m, c)) in
            terms.iter().filter(|t| !t.0.is_empty()).chain(terms.iter().filter(|t| t.0.is_empty())).enumerate()
        {
            let sign = if *c < 0 { "-" } else { "+" };
            match (i, sign) {
                (0, "-") => f.write_str("-")?,
                (0, _) => {}
                _ => write!(f, " {sign} ")?,
            }
            let magnitude = c.unsigned_abs();
            let mut first = true;
            if magnitude != 1 || m.is_empty() {
                write!(f, "{magnitude}")?;
                first = false;
            }
            for a in m {
                if !first {
                    f.write_str("*")?;
                }
                first = false;
                match a {
                    Atom::Sym(s) => symbol(f, s)?,
                    Atom::Floor(d) => write!(f, "floor({}, {})", d.0, d.1)?,
                    Atom::Mod(d) => write!(f, "mod({}, {})", d.0, d.1)?,
                    Atom::Min(d) => write!(f, "min({}, {})", d.0, d.1)?,
                    Atom::Max(d) => write!(f, "max({}, {})", d.0, d.1)?,
                    Atom::Div(d) => write!(f, "div({}, {})", d.0, d.1)?,
                    Atom::Join(d) => write!(f, "join({}, {})", d.0, d.1)?,
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Dim {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self.as_const() {
            Some(n) => s.serialize_i64(n),
            None => s.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Dim {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Int(i64),
            Text(String),
        }
        match Form::deserialize(d)? {
            Form::Int(n) => Ok(Dim::from(n)),
            Form::Text(t) => Dim::parse(&t).map_err(serde::de::Error::custom),
        }
    }
}

impl Dim {
    /// Reads an expression with `+ - * // ( )` and `min max mod floor div join` in function form, as exporters
    /// write them and as `Display` prints them.
    pub fn parse(text: &str) -> Result<Dim, String> {
        let mut p = Parser { text, at: 0, depth: 0 };
        let d = p.sum()?;
        p.skip();
        if p.at < text.len() {
            return Err(format!("`{text}` is not a dimension: unexpected `{}`", &text[p.at..]));
        }
        Ok(d)
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn skip(&mut self) {
        while self.text[self.at..].starts_with(char::is_whitespace) {
            self.at += self.text[self.at..].chars().next().map_or(0, char::len_utf8);
        }
    }

    fn eat(&mut self, token: &str) -> bool {
        self.skip();
        let found = self.text[self.at..].starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn bad<T>(&self) -> Result<T, String> {
        Err(format!("`{}` is not a dimension", self.text))
    }

    /// An expression that is not too long.
    fn short(&self, d: Dim) -> Result<Dim, String> {
        match &d.0 {
            Repr::Sum(t) if t.len() > MAX_TERMS => Err(format!("`{}` has more than {MAX_TERMS} terms", self.text)),
            _ => Ok(d),
        }
    }

    fn sum(&mut self) -> Result<Dim, String> {
        let mut terms = vec![];
        let negative = self.eat("-");
        let mut sign = if negative { -1 } else { 1 };
        loop {
            let d = self.product(sign)?;
            terms.append(&mut d.terms());
            if terms.len() > MAX_TERMS {
                return Err(format!("`{}` has more than {MAX_TERMS} terms", self.text));
            }
            sign = if self.eat("+") {
                1
            } else if self.eat("-") {
                -1
            } else {
                return Ok(Dim::from_terms(terms));
            };
        }
    }

    fn product(&mut self, sign: i64) -> Result<Dim, String> {
        let mut d = self.factor(sign)?;
        loop {
            d = if self.eat("//") {
                d.floor_div(&self.factor(1)?)
            } else if self.eat("*") {
                &d * &self.factor(1)?
            } else {
                return Ok(d);
            };
            d = self.short(d)?;
        }
    }

    fn factor(&mut self, sign: i64) -> Result<Dim, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("`{}` is nested too deeply", self.text));
        }
        let out = self.factor_inner(sign);
        self.depth -= 1;
        out
    }

    fn factor_inner(&mut self, sign: i64) -> Result<Dim, String> {
        let signed = |d: Dim| if sign < 0 { &d * &Dim::from(-1) } else { d };
        if self.eat("(") {
            let d = self.sum()?;
            return if self.eat(")") { Ok(signed(d)) } else { self.bad() };
        }
        if self.eat("\"") {
            return self.quoted().map(signed);
        }
        self.skip();
        let rest = &self.text[self.at..];
        let len = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.' || c == ':')).unwrap_or(rest.len());
        let word = &rest[..len];
        if word.is_empty() {
            return self.bad();
        }
        self.at += len;
        // With its sign, as the lowest number has no positive counterpart.
        if let Ok(n) = word.parse::<i128>() {
            return i64::try_from(n * i128::from(sign)).map(Dim::from).or_else(|_| self.bad());
        }
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return self.bad();
        }
        let lower = word.to_ascii_lowercase();
        if matches!(&lower[..], "floor" | "mod" | "min" | "max" | "div" | "join") && self.eat("(") {
            let a = self.sum()?;
            let b = if self.eat(",") { Some(self.sum()?) } else { None };
            if !self.eat(")") {
                return self.bad();
            }
            let d = match (&lower[..], b) {
                ("floor", None) => a,
                ("floor", Some(b)) if b.as_const() == Some(1) => a.opaque(),
                ("floor", Some(b)) => a.floor_div(&b),
                ("mod", Some(b)) => a.modulo(&b),
                ("min", Some(b)) => a.smaller(&b),
                ("max", Some(b)) => a.larger(&b),
                ("div", Some(b)) => a.quotient(&b),
                ("join", Some(b)) => a.join(&b),
                _ => return self.bad(),
            };
            return self.short(signed(d));
        }
        Ok(signed(Dim::sym(word)))
    }

    /// The rest of a quoted name.
    fn quoted(&mut self) -> Result<Dim, String> {
        let mut name = String::new();
        let mut chars = self.text[self.at..].char_indices();
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += i + 1;
                    return if name.is_empty() { self.bad() } else { Ok(Dim::sym(&name)) };
                }
                '\\' => match chars.next() {
                    Some((_, c)) => name.push(c),
                    None => break,
                },
                c => name.push(c),
            }
        }
        self.bad()
    }
}
