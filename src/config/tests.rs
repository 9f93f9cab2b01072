#![allow(clippy::unwrap_used)]
use super::values::byte_count;
use super::*;
use std::collections::HashMap;

fn with(vars: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let mut map: HashMap<&str, &str> = vars.iter().copied().collect();
    map.entry("PROVER_DATA_DIR").or_insert("/data");
    Config::from_lookup(|n| map.get(n).map(|v| (*v).to_owned()))
}

fn error(name: &str, value: &str) -> String {
    with(&[(name, value)]).unwrap_err().to_string()
}

#[test]
fn defaults_are_the_documented_ones() {
    let c = with(&[]).unwrap();
    assert_eq!(c.database, Database::Sqlite("/data/prover-worker.db".into()));
    assert_eq!(c.queue_name, "prove");
    assert_eq!(c.concurrency, None);
    assert_eq!((c.exit_on_dead, c.grace), (ExitOnDead::All, Duration::from_secs(25)));
    assert_eq!(c.log_level, "info,object_store=warn");
    assert_eq!(c.metrics_addr, Some("0.0.0.0:9101".parse().unwrap()));
    assert_eq!(c.lease, Duration::from_secs(30));
    assert_eq!(c.max_input_bytes, 64 << 20);
    assert!(c.cuda_graphs && !with(&[("PROVER_CUDA_GRAPHS", "off")]).unwrap().cuda_graphs);
    let api = c.api_addr.unwrap();
    assert!(api.ip().is_loopback(), "an API without a password stays on loopback, got {api}");
}

/// Checks the defaults in the catalogue that are values, not descriptions.
#[test]
fn setting_a_variable_to_its_default_changes_nothing() {
    let unset = Config { settings: Vec::new(), ..with(&[]).unwrap() };
    // Config leaves this one to the backend, which knows where ICICLE is installed.
    let is_literal =
        |name, default: &str| name != "ICICLE_LIB_DIR" && default != "none" && !default.contains([' ', '\'']);
    let mut checked = 0;
    for v in CATALOGUE {
        // A value may be followed by a description.
        let default = v.default.split_once(": ").map_or(v.default, |(value, _)| value);
        if !is_literal(v.name, default) {
            continue;
        }
        let set = with(&[(v.name, default)]).unwrap_or_else(|e| panic!("{e}"));
        assert!(Config { settings: Vec::new(), ..set } == unset, "{}={default}", v.name);
        checked += 1;
    }
    assert!(checked > 25, "{checked}");
}

#[test]
fn every_catalogued_variable_is_read_and_no_other() {
    let seen = std::cell::RefCell::new(Vec::new());
    let c = Config::from_lookup(|n| {
        seen.borrow_mut().push(n.to_owned());
        (n == "PROVER_DATA_DIR").then(|| "/data".to_owned())
    })
    .unwrap();
    let mut seen = seen.into_inner();
    let mut listed: Vec<String> = CATALOGUE.iter().map(|v| v.name.to_owned()).collect();
    seen.sort();
    listed.sort();
    assert_eq!(seen, listed);
    assert_eq!(c.settings().len(), CATALOGUE.len());
    assert!(CATALOGUE.iter().all(|v| markdown_table().contains(v.name)));
}

#[test]
fn dead_devices_are_enough_to_end_for_as_it_is_set() {
    let exit = |value| with(&[("PROVER_EXIT_ON_DEAD_DEVICE", value)]).unwrap().exit_on_dead;
    for (value, expected) in [("all", [false, false, true]), ("any", [false, true, true]), ("off", [false; 3])] {
        assert_eq!([0, 1, 2].map(|dead| exit(value).is_reached(dead, 2)), expected, "{value}");
        assert!(!exit(value).is_reached(0, 0), "a processor alone, {value}");
    }
    assert!(error("PROVER_EXIT_ON_DEAD_DEVICE", "on").contains("expected all, any or off"));
}

#[test]
fn a_wrong_value_names_variable_expected_and_got() {
    assert_eq!(
        error("WORKER_CONCURRENCY", "many"),
        r#"WORKER_CONCURRENCY: expected a whole number from 1 to 1024, got "many""#
    );
    assert_eq!(error("PROVER_BACKEND", "gpu"), r#"PROVER_BACKEND: expected auto, cuda, icicle or cpu, got "gpu""#);
    assert_eq!(error("PROVER_CPU", "sse2"), r#"PROVER_CPU: expected auto, avx512ifma, avx2 or portable, got "sse2""#);
    assert_eq!(error("PROVER_CUDA_GRAPHS", "on"), r#"PROVER_CUDA_GRAPHS: expected auto or off, got "on""#);
    assert_eq!(
        error("PROVER_ICICLE_DEVICE", "a GPU"),
        r#"PROVER_ICICLE_DEVICE: expected auto, or a type such as CUDA or METAL, got "a GPU""#
    );
    assert!(error("WORKER_CONCURRENCY", "0").contains("1 to 1024"));
    assert!(error("METRICS_PORT", "70000").contains("65535"));
    assert!(error("LOG_LEVEL", "inof").contains("debug"));
    assert!(error("PROVER_MAX_INPUT_BYTES", "2G").contains("1G"));
    assert!(error("DATABASE_URL", "mysql://x").contains("sqlite://PATH"));
    assert!(error("DATABASE_URL", "sqlite::memory:").contains("file"));
    assert!(error("DATABASE_URL", "sqlite:///x.db?mode=ro").contains("without parameters"));
}

#[test]
fn a_type_of_icicles_devices_is_in_capitals_and_any_will_do_unless_one_is_named() {
    let kind = |value| with(&[("PROVER_ICICLE_DEVICE", value)]).unwrap().icicle.device;
    assert_eq!((kind("metal"), kind("auto"), with(&[]).unwrap().icicle.device), (Some("METAL".into()), None, None));
    let there = with(&[("ICICLE_LIB_DIR", "/i/lib"), ("ICICLE_BACKEND_INSTALL_DIR", "/i/backends")]).unwrap();
    let folders = (Some("/i/lib".into()), Some("/i/backends".into()));
    assert_eq!((there.icicle.libraries, there.icicle.backends), folders);
}

const POSTGRES: &str = "postgres://me:hunter2@db/jobs?sslmode=require";

#[test]
fn a_fleet_is_read_and_its_secrets_are_not_shown() {
    let c = with(&[
        ("DATABASE_URL", POSTGRES),
        ("REDIS_URL", "rediss://me:hunter2@r:6379/1"),
        ("PROVER_ENCRYPTION_KEYS", "k:hunter2"),
        ("AWS_SECRET_ACCESS_KEY", "hunter2"),
        ("AWS_SESSION_TOKEN", "hunter2"),
        ("PROVER_ARTIFACTS_URL", "s3://bucket/some/prefix/"),
        ("PROVER_RETENTION_SECS", "3600"),
        ("PROVER_QUEUE_TIMEOUT_SECS", "off"),
        ("PROVER_CPU_OVERFLOW", "on"),
    ])
    .unwrap();
    let Database::Postgres(url) = &c.database else { panic!("expected Postgres, got {}", c.database) };
    assert_eq!(url.reveal(), POSTGRES);
    assert_eq!(c.redis.as_ref().map(Secret::reveal), Some("rediss://me:hunter2@r:6379/1"));
    let (bucket, prefix) = ("bucket".to_owned(), "some/prefix".to_owned());
    assert_eq!(c.artifacts, Some(ArtifactsUrl::Bucket { cloud: Cloud::Amazon, bucket, prefix }));
    let given: Vec<_> = c.bucket_access.variables.iter().map(|(name, value)| (*name, value.reveal())).collect();
    assert_eq!(given, [("AWS_SECRET_ACCESS_KEY", "hunter2"), ("AWS_SESSION_TOKEN", "hunter2")]);
    assert_eq!((c.retention, c.queue_timeout), (Some(Duration::from_secs(3600)), None));
    assert!(c.cpu_overflow);
    let shown = format!("{c:?} {:?} {} {:?} {:?}", c.settings(), c.database, c.bucket_access, c.redis);
    assert!(!shown.contains("hunter2") && shown.contains("postgres://me:***@db/jobs"), "{shown}");
    let alone = c.in_dir(Path::new("/d"));
    assert_eq!(alone.database, Database::Sqlite("/d/prover-worker.db".into()));
    assert_eq!((alone.redis, alone.artifacts), (None, None));
}

/// Each cloud uses its own variables, and none of another cloud's that happen to be set.
#[test]
fn artifacts_may_be_in_three_clouds() {
    let of = |url: &str| {
        let c = with(&[
            ("PROVER_ARTIFACTS_URL", url),
            ("AWS_ACCESS_KEY_ID", "k"),
            ("STORAGE_EMULATOR_HOST", "localhost:4443"),
            ("GOOGLE_APPLICATION_CREDENTIALS", "/key.json"),
            ("AZURE_STORAGE_ENDPOINT", "http://h:1/a"),
            ("AZURE_STORAGE_ACCOUNT_NAME", "a"),
            ("AZURE_STORAGE_ACCOUNT_KEY", "hunter2"),
        ])
        .unwrap();
        assert!(!format!("{c:?}").contains("hunter2"), "{c:?}");
        let variables = c.bucket_access.variables.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ");
        (c.artifacts.unwrap(), c.bucket_access.endpoint.unwrap_or_default(), variables)
    };
    let bucket =
        |cloud, prefix: &str| ArtifactsUrl::Bucket { cloud, bucket: "b".to_owned(), prefix: prefix.to_owned() };
    assert_eq!(of("s3://b"), (bucket(Cloud::Amazon, ""), String::new(), "AWS_ACCESS_KEY_ID".to_owned()));
    let google = (bucket(Cloud::Google, "p/q"), "http://localhost:4443".to_owned());
    assert_eq!(of("gs://b/p/q/"), (google.0, google.1, "GOOGLE_APPLICATION_CREDENTIALS".to_owned()));
    let account = "AZURE_STORAGE_ACCOUNT_NAME AZURE_STORAGE_ACCOUNT_KEY".to_owned();
    assert_eq!(of("az://b/p"), (bucket(Cloud::Azure, "p"), "http://h:1/a".to_owned(), account));
}

#[test]
fn what_cannot_be_a_fleet_is_one_sentence_without_the_password() {
    for (name, value) in [
        ("REDIS_URL", "rediss://me:hunter2@r:6379"),
        ("REDIS_URL", "http://me:hunter2@r:6379"),
        ("PROVER_ARTIFACTS_URL", "gs://me:hunter2@x"),
        ("PROVER_ARTIFACTS_URL", "file://relative"),
        ("PROVER_ARTIFACTS_URL", "s3://"),
        ("PROVER_ARTIFACTS_URL", "s3://key:hunter2@bucket/x"),
        ("STORAGE_EMULATOR_HOST", "ftp://me:hunter2@x"),
        ("AWS_ENDPOINT_URL", "ftp://me:hunter2@x"),
        ("PROVER_RETENTION_SECS", "1"),
        ("PROVER_CPU_OVERFLOW", "yes"),
    ] {
        let e = error(name, value);
        assert!(e.starts_with(name) && !e.contains("hunter2") && !e.contains('\n'), "{e}");
    }
    assert!(error("REDIS_URL", "redis://r").contains("DATABASE_URL=postgres://"));
}

#[test]
fn passwords_are_masked() {
    assert_eq!(mask("postgres://me:se@cret@host:5432/db?x=1"), "postgres://me:***@host:5432/db?x=1");
    assert_eq!(mask("redis://:secret@host"), "redis://:***@host");
    assert_eq!(mask("postgres://h/db?user=me&password=se%26cret&x=1"), "postgres://h/db?user=me&password=***&x=1");
    assert_eq!(mask("postgres://me:a@h/?sslpassword=b"), "postgres://me:***@h/?sslpassword=***");
    assert_eq!(mask("postgres://me:se/c@r/et@host/db?x=1"), "postgres://me:***@host/db?x=1");
    assert_eq!(mask("postgres://me:se?cr/et@host/db"), "postgres://me:***@host/db");
    assert_eq!(mask("me:secret@host/db"), "me:***@host/db");
    assert_eq!(mask("https:///key:secret@minio:9000"), "https:///key:***@minio:9000");
    assert_eq!(mask("redis:///:secret@host"), "redis:///:***@host");
    assert_eq!(mask("postgres:/me:secret@host/db?options=http://x"), "postgres:***@host/db?options=http://x");
    assert_eq!(mask("postgres://h:1/db?user=a@b"), "postgres://h:1/db?user=a@b");
    assert_eq!(mask("info,prover_worker::worker=debug"), "info,prover_worker::worker=debug");
    assert_eq!(mask("sqlite:///var/x.db"), "sqlite:///var/x.db");
    let c = with(&[("DATABASE_URL", "sqlite:///var/x.db")]).unwrap();
    assert_eq!(c.database, Database::Sqlite("/var/x.db".into()));
    assert!(c.settings().iter().any(|s| s.set && s.value == "sqlite:///var/x.db"));
}

#[test]
fn tokens_are_read_and_never_shown() {
    let tokens = |list: &str| with(&[("PROVER_API_TOKENS", list)]);
    let two = tokens(" 0123456789abcdef, A-Za-z0-9._~+/==").unwrap();
    assert_eq!(two.api_tokens.iter().map(Secret::reveal).collect::<Vec<_>>(), ["0123456789abcdef", "A-Za-z0-9._~+/=="]);
    assert!(!format!("{two:?}").contains("abcdef"));
    assert!(two.settings().iter().any(|s| s.name == "PROVER_API_TOKENS" && s.set && s.value == "***"));
    assert_eq!(tokens(" ").unwrap().api_tokens, []);
    let long = "x".repeat(257);
    let wrong =
        [("0123456789abcde", 1), (&long, 1), ("0123456789abcdef,", 2), ("0123456789abcdef,0123456789abcde:", 2)];
    for (list, nth) in wrong {
        let why = tokens(list).err().unwrap().to_string();
        assert!(why.contains(&format!("(number {nth} is not)")) && why.ends_with("got \"***\""), "{why}");
    }
}

#[test]
fn secrets_are_read_from_files() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    let path = file.to_str().unwrap();
    let of = |text: &[u8], vars: &[(&str, &str)]| {
        std::fs::write(&file, text).unwrap();
        with(vars)
    };
    let c = of(b"postgres://me:secret@db/jobs\n", &[("DATABASE_URL_FILE", path)]).unwrap();
    let Database::Postgres(url) = &c.database else { panic!("{:?}", c.database) };
    assert_eq!(url.reveal(), "postgres://me:secret@db/jobs");
    assert!(c.sets("DATABASE_URL") && c.settings().iter().all(|s| !s.value.contains("secret@")));
    let c = of(b"0123456789abcdef,fedcba9876543210", &[("PROVER_API_TOKENS_FILE", path)]).unwrap();
    assert_eq!(c.api_tokens.len(), 2);
    let c = of(b"k:v\n", &[("PROVER_ENCRYPTION_KEYS_FILE", path)]).unwrap();
    assert_eq!(c.encryption_keys.unwrap().reveal(), "k:v");
    let wrong = of(b"nonsense of a secret", &[("REDIS_URL_FILE", path)]).unwrap_err();
    assert_eq!((wrong.name, wrong.got.as_str()), ("REDIS_URL", "\"***\""), "it may be a password");

    let error = |text: &[u8], vars: &[(&str, &str)]| of(text, vars).unwrap_err().to_string();
    let redis = "REDIS_URL_FILE: expected a file that contains REDIS_URL, got ";
    let empty = error(b" \n", &[("REDIS_URL_FILE", path)]);
    assert!(empty.starts_with(redis) && empty.ends_with("which is empty"), "{empty}");
    assert!(error(b"", &[("REDIS_URL_FILE", "/nowhere")]).starts_with(&format!("{redis}\"/nowhere\": ")));
    for text in [&b"\xff\xfe"[..], &vec![b'x'; 70_000]] {
        assert!(error(text, &[("REDIS_URL_FILE", path)]).starts_with(redis));
    }
    let both = error(b"redis://a", &[("REDIS_URL_FILE", path), ("REDIS_URL", "redis://b")]);
    assert!(both.contains("expected no value while REDIS_URL is set"), "{both}");
}

#[test]
fn values_are_read() {
    let c = with(&[
        ("METRICS_PORT", "off"),
        ("PROVER_API_ADDR", "off"),
        ("LOG_LEVEL", "WARN"),
        ("PROVER_KEY_CACHE_BYTES", "2G"),
        ("PROVER_GRACE_SECS", "0"),
        ("QUEUE_NAME", " "),
    ])
    .unwrap();
    assert_eq!((c.metrics_addr, c.api_addr), (None, None));
    assert_eq!(c.log_level, "warn");
    assert_eq!(c.key_cache_bytes, Some(2 << 30));
    assert_eq!(c.grace, Duration::ZERO);
    assert_eq!(c.queue_name, "prove", "a blank variable counts as unset");
    assert!(with(&[("LOG_LEVEL", "info,prover_worker=debug")]).is_ok());
    assert_eq!(byte_count("64M"), Some(64 << 20));
    assert_eq!(byte_count("99999999999999T"), None);
}
