//! The section files.

use ark_bn254::{G1Affine, G2Affine};
use ark_ec::{AffineRepr, CurveGroup};
use ark_ff::{BigInteger256, PrimeField};
use bytes::Bytes;
use proptest::prelude::*;
use prover_worker::formats::{r1cs, snarkjs, wtns, zkey};
use prover_worker::model::{Fr, KeyHeader, KeySections, ProvingKey, VerificationKey, Witness};

use crate::fuzz;
use crate::mutate::damaged;

fn g1(n: u64) -> G1Affine {
    (G1Affine::generator() * Fr::from(n)).into_affine()
}

fn g2(n: u64) -> G2Affine {
    (G2Affine::generator() * Fr::from(n)).into_affine()
}

pub fn vkey(n_public: u32) -> VerificationKey {
    VerificationKey {
        alpha_g1: g1(2),
        beta_g2: g2(3),
        gamma_g2: g2(5),
        delta_g2: g2(7),
        ic: (0..=n_public).map(|i| g1(u64::from(i))).collect(),
    }
}

/// Returns a key that passes every check.
fn key(n_vars: u32, n_public: u32, domain_size: u32) -> Vec<u8> {
    let rows = domain_size - n_public - 1;
    let one = Fr::from(1u8);
    let own = (0..rows).flat_map(|row| [(0, row, row % n_vars, one), (1, row, (row + 1) % n_vars, -one)]);
    let public = (0..=n_public).map(|s| (0, rows + s, s, one));
    let some_g1 = |n: u32| -> Vec<G1Affine> { (0..n).map(|i| g1(u64::from(i))).collect() };
    let some_g2: Vec<G2Affine> = (0..n_vars).map(|i| g2(u64::from(i % 3))).collect();
    let key = ProvingKey {
        header: KeyHeader { n_vars, n_public, domain_size, beta_g1: g1(3), delta_g1: g1(7), vk: vkey(n_public) },
        sections: KeySections {
            coefficients: Bytes::from(zkey::encode_coefficients(own.chain(public))),
            a: Bytes::from(zkey::encode_g1(&some_g1(n_vars))),
            b1: Bytes::from(zkey::encode_g1(&some_g1(n_vars))),
            b2: Bytes::from(zkey::encode_g2(&some_g2)),
            c: Bytes::from(zkey::encode_g1(&some_g1(n_vars - n_public - 1))),
            h: Bytes::from(zkey::encode_g1(&some_g1(domain_size))),
        },
    };
    let mut file = Vec::new();
    zkey::write(&key, &mut file).unwrap();
    file
}

fn wtns_file(n: u64) -> Vec<u8> {
    let mut file = Vec::new();
    let values = (1..=n).map(BigInteger256::from).collect();
    wtns::write(&Witness::from_canonical(values), &mut file).unwrap();
    file
}

fn r1cs_file(n: u32) -> Vec<u8> {
    let le = |v: BigInteger256| v.0.into_iter().flat_map(u64::to_le_bytes);
    let mut header = 32u32.to_le_bytes().to_vec();
    header.extend(le(Fr::MODULUS));
    [n + 4, 1, 1, 1].iter().for_each(|v| header.extend(v.to_le_bytes()));
    header.extend(u64::from(n).to_le_bytes());
    header.extend(n.to_le_bytes());
    let mut rows = Vec::new();
    for row in 0..3 * n {
        let terms = row % 4;
        rows.extend(terms.to_le_bytes());
        for t in 0..terms {
            rows.extend(((row + t) % (n + 4)).to_le_bytes());
            rows.extend(le(BigInteger256::from(u64::from(t + 1))));
        }
    }
    let mut file = b"r1cs\x01\0\0\0\x03\0\0\0".to_vec();
    for (id, data) in [(2u32, rows), (1, header), (3, vec![0; 8 * (n as usize + 4)])] {
        file.extend(id.to_le_bytes());
        file.extend((data.len() as u64).to_le_bytes());
        file.extend(data);
    }
    file
}

#[test]
fn zkey_files() {
    let originals = vec![key(4, 1, 4), key(1, 0, 1), key(9, 3, 16)];
    for file in &originals {
        zkey::check(&zkey::parse(Bytes::from(file.clone())).unwrap()).unwrap();
    }
    fuzz("zkey", damaged(originals), |file| {
        let Ok(key) = zkey::parse(Bytes::from(file)) else { return Ok(()) };
        let _ = zkey::check(&key);
        let mut written = Vec::new();
        zkey::write(&key, &mut written).unwrap();
        let again = zkey::parse(Bytes::from(written)).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(&again.header.vk, &key.header.vk);
        let (a, b) = (&again.sections, &key.sections);
        for (a, b) in [
            (&a.coefficients, &b.coefficients),
            (&a.a, &b.a),
            (&a.b1, &b.b1),
            (&a.b2, &b.b2),
            (&a.c, &b.c),
            (&a.h, &b.h),
        ] {
            prop_assert_eq!(a, b);
        }
        let json = snarkjs::vkey_to_json(&key.header.vk);
        prop_assert_eq!(snarkjs::vkey_from_json(&json), Ok(again.header.vk));
        Ok(())
    });
}

#[test]
fn wtns_files() {
    let originals = vec![wtns_file(1), wtns_file(4), wtns_file(40)];
    fuzz("wtns", damaged(originals), |file| {
        let Ok(witness) = wtns::parse(&file) else { return Ok(()) };
        prop_assert!(witness.values().iter().all(|v| *v < Fr::MODULUS));
        prop_assert_eq!(witness.values()[0], BigInteger256::from(1u8));
        let mut written = Vec::new();
        wtns::write(&witness, &mut written).unwrap();
        let again = wtns::parse(&written).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(again.values(), witness.values());
        Ok(())
    });
}

#[test]
fn r1cs_files() {
    let originals = vec![r1cs_file(0), r1cs_file(1), r1cs_file(7)];
    for file in &originals {
        r1cs::parse(file).unwrap();
    }
    fuzz("r1cs", damaged(originals), |file| {
        let Ok(system) = r1cs::parse(&file) else { return Ok(()) };
        let c = &system.constraints;
        let terms: usize = (0..c.len()).flat_map(|i| (0..3).map(move |m| c.row(i, m).len())).sum();
        prop_assert_eq!(terms, c.terms.len());
        prop_assert!(c.terms.iter().all(|(wire, value)| *wire < system.n_wires && *value < Fr::MODULUS));
        prop_assert!(system.n_public() < system.n_wires);
        // nWires is only a claim; no bytes stand behind it.
        if system.n_wires < 1000 {
            let values = (1..=u64::from(system.n_wires)).map(BigInteger256::from).collect();
            let _ = r1cs::check_witness(&system, &Witness::from_canonical(values));
        }
        Ok(())
    });
}
