//! The rule language after parsing: patterns, guards and templates over numbered variables.

use std::sync::Arc;

use super::sexpr::Span;
use super::vocab::Function;
use crate::ir::{Attr, Class, OpInfo};

/// Index of a variable in its rule.
pub type VarId = usize;

/// When a rule runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Recognises operators in their decomposed forms, before the graph is partitioned.
    Raise,
    /// Cuts tensors over the mesh and moves computation across stage boundaries.
    Shard,
    /// Replaces several operators by one kernel.
    Fuse,
}

impl Phase {
    /// The name in rule files.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Raise => "raise",
            Phase::Shard => "shard",
            Phase::Fuse => "fuse",
        }
    }

    /// The inverse of [`Phase::name`].
    pub fn parse(s: &str) -> Option<Phase> {
        [Phase::Raise, Phase::Shard, Phase::Fuse].into_iter().find(|p| p.name() == s)
    }
}

/// A checked rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Unique over all files.
    pub name: String,
    /// When it runs.
    pub phase: Phase,
    /// The file it comes from.
    pub file: String,
    /// Line of its definition, from 1.
    pub line: usize,
    /// Where its name stands in the file.
    pub name_span: Span,
    /// Where its left side stands.
    pub left_span: Span,
    /// Where its right side stands.
    pub right_span: Span,
    /// The comment above it: the equation in words.
    pub doc: String,
    /// Names of the variables.
    pub vars: Vec<String>,
    /// What to match, rooted at the last of the rule's terms.
    pub pattern: Pattern,
    /// Conditions and bindings: those of `:if` in order, then those of `:when`.
    pub guards: Vec<Guard>,
    /// What holds then: each template belongs to the class bound to its variable, or binds it.
    pub yields: Vec<(Target, Template)>,
}

impl Rule {
    /// Whether it makes parts of tensors that its left side does not have in parts: where each cut starts.
    pub fn cuts(&self) -> bool {
        fn reads(p: &Pattern) -> bool {
            match p {
                Pattern::Op(o) => matches!(&o.head, Head::Op(k) if k.0.name == CUT) || o.args.iter().any(reads),
                _ => false,
            }
        }
        fn makes(t: &Template) -> bool {
            match t {
                Template::Op { head, args, .. } => {
                    matches!(head, TemplateHead::Op(k, _) if k.0.name == CUT) || args.iter().any(makes)
                }
                _ => false,
            }
        }
        !reads(&self.pattern) && self.yields.iter().any(|(_, t)| makes(t))
    }
}

/// The operator that cuts.
const CUT: &str = "shard";

/// What a template's value is united with.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// The class where the pattern matched.
    Root,
    /// A class bound by the pattern, or a new name for the templates that follow.
    Var(VarId),
}

/// A term with holes.
#[derive(Clone, Debug, PartialEq)]
pub enum Pattern {
    /// Any class; the same variable means the same class.
    Var(VarId),
    /// A constant whose elements are all this number, up to the rounding of its type.
    Number(f64),
    /// An operator.
    Op(Box<OpPattern>),
}

/// An operator with its operands and attributes.
#[derive(Clone, Debug, PartialEq)]
pub struct OpPattern {
    /// The variable for the class, where the term is named.
    pub var: Option<VarId>,
    /// Which operators match.
    pub head: Head,
    /// Conditions on attributes, in table order; none for operators matched by class.
    pub attrs: Vec<AttrPattern>,
    /// Operands.
    pub args: Vec<Pattern>,
    /// Take one further operand each, or none where there is none left.
    pub optional: Vec<VarId>,
    /// Takes the remaining operands, however many.
    pub rest: Option<VarId>,
}

/// Which operators match.
#[derive(Clone, Debug, PartialEq)]
pub enum Head {
    /// One operator, given by any instance of it.
    Op(OpKind),
    /// Every operator of a class; the variable stands for operator and attributes.
    Class(VarId, OpClass),
}

/// A row of the operator table.
#[derive(Clone, Copy, Debug)]
pub struct OpKind(pub &'static OpInfo);

impl PartialEq for OpKind {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}

/// Operator classes that rules may quantify over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpClass {
    /// One operand, element by element.
    Unary,
    /// Two operands, element by element.
    Binary,
}

impl OpClass {
    /// The name in rule files.
    pub fn parse(s: &str) -> Option<OpClass> {
        match s {
            "unary" => Some(OpClass::Unary),
            "binary" => Some(OpClass::Binary),
            _ => None,
        }
    }

    /// Whether a row of the operator table belongs to the class.
    pub fn contains_class(self, class: Class) -> bool {
        match self {
            OpClass::Unary => class == Class::Unary,
            OpClass::Binary => matches!(class, Class::Binary | Class::Commutative),
        }
    }

    /// Number of operands.
    pub fn arity(self) -> usize {
        match self {
            OpClass::Unary => 1,
            OpClass::Binary => 2,
        }
    }
}

/// A condition on an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum AttrPattern {
    /// Binds or compares a variable.
    Var(VarId),
    /// Must have this value.
    Is(Attr),
}

/// A condition or binding between match and yield.
#[derive(Clone, Debug)]
pub struct Guard {
    /// What it demands or binds.
    pub kind: GuardKind,
    /// What it is for.
    pub purpose: Purpose,
    /// Where it stands.
    pub span: Span,
}

/// What a guard demands or binds.
#[derive(Clone, Debug)]
pub enum GuardKind {
    /// Must be true.
    Holds(Expr),
    /// Binds a variable to a value.
    Let(VarId, Expr),
}

/// What a guard is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Without it the two sides may differ: a guard of `:if`.
    Equality,
    /// The sides are equal without it as well; it keeps the rule from where it does not pay: `:when`.
    Profit,
}

/// An expression over attributes and facts.
#[derive(Clone, Debug)]
pub enum Expr {
    /// A literal.
    Lit(Attr),
    /// A variable.
    Var(VarId),
    /// A function of the vocabulary.
    Call(&'static Function, Vec<Expr>, Span),
}

/// A term to build.
#[derive(Clone, Debug)]
pub enum Template {
    /// A class that is bound.
    Var(VarId),
    /// A scalar constant of the type of a class.
    Const {
        /// Its value.
        value: Expr,
        /// The class whose element type it takes.
        like: VarId,
    },
    /// An operator.
    Op {
        /// Which.
        head: TemplateHead,
        /// Operands.
        args: Vec<Template>,
        /// Optional and remaining operands that the pattern took, in order.
        rest: Vec<VarId>,
    },
}

/// The operator of a template.
#[derive(Clone, Debug)]
pub enum TemplateHead {
    /// A row of the table, with an expression per attribute.
    Op(OpKind, Vec<Expr>),
    /// The operator that a class pattern matched.
    Var(VarId),
    /// A kernel that the file declares, with an expression per attribute.
    Kernel(Arc<Kernel>, Vec<Expr>),
}

/// A fused kernel, declared by what it computes.
#[derive(Debug)]
pub struct Kernel {
    /// Its name in rules, plans and reports.
    pub name: String,
    /// The file that declares it.
    pub file: String,
    /// Line of the declaration, from 1.
    pub line: usize,
    /// Where its name stands in the file.
    pub name_span: Span,
    /// The comment above it.
    pub doc: String,
    /// Names of the variables.
    pub vars: Vec<String>,
    /// The variables that are operands, in order.
    pub operands: Vec<VarId>,
    /// The variables that are attributes, in order.
    pub attrs: Vec<VarId>,
    /// Shared parts.
    pub lets: Vec<(VarId, Template)>,
    /// The results; more than one make a tuple.
    pub results: Vec<Template>,
}
