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

/// Returns the name of a prime's field, given in decimal, among the fields that circom and snarkjs know.
fn field_name(prime: &str) -> Option<&'static str> {
    Some(match prime {
        FQ_MODULUS_DEC => "the base field of BN254, the scalar field of Grumpkin",
        FR_MODULUS_DEC => "the scalar field of BN254",
        "4002409555221667393417789825735904156556882819939007885332058136124031650490837864442687629129015664037894272559787" => {
            "the base field of BLS12-381"
        }
        "52435875175126190479447740508185965837690552500527637822603658699938581184513" => {
            "the scalar field of BLS12-381"
        }
        "258664426012969094010652733694893533536393512754914660539884262666720468348340822774968888139573360124440321458177" => {
            "the base field of BLS12-377"
        }
        "8444461749428370424248824938781546531375899335154063827935233455917409239041" => {
            "the scalar field of BLS12-377"
        }
        "28948022309329048855892746252171976963363056481941560715954676764349967630337" => "the base field of Pallas",
        "28948022309329048855892746252171976963363056481941647379679742748393362948097" => "the base field of Vesta",
        "115792089210356248762697446949407573530086143415290314195533631308867097853951" => {
            "the base field of secp256r1"
        }
        "18446744069414584321" => "Goldilocks",
        _ => return None,
    })
}

/// Formats a prime, given in decimal, with the name of its field, if circom and snarkjs know that field.
pub(crate) fn named_prime(prime: &str) -> String {
    field_name(prime).map_or_else(|| prime.to_owned(), |name| format!("{prime} ({name})"))
}
