//! Malicious files: each gives a prompt, clear error.

use ark_bn254::Fq2;
use ark_ff::{BigInteger256, PrimeField};
use bytes::Bytes;
use prover_worker::formats::{FormatError, r1cs, wtns, zkey};
use prover_worker::model::{Fr, G2Affine, ProvingKey};

use crate::small::{self, edit, join, le, patch, q_plus, split};

// Offsets in section 2 of a zkey.
const Q: usize = 4;
const R: usize = 40;
const N_VARS: usize = 72;
const N_PUBLIC: usize = 76;
const DOMAIN: usize = 80;
const ALPHA1: usize = 84;
const BETA2: usize = 212;
const GAMMA2: usize = 340;
const DELTA1: usize = 468;

/// A point on the twist, but outside G2.
pub fn outside_g2() -> G2Affine {
    (1u64..)
        .filter_map(|x| G2Affine::get_point_from_x_unchecked(Fq2::from(x), false))
        .find(|p| !p.is_in_correct_subgroup_assuming_on_curve())
        .unwrap()
}

fn parsed(file: &[u8]) -> Result<ProvingKey, FormatError> {
    zkey::parse(Bytes::copy_from_slice(file))
}

/// Returns what `parse` says about a bad key.
fn refused(file: &[u8]) -> String {
    parsed(file).map(drop).unwrap_err().to_string()
}

/// Returns what `check` says about a key that `parse` accepts.
fn unsound(file: &[u8]) -> String {
    zkey::check(&parsed(file).unwrap()).unwrap_err().to_string()
}

#[track_caller]
fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "expected {part:?} in {message:?}");
    }
}

type Reader = fn(&[u8]) -> Result<(), FormatError>;

/// A small file of each kind, with its reader.
fn kinds() -> [(&'static str, Vec<u8>, Reader); 3] {
    [
        ("zkey", small::zkey_file(), |f| parsed(f).map(drop)),
        ("wtns", small::wtns_file(), |f| wtns::parse(f).map(drop)),
        ("r1cs", small::r1cs_file(), |f| r1cs::parse(f).map(drop)),
    ]
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    for (kind, file, read) in kinds() {
        assert_eq!(read(&file), Ok(()), "{kind}");
        for n in 0..file.len() {
            assert!(read(&file[..n]).is_err(), "{kind} of {n} bytes");
        }
    }
}

#[test]
fn another_file_is_named_by_its_magic_and_version() {
    for (kind, file, read) in kinds() {
        let mut other = file.clone();
        other[..4].copy_from_slice(b"\x7fELF");
        says(&read(&other).unwrap_err().to_string(), &["magic", kind, "ELF"]);
        let mut newer = file.clone();
        newer[4] = 9;
        says(&read(&newer).unwrap_err().to_string(), &["version", "got 9"]);
        assert!(read(&[]).is_err());
    }
}

#[test]
fn section_counts_that_the_bytes_do_not_pay_for_are_refused() {
    for (kind, file, read) in kinds() {
        for count in [u32::MAX, 0x1000_0000, file.len() as u32] {
            let mut lying = file.clone();
            lying[8..12].copy_from_slice(&count.to_le_bytes());
            let e = read(&lying).unwrap_err();
            assert!(matches!(e, FormatError::Truncated { .. }), "{kind}: {e}");
        }
    }
}

#[test]
fn section_lengths_that_the_bytes_do_not_pay_for_are_refused() {
    for (kind, file, read) in kinds() {
        let left = file.len() as u64 - 24;
        // The last one would wrap around to the start of the file.
        for length in [u64::MAX, 1 << 63, u64::from(u32::MAX), left + 1, u64::MAX - 23] {
            let mut lying = file.clone();
            lying[16..24].copy_from_slice(&length.to_le_bytes());
            let e = read(&lying).unwrap_err();
            let expected = |needed: &u64| *needed == length;
            assert!(matches!(&e, FormatError::Truncated { needed, .. } if expected(needed)), "{kind}: {e}");
        }
    }
}

#[test]
fn bytes_after_the_last_section_are_refused() {
    for (_, mut file, read) in kinds() {
        file.push(0);
        says(&read(&file).unwrap_err().to_string(), &["end of the last section", "1 more"]);
        // A section that the count does not include.
        file.pop();
        file[8] -= 1;
        assert!(read(&file).is_err());
    }
}

#[test]
fn missing_and_repeated_sections_are_named() {
    for (kind, file, read) in kinds() {
        let version = u32::from(file[4]);
        let magic: &[u8; 4] = file[..4].try_into().unwrap();
        let sections = split(&file);
        let needed: &[u32] = if kind == "zkey" { &[1, 2, 3, 4, 5, 6, 7, 8, 9] } else { &[1, 2] };
        for id in needed {
            let without: Vec<_> = sections.iter().filter(|s| s.0 != *id).cloned().collect();
            let e = read(&join(magic, version, &without)).unwrap_err();
            assert!(matches!(&e, FormatError::MissingSection { id: missing, .. } if missing == id), "{kind}: {e}");
            says(&e.to_string(), &[&format!("section {id} ("), "is missing"]);
            let mut twice = sections.clone();
            twice.push(sections.iter().find(|s| s.0 == *id).unwrap().clone());
            let e = read(&join(magic, version, &twice)).unwrap_err();
            assert!(matches!(&e, FormatError::DuplicateSection { id: twice, .. } if twice == id), "{kind}: {e}");
        }
    }
}

#[test]
fn other_protocols_are_named() {
    let file = small::zkey_file();
    for (id, name) in [(2u32, "PLONK"), (10, "fflonk"), (0, "got 0"), (7, "got 7")] {
        says(&refused(&patch(&file, 1, 0, &id.to_le_bytes())), &["protocol", "1 (Groth16)", name]);
    }
    // A PLONK key lacks most sections of a Groth16 key; the message must not be about those.
    let plonk = join(b"zkey", 1, &[(1, vec![2, 0, 0, 0]), (2, vec![0; 8]), (14, Vec::new())]);
    says(&refused(&plonk), &["PLONK"]);
}

#[test]
fn other_curves_are_named() {
    let file = small::zkey_file();
    let decimal = |s: &str| s.parse::<num_bigint::BigUint>().unwrap().to_bytes_le();
    let bls_q = decimal(
        "4002409555221667393417789825735904156556882819939007885332058136124031650490837864442687629129015664037894272559787",
    );
    let bls_r = decimal("52435875175126190479447740508185965837690552500527637822603658699938581184513");
    let bls = edit(&file, 2, |s| {
        let mut h = 48u32.to_le_bytes().to_vec();
        h.extend(&bls_q);
        h.extend(32u32.to_le_bytes());
        h.extend(&bls_r);
        h.extend(&s[72..]);
        *s = h;
    });
    says(&refused(&bls), &["prime q", "base field of BN254", "base field of BLS12-381"]);
    says(&refused(&patch(&file, 2, R, &bls_r)), &["prime r", "scalar field of BLS12-381"]);
    says(&refused(&patch(&file, 2, Q, &[1])), &["prime q", "BN254"]);
    for n8 in [0u32, 31, 33, 129, u32::MAX] {
        says(&refused(&patch(&file, 2, 0, &n8.to_le_bytes())), &["prime q"]);
    }
    says(&wtns::parse(&patch(&small::wtns_file(), 1, 4, &bls_r)).unwrap_err().to_string(), &["BLS12-381"]);
    says(&r1cs::parse(&patch(&small::r1cs_file(), 1, 4, &bls_r)).unwrap_err().to_string(), &["BLS12-381"]);
}

#[test]
fn counts_of_a_key_must_make_sense() {
    let file = small::zkey_file();
    let with = |at: usize, n: u32| refused(&patch(&file, 2, at, &n.to_le_bytes()));
    says(&with(N_PUBLIC, 4), &["nPublic", "less than nVars, 4", "got 4"]);
    says(&with(N_PUBLIC, u32::MAX), &["nPublic"]);
    says(&with(N_VARS, 0), &["nPublic"]);
    says(&with(DOMAIN, 1 << 31), &["domainSize", "2^28"]);
    for domain in [0, 3, 5, u32::MAX, 1 << 29] {
        says(&with(DOMAIN, domain), &["domainSize", "a power of two"]);
    }
    says(&with(DOMAIN, 1), &["domainSize"]);
    says(&with(DOMAIN, 1 << 28), &["section 9 (H), length", "17179869184 bytes", "got 256 bytes"]);
    says(&with(DOMAIN, 2), &["section 9 (H), length"]);
    says(&with(N_VARS, 5), &["section 5 (A), length"]);
    says(&with(N_VARS, u32::MAX), &["section 5 (A), length"]);
    says(&with(N_PUBLIC, 2), &["section 3 (IC), length"]);
}

#[test]
fn sections_of_another_length_are_refused() {
    let file = small::zkey_file();
    for id in 1..10 {
        for change in
            [|s: &mut Vec<u8>| s.push(0), |s: &mut Vec<u8>| s.truncate(s.len() - 1), |s: &mut Vec<u8>| s.clear()]
        {
            says(&refused(&edit(&file, id, change)), &[&format!("section {id} (")]);
        }
    }
    for count in [0u32, 3, 5, u32::MAX] {
        says(
            &refused(&patch(&file, 4, 0, &count.to_le_bytes())),
            &["section 4 (coefficients), length", "got 176 bytes"],
        );
    }
}

#[test]
fn fixed_points_of_a_key_are_checked_at_once() {
    let file = small::zkey_file();
    says(&refused(&patch(&file, 2, ALPHA1, &[1])), &["alpha1", "y^2 = x^3 + 3"]);
    says(&refused(&patch(&file, 2, ALPHA1, &q_plus(0))), &["alpha1, x", "below q"]);
    says(&refused(&patch(&file, 2, DELTA1 + 32, &[0xff; 32])), &["delta1, y", "below q"]);
    says(&refused(&patch(&file, 2, BETA2 + 96, &q_plus(3))), &["beta2, y.c1", "below q"]);
    let outside = zkey::encode_g2(&[outside_g2()]);
    says(&refused(&patch(&file, 2, GAMMA2, &outside)), &["gamma2", "group of order r"]);
    says(&refused(&patch(&file, 2, GAMMA2, &[0; 128])), &["gamma2", "infinity"]);
    says(&refused(&patch(&file, 2, ALPHA1, &[0; 64])), &["alpha1", "infinity"]);
    says(&refused(&patch(&file, 3, 64, &[9])), &["section 3 (IC), point 1"]);
    // Infinity is allowed in IC.
    assert!(zkey::check(&parsed(&patch(&file, 3, 64, &[0; 64])).unwrap()).is_ok());
}

#[test]
fn every_point_of_a_key_is_checked() {
    let file = small::zkey_file();
    for (id, name, points) in [(5, "A", 4), (6, "B1", 4), (8, "C", 2), (9, "H", 4)] {
        for i in 0..points {
            let place = format!("section {id} ({name}), point {i}");
            says(&unsound(&patch(&file, id, 64 * i, &q_plus(1))), &[&place, "x: expected below q"]);
            says(&unsound(&patch(&file, id, 64 * i + 32, &q_plus(0))), &[&place, "y: expected below q"]);
            says(&unsound(&patch(&file, id, 64 * i, &[3; 32])), &[&place, "y^2 = x^3 + 3"]);
            let infinity = parsed(&patch(&file, id, 64 * i, &[0; 64])).unwrap();
            assert_eq!(zkey::check(&infinity), Ok(()), "{place}");
        }
    }
    let outside = zkey::encode_g2(&[outside_g2()]);
    for i in 0..4 {
        let place = format!("section 7 (B2), point {i}");
        says(&unsound(&patch(&file, 7, 128 * i, &[3; 32])), &[&place, "3/(9+u)"]);
        says(&unsound(&patch(&file, 7, 128 * i + 96, &q_plus(0))), &[&place, "y.c1: expected below q"]);
        says(&unsound(&patch(&file, 7, 128 * i, &outside)), &[&place, "group of order r"]);
    }
}

#[test]
fn the_first_fault_is_the_one_reported() {
    let mut file = small::zkey_file();
    file = patch(&file, 9, 64, &[3; 32]);
    says(&unsound(&file), &["section 9 (H), point 1"]);
    file = patch(&file, 7, 128 * 3, &[3; 32]);
    says(&unsound(&file), &["section 7 (B2), point 3"]);
    file = patch(&file, 7, 128, &zkey::encode_g2(&[outside_g2()]));
    says(&unsound(&file), &["section 7 (B2), point 1", "group of order r"]);
    file = patch(&file, 4, 4 + 44, &[2]);
    says(&unsound(&file), &["section 4 (coefficients), entry 1"]);
}

#[test]
fn every_matrix_entry_is_checked() {
    let file = small::zkey_file();
    let entry = |i: usize, field: usize, bytes: &[u8]| patch(&file, 4, 4 + 44 * i + field, bytes);
    says(&unsound(&entry(1, 0, &2u32.to_le_bytes())), &["entry 1, matrix", "got 2"]);
    says(&unsound(&entry(1, 4, &4u32.to_le_bytes())), &["entry 1, row", "less than domainSize, 4", "got 4"]);
    says(&unsound(&entry(0, 8, &4u32.to_le_bytes())), &["entry 0, signal", "less than nVars, 4", "got 4"]);
    says(&unsound(&entry(1, 8, &[0xff; 4])), &["entry 1, signal"]);
    says(&unsound(&entry(1, 12, &le(Fr::MODULUS))), &["entry 1, value", "below r"]);
    says(&unsound(&entry(3, 12, &[0xff; 32])), &["entry 3, value", "below r"]);
}

#[test]
fn the_rows_of_public_wires_must_be_there() {
    let one = Fr::from(1u8);
    let with = |entries: &[(u32, u32, u32, Fr)]| {
        let mut key = small::key();
        key.sections.coefficients = Bytes::from(zkey::encode_coefficients(entries.iter().copied()));
        zkey::check(&key).map_err(|e| e.to_string())
    };
    let (a, b) = ((0, 0, 2, one), (1, 0, 3, one));
    assert_eq!(with(&[a, b, (0, 1, 0, one), (0, 2, 1, one)]), Ok(()));
    assert_eq!(with(&[(0, 2, 1, one), a, (0, 1, 0, one), b]), Ok(()), "in any order");
    says(&with(&[a, b, (0, 1, 0, one), (0, 3, 1, one)]).unwrap_err(), &["row 2", "none"]);
    says(&with(&[a, b, (0, 1, 0, one), (0, 2, 2, one)]).unwrap_err(), &["entry 3", "signal 1", "signal 2"]);
    says(&with(&[a, b, (0, 1, 0, Fr::from(2u8)), (0, 2, 1, one)]).unwrap_err(), &["entry 2", "value 2"]);
    says(&with(&[a, b, (1, 1, 0, one), (0, 2, 1, one)]).unwrap_err(), &["entry 2", "matrix 1"]);
    says(&with(&[a, b, (0, 1, 0, one), (0, 2, 1, one), (0, 2, 1, one)]).unwrap_err(), &["entry 4", "second"]);
    says(&with(&[(0, 0, 0, one)]).unwrap_err(), &["rows", "at least 2", "got 1"]);
    assert!(with(&[]).is_err());
}

#[test]
fn a_number_that_differs_between_the_groups_is_found() {
    let mut key = small::key();
    key.header.beta_g1 = small::g1(4);
    says(&zkey::check(&key).unwrap_err().to_string(), &["beta", "the same number in G1 and in G2"]);
    let mut key = small::key();
    key.header.vk.delta_g2 = small::g2(8);
    says(&zkey::check(&key).unwrap_err().to_string(), &["delta"]);
}

#[test]
fn a_key_put_together_wrongly_is_found() {
    let mut key = small::key();
    key.sections.h.truncate(64);
    says(&zkey::check(&key).unwrap_err().to_string(), &["section 9 (H), length"]);
    let mut key = small::key();
    key.sections.coefficients.truncate(50);
    says(&zkey::check(&key).unwrap_err().to_string(), &["section 4 (coefficients)"]);
    let mut key = small::key();
    key.header.vk.ic.pop();
    says(&zkey::check(&key).unwrap_err().to_string(), &["section 3 (IC), length"]);
    let mut key = small::key();
    key.header.n_public = u32::MAX;
    assert!(zkey::check(&key).is_err());
}

#[test]
fn a_witness_must_be_canonical_and_begin_with_one() {
    let file = small::wtns_file();
    let refused = |file: &[u8]| wtns::parse(file).unwrap_err().to_string();
    says(&refused(&patch(&file, 2, 0, &[2])), &["value 0", "the constant 1"]);
    says(&refused(&patch(&file, 2, 0, &[0])), &["value 0"]);
    says(&refused(&patch(&file, 2, 64, &le(Fr::MODULUS))), &["value 2", "below r"]);
    says(&refused(&patch(&file, 2, 96, &[0xff; 32])), &["value 3", "below r"]);
    let mut r_minus_1 = Fr::MODULUS;
    r_minus_1.0[0] -= 1;
    assert!(wtns::parse(&patch(&file, 2, 96, &le(r_minus_1))).is_ok());
    for count in [0u32, 3, 5, u32::MAX] {
        says(&refused(&patch(&file, 1, 36, &count.to_le_bytes())), &["section 2 (values), length", "got 128 bytes"]);
    }
    let empty = patch(&edit(&file, 2, Vec::clear), 1, 36, &[0]);
    says(&refused(&empty), &["value 0", "no values"]);
    says(&refused(&edit(&file, 1, |s| s.push(0))), &["section 1 (header)"]);
}

/// Values of a witness are secret: a message says which one, not its value.
#[test]
fn no_message_shows_a_value_of_a_witness() {
    let file = small::wtns_file();
    let mut secret = Fr::MODULUS;
    secret.0[0] += 123_456;
    let e = wtns::parse(&patch(&file, 2, 32, &le(secret))).unwrap_err().to_string();
    assert!(!e.contains(&secret.to_string()) && !e.contains("123456"), "{e}");
    let e = wtns::parse(&patch(&file, 2, 0, &[77])).unwrap_err().to_string();
    assert!(!e.contains("77"), "{e}");
}

#[test]
fn a_constraint_system_must_keep_to_its_counts() {
    let file = small::r1cs_file();
    let refused = |file: &[u8]| r1cs::parse(file).unwrap_err().to_string();
    // Rows of section 2: terms of constraint 0 are at 4, 44, 84; the rows of constraint 1 start at 120.
    says(&refused(&patch(&file, 2, 4, &4u32.to_le_bytes())), &["constraint 0, A, term 0, wire", "less than nWires, 4"]);
    says(&refused(&patch(&file, 2, 48, &le(Fr::MODULUS))), &["constraint 0, B, term 0, value", "below r"]);
    for count in [5u32, 1000, u32::MAX] {
        says(&refused(&patch(&file, 2, 120, &count.to_le_bytes())), &["constraint 1, A", "bytes needed"]);
    }
    says(&refused(&patch(&file, 2, 120, &[1])), &["section 2 (constraints)"]);
    // nConstraints
    for (n, part) in [(0u32, "length"), (1, "length"), (3, "constraint 2, A"), (u32::MAX, "at least 51539607540 bytes")]
    {
        says(&refused(&patch(&file, 1, 60, &n.to_le_bytes())), &["section 2 (constraints)", part]);
    }
    // nWires, and then public outputs and inputs that exceed it.
    says(&refused(&patch(&file, 1, 36, &1u32.to_le_bytes())), &["nWires", "at least 2"]);
    says(&refused(&patch(&file, 1, 40, &[0xff; 8])), &["nWires", "at least 8589934591"]);
    says(&refused(&patch(&file, 1, 36, &3u32.to_le_bytes())), &["section 3", "24 bytes for 3 wires"]);
    says(&refused(&edit(&file, 1, |s| s.push(0))), &["section 1 (header)"]);
}

#[test]
fn custom_gates_are_refused() {
    for id in [4, 5] {
        let mut sections = split(&small::r1cs_file());
        sections.push((id, vec![1, 0, 0, 0, 0]));
        let e = r1cs::parse(&join(b"r1cs", 1, &sections)).unwrap_err();
        says(&e.to_string(), &["custom gates", "Groth16"]);
    }
}

/// Long rows and many of them: memory is used only for bytes that are there.
#[test]
fn a_constraint_with_more_terms_than_wires_is_read_as_it_is() {
    let terms: Vec<(u32, u64)> = (0..100).map(|i| (i % 4, u64::from(i))).collect();
    let rows = [small::row(&terms), small::row(&[]), small::row(&[])].concat();
    let system = r1cs::parse(&join(b"r1cs", 1, &[(1, small::r1cs_header([4, 1, 0, 2], 4, 1)), (2, rows)])).unwrap();
    assert_eq!(system.constraints.row(0, 0).len(), 100);
    assert_eq!(system.constraints.row(0, 0)[99], (3, BigInteger256::from(99u8)));
}

/// As many empty sections as there are bytes to name them: skipped, not collected.
#[test]
fn very_many_sections_are_skipped_at_once() {
    let mut file = small::wtns_file();
    let n = 2_000_000u32;
    file[8..12].copy_from_slice(&(n + 2).to_le_bytes());
    for _ in 0..n {
        file.extend([99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    assert_eq!(wtns::parse(&file).unwrap().len(), 4);
}
