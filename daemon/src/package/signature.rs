//! Who made a package: minisign signatures, so that authors sign with the stock tool.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use minisign_verify::{PublicKey, Signature};

/// The key id of a public key, as minisign prints it: 16 upper-case hex digits.
///
/// A public key is the base64 of `Ed`, 8 bytes of key id (little-endian) and 32 bytes of Ed25519 key.
pub fn key_id(public_key: &str) -> Result<String, String> {
    let wrong =
        || "must be a minisign public key: the line of 56 characters that begins with RW in the .pub file.".to_owned();
    let bytes = STANDARD.decode(public_key.trim()).map_err(|_| wrong())?;
    if bytes.len() != 42 || !bytes.starts_with(b"Ed") || PublicKey::from_base64(public_key.trim()).is_err() {
        return Err(wrong());
    }
    let id: [u8; 8] = bytes[2..10].try_into().map_err(|_| wrong())?;
    Ok(format!("{:016X}", u64::from_le_bytes(id)))
}

/// Checks a signature file against the bytes that it signs. Only minisign's present (pre-hashed) form is taken.
pub(super) fn verify(public_key: &str, bytes: &[u8], signature: &str) -> Result<(), String> {
    let key = PublicKey::from_base64(public_key.trim()).map_err(|error| format!("the publisher's key: {error}"))?;
    let signature = Signature::decode(signature)
        .map_err(|error| format!("is no minisign signature ({error}); sign SHA256SUMS with minisign -S."))?;
    key.verify(bytes, &signature, false)
        .map_err(|error| format!("does not fit SHA256SUMS and the publisher's key ({error})."))
}
