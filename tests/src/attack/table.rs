//! A table of probes by columns: what the matrix and the comparison have in common. It is written as JSON by one run and read by
//! another, possibly of another user, so it is checked when it is read: a table that does not fit the probes is refused.

use super::report::Control;
use super::Verdict;
use hostile::probes::{self, Probe};
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// What is in a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    /// It did not get through.
    Held,
    /// It got through.
    Through,
    /// Nothing is known, or what is known says nothing about this column.
    Unknown,
}

impl Cell {
    /// Of a verdict.
    pub fn of(verdict: &Verdict) -> Cell {
        match verdict {
            Verdict::Through(_) => Cell::Through,
            Verdict::Silent(_) => Cell::Unknown,
            Verdict::Refused(_) | Verdict::Killed | Verdict::Ended(_) => Cell::Held,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Cell::Held => "held",
            Cell::Through => "through",
            Cell::Unknown => "unknown",
        }
    }

    fn parse(word: &str) -> Option<Cell> {
        [Cell::Held, Cell::Through, Cell::Unknown].into_iter().find(|cell| cell.word() == word)
    }
}

/// Which part of a table: a column, of the rows that this accepts.
pub type Wanted<'a> = &'a dyn Fn(&Row) -> bool;

/// One probe.
pub struct Row {
    /// The probe.
    pub probe: &'static Probe,
    /// Without any wall, as this user.
    pub control: Control,
    /// One per column.
    pub cells: Vec<Cell>,
}

/// A table.
pub struct Table {
    /// `root` or `user`.
    pub user: String,
    /// What was measured, in words, if it has a version of its own.
    pub subject: String,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Every probe that was tried.
    pub rows: Vec<Row>,
    /// What happened to targets outside, each once.
    pub touched: Vec<String>,
}

impl Table {
    /// As one object.
    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(Row::json).collect();
        json!({ "version": 1, "user": self.user, "subject": self.subject, "columns": self.columns, "probes": rows, "touched": self.touched })
    }

    /// Reads what [`Self::json`] wrote.
    ///
    /// # Errors
    /// Naming the file and what does not fit.
    pub fn read(path: &Path) -> Result<Table, String> {
        let wrong = |what: &str| format!("reading the table {}: {what}; measure again", path.display());
        let text = std::fs::read_to_string(path).map_err(|e| wrong(&e.to_string()))?;
        let value: Value = serde_json::from_str(&text).map_err(|e| wrong(&e.to_string()))?;
        let text = |of: &Value, key: &str| of[key].as_str().unwrap_or_default().to_owned();
        let columns = value["columns"].as_array().ok_or_else(|| wrong("no columns"))?;
        let columns: Vec<String> = columns.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        let mut rows = Vec::new();
        for row in value["probes"].as_array().ok_or_else(|| wrong("no probes"))? {
            let name = text(row, "probe");
            let probe = probes::find(&name).ok_or_else(|| wrong(&format!("there is no probe {name}")))?;
            let control = Control::parse(&text(row, "control"));
            let control = control.ok_or_else(|| wrong(&format!("the control of {name}")))?;
            let cells = row["cells"].as_array().ok_or_else(|| wrong(&format!("the cells of {name}")))?;
            let cells: Vec<Cell> = cells.iter().filter_map(|cell| Cell::parse(cell.as_str()?)).collect();
            if cells.len() != columns.len() {
                return Err(wrong(&format!("{name} has {} cells", cells.len())));
            }
            rows.push(Row { probe, control, cells });
        }
        if rows.len() != probes::all().count() {
            return Err(wrong(&format!("it has {} probes", rows.len())));
        }
        let touched = value["touched"].as_array().ok_or_else(|| wrong("nothing about targets"))?;
        let touched = touched.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        Ok(Table { user: text(&value, "user"), subject: text(&value, "subject"), columns, rows, touched })
    }

    /// Groups in the order of the list.
    pub fn groups(&self) -> Vec<&'static str> {
        let mut groups: Vec<&'static str> = self.rows.iter().map(|row| row.probe.group).collect();
        groups.dedup();
        groups
    }

    /// Names of the probes of a group with this cell in a column.
    pub fn names(&self, column: usize, cell: Cell, wanted: Wanted<'_>) -> Vec<&'static str> {
        let those = self.rows.iter().filter(|row| row.cells[column] == cell && wanted(row));
        those.map(|row| row.probe.name).collect()
    }

    /// Lines of Markdown: how many of each group hold in each column, out of the rows that count.
    pub fn by_group(&self, columns: &[(usize, &str)], counted: Wanted<'_>) -> String {
        let heads: Vec<&str> = columns.iter().map(|(_, head)| *head).collect();
        let mut lines = vec![
            format!("| group | probes | {} |", heads.join(" | ")),
            format!("|---|---|{}", "---|".repeat(heads.len())),
        ];
        let line = |group: Option<&str>| {
            let counts = |row: &Row| counted(row) && group.is_none_or(|group| row.probe.group == group);
            let all = self.rows.iter().filter(|row| counts(row)).count();
            let held =
                |(column, _): &(usize, &str)| self.names(*column, Cell::Held, &counts).len().to_string();
            let cells: Vec<String> = columns.iter().map(held).collect();
            format!("| {} | {all} | {} |", group.unwrap_or("all"), cells.join(" | "))
        };
        lines.extend(self.groups().into_iter().map(|group| line(Some(group))));
        lines.push(line(None));
        lines.join("\n")
    }

    /// A list of Markdown: the names of those that get through in a column, by group.
    pub fn through(&self, column: usize, counted: Wanted<'_>) -> String {
        let mut by_group: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for name in self.names(column, Cell::Through, counted) {
            if let Some(probe) = probes::find(name) {
                by_group.entry(probe.group).or_default().push(name);
            }
        }
        let groups = self.groups();
        let lines = groups.into_iter().filter_map(|group| {
            let names: Vec<String> = by_group.get(group)?.iter().map(|name| format!("`{name}`")).collect();
            Some(format!("- {group} ({}): {}", names.len(), names.join(", ")))
        });
        let lines: Vec<String> = lines.collect();
        if lines.is_empty() {
            "None.".to_owned()
        } else {
            lines.join("\n")
        }
    }
}

impl Row {
    fn json(&self) -> Value {
        let cells: Vec<&str> = self.cells.iter().map(|cell| cell.word()).collect();
        json!({ "probe": self.probe.name, "group": self.probe.group, "control": self.control.word(), "cells": cells })
    }

    /// True if the probe works without walls here, so that a refusal says something.
    pub fn has_control(&self) -> bool {
        self.control == Control::Through
    }
}
