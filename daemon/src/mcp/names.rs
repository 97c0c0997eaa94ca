//! The names that tools of servers get here: such as every model takes, and none twice. Pure.

use std::collections::BTreeSet;

use crate::id::sha256_hex;

/// Longest name that all models take.
const NAME_BYTES_MAX: usize = 64;
/// Digits of a digest that tell apart what would be the same.
const DIGITS: usize = 6;

/// The name of tool `tool` of `server`: letters, digits, `_` and `-`. What is too long, or in `taken`, ends in digits that
/// come from its own name, so that it has the same name tomorrow.
pub fn name(server: &str, tool: &str, taken: &BTreeSet<String>) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let plain: String = format!("{server}_{tool}").chars().map(plain).collect();
    if plain.len() <= NAME_BYTES_MAX && !taken.contains(&plain) {
        return plain;
    }
    let mut digest = sha256_hex(format!("{server}\n{tool}").as_bytes());
    loop {
        let room = NAME_BYTES_MAX - DIGITS - 1;
        let named = format!("{}_{}", &plain[..plain.len().min(room)], &digest[..DIGITS]);
        if !taken.contains(&named) {
            return named;
        }
        digest = sha256_hex(digest.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_short_and_unlike() {
        let taken: BTreeSet<String> = ["a_b_c".to_owned()].into();
        for (server, tool, wanted) in [
            ("files", "read_file", "files_read_file"),
            ("a", "x.y/z ü", "a_x_y_z__"),
            ("a", "get-sum", "a_get-sum"),
            ("a", "", "a_"),
        ] {
            assert_eq!(name(server, tool, &taken), wanted);
        }
        let other = name("a_b", "c", &taken);
        assert!(other.starts_with("a_b_c_") && other == name("a_b", "c", &taken), "{other}");
        let long = name("files", &"x".repeat(300), &taken);
        assert_eq!(long.len(), NAME_BYTES_MAX);
        assert_ne!(long, name("files", &"x".repeat(301), &taken));
    }
}
