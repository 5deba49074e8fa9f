//! Errors that name file, line and column, show the line, and say what to do.

use miette::{Diagnostic, NamedSource, SourceSpan};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a configuration is not used.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: cannot be read: {source}", path = path.display())]
    #[diagnostic(code(CONFIG_ERROR), help("name an existing file with --config"))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something in the file is wrong.
    #[error("{file}:{line}:{column}: {what}")]
    #[diagnostic(code(CONFIG_ERROR))]
    Value {
        /// The file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What is wrong.
        what: String,
        /// What to do.
        #[help]
        help: Option<String>,
        /// The text.
        #[source_code]
        source_code: Arc<NamedSource<String>>,
        /// The place.
        #[label("here")]
        span: SourceSpan,
    },
}

/// The text of a file, for errors.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origin {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

impl Origin {
    pub(crate) fn new(path: &Path, text: &str) -> Self {
        Self { path: path.into(), text: text.into() }
    }

    /// The line of a place, from 1.
    pub(crate) fn line(&self, at: usize) -> usize {
        self.text.get(..at.min(self.text.len())).unwrap_or_default().matches('\n').count() + 1
    }

    /// An error at a place in the file.
    pub(crate) fn error(
        &self,
        span: Range<usize>,
        what: impl Into<String>,
        help: Option<&str>,
    ) -> ConfigError {
        let start = span.start.min(self.text.len());
        let before = self.text.get(..start).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        let file = self.path.display().to_string();
        ConfigError::Value {
            line,
            column,
            what: what.into(),
            help: help.map(Into::into),
            source_code: Arc::new(NamedSource::new(&file, self.text.clone())),
            file,
            span: (start..span.end.clamp(start, self.text.len())).into(),
        }
    }
}
