//! Keys of publishers, and signing with them: minisign's files, so that the stock tool can use them and ours read its.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use minisign::{KeyPair, PublicKey, SecretKey, SecretKeyBox};

use super::signature::key_id;

/// Bytes of a key file.
const FILE_BYTES_MAX: u64 = 4096;

/// A new pair of keys, as texts of the two files.
pub struct Pair {
    /// For its owner alone.
    pub secret_file: String,
    /// For everybody.
    pub public_file: String,
    /// The line that `publisher` in `plugin.toml` takes.
    pub public_key: String,
    /// Its name for people: 16 hex digits.
    pub id: String,
}

/// Makes a new pair; the password, if there is one, encrypts the secret key.
pub fn generate(password: Option<String>) -> Result<Pair, String> {
    let encrypted = password.is_some();
    let made = match password {
        None => KeyPair::generate_unencrypted_keypair(),
        // Never `None` here: the library would ask on the terminal by itself.
        Some(password) => KeyPair::generate_encrypted_keypair(Some(password)),
    };
    let KeyPair { pk, sk } = made.map_err(|error| format!("The key could not be made: {error}."))?;
    let public_key = pk.to_base64();
    let id = key_id(&public_key)?;
    let comment = if encrypted { "minisign encrypted secret key" } else { "minisign secret key" };
    let secret = sk.to_box(Some(&format!("{comment} {id}"))).map_err(|error| error.to_string())?;
    Ok(Pair {
        secret_file: secret.into_string(),
        public_file: format!("untrusted comment: minisign public key {id}\n{public_key}\n"),
        public_key,
        id,
    })
}

/// A secret key that is ready to sign.
pub struct SigningKey {
    secret: SecretKey,
    public: PublicKey,
}

impl SigningKey {
    /// Reads the file of a secret key; asks for the password of one that has one.
    pub fn read(file: &Path, password: impl FnOnce() -> Result<String, String>) -> Result<SigningKey, String> {
        let told = |reason: String| format!("The key {}: {reason}", file.display());
        let size = fs::metadata(file).map_err(|error| told(format!("{error}.")))?.len();
        if size > FILE_BYTES_MAX {
            return Err(told("is no file of minisign's.".to_owned()));
        }
        let text = fs::read_to_string(file).map_err(|error| told(format!("{error}.")))?;
        let none = || told("is no secret key of minisign's.".to_owned());
        let bytes = text.lines().nth(1).and_then(|line| STANDARD.decode(line.trim()).ok()).ok_or_else(none)?;
        let boxed = || SecretKeyBox::from_string(&text).map_err(|_| none());
        let secret = match bytes.get(2..4) {
            // The stock tool writes no checksum into a key without a password, and the library insists on one.
            Some([0, 0]) if bytes.ends_with(&[0; 32]) => SecretKey::from_bytes(&bytes),
            Some([0, 0]) => SecretKey::from_unencrypted_box(boxed()?),
            Some(_) => SecretKey::from_box(boxed()?, Some(password().map_err(told)?)),
            None => return Err(none()),
        };
        let secret = secret.map_err(|error| told(format!("{error}.")))?;
        let public = PublicKey::from_secret_key(&secret).map_err(|error| told(format!("{error}.")))?;
        Ok(SigningKey { secret, public })
    }

    /// The line that `publisher` in `plugin.toml` takes.
    pub fn public_key(&self) -> String {
        self.public.to_base64()
    }

    /// The text of a signature file over `bytes`; `told` is signed with them.
    pub fn sign(&self, bytes: &[u8], told: &str) -> Result<String, String> {
        let comment = "signature from a publisher of plugins for aman";
        minisign::sign(Some(&self.public), &self.secret, Cursor::new(bytes), Some(told), Some(comment))
            .map(minisign::SignatureBox::into_string)
            .map_err(|error| format!("Signing failed: {error}."))
    }
}
