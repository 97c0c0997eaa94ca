//! What can go wrong, as far as callers act differently on it. No HTTP here: `api::problem` turns it into statuses.

use std::error::Error as StdError;
use std::fmt;

/// One broken field of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Where: a field name or a JSON pointer such as `/3/type`.
    pub field: String,
    /// What is wrong and what would be right.
    pub reason: String,
}

/// The daemon's error. A variant exists only where someone acts differently on it.
#[derive(Debug)]
pub enum Error {
    /// The named thing does not exist.
    NotFound {
        /// What kind of thing, for example `event`.
        kind: &'static str,
        /// The name that was asked for.
        id: String,
    },
    /// The request breaks a documented rule; repeating it unchanged cannot succeed.
    Invalid {
        /// Stable code: `invalid_input`, `reserved_attribute` …
        code: &'static str,
        /// Every field that is wrong; never empty.
        fields: Vec<FieldError>,
    },
    /// The caller is known and may not do this.
    Forbidden {
        /// Stable code, for example `reserved_name`.
        code: &'static str,
        /// Why, and what would allow it.
        reason: String,
    },
    /// The state forbids it now: already done, wrong phase, needs confirmation; `code` says which.
    Conflict {
        /// Stable code, for example `invalid_state`.
        code: &'static str,
        /// Why, and what to do next.
        reason: String,
    },
    /// The same key came with another request: no retry can succeed.
    Mismatch {
        /// Stable code, for example `idempotency_mismatch`.
        code: &'static str,
        /// Why, and what to do next.
        reason: String,
    },
    /// A limit was reached or the daemon is not in a phase to serve; after `retry_after_ms` it may succeed.
    Busy {
        /// Stable code: `overloaded`, `starting`, `draining`, `storage`.
        code: &'static str,
        /// What is in the way.
        what: String,
        /// Milliseconds after which trying again makes sense.
        retry_after_ms: u64,
    },
    /// A bug or a broken machine. `context` and `source` go to the log, never to a client.
    Internal {
        /// What was being done.
        context: &'static str,
        /// What failed below.
        source: Box<dyn StdError + Send + Sync>,
    },
}

impl Error {
    /// One wrong field, code `invalid_input`.
    pub fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::invalid_as("invalid_input", field, reason)
    }

    /// One wrong field with a code of its own.
    pub fn invalid_as(code: &'static str, field: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Invalid { code, fields: vec![FieldError { field: field.into(), reason: reason.into() }] }
    }

    /// The named thing does not exist.
    pub fn not_found(kind: &'static str, id: impl Into<String>) -> Error {
        Error::NotFound { kind, id: id.into() }
    }

    /// The state forbids it now.
    pub fn conflict(code: &'static str, reason: impl Into<String>) -> Error {
        Error::Conflict { code, reason: reason.into() }
    }

    /// For `map_err`: wraps any error as internal, with what was being done.
    pub fn internal<E: Into<Box<dyn StdError + Send + Sync>>>(context: &'static str) -> impl FnOnce(E) -> Error {
        move |source| Error::Internal { context, source: source.into() }
    }

    /// Puts `prefix` before every field name, as in `/3` + `type` → `/3/type`; `body`, which is the whole, becomes `/3`.
    pub fn at(self, prefix: &str) -> Error {
        match self {
            Error::Invalid { code, fields } => Error::Invalid {
                code,
                fields: fields
                    .into_iter()
                    .map(|f| match f.field.as_str() {
                        "body" => FieldError { field: prefix.to_owned(), ..f },
                        name => FieldError { field: format!("{prefix}/{}", name.trim_start_matches('/')), ..f },
                    })
                    .collect(),
            },
            other => other,
        }
    }

    /// The error and everything below it, outermost first.
    pub fn chain(&self) -> Vec<String> {
        let mut chain = vec![self.to_string()];
        let mut below = self.source();
        while let Some(error) = below {
            chain.push(error.to_string());
            below = error.source();
        }
        chain
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotFound { kind, id } => write!(f, "There is no {kind} '{id}'."),
            Error::Invalid { fields, .. } => {
                for (n, field) in fields.iter().enumerate() {
                    let gap = if n == 0 { "" } else { " " };
                    write!(f, "{gap}{}: {}", field.field, field.reason)?;
                }
                Ok(())
            }
            Error::Forbidden { reason, .. } | Error::Conflict { reason, .. } | Error::Mismatch { reason, .. } => {
                f.write_str(reason)
            }
            Error::Busy { what, retry_after_ms, .. } => {
                write!(f, "{what} Try again in {} s.", retry_after_ms.div_ceil(1000))
            }
            Error::Internal { context, .. } => write!(f, "{context} failed"),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Error::Internal { source, .. } => Some(source.as_ref()),
            _ => None,
        }
    }
}

/// How many characters must be added, removed or replaced to make one name of the other (Levenshtein), for suggestions.
/// What stands behind the 64th of `given` does not count.
pub fn distance(given: &str, known: &str) -> usize {
    let known: Vec<char> = known.chars().collect();
    let mut row: Vec<usize> = (0..=known.len()).collect();
    for (i, a) in given.chars().take(64).enumerate() {
        let mut corner = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in known.iter().enumerate() {
            let replaced = corner + usize::from(a != *b);
            corner = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(corner + 1);
        }
    }
    row[known.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        assert_eq!((distance("", "abc"), distance("kitten", "sitting"), distance("a", "a")), (3, 3, 0));
    }
}
