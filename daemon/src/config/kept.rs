//! Secrets that the daemon makes and keeps itself: the static token, and the key that signs minted ones.

use std::path::Path;

use super::secrets::BYTES_MAX;
use super::{Config, Secret};
use crate::error::Error;
use crate::{id, plain, redact};

/// The static token: the configured one, else the one in the token file, else a new one written there (mode 0600).
pub fn token(config: &Config) -> Result<Secret, Error> {
    if let Some(token) = &config.http.token {
        return Ok(token.clone());
    }
    let token = kept_secret(&config.paths.token_file)?;
    if token.len() < 16 {
        return Err(Error::invalid(
            config.paths.token_file.display().to_string(),
            "holds no token of at least 16 characters. Remove the file to have a new one made.",
        ));
    }
    Ok(Secret::new(token))
}

/// The key that signs minted tokens: 32 bytes, made at first use, in a file of mode 0600.
pub fn signing_key(config: &Config) -> Result<Vec<u8>, Error> {
    let text = kept_secret(&config.paths.signing_key_file)?;
    let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len() == 64).ok_or_else(|| {
        let reason = "holds no key of 64 hex digits. Remove the file to have a new one made; minted tokens end then.";
        Error::invalid(config.paths.signing_key_file.display().to_string(), reason)
    })?;
    Ok(digits.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).unwrap_or(0)).collect())
}

/// The text of a file that holds a secret; makes it, with 32 random bytes as hex, when it is not there.
fn kept_secret(file: &Path) -> Result<String, Error> {
    use std::io::{ErrorKind, Write};
    use std::os::unix::fs::OpenOptionsExt;
    let found = match plain::read(file, BYTES_MAX) {
        Ok(text) => Some(text.trim().to_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) if error.kind() == ErrorKind::InvalidInput => {
            return Err(Error::invalid(file.display().to_string(), format!("cannot be read: {error}.")));
        }
        Err(error) => return Err(Error::internal("reading a file with a secret")(error)),
    };
    let text = found.clone().unwrap_or_else(|| id::hex(&id::random_bytes::<32>()));
    redact::learn(&text);
    if found.is_none() {
        let mut out = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(file)
            .map_err(Error::internal("making a file with a secret"))?;
        writeln!(out, "{text}")
            .and_then(|()| out.sync_all())
            .map_err(Error::internal("writing a file with a secret"))?;
    }
    Ok(text)
}
