//! Development keys: a single-party setup, which draws the toxic waste in this process and discards it.
//!
//! **Unsafe for production.** The person who runs it could keep the waste and forge proofs; nothing in the key shows
//! that they did not. Production keys come from a multi-party ceremony (snarkjs's `powersoftau` and `zkey contribute`).

use ark_ec::scalar_mul::BatchMulPreprocessing;
use ark_ec::{CurveGroup, PrimeGroup};
use ark_ff::{BigInteger256, FftField, Field, One, PrimeField, Zero, batch_inversion};
use rayon::prelude::*;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::prove::{NoRandomness, random_scalar};
use crate::formats::r1cs::R1cs;
use crate::formats::zkey;
use crate::model::{Fr, G1, G1Affine, G2, KeyHeader, KeySections, ProvingKey, VerificationKey};

/// Error of a setup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// The circuit has more constraints than this setup supports.
    #[error("expected at most 2^27 constraints and public values, got {got}")]
    TooLarge {
        /// Number of constraints and public values together, the constant 1 among the latter.
        got: u64,
    },
    /// The circuit has fewer wires than public values, of which the constant 1 is one.
    #[error("expected more wires than public inputs and outputs ({public}), got {wires}")]
    Wires {
        /// Number of public inputs and outputs.
        public: u64,
        /// Number of wires, including the constant 1.
        wires: u64,
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
#[derive(Zeroize, ZeroizeOnDrop)]
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

/// Generates a key for the circuit, in the layout of a zkey. `on` is called with the progress, 0 to 1.
pub fn generate(circuit: &R1cs, on: &(dyn Fn(f32) + Sync)) -> Result<ProvingKey, SetupError> {
    let n_public = circuit.n_pub_out as usize + circuit.n_pub_in as usize;
    let n_vars = circuit.n_wires as usize;
    if n_public >= n_vars {
        return Err(SetupError::Wires { public: n_public as u64, wires: n_vars as u64 });
    }
    let rows = circuit.constraints.len() as u64 + n_public as u64 + 1;
    let domain = rows.next_power_of_two();
    // For H, the polynomials are evaluated on a domain of twice the size, and the field has none of more than 2^28
    // points. For a domain of 2^28, snarkjs shifts by 25 instead, which this setup does not support.
    let root = Fr::get_root_of_unity(2 * domain).ok_or(SetupError::TooLarge { got: rows })?;
    let waste = Waste::draw()?;
    let wires = wire_polynomials(circuit, &lagrange(domain, root, &waste, Points::Domain)?, n_public)?;
    on(0.05);

    let [inv_gamma, inv_delta] = inverses(&waste)?;
    let combined = |i: usize| waste.beta * wires.a[i] + waste.alpha * wires.b[i] + wires.c[i];
    let ic: Vec<Fr> = (0..=n_public).map(|i| combined(i) * inv_gamma).collect();
    let c: Vec<Fr> = (n_public + 1..n_vars).into_par_iter().map(|i| combined(i) * inv_delta).collect();
    let mut h = lagrange(domain, root, &waste, Points::OddOfDouble)?;
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

enum Points {
    /// The n points of the domain.
    Domain,
    /// The n odd points of the domain of 2n.
    OddOfDouble,
}

/// Evaluates n Lagrange polynomials at τ: Lⱼ(τ) = (τᵐ − 1)·ωʲ / (m·(τ − ωʲ)) over a domain of m points. `root`
/// generates the domain of 2n points.
fn lagrange(n: u64, root: Fr, waste: &Waste, which: Points) -> Result<Vec<Fr>, SetupError> {
    let (m, start) = match which {
        Points::Domain => (n, Fr::one()),
        Points::OddOfDouble => (2 * n, root),
    };
    let step = root.square();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::r1cs::Constraints;

    fn refusal(n_wires: u32, n_pub_in: u32) -> Option<SetupError> {
        let constraints = Constraints::default();
        let circuit = R1cs { n_wires, n_pub_out: 0, n_pub_in, n_prv_in: 0, n_labels: 0, constraints };
        generate(&circuit, &|_| {}).err()
    }

    #[test]
    fn a_circuit_that_no_key_can_be_made_for_is_refused_at_once() {
        assert_eq!(refusal(3, 3), Some(SetupError::Wires { public: 3, wires: 3 }));
        assert_eq!(refusal((1 << 27) + 1, 1 << 27), Some(SetupError::TooLarge { got: (1 << 27) + 1 }));
    }
}
