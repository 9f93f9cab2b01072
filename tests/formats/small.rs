//! Small files made by hand, and tools to take files apart and reassemble them.

use ark_ec::{AffineRepr, CurveGroup};
use ark_ff::{BigInteger256, PrimeField};
use bytes::Bytes;
use prover_worker::formats::{r1cs, wtns, zkey};
use prover_worker::model::{
    Fq, Fr, G1Affine, G2Affine, KeyHeader, KeySections, Proof, ProvingKey, PublicInputs, VerificationKey, Witness,
};

/// n·G
pub fn g1(n: u64) -> G1Affine {
    (G1Affine::generator() * Fr::from(n)).into_affine()
}

/// n·G in G2
pub fn g2(n: u64) -> G2Affine {
    (G2Affine::generator() * Fr::from(n)).into_affine()
}

pub const N_VARS: u32 = 4;
pub const N_PUBLIC: u32 = 1;
pub const DOMAIN: u32 = 4;

/// A key of the right shape, with one constraint w2 · 5w3 = … and one public value; its points are known multiples of
/// the generators, some of them infinity.
pub fn key() -> ProvingKey {
    let one = Fr::from(1u8);
    let entries = [(0, 0, 2, one), (1, 0, 3, Fr::from(5u8)), (0, 1, 0, one), (0, 2, 1, one)];
    ProvingKey {
        header: KeyHeader {
            n_vars: N_VARS,
            n_public: N_PUBLIC,
            domain_size: DOMAIN,
            beta_g1: g1(3),
            delta_g1: g1(7),
            vk: VerificationKey {
                alpha_g1: g1(2),
                beta_g2: g2(3),
                gamma_g2: g2(5),
                delta_g2: g2(7),
                ic: vec![g1(11), g1(13)],
            },
        },
        sections: KeySections {
            coefficients: Bytes::from(zkey::encode_coefficients(entries)),
            a: Bytes::from(zkey::encode_g1(&[g1(17), g1(19), g1(23), g1(0)])),
            b1: Bytes::from(zkey::encode_g1(&[g1(0), g1(0), g1(0), g1(29)])),
            b2: Bytes::from(zkey::encode_g2(&[g2(0), g2(0), g2(0), g2(29)])),
            c: Bytes::from(zkey::encode_g1(&[g1(31), g1(37)])),
            h: Bytes::from(zkey::encode_g1(&[g1(41), g1(43), g1(47), g1(53)])),
        },
    }
}

pub fn proof() -> (Proof, PublicInputs) {
    let last = Fr::from(0u8) - Fr::from(1u8);
    (Proof { a: g1(2), b: g2(3), c: g1(5) }, PublicInputs(vec![Fr::from(33u8), Fr::from(0u8), last]))
}

pub fn zkey_file() -> Vec<u8> {
    let mut file = Vec::new();
    zkey::write(&key(), &mut file).unwrap();
    file
}

pub fn wtns_file() -> Vec<u8> {
    let values = [1u64, 33, 3, 11].map(BigInteger256::from).to_vec();
    let mut file = Vec::new();
    wtns::write(&Witness::from_canonical(values), &mut file).unwrap();
    file
}

/// Encodes one row as in a file.
pub fn row(terms: &[(u32, u64)]) -> Vec<u8> {
    let mut out = (terms.len() as u32).to_le_bytes().to_vec();
    for (wire, value) in terms {
        out.extend(wire.to_le_bytes());
        out.extend(le(BigInteger256::from(*value)));
    }
    out
}

pub fn r1cs_header(counts: [u32; 4], n_labels: u64, n_constraints: u32) -> Vec<u8> {
    let mut out = 32u32.to_le_bytes().to_vec();
    out.extend(le(Fr::MODULUS));
    counts.iter().for_each(|n| out.extend(n.to_le_bytes()));
    out.extend(n_labels.to_le_bytes());
    out.extend(n_constraints.to_le_bytes());
    out
}

/// w2 · w3 = w1 and (2·w2 + 1·w0) · w0 = 7·w0
pub fn r1cs_file() -> Vec<u8> {
    let rows = [row(&[(2, 1)]), row(&[(3, 1)]), row(&[(1, 1)]), row(&[(2, 2), (0, 1)]), row(&[(0, 1)]), row(&[(0, 7)])];
    let map: Vec<u8> = (0..4u64).flat_map(u64::to_le_bytes).collect();
    // As in circom's files: constraints first.
    join(b"r1cs", 1, &[(2, rows.concat()), (1, r1cs_header([4, 1, 0, 2], 4, 2)), (3, map)])
}

pub fn le(v: BigInteger256) -> Vec<u8> {
    v.0.iter().flat_map(|l| l.to_le_bytes()).collect()
}

/// Returns q + n as bytes, which is not canonical.
pub fn q_plus(n: u64) -> Vec<u8> {
    use ark_ff::BigInteger;
    let mut v = Fq::MODULUS;
    assert!(!v.add_with_carry(&BigInteger256::from(n)));
    le(v)
}

/// Returns a file's sections, in file order.
pub fn split(file: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut out = Vec::new();
    let mut at = 12;
    while at < file.len() {
        let id = u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
        let length = u64::from_le_bytes(file[at + 4..at + 12].try_into().unwrap()) as usize;
        out.push((id, file[at + 12..at + 12 + length].to_vec()));
        at += 12 + length;
    }
    out
}

pub fn join(magic: &[u8; 4], version: u32, sections: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let mut out = magic.to_vec();
    out.extend(version.to_le_bytes());
    out.extend((sections.len() as u32).to_le_bytes());
    for (id, data) in sections {
        out.extend(id.to_le_bytes());
        out.extend((data.len() as u64).to_le_bytes());
        out.extend(data);
    }
    out
}

/// Changes one section of a file.
pub fn edit(file: &[u8], id: u32, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut sections = split(file);
    change(&mut sections.iter_mut().find(|s| s.0 == id).unwrap().1);
    let version = u32::from_le_bytes(file[4..8].try_into().unwrap());
    join(file[..4].try_into().unwrap(), version, &sections)
}

/// Overwrites bytes in a section.
pub fn patch(file: &[u8], id: u32, at: usize, bytes: &[u8]) -> Vec<u8> {
    edit(file, id, |s| s[at..at + bytes.len()].copy_from_slice(bytes))
}

#[test]
fn a_key_made_here_reads_back_and_passes_every_check() {
    let key = key();
    let file = zkey_file();
    let read = zkey::parse(Bytes::from(file.clone())).unwrap();
    assert_eq!(read.header.vk, key.header.vk);
    assert_eq!((read.header.n_vars, read.header.n_public, read.header.domain_size), (4, 1, 4));
    assert_eq!((read.header.beta_g1, read.header.delta_g1), (key.header.beta_g1, key.header.delta_g1));
    assert_eq!(read.sections.coefficients, key.sections.coefficients);
    assert_eq!(read.sections.b2, key.sections.b2);
    zkey::check(&read).unwrap();
    zkey::check(&key).unwrap();

    let ids: Vec<u32> = split(&file).iter().map(|s| s.0).collect();
    assert_eq!(ids, (1..=10).collect::<Vec<_>>());
    assert_eq!(split(&file)[9].1, [0; 68]);
}

#[test]
fn sections_are_not_copied() {
    let file = Bytes::from(zkey_file());
    let inside = file.as_ptr_range();
    let key = zkey::parse(file).unwrap();
    for s in [&key.sections.coefficients, &key.sections.a, &key.sections.h] {
        assert!(inside.contains(&s.as_ptr()));
    }
}

#[test]
fn sections_may_come_in_any_order_and_unknown_ones_are_skipped() {
    let mut sections = split(&zkey_file());
    sections.reverse();
    sections.insert(3, (77, vec![1, 2, 3]));
    sections.push((77, Vec::new()));
    let key = zkey::parse(Bytes::from(join(b"zkey", 1, &sections))).unwrap();
    zkey::check(&key).unwrap();
    assert_eq!(key.header.vk, self::key().header.vk);
}

#[test]
fn progress_of_a_check_ends_at_one() {
    let last = std::sync::Mutex::new(0f32);
    zkey::check_reporting(&key(), &|f| {
        assert!((0.0..=1.0).contains(&f));
        *last.lock().unwrap() = f;
    })
    .unwrap();
    assert_eq!(*last.lock().unwrap(), 1.0);
}

#[test]
fn a_constraint_system_reads_and_tells_good_witnesses_from_bad() {
    let system = r1cs::parse(&r1cs_file()).unwrap();
    assert_eq!((system.n_wires, system.n_pub_out, system.n_pub_in, system.n_prv_in), (4, 1, 0, 2));
    assert_eq!((system.n_public(), system.constraints.len(), system.n_labels), (1, 2, 4));
    assert_eq!(system.constraints.offsets, [0, 1, 2, 3, 5, 6, 7]);
    assert_eq!(system.constraints.row(1, 0), [(2, BigInteger256::from(2u8)), (0, BigInteger256::from(1u8))]);

    let check = |values: &[u64]| {
        let w = Witness::from_canonical(values.iter().map(|v| BigInteger256::from(*v)).collect());
        r1cs::check_witness(&system, &w)
    };
    assert_eq!(check(&[1, 33, 3, 11]), Ok(()));
    assert_eq!(check(&[1, 34, 3, 11]), Err(r1cs::Unsatisfied::Constraint(0)));
    assert_eq!(check(&[1, 44, 4, 11]), Err(r1cs::Unsatisfied::Constraint(1)));
    assert_eq!(check(&[1, 33, 3]), Err(r1cs::Unsatisfied::Length { expected: 4, got: 3 }));
    assert_eq!(check(&[1, 33, 3, 11, 0]), Err(r1cs::Unsatisfied::Length { expected: 4, got: 5 }));
}

/// circom counts private inputs without a wire, which the circuit does not use.
#[test]
fn private_inputs_may_be_more_than_there_are_wires() {
    let mut sections = split(&r1cs_file());
    sections.retain(|(id, _)| *id != 1);
    sections.push((1, r1cs_header([4, 1, 0, 9], 4, 2)));
    let system = r1cs::parse(&join(b"r1cs", 1, &sections)).unwrap();
    assert_eq!((system.n_wires, system.n_prv_in, system.n_public()), (4, 9, 1));
}

#[test]
fn a_count_of_no_custom_gates_is_no_custom_gates() {
    let mut sections = split(&r1cs_file());
    sections.push((4, vec![0; 4]));
    sections.push((5, vec![0; 4]));
    assert_eq!(r1cs::parse(&join(b"r1cs", 1, &sections)).unwrap().constraints.len(), 2);
}
