//! Known answers: tests each operation of a device separately, so that a wrong one is named. The complete key of
//! `backend::selftest` comes afterwards.

use ark_ff::{BigInteger256, FftField, Field, One, PrimeField, Zero};

use super::super::BackendError;
use super::algebra::{Algebra, Group, Scalars};
use crate::model::{Fr, G1, G2};

/// Points of the sums: not a power of two.
const POINTS: usize = 77;
/// Values of the transforms: enough for several layers.
const VALUES: usize = 1 << 8;

/// Tests every operation.
///
/// # Errors
/// One sentence on the first operation that is wrong or fails.
pub(super) fn check<A: Algebra>(algebra: &A) -> Result<(), String> {
    let right = |what: &str, result: Result<bool, BackendError>| match result {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("its self-test computed a wrong {what}")),
        Err(BackendError::Unavailable { why, .. }) => Err(format!("its self-test of {what} failed: {why}")),
        Err(e) => Err(format!("its self-test of {what} failed: {e}")),
    };
    right("sum in G1", sums::<A, G1>(algebra))?;
    right("sum in G2", sums::<A, G2>(algebra))?;
    right("product or difference of vectors", vectors(algebra))?;
    right("transform to coefficients", interpolation(algebra))?;
    right("transform to values on a coset", evaluation(algebra))
}

/// Any fixed sequence will do: squares of squares.
fn values(n: usize, seed: u64) -> Vec<Fr> {
    let mut state = Fr::from(seed);
    let next = || {
        state = state.square() + Fr::from(11u64);
        state
    };
    std::iter::repeat_with(next).take(n).collect()
}

fn plain(values: &[Fr]) -> Vec<BigInteger256> {
    values.iter().map(|x| x.into_bigint()).collect()
}

/// Sums over known multiples of the generator, with scalars in either memory, and in pieces.
fn sums<A: Algebra, G: Group>(algebra: &A) -> Result<bool, BackendError> {
    let mut scalars = values(POINTS, 0x6963_6963_6c65);
    for (slot, special) in scalars.iter_mut().step_by(3).zip([Fr::zero(), Fr::one(), -Fr::one(), Fr::from(1u64 << 40)])
    {
        *slot = special;
    }
    let factors = values(POINTS, 3);
    let points = G::generator().batch_mul(&factors);
    let sum = |from: usize, to: usize| {
        let dot: Fr = factors[from..to].iter().zip(&scalars[from..to]).map(|(k, w)| *k * w).sum();
        G::generator() * dot
    };
    let bases = algebra.bases::<G>(&points)?;
    let there = algebra.upload(&plain(&scalars))?;
    let cut = POINTS / 3;
    let host = plain(&scalars);
    let got: [G; 3] = [
        algebra.sum(&bases, 0, POINTS, Scalars::Host(&host))?,
        algebra.sum(&bases, cut, POINTS - cut, Scalars::Device(&there, cut))?,
        algebra.sum(&bases, cut, 1, Scalars::Host(&host[cut..cut + 1]))?,
    ];
    Ok(got == [sum(0, POINTS), sum(cut, POINTS), sum(cut, cut + 1)])
}

fn vectors<A: Algebra>(algebra: &A) -> Result<bool, BackendError> {
    let (mut a, mut b) = (values(VALUES, 5), values(VALUES, 7));
    (a[0], a[1], b[1], b[2]) = (Fr::zero(), -Fr::one(), -Fr::one(), Fr::zero());
    let (on_a, on_b) = (algebra.upload(&plain(&a))?, algebra.upload(&plain(&b))?);
    let mut product = algebra.multiply(&on_a, &on_b)?;
    let products: Vec<Fr> = a.iter().zip(&b).map(|(a, b)| *a * b).collect();
    let multiplied = algebra.download(&product)?.as_slice() == plain(&products);
    algebra.subtract(&mut product, &on_a)?;
    let differences: Vec<Fr> = products.iter().zip(&a).map(|(p, a)| *p - a).collect();
    Ok(multiplied && algebra.download(&product)?.as_slice() == plain(&differences))
}

/// Evaluates the polynomial with these coefficients at a point.
fn at(coefficients: &[Fr], x: Fr) -> Fr {
    coefficients.iter().rev().fold(Fr::zero(), |sum, c| sum * x + c)
}

/// Values of a polynomial on `shift` times the domain.
fn on(coefficients: &[Fr], shift: Fr) -> Vec<Fr> {
    let omega = Fr::get_root_of_unity(VALUES as u64).unwrap_or_default();
    (0..VALUES as u64).map(|i| at(coefficients, shift * omega.pow([i]))).collect()
}

fn interpolation<A: Algebra>(algebra: &A) -> Result<bool, BackendError> {
    let coefficients = values(VALUES, 13);
    algebra.prepare(VALUES)?;
    let mut vector = algebra.upload(&plain(&on(&coefficients, Fr::one())))?;
    algebra.interpolate(&mut vector)?;
    Ok(algebra.download(&vector)?.as_slice() == plain(&coefficients))
}

fn evaluation<A: Algebra>(algebra: &A) -> Result<bool, BackendError> {
    let coefficients = values(VALUES, 17);
    let shift = Fr::get_root_of_unity(2 * VALUES as u64).unwrap_or_default();
    algebra.prepare(VALUES)?;
    let mut vector = algebra.upload(&plain(&coefficients))?;
    algebra.evaluate(&mut vector, shift)?;
    Ok(algebra.download(&vector)?.as_slice() == plain(&on(&coefficients, shift)))
}
