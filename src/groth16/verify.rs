//! Verification.

use ark_bn254::Bn254;
use ark_ec::{AffineRepr, VariableBaseMSM};
use ark_ff::One;
use ark_groth16::{Groth16, PreparedVerifyingKey, VerifyingKey, prepare_verifying_key};

use crate::model::{Fr, G1, Proof, PublicInputs, VerificationKey};

/// A verification key made ready: the pairing e(α, β) and the line functions of −γ and −δ are computed once.
pub struct Verifier {
    key: PreparedVerifyingKey<Bn254>,
}

impl Verifier {
    /// Prepares `key`, whose points must be on the curve and in the group (as every parser here sees to).
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

    /// Number of public values a proof must come with.
    pub fn n_public(&self) -> usize {
        self.key.vk.gamma_abc_g1.len().saturating_sub(1)
    }

    /// Whether e(π_A, π_B) = e(α, β) · e(Σ xᵢ·ICᵢ, γ) · e(π_C, δ).
    ///
    /// False too for a wrong number of public values and for points that are at infinity where a real proof has none,
    /// not on the curve, or not in the group.
    pub fn verify(&self, proof: &Proof, public: &PublicInputs) -> bool {
        let ic = &self.key.vk.gamma_abc_g1;
        if ic.len() != public.0.len() + 1 || !well_formed(proof) {
            return false;
        }
        let scalars: Vec<Fr> = std::iter::once(Fr::one()).chain(public.0.iter().copied()).collect();
        let inputs = G1::msm_unchecked(ic, &scalars);
        let proof = ark_groth16::Proof { a: proof.a, b: proof.b, c: proof.c };
        Groth16::<Bn254>::verify_proof_with_prepared_inputs(&self.key, &proof, &inputs).unwrap_or(false)
    }
}

/// Points on their curves, the one in G2 in its subgroup (E itself has prime order).
fn well_formed(p: &Proof) -> bool {
    let curves = p.a.is_on_curve() && p.b.is_on_curve() && p.c.is_on_curve();
    curves && p.b.is_in_correct_subgroup_assuming_on_curve() && !p.a.is_zero() && !p.b.is_zero()
}
