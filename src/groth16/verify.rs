//! Verification.

use ark_bn254::Bn254;
use ark_ec::pairing::Pairing;
use ark_ec::{AffineRepr, CurveGroup, VariableBaseMSM};
use ark_ff::One;

use crate::model::{Fr, G1, G1Affine, Proof, PublicInputs, VerificationKey};

/// A verification key made ready: the pairing e(α, β) and the line functions of −γ and −δ are computed once.
pub struct Verifier {
    alpha_beta: <Bn254 as Pairing>::TargetField,
    neg_gamma: <Bn254 as Pairing>::G2Prepared,
    neg_delta: <Bn254 as Pairing>::G2Prepared,
    ic: Vec<G1Affine>,
}

impl Verifier {
    /// Prepares `key`, whose points must be on the curve and in the group (as every parser here sees to).
    pub fn new(key: &VerificationKey) -> Self {
        Self {
            alpha_beta: Bn254::pairing(key.alpha_g1, key.beta_g2).0,
            neg_gamma: (-key.gamma_g2).into(),
            neg_delta: (-key.delta_g2).into(),
            ic: key.ic.clone(),
        }
    }

    /// Number of public values a proof must come with.
    pub fn n_public(&self) -> usize {
        self.ic.len().saturating_sub(1)
    }

    /// Whether e(π_A, π_B) = e(α, β) · e(Σ xᵢ·ICᵢ, γ) · e(π_C, δ).
    ///
    /// False too for a wrong number of public values and for points that are not on the curve or not in the group.
    pub fn verify(&self, proof: &Proof, public: &PublicInputs) -> bool {
        if self.ic.len() != public.0.len() + 1 || !well_formed(proof) {
            return false;
        }
        let scalars: Vec<Fr> = std::iter::once(Fr::one()).chain(public.0.iter().copied()).collect();
        let inputs = G1::msm_unchecked(&self.ic, &scalars).into_affine();
        let miller = Bn254::multi_miller_loop(
            [proof.a, inputs, proof.c],
            [proof.b.into(), self.neg_gamma.clone(), self.neg_delta.clone()],
        );
        Bn254::final_exponentiation(miller).is_some_and(|e| e.0 == self.alpha_beta)
    }
}

/// Points on their curves, the one in G2 in its subgroup (E itself has prime order).
fn well_formed(p: &Proof) -> bool {
    p.a.is_on_curve()
        && p.c.is_on_curve()
        && p.b.is_on_curve()
        && p.b.is_in_correct_subgroup_assuming_on_curve()
        && !p.a.is_zero()
        && !p.b.is_zero()
}
