//! The JSON documents.

use ark_bn254::{G1Affine, G2Affine};
use ark_ec::AffineRepr;
use proptest::prelude::*;
use proptest::sample::Index;
use prover_worker::formats::{calldata, snarkjs};
use prover_worker::model::{FQ_MODULUS_DEC, FR_MODULUS_DEC, Fr, Proof, PublicInputs};

use crate::files::vkey;
use crate::fuzz;
use crate::mutate::damaged;

/// Pieces of JSON that tend to break readers.
const TOKENS: [&str; 24] = [
    "0",
    "1",
    "-1",
    "\"-1\"",
    "\"\"",
    "\"0x\"",
    "\"0xff\"",
    "1e400",
    "0.5",
    "18446744073709551616",
    "null",
    "true",
    "[]",
    "{}",
    "[[[[]]]]",
    "\"\\ud800\"",
    "\"\\u0031\"",
    "{\"$serde_json::private::Number\":\"7\"}",
    "{\"$serde_json::private::Number\":\"x\"}",
    "\"115792089237316195423570985008687907853269984665640564039457584007913129639936\"",
    FQ_MODULUS_DEC,
    FR_MODULUS_DEC,
    "[\"0\",\"1\",\"0\"]",
    "[[\"0\",\"0\"],[\"1\",\"0\"],[\"0\",\"0\"]]",
];

/// A document with some of its numbers, strings or lists replaced, or damaged byte by byte.
fn documents(originals: Vec<String>) -> impl Strategy<Value = String> {
    let tokens = (
        prop::sample::select(originals.clone()),
        prop::collection::vec((any::<Index>(), prop::sample::select(&TOKENS[..])), 0..3),
    )
        .prop_map(|(mut text, changes)| {
            for (at, token) in changes {
                // A value starts after a space and ends before a comma or a line end.
                let starts: Vec<usize> = text.match_indices(' ').map(|(i, _)| i + 1).collect();
                let Some(start) = (!starts.is_empty()).then(|| starts[at.index(starts.len())]) else { continue };
                let end = text[start..].find([',', '\n']).map_or(text.len(), |n| start + n);
                text.replace_range(start..end, token);
            }
            text
        });
    let bytes = damaged(originals.into_iter().map(String::into_bytes).collect())
        .prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    prop_oneof![2 => tokens, 1 => bytes]
}

fn proofs() -> Vec<Proof> {
    let (g, h) = (G1Affine::generator(), G2Affine::generator());
    vec![Proof { a: g, b: h, c: -g }, Proof { a: G1Affine::zero(), b: G2Affine::zero(), c: G1Affine::zero() }]
}

#[test]
fn proof_documents() {
    let originals: Vec<String> = proofs().iter().map(snarkjs::proof_to_json).collect();
    fuzz("proof.json", documents(originals), |text| {
        let Ok(proof) = snarkjs::proof_from_json(&text) else { return Ok(()) };
        prop_assert!(proof.a.is_on_curve() && proof.c.is_on_curve() && proof.b.is_on_curve());
        prop_assert!(proof.b.is_in_correct_subgroup_assuming_on_curve());
        calldata::solidity(&proof, &PublicInputs(Vec::new()));
        prop_assert_eq!(snarkjs::proof_from_json(&snarkjs::proof_to_json(&proof)), Ok(proof));
        Ok(())
    });
}

#[test]
fn public_documents() {
    let values = PublicInputs((0..5u64).map(|i| Fr::from(i) - Fr::from(2u8)).collect());
    let originals = vec![snarkjs::public_to_json(&values), snarkjs::public_to_json(&PublicInputs(Vec::new()))];
    fuzz("public.json", documents(originals), |text| {
        let Ok(public) = snarkjs::public_from_json(&text) else { return Ok(()) };
        prop_assert_eq!(snarkjs::public_from_json(&snarkjs::public_to_json(&public)), Ok(public));
        Ok(())
    });
}

#[test]
fn verification_key_documents() {
    let originals = vec![snarkjs::vkey_to_json(&vkey(0)), snarkjs::vkey_to_json(&vkey(4))];
    fuzz("verification_key.json", documents(originals), |text| {
        let Ok(key) = snarkjs::vkey_from_json(&text) else { return Ok(()) };
        prop_assert_eq!(key.ic.len(), key.n_public() + 1);
        prop_assert_eq!(snarkjs::vkey_from_json(&snarkjs::vkey_to_json(&key)), Ok(key));
        Ok(())
    });
}
