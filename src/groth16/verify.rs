//! Verification.

use ark_bn254::Bn254;
use ark_ec::bn::G2Prepared;
use ark_ec::pairing::{MillerLoopOutput, Pairing, PairingOutput};
use ark_ec::{AffineRepr, CurveGroup, VariableBaseMSM};
use ark_ff::{One, Zero};
use ark_groth16::{PreparedVerifyingKey, VerifyingKey, prepare_verifying_key};
use rayon::prelude::*;

use crate::model::{Fr, G1, G1Affine, Proof, PublicInputs, VerificationKey};

/// Maximum size of a set that is verified one by one once it is known to contain a bad proof.
const MAX_ONE_BY_ONE: usize = 4;

/// Maximum number of public values whose products are cheaper one by one than together.
const MAX_SEPARATE_PRODUCTS: usize = 8;

/// A prepared verification key: the pairing e(α, β) and the line functions of −γ and −δ are computed once.
pub struct Verifier {
    key: PreparedVerifyingKey<Bn254>,
}

impl Verifier {
    /// Prepares `key`, whose points must be on the curve and in the group (which every parser of this crate checks).
    pub fn new(key: &VerificationKey) -> Self {
        Self {
            key: prepare_verifying_key(&VerifyingKey {
                alpha_g1: key.alpha_g1,
                beta_g2: key.beta_g2,
                gamma_g2: key.gamma_g2,
                delta_g2: key.delta_g2,
                gamma_abc_g1: key.ic.clone(),
            }),
        }
    }

    /// Returns the number of public values that a proof must have.
    pub fn n_public(&self) -> usize {
        self.key.vk.gamma_abc_g1.len().saturating_sub(1)
    }

    /// Whether e(π_A, π_B) = e(α, β) · e(Σ xᵢ·ICᵢ, γ) · e(π_C, δ).
    ///
    /// Also false for a wrong number of public values, and for points that are not on the curve, not in the group, or
    /// at infinity where a genuine proof has none.
    pub fn verify(&self, proof: &Proof, public: &PublicInputs) -> bool {
        self.fits(proof, public) && self.holds(proof, public)
    }

    /// Returns the result of [`verify`](Self::verify) for each proof. Much cheaper than one by one if all or nearly all
    /// are good.
    ///
    /// Proofs are checked together: each one's equation is raised to a random power rᵢ and the product must hold,
    /// Π e(rᵢ·Aᵢ, Bᵢ) = e(α, β)^Σrᵢ · e(Σᵢ rᵢ·Σⱼ xᵢⱼ·ICⱼ, γ) · e(Σ rᵢ·Cᵢ, δ), with n + 2 Miller loops and one final
    /// exponentiation. This is the small-exponents test of Bellare, Garay and Rabin, "Fast Batch Verification for
    /// Modular Exponentiation and Digital Signatures", EUROCRYPT 1998. All groups have prime order r > 2^128, so
    /// whatever the other powers are, at most one of the 2^128 − 1 values of rᵢ hides a wrong equation i: a set with a
    /// bad proof passes with probability below 2^-127, however it was made, because the powers are drawn afterwards and
    /// independently for each check. A set that does not pass is halved; small sets are verified one by one.
    ///
    /// Malformed proofs (as in `verify`) are false at once and excluded from the check. If the operating system gives
    /// no random bytes, each proof is verified by itself.
    pub fn verify_batch(&self, proofs: &[(&Proof, &PublicInputs)]) -> Vec<bool> {
        let mut good = vec![false; proofs.len()];
        let fit = |i: &usize| self.fits(proofs[*i].0, proofs[*i].1);
        let fitting: Vec<usize> = (0..proofs.len()).into_par_iter().filter(fit).collect();
        self.settle(proofs, &fitting, false, &mut good);
        good
    }

    /// Marks the good proofs among `which`. `bad` says that at least one of them is known to be bad.
    fn settle(&self, proofs: &[(&Proof, &PublicInputs)], which: &[usize], bad: bool, good: &mut [bool]) {
        let joint = which.len() > 1 && !bad;
        let Some(all) = (if joint { self.all_hold(proofs, which) } else { Some(false) }) else {
            return self.one_by_one(proofs, which, good);
        };
        if all {
            which.iter().for_each(|i| good[*i] = true);
        } else if which.len() <= MAX_ONE_BY_ONE {
            self.one_by_one(proofs, which, good);
        } else {
            let (left, right) = which.split_at(which.len() / 2);
            self.settle(proofs, left, false, good);
            // If all on the left are good, one on the right is bad.
            let bad = left.iter().all(|i| good[*i]);
            self.settle(proofs, right, bad, good);
        }
    }

    fn one_by_one(&self, proofs: &[(&Proof, &PublicInputs)], which: &[usize], good: &mut [bool]) {
        which.iter().for_each(|i| good[*i] = self.holds(proofs[*i].0, proofs[*i].1));
    }

    /// Whether the joint equation of the proofs `which`, all well-formed, holds; `None` if there are no random bytes.
    fn all_hold(&self, proofs: &[(&Proof, &PublicInputs)], which: &[usize]) -> Option<bool> {
        let powers = which.iter().map(|_| random_power()).collect::<Option<Vec<u128>>>()?;
        let scalars: Vec<Fr> = powers.iter().map(|r| Fr::from(*r)).collect();
        let chosen = || which.iter().map(|i| proofs[*i]);
        let sum: Fr = scalars.iter().sum();

        // Σᵢ rᵢ·xᵢⱼ for each ICⱼ, where xᵢ₀ = 1.
        let mut public = vec![Fr::zero(); self.key.vk.gamma_abc_g1.len()];
        public[0] = sum;
        for ((_, values), r) in chosen().zip(&scalars) {
            public[1..].iter_mut().zip(&values.0).for_each(|(to, x)| *to += *r * x);
        }
        let inputs = G1::msm_unchecked(&self.key.vk.gamma_abc_g1, &public);
        let c: Vec<G1Affine> = chosen().map(|(p, _)| p.c).collect();
        let c = G1::msm_unchecked(&c, &scalars);

        let pairs = which.par_iter().zip(&powers).map(|(i, r)| {
            let proof = proofs[*i].0;
            (proof.a.mul_bigint([*r as u64, (*r >> 64) as u64]), G2Prepared::from(proof.b))
        });
        let (mut g1, mut g2): (Vec<G1>, Vec<G2Prepared<ark_bn254::Config>>) = pairs.unzip();
        g1.extend([inputs, c]);
        g2.extend([self.key.gamma_g2_neg_pc.clone(), self.key.delta_g2_neg_pc.clone()]);
        let product = Bn254::multi_miller_loop(G1::normalize_batch(&g1), g2);
        let product = Bn254::final_exponentiation(product)?;
        Some(product == PairingOutput(self.key.alpha_g1_beta_g2) * sum)
    }

    /// Whether the proof is well-formed, so that its equation needs to be checked.
    fn fits(&self, proof: &Proof, public: &PublicInputs) -> bool {
        self.key.vk.gamma_abc_g1.len() == public.0.len() + 1 && well_formed(proof)
    }

    /// Whether the equation holds.
    fn holds(&self, proof: &Proof, public: &PublicInputs) -> bool {
        let (left, right) = rayon::join(
            || Bn254::miller_loop(proof.a, proof.b),
            || {
                let g1 = [self.inputs(public).into_affine(), proof.c];
                Bn254::multi_miller_loop(g1, [self.key.gamma_g2_neg_pc.clone(), self.key.delta_g2_neg_pc.clone()])
            },
        );
        let product = Bn254::final_exponentiation(MillerLoopOutput(left.0 * right.0));
        product == Some(PairingOutput(self.key.alpha_g1_beta_g2))
    }

    /// Computes IC₀ + Σ xᵢ·ICᵢ.
    fn inputs(&self, public: &PublicInputs) -> G1 {
        let ic = &self.key.vk.gamma_abc_g1;
        if public.0.len() > MAX_SEPARATE_PRODUCTS {
            let scalars: Vec<Fr> = std::iter::once(Fr::one()).chain(public.0.iter().copied()).collect();
            return G1::msm_unchecked(ic, &scalars);
        }
        let terms = ic[1..].iter().zip(&public.0).map(|(point, x)| point.into_group() * x);
        terms.fold(ic[0].into_group(), |sum, term| sum + term)
    }
}

/// Draws a uniform number from 1 to 2^128 − 1 from the operating system's generator.
fn random_power() -> Option<u128> {
    loop {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).ok()?;
        match u128::from_le_bytes(bytes) {
            0 => {}
            power => return Some(power),
        }
    }
}

/// Whether the points are on their curves, that of G2 is in its subgroup (E itself has prime order), and A and B are
/// not infinity.
fn well_formed(p: &Proof) -> bool {
    let curves = p.a.is_on_curve() && p.b.is_on_curve() && p.c.is_on_curve();
    curves && p.b.is_in_correct_subgroup_assuming_on_curve() && !p.a.is_zero() && !p.b.is_zero()
}
