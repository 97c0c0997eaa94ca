//! Names of files and things within a package: few characters, so that no two systems read one differently.

/// Bytes of a path within a package.
const PATH_BYTES_MAX: usize = 200;
/// Folders within folders.
const DEPTH_MAX: usize = 8;

/// Checks the path of a file or folder: ASCII letters, digits, `.`, `_`, `-`, `+`, `@`, separated by `/`.
///
/// ASCII alone, because what counts as the same name differs between file systems for everything else.
pub(super) fn check(path: &str) -> Result<(), String> {
    if path.is_empty() || path.len() > PATH_BYTES_MAX {
        return Err(format!("must have 1 to {PATH_BYTES_MAX} bytes."));
    }
    if path.starts_with('/') {
        return Err("is an absolute path; everything lies within the package.".to_owned());
    }
    if path.split('/').count() > DEPTH_MAX {
        return Err(format!("is nested deeper than {DEPTH_MAX} folders."));
    }
    for part in path.split('/') {
        if part == ".." || part == "." {
            return Err("has a part '.' or '..'; everything lies within the package.".to_owned());
        }
        if part.is_empty() || part.starts_with('.') {
            return Err("has a part that is empty or hidden.".to_owned());
        }
        if let Some(odd) =
            part.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '_' | '-' | '+' | '@'))
        {
            let odd = odd.escape_default();
            return Err(format!("holds '{odd}'; use ASCII letters, digits, '.', '_', '-', '+' and '@'."));
        }
    }
    Ok(())
}

/// Checks the id of a source or page: `^[a-z][a-z0-9-]{0,39}$`.
pub(super) fn check_id(id: &str) -> Result<(), String> {
    let starts_well = id.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    let plain = id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    (starts_well && plain && id.len() <= 40)
        .then_some(())
        .ok_or_else(|| "must be 1 to 40 lower-case letters, digits and '-', a letter first.".to_owned())
}
