//! Tokens and their roles, sessions of browsers, and the limit of requests. Pure, except for [`secret`]; time is an argument, in
//! seconds.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;

use axum::http::{HeaderMap, header};
use proto::hex_sha256;

/// A larger role may do everything that a smaller one may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The role of the read-only token.
    View,
    /// May also change runs.
    Operate,
}

/// Tokens of both roles. Without any token, clients on this machine may do everything.
#[derive(Clone, Debug)]
pub struct Gate {
    /// Role of each token, and the digest of its session. Digests are compared, so that the time of a comparison tells nothing about
    /// the token.
    keys: Vec<(Role, String)>,
    /// Part of every form, so that no other site's page can send one.
    form_key: String,
    /// Only this process knows it.
    seal_key: String,
}

/// The cookie of a session.
const COOKIE: &str = "basin_session";
/// The cookie of a note, which a page shows once: its seal and the text.
const NOTE: &str = "basin_note";
/// Largest text of a note, in bytes; browsers accept cookies up to 4096.
const NOTE_BYTES: usize = 3000;

impl Gate {
    /// For this machine only, without a token.
    pub fn local() -> std::io::Result<Gate> {
        Ok(Gate::new(None, None, &secret()?))
    }

    /// `secret`: random bytes of this process ([`secret`]).
    pub fn new(operate: Option<&str>, view: Option<&str>, secret: &[u8]) -> Gate {
        let tokens = [(Role::Operate, operate), (Role::View, view)].into_iter();
        let key = |(role, token): (Role, Option<&str>)| Some((role, hex_sha256(session(token?).as_bytes())));
        let keys = tokens.filter_map(key).collect();
        let of = |what: &[u8]| hex_sha256(&[what, secret].concat());
        Gate { keys, form_key: of(b"form"), seal_key: of(b"seal") }
    }

    /// Whether there is no token.
    pub fn is_open(&self) -> bool {
        self.keys.is_empty()
    }

    /// The client's role; `None`: there is no token, or a wrong one.
    pub fn role(&self, headers: &HeaderMap) -> Option<Role> {
        if self.is_open() {
            return Some(Role::Operate).filter(|_| is_local(headers));
        }
        let shown = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()?.strip_prefix("Bearer "));
        match shown {
            Some(token) => self.role_of(&session(token)),
            None => self.role_of(cookie(headers, COOKIE)?),
        }
    }

    /// How the client has shown who it is, for the log of changes.
    pub fn how(&self, headers: &HeaderMap) -> &'static str {
        match headers.contains_key(header::AUTHORIZATION) {
            _ if self.is_open() => "local",
            true => "token",
            false => "session",
        }
    }

    fn role_of(&self, session: &str) -> Option<Role> {
        let digest = hex_sha256(session.as_bytes());
        self.keys.iter().filter(|(_, key)| *key == digest).map(|(role, _)| *role).max()
    }

    /// Whether there is a token or a session, right or wrong.
    pub fn has_credentials(headers: &HeaderMap) -> bool {
        let bearer = headers.get(header::AUTHORIZATION).is_some_and(|v| v.as_bytes().starts_with(b"Bearer "));
        bearer || cookie(headers, COOKIE).is_some()
    }

    /// The `Set-Cookie` of a session, if the token is right. It ends with the browser, and with the token.
    pub fn enter(&self, token: &str) -> Option<String> {
        let session = session(token);
        self.role_of(&session).map(|_| format!("{COOKIE}={session}; Path=/; HttpOnly; SameSite=Lax"))
    }

    /// The `Set-Cookie` that ends a session.
    pub fn leave() -> String {
        format!("{COOKIE}=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0")
    }

    /// The `Set-Cookie` of a note for the next page. `note`: letters, digits, `-_.~%` and `/` only.
    pub fn tell(&self, note: &str) -> String {
        let mut end = note.len().min(NOTE_BYTES);
        // Not inside an escape.
        while !note.is_char_boundary(end) || note[..end].bytes().rev().take(2).any(|b| b == b'%') {
            end -= 1;
        }
        let note = &note[..end];
        format!("{NOTE}={}.{note}; Path=/; HttpOnly; SameSite=Strict; Max-Age=60", self.seal(note))
    }

    /// The note for a page, if this process sealed it: no other site and no other program can put one there.
    pub fn told<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        let (seal, note) = cookie(headers, NOTE)?.split_once('.')?;
        (hex_sha256(seal.as_bytes()) == hex_sha256(self.seal(note).as_bytes())).then_some(note)
    }

    /// The `Set-Cookie` that deletes the note.
    pub fn forget() -> String {
        format!("{NOTE}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0")
    }

    fn seal(&self, text: &str) -> String {
        hex_sha256(format!("{}{}", self.seal_key, hex_sha256(text.as_bytes())).as_bytes())
    }

    /// Every form must hold it.
    pub fn form_key(&self) -> &str {
        &self.form_key
    }
}

/// Random bytes of the system.
pub fn secret() -> std::io::Result<[u8; 32]> {
    let mut secret = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut secret)?;
    Ok(secret)
}

/// The value of the session cookie.
fn session(token: &str) -> String {
    hex_sha256(format!("basin session {token}").as_bytes())
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|v| v.to_str().ok());
    cookies.flat_map(|v| v.split(';')).find_map(|c| c.trim().strip_prefix(name)?.strip_prefix('='))
}

/// Whether the requested host is this machine. A foreign page whose name resolves to this machine requests its own name (DNS rebinding).
fn is_local(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        _ => host,
    };
    let ip = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(six) => six.parse().map(IpAddr::V6),
        None => name.parse().map(IpAddr::V4),
    };
    name.eq_ignore_ascii_case("localhost") || ip.is_ok_and(|ip| ip.is_loopback())
}

/// Limits each address to `burst` requests at once, and to `per_second` in the long run.
#[derive(Debug)]
pub struct Limiter {
    per_second: f64,
    burst: f64,
    /// Requests left of each address, and when they were counted.
    left: HashMap<IpAddr, (f64, f64)>,
}

/// Most addresses that are remembered. One that is forgotten starts anew.
const ADDRESSES: usize = 10_000;

impl Limiter {
    pub fn new(per_second: f64, burst: f64) -> Limiter {
        Limiter { per_second, burst, left: HashMap::new() }
    }

    /// Whether the address may send a request now; if so, it counts.
    pub fn take(&mut self, address: IpAddr, now: f64) -> bool {
        if self.left.len() >= ADDRESSES && !self.left.contains_key(&address) {
            self.left.retain(|_, (left, when)| *left + (now - *when) * self.per_second < self.burst);
            if self.left.len() >= ADDRESSES {
                self.left.clear();
            }
        }
        let (left, when) = self.left.entry(address).or_insert((self.burst, now));
        *left = (*left + (now - *when) * self.per_second).min(self.burst);
        *when = now;
        let allowed = *left >= 1.0;
        if allowed {
            *left -= 1.0;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value"))).collect()
    }

    #[test]
    fn a_token_gives_its_role_by_header_and_by_cookie_and_nothing_else_does() {
        let gate = Gate::new(Some("operate-token-of-ours"), Some("view-token-of-ours"), b"secret");
        let by_header = |token: &str| gate.role(&headers(&[("authorization", &format!("Bearer {token}"))]));
        assert_eq!(by_header("operate-token-of-ours"), Some(Role::Operate));
        assert_eq!(by_header("view-token-of-ours"), Some(Role::View));
        assert_eq!([by_header("operate-token-of-our"), by_header("")], [None; 2]);
        let by_cookie = |token: &str| {
            let cookie = gate.enter(token)?;
            assert!(!cookie.contains(token) && cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax"), "{cookie}");
            gate.role(&headers(&[("cookie", &format!("other=1; {}", cookie.split(';').next()?))]))
        };
        assert_eq!(
            (by_cookie("operate-token-of-ours"), by_cookie("view-token-of-ours")),
            (Some(Role::Operate), Some(Role::View))
        );
        assert_eq!(by_cookie("wrong"), None);
        assert_eq!(gate.role(&headers(&[("host", "127.0.0.1"), ("cookie", "basin_session=")])), None);
    }

    #[test]
    fn without_tokens_only_this_machine_is_served() {
        let gate = Gate::new(None, None, b"secret");
        for (host, role) in [
            ("127.0.0.1:8470", Some(Role::Operate)),
            ("localhost", Some(Role::Operate)),
            ("[::1]:8470", Some(Role::Operate)),
            ("evil.example:8470", None),
            ("127.0.0.1.evil.example", None),
            ("[::1]evil.example", None),
            ("localhost:80@evil.example", None),
            ("evil.example@localhost", None),
            ("", None),
        ] {
            assert_eq!(gate.role(&headers(&[("host", host)])), role, "{host}");
        }
    }

    #[test]
    fn an_address_with_too_many_requests_waits_and_the_others_do_not() {
        let mut limiter = Limiter::new(2.0, 3.0);
        let (one, other) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let taken: Vec<bool> = (0..5).map(|_| limiter.take(one, 0.0)).collect();
        assert_eq!(taken, [true, true, true, false, false]);
        assert!(limiter.take(other, 0.0));
        assert!(limiter.take(one, 0.5) && !limiter.take(one, 0.5));
        assert_eq!((0..9).filter(|_| limiter.take(one, 1000.0)).count(), 3);
        for i in 0..20_000u32 {
            limiter.take(IpAddr::from(i.to_be_bytes()), 1000.0);
        }
        assert!(limiter.left.len() <= ADDRESSES);
    }
}
