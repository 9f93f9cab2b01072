//! Blinding and assembly.

use std::time::{Duration, Instant};

use ark_ec::CurveGroup;
use ark_ec::short_weierstrass::{Affine, Projective, SWCurveConfig};
use ark_ff::{AdditiveGroup, BigInteger, BigInteger256, PrimeField, Zero};
use zeroize::Zeroizing;

use super::Verifier;
use crate::backend::{BackendError, Commitments, LoadedKey, Progress};
use crate::model::{Fr, G1, KeyHeader, Proof, PublicInputs, StopToken, Witness, limb_bytes};

/// Error of a proof.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProveError {
    /// The witness has the wrong number of values.
    #[error("the witness has {got} values, the key is for {expected}: they belong to different circuits")]
    WitnessLength {
        /// Number of wires of the key.
        expected: usize,
        /// Number of values in the witness.
        got: usize,
    },
    /// The witness does not begin with the constant 1.
    #[error("value 0 of the witness must be 1")]
    WitnessOne,
    /// The proof does not verify: the witness is bad, the key is damaged, or the device made a mistake.
    #[error(
        "the proof does not verify: the witness does not satisfy the circuit or belongs to another circuit, or the key \
         is damaged"
    )]
    Invalid,
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// No random bytes for the blinding.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

/// The operating system gave no random bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gave no random bytes: {0}")]
pub struct NoRandomness(#[source] getrandom::Error);

/// A verified proof with its public values.
#[derive(Clone, Debug)]
pub struct Proved {
    /// The proof.
    pub proof: Proof,
    /// The public values.
    pub public: PublicInputs,
    /// Time that the device took for the commitments; for a proof of a batch, an equal share.
    pub commit_time: Duration,
    /// Time that verification took; for a proof of a batch, an equal share.
    pub verify_time: Duration,
}

/// Proves: computes the commitments on the device, draws the blinding from the operating system, assembles the proof
/// and verifies it. A proof that does not verify is an error, never a result.
///
/// Blocks while the device works; checks `stop` between its steps.
pub fn prove(
    key: &dyn LoadedKey,
    verifier: &Verifier,
    witness: &Witness,
    stop: &StopToken,
    on: &dyn Progress,
) -> Result<Proved, ProveError> {
    let header = &key.key().header;
    let public = public_inputs(header, witness)?;
    let start = Instant::now();
    let commitments = key.commit(witness, stop, on)?;
    let commit_time = start.elapsed();
    let proof = blind(header, &commitments)?;
    let start = Instant::now();
    if !verifier.verify(&proof, &public) {
        return Err(ProveError::Invalid);
    }
    Ok(Proved { proof, public, commit_time, verify_time: start.elapsed() })
}

/// One proof of a batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchJob<'a> {
    /// The witness.
    pub witness: &'a Witness,
    /// Stops this proof only.
    pub stop: &'a StopToken,
}

/// Proves several witnesses of one circuit: computes the commitments as a batch on the device, draws the blinding of
/// each, and verifies all proofs together ([`Verifier::verify_batch`]). Returns one result per job, in the order of the
/// jobs, each the same as [`prove`] would return: a wrong witness or a stopped job only costs the others time. A job
/// whose witness has the wrong shape, or that is stopped already, never reaches the device.
///
/// Blocks while the device works.
pub fn prove_batch(key: &dyn LoadedKey, verifier: &Verifier, jobs: &[BatchJob<'_>]) -> Vec<Result<Proved, ProveError>> {
    let header = &key.key().header;
    let mut results: Vec<Result<PublicInputs, ProveError>> = jobs.iter().map(|job| admit(header, job)).collect();
    let admitted: Vec<usize> = (0..jobs.len()).filter(|i| results[*i].is_ok()).collect();
    let witnesses: Vec<&Witness> = admitted.iter().map(|i| jobs[*i].witness).collect();
    let stops: Vec<&StopToken> = admitted.iter().map(|i| jobs[*i].stop).collect();

    let start = Instant::now();
    let commitments = if admitted.is_empty() { Vec::new() } else { key.commit_batch(&witnesses, &stops) };
    let commit_time = share(start.elapsed(), admitted.len());
    if commitments.len() != admitted.len() {
        // This is a fault of the device's code, not of the witnesses. Results cannot be assigned to jobs.
        let error = BackendError::BatchResults { expected: admitted.len(), got: commitments.len() };
        return results.into_iter().map(|r| r.and(Err(error.clone().into()))).collect();
    }

    let mut proofs: Vec<Option<Proof>> = vec![None; jobs.len()];
    for (i, sums) in admitted.into_iter().zip(commitments) {
        match sums.map_err(ProveError::from).and_then(|sums| blind(header, &sums)) {
            Ok(proof) => proofs[i] = Some(proof),
            Err(error) => results[i] = Err(error),
        }
    }
    let pairs: Vec<(&Proof, &PublicInputs)> =
        proofs.iter().zip(&results).filter_map(|(p, r)| Some((p.as_ref()?, r.as_ref().ok()?))).collect();
    let start = Instant::now();
    let verdicts = verifier.verify_batch(&pairs);
    let verify_time = share(start.elapsed(), verdicts.len());

    let mut verdicts = verdicts.into_iter();
    let prove = |(result, proof): (Result<PublicInputs, ProveError>, Option<Proof>)| {
        let public = result?;
        match (proof, verdicts.next()) {
            (Some(proof), Some(true)) => Ok(Proved { proof, public, commit_time, verify_time }),
            _ => Err(ProveError::Invalid),
        }
    };
    results.into_iter().zip(proofs).map(prove).collect()
}

/// Checks that a job may go to the device, and returns its public values.
fn admit(header: &KeyHeader, job: &BatchJob<'_>) -> Result<PublicInputs, ProveError> {
    let public = public_inputs(header, job.witness)?;
    match job.stop.stopped() {
        Some(why) => Err(BackendError::Stopped(why).into()),
        None => Ok(public),
    }
}

/// Returns an equal share of `time` among `n`.
fn share(time: Duration, n: usize) -> Duration {
    time / u32::try_from(n).unwrap_or(u32::MAX).max(1)
}

/// Checks that a witness has the shape that the key requires, and returns its public values.
fn public_inputs(header: &KeyHeader, witness: &Witness) -> Result<PublicInputs, ProveError> {
    let w = witness.values();
    if w.len() != header.n_vars as usize {
        return Err(ProveError::WitnessLength { expected: header.n_vars as usize, got: w.len() });
    }
    if w.first() != Some(&BigInteger256::one()) {
        return Err(ProveError::WitnessOne);
    }
    let public = w.iter().skip(1).take(header.n_public as usize);
    Ok(PublicInputs(public.map(|v| Fr::from_le_bytes_mod_order(&limb_bytes(v))).collect()))
}

/// Assembles a proof with blinding from the operating system.
fn blind(header: &KeyHeader, sums: &Commitments) -> Result<Proof, ProveError> {
    let blinding = Zeroizing::new([random_scalar()?, random_scalar()?]);
    Ok(assemble(header, sums, blinding[0], blinding[1]))
}

/// Assembles π_A = α + a + r·δ, π_B = β + b + s·δ, π_C = c + h + s·π_A + r·π_B¹ − r·s·δ, where π_B¹ is π_B in G1; π_C
/// equals c + h + s·(α + a) + r·(β + b¹) + r·s·δ.
fn assemble(header: &KeyHeader, sums: &Commitments, r: Fr, s: Fr) -> Proof {
    let vk = &header.vk;
    let in_g1 = || {
        let (a, b1) = (sums.a + vk.alpha_g1, sums.b1 + header.beta_g1);
        let affine = G1::normalize_batch(&[a, b1]);
        let c = sum_of_products([(affine[0], s), (affine[1], r), (header.delta_g1, r * s)]);
        let a = a + sum_of_products([(header.delta_g1, r)]);
        (a.into_affine(), (sums.c + sums.h + c).into_affine())
    };
    let in_g2 = || (sums.b2 + vk.beta_g2 + sum_of_products([(vk.delta_g2, s)])).into_affine();
    let ((a, c), b) = rayon::join(in_g1, in_g2);
    Proof { a, b, c }
}

/// Computes Σ kᵢ·Pᵢ bit by bit, with shared doublings. arkworks' products by the endomorphism would be a little faster,
/// but they leave copies of the scalars, which are secret, in freed memory.
fn sum_of_products<P, const N: usize>(terms: [(Affine<P>, Fr); N]) -> Projective<P>
where
    P: SWCurveConfig<ScalarField = Fr>,
{
    let terms = terms.map(|(point, scalar)| (point, Zeroizing::new(scalar.into_bigint())));
    let mut sum = Projective::zero();
    for bit in (0..Fr::MODULUS_BIT_SIZE as usize).rev() {
        sum.double_in_place();
        for (point, _) in terms.iter().filter(|(_, scalar)| scalar.get_bit(bit)) {
            sum += point;
        }
    }
    sum
}

/// Draws a uniform scalar from the operating system's generator: 512 bits, reduced, so that the bias is below 2^-256.
pub(super) fn random_scalar() -> Result<Fr, NoRandomness> {
    let mut wide = Zeroizing::new([0u8; 64]);
    getrandom::fill(&mut *wide).map_err(NoRandomness)?;
    Ok(Fr::from_le_bytes_mod_order(&*wide))
}
