//! The live page, at `/` of the API: queue, devices, circuits and jobs, for people.
//!
//! It consists of three files, compiled into the program, which fetch their data from the same server's API and nothing
//! from elsewhere. Names, errors and ids are untrusted, so the page inserts them as text, never as markup; in addition,
//! the policy below makes browsers refuse injected scripts.

use axum::Router;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::IntoResponse;
use axum::routing::get;

use super::App;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) fn routes() -> Router<App> {
    let file = |kind: &'static str, text: &'static str| get(async move || shown(kind, text));
    Router::new()
        .route("/", file("text/html; charset=utf-8", include_str!("page/index.html")))
        .route("/page.css", file("text/css; charset=utf-8", include_str!("page/page.css")))
        .route("/page.js", file("text/javascript; charset=utf-8", include_str!("page/page.js")))
}

fn shown(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let fixed = |name: HeaderName, value| (name, HeaderValue::from_static(value));
    let headers = [
        fixed(header::CONTENT_TYPE, kind),
        fixed(header::CONTENT_SECURITY_POLICY, POLICY),
        fixed(header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        fixed(header::REFERRER_POLICY, "no-referrer"),
        // Another version of the program may have other files.
        fixed(header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text)
}
