//! Whether a request that changes something comes from a page of this site. Pure, except for the guard.
//!
//! A browser says where a request comes from, and no page can make it lie: `Sec-Fetch-Site` (to https and localhost) and `Origin`. What says
//! neither is no browser. As `CrossOriginProtection` of Go's net/http.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::service::Refusal;

const SEC_FETCH_SITE: &str = "sec-fetch-site";
const FORWARDED_HOST: &str = "x-forwarded-host";
const FORWARDED_PROTO: &str = "x-forwarded-proto";

/// Refuses changes that pages of other sites ask for, sibling domains included.
pub(super) async fn guard(request: Request, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if reads || is_own(request.headers()) {
        return next.run(request).await;
    }
    let why = "this request comes from a page of another site: open the coordinator's own page. A proxy in front of it must pass Host or \
               X-Forwarded-Host";
    Refusal::Forbidden(why.into()).into_response()
}

fn is_own(headers: &HeaderMap) -> bool {
    if let Some(site) = text(headers, SEC_FETCH_SITE) {
        return matches!(site, "same-origin" | "none");
    }
    let Some(origin) = text(headers, header::ORIGIN) else { return !headers.contains_key(header::ORIGIN) };
    let Some((_, place)) = origin.split_once("://") else { return false };
    // No page can set them.
    let hosts = [text(headers, header::HOST), first(headers, FORWARDED_HOST)];
    hosts.into_iter().flatten().any(|host| plain(host).eq_ignore_ascii_case(plain(place)))
}

/// Whether the client speaks https, to a proxy that says so. A client that lies about it only gets a cookie that its browser refuses.
pub(super) fn is_https(headers: &HeaderMap) -> bool {
    first(headers, FORWARDED_PROTO).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"))
}

fn text(headers: &HeaderMap, name: impl TryInto<HeaderName>) -> Option<&str> {
    headers.get(name.try_into().ok()?)?.to_str().ok()
}

/// What the first of several proxies wrote.
fn first<'a>(headers: &'a HeaderMap, name: &'static str) -> Option<&'a str> {
    text(headers, name)?.split(',').next().map(str::trim)
}

/// A host without a scheme's own port.
fn plain(host: &str) -> &str {
    host.strip_suffix(":443").or(host.strip_suffix(":80")).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_of_this_site_and_programs_may_change_something() {
        let own = |headers: &[(&'static str, &str)]| {
            is_own(
                &headers.iter().map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value"))).collect(),
            )
        };
        let host = ("host", "basin.example");
        for (headers, is) in [
            // A program.
            (vec![host], true),
            (vec![host, ("origin", "https://basin.example")], true),
            (vec![host, ("origin", "https://BASIN.example:443")], true),
            (vec![("host", "127.0.0.1:8470"), ("origin", "http://127.0.0.1:8470")], true),
            // Behind a proxy with a name of its own.
            (
                vec![("host", "coordinator:8470"), ("x-forwarded-host", "basin.example, x"), ("origin", "https://basin.example")],
                true,
            ),
            (vec![("host", "coordinator:8470"), ("sec-fetch-site", "same-origin"), ("origin", "https://basin.example")], true),
            (vec![host, ("sec-fetch-site", "none")], true),
            (vec![host, ("origin", "https://evil.example")], false),
            (vec![host, ("origin", "https://sibling.basin.example")], false),
            (vec![host, ("origin", "https://basin.example.evil.example")], false),
            (vec![host, ("origin", "https://basin.example:8443")], false),
            (vec![host, ("origin", "null")], false),
            (vec![host, ("origin", "")], false),
            (vec![("origin", "https://basin.example")], false),
            (vec![host, ("sec-fetch-site", "same-site"), ("origin", "https://basin.example")], false),
            (vec![host, ("sec-fetch-site", "cross-site")], false),
            (vec![host, ("sec-fetch-site", "new-value")], false),
        ] {
            assert_eq!(own(&headers), is, "{headers:?}");
        }
    }
}
