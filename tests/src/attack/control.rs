//! The other half of every statement: what the same probes do where there is no wall, told by the program that exists for it.
//! A refusal counts only beside a control that got through, so what this program says is checked for sense.

use super::report::Control;
use crate::bin_dir;
use std::collections::BTreeMap;
use std::process::Command;

/// Every probe without walls, as this user.
///
/// # Errors
/// If the program cannot be run or says nothing to the point.
pub fn controls() -> Result<BTreeMap<String, Control>, String> {
    let program = bin_dir().join("hostile-control");
    let output = Command::new(&program).arg("--all").output();
    let output = output.map_err(|e| format!("running {}: {e}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let control = match words.next() {
            Some("through") => Control::Through,
            Some("FAILED") => Control::Failed,
            Some("-") => Control::None,
            _ => continue,
        };
        if let Some(name) = words.nth(1) {
            found.insert(name.to_owned(), control);
        }
    }
    if found.is_empty() {
        return Err(format!("hostile-control said nothing to the point: {text}"));
    }
    Ok(found)
}
