//! Whole commitments on a device through ICICLE, compared with the CPU backend and, with the feature `cuda`, our own
//! kernels: checks that they are equal, and times them.
//!
//! The program can be copied to where the device is, together with `prover-worker` (built with the feature `icicle`):
//! see docs/icicle.md.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use ark_ff::{Field, PrimeField};
use prover_worker::backend::icicle::{IcicleBackend, Limits, Options};
use prover_worker::backend::mapped::map_file;
use prover_worker::backend::{
    Backend, BackendChoice, CpuOptions, CudaOptions, Discovery, IcicleOptions, Quiet, discover, selftest,
};
use prover_worker::formats::r1cs::{Constraints, R1cs};
use prover_worker::formats::{wtns, zkey};
use prover_worker::groth16::setup;
use prover_worker::model::{Fr, ProvingKey, StopToken, Witness};

const USAGE: &str = "\
usage: icicle --libraries DIR [--program FILE] [--device TYPE] [--rounds N] [--logs N,N] [CASE...]

  --libraries DIR  folder of ICICLE's libraries, with their backends in DIR/backend
  --program FILE   prover-worker, built with the feature icicle (default: next to this program)
  --device TYPE    CUDA, METAL, VULKAN or CPU (default: the first available one other than CPU)
  --rounds N       commitments of each case, after one that does not count (7)
  --logs N,N       log2 of the rows of generated circuits (12,16,18)
  CASE             folder with circuit.zkey and witness.wtns
";

struct Arguments {
    libraries: PathBuf,
    program: PathBuf,
    kind: Option<String>,
    rounds: usize,
    logs: Vec<u32>,
    cases: Vec<PathBuf>,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let beside = std::env::current_exe().map_err(|e| e.to_string())?.with_file_name("prover-worker");
        let (mut libraries, mut program, mut kind) = (None, beside, None);
        let (mut rounds, mut logs, mut cases) = (7, vec![12, 16, 18], Vec::new());
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word}: expected a value, got none"));
            let number = |text: &str| text.parse::<u32>().map_err(|_| format!("expected a number, got {text}"));
            match word.as_str() {
                "--libraries" => libraries = Some(PathBuf::from(value()?)),
                "--program" => program = value()?.into(),
                "--device" => kind = Some(value()?),
                "--rounds" => rounds = number(&value()?)?.max(1) as usize,
                "--logs" => {
                    logs = value()?.split(',').filter(|log| !log.is_empty()).map(number).collect::<Result<_, _>>()?;
                }
                // Passed by cargo.
                "--bench" => {}
                other if other.starts_with('-') => return Err(format!("{other}: not an option")),
                case => cases.push(case.into()),
            }
        }
        let libraries = libraries.ok_or("--libraries: expected a folder, got none")?;
        Ok(Self { libraries, program, kind, rounds, logs, cases })
    }
}

struct Case {
    name: String,
    key: Arc<ProvingKey>,
    witness: Witness,
}

/// A chain of squarings with 2^log rows, less one for the public value.
fn chain(log: u32) -> Result<Case, String> {
    let one = Fr::from(1u64).into_bigint();
    let mut values = vec![Fr::from(1u64), Fr::from(3u64)];
    let mut constraints = Constraints { offsets: vec![0], terms: Vec::new() };
    for i in 1..(1u32 << log) - 1 {
        values.push(values[i as usize].square());
        for wire in [i, i, i + 1] {
            constraints.terms.push((wire, one));
            constraints.offsets.push(constraints.terms.len() as u64);
        }
    }
    let n_wires = values.len() as u32;
    let circuit = R1cs { n_wires, n_pub_out: 0, n_pub_in: 1, n_prv_in: 0, n_labels: u64::from(n_wires), constraints };
    let key = Arc::new(setup::generate(&circuit, &|_| {}).map_err(|e| e.to_string())?);
    let witness = Witness::from_canonical(values.iter().map(|v| v.into_bigint()).collect());
    Ok(Case { name: format!("squarings, 2^{log} rows"), key, witness })
}

fn read(folder: &Path) -> Result<Case, String> {
    let about = |e: &dyn std::fmt::Display| format!("{}: {e}", folder.display());
    let map = |name: &str| map_file(&folder.join(name)).map_err(|e| about(&e));
    let key = zkey::parse(map("circuit.zkey")?).map_err(|e| about(&e))?;
    let witness = wtns::parse(&map("witness.wtns")?).map_err(|e| about(&e))?;
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Case { name: format!("{name}, {} rows", key.header.domain_size), key: Arc::new(key), witness })
}

/// The CPU, and GPUs with our own kernels if there are any.
fn others() -> Result<Discovery, String> {
    let (cpu, icicle) = (CpuOptions::default(), IcicleOptions::default());
    discover(BackendChoice::Auto, &cpu, &CudaOptions::default(), &icicle).map_err(|e| e.to_string())
}

/// Milliseconds: loading, then fastest and median of the commitments.
struct Times {
    load: f64,
    fastest: f64,
    median: f64,
}

fn measure(
    device: &dyn Backend,
    case: &Case,
    rounds: usize,
) -> Result<(prover_worker::backend::Commitments, Times), String> {
    let ms = |begun: Instant| begun.elapsed().as_secs_f64() * 1e3;
    let failed = |e| format!("{} on {}: {e}", case.name, device.device().label());
    let begun = Instant::now();
    let loaded = device.load(case.key.clone()).map_err(failed)?;
    let load = ms(begun);
    let commit = || loaded.commit(&case.witness, &StopToken::new(), &Quiet).map_err(failed);
    let first = commit()?;
    let mut times = Vec::new();
    for _ in 0..rounds {
        let begun = Instant::now();
        let again = commit()?;
        times.push(ms(begun));
        if again != first {
            return Err(format!("{} on {}: two commitments differ", case.name, device.device().label()));
        }
    }
    times.sort_by(f64::total_cmp);
    Ok((first, Times { load, fastest: times[0], median: times[rounds / 2] }))
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let options = Options {
        program: arguments.program.clone(),
        backends: arguments.libraries.join("backend"),
        libraries: arguments.libraries.clone(),
        kind: arguments.kind.clone(),
        withheld: Vec::new(),
        limits: Limits::default(),
    };
    let begun = Instant::now();
    let (icicle, _) = IcicleBackend::start(&options, 0).map_err(|e| e.to_string())?;
    let start = begun.elapsed();
    selftest::run(&icicle).map_err(|e| e.to_string())?;
    let found = others()?;
    let mut devices: Vec<&dyn Backend> = vec![&icicle];
    devices.extend(found.devices.iter().map(AsRef::as_ref));
    println!("ICICLE's device was ready in {:.2} s and passed its self-test.\n", start.as_secs_f64());
    for device in &devices {
        println!("- {}: {}", device.device().label(), device.device().name);
    }
    println!("\n| case | device | load, ms | commit, ms: median | fastest |\n|---|---|---|---|---|");
    let made_up = arguments.logs.iter().map(|log| chain(*log));
    for case in arguments.cases.iter().map(|folder| read(folder)).chain(made_up) {
        let case = case?;
        let mut first = None;
        for device in &devices {
            let (commitments, Times { load, fastest, median }) = measure(*device, &case, arguments.rounds)?;
            println!("| {} | {} | {load:.1} | {median:.2} | {fastest:.2} |", case.name, device.device().label());
            if *first.get_or_insert_with(|| commitments.clone()) != commitments {
                return Err(format!("{}: commitments of {} differ", case.name, device.device().label()));
            }
        }
    }
    println!("\nThe commitments of all devices are equal.");
    Ok(())
}

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(why) => {
            eprint!("error: {why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}
