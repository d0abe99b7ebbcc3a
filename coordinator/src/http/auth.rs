//! Tokens and their roles, the cookies of browsers, and the limit of requests. Pure, except for [`secret`] and the memory of sessions that
//! were logged out; time is an argument, in seconds.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use axum::http::{HeaderMap, header};

use super::origin::is_https;
use super::session::{Key, digits, same};

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
    keys: Vec<(Role, Key)>,
    /// For what belongs to no session: of the token that may change runs, so that coordinators with that token agree; without a token
    /// of this process.
    own: Key,
    /// Whether clients reach a proxy by https, whatever that says.
    https: bool,
    /// Sessions that were logged out here, with their ends.
    left: Arc<Mutex<BTreeSet<(u64, String)>>>,
}

/// What a client may do, and until when.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Access {
    pub role: Role,
    /// The end of the session; `None`: the client has shown a token, or needs none.
    pub until: Option<u64>,
}

/// The cookie of a session.
const COOKIE: &str = "basin_session";
/// The cookie of a form of the login: its key.
const LOGIN: &str = "basin_login";
/// The cookie of a note, which a page shows once: its seal and the text.
const NOTE: &str = "basin_note";
/// Browsers take a cookie of such a name by https only, and from no other host.
const HOST_ONLY: &str = "__Host-";
/// Largest text of a note, in bytes; browsers accept cookies up to 4096.
const NOTE_BYTES: usize = 3000;
/// Most logged-out sessions that are remembered. Those that end first are forgotten first.
const LEFT: usize = 100_000;

impl Gate {
    /// For this machine only, without a token.
    pub fn local() -> std::io::Result<Gate> {
        Ok(Gate::new(None, None, &secret()?))
    }

    /// `secret`: random bytes of this process ([`secret`]).
    pub fn new(operate: Option<&str>, view: Option<&str>, secret: &[u8]) -> Gate {
        let tokens = [(Role::Operate, operate), (Role::View, view)].into_iter();
        let keys = tokens.filter_map(|(role, token)| Some((role, Key::of(token?.as_bytes())))).collect();
        let own = Key::of(operate.map_or(secret, str::as_bytes));
        Gate { keys, own, https: false, left: Arc::default() }
    }

    /// With `always`, cookies are for https even if no proxy says that the client uses it.
    pub fn by_https(self, always: bool) -> Gate {
        Gate { https: always, ..self }
    }

    /// Whether there is no token.
    pub fn is_open(&self) -> bool {
        self.keys.is_empty()
    }

    /// The client's role; `None`: there is no token, or a wrong one.
    pub fn role(&self, headers: &HeaderMap, now: u64) -> Option<Role> {
        self.access(headers, now).map(|access| access.role)
    }

    /// What the client may do; `None`: there is no token or session, or a wrong one.
    pub fn access(&self, headers: &HeaderMap, now: u64) -> Option<Access> {
        if self.is_open() {
            return Some(Access { role: Role::Operate, until: None }).filter(|_| is_local(headers));
        }
        if let Some(token) = bearer(headers) {
            return self.key_of(token).map(|(role, _)| Access { role, until: None });
        }
        let (role, _, end) = self.session(headers, now)?;
        Some(Access { role, until: Some(end) })
    }

    /// How the client has shown who it is, for the log of changes.
    pub fn how(&self, headers: &HeaderMap) -> &'static str {
        match bearer(headers).is_some() {
            _ if self.is_open() => "local",
            true => "token",
            false => "session",
        }
    }

    /// The key of a token, with the larger role where both tokens are equal.
    fn key_of(&self, token: &str) -> Option<(Role, &Key)> {
        let key = Key::of(token.as_bytes());
        self.keys.iter().filter(|(_, there)| *there == key).map(|(role, there)| (*role, there)).max_by_key(|(role, _)| *role)
    }

    /// Role, key and end of the session, if it holds.
    fn session(&self, headers: &HeaderMap, now: u64) -> Option<(Role, &Key, u64)> {
        let session = cookie(headers, &self.named(headers, COOKIE))?;
        let (role, key, end) = self.keys.iter().find_map(|(role, key)| Some((*role, key, key.end_of(session, now)?)))?;
        let left = self.left.lock().expect("no holder of the lock panics").contains(&(end, session.to_owned()));
        (!left).then_some((role, key, end))
    }

    /// Whether the client that has no access guesses: its token or session never was right.
    pub fn guesses(&self, headers: &HeaderMap) -> bool {
        let ours = |session: &str| self.keys.iter().any(|(_, key)| key.end_of(session, 0).is_some());
        bearer(headers).is_some() || cookie(headers, &self.named(headers, COOKIE)).is_some_and(|session| !ours(session))
    }

    /// The `Set-Cookie` of a session, if the token is right. It ends with the browser, with the token, and after [`LIFE`](super::session::LIFE).
    pub fn enter(&self, token: &str, headers: &HeaderMap, random: &[u8; 32], now: u64) -> Option<String> {
        let (_, key) = self.key_of(token)?;
        Some(self.cookie(headers, COOKIE, &key.session(random, now), "Lax"))
    }

    /// Ends the session: here at once, and by the `Set-Cookie` in the browser.
    pub fn leave(&self, headers: &HeaderMap, now: u64) -> String {
        if let (Some((_, _, end)), Some(session)) = (self.session(headers, now), cookie(headers, &self.named(headers, COOKIE))) {
            let mut left = self.left.lock().expect("no holder of the lock panics");
            left.insert((end, session.to_owned()));
            while left.len() > LEFT || left.first().is_some_and(|(end, _)| *end <= now) {
                left.pop_first();
            }
        }
        self.cookie(headers, COOKIE, "", "Lax; Max-Age=0")
    }

    /// The key of the login's form, and the `Set-Cookie` with the same. It is the browser's own, so that no other page knows it.
    pub fn login(&self, headers: &HeaderMap, random: &[u8; 32]) -> (String, String) {
        let key = self.login_key(headers).map_or_else(|| digits(random), str::to_owned);
        let cookie = self.cookie(headers, LOGIN, &key, "Strict");
        (key, cookie)
    }

    /// The key that the login's form must have.
    pub fn login_key<'h>(&self, headers: &'h HeaderMap) -> Option<&'h str> {
        let key = cookie(headers, &self.named(headers, LOGIN))?;
        (key.len() == 32 && key.bytes().all(|b| b.is_ascii_hexdigit())).then_some(key)
    }

    /// The `Set-Cookie` of a note for the next page. `note`: letters, digits, `-_.~%` and `/` only.
    pub fn tell(&self, headers: &HeaderMap, note: &str) -> String {
        let mut end = note.len().min(NOTE_BYTES);
        // Not inside an escape.
        while !note.is_char_boundary(end) || note[..end].bytes().rev().take(2).any(|b| b == b'%') {
            end -= 1;
        }
        let note = &note[..end];
        self.cookie(headers, NOTE, &format!("{}.{note}", self.own.code("note", note)), "Strict; Max-Age=60")
    }

    /// The note for a page, if a coordinator with this key sealed it: no other site and no other program can put one there.
    pub fn told<'h>(&self, headers: &'h HeaderMap) -> Option<&'h str> {
        let (seal, note) = cookie(headers, &self.named(headers, NOTE))?.split_once('.')?;
        same(seal, &self.own.code("note", note)).then_some(note)
    }

    /// The `Set-Cookie` that deletes the note.
    pub fn forget(&self, headers: &HeaderMap) -> String {
        self.cookie(headers, NOTE, "", "Strict; Max-Age=0")
    }

    /// The key that every form of this client's pages must have: that of its session. `None`: the client may do nothing.
    pub fn form_key(&self, headers: &HeaderMap, now: u64) -> Option<String> {
        if self.is_open() {
            return is_local(headers).then(|| self.own.code("form", "open"));
        }
        if let Some(token) = bearer(headers) {
            return self.key_of(token).map(|(_, key)| key.code("form", "token"));
        }
        let (_, key, _) = self.session(headers, now)?;
        Some(key.code("form", cookie(headers, &self.named(headers, COOKIE))?))
    }

    fn is_https(&self, headers: &HeaderMap) -> bool {
        self.https || is_https(headers)
    }

    /// A cookie's name: another one by https.
    fn named(&self, headers: &HeaderMap, name: &str) -> String {
        format!("{}{name}", if self.is_https(headers) { HOST_ONLY } else { "" })
    }

    fn cookie(&self, headers: &HeaderMap, name: &str, value: &str, same_site: &str) -> String {
        let secure = if self.is_https(headers) { "; Secure" } else { "" };
        format!("{}={value}; Path=/; HttpOnly{secure}; SameSite={same_site}", self.named(headers, name))
    }
}

/// Random bytes of the system.
pub fn secret() -> std::io::Result<[u8; 32]> {
    let mut secret = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut secret)?;
    Ok(secret)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
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

    const NOW: u64 = 1_000_000;

    fn gate() -> Gate {
        Gate::new(Some("operate-token-of-ours"), Some("view-token-of-ours"), b"secret")
    }

    fn with_cookie(set_cookie: &str, more: &[(&'static str, &str)]) -> HeaderMap {
        let value = format!("other=1; {}", set_cookie.split(';').next().expect("a cookie"));
        headers(&[&[("cookie", value.as_str())], more].concat())
    }

    #[test]
    fn a_token_gives_its_role_by_header_and_by_cookie_and_nothing_else_does() {
        let gate = gate();
        let by_header = |token: &str| gate.role(&headers(&[("authorization", &format!("Bearer {token}"))]), NOW);
        assert_eq!(by_header("operate-token-of-ours"), Some(Role::Operate));
        assert_eq!(by_header("view-token-of-ours"), Some(Role::View));
        assert_eq!([by_header("operate-token-of-our"), by_header("")], [None; 2]);
        let by_cookie = |token: &str| {
            let cookie = gate.enter(token, &headers(&[]), &[1; 32], NOW)?;
            assert!(!cookie.contains(token) && cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax"), "{cookie}");
            gate.role(&with_cookie(&cookie, &[]), NOW)
        };
        assert_eq!(
            (by_cookie("operate-token-of-ours"), by_cookie("view-token-of-ours")),
            (Some(Role::Operate), Some(Role::View))
        );
        assert_eq!(by_cookie("wrong"), None);
        assert_eq!(gate.role(&headers(&[("host", "127.0.0.1"), ("cookie", "basin_session=")]), NOW), None);
    }

    #[test]
    fn a_session_ends_with_its_time_its_token_and_its_log_out_and_holds_at_another_coordinator() {
        let (one, other) = (gate(), Gate::new(Some("operate-token-of-ours"), None, b"another secret"));
        let cookie = one.enter("operate-token-of-ours", &headers(&[]), &[1; 32], NOW).expect("a right token");
        let shown = with_cookie(&cookie, &[]);
        let end = NOW + super::super::session::LIFE;
        assert_eq!(one.access(&shown, NOW), Some(Access { role: Role::Operate, until: Some(end) }));
        assert_eq!((one.role(&shown, end - 1), one.role(&shown, end)), (Some(Role::Operate), None));
        assert!(!one.guesses(&shown) && one.guesses(&with_cookie(&cookie.replace("basin_session=1", "basin_session=2"), &[])));
        assert_eq!(other.role(&shown, NOW), Some(Role::Operate));
        assert_eq!(Gate::new(Some("the-next-operate-token"), None, b"secret").role(&shown, NOW), None);
        // Forms and notes of one are taken by the other.
        assert_eq!(one.form_key(&shown, NOW), other.form_key(&shown, NOW));
        assert_eq!(other.told(&with_cookie(&one.tell(&shown, "done/yes"), &[])), Some("done/yes"));
        // Each session has a key of its own, and one that has ended has none.
        let second = one.enter("operate-token-of-ours", &headers(&[]), &[2; 32], NOW).expect("a right token");
        let keys = [&cookie, &second].map(|cookie| one.form_key(&with_cookie(cookie, &[]), NOW).expect("a key"));
        assert_ne!(keys[0], keys[1]);
        assert_eq!(one.form_key(&shown, end), None);
        assert!(one.leave(&shown, NOW).starts_with("basin_session=; "));
        assert_eq!((one.role(&shown, NOW), one.form_key(&shown, NOW)), (None, None));
        assert_eq!(one.role(&with_cookie(&second, &[]), NOW), Some(Role::Operate));
        // What has ended is forgotten.
        one.leave(&with_cookie(&second, &[]), end - 1);
        assert_eq!(one.left.lock().expect("no panic").len(), 2);
        let later = one.enter("view-token-of-ours", &headers(&[]), &[3; 32], end).expect("a right token");
        one.leave(&with_cookie(&later, &[]), end);
        assert_eq!(one.left.lock().expect("no panic").len(), 1);
    }

    #[test]
    fn by_https_cookies_are_secure_and_no_sibling_domain_can_set_them() {
        let https = [("x-forwarded-proto", "https")];
        for (gate, more) in [(gate(), &https[..]), (gate().by_https(true), &[])] {
            let asked = headers(more);
            let cookie = gate.enter("view-token-of-ours", &asked, &[1; 32], NOW).expect("a right token");
            assert!(cookie.starts_with("__Host-basin_session=") && cookie.contains("; Secure"), "{cookie}");
            assert_eq!(gate.role(&with_cookie(&cookie, more), NOW), Some(Role::View));
            // A name without the prefix can come from a sibling domain, or from plain http.
            assert_eq!(gate.role(&with_cookie(cookie.trim_start_matches("__Host-"), more), NOW), None);
            let (key, login) = gate.login(&asked, &[1; 32]);
            assert!(login.starts_with(&format!("__Host-basin_login={key}; ")) && login.contains("; Secure"), "{login}");
            assert!(gate.tell(&asked, "done/x").contains("; Secure") && gate.leave(&asked, NOW).contains("; Secure"));
        }
        assert!(!gate().enter("view-token-of-ours", &headers(&[]), &[1; 32], NOW).expect("a right token").contains("Secure"));
    }

    #[test]
    fn the_key_of_the_login_is_the_browsers_own() {
        let gate = gate();
        let [(first, cookie), (second, _)] = [1, 2].map(|n| gate.login(&headers(&[]), &[n; 32]));
        assert_ne!(first, second);
        assert_eq!(gate.login_key(&with_cookie(&cookie, &[])), Some(first.as_str()));
        // A second tab has the same.
        assert_eq!(gate.login(&with_cookie(&cookie, &[]), &[3; 32]).0, first);
        for strange in ["", "x", "\"><script>", "../../../../../../../../../../.."] {
            assert_eq!(gate.login_key(&with_cookie(&format!("basin_login={strange}"), &[])), None);
        }
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
            assert_eq!(gate.role(&headers(&[("host", host)]), NOW), role, "{host}");
            assert_eq!(gate.form_key(&headers(&[("host", host)]), NOW).is_some(), role.is_some(), "{host}");
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
