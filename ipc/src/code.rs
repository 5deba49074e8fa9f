//! The error codes of the link: upper-case, stable, the same words in logs, `--json` and documentation
//! (`docs/protocol.md`). A code from a newer peer decodes to [`Code::Other`] and is never a reason to fail.

use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why a call failed.
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[$doc])* $name,)*
            /// A code this build does not know, kept as it was sent (at most 64 bytes).
            Other(String),
        }

        impl Code {
            /// The word on the wire.
            pub fn as_str(&self) -> &str {
                match self { $(Code::$name => $text,)* Code::Other(text) => text }
            }

            /// Reads a word from the wire. Never fails: an unknown word stays itself, as far as it is printable, cut at 64
            /// characters; one of which nothing is left is `UNKNOWN`, because an empty code would mean success.
            pub fn parse(text: &str) -> Code {
                let clean: String = text.chars().filter(|c| !c.is_control()).take(64).collect();
                match clean.as_str() {
                    $($text => Code::$name,)*
                    "" => Code::Other("UNKNOWN".into()),
                    _ => Code::Other(clean),
                }
            }
        }
    };
}

codes! {
    /// The arguments do not have the right form or range.
    InvalidInput = "INVALID_INPUT",
    /// The plugin has no grant for this.
    PermissionDenied = "PERMISSION_DENIED",
    /// What was asked for does not exist.
    NotFound = "NOT_FOUND",
    /// The state does not allow this now.
    Conflict = "CONFLICT",
    /// Nobody handles this method.
    Unhandled = "UNHANDLED",
    /// The plugin or the node is not ready, or has gone.
    Unavailable = "UNAVAILABLE",
    /// The deadline passed.
    Timeout = "TIMEOUT",
    /// The caller took the call back.
    Cancelled = "CANCELLED",
    /// A limit was reached; try later or ask for less.
    ResourceExhausted = "RESOURCE_EXHAUSTED",
    /// This build has no such feature.
    NotImplemented = "NOT_IMPLEMENTED",
    /// A peer could not be reached.
    NetworkError = "NETWORK_ERROR",
    /// The configuration is wrong.
    ConfigError = "CONFIG_ERROR",
    /// The two sides have no version in common.
    Incompatible = "INCOMPATIBLE",
    /// The plugin panicked, or its process died, while it worked on this call.
    PluginCrashed = "PLUGIN_CRASHED",
    /// A wall of the sandbox could not be put up.
    SandboxFailed = "SANDBOX_FAILED",
    /// A defect of ours.
    Internal = "INTERNAL_ERROR",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_survives_the_wire_and_an_unknown_one_stays_itself() {
        assert_eq!(Code::parse(Code::PermissionDenied.as_str()), Code::PermissionDenied);
        assert_eq!(Code::parse("FROM_THE_FUTURE"), Code::Other("FROM_THE_FUTURE".into()));
        assert_eq!(Code::parse(&"X".repeat(1000)).as_str().len(), 64);
        assert_eq!(Code::parse("A\u{1b}[31m").as_str(), "A[31m");
        // Found by the fuzzer: a code that vanishes must not turn an error into a success.
        assert_eq!(Code::parse("\0\0").as_str(), "UNKNOWN");
        assert_eq!(Code::parse("TIME\0OUT"), Code::Timeout);
    }
}
