//! Passwords are not shown.

/// Returns a URL or other text with the password in `user:password@` and passwords among the parameters replaced by
/// `***`. Malformed URLs are masked more rather than less: the scheme may be missing, and a password may contain any
/// character.
pub fn mask(value: &str) -> String {
    let is_scheme = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '.' | '-'));
    let (scheme, rest) = match value.split_once("://") {
        // Some URL parsers accept more than two slashes.
        Some((scheme, _)) if is_scheme(scheme) => {
            let rest = value[scheme.len() + 1..].trim_start_matches('/');
            value.split_at(value.len() - rest.len())
        }
        _ => ("", value),
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    // The last @ ends the user part: a password may contain an @ and, if it is not encoded, a slash or a question mark.
    // In that case what looks like the port is not a number, or the path contains an @.
    let port = authority.rsplit_once(':').filter(|_| !authority.contains('@')).map(|(_, port)| port);
    let open = match port {
        Some(port) if port.chars().any(|c| !c.is_ascii_digit()) => tail.contains('@'),
        _ => authority.contains(':') && tail.split('?').next().is_some_and(|path| path.contains('@')),
    };
    let (authority, tail) = match rest.rfind('@') {
        Some(at) if open => rest.split_at(rest[at..].find(['/', '?', '#']).map_or(rest.len(), |n| at + n)),
        _ => (authority, tail),
    };
    let tail = mask_parameters(tail);
    let Some((user, host)) = authority.rsplit_once('@') else { return format!("{scheme}{authority}{tail}") };
    let user = user.split_once(':').map_or(user, |(name, _)| name);
    format!("{scheme}{user}:***@{host}{tail}")
}

fn mask_parameters(tail: &str) -> String {
    let Some((path, query)) = tail.split_once('?') else { return tail.to_owned() };
    let masked = query.split('&').map(|p| match p.split_once('=') {
        Some((name, _)) if name.to_ascii_lowercase().contains("password") => format!("{name}=***"),
        _ => p.to_owned(),
    });
    format!("{path}?{}", masked.collect::<Vec<_>>().join("&"))
}
