//! Access control of the API. Requests are checked before any of their body is read.
//!
//! - If there are tokens (`PROVER_API_TOKENS`), a request must present one: as a bearer token (RFC 6750), or as the
//!   password of any user (RFC 7617), which browsers prompt for.
//! - If there are none and the API is on loopback, the `Host` must name this machine: otherwise a web page whose own
//!   host name was made to resolve to this machine could send requests through the user's browser (DNS rebinding). A
//!   browser does not send such a page's requests with a token, so with tokens any name is accepted, such as a proxy's.
//! - In both cases, a request that changes something must not come from a page of another site: a browser sends a POST
//!   without a body to any site, together with a password that it remembers.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::problem::Problem;
use crate::model::ContentHash;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// The challenges of a 401 response. Browsers prompt for a password because of the first one.
const CHALLENGES: [&str; 2] = [r#"Basic realm="prover-worker", charset="UTF-8""#, r#"Bearer realm="prover-worker""#];

/// Who may use the API.
#[derive(Clone)]
pub struct Access {
    loopback: bool,
    /// Hashes of the tokens: the time it takes to compare hashes reveals nothing about the tokens.
    tokens: Arc<[ContentHash]>,
}

impl Access {
    /// Admits clients that present one of `tokens` or, if there are none, every client that can reach the API.
    /// `loopback` says that only this machine can reach it.
    pub fn new<'a>(loopback: bool, tokens: impl IntoIterator<Item = &'a str>) -> Self {
        Self { loopback, tokens: tokens.into_iter().map(|t| ContentHash::of(t.as_bytes())).collect() }
    }

    /// Whether other machines can reach the API without a token.
    pub fn is_open(&self) -> bool {
        !self.loopback && self.tokens.is_empty()
    }

    /// Restricts the routes to clients that have access.
    pub(super) fn guard<S: Clone + Send + Sync + 'static>(self, routes: Router<S>) -> Router<S> {
        routes.layer(middleware::from_fn_with_state(self, admit))
    }

    /// Returns the response to a request that is refused, or `None` if it is admitted.
    fn refusal(&self, request: &Request) -> Option<Response> {
        let headers = request.headers();
        let forbidden = |why: &str| Some(Problem::new(StatusCode::FORBIDDEN, why).into_response());
        if self.loopback && self.tokens.is_empty() && !is_for_this_machine(headers) {
            return forbidden("this API is for this machine only; call it as localhost or by its loopback address");
        }
        if !request.method().is_safe() && from_another_site(headers) {
            return forbidden("pages of other sites cannot use this API");
        }
        if self.tokens.is_empty() {
            return None;
        }
        match token(headers) {
            Some(token) if self.tokens.contains(&ContentHash::of(&token)) => None,
            Some(_) => Some(unauthorized("the token is not one of PROVER_API_TOKENS")),
            None => Some(unauthorized("expected the header Authorization with Bearer TOKEN, or a TOKEN as password")),
        }
    }
}

async fn admit(State(access): State<Access>, request: Request, next: Next) -> Response {
    match access.refusal(&request) {
        Some(refusal) => refusal,
        None => next.run(request).await,
    }
}

fn unauthorized(why: &str) -> Response {
    let mut answer = Problem::new(StatusCode::UNAUTHORIZED, why).into_response();
    for challenge in CHALLENGES {
        answer.headers_mut().append(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    }
    answer
}

/// Returns the token that a request presents.
fn token(headers: &HeaderMap) -> Option<Vec<u8>> {
    let (scheme, value) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(value.trim().as_bytes().to_vec());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = STANDARD.decode(value.trim()).ok()?;
    let colon = pair.iter().position(|b| *b == b':')?;
    Some(pair[colon + 1..].to_vec())
}

/// Whether the `Host` names this machine. Clients other than browsers may omit it.
fn is_for_this_machine(headers: &HeaderMap) -> bool {
    headers.get(header::HOST).is_none_or(|host| names_this_machine(host.to_str().unwrap_or("?")))
}

fn names_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Whether a page of another site made the browser send this request, according to `Sec-Fetch-Site` or, in older
/// browsers, `Origin`. Other clients send neither.
fn from_another_site(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(|v: &HeaderValue| v.to_str().unwrap_or("?"));
    match (text(SEC_FETCH_SITE), text(header::ORIGIN)) {
        (Some(site), _) => !matches!(site, "same-origin" | "none"),
        (None, Some(origin)) => origin.split_once("://").map(|(_, host)| host) != text(header::HOST),
        (None, None) => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let header = |(k, v): &(&'static str, &str)| (HeaderName::from_static(k), HeaderValue::from_str(v).unwrap());
        pairs.iter().map(header).collect()
    }

    #[test]
    fn hosts_of_this_machine_are_told_from_others() {
        for host in ["localhost", "LocalHost:9180", "127.0.0.1:1", "127.9.9.9", "[::1]:80", "[::1]"] {
            assert!(names_this_machine(host), "{host}");
        }
        for host in ["example.org", "127.0.0.1.example.org", "localhost.example.org:80", "10.0.0.1", "?", ""] {
            assert!(!names_this_machine(host), "{host}");
        }
    }

    #[test]
    fn requests_of_other_sites_are_told_from_others() {
        let foreign = |pairs: &[(&'static str, &str)]| from_another_site(&headers(pairs));
        let host = ("host", "localhost:9180");
        for own in [&[host][..], &[host, ("origin", "http://localhost:9180")]] {
            assert!(!foreign(own), "{own:?}");
        }
        // Also behind a proxy with another name.
        assert!(!foreign(&[host, ("origin", "https://prover.example"), ("sec-fetch-site", "same-origin")]));
        for other in ["http://localhost:3000", "https://example.org", "null", "?"] {
            assert!(foreign(&[host, ("origin", other)]), "{other}");
        }
        for site in ["cross-site", "same-site", "?"] {
            assert!(foreign(&[host, ("origin", "http://localhost:9180"), ("sec-fetch-site", site)]), "{site}");
        }
    }

    #[test]
    fn tokens_are_read_as_bearer_and_as_password() {
        let token = |value: &str| token(&headers(&[("authorization", value)])).map(|t| String::from_utf8(t).unwrap());
        let basic = |pair: &str| token(&format!("Basic {}", STANDARD.encode(pair)));
        let found = Some("s3cret:token".to_owned());
        for value in ["Bearer s3cret:token", "bearer  s3cret:token ", "BEARER s3cret:token"] {
            assert_eq!(token(value), found, "{value}");
        }
        assert_eq!((basic("me:s3cret:token"), basic(":s3cret:token")), (found.clone(), found));
        // An empty token never matches: configured tokens are at least 16 characters long.
        assert_eq!(basic("me:"), Some(String::new()));
        for value in ["", "Bearer", "s3cret", "Digest s3cret", "Basic ?", "Basic", "Basic czNjcmV0"] {
            assert_eq!(token(value), None, "{value}");
        }
    }

    #[test]
    fn who_may_ask_goes_by_loopback_and_tokens() {
        const TOKENS: [&str; 2] = ["0123456789abcdef", "fedcba9876543210"];
        let ask = |access: &Access, method: &str, pairs: &[(&'static str, &str)]| {
            let mut request = Request::builder().method(method).body(axum::body::Body::empty()).unwrap();
            *request.headers_mut() = headers(pairs);
            access.refusal(&request).map(|r| r.status().as_u16())
        };
        let [open, local] = [false, true].map(|loopback| Access::new(loopback, []));
        let with_tokens = [false, true].map(|loopback| Access::new(loopback, TOKENS));
        let (named, known) = (("host", "prover.example"), ("authorization", "Bearer fedcba9876543210"));
        let page = ("origin", "https://evil.example");
        assert_eq!((ask(&open, "GET", &[named]), ask(&local, "GET", &[named])), (None, Some(403)));
        assert_eq!((ask(&open, "POST", &[named, page]), ask(&open, "GET", &[named, page])), (Some(403), None));
        for access in &with_tokens {
            assert_eq!(ask(access, "GET", &[named, known]), None);
            assert_eq!(ask(access, "GET", &[("host", "localhost")]), Some(401));
            for wrong in ["Bearer fedcba987654321", "Bearer fedcba9876543210x", "Bearer ", "Basic OmZlZGNiYQ=="] {
                assert_eq!(ask(access, "GET", &[named, ("authorization", wrong)]), Some(401), "{wrong}");
            }
            // A browser sends a remembered password.
            assert_eq!(ask(access, "POST", &[named, known, page]), Some(403));
        }
        assert_eq!([&open, &local].map(Access::is_open), [true, false]);
        assert!(with_tokens.iter().all(|a| !a.is_open()));
    }
}
