//! Input documents, whole and mutated, never cause a panic, and are read as a general JSON reader reads them.

use std::time::{Duration, Instant};

use num_bigint::BigInt;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};
use prover_worker::witness::Inputs;
use serde_json::Value;

/// Returns how long to run, from `FUZZ_SECONDS`; without it, one round.
fn seconds() -> Option<Duration> {
    std::env::var("FUZZ_SECONDS").ok().map(|s| Duration::from_secs(s.parse().unwrap()))
}

/// Tokens from which documents are built: valid and almost valid ones.
fn token() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            ":",
            ",",
            "\"a\"",
            "\"b\"",
            "\"a.x\"",
            "\"a[0]\"",
            "\"\"",
            "0",
            "-1",
            "1.5",
            "1e3",
            "01",
            "true",
            "null",
            "\"0x1f\"",
            "\"-3\"",
            "\"12 \"",
            "\"\\u0031\"",
            "\"\\ud83d\\ude00\"",
            "\"\\ud83d\"",
            "\\",
            "\"",
            " ",
            "\n",
            "\u{1f600}",
            "\0",
        ])
        .prop_map(str::to_owned),
        "[0-9]{1,90}",
        "\"[0-9]{1,90}\"",
        "\"0x[0-9a-fA-F]{0,70}\"",
    ]
}

/// A valid JSON document: signals, arrays and buses.
fn document() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        "-?(0|[1-9][0-9]{0,80})",
        "\"-?[0-9]{1,80}\"",
        "\"0x[0-9a-f]{1,64}\"",
        prop::sample::select(vec!["true", "null", "\"\"", "1.0", "\"x\""]).prop_map(str::to_owned),
    ];
    let value = leaf.prop_recursive(5, 60, 5, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(|v| format!("[{}]", v.join(","))),
            vec(("[a-d]", inner), 0..4).prop_map(fields),
        ]
    });
    vec(("[a-d]", value), 0..5).prop_map(fields)
}

fn fields(fields: Vec<(String, String)>) -> String {
    let fields: Vec<String> = fields.into_iter().map(|(k, v)| format!("\"{k}\" : {v}")).collect();
    format!("{{ {} }}", fields.join(", "))
}

/// Bytes of a document, some of them changed, cut off or doubled.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    (document(), vec((any::<prop::sample::Index>(), any::<u8>(), 0..4u8), 0..6)).prop_map(|(text, changes)| {
        let mut bytes = text.into_bytes();
        for (at, byte, how) in changes {
            let i = at.index(bytes.len().max(1));
            match how {
                0 if i < bytes.len() => bytes[i] = byte,
                1 => bytes.insert(i.min(bytes.len()), byte),
                2 => bytes.truncate(i),
                _ => {
                    let tail = bytes[i.min(bytes.len())..].to_vec();
                    bytes.extend(tail);
                }
            }
        }
        bytes
    })
}

/// Any bytes: no panic; a document that is accepted is JSON, and its values are the exact ones mod r.
fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
    let Ok(inputs) = Inputs::parse(bytes) else { return Ok(()) };
    let value: Value = match serde_json::from_slice(bytes) {
        Ok(value) => value,
        Err(e) => return Err(TestCaseError::fail(format!("taken, but no JSON: {e}"))),
    };
    let mut leaves = Vec::new();
    collect(&value, &mut leaves);
    // The general reader sorts names, so both lists are sorted.
    let r: BigInt = prover_worker::model::FR_MODULUS_DEC.parse().unwrap();
    let mut exact: Vec<String> = leaves.iter().map(|v| (((v % &r) + &r) % &r).to_string()).collect();
    let mut got: Vec<String> = inputs.signals().flat_map(|(_, v)| v).map(|v| v.to_string()).collect();
    exact.sort();
    got.sort();
    prop_assert_eq!(got, exact);
    Ok(())
}

fn collect(value: &Value, leaves: &mut Vec<BigInt>) {
    match value {
        Value::Array(a) => a.iter().for_each(|v| collect(v, leaves)),
        Value::Object(o) => o.values().for_each(|v| collect(v, leaves)),
        Value::Number(n) => leaves.push(n.to_string().parse().unwrap()),
        Value::String(s) => {
            let s = s.trim();
            let (radix, digits) = match s.get(..2).map(str::to_lowercase).as_deref() {
                Some("0x") => (16, &s[2..]),
                Some("0o") => (8, &s[2..]),
                Some("0b") => (2, &s[2..]),
                _ => (10, s),
            };
            leaves.push(BigInt::parse_bytes(digits.as_bytes(), radix).unwrap());
        }
        Value::Bool(_) | Value::Null => panic!("{value} was taken for a number"),
    }
}

#[test]
fn inputs_never_panic() {
    let start = Instant::now();
    loop {
        let mut runner = TestRunner::new(Config { cases: 400, failure_persistence: None, ..Config::default() });
        let run = (|| {
            runner.run(&mutated(), |bytes| check(&bytes))?;
            let text = vec(token(), 0..40).prop_map(|t| t.concat().into_bytes());
            runner.run(&text, |bytes| check(&bytes))?;
            let whole = document().prop_map(String::into_bytes);
            runner.run(&whole, |bytes| check(&bytes))?;
            runner.run(&vec(any::<u8>(), 0..80), |bytes| check(&bytes))
        })();
        if let Err(TestError::Fail(why, bytes)) = &run {
            panic!("{why}: {}", String::from_utf8_lossy(bytes));
        }
        run.unwrap();
        if seconds().is_none_or(|s| start.elapsed() >= s) {
            return;
        }
    }
}
