//! Development keys: a single-party setup, which draws the toxic waste in this process and discards it.
//!
//! **Unsafe for production.** The person who runs it could keep the waste and forge proofs; nothing in the key shows
//! that they did not. Production keys come from a multi-party ceremony (snarkjs's `powersoftau` and `zkey contribute`).

use ark_ec::scalar_mul::BatchMulPreprocessing;
use ark_ec::{CurveGroup, PrimeGroup};
use ark_ff::{BigInteger256, FftField, Field, One, PrimeField, Zero, batch_inversion};
use rayon::prelude::*;
use zeroize::Zeroize;

use super::prove::{NoRandomness, random_scalar};
use crate::formats::r1cs::R1cs;
use crate::formats::zkey;
use crate::model::{Fr, G1, G1Affine, G2, KeyHeader, KeySections, ProvingKey, VerificationKey};

/// Error of a setup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// The circuit is too large for this field.
    #[error("the circuit needs a domain of {needed} points, the field has one of at most 2^28")]
    TooLarge {
        /// Number of constraints and public values together.
        needed: u64,
    },
    /// A wire number or a coefficient is out of range.
    #[error("constraint {constraint} of the circuit has a wire or a coefficient that is out of range")]
    Circuit {
        /// Index of the constraint.
        constraint: usize,
    },
    /// The drawn randomness is unusable, which happens with probability below 2^-220.
    #[error("the drawn random numbers are unusable for a key; try again")]
    Unlucky,
    /// No random bytes for the toxic waste.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

/// The toxic waste.
struct Waste {
    tau: Fr,
    alpha: Fr,
    beta: Fr,
    gamma: Fr,
    delta: Fr,
}

impl Waste {
    fn draw() -> Result<Self, SetupError> {
        let nonzero = || loop {
            match random_scalar() {
                Ok(v) if v.is_zero() => {}
                other => return other,
            }
        };
        Ok(Self { tau: nonzero()?, alpha: nonzero()?, beta: nonzero()?, gamma: nonzero()?, delta: nonzero()? })
    }
}

impl Drop for Waste {
    fn drop(&mut self) {
        for v in [&mut self.tau, &mut self.alpha, &mut self.beta, &mut self.gamma, &mut self.delta] {
            v.zeroize();
        }
    }
}

/// Generates a key for the circuit, in the layout of a zkey. `on` is called with the progress, 0 to 1.
pub fn generate(circuit: &R1cs, on: &(dyn Fn(f32) + Sync)) -> Result<ProvingKey, SetupError> {
    let waste = Waste::draw()?;
    let n_constraints = circuit.constraints.len();
    let n_public = circuit.n_pub_out as usize + circuit.n_pub_in as usize;
    let n_vars = circuit.n_wires as usize;
    let needed = n_constraints as u64 + n_public as u64 + 1;
    let domain = needed.next_power_of_two();
    if domain > 1 << 28 || n_public >= n_vars {
        return Err(SetupError::TooLarge { needed });
    }
    let wires = wire_polynomials(circuit, &lagrange(domain, &waste, Points::Domain)?, n_public)?;
    on(0.05);

    let [inv_gamma, inv_delta] = inverses(&waste)?;
    let combined = |i: usize| waste.beta * wires.a[i] + waste.alpha * wires.b[i] + wires.c[i];
    let ic: Vec<Fr> = (0..=n_public).map(|i| combined(i) * inv_gamma).collect();
    let c: Vec<Fr> = (n_public + 1..n_vars).into_par_iter().map(|i| combined(i) * inv_delta).collect();
    let mut h = lagrange(domain, &waste, Points::OddOfDouble)?;
    h.par_iter_mut().for_each(|v| *v *= inv_delta);

    let g1 = BatchMulPreprocessing::new(G1::generator(), n_vars.max(1 << 10));
    let fixed_g1 = |k: &Fr| (G1::generator() * k).into_affine();
    let fixed_g2 = |k: &Fr| (G2::generator() * k).into_affine();
    let points = |scalars: &[Fr]| -> Vec<u8> {
        let parts: Vec<_> = scalars.par_chunks(CHUNK).map(|s| zkey::encode_g1(&g1.batch_mul(s))).collect();
        parts.concat()
    };
    let a = points(&wires.a);
    on(0.2);
    let b1 = points(&wires.b);
    on(0.35);
    let c = points(&c);
    on(0.5);
    let h = points(&h);
    on(0.65);
    let ic: Vec<G1Affine> = g1.batch_mul(&ic);
    drop(g1);
    let g2 = BatchMulPreprocessing::new(G2::generator(), n_vars.max(1 << 10));
    let parts: Vec<_> = wires.b.par_chunks(CHUNK).map(|s| zkey::encode_g2(&g2.batch_mul(s))).collect();
    let b2 = parts.concat();
    drop(g2);
    on(0.95);

    let header = KeyHeader {
        n_vars: n_vars as u32,
        n_public: n_public as u32,
        domain_size: domain as u32,
        beta_g1: fixed_g1(&waste.beta),
        delta_g1: fixed_g1(&waste.delta),
        vk: VerificationKey {
            alpha_g1: fixed_g1(&waste.alpha),
            beta_g2: fixed_g2(&waste.beta),
            gamma_g2: fixed_g2(&waste.gamma),
            delta_g2: fixed_g2(&waste.delta),
            ic,
        },
    };
    let coefficients = coefficients(circuit, n_public);
    let sections = KeySections {
        coefficients: coefficients.into(),
        a: a.into(),
        b1: b1.into(),
        b2: b2.into(),
        c: c.into(),
        h: h.into(),
    };
    on(1.0);
    Ok(ProvingKey { header, sections })
}

/// Number of scalars that a task multiplies by the generator.
const CHUNK: usize = 1 << 12;

fn inverses(waste: &Waste) -> Result<[Fr; 2], SetupError> {
    // Cannot fail: both are drawn from the non-zero scalars.
    let inverse = |v: &Fr| v.inverse().ok_or(SetupError::Unlucky);
    Ok([inverse(&waste.gamma)?, inverse(&waste.delta)?])
}

#[derive(PartialEq)]
enum Points {
    /// The n points of the domain.
    Domain,
    /// The n odd points of the domain of 2n.
    OddOfDouble,
}

/// Evaluates Lagrange polynomials at τ: Lⱼ(τ) = (τᵐ − 1)·ωʲ / (m·(τ − ωʲ)) over a domain of m points.
fn lagrange(n: u64, waste: &Waste, which: Points) -> Result<Vec<Fr>, SetupError> {
    let (m, odd) = match which {
        Points::Domain => (n, false),
        Points::OddOfDouble => (2 * n, true),
    };
    let root = match Fr::get_root_of_unity(m) {
        Some(root) => root,
        // There is no domain of twice 2^28 points; snarkjs shifts by 25 in this case, which this setup does not
        // support.
        None => return Err(SetupError::TooLarge { needed: 2 * n }),
    };
    let (step, start) = if odd { (root.square(), root) } else { (root, Fr::one()) };
    let mut points = Vec::with_capacity(n as usize);
    let mut x = start;
    for _ in 0..n {
        points.push(x);
        x *= step;
    }
    let mut denominators: Vec<Fr> = points.par_iter().map(|x| waste.tau - x).collect();
    // τ is on the domain with probability below 2^-220; a zero would be skipped by the inversion and give a wrong key.
    if denominators.par_iter().any(|d| d.is_zero()) {
        return Err(SetupError::Unlucky);
    }
    batch_inversion(&mut denominators);
    let scale = (waste.tau.pow([m]) - Fr::one()) * Fr::from(m).inverse().unwrap_or_default();
    denominators.par_iter_mut().zip(points.par_iter()).for_each(|(d, x)| *d *= scale * x);
    Ok(denominators)
}

/// Aᵢ(τ), Bᵢ(τ), Cᵢ(τ) of every wire.
struct WirePolynomials {
    a: Vec<Fr>,
    b: Vec<Fr>,
    c: Vec<Fr>,
}

fn wire_polynomials(circuit: &R1cs, l: &[Fr], n_public: usize) -> Result<WirePolynomials, SetupError> {
    let n_vars = circuit.n_wires as usize;
    let rows = &circuit.constraints;
    let matrix = |m: usize| -> Result<Vec<Fr>, SetupError> {
        let mut out = vec![Fr::zero(); n_vars];
        for (constraint, at_tau) in l.iter().enumerate().take(rows.len()) {
            for (wire, value) in rows.row(constraint, m) {
                let slot = out.get_mut(*wire as usize).ok_or(SetupError::Circuit { constraint })?;
                *slot += scalar(value, constraint)? * at_tau;
            }
        }
        Ok(out)
    };
    let (a, (b, c)) = rayon::join(|| matrix(0), || rayon::join(|| matrix(1), || matrix(2)));
    let (mut a, b, c) = (a?, b?, c?);
    // One more row for each public wire, so that the proof binds it even if no constraint uses it.
    for (wire, slot) in a.iter_mut().enumerate().take(n_public + 1) {
        *slot += l[rows.len() + wire];
    }
    Ok(WirePolynomials { a, b, c })
}

fn scalar(value: &BigInteger256, constraint: usize) -> Result<Fr, SetupError> {
    Fr::from_bigint(*value).ok_or(SetupError::Circuit { constraint })
}

/// Encodes the matrix entries in snarkjs's order: by constraint, A before B, then the public rows.
fn coefficients(circuit: &R1cs, n_public: usize) -> Vec<u8> {
    let rows = &circuit.constraints;
    let constraints = (0..rows.len()).flat_map(|i| {
        [0u32, 1].into_iter().flat_map(move |m| {
            // `wire_polynomials` has checked that every value is below r.
            let terms = rows.row(i, m as usize).iter();
            terms.map(move |(wire, v)| (m, i as u32, *wire, Fr::from_bigint(*v).unwrap_or_default()))
        })
    });
    let public = (0..=n_public).map(|s| (0u32, (rows.len() + s) as u32, s as u32, Fr::one()));
    zkey::encode_coefficients(constraints.chain(public))
}
