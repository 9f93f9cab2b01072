//! prover-worker: Groth16 proofs of circom circuits on BN254, from a queue.
//!
//! ```text
//!  Job ──► Witness ──► Commitments ──► Proof ──► Artifact
//! (queue)  (witness)    (backend)     (groth16,   (store,
//!                                      verified)   artifacts)
//! ```
//!
//! Everything the program does is one pass along this line. The command `prove` makes one pass; a worker makes one per
//! job.
//!
//! | layer | module | what it may touch |
//! |---|---|---|
//! | 7 | [`cli`] | arguments, terminal |
//! | 6 | [`http`] | requests |
//! | 5 | [`worker`] | joins the layers below; no SQL, no FFI |
//! | 4 | [`registry`], [`prover`] | circuits, the loaded-key cache; files in, files out |
//! | 3 | [`groth16`], [`store`], [`queue`], [`artifacts`], [`witness`] | randomness; SQL; job ids; objects; sandbox |
//! | 2 | [`backend`] | devices, FFI, SIMD: the only `unsafe` in the crate |
//! | 1 | [`formats`], [`config`], [`telemetry`], [`seal`] | bytes; the environment; the subscriber; ciphers |
//! | 0 | [`model`] | plain data types |
//!
//! A module depends only on modules of lower layers; `tests/layering` enforces this.
//!
//! Without the feature `worker`, which is on by default, the crate consists of what turns a key and a witness into a
//! proof, and of the program `groth16-prover`: [`model`], [`formats`], [`config`], [`backend`], [`groth16`] and
//! [`prover`].

#[cfg(feature = "worker")]
pub mod artifacts;
pub mod backend;
#[cfg(feature = "worker")]
pub mod cli;
pub mod config;
pub mod formats;
pub mod groth16;
#[cfg(feature = "worker")]
pub mod http;
pub mod model;
pub mod prover;
#[cfg(feature = "worker")]
pub mod queue;
#[cfg(feature = "worker")]
pub mod registry;
#[cfg(feature = "worker")]
pub mod seal;
#[cfg(feature = "worker")]
pub mod store;
#[cfg(feature = "worker")]
pub mod telemetry;
#[cfg(feature = "worker")]
pub mod witness;
#[cfg(feature = "worker")]
pub mod worker;
