//! Regular expressions that come from settings and files: they are matched against texts of strangers, so they are bounded,
//! and no text makes them slow (the engine takes time in proportion to the text).

use regex::{Regex, RegexBuilder};

/// Longest pattern, in bytes.
pub const BYTES_MAX: usize = 1000;
/// Bytes that a compiled pattern may take, and once more what a search remembers.
const COMPILED_MAX: usize = 256 << 10;
const NESTED_MAX: u32 = 32;

/// Compiles a pattern that makes no difference of case, unless it says `(?-i)`. The error says what is wrong with it.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    if pattern.is_empty() || pattern.len() > BYTES_MAX {
        return Err(format!("must have 1 to {BYTES_MAX} bytes"));
    }
    let built = RegexBuilder::new(pattern)
        .case_insensitive(true)
        .size_limit(COMPILED_MAX)
        .dfa_size_limit(COMPILED_MAX)
        .nest_limit(NESTED_MAX)
        .build();
    let regex = built.map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => "is too large once it is compiled: repeat less".to_owned(),
        // The lines before the last show where, in the pattern.
        other => {
            let text = other.to_string();
            let last = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
            format!("is no regular expression: {last}")
        }
    })?;
    if regex.is_match("") {
        return Err("matches every text, also an empty one".to_owned());
    }
    Ok(regex)
}

/// True when `name` fits `pattern`, in which `*` stands for any characters, or none.
pub fn fits(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut left) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        match left.find(part) {
            Some(at) => left = &left[at + part.len()..],
            None => return false,
        }
    }
    left.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_bounded_and_names_fit() {
        for (pattern, wanted) in [
            ("", "1 to"),
            ("(", "no regular expression"),
            ("a{1000}{1000}", "too large"),
            ("x*", "every text"),
            (&"a".repeat(1001), "1 to"),
        ] {
            let error = compile(pattern).expect_err(pattern);
            assert!(error.contains(wanted), "{pattern}: {error}");
        }
        assert!(compile(r"\bmöwe\b").expect("good").is_match("eine MÖWE!"));
        for (pattern, name, wanted) in [
            ("exec", "exec", true),
            ("exec", "exec2", false),
            ("*", "", true),
            ("mail_*", "mail_send", true),
            ("*_send", "mail_send", true),
            ("m*_s*d", "mail_send", true),
            ("m*x*d", "mail_send", false),
            ("a*a", "a", false),
        ] {
            assert_eq!(fits(pattern, name), wanted, "{pattern} {name}");
        }
    }
}
