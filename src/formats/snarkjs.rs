//! snarkjs's JSON: proof.json, public.json, verification_key.json.
//!
//! The writers' output is identical, byte for byte, to the files of the snarkjs command line: one space of indentation
//! per level, no line end at the end of the file. Numbers are decimal strings, points are projective: `[x, y, "1"]`,
//! and infinity is `["0", "1", "0"]`.
//!
//! The readers accept what snarkjs accepts as long as it is exact: numbers as decimal strings, `"0x…"` strings or JSON
//! integers; fields in any order; unknown fields are ignored. Unlike snarkjs, they reject coordinates not below q,
//! public values not below r, points off the curve or outside G2, and coordinates z other than 0 and 1.

use std::fmt::{self, Write as _};

use ark_bn254::{Bn254, Fq12};
use ark_ec::AffineRepr;
use ark_ec::pairing::Pairing;
use ark_ff::{BigInteger256, PrimeField};
use serde::de::{Deserialize, Deserializer, Error as _, SeqAccess, Unexpected, Visitor};

use super::FormatError;
use super::container::mismatch;
use crate::model::{
    FQ_MODULUS_DEC, FR_MODULUS_DEC, Fq, Fq2, Fr, G1Affine, G2Affine, Proof, PublicInputs, VerificationKey, clip,
};

/// Maximum size of a proof.json, in bytes; snarkjs writes about 800.
pub const MAX_PROOF_JSON: usize = 1 << 16;
/// Maximum size of a public.json, in bytes: about 200 000 values.
pub const MAX_PUBLIC_JSON: usize = 1 << 24;
/// Maximum size of a verification_key.json, in bytes: about 400 000 points of IC.
pub const MAX_VKEY_JSON: usize = 1 << 26;

/// Maximum number of public values, and of points of IC: short ones could otherwise take many times their size in the
/// document in memory.
const MAX_ITEMS: usize = 1 << 20;

/// Maximum length of a number, in characters: 2^256 has 78 digits.
const MAX_NUMBER: usize = 100;

// ---------------------------------------------------------------------------------------------------------------
// Writing

/// Writes a proof.json.
pub fn proof_to_json(p: &Proof) -> String {
    let mut w = Writer::new('{');
    w.key("pi_a").g1(&p.a);
    w.key("pi_b").g2(&p.b);
    w.key("pi_c").g1(&p.c);
    w.key("protocol").string("groth16");
    w.key("curve").string("bn128");
    w.finish('}')
}

/// Writes a public.json.
pub fn public_to_json(p: &PublicInputs) -> String {
    let mut w = Writer::new('[');
    for v in &p.0 {
        w.item().number(v);
    }
    w.finish(']')
}

/// Writes a verification_key.json. Computes e(α, β), which the file contains for verifiers that use three pairings.
pub fn vkey_to_json(k: &VerificationKey) -> String {
    let mut w = Writer::new('{');
    w.key("protocol").string("groth16");
    w.key("curve").string("bn128");
    w.key("nPublic").raw(&k.n_public().to_string());
    w.key("vk_alpha_1").g1(&k.alpha_g1);
    w.key("vk_beta_2").g2(&k.beta_g2);
    w.key("vk_gamma_2").g2(&k.gamma_g2);
    w.key("vk_delta_2").g2(&k.delta_g2);
    w.key("vk_alphabeta_12").fq12(&Bn254::pairing(k.alpha_g1, k.beta_g2).0);
    w.key("IC").open('[');
    for p in &k.ic {
        w.item().g1(p);
    }
    w.close(']');
    w.finish('}')
}

/// Writes JSON in snarkjs's layout: every item on its own line, an empty list as `[`, line end, `]`.
struct Writer {
    out: String,
    depth: usize,
    first: bool,
}

impl Writer {
    fn new(bracket: char) -> Self {
        let mut w = Self { out: String::new(), depth: 0, first: true };
        w.open(bracket);
        w
    }

    fn finish(mut self, bracket: char) -> String {
        self.close(bracket);
        self.out
    }

    fn open(&mut self, bracket: char) {
        self.out.push(bracket);
        self.depth += 1;
        self.first = true;
    }

    fn close(&mut self, bracket: char) {
        self.depth -= 1;
        self.line();
        self.out.push(bracket);
        self.first = false;
    }

    fn line(&mut self) {
        self.out.push('\n');
        self.out.extend(std::iter::repeat_n(' ', self.depth));
    }

    fn item(&mut self) -> &mut Self {
        if !self.first {
            self.out.push(',');
        }
        self.first = false;
        self.line();
        self
    }

    fn key(&mut self, name: &str) -> &mut Self {
        self.item().string(name);
        self.out.push_str(": ");
        self
    }

    fn raw(&mut self, text: &str) {
        self.out.push_str(text);
    }

    /// Writes text that needs no escapes.
    fn string(&mut self, text: &str) {
        let _ = write!(self.out, "\"{text}\"");
    }

    fn number(&mut self, v: &impl PrimeField) {
        let _ = write!(self.out, "\"{}\"", v.into_bigint());
    }

    fn fq2(&mut self, v: &Fq2) {
        self.open('[');
        self.item().number(&v.c0);
        self.item().number(&v.c1);
        self.close(']');
    }

    fn fq12(&mut self, v: &Fq12) {
        self.open('[');
        for half in [&v.c0, &v.c1] {
            self.item().open('[');
            for c in [&half.c0, &half.c1, &half.c2] {
                self.item().fq2(c);
            }
            self.close(']');
        }
        self.close(']');
    }

    fn g1(&mut self, p: &G1Affine) {
        let (x, y, z) = match p.xy() {
            Some((x, y)) => (x, y, Fq::from(1u8)),
            None => (Fq::from(0u8), Fq::from(1u8), Fq::from(0u8)),
        };
        self.open('[');
        for c in [x, y, z] {
            self.item().number(&c);
        }
        self.close(']');
    }

    fn g2(&mut self, p: &G2Affine) {
        let (x, y, z) = match p.xy() {
            Some((x, y)) => (x, y, Fq2::from(1u8)),
            None => (Fq2::from(0u8), Fq2::from(1u8), Fq2::from(0u8)),
        };
        self.open('[');
        for c in [x, y, z] {
            self.item().fq2(&c);
        }
        self.close(']');
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Reading

#[derive(serde::Deserialize)]
struct ProofJson {
    pi_a: G1Json,
    pi_b: G2Json,
    pi_c: G1Json,
    protocol: Option<String>,
    curve: Option<String>,
}

#[derive(serde::Deserialize)]
struct VkeyJson {
    protocol: String,
    curve: String,
    #[serde(rename = "nPublic")]
    n_public: u64,
    vk_alpha_1: G1Json,
    vk_beta_2: G2Json,
    vk_gamma_2: G2Json,
    vk_delta_2: G2Json,
    #[serde(rename = "IC")]
    ic: Items<G1Json>,
}

type G1Json = [Number; 3];
type G2Json = [[Number; 2]; 3];

/// Parses a proof.json. `protocol` and `curve` may be missing, because some provers omit them.
///
/// # Errors
///
/// Text that is not such a document, another protocol or curve, a point that is not in its group.
pub fn proof_from_json(s: &str) -> Result<Proof, FormatError> {
    let p: ProofJson = read("proof", s, MAX_PROOF_JSON)?;
    if let Some(protocol) = &p.protocol {
        check_protocol("proof", protocol)?;
    }
    if let Some(curve) = &p.curve {
        check_curve("proof", curve)?;
    }
    Ok(Proof { a: g1("proof, pi_a", &p.pi_a)?, b: g2("proof, pi_b", &p.pi_b)?, c: g1("proof, pi_c", &p.pi_c)? })
}

/// Parses a public.json.
///
/// # Errors
///
/// Text that is not a list of numbers, a value not below r.
pub fn public_from_json(s: &str) -> Result<PublicInputs, FormatError> {
    let Items(values) = read::<Items<Number>>("public values", s, MAX_PUBLIC_JSON)?;
    let below_r = |(i, v): (usize, &Number)| {
        Fr::from_bigint(v.0).ok_or_else(|| not_below(format!("public values, value {i}"), "r", FR_MODULUS_DEC, v))
    };
    Ok(PublicInputs(values.iter().enumerate().map(below_r).collect::<Result<_, _>>()?))
}

/// Parses a verification_key.json. `vk_alphabeta_12` is ignored, because it follows from α and β.
///
/// # Errors
///
/// Text that is not such a document, another protocol or curve, a point that is not in its group, α, β, γ or δ at
/// infinity, a number of IC points other than nPublic + 1.
pub fn vkey_from_json(s: &str) -> Result<VerificationKey, FormatError> {
    const DOC: &str = "verification key";
    let k: VkeyJson = read(DOC, s, MAX_VKEY_JSON)?;
    check_protocol(DOC, &k.protocol)?;
    check_curve(DOC, &k.curve)?;
    if k.n_public.checked_add(1) != Some(k.ic.0.len() as u64) {
        return Err(mismatch(
            format!("{DOC}, IC"),
            format!("one more point than nPublic, {}", k.n_public),
            format!("{} points", k.ic.0.len()),
        ));
    }
    let ic =
        k.ic.0.iter().enumerate().map(|(i, p)| g1(&format!("{DOC}, IC point {i}"), p)).collect::<Result<_, _>>()?;
    Ok(VerificationKey {
        alpha_g1: finite(DOC, "vk_alpha_1", &k.vk_alpha_1, g1)?,
        beta_g2: finite(DOC, "vk_beta_2", &k.vk_beta_2, g2)?,
        gamma_g2: finite(DOC, "vk_gamma_2", &k.vk_gamma_2, g2)?,
        delta_g2: finite(DOC, "vk_delta_2", &k.vk_delta_2, g2)?,
        ic,
    })
}

fn read<T: serde::de::DeserializeOwned>(document: &str, text: &str, max: usize) -> Result<T, FormatError> {
    if text.len() > max {
        let why = format!("expected at most {max} bytes, got {}", text.len());
        return Err(FormatError::Json { what: document.to_owned(), why });
    }
    serde_json::from_str(text)
        .map_err(|e| FormatError::Json { what: document.to_owned(), why: clip(&e.to_string(), 200) })
}

fn check_protocol(document: &str, got: &str) -> Result<(), FormatError> {
    if got == "groth16" {
        return Ok(());
    }
    Err(mismatch(format!("{document}, protocol"), "\"groth16\"", quoted(got)))
}

/// Checks the curve. snarkjs writes "bn128" and accepts two more names, in any case, and with any other characters
/// between letters and digits.
fn check_curve(document: &str, got: &str) -> Result<(), FormatError> {
    let letters = || got.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase());
    if ["bn128", "bn254", "altbn128"].iter().any(|name| letters().eq(name.chars())) {
        return Ok(());
    }
    Err(mismatch(format!("{document}, curve"), "\"bn128\"", quoted(got)))
}

fn quoted(s: &str) -> String {
    format!("{:?}", clip(s, 40))
}

fn not_below(what: String, name: &str, modulus: &str, got: &Number) -> FormatError {
    mismatch(what, format!("below {name}, {modulus}"), got.0)
}

fn fq(what: &str, name: &str, v: &Number) -> Result<Fq, FormatError> {
    Fq::from_bigint(v.0).ok_or_else(|| not_below(format!("{what}, {name}"), "q", FQ_MODULUS_DEC, v))
}

fn g1(what: &str, [x, y, z]: &G1Json) -> Result<G1Affine, FormatError> {
    let one = |n: &Number| n.0 == BigInteger256::from(1u8);
    let zero = |n: &Number| n.0 == BigInteger256::from(0u8);
    let (px, py) = (fq(what, "x", x)?, fq(what, "y", y)?);
    if zero(z) && zero(x) && one(y) {
        return Ok(G1Affine::zero());
    }
    if !one(z) {
        return Err(bad_z(what, z.0));
    }
    let p = G1Affine::new_unchecked(px, py);
    // (0, 0) represents infinity in memory, but is not a point on the curve.
    if p.is_zero() || !p.is_on_curve() {
        return Err(mismatch(what, "a point on y^2 = x^3 + 3", "one that is not on it"));
    }
    Ok(p)
}

fn g2(what: &str, [x, y, z]: &G2Json) -> Result<G2Affine, FormatError> {
    let is = |n: &[Number; 2], v: u8| n[0].0 == BigInteger256::from(v) && n[1].0 == BigInteger256::from(0u8);
    let (px, py) = (
        Fq2::new(fq(what, "x.c0", &x[0])?, fq(what, "x.c1", &x[1])?),
        Fq2::new(fq(what, "y.c0", &y[0])?, fq(what, "y.c1", &y[1])?),
    );
    if is(z, 0) && is(x, 0) && is(y, 1) {
        return Ok(G2Affine::zero());
    }
    if !is(z, 1) {
        return Err(bad_z(what, format_args!("{} + {}*u", z[0].0, z[1].0)));
    }
    let p = G2Affine::new_unchecked(px, py);
    if p.is_zero() || !p.is_on_curve() {
        return Err(mismatch(what, "a point on y^2 = x^3 + 3/(9+u)", "one that is not on it"));
    }
    if !p.is_in_correct_subgroup_assuming_on_curve() {
        let got = "one on the curve outside the group";
        return Err(mismatch(what, "a point in the group of order r", got));
    }
    Ok(p)
}

fn bad_z(what: &str, got: impl ToString) -> FormatError {
    mismatch(format!("{what}, z"), "1, or infinity as x = 0, y = 1, z = 0", got)
}

/// Decodes a point other than infinity. Infinity would mean that α, β, γ or δ is zero, and then anyone could forge
/// proofs.
fn finite<J, P: AffineRepr>(
    document: &str,
    field: &str,
    json: &J,
    decode: fn(&str, &J) -> Result<P, FormatError>,
) -> Result<P, FormatError> {
    let what = format!("{document}, {field}");
    let p = decode(&what, json)?;
    if p.is_zero() {
        return Err(mismatch(what, "a point other than infinity", "infinity"));
    }
    Ok(p)
}

/// A list of at most [`MAX_ITEMS`] items.
struct Items<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Items<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for V<T> {
            type Value = Items<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX_ITEMS} items")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Items<T>, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    if items.len() == MAX_ITEMS {
                        return Err(A::Error::invalid_length(MAX_ITEMS + 1, &self));
                    }
                    items.push(item);
                }
                Ok(Items(items))
            }
        }
        d.deserialize_seq(V(std::marker::PhantomData))
    }
}

/// A number below 2^256.
struct Number(BigInteger256);

impl Number {
    fn parse(text: &str) -> Option<Self> {
        let (digits, base) = match text.strip_prefix("0x") {
            Some(hex) => (hex, 16),
            None => (text, 10),
        };
        if digits.is_empty() || digits.len() > MAX_NUMBER {
            return None;
        }
        let mut limbs = [0u64; 4];
        for c in digits.chars() {
            let mut carry = u128::from(c.to_digit(base)?);
            for limb in &mut limbs {
                let t = u128::from(*limb) * u128::from(base) + carry;
                *limb = t as u64;
                carry = t >> 64;
            }
            if carry != 0 {
                return None;
            }
        }
        Some(Self(ark_ff::BigInt(limbs)))
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number below 2^256 as a string of digits")
            }

            fn visit_str<E: serde::de::Error>(self, s: &str) -> Result<Number, E> {
                Number::parse(s).ok_or_else(|| E::invalid_value(Unexpected::Other("another string"), &self))
            }

            fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<Number, E> {
                Ok(Number(BigInteger256::from(n)))
            }

            // serde_json passes an integer with all its digits as a special map.
            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Number, A::Error> {
                let n = serde_json::Number::deserialize(serde::de::value::MapAccessDeserializer::new(map))
                    .map_err(|_| A::Error::invalid_type(Unexpected::Map, &self))?;
                Number::parse(n.as_str())
                    .ok_or_else(|| A::Error::invalid_value(Unexpected::Other("another number"), &self))
            }
        }
        d.deserialize_any(V)
    }
}
