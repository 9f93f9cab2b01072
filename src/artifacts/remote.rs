//! Object stores elsewhere: how S3 is reached, and what its errors may say.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::path::Path as ObjectPath;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use super::ArtifactError;

/// Longest time for one request with its body, which has at most one piece of an object.
const REQUEST: Duration = Duration::from_secs(120);

/// Longest time for a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// Longest text of an error, characters.
const LONGEST: usize = 400;

/// A bucket and how to get at it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct S3Spec {
    /// The bucket.
    pub bucket: String,
    /// What the objects' names begin with, as folders parted by slashes; may be empty.
    pub prefix: String,
    /// Another server than Amazon's, such as `http://127.0.0.1:9000`; it is asked with the bucket in the path.
    pub endpoint: Option<String>,
    /// The bucket's region; `us-east-1` when unset.
    pub region: Option<String>,
    /// Name of the key; the machine's role is used when unset.
    pub key_id: Option<String>,
    /// The key.
    pub key: Option<String>,
    /// Token of a temporary key.
    pub token: Option<String>,
}

impl fmt::Debug for S3Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let masked = |secret: &Option<String>| secret.as_ref().map(|_| "***");
        f.debug_struct("S3Spec")
            .field("bucket", &self.bucket)
            .field("prefix", &self.prefix)
            .field("endpoint", &self.endpoint.as_deref().map(clean_urls))
            .field("region", &self.region)
            .field("key_id", &masked(&self.key_id))
            .field("key", &masked(&self.key))
            .field("token", &masked(&self.token))
            .finish()
    }
}

impl S3Spec {
    /// As a person would write it.
    pub(super) fn url(&self) -> String {
        match self.prefix.trim_matches('/') {
            "" => format!("s3://{}", self.bucket),
            prefix => format!("s3://{}/{prefix}", self.bucket),
        }
    }

    /// The store. Opening it asks nothing of the server.
    pub(super) fn open(&self) -> Result<Arc<dyn ObjectStore>, ArtifactError> {
        install_tls();
        let failed = |e: &dyn Error| ArtifactError::Store { what: self.url(), why: describe(e) };
        if self.key_id.is_some() != self.key.is_some() {
            let why = "a key for S3 needs both its name and the key: one of the two is not set".to_owned();
            return Err(ArtifactError::Store { what: self.url(), why });
        }
        let http = self.endpoint.as_ref().is_some_and(|e| e.starts_with("http://"));
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&self.bucket)
            .with_region(self.region.as_deref().unwrap_or("us-east-1"))
            .with_client_options(ClientOptions::new().with_timeout(REQUEST).with_connect_timeout(CONNECT))
            .with_allow_http(http)
            // Servers other than Amazon's seldom answer to the bucket as a host name.
            .with_virtual_hosted_style_request(self.endpoint.is_none())
            // And not all of them know how to delete many objects at once.
            .with_disable_bulk_delete(true)
            .with_retry(RetryConfig {
                backoff: BackoffConfig {
                    init_backoff: Duration::from_millis(100),
                    max_backoff: Duration::from_secs(5),
                    base: 2.0,
                },
                max_retries: 4,
                retry_timeout: Duration::from_secs(60),
            });
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
        }
        if let (Some(id), Some(key)) = (&self.key_id, &self.key) {
            builder = builder.with_access_key_id(id).with_secret_access_key(key);
        }
        if let Some(token) = &self.token {
            builder = builder.with_token(token);
        }
        let bucket = builder.build().map_err(|e| failed(&e))?;
        let prefix = ObjectPath::parse(self.prefix.trim_matches('/')).map_err(|e| failed(&e))?;
        Ok(if prefix.as_ref().is_empty() { Arc::new(bucket) } else { Arc::new(PrefixStore::new(bucket, prefix)) })
    }
}

/// TLS needs one provider of ciphers in the process; whoever was first decides.
fn install_tls() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // An error means that another thread has just done so.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
}

/// An object store's error in one line. A server's answer may repeat what it was sent, temporary tokens too: of an
/// answer in XML only code and message are kept, and of a URL neither the user nor the query.
pub(super) fn describe(e: &dyn Error) -> String {
    let mut text = e.to_string();
    // The outermost error does not always say all.
    let mut inner = e.source();
    while let Some(cause) = inner {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        inner = cause.source();
    }
    let mut said = Vec::new();
    for tag in ["Code", "Message"] {
        if let Some((_, rest)) = text.split_once(&format!("<{tag}>"))
            && let Some((value, _)) = rest.split_once('<')
        {
            said.push(value.to_owned());
        }
    }
    let plain = text.split('<').next().unwrap_or_default().trim().trim_end_matches(':').to_owned();
    said.insert(0, plain);
    let line = said.join(": ").split_whitespace().collect::<Vec<_>>().join(" ");
    clean_urls(&line).chars().take(LONGEST).collect()
}

/// Text whose URLs have neither user nor query.
fn clean_urls(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, url) = rest.split_at(at + 3);
        out.push_str(before);
        let end =
            url.find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | ')')).unwrap_or(url.len());
        let (url, after) = url.split_at(end);
        let bare = url.split(['?', '#']).next().unwrap_or_default();
        let host_end = bare.find('/').unwrap_or(bare.len());
        let (host, path) = bare.split_at(host_end);
        out.push_str(host.rsplit('@').next().unwrap_or_default());
        out.push_str(path);
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn errors_keep_code_and_message_and_no_secret() {
        let answer = "Server returned non-2xx status code: 400 Bad Request: <?xml version=\"1.0\"?><Error>\
                      <Code>ExpiredToken</Code><Message>The provided token has expired.</Message>\
                      <Token-0>hunter2</Token-0></Error>";
        let text = format!(
            "Generic S3 error: Error performing GET http://me:hunter2@s3.test:9/b/k?X-Sig=hunter2 in 3ms - {answer}"
        );
        let said = describe(&std::io::Error::other(text));
        assert_eq!(
            said,
            "Generic S3 error: Error performing GET http://s3.test:9/b/k in 3ms - Server returned non-2xx status code: \
             400 Bad Request: ExpiredToken: The provided token has expired."
        );
    }

    #[test]
    fn urls_lose_user_and_query_wherever_they_stand() {
        assert_eq!(clean_urls("a http://u:p@h/x?y=z, (https://h2/#f) b"), "a http://h/x (https://h2/) b");
        assert_eq!(clean_urls("http://h"), "http://h");
        assert_eq!(clean_urls("none"), "none");
    }

    #[test]
    fn debug_output_masks_keys() {
        let secret = || Some("hunter2".to_owned());
        let spec = S3Spec {
            bucket: "b".to_owned(),
            endpoint: Some("http://u:hunter2@h:9".to_owned()),
            key_id: secret(),
            key: secret(),
            token: secret(),
            ..S3Spec::default()
        };
        let shown = format!("{spec:?}");
        assert!(!shown.contains("hunter2") && shown.contains("http://h:9") && shown.contains("***"), "{shown}");
    }

    #[test]
    fn a_bucket_without_a_whole_key_is_refused() {
        let spec = S3Spec { bucket: "b".to_owned(), key: Some("hunter2".to_owned()), ..S3Spec::default() };
        let error = spec.open().unwrap_err().to_string();
        assert_eq!(error, "s3://b: a key for S3 needs both its name and the key: one of the two is not set");
    }
}
