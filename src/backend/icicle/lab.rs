//! Entry points for tests that use an installation of ICICLE directly, in their own process.

use std::rc::Rc;

use ark_ff::BigInteger256;
use zeroize::Zeroizing;

use super::super::BackendError;
use super::algebra::{Algebra, ELEMENT, Group, Scalars};
use super::library::{Bases, Icicle, Vector};
use super::{Task, answers};
use crate::model::{Fq, Fr, limbs};

/// Checks whether a device computes the known answers if its points are left in Montgomery form and flagged as such.
///
/// # Errors
/// One sentence on the first wrong answer.
pub fn answers_to_points_in_montgomery_form(task: &Task) -> Result<(), String> {
    let (icicle, _) = Icicle::open(&task.libraries, &task.backends, task.kind.as_deref(), task.ordinal)?;
    answers::check(&Montgomery(icicle))
}

/// A device that gets its points as they are in a key.
struct Montgomery(Rc<Icicle>);

impl Algebra for Montgomery {
    type Vector = Vector;
    type Bases<G: Group> = Bases<G>;

    fn max_points(&self) -> usize {
        self.0.max_points()
    }

    fn bases<G: Group>(&self, points: &[G::Affine]) -> Result<Bases<G>, BackendError> {
        let mut plain = Vec::new();
        points.iter().for_each(|point| G::write(point, &mut plain));
        // In memory, a field element is in Montgomery form.
        let words = plain.chunks_exact(ELEMENT).map(|bytes| Fq::from(limbs(bytes)).0.0);
        self.0.bases_of(&words.flatten().flat_map(u64::to_le_bytes).collect::<Vec<u8>>())
    }

    fn sum<G: Group>(
        &self,
        bases: &Bases<G>,
        first: usize,
        count: usize,
        scalars: Scalars<'_, Vector>,
    ) -> Result<G, BackendError> {
        self.0.sum_of(bases, first, count, scalars, true)
    }

    fn upload(&self, values: &[BigInteger256]) -> Result<Vector, BackendError> {
        self.0.upload(values)
    }

    fn download(&self, vector: &Vector) -> Result<Zeroizing<Vec<BigInteger256>>, BackendError> {
        self.0.download(vector)
    }

    fn prepare(&self, size: usize) -> Result<(), BackendError> {
        self.0.prepare(size)
    }

    fn interpolate(&self, vector: &mut Vector) -> Result<(), BackendError> {
        self.0.interpolate(vector)
    }

    fn evaluate(&self, vector: &mut Vector, shift: Fr) -> Result<(), BackendError> {
        self.0.evaluate(vector, shift)
    }

    fn multiply(&self, a: &Vector, b: &Vector) -> Result<Vector, BackendError> {
        self.0.multiply(a, b)
    }

    fn subtract(&self, a: &mut Vector, b: &Vector) -> Result<(), BackendError> {
        self.0.subtract(a, b)
    }
}
