//! Remote object stores: how to connect to them, and how to report their errors.

use std::error::Error;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::{GcpCredential, GoogleCloudStorageBuilder};
use object_store::path::Path as ObjectPath;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig, StaticCredentialProvider};

use super::ArtifactError;
use crate::model::Cloud;

/// Longest time for one request with its body, which is at most one piece of an object.
const REQUEST: Duration = Duration::from_secs(120);

/// Longest time to establish a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// Longest text of an error, in characters.
const MAX_ERROR_CHARS: usize = 400;

/// A bucket and how to access it.
#[derive(Clone, PartialEq, Eq)]
pub struct BucketSpec {
    /// The cloud.
    pub cloud: Cloud,
    /// The bucket, or container.
    pub bucket: String,
    /// Prefix of the objects' names, as folders separated by slashes; may be empty.
    pub prefix: String,
    /// A server other than the cloud's own, such as `http://127.0.0.1:9000`. One that stands in for S3 is addressed
    /// with the bucket in the path, one for Google without credentials.
    pub endpoint: Option<String>,
    /// Region, account, keys, tokens: the variables that the cloud's own tools read, by name. Without keys, those
    /// available to the machine, its container or its pod are requested.
    pub variables: Vec<(&'static str, String)>,
}

impl fmt::Debug for BucketSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BucketSpec")
            .field("url", &self.url())
            .field("endpoint", &self.endpoint.as_deref().map(clean_urls))
            .field("variables", &self.variables.iter().map(|(name, _)| *name).collect::<Vec<_>>())
            .finish()
    }
}

impl BucketSpec {
    /// Returns the URL as a user would write it.
    pub(super) fn url(&self) -> String {
        match self.prefix.trim_matches('/') {
            "" => format!("{}{}", self.cloud.scheme(), self.bucket),
            prefix => format!("{}{}/{prefix}", self.cloud.scheme(), self.bucket),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.variables.iter().any(|(n, _)| *n == name)
    }

    /// Opens the store. Makes no request to the server.
    pub(super) fn open(&self) -> Result<Arc<dyn ObjectStore>, ArtifactError> {
        install_tls();
        let failed = |e: &dyn Error| ArtifactError::Store { what: self.url(), why: describe(e) };
        let bucket = match self.cloud {
            Cloud::Amazon => self.amazon(),
            Cloud::Google => self.google(),
            Cloud::Azure => self.azure(),
        };
        let bucket = bucket.map_err(|why| match why {
            Unfit::Setting(why) => ArtifactError::Store { what: self.url(), why },
            Unfit::Refused(e) => failed(&e),
        })?;
        let prefix = ObjectPath::parse(self.prefix.trim_matches('/')).map_err(|e| failed(&e))?;
        Ok(if prefix.as_ref().is_empty() { bucket } else { Arc::new(PrefixStore::new(bucket, prefix)) })
    }

    /// Applies the variables as settings of the library, whose names are those of the variables in lower case.
    fn settings<K: FromStr<Err = object_store::Error>, B>(
        &self,
        builder: B,
        set: impl Fn(B, K, &str) -> B,
    ) -> Result<B, Unfit> {
        self.variables.iter().try_fold(builder, |builder, (name, value)| {
            let key = name.to_ascii_lowercase().parse().map_err(Unfit::Refused)?;
            Ok(set(builder, key, value))
        })
    }

    fn amazon(&self) -> Result<Arc<dyn ObjectStore>, Unfit> {
        if self.has("AWS_ACCESS_KEY_ID") != self.has("AWS_SECRET_ACCESS_KEY") {
            let why = "a key for S3 needs both its name and the key: one of AWS_ACCESS_KEY_ID and \
                       AWS_SECRET_ACCESS_KEY is not set";
            return Err(Unfit::Setting(why.to_owned()));
        }
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&self.bucket)
            .with_region("us-east-1")
            .with_client_options(self.client())
            // Servers other than Amazon's seldom support the bucket as a host name.
            .with_virtual_hosted_style_request(self.endpoint.is_none())
            // Not all of them support deleting many objects at once.
            .with_disable_bulk_delete(true)
            .with_retry(retries());
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
        }
        let builder = self.settings(builder, |b, key, value| b.with_config(key, value))?;
        Ok(Arc::new(builder.build()?))
    }

    fn google(&self) -> Result<Arc<dyn ObjectStore>, Unfit> {
        let mut builder = GoogleCloudStorageBuilder::new()
            .with_bucket_name(&self.bucket)
            .with_client_options(self.client())
            .with_retry(retries());
        if let Some(endpoint) = &self.endpoint {
            let nobody = Arc::new(StaticCredentialProvider::new(GcpCredential { bearer: String::new() }));
            builder = builder.with_base_url(endpoint.trim_end_matches('/')).with_credentials(nobody);
            builder = builder.with_skip_signature(true);
        } else {
            builder = self.settings(builder, |b, key, value| b.with_config(key, value))?;
        }
        Ok(Arc::new(builder.build()?))
    }

    fn azure(&self) -> Result<Arc<dyn ObjectStore>, Unfit> {
        if !self.has("AZURE_STORAGE_ACCOUNT_NAME") {
            return Err(Unfit::Setting(
                "AZURE_STORAGE_ACCOUNT_NAME must name the storage account of the container".to_owned(),
            ));
        }
        let mut builder = MicrosoftAzureBuilder::new()
            .with_container_name(&self.bucket)
            .with_client_options(self.client())
            .with_retry(retries());
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
        }
        let mut builder = self.settings(builder, |b, key, value| b.with_config(key, value))?;
        // AKS sets the variables of a client identity in every pod that has one. Explicit settings take precedence.
        if self.has("AZURE_STORAGE_SAS_TOKEN") && !self.has("AZURE_STORAGE_ACCOUNT_KEY") {
            builder = builder.with_credential_type("sas_token");
        }
        Ok(Arc::new(builder.build()?))
    }

    fn client(&self) -> ClientOptions {
        let http = self.endpoint.as_ref().is_some_and(|e| e.starts_with("http://"));
        ClientOptions::new().with_timeout(REQUEST).with_connect_timeout(CONNECT).with_allow_http(http)
    }
}

/// Why a store cannot be opened.
enum Unfit {
    Setting(String),
    Refused(object_store::Error),
}

impl From<object_store::Error> for Unfit {
    fn from(e: object_store::Error) -> Self {
        Self::Refused(e)
    }
}

fn retries() -> RetryConfig {
    let backoff =
        BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(5), base: 2.0 };
    RetryConfig { backoff, max_retries: 4, retry_timeout: Duration::from_secs(60) }
}

/// Installs the process's TLS provider, unless another part of the process did.
fn install_tls() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // An error means that another thread has just done so.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
}

/// Describes an object store's error in one line. A server's answer may repeat what it was sent, including temporary
/// tokens: of an answer in XML only the code and the message are kept, and URLs lose user and query.
pub(super) fn describe(e: &dyn Error) -> String {
    let mut text = e.to_string();
    // The outermost error does not always include its causes.
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
    clean_urls(&line).chars().take(MAX_ERROR_CHARS).collect()
}

/// Removes user and query from the URLs in a text.
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

    fn spec(cloud: Cloud, variables: &[(&'static str, &str)]) -> BucketSpec {
        let variables = variables.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        BucketSpec { cloud, bucket: "b".to_owned(), prefix: String::new(), endpoint: None, variables }
    }

    #[test]
    fn debug_output_masks_what_gives_access() {
        let endpoint = Some("http://u:hunter2@h:9".to_owned());
        let shown =
            format!("{:?}", BucketSpec { endpoint, ..spec(Cloud::Amazon, &[("AWS_SESSION_TOKEN", "hunter2")]) });
        assert!(
            !shown.contains("hunter2") && shown.contains("http://h:9") && shown.contains("AWS_SESSION_TOKEN"),
            "{shown}"
        );
    }

    #[test]
    fn what_is_missing_is_named_and_what_is_wrong_is_not_repeated() {
        let said = |cloud, variables: &[_]| spec(cloud, variables).open().map(|_| ()).unwrap_err().to_string();
        let error = said(Cloud::Amazon, &[("AWS_SECRET_ACCESS_KEY", "hunter2")]);
        assert!(error.starts_with("s3://b: a key for S3 needs both its name and the key"), "{error}");
        let error = said(Cloud::Azure, &[("AZURE_STORAGE_ACCOUNT_KEY", "aHVudGVyMg==")]);
        assert!(error.starts_with("az://b: ") && error.contains("AZURE_STORAGE_ACCOUNT_NAME"), "{error}");
        let account = ("AZURE_STORAGE_ACCOUNT_NAME", "a");
        for wrong in [("AZURE_STORAGE_ACCOUNT_KEY", "hunter2!"), ("AZURE_STORAGE_SAS_TOKEN", "hunter2")] {
            let error = said(Cloud::Azure, &[account, wrong]);
            assert!(error.starts_with("az://b: ") && !error.contains("hunter2"), "{error}");
        }
        let error = said(Cloud::Google, &[("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")]);
        assert!(error.starts_with("gs://b: ") && error.contains("/nowhere/key.json"), "{error}");
    }
}
