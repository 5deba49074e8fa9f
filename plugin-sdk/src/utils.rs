//! Small helpers that upstream exports.

/// A realm name as its canonical code: lower-case ASCII letters and digits, everything else one `-`.
///
/// Latin letters outside ASCII are transliterated (`ü` is `ue`), other scripts separate; nothing left is `default`.
/// Rule and vectors: upstream `utils/naming.rs`.
pub fn to_kebab_ascii_strict(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut separate = false;
    for c in name.chars() {
        let latin =
            matches!(u32::from(c), 0xC0..=0x24F | 0x1E00..=0x1EFF | 0x2C60..=0x2C7F | 0xA720..=0xA7FF);
        let piece = match c {
            'ü' | 'Ü' => "ue",
            c if latin => deunicode::deunicode_char(c).unwrap_or(""),
            c if c.is_ascii_alphanumeric() => {
                push(&mut out, &mut separate, c);
                continue;
            }
            _ => "",
        };
        if piece.is_empty() {
            separate = true;
        }
        for c in piece.chars() {
            if c.is_ascii_alphanumeric() {
                push(&mut out, &mut separate, c);
            } else {
                separate = true;
            }
        }
    }
    if out.is_empty() {
        out.push_str("default");
    }
    out
}

fn push(out: &mut String, separate: &mut bool, c: char) {
    if std::mem::take(separate) && !out.is_empty() {
        out.push('-');
    }
    out.push(c.to_ascii_lowercase());
}

#[cfg(test)]
mod tests {
    use super::to_kebab_ascii_strict as kebab;

    #[test]
    fn kebab_names_are_upstreams() {
        for (name, code) in [
            ("Déjà Vu!", "deja-vu"),
            ("ÅÄÖ", "aao"),
            ("für", "fuer"),
            ("こんにちは", "default"),
            ("Interop Test", "interop-test"),
            ("--a__b--", "a-b"),
            ("", "default"),
        ] {
            assert_eq!(kebab(name), code, "{name}");
        }
    }
}
