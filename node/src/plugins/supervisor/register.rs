//! What a plugin says about itself when it registers, checked and made printable before anybody shows or uses it.

use crate::text::printable;
use thenodes_ipc::launch::Registration;

/// Words of the root prompt.
const RESERVED_PROMPTS: [&str; 10] =
    ["version", "about", "help", "peers", "status", "plugins", "trust", "shell", "exit", "quit"];

/// Checks what a plugin says about itself.
pub(super) fn check_registration(mut registration: Registration) -> Result<Registration, String> {
    if registration.prompts.len() > 16
        || registration.extension_kinds.as_ref().is_some_and(|kinds| kinds.len() > 64)
    {
        return Err("a registration with too many prompts or kinds".into());
    }
    let plain = |text: &str| (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    // The node's own words at the prompt are not a plugin's to take.
    registration.prompts.retain(|prompt| !RESERVED_PROMPTS.contains(&prompt.trim_start_matches('/')));
    if let Some(prompt) = registration.prompts.iter().find(|prompt| !plain(prompt)) {
        return Err(format!(
            "a prompt prefix {:?}; it has 1 to 64 printable characters and no space",
            printable(prompt, 64)
        ));
    }
    if registration.config_defaults.len() > 64 * 1024 {
        return Err("configuration defaults of more than 64 KiB".into());
    }
    registration.id = printable(&registration.id, 128);
    registration.sdk = printable(&registration.sdk, 128);
    Ok(registration)
}
