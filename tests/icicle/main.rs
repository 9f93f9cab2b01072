//! ICICLE as a backend, driven through its C ABI: by a twin of its libraries over arkworks
//! (`src/backend/icicle/twin.rs`), which fails in any way that is asked for, and by a real installation if
//! `ICICLE_LIB_DIR` names one.

#![allow(clippy::unwrap_used, missing_docs)]

mod faults;
mod installation;
mod program;
mod proofs;
#[path = "../support/run.rs"]
mod run;
#[path = "../support/wait.rs"]
mod wait;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ark_ff::PrimeField;
use prover_worker::backend::cpu::{CpuBackend, Instructions};
use prover_worker::backend::icicle::{IcicleBackend, Limits, Options};
use prover_worker::backend::{Backend, Commitments, LoadedKey, Quiet};
use prover_worker::formats::{r1cs, wtns, zkey};
use prover_worker::groth16::setup;
use prover_worker::model::{Fr, ProvingKey, StopToken, Witness};

/// The program, which runs the child process by a hidden subcommand.
const PROGRAM: &str = env!("CARGO_BIN_EXE_prover-worker");
/// Names of the libraries.
const LIBRARIES: [&str; 3] = ["icicle_device", "icicle_field_bn254", "icicle_curve_bn254"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A folder with the twin under the names of ICICLE's libraries, with a backend for CUDA.
struct Twin {
    dir: tempfile::TempDir,
}

impl Twin {
    fn new() -> Self {
        let twin = Self::without_backends();
        fs::create_dir_all(twin.backends().join("cuda")).unwrap();
        twin
    }

    fn without_backends() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in LIBRARIES {
            // One file, so that the three share their state, as ICICLE's do.
            std::os::unix::fs::symlink(built(), dir.path().join(file_name(name))).unwrap();
        }
        Self { dir }
    }

    fn libraries(&self) -> &Path {
        self.dir.path()
    }

    fn backends(&self) -> PathBuf {
        self.dir.path().join("backend")
    }

    fn library(&self, name: &str) -> PathBuf {
        self.dir.path().join(file_name(name))
    }

    /// Makes a function fail that is given more than `above` elements.
    fn fault(&self, kind: &str, function: &str, above: usize) {
        let (new, file) = (self.backends().join("fault.new"), self.backends().join("fault"));
        fs::write(&new, format!("{kind} {function} {above}")).unwrap();
        fs::rename(new, file).unwrap();
    }

    /// Waits until a function that is to hang does so.
    fn wait_until_it_hangs(&self) {
        let shown = self.backends().join("hangs");
        wait::until("the function to hang", || shown.exists().then_some(()));
        fs::remove_file(shown).unwrap();
    }

    /// Removes the fault.
    fn sound(&self) {
        fs::remove_file(self.backends().join("fault")).unwrap();
    }

    /// Removes a function from one of the libraries by changing its name there.
    fn take(&self, library: &str, function: &str) {
        let file = self.library(library);
        let mut bytes = fs::read(&file).unwrap();
        let name = [b"\0", function.as_bytes(), b"\0"].concat();
        let mut taken = 0;
        for at in 0..bytes.len() - name.len() {
            if bytes[at..].starts_with(&name) {
                bytes[at + 1] = b'_';
                taken += 1;
            }
        }
        assert!(taken > 0, "{function} is not in the library");
        fs::remove_file(&file).unwrap();
        fs::write(&file, bytes).unwrap();
    }

    fn options(&self) -> Options {
        Options {
            program: PROGRAM.into(),
            libraries: self.libraries().into(),
            backends: self.backends(),
            kind: None,
            withheld: Vec::new(),
            limits: Limits { start: Duration::from_secs(120), step: Duration::from_secs(120), ..Limits::default() },
        }
    }

    fn start(&self) -> IcicleBackend {
        IcicleBackend::start(&self.options(), 0).unwrap().0
    }

    /// Returns why no device can be opened.
    fn refused(&self) -> String {
        IcicleBackend::start(&self.options(), 0).map(|_| ()).unwrap_err().to_string()
    }
}

fn file_name(library: &str) -> String {
    format!("lib{library}{}", std::env::consts::DLL_SUFFIX)
}

/// Returns the twin as cargo built it.
fn built() -> PathBuf {
    let twin = Path::new(PROGRAM).parent().unwrap().join("examples").join(file_name("icicle_twin"));
    assert!(twin.exists(), "no {}: cargo build --features icicle --example icicle_twin", twin.display());
    twin
}

/// A key and a witness.
struct Case {
    name: String,
    key: Arc<ProvingKey>,
    witness: Witness,
}

impl Case {
    /// Computes the commitments with the CPU backend.
    fn expected(&self) -> Commitments {
        commit(CpuBackend::with(1, Instructions::Portable).unwrap().load(self.key.clone()).unwrap().as_ref(), self)
    }
}

fn commit(loaded: &dyn LoadedKey, case: &Case) -> Commitments {
    loaded.commit(&case.witness, &StopToken::new(), &Quiet).unwrap_or_else(|e| panic!("{}: {e}", case.name))
}

/// x^(2^n), for a domain of any size.
fn squarings(n: u32) -> Case {
    let one = Fr::from(1u64).into_bigint();
    let mut constraints = r1cs::Constraints { offsets: vec![0], terms: Vec::new() };
    let mut values = vec![Fr::from(1u64), Fr::from(3u64)];
    for i in 0..n {
        values.push(values[1 + i as usize] * values[1 + i as usize]);
        for row in [vec![(1 + i, one)], vec![(1 + i, one)], vec![(2 + i, one)]] {
            constraints.terms.extend(row);
            constraints.offsets.push(constraints.terms.len() as u64);
        }
    }
    let n_wires = values.len() as u32;
    let circuit =
        r1cs::R1cs { n_wires, n_pub_out: 0, n_pub_in: 1, n_prv_in: 0, n_labels: u64::from(n_wires), constraints };
    let key = Arc::new(setup::generate(&circuit, &|_| {}).unwrap());
    let witness = Witness::from_canonical(values.iter().map(|v| v.into_bigint()).collect());
    Case { name: format!("{n} squarings"), key, witness }
}

/// The project's own circuits, with keys made here.
fn own_circuits() -> Vec<Case> {
    let files = fs::read_dir(root().join("circuits")).unwrap().map(|f| f.unwrap().path());
    let mut files: Vec<_> = files.filter(|f| f.extension().is_some_and(|e| e == "r1cs")).collect();
    files.sort();
    let cases = files.iter().map(|file| {
        let circuit = r1cs::parse(&fs::read(file).unwrap()).unwrap();
        let witness = wtns::parse(&fs::read(file.with_extension("wtns")).unwrap()).unwrap();
        let key = Arc::new(setup::generate(&circuit, &|_| {}).unwrap());
        Case { name: file.display().to_string(), key, witness }
    });
    let cases: Vec<_> = cases.collect();
    assert!(cases.len() >= 5, "expected the project's circuits, found {}", cases.len());
    cases
}

/// Circuits and keys of other projects, if there are any.
fn circuits_of_others() -> Vec<Case> {
    let cases = root().join("../shared/cases");
    let Ok(folders) = fs::read_dir(&cases) else {
        eprintln!("SKIPPED on real circuits: {} is not there", cases.display());
        return Vec::new();
    };
    let mut folders: Vec<_> = folders.map(|f| f.unwrap().path()).filter(|f| f.is_dir()).collect();
    folders.sort();
    let cases = folders.into_iter().filter_map(|folder| {
        let read = |name: &str| fs::read(folder.join(name)).ok();
        let (key, witness) = (read("circuit.zkey")?, read("witness.wtns")?);
        let key = Arc::new(zkey::parse(key.into()).unwrap());
        Some(Case { name: folder.display().to_string(), key, witness: wtns::parse(&witness).unwrap() })
    });
    cases.collect()
}
