//! The JSON documents and the calldata.

use ark_bn254::G2Affine;
use ark_ec::AffineRepr;
use prover_worker::formats::{calldata, snarkjs};
use prover_worker::model::{FQ_MODULUS_DEC, FR_MODULUS_DEC, G1Affine, Proof, PublicInputs};

use crate::small;

/// Output of snarkjs 0.7.6 for `small::proof()`: `snarkjs zkey export soliditycalldata public.json proof.json`.
const CALLDATA: &str = concat!(
    r#"["0x030644e72e131a029b85045b68181585d97816a916871ca8d3c208c16d87cfd3", "#,
    r#""0x15ed738c0e0a7c92e7845f96b2ae9c0a68a6a449e3538fc7ff3ebf7a5a18a2c4"],"#,
    r#"[["0x1014772f57bb9742735191cd5dcfe4ebbc04156b6878a0a7c9824f32ffb66e85", "#,
    r#""0x06064e784db10e9051e52826e192715e8d7e478cb09a5e0012defa0694fbc7f5"],"#,
    r#"["0x021e2335f3354bb7922ffcc2f38d3323dd9453ac49b55441452aeaca147711b2", "#,
    r#""0x058e1d5681b5b9e0074b0f9c8d2c68a069b920d74521e79765036d57666c5597"]],"#,
    r#"["0x17c139df0efee0f766bc0204762b774362e4ded88953a39ce849a8a7fa163fa9", "#,
    r#""0x01e0559bacb160664764a357af8a9fe70baa9258e0b959273ffc5718c6d4cc7c"],"#,
    r#"["0x0000000000000000000000000000000000000000000000000000000000000021","#,
    r#""0x0000000000000000000000000000000000000000000000000000000000000000","#,
    r#""0x30644e72e131a029b85045b68181585d2833e84879b9709143e1f593f0000000"]"#,
);

/// Output of snarkjs 0.7.6 for `small::key()`: `snarkjs zkey export verificationkey`.
const VKEY: &str = include_str!("small_vkey.json");

fn proof_json() -> String {
    snarkjs::proof_to_json(&small::proof().0)
}

/// Returns the proof's document with one piece of text, which must be there, replaced.
fn proof_with(from: &str, to: &str) -> String {
    let json = proof_json();
    assert!(json.contains(from), "{from}");
    json.replacen(from, to, 1)
}

fn refused(json: &str) -> String {
    snarkjs::proof_from_json(json).unwrap_err().to_string()
}

#[test]
fn calldata_is_what_snarkjs_prints() {
    let (proof, public) = small::proof();
    assert_eq!(calldata::solidity(&proof, &public), CALLDATA);
}

#[test]
fn calldata_without_public_values_ends_with_an_empty_list() {
    let proof = Proof { a: G1Affine::zero(), b: G2Affine::zero(), c: G1Affine::zero() };
    let zero = format!("\"0x{}\"", "0".repeat(64));
    let pair = format!("[{zero}, {zero}]");
    assert_eq!(calldata::solidity(&proof, &PublicInputs(Vec::new())), format!("{pair},[{pair},{pair}],{pair},[]"));
}

#[test]
fn a_verification_key_is_what_snarkjs_writes() {
    let key = small::key().header.vk;
    assert_eq!(snarkjs::vkey_to_json(&key), VKEY);
    assert_eq!(snarkjs::vkey_from_json(VKEY).unwrap(), key);
}

#[test]
fn a_proof_has_the_layout_of_snarkjs() {
    let proof = Proof { a: small::g1(1), b: G2Affine::zero(), c: G1Affine::zero() };
    let json = r#"{
 "pi_a": [
  "1",
  "2",
  "1"
 ],
 "pi_b": [
  [
   "0",
   "0"
  ],
  [
   "1",
   "0"
  ],
  [
   "0",
   "0"
  ]
 ],
 "pi_c": [
  "0",
  "1",
  "0"
 ],
 "protocol": "groth16",
 "curve": "bn128"
}"#;
    assert_eq!(snarkjs::proof_to_json(&proof), json);
    assert_eq!(snarkjs::proof_from_json(json).unwrap(), proof);
    assert_eq!(snarkjs::proof_from_json(&proof_json()).unwrap(), small::proof().0);
}

#[test]
fn public_values_have_the_layout_of_snarkjs() {
    assert_eq!(snarkjs::public_to_json(&PublicInputs(Vec::new())), "[\n]");
    assert_eq!(snarkjs::public_from_json("[]").unwrap(), PublicInputs(Vec::new()));
    let (_, public) = small::proof();
    let r_minus_1 = "21888242871839275222246405745257275088548364400416034343698204186575808495616";
    let json = format!("[\n \"33\",\n \"0\",\n \"{r_minus_1}\"\n]");
    assert_eq!(snarkjs::public_to_json(&public), json);
    assert_eq!(snarkjs::public_from_json(&json).unwrap(), public);
    assert_eq!(snarkjs::public_from_json(&format!("[33, \"0x0\", {r_minus_1}]")).unwrap(), public);
    assert_eq!(snarkjs::public_from_json("[\"0x21\", 0, \"033\"]").unwrap().0[2], public.0[0]);
}

#[test]
fn public_values_that_are_no_numbers_below_r_are_refused() {
    for bad in [
        format!("[{FR_MODULUS_DEC}]"),
        format!("[\"1\", \"{FR_MODULUS_DEC}\"]"),
        format!("[\"{}\"]", "9".repeat(78)),
        format!("[\"{}1\"]", "0".repeat(200)),
    ] {
        assert!(snarkjs::public_from_json(&bad).is_err(), "{bad}");
    }
    for bad in ["", "\"\"", "\"0x\"", "\"-1\"", "-1", "1.0", "1e2", "\"1.0\"", "\" 1\"", "\"1_0\"", "\"+1\"", "null"] {
        assert!(snarkjs::public_from_json(&format!("[1, {bad}]")).is_err(), "{bad}");
    }
    for bad in ["true", "[1]", "{}", "\"0x1g\"", "\"٣\"", "\"0X1\"", "\"one\""] {
        assert!(snarkjs::public_from_json(&format!("[{bad}]")).is_err(), "{bad}");
    }
    for bad in ["", "{}", "1", "[1", "[1]]", "null", "[1,]"] {
        assert!(snarkjs::public_from_json(bad).is_err(), "{bad}");
    }
    let e = snarkjs::public_from_json(&format!("[0, 1, {FR_MODULUS_DEC}]")).unwrap_err().to_string();
    assert!(e.contains("value 2") && e.contains("below r"), "{e}");
}

#[test]
fn numbers_of_a_proof_may_be_json_integers_of_any_length() {
    let text = proof_json();
    let bare: String = text
        .lines()
        .map(|line| {
            if line.contains(|c: char| c.is_ascii_digit()) && !line.contains(':') {
                line.replace('"', "")
            } else {
                line.to_owned()
            }
        })
        .collect();
    assert_ne!(bare, text);
    assert_eq!(snarkjs::proof_from_json(&bare).unwrap(), small::proof().0);
}

#[test]
fn protocol_and_curve_of_a_proof_may_be_absent_but_not_wrong() {
    let without = proof_with(",\n \"protocol\": \"groth16\",\n \"curve\": \"bn128\"", "");
    assert_eq!(snarkjs::proof_from_json(&without).unwrap(), small::proof().0);
    for name in ["bn254", "BN254", "altbn128", "alt_bn128"] {
        assert!(snarkjs::proof_from_json(&proof_with("bn128", name)).is_ok());
    }
    assert!(refused(&proof_with("groth16", "plonk")).contains("\"plonk\""));
    assert!(refused(&proof_with("bn128", "bls12381")).contains("\"bls12381\""));
    assert!(refused(&proof_with("pi_b", "pi_x")).contains("pi_b"));
}

#[test]
fn points_that_are_not_in_their_group_are_refused() {
    let (x, y) = (small::g1(2).x.to_string(), small::g1(2).y.to_string());
    assert!(refused(&proof_with(&x, "1")).contains("pi_a"));
    assert!(refused(&proof_with(&x, "1")).contains("y^2 = x^3 + 3"));
    // x + q is the same number to a reader that reduces.
    let plus_q = {
        use num_bigint::BigUint;
        (x.parse::<BigUint>().unwrap() + FQ_MODULUS_DEC.parse::<BigUint>().unwrap()).to_string()
    };
    assert!(refused(&proof_with(&x, &plus_q)).contains("pi_a, x: expected below q"));
    // Another z, and invalid ways to write infinity.
    assert!(refused(&proof_with("\"1\"", "\"2\"")).contains("pi_a, z"));
    assert!(refused(&proof_with("\"1\"", "\"0\"")).contains("pi_a, z"));
    assert!(refused(&proof_with(&x, "0").replacen(&y, "0", 1)).contains("not on it"));

    let outside = crate::hostile::outside_g2();
    let proof = Proof { b: outside, ..small::proof().0 };
    assert!(refused(&snarkjs::proof_to_json(&proof)).contains("pi_b: expected a point in the group of order r"));
    let mut key = small::key().header.vk;
    key.gamma_g2 = outside;
    let e = snarkjs::vkey_from_json(&snarkjs::vkey_to_json(&key)).unwrap_err().to_string();
    assert!(e.contains("vk_gamma_2"), "{e}");
}

#[test]
fn a_verification_key_that_disagrees_with_itself_is_refused() {
    let refused = |json: &str| snarkjs::vkey_from_json(json).unwrap_err().to_string();
    assert!(refused(&VKEY.replace("\"nPublic\": 1", "\"nPublic\": 2")).contains("got 2 points"));
    assert!(refused(&VKEY.replace("\"nPublic\": 1", "\"nPublic\": 18446744073709551615")).contains("got 2 points"));
    assert!(refused(&VKEY.replace("\"nPublic\": 1", "\"nPublic\": -1")).starts_with("verification key: "));
    assert!(refused(&VKEY.replace("groth16", "fflonk")).contains("\"fflonk\""));
    assert!(refused(&VKEY.replace("\"curve\": \"bn128\",", "")).contains("curve"));
    let mut key = small::key().header.vk;
    key.delta_g2 = G2Affine::zero();
    assert!(refused(&snarkjs::vkey_to_json(&key)).contains("vk_delta_2: expected a point other than infinity"));
}

#[test]
fn infinity_among_the_points_of_ic_is_fine() {
    let mut key = small::key().header.vk;
    key.ic[1] = G1Affine::zero();
    assert_eq!(snarkjs::vkey_from_json(&snarkjs::vkey_to_json(&key)).unwrap(), key);
}

#[test]
fn documents_beyond_their_bound_are_refused_unread() {
    let long = " ".repeat(snarkjs::MAX_PROOF_JSON + 1);
    assert!(refused(&long).contains("65536 bytes"));
    assert!(refused(&"[".repeat(60_000)).starts_with("proof: "));
}

#[test]
fn a_document_cut_anywhere_is_an_error() {
    let proof = proof_json();
    assert!((0..proof.len()).all(|n| snarkjs::proof_from_json(&proof[..n]).is_err()));
    assert!((0..VKEY.len()).all(|n| snarkjs::vkey_from_json(&VKEY[..n]).is_err()));
    let public = snarkjs::public_to_json(&small::proof().1);
    assert!((0..public.len()).all(|n| snarkjs::public_from_json(&public[..n]).is_err()));
}
