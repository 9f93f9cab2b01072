//! A trial of the kernels that the self-test's small key does not reach, because its digits are sorted in one step, its
//! sums have few points, and its NTTs are one pass. Here plans and NTTs are those of large keys, on few points.
//!
//! The points are those of the small key over and over, so that the expected result of an MSM is computed by other
//! means: one product for each point, by the sum of its scalars. The expected NTTs are those of arkworks.

use ark_ec::short_weierstrass::{Affine, Projective};
use ark_ec::{AffineRepr, PrimeGroup};
use ark_ff::{AdditiveGroup, FftField, Field, One, PrimeField};
use ark_poly::{EvaluationDomain, Radix2EvaluationDomain};

use super::super::{Backend, BackendError, selftest};
use super::CudaBackend;
use super::lab::{Group, InG1, InG2, Lab, Transforms};
use crate::model::Fr;

/// Scalars of an MSM per multiprocessor, and the most in total: on a large device, some hundreds of threads have
/// parts of one bucket.
const SCALARS: u32 = 128;
const MAX_SCALARS: u32 = 1 << 12;
/// Bits of a digit with which sorting takes two steps, and multiples of a point in memory: all of them.
const WINDOW: u32 = 13;
const MULTIPLES: u64 = 64;
/// Rounds of bundles, for MSMs that have some.
const ROUNDS: u32 = 2;
/// Log2 of the elements of an NTT: two passes, whatever the radix.
const LOG: u32 = 12;

/// Computes MSMs and NTTs with plans of large keys, and compares each with the expected result.
pub(super) fn run(gpu: &CudaBackend) -> Result<(), BackendError> {
    let lab = Lab::new(gpu.driver.clone())?;
    let multiprocessors = gpu.driver.properties().multiprocessors;
    let scalars = scalars(multiprocessors.saturating_mul(SCALARS).min(MAX_SCALARS) as usize);
    let points = selftest::small_key().sections;
    let mut wrong = Vec::new();
    let mut compared = |what: String, right: bool| wrong.extend((!right).then_some(what));
    compared("MSM in G1".into(), product::<InG1>(&lab, &points.a, 0, &scalars)?);
    for rounds in [0, ROUNDS] {
        let right = product::<InG2>(&lab, &points.b2, rounds, &scalars)?;
        compared(format!("MSM in G2 with {rounds} rounds of bundles"), right);
    }
    let values: Vec<Fr> = numbers().take(1 << LOG).collect();
    let expected = on_odd_coset(&values);
    let transformed = |transforms: Transforms| {
        transforms.upload(&values)?;
        transforms.to_odd_coset()?;
        Ok::<_, BackendError>(transforms.download()? == expected)
    };
    for stages in 1..=3 {
        let right = transformed(lab.transforms(LOG, 1, Some(stages))?)?;
        compared(format!("NTT by {stages} stages at a time"), right);
    }
    // This one needs more shared memory than a block gets without opting in.
    let right = transformed(lab.transforms(LOG, 1, Some(3))?.in_largest_tiles())?;
    compared("NTT in the largest tiles".into(), right);
    if wrong.is_empty() {
        return Ok(());
    }
    let why = format!("its self-test computed a wrong {}", wrong.join(", "));
    Err(BackendError::Unavailable { device: gpu.device().label(), why })
}

/// Returns an arbitrary but fixed sequence.
fn numbers() -> impl Iterator<Item = Fr> {
    std::iter::successors(Some(Fr::from(0x7472_6961_6c00u64)), |x| Some(x.square() + Fr::from(7u64)))
}

/// Returns scalars of which one eighth have arbitrary widths; the others are 1 and −1, whose entries crowd into one
/// bucket, so that many threads share it.
fn scalars(n: usize) -> Vec<Fr> {
    let any = numbers().take(n).enumerate();
    any.map(|(i, any)| if i % 8 == 0 { any } else { [Fr::one(), -Fr::one()][i % 2] }).collect()
}

/// Returns whether the device's MSM of these scalars with the section's points, over and over, is right.
fn product<G: Group>(lab: &Lab, section: &[u8], rounds: u32, scalars: &[Fr]) -> Result<bool, BackendError> {
    let points = section.chunks_exact(G::BYTES);
    let all: Vec<u8> = points.clone().cycle().take(scalars.len()).flatten().copied().collect();
    let product = lab.msm::<G>(&all, MULTIPLES, Some((WINDOW, rounds)))?;
    product.scalars(&scalars.iter().map(|s| s.into_bigint()).collect::<Vec<_>>())?;
    product.run()?;
    let count = points.len();
    let mut expected = Projective::<G::Config>::ZERO;
    for (i, raw) in points.enumerate().filter(|(_, raw)| raw.iter().any(|byte| *byte != 0)) {
        let (x, y) = raw.split_at(raw.len() / 2);
        let point = Affine::new_unchecked(G::coordinate(x), G::coordinate(y));
        let sum: Fr = scalars.iter().skip(i).step_by(count).sum();
        expected += point.into_group().mul_bigint(sum.into_bigint());
    }
    Ok(product.read()? == expected)
}

/// Returns n times the values on the odd coset of the polynomial that has these n values on the domain.
fn on_odd_coset(values: &[Fr]) -> Vec<Fr> {
    let size = values.len() as u64;
    let root = Fr::get_root_of_unity(2 * size).unwrap_or_default();
    let domain = Radix2EvaluationDomain::<Fr>::new(values.len());
    let coset = domain.and_then(|domain| Some((domain, domain.get_coset(root)?)));
    let odd = coset.map(|(domain, coset)| coset.fft(&domain.ifft(values))).unwrap_or_default();
    odd.into_iter().map(|x| x * Fr::from(size)).collect()
}
