//! The matrix: every probe with one wall taken away at a time, so that "two walls cover it" is measured and not claimed. What is
//! covered twice is a committed list, and a run fails if something on it gets through with a single wall gone. The last columns
//! take two away, which shows what the third does. Nothing is believed of a runner that left nothing out: see [`Cell::Unknown`].

use super::control::controls;
use super::report::Control;
use super::run::World;
use super::table::{Cell, Row, Table};
use super::{Attempt, Phase};
use hostile::control::{leave_descriptors_open, Targets};
use hostile::probes::{self, Probe};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thenodes_ipc::launch::{Layer, Without};

/// One run.
pub struct Column {
    /// Its name in tables.
    pub name: &'static str,
    /// What is left out.
    pub layers: &'static [Layer],
    /// True if it takes away no more than one wall: what is covered twice must hold here. Namespaces and root count as one, because
    /// without a mount namespace there can be no root.
    pub single: bool,
}

/// Every run, the whole house first.
pub const COLUMNS: [Column; 6] = [
    Column { name: "whole", layers: &[], single: true },
    Column { name: "no filter", layers: &[Layer::Seccomp], single: true },
    Column { name: "no Landlock", layers: &[Layer::Landlock], single: true },
    Column { name: "no namespaces, no root", layers: &[Layer::Namespaces, Layer::Root], single: true },
    Column { name: "no filter, no Landlock", layers: &[Layer::Seccomp, Layer::Landlock], single: false },
    Column {
        name: "no filter, no namespaces, no root",
        layers: &[Layer::Seccomp, Layer::Namespaces, Layer::Root],
        single: false,
    },
];

/// What is held with any single wall taken away. It may grow.
const TWO_LAYERS: &str = include_str!("../../attack/two-layers.txt");

/// Names on the committed list; a line that begins with `#` is for people.
pub fn covered_twice() -> BTreeSet<&'static str> {
    TWO_LAYERS.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

/// Runs every column with a runner that can leave walls out.
///
/// # Errors
/// If the runs cannot be made.
pub async fn measure(runner: &Path, library: &Path, user: &str) -> Result<Table, String> {
    let probes: Vec<&'static Probe> = probes::all().collect();
    let controls = controls()?;
    let runner: PathBuf = runner.canonicalize().map_err(|e| {
        format!(
            "{}: {e}; build it: cargo build -p thenodes-plugin-runner --features without",
            runner.display()
        )
    })?;
    let control = |probe: &Probe| controls.get(probe.name).copied().unwrap_or(Control::None);
    let mut rows: Vec<Row> =
        probes.iter().map(|probe| Row { probe, control: control(probe), cells: vec![] }).collect();
    let mut disturbances = Vec::new();
    for column in &COLUMNS {
        let mut targets = Targets::new(&std::env::temp_dir()).map_err(|e| format!("making targets: {e}"))?;
        leave_descriptors_open(&targets).map_err(|e| format!("opening targets: {e}"))?;
        let without = (!column.layers.is_empty())
            .then(|| Without { layers: column.layers.to_vec(), ..Without::default() });
        let world = Arc::new(World::new(runner.clone(), library, without)?);
        for attempt in world.attempts(&probes, &[Phase::Message], &targets).await {
            if let Some(row) = rows.iter_mut().find(|row| row.probe.name == attempt.probe) {
                row.cells.push(cell(&attempt, column));
            }
        }
        let seen = targets.disturbances();
        // A victim that has ended makes every later attempt on it fail: then the column proves nothing.
        if seen.iter().any(|what| what.contains("victim")) {
            return Err(format!("{}: {}", column.name, seen.join(", ")));
        }
        if column.single {
            disturbances.extend(seen.into_iter().map(|what| format!("{}: {what}", column.name)));
        }
    }
    let columns = COLUMNS.iter().map(|column| column.name.to_owned()).collect();
    let table = Table { user: user.into(), subject: String::new(), columns, rows, touched: disturbances };
    Ok(table)
}

/// A record of the broker's in a run without the filter means that a part of the filter is still there (the runner cannot open its
/// library without it, and calls of another architecture come to it too): such a refusal does not show another wall.
fn cell(attempt: &Attempt, column: &Column) -> Cell {
    if column.layers.contains(&Layer::Seccomp) && attempt.record.is_some() {
        return Cell::Unknown;
    }
    Cell::of(&attempt.verdict)
}

/// True if no single removal lets it through.
pub fn held_twice(row: &Row) -> bool {
    row.cells.iter().zip(&COLUMNS).all(|(cell, column)| !column.single || *cell == Cell::Held)
}

/// Reasons to fail: with all walls something got through, a target was touched although no more than one wall was gone, or something on the list is covered only once now.
pub fn failures(table: &Table) -> Vec<String> {
    let mut failures: Vec<String> =
        table.touched.iter().map(|what| format!("something came of an attempt: {what}")).collect();
    for row in table.rows.iter().filter(|row| row.cells[0] != Cell::Held) {
        failures.push(format!("{}: not held with every wall in place", row.probe.name));
    }
    for name in covered_twice() {
        let Some(row) = table.rows.iter().find(|row| row.probe.name == name) else {
            failures.push(format!("tests/attack/two-layers.txt names {name}, which is no probe"));
            continue;
        };
        for (cell, column) in row.cells.iter().zip(&COLUMNS) {
            if column.single && *cell != Cell::Held {
                failures.push(format!(
                    "{name}: no longer covered twice, it is {cell:?} with {}; if that is meant, take it out of tests/attack/two-layers.txt",
                    column.name
                ));
            }
        }
    }
    failures
}

/// The list for these tables, one of each user: what is on it stays, and what every user sees held twice, with a control that
/// got through for one of them, joins it.
pub fn list(tables: &[Table]) -> String {
    let before = covered_twice();
    let joins = |name: &str| {
        let of = |table: &Table| table.rows.iter().position(|row| row.probe.name == name);
        let rows: Vec<&Row> = tables.iter().filter_map(|table| of(table).map(|at| &table.rows[at])).collect();
        rows.iter().all(|row| held_twice(row)) && rows.iter().any(|row| row.has_control())
    };
    let mut text = String::from(
        "# Probes that no single wall's removal lets through: filter, Landlock, or namespaces and root together.\n\
         # `attack --matrix` fails if one of them gets through with a wall gone; `attack --two-layers FILE` adds new ones.\n\
         # Only people take names out. What is not here rests on one wall, most of it on the filter.\n",
    );
    let mut group = "";
    for probe in probes::all().filter(|probe| before.contains(probe.name) || joins(probe.name)) {
        if probe.group != group {
            group = probe.group;
            let _ = write!(text, "\n# {group}\n");
        }
        text.push_str(probe.name);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_on_the_list_is_a_probe_and_the_groups_that_must_be_covered_twice_are_there() {
        let mut groups = BTreeSet::new();
        for name in covered_twice() {
            groups.insert(probes::find(name).unwrap_or_else(|| panic!("{name} is no probe")).group);
        }
        for group in ["filesystem", "mounts", "namespaces", "network", "process", "loading"] {
            assert!(groups.contains(group), "nothing of {group} is covered twice");
        }
    }

    #[test]
    fn a_name_on_the_list_that_gets_through_with_one_wall_gone_is_a_failure() {
        let name = *covered_twice().first().expect("the list is not empty");
        let row = |probe: &'static Probe| Row {
            probe,
            control: Control::Through,
            cells: vec![Cell::Held; COLUMNS.len()],
        };
        let mut table = Table {
            user: "user".into(),
            subject: String::new(),
            columns: COLUMNS.iter().map(|column| column.name.to_owned()).collect(),
            rows: probes::all().map(row).collect(),
            touched: vec![],
        };
        assert_eq!(failures(&table), Vec::<String>::new());
        let at = table.rows.iter().position(|row| row.probe.name == name).expect("a probe");
        for (column, cell) in [(1, Cell::Through), (2, Cell::Unknown)] {
            table.rows[at].cells[column] = cell;
            let found = failures(&table);
            assert!(found.len() == 1 && found[0].contains(name), "{found:?}");
            table.rows[at].cells[column] = Cell::Held;
        }
        // Two walls gone is more than was promised.
        table.rows[at].cells[4] = Cell::Through;
        assert_eq!(failures(&table), Vec::<String>::new());
    }
}
