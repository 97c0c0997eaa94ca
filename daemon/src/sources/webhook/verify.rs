//! Whether a hook's call comes from who holds the secret. Over the bytes as they came, in constant time. Pure.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ring::{digest, hmac};
use subtle::ConstantTimeEq;

use super::Headers;
use crate::clock::Millis;
use crate::config::sources::{Scheme, Verify};

/// How far the time of a call may be from ours.
const TOLERANCE_MS: u64 = 5 * 60 * 1000;
/// Signatures of one call that are looked at.
const SIGNATURES_MAX: usize = 16;
/// Base64 with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Checks a call. The error says what is wrong, and nothing of the secret.
pub fn check(verify: &Verify, headers: &Headers, body: &[u8], now_ms: Millis) -> Result<(), String> {
    match verify.scheme {
        Scheme::Standard => standard(verify, headers, body, now_ms),
        Scheme::Github => {
            let given = required(headers, "x-hub-signature-256")?;
            let hex = given.strip_prefix("sha256=").ok_or("X-Hub-Signature-256 does not begin with sha256=.")?;
            any(verify, hmac::HMAC_SHA256, &[body], &[unhex(hex)])
        }
        Scheme::Gitlab => gitlab(verify, headers),
        Scheme::Slack => {
            let time = timestamp(required(headers, "x-slack-request-timestamp")?, now_ms)?;
            let given = required(headers, "x-slack-signature")?;
            let hex = given.strip_prefix("v0=").ok_or("X-Slack-Signature does not begin with v0=.")?;
            any(verify, hmac::HMAC_SHA256, &[b"v0:", time.as_bytes(), b":", body], &[unhex(hex)])
        }
        Scheme::Stripe => stripe(verify, headers, body, now_ms),
        Scheme::Hmac => plain(verify, headers, body, now_ms),
    }
}

fn required<'a>(headers: &'a Headers, name: &str) -> Result<&'a str, String> {
    headers.get(name).ok_or_else(|| format!("The header {name} is missing."))
}

/// The text of a time in seconds that is near enough to now.
fn timestamp(text: &str, now_ms: Millis) -> Result<&str, String> {
    let at = text.parse::<i64>().ok().and_then(|seconds| seconds.checked_mul(1000));
    match at {
        Some(at) if at.abs_diff(now_ms) <= TOLERANCE_MS => Ok(text),
        Some(_) => Err("The call is more than five minutes old, or from the future. Check both clocks.".to_owned()),
        None => Err("The time of the call is no number of seconds.".to_owned()),
    }
}

/// Source: the Standard Webhooks specification, symmetric signatures (`v1`).
fn standard(verify: &Verify, headers: &Headers, body: &[u8], now_ms: Millis) -> Result<(), String> {
    let id = required(headers, "webhook-id")?;
    let time = timestamp(required(headers, "webhook-timestamp")?, now_ms)?;
    let given: Vec<Option<Vec<u8>>> = required(headers, "webhook-signature")?
        .split(' ')
        .filter_map(|one| one.strip_prefix("v1,"))
        .take(SIGNATURES_MAX)
        .map(|text| BASE64.decode(text).ok())
        .collect();
    any(verify, hmac::HMAC_SHA256, &[id.as_bytes(), b".", time.as_bytes(), b".", body], &given)
}

/// GitLab sends the secret itself.
fn gitlab(verify: &Verify, headers: &Headers) -> Result<(), String> {
    let given = digest::digest(&digest::SHA256, required(headers, "x-gitlab-token")?.as_bytes());
    let mut good = subtle::Choice::from(0);
    for secret in &verify.secrets {
        let wanted = digest::digest(&digest::SHA256, secret.expose().as_bytes());
        good |= given.as_ref().ct_eq(wanted.as_ref());
    }
    verdict(bool::from(good))
}

fn stripe(verify: &Verify, headers: &Headers, body: &[u8], now_ms: Millis) -> Result<(), String> {
    let pairs =
        || required(headers, "stripe-signature").map(|all| all.split(',').filter_map(|one| one.split_once('=')));
    let time = pairs()?.find(|(key, _)| key.trim() == "t").ok_or("Stripe-Signature names no time.")?.1;
    let time = timestamp(time, now_ms)?;
    let given: Vec<Option<Vec<u8>>> =
        pairs()?.filter(|(key, _)| key.trim() == "v1").take(SIGNATURES_MAX).map(|(_, hex)| unhex(hex)).collect();
    any(verify, hmac::HMAC_SHA256, &[time.as_bytes(), b".", body], &given)
}

fn plain(verify: &Verify, headers: &Headers, body: &[u8], now_ms: Millis) -> Result<(), String> {
    let given = required(headers, &verify.header)?;
    let given = given
        .strip_prefix(verify.prefix.as_str())
        .ok_or_else(|| format!("The header {} does not begin with {}.", verify.header, verify.prefix))?;
    let given = if verify.base64 { BASE64.decode(given).ok() } else { unhex(given) };
    let algorithm = match verify.algorithm {
        "sha512" => hmac::HMAC_SHA512,
        "sha1" => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
        _ => hmac::HMAC_SHA256,
    };
    let Some(name) = &verify.timestamp_header else { return any(verify, algorithm, &[body], &[given]) };
    let time = timestamp(required(headers, name)?, now_ms)?;
    any(verify, algorithm, &[time.as_bytes(), b".", body], &[given])
}

/// True when one of the secrets makes one of the signatures.
fn any(verify: &Verify, algorithm: hmac::Algorithm, parts: &[&[u8]], given: &[Option<Vec<u8>>]) -> Result<(), String> {
    let mut good = false;
    for secret in &verify.secrets {
        let key = hmac::Key::new(algorithm, &key_bytes(verify.scheme, secret.expose()));
        let mut context = hmac::Context::with_key(&key);
        parts.iter().for_each(|part| context.update(part));
        let made = context.sign();
        for signature in given.iter().flatten() {
            good |= bool::from(made.as_ref().ct_eq(signature));
        }
    }
    verdict(good)
}

/// Secrets of Standard Webhooks are base64 after `whsec_`; any other is taken as it is.
fn key_bytes(scheme: Scheme, secret: &str) -> Vec<u8> {
    match secret.strip_prefix("whsec_") {
        Some(text) if scheme == Scheme::Standard => BASE64.decode(text).unwrap_or_else(|_| secret.as_bytes().to_vec()),
        _ => secret.as_bytes().to_vec(),
    }
}

fn verdict(good: bool) -> Result<(), String> {
    if good { Ok(()) } else { Err("The signature is not the one that the secret makes.".to_owned()) }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let text = text.trim().as_bytes();
    if text.is_empty() || !text.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    text.chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}
