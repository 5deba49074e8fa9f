//! Variables of the node's environment, by name, for plugins that may read them. A plugin's own environment is empty; the
//! node's may hold secrets, so a name that no scope lists is refused whether the variable exists or not.

use thenodes::host::{HostError, Response};
use thenodes_ipc::Code;

/// Longest name of a variable, bytes.
const MAX_NAME: usize = 256;

/// Which variables a plugin may read.
pub trait EnvPolicy: Send + Sync {
    /// True if it may read this one. Names are compared whole.
    fn allows(&self, name: &str) -> bool;
}

/// Reads a variable; `None` if there is no such variable.
pub fn read(policy: &dyn EnvPolicy, name: &str) -> Result<Response, HostError> {
    // What cannot be a name would make the standard library panic or find nothing; it is refused as what it is.
    if name.is_empty() || name.len() > MAX_NAME || name.contains(['=', '\0']) {
        let text = format!("env.read: a name has 1 to {MAX_NAME} bytes and neither '=' nor NUL");
        return Err(HostError::new(Code::InvalidInput, text));
    }
    if !policy.allows(name) {
        let text = format!("env.read {name}: no scope of the permission env.read names this variable");
        return Err(HostError::new(Code::PermissionDenied, text));
    }
    match std::env::var(name) {
        Ok(value) => Ok(Response::Text(Some(value))),
        Err(std::env::VarError::NotPresent) => Ok(Response::Text(None)),
        Err(std::env::VarError::NotUnicode(_)) => {
            let text =
                format!("env.read {name}: the value is not UTF-8, and only text can be given to a plugin");
            Err(HostError::new(Code::InvalidInput, text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::DenyAll;

    struct Only(&'static str);

    impl EnvPolicy for Only {
        fn allows(&self, name: &str) -> bool {
            name == self.0
        }
    }

    fn code(policy: &dyn EnvPolicy, name: &str) -> Option<Code> {
        read(policy, name).err().map(|error| error.code)
    }

    #[test]
    fn only_what_a_scope_names_is_read() {
        // Cargo sets this one for every test.
        let name = "CARGO_PKG_NAME";
        assert_eq!(read(&Only(name), name), Ok(Response::Text(std::env::var(name).ok())));
        assert_eq!(code(&Only("CARGO"), name), Some(Code::PermissionDenied));
        assert_eq!(code(&DenyAll, name), Some(Code::PermissionDenied));
    }

    #[test]
    fn a_refusal_does_not_tell_whether_the_variable_exists() {
        let no = "THENODES_NO_SUCH_VARIABLE";
        assert_eq!(read(&Only(no), no), Ok(Response::Text(None)));
        let text = |name| read(&DenyAll, name).expect_err("refused").message.replace(name, "");
        assert_eq!(text("CARGO_PKG_NAME"), text(no));
    }

    #[test]
    fn what_is_no_name_is_refused_as_such() {
        for name in ["", "A=B", "A\0", &"A".repeat(257)] {
            assert_eq!(code(&Only("A"), name), Some(Code::InvalidInput), "{name:?}");
        }
    }
}
