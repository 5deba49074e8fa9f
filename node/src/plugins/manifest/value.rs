//! Single values of a manifest: texts that show as they are, numbers in range, lists that are short and say nothing twice. Each
//! refusal points at its place.

use crate::config::{ConfigError, Origin};
use crate::text::printable;
use semver::Version;
use serde_spanned::Spanned;
use std::collections::HashSet;
use std::hash::Hash;
use std::ops::{Range, RangeInclusive};

/// A value, or the place where it is wrong.
pub(super) type Checked<T> = Result<T, ConfigError>;

/// A manifest while it is checked.
pub(super) struct Check<'a> {
    pub(super) origin: &'a Origin,
    pub(super) without_effect: Vec<String>,
}

impl Check<'_> {
    pub(super) fn wrong<T>(&self, span: Range<usize>, what: impl Into<String>, help: &str) -> Checked<T> {
        Err(self.origin.error(span, what, Some(help)))
    }

    pub(super) fn when<V>(&self, good: bool, value: &Spanned<V>, what: &str, help: &str) -> Checked<()> {
        if good {
            Ok(())
        } else {
            self.wrong(value.span(), what, help)
        }
    }

    pub(super) fn no_effect(&mut self, span: Option<Range<usize>>, key: &str, why: &str) {
        if let Some(span) = span {
            self.without_effect.push(format!("{key} (line {}): {why}", self.origin.line(span.start)));
        }
    }

    /// A text for people or for names: neither empty nor long, and nothing in it that does not show.
    pub(super) fn text(&self, value: &Spanned<String>, most: usize) -> Checked<String> {
        let text = value.get_ref();
        if text.trim().is_empty() || text.len() > most {
            let what = format!("{} bytes of text", text.len());
            return self.wrong(value.span(), what, &format!("write 1 to {most} bytes"));
        }
        if text.contains('\t') || printable(text, usize::MAX) != *text {
            return self.wrong(value.span(), "control characters", "write one line of plain text");
        }
        Ok(text.clone())
    }

    pub(super) fn maybe(&self, value: &Option<Spanned<String>>, most: usize) -> Checked<Option<String>> {
        value.as_ref().map(|value| self.text(value, most)).transpose()
    }

    pub(super) fn one_of(&self, value: &Option<Spanned<String>>, words: &[&str]) -> Checked<Option<String>> {
        match value {
            Some(value) if !words.contains(&value.get_ref().as_str()) => {
                self.wrong(value.span(), "no such word", &format!("there are {}", words.join(", ")))
            }
            other => Ok(other.as_ref().map(|value| value.get_ref().clone())),
        }
    }

    pub(super) fn number<T: TryFrom<i64>>(
        &self,
        value: &Option<Spanned<i64>>,
        range: RangeInclusive<i64>,
    ) -> Checked<Option<T>> {
        let Some(value) = value else { return Ok(None) };
        let number = Some(*value.get_ref()).filter(|number| range.contains(number));
        match number.and_then(|number| T::try_from(number).ok()) {
            Some(number) => Ok(Some(number)),
            None => {
                let help = format!("from {} to {}", range.start(), range.end());
                self.wrong(value.span(), "out of range", &help)
            }
        }
    }

    pub(super) fn parsed<T, E: std::fmt::Display>(
        &self,
        value: &Spanned<String>,
        most: usize,
        parse: impl FnOnce(String) -> Result<T, E>,
    ) -> Checked<T> {
        let text = self.text(value, most)?;
        parse(text).map_err(|error| self.origin.error(value.span(), printable(&error.to_string(), 256), None))
    }

    pub(super) fn version(&self, value: &Spanned<String>) -> Checked<Version> {
        let text = self.text(value, 64)?;
        match Version::parse(&text) {
            Ok(version) => Ok(version),
            Err(error) => self.wrong(
                value.span(),
                format!("not a version: {}", printable(&error.to_string(), 256)),
                "write three numbers, like \"1.0.0\"",
            ),
        }
    }

    pub(super) fn bounded(
        &self,
        mut spans: impl ExactSizeIterator<Item = Range<usize>>,
        most: usize,
        what: &str,
    ) -> Checked<()> {
        match spans.nth(most) {
            None => Ok(()),
            Some(span) => {
                self.wrong(span, format!("more than {most} entries of {what}"), "keep the ones in use")
            }
        }
    }

    /// A list of different things.
    pub(super) fn list<T: Hash + Eq + Clone>(
        &self,
        list: &[Spanned<String>],
        most: usize,
        what: &str,
        one: impl Fn(&Self, &Spanned<String>) -> Checked<T>,
    ) -> Checked<Vec<T>> {
        self.bounded(list.iter().map(Spanned::span), most, what)?;
        let mut seen = HashSet::new();
        let mut out = Vec::new();
        for value in list {
            let checked = one(self, value)?;
            self.when(seen.insert(checked.clone()), value, "written twice", "keep one of the two")?;
            out.push(checked);
        }
        Ok(out)
    }
}
