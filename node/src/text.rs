//! Text for people and machines: what strangers wrote made safe to print, and bytes as hex. Ground floor: used everywhere.

use std::fmt::Write as _;

/// Makes text safe to print: control characters become visible, and the rest beyond `limit` bytes is cut and said to be.
pub fn printable(text: &str, limit: usize) -> String {
    let mut out = String::with_capacity(text.len().min(limit));
    for c in text.chars() {
        if out.len() >= limit {
            out.push_str("… (cut)");
            break;
        }
        match c {
            '\t' => out.push(' '),
            // Control characters, and the ones that turn the direction of text around.
            c if c.is_control()
                || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                out.extend(c.escape_default());
            }
            c => out.push(c),
        }
    }
    out
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_cannot_touch_the_terminal_or_pose_as_two() {
        assert_eq!(printable("a\u{1b}[31m\nb\u{202e}c\td", 100), "a\\u{1b}[31m\\nb\\u{202e}c d");
        assert_eq!(printable("abcdef", 3), "abc… (cut)");
    }
}
