//! JSON Web Tokens, signed with HMAC-SHA-256 and nothing else. Whether a token is still good is the gate's to say.

use std::sync::Once;

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error as JwtError, ErrorKind};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, signature};
use ring::hmac;
use serde::{Deserialize, Serialize};

use crate::error::Error;

const ISSUER: &str = "aman";
/// A longer text is no token of ours.
const TOKEN_BYTES_MAX: usize = 4096;

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Always `aman`.
    pub iss: String,
    /// The principal.
    pub sub: String,
    /// Names of scopes, separated by spaces.
    pub scope: String,
    /// When it was minted, in seconds since 1970.
    pub iat: i64,
    /// From when on it is no longer good, in seconds since 1970.
    pub exp: i64,
    /// Its id.
    pub jti: String,
}

impl Claims {
    /// The claims of one token.
    pub fn new(sub: &str, scope: &str, jti: &str, issued_ms: i64, expires_ms: i64) -> Claims {
        Claims {
            iss: ISSUER.to_owned(),
            sub: sub.to_owned(),
            scope: scope.to_owned(),
            iat: issued_ms.div_euclid(1000),
            exp: expires_ms.div_euclid(1000),
            jti: jti.to_owned(),
        }
    }
}

/// Signs claims and reads signed ones.
pub struct Mint {
    sign: EncodingKey,
    verify: DecodingKey,
    validation: Validation,
}

impl Mint {
    /// A mint with this key, of 32 random bytes.
    pub fn new(key: &[u8]) -> Mint {
        static INSTALLED: Once = Once::new();
        // Before the first use: the crate has no cryptography of its own and would panic.
        INSTALLED.call_once(|| {
            let _ = PROVIDER.install_default();
        });
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "iss", "sub"]);
        validation.validate_aud = true;
        // The gate compares the time itself, with the daemon's clock.
        validation.validate_exp = false;
        Mint { sign: EncodingKey::from_secret(key), verify: DecodingKey::from_secret(key), validation }
    }

    /// The token that says `claims`. The same claims give the same token.
    pub fn sign(&self, claims: &Claims) -> Result<String, Error> {
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &self.sign)
            .map_err(Error::internal("signing a token"))
    }

    /// What `token` says, if it was signed here.
    pub fn read(&self, token: &[u8]) -> Option<Claims> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        jsonwebtoken::decode::<Claims>(token, &self.verify, &self.validation).ok().map(|read| read.claims)
    }
}

/// HMAC-SHA-256 by ring, the one source of cryptography in this program.
static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |algorithm, key| {
        known(*algorithm)?;
        Ok(Box::new(Hs256(hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()))))
    },
    verifier_factory: |algorithm, key| {
        known(*algorithm)?;
        Ok(Box::new(Hs256(hmac::Key::new(hmac::HMAC_SHA256, key.try_get_as_bytes()?))))
    },
    key_utils: KeyUtils::new_unimplemented(),
};

fn known(algorithm: Algorithm) -> Result<(), JwtError> {
    if algorithm == Algorithm::HS256 { Ok(()) } else { Err(ErrorKind::InvalidAlgorithm.into()) }
}

struct Hs256(hmac::Key);

impl signature::Signer<Vec<u8>> for Hs256 {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        Ok(hmac::sign(&self.0, message).as_ref().to_vec())
    }
}

impl signature::Verifier<Vec<u8>> for Hs256 {
    fn verify(&self, message: &[u8], tag: &Vec<u8>) -> Result<(), signature::Error> {
        hmac::verify(&self.0, message, tag).map_err(|_| signature::Error::new())
    }
}

impl JwtSigner for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl JwtVerifier for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    fn claims() -> Claims {
        Claims::new("anna", "events:read", "j1", 1_000, 2_000)
    }

    /// A token of these parts, signed with `key`.
    fn made(header: &str, body: &str, key: &[u8]) -> String {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(body));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag))
    }

    #[test]
    fn only_own_tokens_are_read() {
        let (mint, other) = (Mint::new(&[7; 32]), Mint::new(&[8; 32]));
        let token = mint.sign(&claims()).expect("signed");
        assert_eq!(token, mint.sign(&claims()).expect("signed again"), "the same claims give the same token");
        assert_eq!(mint.read(token.as_bytes()), Some(claims()));
        assert_eq!(other.read(token.as_bytes()), None);
        let body = serde_json::to_string(&claims()).expect("JSON");
        assert_eq!(mint.read(made(r#"{"alg":"HS256"}"#, &body, &[7; 32]).as_bytes()), Some(claims()));
        let unsigned = made(r#"{"alg":"none"}"#, &body, &[7; 32]);
        let stripped = format!("{}.", token.rsplit_once('.').expect("three parts").0);
        for (what, bad) in [
            ("another algorithm", made(r#"{"alg":"HS512"}"#, &body, &[7; 32])),
            ("no algorithm", unsigned),
            ("no signature", stripped),
            ("another issuer", made(r#"{"alg":"HS256"}"#, &body.replace("\"aman\"", "\"x\""), &[7; 32])),
            ("no end", made(r#"{"alg":"HS256"}"#, &body.replace("\"exp\"", "\"ex\""), &[7; 32])),
            ("one part", "x".to_owned()),
            ("three empty parts", "..".to_owned()),
            ("nothing", String::new()),
            ("too long", "a.".repeat(4096)),
        ] {
            assert_eq!(mint.read(bad.as_bytes()), None, "{what}");
        }
    }
}
