//! A proof, what it proves, and the key that verifies it.

use super::{Fr, G1Affine, G2Affine};

/// A Groth16 proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// π_A = α + Σ wᵢ·Aᵢ(τ) + r·δ, in G1.
    pub a: G1Affine,
    /// π_B = β + Σ wᵢ·Bᵢ(τ) + s·δ, in G2.
    pub b: G2Affine,
    /// π_C, in G1.
    pub c: G1Affine,
}

/// The public values w\[1..=nPublic\]: outputs first, then public inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicInputs(pub Vec<Fr>);

/// The verification key. `ic` has one more point than there are public values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerificationKey {
    /// \[α\]₁
    pub alpha_g1: G1Affine,
    /// \[β\]₂
    pub beta_g2: G2Affine,
    /// \[γ\]₂
    pub gamma_g2: G2Affine,
    /// \[δ\]₂
    pub delta_g2: G2Affine,
    /// First for the constant 1, then for each public value: \[(β·Aᵢ + α·Bᵢ + Cᵢ)(τ)/γ\]₁
    pub ic: Vec<G1Affine>,
}

impl VerificationKey {
    /// Returns the number of public values.
    pub fn n_public(&self) -> usize {
        self.ic.len().saturating_sub(1)
    }

    /// Whether the second phase of the ceremony has had a contribution, as far as the key shows. Without any, as
    /// `snarkjs groth16 setup` writes it, γ = δ, and anyone can make proofs for it that verify: (α, β, −IC(x)) for any
    /// public values x.
    pub fn is_contributed(&self) -> bool {
        self.gamma_g2 != self.delta_g2
    }
}
