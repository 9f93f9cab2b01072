//! Solidity calldata.

use ark_ec::AffineRepr;
use ark_ff::{BigInteger, PrimeField};

use crate::model::{Fq, Fq2, G1Affine, Proof, PublicInputs};

/// Returns the arguments of the verifier contract's `verifyProof`, as text in the format of `snarkjs zkey export
/// soliditycalldata`: a, b, c and the public values, each number as `"0x"` and 64 hexadecimal digits. A coordinate of
/// G2 is the pair c1, c0, as in the EVM's pairing: the opposite order of proof.json.
///
/// Infinity is (0, 0), as in the EVM. (snarkjs prints (0, 1), which the EVM rejects.)
pub fn solidity(p: &Proof, public: &PublicInputs) -> String {
    let (bx, by) = p.b.xy().unwrap_or_default();
    let inputs: Vec<String> = public.0.iter().map(hex).collect();
    format!("{},[{},{}],{},[{}]", g1(&p.a), swapped(&bx), swapped(&by), g1(&p.c), inputs.join(","))
}

fn g1(p: &G1Affine) -> String {
    let (x, y): (Fq, Fq) = p.xy().unwrap_or_default();
    format!("[{}, {}]", hex(&x), hex(&y))
}

fn swapped(c: &Fq2) -> String {
    format!("[{}, {}]", hex(&c.c1), hex(&c.c0))
}

fn hex(v: &impl PrimeField) -> String {
    format!("\"0x{}\"", hex::encode(v.into_bigint().to_bytes_be()))
}
