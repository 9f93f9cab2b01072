//! The operations that a proof needs of a device that computes single operations: sums of multiples of points,
//! transforms, and products and differences of vectors. [`super::key`] composes a proof from them.

use ark_bn254::{g1, g2};
use ark_ec::CurveGroup;
use ark_ec::short_weierstrass::Projective;
use ark_ff::{BigInteger256, PrimeField, Zero};
use zeroize::Zeroizing;

use super::super::BackendError;
use crate::model::{Fq, Fq2, Fr, G1_BYTES, G1Affine, G2_BYTES, G2Affine, g1_raw, g2_raw, limb_bytes, limbs};

/// Size of an element of either field, bytes.
pub(super) const ELEMENT: usize = 32;

/// One of the curve's two groups.
pub(super) trait Group: CurveGroup<ScalarField = Fr> {
    /// Size of an affine point, bytes.
    const BYTES: usize;
    /// Whether this is the group over the extension field.
    const EXTENSION: bool;

    /// Reads a point of a proving key, without checks.
    fn of_key(bytes: &[u8]) -> Self::Affine;
    /// Appends the coordinates of an affine point, not in Montgomery form; infinity is zeros.
    fn write(point: &Self::Affine, out: &mut Vec<u8>);
    /// Reads a point from homogeneous coordinates, not in Montgomery form; `None` unless they are canonical and on the
    /// curve.
    fn read_homogeneous(bytes: &[u8]) -> Option<Self>;
    /// Reads a point from affine coordinates, not in Montgomery form; `None` unless they are canonical and on the
    /// curve.
    fn read_affine(bytes: &[u8]) -> Option<Self>;
}

/// Appends the canonical form of an element.
fn write_fq(x: &Fq, out: &mut Vec<u8>) {
    out.extend(limb_bytes(&x.into_bigint()));
}

/// Reads an element in canonical form; `None` if it is not canonical.
fn read_fq(bytes: &[u8]) -> Option<Fq> {
    Fq::from_bigint(limbs(bytes.get(..ELEMENT)?))
}

fn read_fq2(bytes: &[u8]) -> Option<Fq2> {
    Some(Fq2::new(read_fq(bytes.get(..ELEMENT)?)?, read_fq(bytes.get(ELEMENT..)?)?))
}

// With full names: given by the pairing's aliases, the two would be considered the same type.
impl Group for Projective<g1::Config> {
    const BYTES: usize = G1_BYTES;
    const EXTENSION: bool = false;

    fn of_key(bytes: &[u8]) -> G1Affine {
        g1_raw(bytes)
    }

    fn write(point: &G1Affine, out: &mut Vec<u8>) {
        write_fq(&point.x, out);
        write_fq(&point.y, out);
    }

    fn read_homogeneous(bytes: &[u8]) -> Option<Self> {
        let [x, y, z] = [0, 1, 2].map(|i| bytes.get(i * ELEMENT..).and_then(read_fq));
        let (x, y, z) = (x?, y?, z?);
        if z.is_zero() {
            return (x.is_zero() && !y.is_zero()).then(Self::zero);
        }
        // In Jacobian coordinates x = X/Z² and y = Y/Z³, so X·Z and Y·Z² have the same Z.
        let point = Self::new_unchecked(x * z, y * z * z, z);
        point.into_affine().is_on_curve().then_some(point)
    }

    fn read_affine(bytes: &[u8]) -> Option<Self> {
        let point = G1Affine::new_unchecked(read_fq(bytes)?, read_fq(bytes.get(ELEMENT..)?)?);
        if point.x.is_zero() && point.y.is_zero() {
            return Some(Self::zero());
        }
        point.is_on_curve().then(|| point.into())
    }
}

impl Group for Projective<g2::Config> {
    const BYTES: usize = G2_BYTES;
    const EXTENSION: bool = true;

    fn of_key(bytes: &[u8]) -> G2Affine {
        g2_raw(bytes)
    }

    fn write(point: &G2Affine, out: &mut Vec<u8>) {
        [point.x.c0, point.x.c1, point.y.c0, point.y.c1].iter().for_each(|c| write_fq(c, out));
    }

    fn read_homogeneous(bytes: &[u8]) -> Option<Self> {
        let [x, y, z] = [0, 1, 2].map(|i| bytes.get(i * 2 * ELEMENT..(i + 1) * 2 * ELEMENT).and_then(read_fq2));
        let (x, y, z) = (x?, y?, z?);
        if z.is_zero() {
            return (x.is_zero() && !y.is_zero()).then(Self::zero);
        }
        let point = Self::new_unchecked(x * z, y * z * z, z);
        point.into_affine().is_on_curve().then_some(point)
    }

    fn read_affine(bytes: &[u8]) -> Option<Self> {
        let [x, y] = [0, 1].map(|i| bytes.get(i * 2 * ELEMENT..(i + 1) * 2 * ELEMENT).and_then(read_fq2));
        let point = G2Affine::new_unchecked(x?, y?);
        if point.x.is_zero() && point.y.is_zero() {
            return Some(Self::zero());
        }
        point.is_on_curve().then(|| point.into())
    }
}

/// Scalars of a sum: values in host memory, or those of a vector from an index on. None are in Montgomery form.
pub(super) enum Scalars<'a, V> {
    /// In host memory.
    Host(&'a [BigInteger256]),
    /// In device memory.
    Device(&'a V, usize),
}

/// A device that computes single operations, one at a time.
pub(super) trait Algebra {
    /// Elements of the scalar field in device memory, as secret as a witness: overwritten when dropped.
    type Vector;
    /// Points in device memory.
    type Bases<G: Group>;

    /// The most points to sum at once, given the device's current free memory.
    fn max_points(&self) -> usize;
    /// Copies points to the device. None of them is infinity.
    fn bases<G: Group>(&self, points: &[G::Affine]) -> Result<Self::Bases<G>, BackendError>;
    /// Computes Σ scalarsᵢ·basesᵢ over `count` points from `first` on; `count` is at least one.
    fn sum<G: Group>(
        &self,
        bases: &Self::Bases<G>,
        first: usize,
        count: usize,
        scalars: Scalars<'_, Self::Vector>,
    ) -> Result<G, BackendError>;
    /// Copies values to the device.
    fn upload(&self, values: &[BigInteger256]) -> Result<Self::Vector, BackendError>;
    /// Copies values back from the device.
    fn download(&self, vector: &Self::Vector) -> Result<Zeroizing<Vec<BigInteger256>>, BackendError>;
    /// Prepares transforms of `size` values, a power of two, on the domain and on its odd coset.
    fn prepare(&self, size: usize) -> Result<(), BackendError>;
    /// Transforms values on the domain to coefficients, in place.
    fn interpolate(&self, vector: &mut Self::Vector) -> Result<(), BackendError>;
    /// Transforms coefficients to values on `shift` times the domain, in place.
    fn evaluate(&self, vector: &mut Self::Vector, shift: Fr) -> Result<(), BackendError>;
    /// Computes a∘b, element by element.
    fn multiply(&self, a: &Self::Vector, b: &Self::Vector) -> Result<Self::Vector, BackendError>;
    /// Computes a − b, in place of a.
    fn subtract(&self, a: &mut Self::Vector, b: &Self::Vector) -> Result<(), BackendError>;
}
