//! The encoders' output is read back as the same model.

use ark_ec::{AffineRepr, CurveGroup};
use ark_ff::{AdditiveGroup, BigInteger256, PrimeField};
use bytes::Bytes;
use proptest::prelude::*;
use prover_worker::formats::{wtns, zkey};
use prover_worker::model::{Fr, G1Affine, G2Affine, Witness, g1_raw, g2_raw};

use crate::small;

fn scalar() -> impl Strategy<Value = Fr> {
    prop_oneof![
        1 => Just(Fr::ZERO),
        1 => Just(-Fr::from(1u8)),
        1 => any::<u8>().prop_map(Fr::from),
        5 => any::<[u8; 32]>().prop_map(|b| Fr::from_le_bytes_mod_order(&b)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn points_read_back(scalars in prop::collection::vec(scalar(), 0..6)) {
        let in_g1: Vec<_> = scalars.iter().map(|s| (G1Affine::generator() * s).into_affine()).collect();
        let in_g2: Vec<_> = scalars.iter().map(|s| (G2Affine::generator() * s).into_affine()).collect();
        let (b1, b2) = (zkey::encode_g1(&in_g1), zkey::encode_g2(&in_g2));
        prop_assert_eq!((b1.len(), b2.len()), (64 * scalars.len(), 128 * scalars.len()));
        prop_assert_eq!(b1.chunks_exact(64).map(g1_raw).collect::<Vec<_>>(), in_g1);
        prop_assert_eq!(b2.chunks_exact(128).map(g2_raw).collect::<Vec<_>>(), in_g2);
    }

    #[test]
    fn a_coefficient_times_a_plain_value_is_their_product(v in scalar(), w in scalar(), row: u32, signal: u32) {
        let mut key = small::key();
        key.sections.coefficients = Bytes::from(zkey::encode_coefficients([(1, row, signal, v)]));
        let entry = key.coefficients().next().unwrap();
        prop_assert_eq!((entry.matrix, entry.row, entry.signal), (1, row, signal));
        let plain = Fr::new_unchecked(w.into_bigint());
        prop_assert_eq!(Fr::new_unchecked(entry.value) * plain, v * w);
        prop_assert_eq!(zkey::decode_coefficient(&entry), Some(v));
    }

    #[test]
    fn witnesses_read_back(values in prop::collection::vec(scalar(), 0..40)) {
        let mut values: Vec<BigInteger256> = values.iter().map(|v| v.into_bigint()).collect();
        values.insert(0, BigInteger256::from(1u8));
        let mut file = Vec::new();
        wtns::write(&Witness::from_canonical(values.clone()), &mut file).unwrap();
        let read = wtns::parse(&file).unwrap();
        prop_assert_eq!(read.values(), values);
    }
}

/// More points than one task encodes.
#[test]
fn long_lists_keep_their_order() {
    let some: Vec<_> = (0..7).map(small::g1).collect();
    let points: Vec<_> = (0..20_000).map(|i| some[i % 7]).collect();
    let bytes = zkey::encode_g1(&points);
    assert!(bytes.chunks_exact(64).map(g1_raw).eq(points));
}
