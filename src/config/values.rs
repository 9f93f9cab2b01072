//! The values that variables accept. A parser returns `None` for any other.

use std::path::PathBuf;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;

use super::{ArtifactsUrl, Database, Secret};
use crate::model::Cloud;

/// Parses `postgres://…`, `postgresql://…`, `sqlite://PATH` or `sqlite:PATH`. An error says what was expected.
pub(super) fn database_url(url: &str) -> Result<Database, &'static str> {
    let lower = url.to_ascii_lowercase();
    if lower.starts_with("postgres://") || lower.starts_with("postgresql://") {
        return Ok(Database::Postgres(Secret(url.to_owned())));
    }
    let rest = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:"));
    match rest.unwrap_or_default() {
        "" => Err("sqlite://PATH or postgres://USER:PASSWORD@HOST:PORT/NAME"),
        // The store has one mode only, the safe one; ignoring parameters would suggest that they took effect.
        path if path.contains('?') => Err("sqlite://PATH without parameters"),
        ":memory:" => Err("sqlite://PATH of a file: jobs must outlive the process"),
        path => Ok(Database::Sqlite(PathBuf::from(path))),
    }
}

pub(super) fn redis_url(s: &str) -> Option<Secret> {
    ["redis://", "rediss://", "redis+unix://", "unix://"]
        .iter()
        .any(|scheme| s.starts_with(scheme))
        .then(|| Secret(s.to_owned()))
}

pub(super) fn http_url(s: &str) -> Option<String> {
    (s.starts_with("http://") || s.starts_with("https://")).then(|| s.to_owned())
}

pub(super) fn artifacts_url(s: &str) -> Option<ArtifactsUrl> {
    if let Some(path) = s.strip_prefix("file://") {
        return path.starts_with('/').then(|| ArtifactsUrl::Folder(PathBuf::from(path)));
    }
    let (cloud, rest) = Cloud::ALL.iter().find_map(|cloud| Some((*cloud, s.strip_prefix(cloud.scheme())?)))?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let prefix = prefix.trim_matches('/').to_owned();
    // No cloud permits other characters in these names; text with others is something else, such as a key before the
    // name.
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '$');
    let sound = !bucket.is_empty() && bucket.chars().all(is_name);
    sound.then(|| ArtifactsUrl::Bucket { cloud, bucket: bucket.to_owned(), prefix })
}

/// Parses a host or a URL: Google's own libraries accept either.
pub(super) fn host_or_url(s: &str) -> Option<String> {
    let is_host = |s: &str| !s.contains("://") && !s.contains(char::is_whitespace);
    http_url(s).or_else(|| is_host(s).then(|| format!("http://{s}")))
}

pub(super) fn queue_name(s: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (s.len() <= 64 && s.chars().all(plain)).then(|| s.to_owned())
}

/// Parses a filter in tracing's syntax. A bare word must be a level: the syntax takes any other word for the name of a
/// module, so a misspelt level would be ignored silently.
pub(super) fn log_filter(s: &str) -> Option<String> {
    let level = |w: &str| matches!(w, "off" | "error" | "warn" | "info" | "debug" | "trace");
    let lower = s.to_ascii_lowercase();
    if level(&lower) {
        return Some(lower);
    }
    let parts_ok = s.split(',').all(|p| p.contains('=') || level(&p.trim().to_ascii_lowercase()));
    (parts_ok && EnvFilter::try_new(s).is_ok()).then(|| s.to_owned())
}

/// Parses a value, or `off` as `Some(None)`.
pub(super) fn or_off<T: FromStr>(s: &str) -> Option<Option<T>> {
    if s == "off" { Some(None) } else { s.parse().ok().map(Some) }
}

/// Splits a list into tokens. An error is the position, from 1, of the first invalid one. A token consists of the
/// characters that a bearer token may have in a header (RFC 6750), and its minimum length makes it hard to guess.
pub(super) fn split_tokens(list: &Secret) -> Result<Vec<Secret>, usize> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '~' | '+' | '/' | '=' | '-');
    let token = |(n, t): (usize, &str)| {
        let sound = (16..=256).contains(&t.len()) && t.chars().all(plain);
        if sound { Ok(Secret(t.to_owned())) } else { Err(n + 1) }
    };
    list.reveal().split(',').map(str::trim).enumerate().map(token).collect()
}

/// Parses a type of ICICLE device and returns it in capitals, as ICICLE spells it; `auto` is `Some(None)`.
pub(super) fn icicle_device(s: &str) -> Option<Option<String>> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    match s {
        "auto" => Some(None),
        s => (s.len() < 64 && s.chars().all(plain)).then(|| Some(s.to_ascii_uppercase())),
    }
}

/// Parses a number of bytes such as `4096`, `512M` or `8G`; the units are powers of 1024.
pub(super) fn byte_count(s: &str) -> Option<u64> {
    let digits = s.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match s[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "K" | "KB" | "KIB" => 1 << 10,
        "M" | "MB" | "MIB" => 1 << 20,
        "G" | "GB" | "GIB" => 1 << 30,
        "T" | "TB" | "TIB" => 1u64 << 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}
