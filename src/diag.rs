//! Diagnostics with source labels, in one rendered form.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// A defect of a text file, with the places that show it.
#[derive(Clone, Debug, PartialEq)]
pub struct Diagnostic {
    /// The file's name.
    pub file: String,
    /// What is wrong.
    pub message: String,
    /// Where, and what is there.
    pub primary: (Range<usize>, String),
    /// Other places that matter.
    pub context: Vec<(Range<usize>, String)>,
    /// Facts that show it, in order.
    pub notes: Vec<String>,
    /// What to do about it.
    pub help: Option<String>,
}

impl Diagnostic {
    /// A defect at one place.
    pub fn new(file: &str, message: impl Into<String>, span: Range<usize>, label: impl Into<String>) -> Diagnostic {
        Diagnostic {
            file: file.to_owned(),
            message: message.into(),
            primary: (span, label.into()),
            context: vec![],
            notes: vec![],
            help: None,
        }
    }

    /// Adds advice.
    pub fn help(mut self, text: impl Into<String>) -> Diagnostic {
        self.help = Some(text.into());
        self
    }

    /// Adds a second place.
    pub fn at(mut self, span: Range<usize>, label: impl Into<String>) -> Diagnostic {
        self.context.push((span, label.into()));
        self
    }

    /// Adds a fact.
    pub fn note(mut self, text: impl Into<String>) -> Diagnostic {
        self.notes.push(text.into());
        self
    }

    /// The rendered form, given the file's text.
    pub fn render(&self, source: &str) -> String {
        let inside = |r: &Range<usize>| r.start.min(source.len())..r.end.min(source.len());
        let mut snippet = Snippet::source(source)
            .path(&self.file)
            .annotation(AnnotationKind::Primary.span(inside(&self.primary.0)).label(&self.primary.1));
        for (span, label) in &self.context {
            snippet = snippet.annotation(AnnotationKind::Context.span(inside(span)).label(label));
        }
        let mut group = Group::with_title(Level::ERROR.primary_title(&self.message)).element(snippet);
        for note in &self.notes {
            group = group.element(Level::NOTE.message(note));
        }
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(help));
        }
        Renderer::plain().render(&[group])
    }
}
