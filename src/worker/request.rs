//! A submission as JSON: the body of an HTTP request, or a producer's message in the queue.

use std::ops::Range;

use serde::Deserialize;
use serde::de::IgnoredAny;
use zeroize::Zeroizing;

/// Maximum size of a submission without its input, in bytes.
pub const ENVELOPE: usize = 64 << 10;

/// A submission as JSON. The input is not decoded here but passed on as the original bytes, so that no digit of a
/// number is lost and no copy of a secret is made that would not be wiped.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Submit {
    id: Option<String>,
    circuit: String,
    #[allow(dead_code)]
    input: IgnoredAny,
    idempotency_key: Option<String>,
    priority: Option<i16>,
}

/// The parts of a submission.
pub struct Parts {
    /// The submitter's own id for the job.
    pub id: Option<String>,
    /// The circuit's name.
    pub circuit: String,
    /// The original bytes of the input. Secret.
    pub input: Zeroizing<Vec<u8>>,
    /// The submitter's own key for the job.
    pub idempotency_key: Option<String>,
    /// Priority among queued jobs; 0 if none was given.
    pub priority: i16,
}

/// Parses a submission. The error says what is expected and where, and never quotes a value.
pub fn parse(body: &[u8]) -> Result<Parts, String> {
    let submit: Submit = serde_json::from_slice(body).map_err(|e| explain(&e))?;
    let span = member(body, "input").ok_or("the body has no member \"input\"")?;
    Ok(Parts {
        id: submit.id,
        circuit: submit.circuit,
        input: Zeroizing::new(body[span].to_vec()),
        idempotency_key: submit.idempotency_key,
        priority: submit.priority.unwrap_or(0),
    })
}

/// Describes a JSON error by place and kind, without serde's text, which may quote values.
fn explain(e: &serde_json::Error) -> String {
    let place = format!("line {} column {}", e.line(), e.column());
    if e.is_data() {
        format!(
            "the body must be an object with \"circuit\" (text), \"input\" (any JSON) and, if wanted, \"id\" (text), \
             \"idempotency_key\" (text) and \"priority\" (-32768 to 32767); it is not at {place}"
        )
    } else {
        format!("the body is not JSON: {place}")
    }
}

/// Returns the text of a top-level member, if it can be found: the document may be truncated or invalid after it.
pub(super) fn text_member(body: &[u8], name: &str) -> Option<String> {
    serde_json::from_slice(body.get(member(body, name)?)?).ok()
}

/// Returns the range of a top-level member's value in a JSON document that is valid up to there.
fn member(json: &[u8], name: &str) -> Option<Range<usize>> {
    let mut at = skip_space(json, 0);
    if json.get(at) != Some(&b'{') {
        return None;
    }
    at += 1;
    loop {
        at = skip_space(json, at);
        if json.get(at) == Some(&b'}') {
            return None;
        }
        let key_end = skip_value(json, at)?;
        // Escapes in a name are decoded as serde does.
        let key: String = serde_json::from_slice(json.get(at..key_end)?).ok()?;
        at = skip_space(json, key_end) + 1;
        at = skip_space(json, at);
        let end = skip_value(json, at)?;
        if key == name {
            return Some(at..end);
        }
        at = skip_space(json, end);
        if json.get(at) == Some(&b',') {
            at += 1;
        }
    }
}

fn skip_space(json: &[u8], mut at: usize) -> usize {
    while matches!(json.get(at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
        at += 1;
    }
    at
}

/// Returns the end of the value that starts at `at`.
fn skip_value(json: &[u8], mut at: usize) -> Option<usize> {
    let mut depth = 0usize;
    loop {
        match json.get(at)? {
            b'"' => {
                at += 1;
                while json.get(at)? != &b'"' {
                    at += if json[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            b'{' | b'[' => {
                depth += 1;
                at += 1;
                continue;
            }
            b'}' | b']' => {
                depth = depth.checked_sub(1)?;
                at += 1;
            }
            b',' | b':' | b' ' | b'\t' | b'\r' | b'\n' => {
                at += 1;
                continue;
            }
            _ => {
                while !matches!(json.get(at), None | Some(b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n')) {
                    at += 1;
                }
            }
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_input_goes_on_byte_for_byte() {
        for input in [
            r#"{"a": 123456789012345678901234567890, "b": [1, [2, "}\"]"], {}]}"#,
            r#"{ }"#,
            r#""text \\ with \" quotes""#,
            "-12.5e3",
            "null",
            "[]",
        ] {
            for (before, after) in
                [("", ""), (r#""priority": -3, "#, ""), ("", r#" , "idempotency_key":"k\"}, \"input\": 1""#)]
            {
                let body = format!(" {{ {before}\"circuit\" :\"c\", \"inpu\\u0074\" : {input} {after} }} ");
                let parts = parse(body.as_bytes()).unwrap();
                assert_eq!(std::str::from_utf8(&parts.input).unwrap(), input, "{body}");
            }
        }
    }

    #[test]
    fn what_is_no_submit_is_refused_without_quoting_values() {
        for body in [
            "",
            "[]",
            "{",
            r#"{"circuit":"c"}"#,
            r#"{"input":{}}"#,
            r#"{"circuit":7777,"input":{}}"#,
            "nope",
            r#"{"circuit":"c","input":{},"input":{}}"#,
            r#"{"circuit":"c","input":{},"priority":777777}"#,
            r#"{"circuit":"c","input":{},"priorty":1}"#,
        ] {
            let Err(e) = parse(body.as_bytes()) else { panic!("taken: {body}") };
            assert!(!e.contains("7777"), "{e}");
        }
    }

    #[test]
    fn a_member_is_found_in_what_is_cut_off_behind_it() {
        let cut = r#"{"circuit": "c", "id" : "order 7", "input": {"a": [1, 2"#;
        assert_eq!(text_member(cut.as_bytes(), "id").as_deref(), Some("order 7"));
        assert_eq!(text_member(cut.as_bytes(), "circuit").as_deref(), Some("c"));
        for body in ["", "{", "[1]", r#"{"id": 7}"#, r#"{"id": "or"#, r#"{"input": {"id": "x"}"#, "}{", "{\"", "{\"a\\"]
        {
            assert_eq!(text_member(body.as_bytes(), "id"), None, "{body}");
        }
    }
}
