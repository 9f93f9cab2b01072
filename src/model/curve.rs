//! BN254 (the curve circom and snarkjs call "bn128"), as arkworks represents it.
//!
//! E: y² = x³ + 3 over Fq, E′: y² = x³ + 3/(9+u) over Fq2 = Fq\[u\]/(u²+1); both groups have prime order r.
//! About 100 bits of security (Kim–Barbulescu). Field elements are four 64-bit limbs, little-endian, in Montgomery
//! form with R = 2^256: the same bytes as in a zkey file.

/// Base field, q = 21888242871839275222246405745257275088696311157297823662689037894645226208583.
pub type Fq = ark_bn254::Fq;
/// Quadratic extension of the base field, c0 + c1·u with u² = −1.
pub type Fq2 = ark_bn254::Fq2;
/// Scalar field, r = 21888242871839275222246405745257275088548364400416034343698204186575808495617.
pub type Fr = ark_bn254::Fr;
/// Point of E in affine coordinates; infinity is (0, 0).
pub type G1Affine = ark_bn254::G1Affine;
/// Point of E′ in affine coordinates; infinity is (0, 0).
pub type G2Affine = ark_bn254::G2Affine;
/// Point of E in Jacobian coordinates.
pub type G1 = ark_bn254::G1Projective;
/// Point of E′ in Jacobian coordinates.
pub type G2 = ark_bn254::G2Projective;

/// q in decimal, for messages.
pub const FQ_MODULUS_DEC: &str = "21888242871839275222246405745257275088696311157297823662689037894645226208583";
/// r in decimal, for messages.
pub const FR_MODULUS_DEC: &str = "21888242871839275222246405745257275088548364400416034343698204186575808495617";
