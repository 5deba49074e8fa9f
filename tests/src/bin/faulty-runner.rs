//! A runner one of whose steps fails: installs a filter that answers one system call with an error, then becomes the real
//! runner. Which, stands in the file `fault` beside this program: `NAME NUMBER ARG VALUE ERRNO` (ARG is `-` for any arguments; several
//! lines for several calls), and in the symbolic link `runner` where the real one is.

use seccompiler::{
    apply_filter, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

fn install(line: &str) -> Result<(), String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [_, number, arg, value, errno] = words[..] else { return Err(format!("{line:?} is no fault")) };
    let parse = |text: &str| text.parse::<u64>().map_err(|e| format!("{text:?}: {e}"));
    let rules = match arg {
        "-" => vec![],
        arg => {
            let condition = SeccompCondition::new(
                parse(arg)? as u8,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::Eq,
                parse(value)?,
            );
            let rule = condition.and_then(|condition| SeccompRule::new(vec![condition]));
            vec![rule.map_err(|e| e.to_string())?]
        }
    };
    let filter = SeccompFilter::new(
        BTreeMap::from([(parse(number)? as i64, rules)]),
        SeccompAction::Allow,
        SeccompAction::Errno(parse(errno)? as u32),
        std::env::consts::ARCH.try_into().map_err(|e| format!("{e}"))?,
    );
    let program: BpfProgram = filter.and_then(TryInto::try_into).map_err(|e| e.to_string())?;
    apply_filter(&program).map_err(|e| e.to_string())
}

fn main() -> ExitCode {
    let dir =
        std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_path_buf())).unwrap_or_default();
    let faults = std::fs::read_to_string(dir.join("fault")).unwrap_or_default();
    let runner = dir.join("runner").canonicalize().unwrap_or_default();
    for line in faults.lines().rev() {
        if let Err(error) = install(line) {
            eprintln!("faulty-runner: {error}");
            return ExitCode::from(64);
        }
    }
    let error = Command::new(&runner).arg0("thenodes-runner").exec();
    eprintln!("faulty-runner: {}: {error}", runner.display());
    ExitCode::from(70)
}
