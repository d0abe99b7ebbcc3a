//! Sessions of browsers. A session is made of a token and a time, and needs no memory: every coordinator with the same token accepts it,
//! also after a restart. Pure: time is an argument, in seconds since 1970.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use proto::hex_sha256;
use sha2::Sha256;

/// A session ends this long after its log-in.
pub const LIFE: u64 = 12 * 3600;

/// What only the owner of a token, and a coordinator that has it, can compute.
#[derive(Clone, PartialEq)]
pub(super) struct Key([u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    pub(super) fn of(secret: &[u8]) -> Key {
        Key(authenticate(secret, "basin"))
    }

    /// `purpose`: codes for one purpose say nothing about those for another.
    pub(super) fn code(&self, purpose: &str, text: &str) -> String {
        let code = authenticate(&self.0, &format!("{purpose} {text}"));
        code.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// A new session: the time of its end, random digits that make it another than all others, and the code of both.
    pub(super) fn session(&self, random: &[u8; 32], now: u64) -> String {
        let head = format!("{}.{}", now + LIFE, digits(random));
        format!("{head}.{}", self.code("session", &head))
    }

    /// When the session ends; `None`: it is not of this key, or has ended.
    pub(super) fn end_of(&self, session: &str, now: u64) -> Option<u64> {
        let (head, code) = session.rsplit_once('.')?;
        let end = head.split_once('.')?.0.parse().ok()?;
        (same(code, &self.code("session", head)) && now < end).then_some(end)
    }
}

/// HMAC-SHA-256.
fn authenticate(key: &[u8], text: &str) -> [u8; 32] {
    let mut code = Hmac::<Sha256>::new_from_slice(key).expect("a key may have any length");
    code.update(text.as_bytes());
    code.finalize().into_bytes().into()
}

/// Random bytes as digits that cannot be guessed.
pub(super) fn digits(random: &[u8; 32]) -> String {
    hex_sha256(random)[..32].to_owned()
}

/// Digests are compared, so that the time of a comparison tells nothing about the secret one.
pub(super) fn same(shown: &str, secret: &str) -> bool {
    hex_sha256(shown.as_bytes()) == hex_sha256(secret.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_holds_for_its_life_for_every_coordinator_with_the_token_and_for_no_other() {
        let (one, other) = (Key::of(b"a token"), Key::of(b"another token"));
        let session = one.session(&[7; 32], 1000);
        assert_eq!(Key::of(b"a token").end_of(&session, 1000), Some(1000 + LIFE));
        assert_eq!(one.end_of(&session, 999 + LIFE), Some(1000 + LIFE));
        assert_eq!(one.end_of(&session, 1000 + LIFE), None);
        assert_eq!(other.end_of(&session, 1000), None);
        assert_ne!(session, one.session(&[8; 32], 1000));
        // Nobody gives it a longer life.
        let longer = session.replacen(&(1000 + LIFE).to_string(), &(2000 + LIFE).to_string(), 1);
        for strange in [longer.as_str(), "", ".", "..", "9999999999.x.", &session[1..], &session[..session.len() - 1]] {
            assert_eq!(one.end_of(strange, 1000), None, "{strange}");
        }
        // A code for another purpose is no session's.
        let head = session.rsplit_once('.').expect("its code").0;
        assert_eq!(one.end_of(&format!("{head}.{}", one.code("form", head)), 1000), None);
        assert_eq!(format!("{one:?}"), "Key");
    }
}
