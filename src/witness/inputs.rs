//! The inputs of a circuit, from JSON.

use std::collections::HashSet;
use std::fmt;

use ark_ff::{BigInteger256, PrimeField};
use zeroize::Zeroize;

use super::json::{Number, Reader, Syntax};
use crate::formats::FileKind;
use crate::model::Fr;

/// Maximum number of values in a document: 128 MiB of them.
const MAX_VALUES: usize = 1 << 22;
/// Maximum number of signals and bus elements.
const MAX_NAMES: usize = 1 << 18;
/// Maximum length of a signal's name, its bus path included, bytes.
const MAX_NAME: usize = 2048;
/// Maximum total length of all names, bytes.
const MAX_NAME_BYTES: usize = 32 << 20;
/// Maximum nesting depth of arrays and objects.
const MAX_DEPTH: usize = 64;
/// Maximum number of digits in a number. A number below r has at most 77; the limit keeps conversion cheap.
const MAX_DIGITS: usize = 1000;

/// Why an input does not fit the circuit. Messages name signals and counts, never values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// The document does not parse as an object of signals, or is too large.
    #[error("invalid input: {0}")]
    Json(String),
    /// A value is not an integer.
    #[error("input signal {}: {why}", place(.signal, .index))]
    Value {
        /// Name of the signal.
        signal: String,
        /// Row-major index among its values, for an array.
        index: Option<usize>,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A signal is given twice.
    #[error("input signal {} is given twice", name(.signal))]
    Duplicate {
        /// Name of the signal.
        signal: String,
    },
    /// The circuit has no such input.
    #[error("signal not found: the circuit has no input signal {}", name(.signal))]
    Unknown {
        /// Name of the signal.
        signal: String,
    },
    /// More values than the signal has elements.
    #[error("too many values for input signal {}: expected {expected}, got {got}", name(.signal))]
    TooMany {
        /// Name of the signal.
        signal: String,
        /// Elements of the signal.
        expected: usize,
        /// Values given.
        got: usize,
    },
    /// Fewer values than the signal has elements.
    #[error("not enough values for input signal {}: expected {expected}, got {got}", name(.signal))]
    NotEnough {
        /// Name of the signal.
        signal: String,
        /// Elements of the signal.
        expected: usize,
        /// Values given.
        got: usize,
    },
    /// An array, for a program that neither reports how many elements a signal has nor shows it in its module.
    #[error(
        "input signal {}: expected a single value, got {got} in an array, because this witness program does not tell \
         how many elements its signals have; compile the circuit with circom 2.0.4 or later",
        name(.signal)
    )]
    Unsized {
        /// Name of the signal.
        signal: String,
        /// Values given.
        got: usize,
    },
    /// A value for an element that is already set or does not exist, in a program too old to report how many elements a
    /// signal has.
    #[error("input signal {}: value {index} is one too many, or the signal is already set", name(.signal))]
    Misplaced {
        /// Name of the signal.
        signal: String,
        /// Row-major index among its values.
        index: usize,
    },
    /// A value was set for a signal that is not an input, in a program too old to report which one.
    #[error("too many values: some input signal has more values than elements")]
    Surplus,
    /// Signals are missing.
    #[error("not all inputs have been set: only {set} out of {total}")]
    Incomplete {
        /// Values given.
        set: usize,
        /// Values the circuit takes.
        total: usize,
    },
    /// Signals are missing, in a program too old to report how many there are.
    #[error("not all inputs have been set: with the {set} values given, some signals have none")]
    Unset {
        /// Values given.
        set: usize,
    },
}

/// Formats a name from outside for printing: shortened, and quoted unless it is a plain identifier.
fn name(signal: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '.' | '[' | ']');
    let short: String = signal.chars().take(80).collect();
    let dots = if short.len() < signal.len() { "…" } else { "" };
    if short.chars().all(plain) { format!("{short}{dots}") } else { format!("{short:?}{dots}") }
}

fn place(signal: &str, index: &Option<usize>) -> String {
    match index {
        None => name(signal),
        Some(i) => format!("{}, value {i}", name(signal)),
    }
}

/// Values for the input signals of a circuit. They are secret.
///
/// Read from JSON by snarkjs's conventions: an object of signals, each a number, a string ("12", "-3", "0x1f") or an
/// array of those, with nested arrays in row-major order; a scalar may be given as an array of one. Values are reduced
/// mod r. Buses (circom 2.2) are objects: their fields get dotted names, and arrays of buses get indices, as in
/// `a[0].x`.
///
/// Input is read exactly or refused: digits are never lost, and what snarkjs silently reads as some number ("", true,
/// 1.0, a signal given twice) is an error. The values are overwritten with zeros when dropped; `Debug` shows counts
/// only.
pub struct Inputs {
    signals: Vec<Signal>,
    values: Secrets,
}

struct Signal {
    name: Box<str>,
    /// Its values are `values[start..end]`.
    start: usize,
    end: usize,
}

impl Inputs {
    /// Longest document read, bytes.
    pub const MAX_BYTES: usize = 256 << 20;

    /// Reads a JSON document of at most 256 MiB, 4 million values and 1000 digits a number.
    pub fn parse(json: &[u8]) -> Result<Self, InputError> {
        if json.len() > Self::MAX_BYTES {
            let (most, got) = (Self::MAX_BYTES, json.len());
            return Err(InputError::Json(format!("expected at most {most} bytes, got {got}")));
        }
        if let Some(kind) = FileKind::of(json).filter(|kind| *kind != FileKind::Json) {
            return Err(InputError::Json(format!("expected JSON, got {kind}")));
        }
        let text = std::str::from_utf8(json)
            .map_err(|e| InputError::Json(format!("it is not UTF-8 text, from byte {} on", e.valid_up_to())))?;
        let mut parser = Parser {
            reader: Reader::new(text),
            path: String::new(),
            seen: HashSet::new(),
            seen_bytes: 0,
            inputs: Self { signals: Vec::new(), values: Secrets(Vec::new()) },
        };
        match parser.document() {
            Ok(()) => Ok(parser.inputs),
            Err(Refused::Input(e)) => Err(e),
            Err(Refused::Syntax(Syntax { at, why })) => {
                let before = &json[..at.min(json.len())];
                let line = before.iter().filter(|b| **b == b'\n').count() + 1;
                let column = before.iter().rev().take_while(|b| **b != b'\n').count() + 1;
                Err(InputError::Json(format!("line {line}, column {column}: {why}")))
            }
        }
    }

    /// Returns each signal's name and values, in document order. Values are not in Montgomery form: four limbs, below
    /// r.
    pub fn signals(&self) -> impl Iterator<Item = (&str, &[BigInteger256])> {
        self.signals.iter().map(|s| (&*s.name, &self.values.0[s.start..s.end]))
    }

    /// Number of values, over all signals.
    pub fn len(&self) -> usize {
        self.values.0.len()
    }

    /// Whether there is no value at all.
    pub fn is_empty(&self) -> bool {
        self.values.0.is_empty()
    }
}

impl fmt::Debug for Inputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Inputs({} signals, {} values, secret)", self.signals.len(), self.len())
    }
}

/// Values that are overwritten with zeros when dropped, and when they move to a larger allocation.
struct Secrets(Vec<BigInteger256>);

impl Secrets {
    fn push(&mut self, v: BigInteger256) {
        if self.0.len() == self.0.capacity() {
            let mut larger = Vec::with_capacity((self.0.len() * 2).max(64));
            larger.extend_from_slice(&self.0);
            self.wipe();
            self.0 = larger;
        }
        self.0.push(v);
    }

    fn wipe(&mut self) {
        for v in &mut self.0 {
            v.0.zeroize();
        }
    }
}

impl Drop for Secrets {
    fn drop(&mut self) {
        self.wipe();
    }
}

enum Refused {
    Syntax(Syntax),
    Input(InputError),
}

impl From<Syntax> for Refused {
    fn from(s: Syntax) -> Self {
        Self::Syntax(s)
    }
}

impl From<InputError> for Refused {
    fn from(e: InputError) -> Self {
        Self::Input(e)
    }
}

/// The kind of an array's leaves, which are all of one kind.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaves {
    Values,
    Buses,
}

/// State of an array being read: the indices of the current element, and the kind of its leaves so far.
struct Elements {
    indices: Vec<usize>,
    leaves: Option<Leaves>,
    first: usize,
}

struct Parser<'a> {
    reader: Reader<'a>,
    /// Name of the signal or bus that is being read.
    path: String,
    seen: HashSet<Box<str>>,
    seen_bytes: usize,
    inputs: Inputs,
}

impl Parser<'_> {
    fn document(&mut self) -> Result<(), Refused> {
        if self.reader.peek() != Some(b'{') {
            return Err(self.reader.error("expected an object of input signals").into());
        }
        self.object(1)?;
        Ok(self.reader.end()?)
    }

    fn deeper(&self, depth: usize) -> Result<usize, Refused> {
        if depth < MAX_DEPTH {
            Ok(depth + 1)
        } else {
            Err(InputError::Json(format!("arrays and objects are nested deeper than {MAX_DEPTH}")).into())
        }
    }

    /// Reads an object: the whole document, or a bus.
    fn object(&mut self, depth: usize) -> Result<(), Refused> {
        self.reader.expect(b'{', "expected {")?;
        if self.reader.take(b'}') {
            // A document without signals is valid for a circuit without inputs, but a bus must have fields.
            return if self.path.is_empty() { Ok(()) } else { Err(self.refuse(None, "an object without fields")) };
        }
        loop {
            let key = self.reader.string()?;
            if key.as_str().is_empty() {
                return Err(InputError::Json("a signal's name is empty".into()).into());
            }
            let before = self.path.len();
            if before > 0 {
                self.path.push('.');
            }
            if before + key.as_str().len() > MAX_NAME {
                return Err(InputError::Json(format!("a signal's name is longer than {MAX_NAME} bytes")).into());
            }
            self.path.push_str(key.as_str());
            self.claim()?;
            self.reader.expect(b':', "expected : after a name")?;
            self.value(depth)?;
            self.path.truncate(before);
            if self.reader.take(b'}') {
                return Ok(());
            }
            self.reader.expect(b',', "expected , or }")?;
        }
    }

    /// Reads the value of a name.
    fn value(&mut self, depth: usize) -> Result<(), Refused> {
        let first = self.inputs.values.0.len();
        match self.reader.peek() {
            Some(b'{') => return self.object(self.deeper(depth)?),
            Some(b'[') => {
                let mut elements = Elements { indices: Vec::new(), leaves: None, first };
                self.array(self.deeper(depth)?, &mut elements)?;
                if elements.leaves == Some(Leaves::Buses) {
                    return Ok(());
                }
            }
            _ => self.scalar(None)?,
        }
        let end = self.inputs.values.0.len();
        self.inputs.signals.push(Signal { name: self.path.as_str().into(), start: first, end });
        Ok(())
    }

    fn array(&mut self, depth: usize, elements: &mut Elements) -> Result<(), Refused> {
        self.reader.expect(b'[', "expected [")?;
        if self.reader.take(b']') {
            return Ok(());
        }
        elements.indices.push(0);
        loop {
            match self.reader.peek() {
                Some(b'[') => self.array(self.deeper(depth)?, elements)?,
                Some(b'{') => {
                    self.leaf(elements, Leaves::Buses)?;
                    let before = self.path.len();
                    for i in &elements.indices {
                        self.path.push_str(&format!("[{i}]"));
                    }
                    self.claim()?;
                    self.object(self.deeper(depth)?)?;
                    self.path.truncate(before);
                }
                _ => {
                    self.leaf(elements, Leaves::Values)?;
                    self.scalar(Some(self.inputs.values.0.len() - elements.first))?;
                }
            }
            if self.reader.take(b']') {
                elements.indices.pop();
                return Ok(());
            }
            self.reader.expect(b',', "expected , or ]")?;
            if let Some(i) = elements.indices.last_mut() {
                *i += 1;
            }
        }
    }

    /// Records the kind of the next leaf.
    fn leaf(&self, elements: &mut Elements, kind: Leaves) -> Result<(), Refused> {
        match elements.leaves.replace(kind) {
            Some(other) if other != kind => Err(self.refuse(None, "an array mixes values and objects")),
            _ => Ok(()),
        }
    }

    /// Reads a single value.
    fn scalar(&mut self, index: Option<usize>) -> Result<(), Refused> {
        let read = match self.reader.peek() {
            Some(b'"') => integer(self.reader.string()?.as_str()),
            Some(b'-' | b'0'..=b'9') => match self.reader.number()? {
                Number::Integer(digits) => integer(digits),
                Number::Other => Err("expected an integer, got a number with a fraction or an exponent"),
            },
            Some(b't') if self.reader.word("true") => Err("expected an integer, got true"),
            Some(b'f') if self.reader.word("false") => Err("expected an integer, got false"),
            Some(b'n') if self.reader.word("null") => Err("expected an integer, got null"),
            None => return Err(self.reader.error("the document ends too early").into()),
            Some(_) => return Err(self.reader.error("expected a value").into()),
        };
        let value = read.map_err(|why| self.refuse(index, why))?;
        if self.inputs.values.0.len() == MAX_VALUES {
            return Err(InputError::Json(format!("it holds more than {MAX_VALUES} values")).into());
        }
        self.inputs.values.push(value);
        Ok(())
    }

    fn refuse(&self, index: Option<usize>, why: &'static str) -> Refused {
        InputError::Value { signal: self.path.clone(), index, why }.into()
    }

    /// Checks that the current path is a new name.
    fn claim(&mut self) -> Result<(), Refused> {
        self.seen_bytes += self.path.len();
        if self.seen.len() == MAX_NAMES || self.seen_bytes > MAX_NAME_BYTES || self.path.len() > 2 * MAX_NAME {
            return Err(InputError::Json(format!(
                "it holds more than {MAX_NAMES} names of signals, or {MAX_NAME_BYTES} bytes of them"
            ))
            .into());
        }
        if self.seen.insert(self.path.as_str().into()) {
            Ok(())
        } else {
            Err(InputError::Duplicate { signal: self.path.clone() }.into())
        }
    }
}

/// Reads an integer and reduces it mod r: an optional sign and decimal digits, or 0x, 0o or 0b and digits (the forms
/// that JavaScript's `BigInt` accepts). Surrounding white space is ignored.
fn integer(text: &str) -> Result<BigInteger256, &'static str> {
    let text = text.trim_matches([' ', '\t', '\n', '\r']);
    let (negative, rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, digits) = match rest.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &rest[2..]),
        [b'0', b'o' | b'O', ..] => (8, &rest[2..]),
        [b'0', b'b' | b'B', ..] => (2, &rest[2..]),
        _ => (10, rest),
    };
    if digits.is_empty() {
        return Err("expected an integer, got a string without digits");
    }
    if digits.len() > MAX_DIGITS {
        return Err("expected an integer of at most 1000 digits");
    }
    if radix != 10 && rest.len() != text.len() {
        return Err("expected an integer; only decimal ones take a sign");
    }
    // Horner's scheme over chunks that fit in 63 bits: 15 digits in any of these radices.
    let mut sum = Fr::from(0u64);
    for chunk in digits.as_bytes().chunks(15) {
        let (mut value, mut weight) = (0u64, 1u64);
        for b in chunk {
            let digit = char::from(*b).to_digit(radix).ok_or("expected an integer, got something else")?;
            value = value * u64::from(radix) + u64::from(digit);
            weight *= u64::from(radix);
        }
        sum = sum * Fr::from(weight) + Fr::from(value);
    }
    Ok(if negative { -sum } else { sum }.into_bigint())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn value(json: &str) -> String {
        let inputs = Inputs::parse(format!("{{\"a\": {json}}}").as_bytes()).unwrap();
        inputs.values.0[0].to_string()
    }

    fn why(json: &str) -> String {
        Inputs::parse(json.as_bytes()).unwrap_err().to_string()
    }

    fn names(json: &str) -> Vec<(String, usize)> {
        Inputs::parse(json.as_bytes()).unwrap().signals().map(|(n, v)| (n.to_owned(), v.len())).collect()
    }

    #[test]
    fn values_are_exact_and_reduced() {
        let r = crate::model::FR_MODULUS_DEC;
        let last = "21888242871839275222246405745257275088548364400416034343698204186575808495616";
        assert_eq!(value("0"), "0");
        assert_eq!(value("9007199254740993"), "9007199254740993", "a number above 2^53 keeps its digits");
        assert_eq!(value(last), last);
        assert_eq!(value(r), "0");
        assert_eq!(value("-1"), last);
        assert_eq!(value(&format!("\"-{r}1\"")), value(&format!("\"-{}\"", 1)));
        assert_eq!(value("\"0x10\""), "16");
        assert_eq!(value("\"0XfF\""), "255");
        assert_eq!(value("\"0b101\""), "5");
        assert_eq!(value("\"0o17\""), "15");
        assert_eq!(value("\" 007 \""), "7");
        assert_eq!(value("\"+5\""), "5");
        assert_eq!(value("\"\\u0031\\u0032\""), "12");
        let long = "9".repeat(1000);
        let exact = num_bigint::BigUint::parse_bytes(long.as_bytes(), 10).unwrap()
            % num_bigint::BigUint::parse_bytes(r.as_bytes(), 10).unwrap();
        assert_eq!(value(&long), exact.to_string());
        assert_eq!(value(&format!("\"0x{}\"", "f".repeat(64))), {
            let all = num_bigint::BigUint::from(2u8).pow(256) - 1u8;
            (all % num_bigint::BigUint::parse_bytes(r.as_bytes(), 10).unwrap()).to_string()
        });
    }

    #[test]
    fn what_is_no_integer_is_refused_by_name() {
        for (json, says) in [
            (r#"{"a": ""}"#, "a: expected an integer, got a string without digits"),
            (r#"{"a": true}"#, "a: expected an integer, got true"),
            (r#"{"a": [1, [2, false]]}"#, "a, value 2: expected an integer, got false"),
            (r#"{"a": null}"#, "a: expected an integer, got null"),
            (r#"{"a": 1.0}"#, "a: expected an integer, got a number with a fraction or an exponent"),
            (r#"{"a": 1e3}"#, "fraction or an exponent"),
            (r#"{"a": "12z"}"#, "a: expected an integer, got something else"),
            (r#"{"a": "-0x1"}"#, "only decimal ones take a sign"),
            (r#"{"a": "0x"}"#, "without digits"),
            (r#"{"a": "--1"}"#, "something else"),
            (r#"{"a": "1_000"}"#, "something else"),
            (r#"{"a": {}}"#, "a: an object without fields"),
            (r#"{"a": [1, {"x": 2}]}"#, "a: an array mixes values and objects"),
            (r#"{"a": 1, "a": 1}"#, "a is given twice"),
            (r#"{"a": {"x": 1}, "a.x": 1}"#, "a.x is given twice"),
            (r#"{"": 1}"#, "name is empty"),
            ("[1]", "line 1, column 1: expected an object"),
            ("", "expected an object"),
            ("{\n\"a\": 1,}", "line 2, column 8: expected a string"),
            (r#"{"a": 01}"#, "may not begin with 0"),
            (r#"{"a": 1} 2"#, "unexpected data after"),
            (r#"{"a": 1"#, "expected , or }"),
            (r#"{"a": "1"#, "does not end"),
            ("{\"a\": \"\\ud800x\"}", "surrogate"),
            (r#"{"a": -}"#, "expected a digit"),
            (r#"{"a": NaN}"#, "expected a value"),
            (r#"{"a": 1.}"#, "after the point"),
        ] {
            let got = why(json);
            assert!(got.contains(says), "{json}: {got}");
        }
    }

    #[test]
    fn messages_never_hold_values() {
        for json in [r#"{"a": "123456789x"}"#, r#"{"a": 123456789.5}"#, r#"{"a": 123456789,"#, r#"{"a": "123456789"#] {
            assert!(!why(json).contains("123456789"), "{}", why(json));
        }
        let inputs = Inputs::parse(br#"{"a": 123456789}"#).unwrap();
        assert_eq!(format!("{inputs:?}"), "Inputs(1 signals, 1 values, secret)");
    }

    #[test]
    fn arrays_flatten_and_buses_get_dotted_names() {
        let own = |v: &[(&str, usize)]| v.iter().map(|(n, l)| ((*n).to_owned(), *l)).collect::<Vec<_>>();
        assert_eq!(names(r#"{"a": [[1,2],[3,4]], "b": [], "c": [[]]}"#), own(&[("a", 4), ("b", 0), ("c", 0)]));
        assert_eq!(
            names(r#"{"t": {"from": {"id": 1}, "l": [1,2]}, "u": [{"x": 1, "y": [1,2]}, {"x": 2, "y": [3]}]}"#),
            own(&[("t.from.id", 1), ("t.l", 2), ("u[0].x", 1), ("u[0].y", 2), ("u[1].x", 1), ("u[1].y", 1)])
        );
        assert_eq!(
            names(r#"{"m": [[{"x": 1}], [{"x": [{"z": 2}]}]]}"#),
            own(&[("m[0][0].x", 1), ("m[1][0].x[0].z", 1)])
        );
        assert_eq!(names("{}"), own(&[]));
    }

    #[test]
    fn everything_is_bounded() {
        let deep = |n: usize| format!("{{\"a\": {}1{}}}", "[".repeat(n), "]".repeat(n));
        assert!(Inputs::parse(deep(MAX_DEPTH - 1).as_bytes()).is_ok());
        assert!(why(&deep(MAX_DEPTH)).contains("nested deeper than 64"));
        assert!(why(&deep(1_000_000)).contains("nested deeper than 64"));
        assert!(why(&format!("{{\"a\": {}}}", "1".repeat(1001))).contains("at most 1000 digits"));
        assert!(why(&format!("{{\"{}\": 1}}", "n".repeat(MAX_NAME + 1))).contains("longer than"));
        let many = format!("{{\"a\": [1{}]}}", ",1".repeat(MAX_VALUES));
        assert!(why(&many).contains("more than 4194304 values"));
        let mut names = String::from("{\"x\": 1");
        for i in 0..MAX_NAMES {
            names.push_str(&format!(",\"{i}\":1"));
        }
        names.push('}');
        assert!(why(&names).contains("names of signals"));
        assert!(why(&" ".repeat(Inputs::MAX_BYTES + 1)).contains("at most 268435456 bytes"));
    }
}
