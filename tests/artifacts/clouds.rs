//! Real object stores: S3 by moto and Azure's by Azurite, reached as users' programs reach them. There is no server for
//! Google's; its XML interface is largely S3's, so moto serves that too, behind a proxy.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use object_store::aws::AmazonS3ConfigKey;
use object_store::azure::AzureConfigKey;
use object_store::gcp::GoogleConfigKey;
use prover_worker::artifacts::{ArtifactError, Artifacts, BucketSpec, Kind};
use prover_worker::config::CATALOGUE;
use prover_worker::model::{Cloud, ContentHash, JobId};

use crate::servers::{ACCOUNT, KEY, answering, as_googles, azurite, s3};
use crate::{conformance, file, names, noise, skip};

fn spec(endpoint: &str, bucket: &str, prefix: &str) -> BucketSpec {
    BucketSpec {
        cloud: Cloud::Amazon,
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
        endpoint: Some(endpoint.to_owned()),
        variables: vec![("AWS_ACCESS_KEY_ID", "test".to_owned()), ("AWS_SECRET_ACCESS_KEY", "hunter2".to_owned())],
    }
}

fn google(endpoint: &str, bucket: &str) -> BucketSpec {
    BucketSpec { cloud: Cloud::Google, variables: Vec::new(), ..spec(endpoint, bucket, "") }
}

fn azure(endpoint: &str, bucket: &str, key: &[u8]) -> BucketSpec {
    let account = ("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT.to_owned());
    let variables = vec![account, ("AZURE_STORAGE_ACCOUNT_KEY", BASE64_STANDARD.encode(key))];
    BucketSpec { cloud: Cloud::Azure, variables, ..spec(endpoint, bucket, "") }
}

/// Tests every use of a bucket, which is empty at first.
async fn keeps_artifacts(bucket: BucketSpec, not_there: &str) {
    let dir = tempfile::tempdir().unwrap();
    let open = |prefix: &str, cache: &str| {
        let spec = BucketSpec { prefix: prefix.to_owned(), ..bucket.clone() };
        Artifacts::bucket(&spec, &dir.path().join(cache), 1 << 30).unwrap()
    };
    conformance::check(&open("some/team", "a")).await;
    conformance::check(&open("", "b")).await;

    // What one machine puts there is visible to another, under the same prefix only.
    let content = noise(40, (40 << 20) + 1);
    let (hash, _) = open("x", "c").import(Kind::Zkey, &file(dir.path(), "big", &content)).await.unwrap();
    assert!(open("x", "d").get(Kind::Zkey, hash).await.unwrap() == content);
    assert_eq!(names(&dir.path().join("d/zkeys")), [hash.to_string()]);
    assert!(matches!(open("y", "e").get(Kind::Zkey, hash).await, Err(ArtifactError::Missing { .. })));

    // A download resumes from what an earlier one left.
    let part = dir.path().join("d/zkeys").join(format!("{hash}.part#left"));
    std::fs::write(&part, &content[..20 << 20]).unwrap();
    std::fs::remove_file(dir.path().join("d/zkeys").join(hash.to_string())).unwrap();
    assert!(open("x", "d").get(Kind::Zkey, hash).await.unwrap() == content);
    assert!(!part.exists());

    // Proofs too, and a missing bucket is reported.
    let job = JobId::new();
    open("x", "c").put_proof(job, "{}", "[]").await.unwrap();
    assert!(open("x", "d").has_proof(job).await.unwrap());
    let nowhere = BucketSpec { bucket: "pw-test-no-such-bucket".to_owned(), ..bucket.clone() };
    let nowhere = Artifacts::bucket(&nowhere, &dir.path().join("f"), 0).unwrap();
    let error = nowhere.put_proof(job, "{}", "[]").await.unwrap_err().to_string();
    let place = format!("{}pw-test-no-such-bucket/proofs/", bucket.cloud.scheme());
    assert!(error.contains(&place) && error.contains(not_there), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_keeps_artifacts() {
    let Some((server, bucket)) = s3() else {
        return skip("a_bucket_keeps_artifacts", "no moto_server: run scripts/moto.sh, or set TEST_S3_URL");
    };
    keeps_artifacts(spec(&server.url, &bucket, ""), "NoSuchBucket").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_by_googles_interface_keeps_artifacts() {
    let Some((server, bucket)) = s3() else {
        let why = "no moto_server: run scripts/moto.sh, or set TEST_S3_URL";
        return skip("a_bucket_by_googles_interface_keeps_artifacts", why);
    };
    let at = as_googles(&server);
    keeps_artifacts(google(&format!("http://{at}"), &bucket), "NoSuchBucket").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_of_azures_keeps_artifacts() {
    let Some((server, container)) = azurite() else {
        return skip("a_container_of_azures_keeps_artifacts", "no Azurite in TEST_NODE_MODULES: see scripts/test.sh");
    };
    keeps_artifacts(azure(&server.url, &container, KEY), "ContainerNotFound").await;

    let dir = tempfile::tempdir().unwrap();
    let wrong = Artifacts::bucket(&azure(&server.url, &container, b"hunter3"), dir.path(), 0).unwrap();
    let error = wrong.put_proof(JobId::new(), "{}", "[]").await.unwrap_err().to_string();
    assert!(error.starts_with("az://") && error.contains("AuthorizationFailure"), "{error}");
    assert!(!error.contains(&BASE64_STANDARD.encode(b"hunter3")), "{error}");
}

/// A configured signature takes precedence over the identity that AKS gives a pod.
#[tokio::test]
async fn a_signature_goes_before_a_clients_identity() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let said = asked.clone();
    let at = answering(move |head| {
        said.lock().unwrap().push(head.to_owned());
        ("404 Not Found", "application/xml", String::new())
    });
    let mut spec = azure(&format!("http://{at}/{ACCOUNT}"), "c", KEY);
    spec.variables[1] = ("AZURE_STORAGE_SAS_TOKEN", "sv=2021-08-06&sig=of-the-container".to_owned());
    for name in ["AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE"] {
        spec.variables.push((name, "/nowhere".to_owned()));
    }
    let dir = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::bucket(&spec, dir.path(), 0).unwrap();
    assert!(!artifacts.contains(Kind::Zkey, ContentHash::of(b"x")).await.unwrap());
    let asked = asked.lock().unwrap();
    assert!(asked[0].contains("/c/zkeys/") && asked[0].contains("sig=of-the-container"), "{}", asked[0]);
}

/// A pod has no key of its own: it presents a token, from a file, to a service that issues one, and signs with that.
#[tokio::test]
async fn a_pods_identity_is_taken() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let said = asked.clone();
    let at = answering(move |head| {
        said.lock().unwrap().push(head.to_owned());
        if head.starts_with("GET /credentials") {
            let keys = r#"{"AccessKeyId": "ASIA1", "SecretAccessKey": "hunter2", "Token": "of-the-session",
                           "Expiration": "2099-01-01T00:00:00Z"}"#;
            return ("200 OK", "application/json", keys.to_owned());
        }
        ("404 Not Found", "application/xml", String::new())
    });
    let dir = tempfile::tempdir().unwrap();
    let token = file(dir.path(), "token", b"token-of-the-pod").display().to_string();
    let of_pod = |variables| BucketSpec { variables, ..spec(&format!("http://{at}"), "b", "") };
    let spec = of_pod(vec![
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("http://{at}/credentials")),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token),
    ]);
    let artifacts = Artifacts::bucket(&spec, dir.path(), 0).unwrap();
    assert!(!artifacts.contains(Kind::Zkey, ContentHash::of(b"x")).await.unwrap());
    {
        let asked = asked.lock().unwrap();
        assert!(asked[0].contains("token-of-the-pod"), "{}", asked[0]);
        assert!(asked[1].contains("/b/zkeys/") && asked[1].contains("Credential=ASIA1/"), "{}", asked[1]);
    }

    // A role's token is exchanged for keys over TLS only; the error about the missing token shows the attempt.
    let spec = of_pod(vec![
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/prover".to_owned()),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/nowhere/token".to_owned()),
    ]);
    let artifacts = Artifacts::bucket(&spec, dir.path(), 0).unwrap();
    let error = artifacts.contains(Kind::Zkey, ContentHash::of(b"x")).await.unwrap_err().to_string();
    assert!(error.contains("/nowhere/token"), "{error}");
}

/// Each variable is a setting of the library with the same name, in whatever version of it.
#[test]
fn the_library_knows_every_variable() {
    let endpoints = ["AWS_ENDPOINT_URL", "AZURE_STORAGE_ENDPOINT"];
    let mut known = 0;
    for name in CATALOGUE.iter().map(|v| v.name).filter(|name| !endpoints.contains(name)) {
        let key = name.to_ascii_lowercase();
        let unknown = match name.split('_').next() {
            Some("AWS") => key.parse::<AmazonS3ConfigKey>().err(),
            Some("AZURE") => key.parse::<AzureConfigKey>().err(),
            Some("GOOGLE") => key.parse::<GoogleConfigKey>().err(),
            _ => continue,
        };
        assert!(unknown.is_none(), "{name}: {unknown:?}");
        known += 1;
    }
    assert!(known > 15, "{known}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_in_time_and_without_secrets() {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let dir = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::bucket(&spec(&format!("http://127.0.0.1:{port}"), "b", "p"), dir.path(), 0).unwrap();
    let error = artifacts.contains(Kind::Zkey, ContentHash::of(b"x")).await.unwrap_err();
    let ArtifactError::Store { what, why } = &error else { panic!("{error}") };
    assert!(what.starts_with("s3://b/p/zkeys/") && why.contains("127.0.0.1"), "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

#[tokio::test]
async fn what_a_server_repeats_of_its_secrets_is_not_told() {
    let expired = "<?xml version=\"1.0\"?><Error><Code>ExpiredToken</Code><Message>The provided token has expired.\
                   </Message><Token-0>hunter2</Token-0><AWSAccessKeyId>hunter2</AWSAccessKeyId></Error>";
    let at = answering(|_| ("400 Bad Request", "application/xml", expired.to_owned()));
    let dir = tempfile::tempdir().unwrap();
    let mut spec = spec(&format!("http://{at}"), "b", "");
    spec.variables.push(("AWS_SESSION_TOKEN", "hunter2".to_owned()));
    let artifacts = Artifacts::bucket(&spec, dir.path(), 0).unwrap();
    let error = artifacts.put_proof(JobId::new(), "{}", "[]").await.unwrap_err();
    assert!(error.to_string().contains("ExpiredToken: The provided token has expired."), "{error}");
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
}

#[tokio::test]
async fn a_server_that_refuses_is_told() {
    let denied = "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>";
    let at = answering(|_| ("403 Forbidden", "application/xml", denied.to_owned()));
    let dir = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::bucket(&spec(&format!("http://{at}"), "b", ""), dir.path(), 0).unwrap();
    let error = artifacts.put_proof(JobId::new(), "{}", "[]").await.unwrap_err().to_string();
    assert!(error.starts_with("s3://b/proofs/") && error.contains("AccessDenied: Access Denied"), "{error}");
}

#[test]
fn prefixes_that_cannot_be_names_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for prefix in ["a//b", "a/../b"] {
        let error = Artifacts::bucket(&spec("http://127.0.0.1:1", "b", prefix), dir.path(), 0).map(|_| ()).unwrap_err();
        assert!(error.to_string().starts_with(&format!("s3://b/{prefix}: ")), "{error}");
    }
}
