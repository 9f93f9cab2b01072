//! Checks that a server is suitable.

use std::time::Duration;

use redis::cmd;

use super::QueueError;
use super::link::Link;

const MIN_VERSION: (u32, u32) = (6, 2);

/// Rejects a server that is too old or a cluster; warns if it may evict keys.
pub(super) async fn check(link: &Link) -> Result<(), QueueError> {
    match link.command::<String>(cmd("INFO").arg("server"), Duration::ZERO).await {
        Ok(info) => fit(&info)?,
        Err(QueueError::NotPermitted(why)) => {
            tracing::warn!("the queue's server does not report its version ({why}); it must be Redis 6.2 or later");
        }
        Err(e) => return Err(e),
    }
    if let Some(policy) = evicting(link).await {
        tracing::warn!(
            "the queue's server evicts keys when its memory is full (maxmemory-policy {policy}, not noeviction): jobs \
             survive that, since the store has them, but may be delayed, and messages not yet taken are lost"
        );
    }
    Ok(())
}

/// Checks the output of `INFO server`. Valkey and other compatible servers report the Redis version they are compatible
/// with.
fn fit(info: &str) -> Result<(), QueueError> {
    let field = |name: &str| info.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    if field("redis_mode") == Some("cluster") {
        return Err(QueueError::Unfit("expected a single primary, got a Redis Cluster".into()));
    }
    let got = field("redis_version").unwrap_or("no version");
    match version(got) {
        Some(v) if v >= MIN_VERSION => Ok(()),
        _ => Err(QueueError::Unfit(format!(
            "expected Redis {}.{} or later, or Valkey; got {}",
            MIN_VERSION.0,
            MIN_VERSION.1,
            got.chars().take(40).collect::<String>()
        ))),
    }
}

fn version(s: &str) -> Option<(u32, u32)> {
    let mut parts = s.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Returns the policy by which the server evicts keys, if it may.
async fn evicting(link: &Link) -> Option<String> {
    let mut get = cmd("CONFIG");
    get.arg("GET").arg("maxmemory*");
    if let Ok(pairs) = link.command::<std::collections::HashMap<String, String>>(&get, Duration::ZERO).await {
        return evicts(pairs.get("maxmemory")?, pairs.get("maxmemory-policy")?);
    }
    // CONFIG is often forbidden.
    let info = link.command::<String>(cmd("INFO").arg("memory"), Duration::ZERO).await.ok()?;
    let field = |name: &str| info.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    evicts(field("maxmemory")?, field("maxmemory_policy")?)
}

fn evicts(limit: &str, policy: &str) -> Option<String> {
    (limit != "0" && policy != "noeviction").then(|| policy.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn versions_from_6_2_will_do() {
        for version in ["6.2.0", "6.2.14", "7.0.15", "7.4.1", "8.0.2", "8.2.0-rc1", "10.0.0", "6.2"] {
            let info = format!("# Server\r\nredis_version:{version}\r\nredis_git_sha1:0\r\nredis_mode:standalone\r\n");
            assert!(fit(&info).is_ok(), "{version}");
        }
        let valkey = "# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.0\r\n";
        assert!(fit(valkey).is_ok());
        for version in ["6.0.16", "5.0.7", "2.8.0", "six", "", "7"] {
            let info = format!("# Server\r\nredis_version:{version}\r\n");
            let error = fit(&info).unwrap_err();
            assert!(matches!(error, QueueError::Unfit(_)), "{version}");
            assert!(error.to_string().contains(version), "{error}");
        }
        assert!(fit("").is_err());
        assert!(fit("redis_version:7.0.0\r\nredis_mode:cluster\r\n").is_err());
    }

    #[test]
    fn only_a_full_memory_evicts() {
        assert_eq!(evicts("0", "allkeys-lru"), None);
        assert_eq!(evicts("1000", "noeviction"), None);
        assert_eq!(evicts("1000", "allkeys-lru").as_deref(), Some("allkeys-lru"));
    }
}
