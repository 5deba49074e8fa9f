//! Writes the measured parts of `docs/isolation.md`, between its markers, out of the results of runs and the runner's own lists. No
//! time, no path and no machine is written, so that the page changes only when what it states does.

use super::bwrap::{self, NOT_COMPARABLE};
use super::matrix;
use super::table::{Cell, Row, Table, Wanted};
use crate::bin_dir;
use serde_json::Value;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use thenodes_ipc::launch::SeccompMode;

/// Users of whom results are needed.
const USERS: [&str; 2] = ["root", "user"];
/// The column of the matrix in which only the filter is gone.
const FILTER_GONE: usize = 1;
const END: &str = "<!-- end of generated -->";

/// Rewrites the generated parts of a page. Returns what is missing and was left as it stands.
///
/// # Errors
/// If results or the page cannot be read, or a marker is missing.
pub fn write(page: &Path, results: &Path) -> Result<Vec<String>, String> {
    let about = |e: std::io::Error| format!("{}: {e}", page.display());
    let mut text = std::fs::read_to_string(page).map_err(about)?;
    text = replace(&text, "suite", &suite(results)?)?;
    text = replace(&text, "calls", &calls()?)?;
    let matrices = tables(results, "matrix")?;
    text = replace(&text, "matrix", &matrix_part(&matrices))?;
    let mut missing = Vec::new();
    // As an ordinary user only: that is whom bubblewrap is for. As root it keeps uid 0, which here no plugin has.
    let other = results.join(format!("bwrap-{}.json", USERS[1]));
    if other.exists() {
        text = replace(&text, "bwrap", &bwrap_part(&Table::read(&other)?, &matrices[1]))?;
    } else {
        missing.push("the comparison with bubblewrap: no results of a run".to_owned());
    }
    std::fs::write(page, text).map_err(about)?;
    Ok(missing)
}

/// The results of every user.
///
/// # Errors
/// Naming the file that cannot be read and how to make it.
pub fn tables(results: &Path, mode: &str) -> Result<[Table; 2], String> {
    let one = |user: &str| Table::read(&results.join(format!("{mode}-{user}.json")));
    Ok([one(USERS[0])?, one(USERS[1])?])
}

fn replace(text: &str, name: &str, part: &str) -> Result<String, String> {
    let begin = format!("<!-- generated: {name} -->");
    let marker = |what: &str| format!("the page has no {what:?}: the part cannot be placed");
    let (before, rest) = text.split_once(&begin).ok_or_else(|| marker(&begin))?;
    let (_, after) = rest.split_once(END).ok_or_else(|| marker(END))?;
    Ok(format!("{before}{begin}\n{}\n{END}{after}", part.trim_end()))
}

/// What the runner says about its own lists.
fn calls() -> Result<String, String> {
    let explain = |mode: SeccompMode| -> Result<Value, String> {
        let program = bin_dir().join("thenodes-runner");
        let about = |e: String| format!("asking {} to explain {}: {e}", program.display(), mode.word());
        let output = Command::new(&program).args(["--explain", mode.word(), "--json"]).output();
        let output = output.map_err(|e| about(e.to_string()))?;
        serde_json::from_slice(&output.stdout).map_err(|e| about(e.to_string()))
    };
    let count = |of: &Value| of.as_array().map_or(0, Vec::len);
    let mut text = String::from("| mode | calls that may be made |\n|---|---|\n");
    for mode in SeccompMode::ALL.into_iter().filter(|mode| *mode != SeccompMode::Custom) {
        let _ = writeln!(text, "| {} | {} |", mode.word(), count(&explain(mode)?["allowed"]));
    }
    let strict = explain(SeccompMode::Strict)?;
    let never = strict["never"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let never: Vec<String> = never.map(|name| format!("`{name}`")).collect();
    let _ = writeln!(
        text,
        "\nIn every mode {} more are made by the broker in the plugin's place, and {} fail with an error, each with a record; everything else ends \
         the process. These no mode and no list of an operator's can allow with any arguments:\n\n{}.",
        count(&strict["made"]),
        count(&strict["failing"]),
        never.join(", ")
    );
    Ok(text)
}

fn suite(results: &Path) -> Result<String, String> {
    let mut columns = Vec::new();
    for user in USERS {
        let path = results.join(format!("suite-{user}.json"));
        let wrong = |e: String| format!("{}: {e}; measure first: attack --json FILE", path.display());
        let text = std::fs::read_to_string(&path).map_err(|e| wrong(e.to_string()))?;
        let value: Value = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        let mut column = value["summary"].clone();
        // Not how many left one: an attempt may be ended while its plugin dies of something else, and leave one more.
        column["without_record"] = value["without_record"].as_array().map(Vec::len).into();
        columns.push(column);
    }
    let lines = [
        ("probes", "probes"),
        ("controls_through", ".. that get through without walls"),
        ("controls_failed", ".. that fail without walls too, although they should not"),
        ("without_control", ".. that cannot work without walls for this user or on this machine"),
        ("attempts", "attempts in a runner (every probe in four phases)"),
        ("killed", ".. ended by a wall"),
        ("refused", ".. told no"),
        ("no_refusal", ".. of these refused nothing, because what they look for is not there"),
        ("ended", ".. that ended otherwise, without success"),
        ("through", ".. that got through"),
        ("silent", ".. of which nothing is known"),
        ("without_record", ".. that were refused something and left no record"),
        ("disturbances", "targets touched"),
    ];
    let mut text = format!("| | as {} | as an ordinary user |\n|---|---|---|\n", USERS[0]);
    for (key, words) in lines {
        let _ = writeln!(text, "| {words} | {} | {} |", columns[0][key], columns[1][key]);
    }
    Ok(text)
}

fn matrix_part(tables: &[Table; 2]) -> String {
    let mut text = String::new();
    for table in tables {
        let who = who(table);
        let columns: Vec<(usize, &str)> = table.columns.iter().map(String::as_str).enumerate().collect();
        let _ = write!(text, "**{who}**, probes whose control got through; how many hold:\n\n");
        let _ = write!(text, "{}\n\n", table.by_group(&columns, &Row::has_control));
    }
    let differ = |at, title: &str, counted: Wanted<'_>| differing(tables, at, title, counted);
    for (at, column) in matrix::COLUMNS.iter().enumerate().filter(|(_, column)| !column.layers.is_empty()) {
        let part = if column.single {
            differ(at, &format!("Through with {}", column.name), &|_| true)
        } else {
            let more = |row: &Row| row.cells[FILTER_GONE] != Cell::Through;
            differ(
                at,
                &format!("With {}, through beside those with only the filter gone", column.name),
                &more,
            )
        };
        let _ = write!(text, "{part}\n\n");
    }
    let unknown = unknown(tables, &|_| true);
    let covered = matrix::covered_twice().len();
    let _ = writeln!(
        text,
        "On the list of those that no single removal lets through: {covered}. Cells that say nothing, counted as not held: {unknown}."
    );
    text
}

fn bwrap_part(table: &Table, ours: &Table) -> String {
    let mut text = format!("Measured with {}, as an ordinary user.\n\n", table.subject);
    let joined = beside(table, ours);
    let columns: Vec<(usize, &str)> = joined.columns.iter().map(String::as_str).enumerate().collect();
    let counted = |row: &Row| row.has_control() && bwrap::comparable(row.probe);
    let _ = write!(
        text,
        "Probes whose control got through; how many hold:\n\n{}\n\n",
        joined.by_group(&columns, &counted)
    );
    let alone = |row: &Row| counted(row) && row.probe.namespaced;
    let inside = |at| joined.names(at, Cell::Through, &alone).len().to_string();
    let inside: Vec<String> = (0..table.columns.len()).map(inside).collect();
    let _ = write!(
        text,
        "Of those that get through, {} (by column) do so in a further user namespace that the attempt made itself.\n\n",
        inside.join(", ")
    );
    let mut before: Vec<&str> = Vec::new();
    for (at, name) in table.columns.iter().enumerate() {
        let here = table.names(at, Cell::Through, &counted);
        if at == 0 {
            let _ = write!(text, "Through with the {name}:\n\n{}\n\n", table.through(at, &counted));
        } else {
            let now_held = |row: &Row| counted(row) && !here.contains(&row.probe.name);
            let gone = before.iter().filter_map(|name| hostile::probes::find(name));
            let gone: Vec<String> = gone
                .filter(|probe| table.rows.iter().any(|row| row.probe.name == probe.name && now_held(row)))
                .map(|probe| format!("`{}`", probe.name))
                .collect();
            let more = |row: &Row| counted(row) && !before.contains(&row.probe.name);
            let _ = write!(
                text,
                "With {name}, also held ({}): {}. Through beside those above: {}\n\n",
                gone.len(),
                gone.join(", "),
                table.through(at, &more)
            );
        }
        before = here;
    }
    let touched = if table.touched.is_empty() { "none".to_owned() } else { table.touched.join(", ") };
    let left_out: Vec<String> =
        NOT_COMPARABLE.iter().map(|(name, why)| format!("- `{name}`: {why}")).collect();
    let unknown = unknown(std::slice::from_ref(table), &counted);
    let _ = writeln!(
        text,
        "Targets outside that were touched: {touched}.\n\nLeft out on both sides:\n\n{}\n\nCells that say nothing, counted as not held: {unknown}.",
        left_out.join("\n")
    );
    text
}

/// The other sandbox's table with our whole house as one more column.
fn beside(table: &Table, ours: &Table) -> Table {
    let with = |row: &Row| {
        let own = ours.rows.iter().find(|own| own.probe.name == row.probe.name);
        let own = own.map_or(Cell::Unknown, |own| own.cells[0]);
        Row { probe: row.probe, control: row.control, cells: [row.cells.clone(), vec![own]].concat() }
    };
    Table {
        user: table.user.clone(),
        subject: table.subject.clone(),
        columns: [table.columns.clone(), vec!["here".into()]].concat(),
        rows: table.rows.iter().map(with).collect(),
        touched: table.touched.clone(),
    }
}

/// What gets through in a column: for both users at once if they agree, else what only one of them sees.
fn differing(tables: &[Table; 2], at: usize, title: &str, counted: Wanted<'_>) -> String {
    let sets = [0, 1].map(|user| tables[user].names(at, Cell::Through, counted));
    let both = |row: &Row| counted(row) && sets.iter().all(|set| set.contains(&row.probe.name));
    let mut text = format!("{title}:\n\n{}", tables[0].through(at, &both));
    for (user, other) in [(0, 1), (1, 0)] {
        let only = |row: &Row| counted(row) && !sets[other].contains(&row.probe.name);
        if !tables[user].names(at, Cell::Through, &only).is_empty() {
            let _ = write!(
                text,
                "\n\nOnly {}:\n\n{}",
                who(&tables[user]).to_lowercase(),
                tables[user].through(at, &only)
            );
        }
    }
    text
}

fn unknown(tables: &[Table], counted: Wanted<'_>) -> String {
    let mut found: Vec<String> = Vec::new();
    for table in tables {
        for (at, column) in table.columns.iter().enumerate() {
            for name in table.names(at, Cell::Unknown, counted) {
                let cell = format!("`{name}` with {column}");
                if !found.contains(&cell) {
                    found.push(cell);
                }
            }
        }
    }
    if found.is_empty() {
        return "none".into();
    }
    found.join(", ")
}

fn who(table: &Table) -> &'static str {
    if table.user == USERS[0] {
        "As root"
    } else {
        "As an ordinary user"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = include_str!("../../../docs/isolation.md");

    #[test]
    fn only_what_stands_between_markers_is_replaced() {
        let page = format!("a <!-- generated: x --> old {END} b <!-- generated: y --> kept {END} c");
        let new = replace(&page, "x", "new").expect("the markers are there");
        assert_eq!(new, format!("a <!-- generated: x -->\nnew\n{END} b <!-- generated: y --> kept {END} c"));
        assert!(replace(&page, "z", "new").is_err_and(|why| why.contains("generated: z")));
        assert!(replace("<!-- generated: x --> and no end", "x", "new").is_err());
    }

    #[test]
    fn the_page_has_every_part_and_is_not_older_than_the_list_and_the_probes() {
        for part in ["calls", "suite", "matrix", "bwrap"] {
            let filled =
                PAGE.split_once(&format!("<!-- generated: {part} -->")).map(|(_, rest)| rest.trim_start());
            assert!(filled.is_some_and(|rest| !rest.starts_with(END)), "{part} is missing or empty");
        }
        let again = "write docs/isolation.md anew: attack --isolation-md";
        let covered = format!("lets through: {}.", matrix::covered_twice().len());
        assert!(PAGE.contains(&covered), "the list has changed: {again}");
        let count = hostile::probes::all().count();
        assert!(
            PAGE.contains(&format!("| probes | {count} | {count} |")),
            "there are other probes now: {again}"
        );
    }
}
