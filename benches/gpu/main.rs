//! The check of an NVIDIA GPU: known answers and comparisons, then times next to a model of the least that the device
//! could take. Results go to RESULTS-CARD.json and .md, rewritten after each step.
//!
//! The program is built where Rust is and copied to where the GPU is: see `scripts/gpu_check.sh` and
//! docs/gpu/README.md.

mod kernels;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Instant;

use prover_worker::backend::BackendError;
use prover_worker::backend::cuda::driver::Driver;
use prover_worker::backend::cuda::driver::nvidia::NvidiaDriver;
use prover_worker::backend::cuda::lab::{Arithmetic, Lab};
use serde_json::{Value, json};

/// The checks, in this order: the oldest first, because a kernel's fault disables the device for all that come after
/// it. Each returns a remark, or what is wrong.
const CHECKS: &[(&str, Check)] = &[
    ("bytes to the device and back", echo),
    ("an empty kernel", nothing),
    ("transforms", kernels::transforms),
    ("products in G1", kernels::products_g1),
    ("products in G2", kernels::products_g2),
    ("commitments one by one", kernels::one_by_one),
    ("batches", kernels::batches),
    ("commitments as one launch", kernels::as_one_launch),
    // Last, because its sizes are the same with --small: the sanitizers may not get to its end in time.
    ("self-test", kernels::self_test),
];

/// The benches, in this order.
const BENCHES: &[(&str, Bench)] = &[
    ("upload", upload),
    ("launch", launch),
    ("memory", memory),
    ("arithmetic", arithmetic),
    ("msm g1", kernels::msm_g1),
    ("msm g2", kernels::msm_g2),
    ("ntt", kernels::ntt),
    ("batched", kernels::batched),
    ("commit", kernels::commit),
    ("throughput", kernels::throughput),
];

type Check = fn(&Run) -> Result<String, String>;
type Bench = fn(&Run) -> Result<Vec<Record>, BackendError>;

const USAGE: &str = "\
usage: gpu --out DIR [--device N] [--rounds N] [--small] [--checks] [--no-graphs] [--trace] [--only TEXT]
       gpu --list | --floor | --help

  --out DIR     folder for RESULTS-CARD.json and RESULTS-CARD.md, rewritten after each check and bench
  --device N    GPU to use, as the driver counts them (0)
  --rounds N    rounds of each bench (15)
  --small       run only the checks, at sizes small enough for compute-sanitizer; writes nothing without --out
  --checks      run only the checks, at all sizes
  --no-graphs   launch each kernel separately, and skip what is about graphs
  --trace       also print the times of single kernels, and of other windows and radices
  --only TEXT   run only the checks and benches with TEXT in their name
  --list        list the checks and benches
  --floor       print the model's figures for an H200; needs no GPU
";

/// Exit statuses: a check failed; the arguments are wrong; there is no usable GPU; the device failed before the checks
/// were done.
const FAILED: u8 = 1;
const WRONG_USE: u8 = 2;
const NO_GPU: u8 = 3;
const DEAD: u8 = 4;

struct Options {
    out: Option<PathBuf>,
    device: usize,
    rounds: usize,
    small: bool,
    checks: bool,
    graphs: bool,
    trace: bool,
    only: String,
    list: bool,
    floor: bool,
    help: bool,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let only = String::new();
        let (out, device, rounds, small) = (None, 0, 15, false);
        let mut options = Self {
            out,
            device,
            rounds,
            small,
            checks: false,
            graphs: true,
            trace: false,
            only,
            list: false,
            floor: false,
            help: false,
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument}: expected a value, got none"));
            match argument.as_str() {
                "--out" => options.out = Some(value()?.into()),
                "--device" => options.device = number(&argument, &value()?)?,
                "--rounds" => options.rounds = number(&argument, &value()?)?.max(1),
                "--only" => options.only = value()?,
                "--small" => options.small = true,
                "--checks" => options.checks = true,
                "--no-graphs" => options.graphs = false,
                "--trace" => options.trace = true,
                "--list" => options.list = true,
                "--floor" => options.floor = true,
                "--help" => options.help = true,
                // Passed by cargo.
                "--bench" => {}
                other => return Err(format!("{other}: not an option")),
            }
        }
        if options.out.is_none() && !(options.list || options.floor || options.help || options.small) {
            return Err("--out: expected a folder, got none".into());
        }
        Ok(options)
    }

    fn wants(&self, name: &str) -> bool {
        name.contains(&self.only)
    }
}

fn number(name: &str, text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| format!("{name}: expected a number, got {text:?}"))
}

/// Input of checks and benches.
struct Run {
    driver: Arc<NvidiaDriver>,
    floor: Floor,
    rounds: usize,
    /// Whether sizes are small enough for compute-sanitizer.
    small: bool,
    /// Whether a proof may be one launch.
    graphs: bool,
    /// Whether times of single kernels are printed.
    trace: bool,
}

/// One line of the results, with times in milliseconds.
struct Record {
    name: String,
    log2: Option<u32>,
    median_ms: f64,
    min_ms: f64,
    max_ms: f64,
    rounds: usize,
    floor_ms: Option<f64>,
    note: String,
}

impl Record {
    /// Summarizes the times of all rounds but the first, which loads code and raises the clocks.
    fn of(name: &str, log2: Option<u32>, times: &[f64]) -> Self {
        let mut times = times.get(1..).unwrap_or_default().to_vec();
        times.sort_by(f64::total_cmp);
        let at = |k: usize| times.get(k).copied().unwrap_or(f64::NAN);
        let last = times.len().saturating_sub(1);
        let median_ms = (at(last / 2) + at(last.div_ceil(2))) / 2.0;
        let (min_ms, max_ms, rounds) = (at(0), at(last), times.len());
        Self { name: name.into(), log2, median_ms, min_ms, max_ms, rounds, floor_ms: None, note: String::new() }
    }

    fn floor(self, floor_ms: f64) -> Self {
        Self { floor_ms: Some(floor_ms), ..self }
    }

    fn note(self, note: String) -> Self {
        Self { note, ..self }
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "log2": self.log2,
            "median_ms": self.median_ms,
            "min_ms": self.min_ms,
            "max_ms": self.max_ms,
            "rounds": self.rounds,
            "floor_ms": self.floor_ms,
            "note": self.note,
        })
    }
}

// Checks.

fn echo(run: &Run) -> Result<String, String> {
    let most = if run.small { 1 << 18 } else { 100_000_007 };
    let mut sizes: Vec<usize> = vec![1, 31, 256, 65_537, (2 << 20) + 1, (16 << 20) + 3, most];
    sizes.retain(|size| *size <= most);
    for size in &sizes {
        let from: Vec<u8> = (0..*size).map(|i| (i ^ (i >> 8) ^ (i >> 19)) as u8).collect();
        let back = run.driver.echo(&from).map_err(|e| format!("{size} bytes: {e}"))?;
        if let Some(at) = (0..*size).find(|i| back[*i] != from[*i]) {
            return Err(format!("{size} bytes, at byte {at}: expected {}, got {}", from[at], back[at]));
        }
    }
    Ok(format!("{} sizes to {most} bytes", sizes.len()))
}

fn nothing(run: &Run) -> Result<String, String> {
    run.driver.time_launches(10, 1).map(|_| String::new()).map_err(|e| e.to_string())
}

// Benches. Each runs one more round than asked for: `Record::of` omits the first.

fn upload(run: &Run) -> Result<Vec<Record>, BackendError> {
    let record = |log2: u32| {
        let bytes = 32u64 << log2;
        let times = run.driver.time_uploads(bytes, run.rounds + 1)?;
        let record = Record::of("upload of a witness", Some(log2), &times);
        let rate = bytes as f64 / record.median_ms / 1e6;
        Ok(record.note(format!("{rate:.1} GB/s from pageable memory")))
    };
    [4, 10, 16, 20, 22].into_iter().map(record).collect()
}

fn launch(run: &Run) -> Result<Vec<Record>, BackendError> {
    let record = |(name, launches): (&str, u32)| {
        let times = run.driver.time_launches(launches, run.rounds + 1)?;
        Ok(Record::of(name, None, &times))
    };
    [("launch and wait", 1), ("launch, of 1000 in a row", 1000)].into_iter().map(record).collect()
}

fn memory(run: &Run) -> Result<Vec<Record>, BackendError> {
    let bytes = 1u64 << 30;
    let times = run.driver.time_zero(bytes, run.rounds + 1)?;
    let record = Record::of("1 GiB set to zero", None, &times);
    let rate = bytes as f64 / record.median_ms / 1e6;
    Ok(vec![record.floor(bytes as f64 / run.floor.memory * 1e3).note(format!("{rate:.0} GB/s"))])
}

/// Throughput of the arithmetic alone: kernels that do nothing else, on as many threads as the device holds.
fn arithmetic(run: &Run) -> Result<Vec<Record>, BackendError> {
    const THREADS: u32 = 2048;
    let lab = Lab::new(run.driver.clone())?;
    let blocks = run.driver.properties().multiprocessors * (THREADS / 128);
    let record = |(name, what, count, slots): (&str, Arithmetic, u32, f64)| {
        let bench = lab.bench(what, blocks, count)?;
        let record = Record::of(name, None, &lab.time(run.rounds + 1, || bench.run())?);
        let operations = f64::from(blocks * 128 / what.lanes()) * f64::from(count);
        let rate = operations / record.median_ms / 1e6;
        Ok(record.floor(run.floor.slots(operations * slots)).note(format!("{rate:.2} G/s")))
    };
    let [g1, g2] = [false, true].map(|second| mixed_addition(second, Adding::Xyzz));
    [
        ("products in Fq", Arithmetic::Products, 1000, PRODUCT),
        ("squares in Fq", Arithmetic::Squares, 1000, SQUARE),
        ("products in Fq2", Arithmetic::ProductsInFq2, 300, PRODUCT2),
        ("additions in G1", Arithmetic::AdditionsInG1, 100, g1),
        ("additions in G2", Arithmetic::AdditionsInG2, 40, g2),
    ]
    .into_iter()
    .map(record)
    .collect()
}

// The model.

/// The least time that the arithmetic and the memory of a device allow, by counting instructions.
///
/// A multiprocessor issues 64 slots of 32-bit multiply-adds per clock; a wide multiply-add, or the high half of one,
/// takes two of them, the low half one. Counts are of compiled code for products in BN254's fields.
#[derive(Clone, Copy)]
struct Floor {
    /// Slots per second.
    slots: f64,
    /// Bytes per second at the memory's highest clock.
    memory: f64,
}

/// Slots of a product, a square, and a reduction alone.
const PRODUCT: f64 = 121.0 * 2.0 + 8.0 * 2.0 + 9.0;
const SQUARE: f64 = 89.0 * 2.0 + 11.0 * 2.0 + 11.0;
const WIDE: f64 = 64.0 * 2.0;
const REDUCTION: f64 = PRODUCT - WIDE;
/// Likewise in the quadratic extension: three wide products and two reductions, and two products.
const PRODUCT2: f64 = 3.0 * WIDE + 2.0 * REDUCTION;
const SQUARE2: f64 = 2.0 * PRODUCT;

/// How points are added to buckets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Adding {
    /// In XYZZ coordinates: 8 products, 2 squares, one reduction saved.
    Xyzz,
    /// Affine, with shared inversions: 5 products and a square.
    Affine,
}

/// A multi-scalar product. `log2` is that of the number of points.
#[derive(Clone, Copy)]
struct Msm {
    log2: u32,
    /// In G2, else in G1.
    second: bool,
    /// With a table of the points' multiples for each window, so that all windows share their buckets.
    tables: bool,
    adding: Adding,
    /// Fraction of digits that are not zero.
    density: f64,
}

/// Slots of adding an affine point to a bucket, in G2 or G1.
fn mixed_addition(second: bool, adding: Adding) -> f64 {
    let (product, square, reduction) = field(second);
    match adding {
        Adding::Xyzz => 8.0 * product + 2.0 * square - reduction,
        Adding::Affine => 5.0 * product + square,
    }
}

/// Returns the slots of a product, of a square, and of the reductions that a merged sum of two products saves, in the
/// field of G2 or G1.
fn field(second: bool) -> (f64, f64, f64) {
    if second { (PRODUCT2, SQUARE2, 2.0 * REDUCTION) } else { (PRODUCT, SQUARE, REDUCTION) }
}

impl Floor {
    /// The model for a number of multiprocessors at a clock in Hz, and a memory bandwidth in bytes per second.
    fn new(multiprocessors: u32, clock: f64, memory: f64) -> Self {
        Self { slots: f64::from(multiprocessors) * 64.0 * clock, memory }
    }

    fn of(driver: &NvidiaDriver) -> Self {
        let card = driver.card();
        // Two transfers per clock.
        let memory = 2e3 * f64::from(card.memory_clock_khz) * f64::from(card.bus_bits) / 8.0;
        Self::new(driver.properties().multiprocessors, 1e3 * f64::from(card.clock_khz), memory)
    }

    /// Returns the milliseconds for this many slots.
    fn slots(&self, slots: f64) -> f64 {
        slots / self.slots * 1e3
    }

    /// Returns the milliseconds for n products in Fq.
    fn products(&self, n: f64) -> f64 {
        self.slots(n * PRODUCT)
    }

    /// Returns the milliseconds to sort n pairs by keys of this many bits: 8 bits per pass, 16 bytes read and written,
    /// at 70 % of the memory's bandwidth, and 50 µs to start.
    fn sort(&self, n: f64, bits: u32) -> f64 {
        n * 16.0 * f64::from(bits.div_ceil(8)) / (0.7 * self.memory) * 1e3 + 0.05
    }

    /// Returns the milliseconds of a multi-scalar product, and the window size in bits that minimizes them.
    fn msm(&self, msm: Msm) -> (f64, u32) {
        let (product, square, reduction) = field(msm.second);
        let full = 12.0 * product + 2.0 * square - reduction;
        let mixed = mixed_addition(msm.second, msm.adding);
        let points = f64::from(msm.log2).exp2();
        let point_bytes = if msm.second { 128.0 } else { 64.0 };
        let mut best = (f64::INFINITY, 0);
        for bits in 12..25 {
            let windows = 254u32.div_ceil(bits);
            let digits = points * f64::from(windows) * msm.density;
            // Tables of more than 30 GB leave no memory for the rest of a key.
            if msm.tables && points * f64::from(windows) * point_bytes > 30e9 {
                continue;
            }
            let buckets = f64::from(if msm.tables { 1 } else { windows }) * f64::from(bits - 1).exp2();
            let additions = digits * (1.0 - (-f64::from(bits)).exp2());
            let arithmetic = self.slots(additions * mixed + 2.0 * buckets * full);
            let time = arithmetic + self.sort(digits, bits);
            if time < best.0 {
                best = (time, bits);
            }
        }
        best
    }

    /// Returns the milliseconds of a number-theoretic transform: its products, or two passes over memory (three beyond
    /// 2^22) at five sixths of its bandwidth, whichever takes longer.
    fn ntt(&self, log2: u32) -> f64 {
        let n = f64::from(log2).exp2();
        let passes = if log2 <= 22 { 2.0 } else { 3.0 };
        let memory = passes * n * 64.0 / (self.memory * 5.0 / 6.0) * 1e3;
        self.products(n / 2.0 * f64::from(log2)).max(memory)
    }

    /// Prints the model's figures.
    fn print(&self) {
        println!("The floor (in brackets, bits of a window)");
        println!("products in Fq: {:.1} G/s", 1e-6 / self.products(1.0));
        for second in [false, true] {
            for log2 in [20, 22, 24] {
                for tables in [false, true] {
                    let msm = Msm { log2, second, tables, adding: Adding::Xyzz, density: 1.0 };
                    let (xyzz, c) = self.msm(msm);
                    let (affine, d) = self.msm(Msm { adding: Adding::Affine, ..msm });
                    let (group, tables) = (if second { "G2" } else { "G1" }, if tables { "tables" } else { "plain" });
                    println!(
                        "MSM in {group}, 2^{log2}, {tables}: XYZZ {xyzz:.2} ms ({c}), affine {affine:.2} ms ({d})"
                    );
                }
            }
        }
        for log2 in [20, 22, 24] {
            println!("NTT, 2^{log2}: {:.3} ms", self.ntt(log2));
        }
    }
}

// Results.

/// A check's outcome.
struct Checked {
    name: &'static str,
    seconds: f64,
    outcome: Result<String, String>,
}

struct Results {
    /// Folder that they are written to, if any, and the card they are for.
    folder: Option<PathBuf>,
    card: String,
    /// Fixed facts: name and value, for both files.
    facts: Vec<(&'static str, Value)>,
    checks: Vec<Checked>,
    records: Vec<Record>,
    /// Benches that ended with an error.
    failed: Vec<(&'static str, String)>,
    /// What is still to come, or why nothing more does; `None` when all is done.
    unfinished: Option<String>,
}

impl Results {
    fn json(&self) -> Value {
        let checks = self.checks.iter().map(|c| {
            let (passed, remark) = (c.outcome.is_ok(), c.outcome.as_ref().unwrap_or_else(|why| why));
            json!({ "name": c.name, "passed": passed, "remark": remark, "seconds": c.seconds })
        });
        let failed = self.failed.iter().map(|(name, why)| json!({ "name": name, "error": why }));
        let facts = self.facts.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        let mut all: serde_json::Map<String, Value> = facts.collect();
        all.insert("checks".into(), checks.collect());
        all.insert("benches".into(), self.records.iter().map(Record::json).collect());
        all.insert("failed_benches".into(), failed.collect());
        all.insert("unfinished".into(), self.unfinished.as_deref().into());
        all.into()
    }

    fn markdown(&self) -> String {
        let mut text = format!("# {}\n\nWritten by `benches/gpu`; README.md says how to read it.\n\n", self.card);
        if let Some(why) = &self.unfinished {
            text += &format!("**Unfinished**: {why}\n\n");
        }
        text += "| | |\n|---|---|\n";
        let mut line = |line: String| text.extend([line.as_str(), "\n"]);
        for (name, value) in &self.facts {
            let plain = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            line(format!("| {} | {} |", name.replace('_', " "), cell(&plain)));
        }
        line("\n## Checks\n\n| check | outcome | seconds |\n|---|---|---|".into());
        for Checked { name, seconds, outcome } in &self.checks {
            let outcome = match outcome {
                Ok(remark) if remark.is_empty() => "passed".into(),
                Ok(remark) => format!("passed: {remark}"),
                Err(why) => format!("**failed**: {why}"),
            };
            line(format!("| {name} | {} | {seconds:.1} |", cell(&outcome)));
        }
        if self.records.is_empty() && self.failed.is_empty() {
            return text;
        }
        line(
            "\n## Times\n\n| bench | size | median, ms | fastest | slowest | rounds | floor, ms | times the floor | |"
                .into(),
        );
        line("|---|---|---|---|---|---|---|---|---|".into());
        for r in &self.records {
            let size = r.log2.map_or_else(String::new, |log2| format!("2^{log2}"));
            let floor = r.floor_ms.map_or_else(String::new, digits);
            let times = r.floor_ms.map_or_else(String::new, |floor| format!("{:.2}", r.median_ms / floor));
            let [median, min, max] = [r.median_ms, r.min_ms, r.max_ms].map(digits);
            let (name, rounds, note) = (&r.name, r.rounds, cell(&r.note));
            line(format!("| {name} | {size} | {median} | {min} | {max} | {rounds} | {floor} | {times} | {note} |"));
        }
        for (name, why) in &self.failed {
            line(format!("\n**{name} ended with an error**: {why}"));
        }
        text
    }

    /// Returns the paths of the two files.
    fn paths(&self, folder: &Path) -> [PathBuf; 2] {
        ["json", "md"].map(|ending| folder.join(format!("RESULTS-{}.{ending}", slug(&self.card))))
    }

    /// Writes both, each atomically: this program may be killed at any time.
    fn write(&self) -> std::io::Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        std::fs::create_dir_all(folder)?;
        let json = serde_json::to_string_pretty(&self.json())? + "\n";
        for (path, text) in self.paths(folder).iter().zip([json, self.markdown()]) {
            let new = path.with_extension("new");
            std::fs::write(&new, text)?;
            std::fs::rename(new, path)?;
        }
        Ok(())
    }

    /// Records what comes next, so that the name of what hangs is there.
    fn begin(&mut self, what: &str, name: &str) -> std::io::Result<()> {
        self.unfinished = Some(format!("{what} {name} had begun and not ended"));
        self.write()
    }
}

/// Formats with four significant digits.
fn digits(ms: f64) -> String {
    let whole = if ms > 0.0 { ms.log10().floor() as i32 } else { 0 };
    format!("{ms:.*}", (3 - whole).clamp(0, 6) as usize)
}

/// Escapes text for a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// Returns a card's name for a file name: `NVIDIA H100 80GB HBM3` becomes `H100-80GB-HBM3`.
fn slug(card: &str) -> String {
    let words = card.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !["", "NVIDIA", "GeForce"].contains(w));
    let slug = words.collect::<Vec<_>>().join("-");
    if slug.is_empty() { "GPU".into() } else { slug }
}

/// Returns what a program prints, on one line.
fn output_of(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|o| o.status.success())?;
    let text = String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    Some(text).filter(|text| !text.is_empty())
}

/// Returns what nvidia-smi says about a card; it counts cards as the driver does unless CUDA_VISIBLE_DEVICES is set.
fn smi(ordinal: u32, what: &str) -> Value {
    let (card, query) = (ordinal.to_string(), format!("--query-gpu={what}"));
    output_of("nvidia-smi", &["-i", &card, &query, "--format=csv,noheader"]).map_or(Value::Null, Value::from)
}

const CLOCKS: &str = "clocks.sm,clocks.mem,temperature.gpu,power.draw";

fn facts(driver: &NvidiaDriver) -> Vec<(&'static str, Value)> {
    let (properties, card) = (driver.properties(), driver.card());
    let ordinal = properties.ordinal;
    let (major, minor) = properties.capability;
    let (cuda_major, cuda_minor) = card.cuda;
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpus.lines().find(|l| l.starts_with("model name")).and_then(|l| l.split_once(": ")).map(|(_, name)| name);
    let threads = std::thread::available_parallelism().map_or(0, |n| n.get());
    vec![
        ("card", properties.name.as_str().into()),
        ("compute_capability", format!("{major}.{minor}").into()),
        ("multiprocessors", properties.multiprocessors.into()),
        ("memory_bytes", properties.memory.into()),
        ("l2_bytes", card.l2_bytes.into()),
        ("shared_per_block_bytes", properties.shared_per_block.into()),
        ("highest_clock_mhz", (card.clock_khz / 1000).into()),
        ("highest_memory_clock_mhz", (card.memory_clock_khz / 1000).into()),
        ("memory_bus_bits", card.bus_bits.into()),
        ("driver", smi(ordinal, "driver_version")),
        ("driver_cuda", format!("{cuda_major}.{cuda_minor}").into()),
        ("power_limit", smi(ordinal, "power.limit")),
        ("clocks_before", smi(ordinal, CLOCKS)),
        ("processor", json!(cpu)),
        ("threads", threads.into()),
        ("date", output_of("date", &["-u", "+%Y-%m-%dT%H:%MZ"]).into()),
        ("commit", option_env!("PROVER_GPU_CHECK_COMMIT").into()),
        ("cuda_device_max_connections", std::env::var("CUDA_DEVICE_MAX_CONNECTIONS").ok().into()),
    ]
}

/// Returns why nothing more is done if this ended the device: nothing runs on a device after a kernel's fault.
fn dead(run: &Run, what: &str, name: &str) -> Option<String> {
    let why = run.driver.time_launches(1, 1).err()?;
    Some(format!("{what} {name} was the end of the device, on which nothing runs any more: {why}"))
}

/// Does everything that was asked for, as far as possible.
fn all(run: &Run, options: &Options, results: &mut Results) -> std::io::Result<()> {
    let benches = !options.small && !options.checks;
    let stopped = match check(run, options, results)? {
        None if benches => time(run, options, results)?,
        stopped => stopped,
    };
    if benches {
        results.facts.push(("clocks_after", smi(run.driver.properties().ordinal, CLOCKS)));
    }
    stopped.iter().for_each(|why| println!("stopped: {why}"));
    results.unfinished = stopped;
    results.write()
}

/// Runs the checks; returns why nothing more can be done, if so.
fn check(run: &Run, options: &Options, results: &mut Results) -> std::io::Result<Option<String>> {
    for (name, check) in CHECKS.iter().filter(|(name, _)| options.wants(name)) {
        results.begin("check", name)?;
        let start = Instant::now();
        let outcome = check(run);
        let seconds = start.elapsed().as_secs_f64();
        match &outcome {
            Ok(remark) => println!("check {name}: passed in {seconds:.1} s {remark}"),
            Err(why) => println!("check {name}: FAILED: {why}"),
        }
        let failed = outcome.is_err();
        results.checks.push(Checked { name, seconds, outcome });
        if let Some(why) = failed.then(|| dead(run, "check", name)).flatten() {
            return Ok(Some(why));
        }
    }
    Ok(None)
}

/// Runs the benches; returns why nothing more can be done, if so.
fn time(run: &Run, options: &Options, results: &mut Results) -> std::io::Result<Option<String>> {
    for (name, bench) in BENCHES.iter().filter(|(name, _)| options.wants(name)) {
        results.begin("bench", name)?;
        match bench(run) {
            Ok(records) => {
                for r in &records {
                    let mut text = format!("{}{}: ", r.name, r.log2.map_or_else(String::new, |l| format!(", 2^{l}")));
                    let _ = write!(text, "{} ms ({} to {})", digits(r.median_ms), digits(r.min_ms), digits(r.max_ms));
                    let floor =
                        r.floor_ms.map_or_else(String::new, |f| format!(", {:.2} times the floor", r.median_ms / f));
                    println!("{text}{floor} {}", r.note);
                }
                results.records.extend(records);
            }
            Err(why) => {
                println!("bench {name}: FAILED: {why}");
                results.failed.push((name, why.to_string()));
                if let Some(why) = dead(run, "bench", name) {
                    return Ok(Some(why));
                }
            }
        }
    }
    Ok(None)
}

/// Opens the requested device. No other is opened: it may hang, or be in use by others.
fn device(ordinal: usize) -> Result<NvidiaDriver, String> {
    let mut listed = NvidiaDriver::list().map_err(|why| why.to_string())?;
    let count = listed.len();
    if ordinal >= count {
        return Err(format!("--device: expected a number below {count}, got {ordinal}"));
    }
    listed.swap_remove(ordinal).open().map_err(|why| why.to_string())
}

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(why) => {
            eprintln!("{why}\n\n{USAGE}");
            return WRONG_USE.into();
        }
    };
    if options.help {
        print!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    if options.list {
        CHECKS.iter().for_each(|(name, _)| println!("check {name}"));
        BENCHES.iter().for_each(|(name, _)| println!("bench {name}"));
        return ExitCode::SUCCESS;
    }
    if options.floor {
        Floor::new(132, 1.98e9, 4.8e12).print();
        return ExitCode::SUCCESS;
    }
    let driver = match device(options.device) {
        // Under compute-sanitizer, buffers are separate allocations, so that writes between them are noticed.
        Ok(driver) => Arc::new(if options.small { driver.without_suballocation() } else { driver }),
        Err(why) => {
            eprintln!("{why}");
            return NO_GPU.into();
        }
    };
    let Options { rounds, small, graphs, trace, .. } = options;
    let run = Run { floor: Floor::of(&driver), driver, rounds, small, graphs, trace };
    let mut results = Results {
        folder: options.out.clone(),
        card: run.driver.properties().name.clone(),
        facts: facts(&run.driver),
        checks: vec![],
        records: vec![],
        failed: vec![],
        unfinished: None,
    };
    results.facts.push(("graphs", graphs.into()));
    results.facts.iter().for_each(|(name, value)| println!("{name}: {value}"));
    run.floor.print();
    let done = all(&run, &options, &mut results);
    if let Some(folder) = &results.folder {
        match done {
            Ok(()) => results.paths(folder).iter().for_each(|path| println!("wrote {}", path.display())),
            Err(why) => {
                eprintln!("{}: {why}", folder.display());
                return FAILED.into();
            }
        }
    }
    if results.unfinished.is_some() {
        DEAD.into()
    } else if results.checks.iter().all(|c| c.outcome.is_ok()) && results.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        FAILED.into()
    }
}
