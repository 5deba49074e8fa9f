//! Text for people and machines: what strangers wrote made safe to print, and bytes as hex. Ground floor: used everywhere.

use std::fmt::Write as _;
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory as _};

/// Makes text safe to print: control characters and all others that one cannot see become visible, and the rest beyond `limit` bytes is cut and said to be.
pub fn printable(text: &str, limit: usize) -> String {
    let mut out = String::with_capacity(text.len().min(limit));
    for c in text.chars() {
        if out.len() >= limit {
            out.push_str("… (cut)");
            break;
        }
        match c {
            '\t' => out.push(' '),
            c if is_hidden(c) => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

/// True for what moves a terminal, turns text around, ends a line, or shows as nothing, so that two texts look alike.
fn is_hidden(c: char) -> bool {
    use GeneralCategory as Is;
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    // Marks and letters by their kind that are drawn as nothing: joiners, fillers, selectors of variants, the empty Braille cell.
    let empty = matches!(c, '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}' | '\u{e0100}'..='\u{e01ef}');
    empty
        || matches!(
            c.general_category(),
            Is::Control
                | Is::Format
                | Is::LineSeparator
                | Is::ParagraphSeparator
                | Is::PrivateUse
                | Is::Surrogate
                | Is::Unassigned
        )
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Bytes from hex digits; `None` if they are none.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let pairs = text.as_bytes().chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    pairs.map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_cannot_touch_the_terminal_or_pose_as_two() {
        assert_eq!(printable("a\u{1b}[31m\nb\u{202e}c\td", 100), "a\\u{1b}[31m\\nb\\u{202e}c d");
        assert_eq!(printable("abcdef", 3), "abc… (cut)");
    }

    #[test]
    fn bytes_survive_hex_and_other_text_is_none() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(unhex(&hex(&all)), Some(all));
        assert_eq!(unhex("0A"), Some(vec![10]));
        for wrong in ["0", "0g", "+1", "ä"] {
            assert_eq!(unhex(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_cannot_be_seen_is_shown_and_what_can_be_is_left() {
        let hidden = [
            0xad, 0x85, 0x34f, 0x61c, 0x115f, 0x180e, 0x200b, 0x200d, 0x200e, 0x2028, 0x2029, 0x202e, 0x2060,
            0x2069, 0x2800, 0x3164, 0xe000, 0xfe0f, 0xfeff, 0xffa0, 0xfff9, 0xfffe, 0x1d173, 0xe0001,
            0xe0041, 0xe0100, 0x10ffff,
        ];
        for number in hidden {
            let c = char::from_u32(number).expect("a character");
            assert_eq!(printable(&format!("no{c}de"), 100), format!("no\\u{{{number:x}}}de"));
        }
        for seen in ["Grüße, мир, 世界, שלום, नमस्ते", "e\u{301}", "✓ → 🟢 ½ €", "a\u{a0}b"]
        {
            assert_eq!(printable(seen, 200), seen);
        }
    }
}
