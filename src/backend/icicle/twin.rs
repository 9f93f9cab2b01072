//! A twin of ICICLE: a library of the same C functions over arkworks, with which tests exercise what `backend::icicle`
//! does with ICICLE.
//!
//! It is built as an example, `icicle_twin`, and stands for all three libraries. It reads configurations by the offsets
//! that ICICLE's have, not by the declarations in `sys`, and is strict: it refuses a pointer that is not where its flag
//! says, a stream that was not created, a point at infinity, and an element that is not canonical. Where ICICLE throws,
//! it aborts; what ICICLE silently ignores, it ignores too.
//!
//! `CPU` is always registered; each folder `backend/NAME` registers the type `NAME`, in capitals, with two devices that
//! have streams and little free memory. The file `backend/fault` is read at each call: `KIND FUNCTION ABOVE` makes the
//! function fail when it is given more than `ABOVE` elements (or bytes, or whatever it counts).
//!
//! | kind | what the function does |
//! |---|---|
//! | a number | returns it as its code |
//! | `abort` | aborts the process, after a line such as C++ prints |
//! | `hang` | does not return; the file `backend/hangs` shows that it has come so far |
//! | `wrong` | gives a wrong result |
//! | `garbage` | gives a result that is no point, or no element |
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use ark_bn254::{Fq, Fq2, Fr, G1Projective, G2Projective};
use ark_ec::{AffineRepr, CurveGroup, VariableBaseMSM};
use ark_ff::{BigInteger256, FftField, Field, One, PrimeField, UniformRand};
use ark_poly::{EvaluationDomain, Radix2EvaluationDomain};
use ark_std::test_rng;

const SUCCESS: c_int = 0;
const INVALID_DEVICE: c_int = 1;
const INVALID_POINTER: c_int = 3;
const API_NOT_IMPLEMENTED: c_int = 10;
const INVALID_ARGUMENT: c_int = 11;

/// The stream, for devices that have streams.
const STREAM: usize = 0x5eed_0000;
/// Number of devices of each type except the CPU.
const DEVICES: c_int = 2;
/// Memory of such a device: so little is free that larger sums are computed in pieces.
const MEMORY: (usize, usize) = (8 << 30, 8 << 20);
/// Bytes of an element.
const ELEMENT: usize = 32;

struct State {
    backends: Option<PathBuf>,
    types: Vec<String>,
    /// Type of the selected device, and the thread that selected it.
    device: Option<(String, ThreadId)>,
    /// Allocations on the device: address and content.
    memory: BTreeMap<usize, Box<[u64]>>,
    /// Size of the largest transform.
    domain: u64,
}

static STATE: Mutex<State> =
    Mutex::new(State { backends: None, types: Vec::new(), device: None, memory: BTreeMap::new(), domain: 0 });

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What to do with a function's result.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Sound,
    Wrong,
    Garbage,
}

/// Ends the process as an uncaught C++ exception does.
fn throw(what: &str) -> ! {
    eprintln!("terminate called after throwing an instance of 'std::runtime_error'\n  what():  {what}");
    std::process::abort()
}

/// Determines how a function fails, given `elements` elements; `Err` is a code for it to return.
fn manner(function: &str, elements: usize) -> Result<Manner, c_int> {
    let Some(folder) = state().backends.clone() else { return Ok(Manner::Sound) };
    let text = std::fs::read_to_string(folder.join("fault")).unwrap_or_default();
    let words: Vec<&str> = text.split_whitespace().collect();
    let [kind, name, above] = words.as_slice() else { return Ok(Manner::Sound) };
    if *name != function || above.parse().is_ok_and(|above: usize| elements <= above) {
        return Ok(Manner::Sound);
    }
    match *kind {
        "abort" => throw("a fault that was asked for"),
        "hang" => {
            let _ = std::fs::write(folder.join("hangs"), function);
            loop {
                thread::park();
            }
        }
        "wrong" => Ok(Manner::Wrong),
        "garbage" => Ok(Manner::Garbage),
        code => Err(code.parse().unwrap_or(INVALID_ARGUMENT)),
    }
}

/// Runs work that may return early with a code, and returns its code.
fn code(work: impl FnOnce() -> Result<(), c_int>) -> c_int {
    work().err().unwrap_or(SUCCESS)
}

fn expect(holds: bool, otherwise: c_int) -> Result<(), c_int> {
    if holds { Ok(()) } else { Err(otherwise) }
}

/// Precedes every call that needs a device: checks that one was selected on this thread.
fn on_device(function: &str, elements: usize) -> Result<Manner, c_int> {
    let manner = manner(function, elements)?;
    match &state().device {
        None => throw("icicle Device is not set"),
        Some((_, thread)) => expect(*thread == thread::current().id(), INVALID_DEVICE)?,
    }
    Ok(manner)
}

fn has_streams() -> bool {
    state().device.as_ref().is_some_and(|(kind, _)| kind != "CPU")
}

/// Whether `bytes` bytes from an address on belong to the device.
fn is_there(at: *const c_void, bytes: usize) -> bool {
    let state = state();
    let found = state.memory.range(..=at.addr()).next_back();
    found.is_some_and(|(start, words)| at.addr() + bytes <= start + 8 * words.len())
}

/// A configuration, read by offset.
struct Config(*const u8);

impl Config {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        // SAFETY: each caller passes an offset within the configuration that it was given.
        unsafe { self.0.add(at).cast::<[u8; N]>().read() }
    }

    fn word(&self, at: usize) -> c_int {
        c_int::from_le_bytes(self.bytes(at))
    }

    fn pointer(&self, at: usize) -> usize {
        usize::from_le_bytes(self.bytes(at))
    }

    fn flag(&self, at: usize) -> Result<bool, c_int> {
        match self.bytes::<1>(at) {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(INVALID_ARGUMENT),
        }
    }

    /// Checks that a flag is right about whether `bytes` bytes from an address on belong to the device.
    fn place(&self, flag: usize, at: *const c_void, bytes: usize) -> Result<(), c_int> {
        expect(!at.is_null() && self.flag(flag)? == is_there(at, bytes), INVALID_POINTER)
    }

    /// Checks that the stream is the created one, that there is no extension, and that the call is synchronous.
    fn plain(&self, is_async: usize, ext: usize) -> Result<(), c_int> {
        let stream = if has_streams() { STREAM } else { 0 };
        let right = self.pointer(0) == stream && !self.flag(is_async)? && self.pointer(ext) == 0;
        expect(right, INVALID_ARGUMENT)
    }
}

/// # Safety
/// There are `n` elements at `at`.
unsafe fn read(at: *const c_void, n: usize) -> Result<Vec<Fr>, c_int> {
    // SAFETY: guaranteed by the caller; elements read like this need no alignment.
    let limbs = (0..n).map(|i| unsafe { at.cast::<[u64; 4]>().add(i).read_unaligned() });
    limbs.map(|limbs| Fr::from_bigint(BigInteger256::new(limbs)).ok_or(INVALID_ARGUMENT)).collect()
}

/// # Safety
/// There is space for this many elements at `at`.
unsafe fn write(values: &[Fr], manner: Manner, at: *mut c_void) {
    for (i, value) in values.iter().enumerate() {
        let limbs = match manner {
            Manner::Wrong if i == 0 => (*value + Fr::one()).into_bigint().0,
            Manner::Garbage => [u64::MAX; 4],
            _ => value.into_bigint().0,
        };
        // SAFETY: guaranteed by the caller.
        unsafe { at.cast::<[u64; 4]>().add(i).write_unaligned(limbs) };
    }
}

/// # Safety
/// `path` is a zero-terminated text.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icicle_load_backend(path: *const c_char, recursive: bool) -> c_int {
    code(|| {
        // SAFETY: guaranteed by the caller.
        let path = PathBuf::from(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()));
        for folder in std::fs::read_dir(&path).into_iter().flatten().flatten() {
            let kind = folder.file_name().to_string_lossy().to_ascii_uppercase();
            if recursive && folder.path().is_dir() && !state().types.contains(&kind) {
                state().types.push(kind);
            }
        }
        state().backends = Some(path);
        // On standard output, like ICICLE.
        println!("[INFO] backends were loaded");
        manner("icicle_load_backend", 1).map(|_| ())
    })
}

/// # Safety
/// There is space for `size` bytes at `names`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icicle_get_registered_devices(names: *mut c_char, size: usize) -> c_int {
    code(|| {
        let mut all = vec!["CPU".to_owned()];
        all.extend(state().types.iter().cloned());
        let text = all.join(",");
        expect(text.len() < size, INVALID_ARGUMENT)?;
        for (i, byte) in text.bytes().chain([0]).enumerate() {
            // SAFETY: guaranteed by the caller, and the text with its zero is not longer.
            unsafe { names.add(i).write(c_char::from_ne_bytes([byte])) };
        }
        Ok(())
    })
}

/// Reads the type and the number of a device.
///
/// # Safety
/// `at` points to a device.
unsafe fn device(at: *const c_void) -> (String, c_int) {
    // SAFETY: there are 64 bytes of zero-terminated text, then the number.
    let (kind, id) = unsafe { (CStr::from_ptr(at.cast()), at.byte_add(64).cast::<c_int>().read()) };
    (kind.to_string_lossy().into_owned(), id)
}

/// # Safety
/// `at` points to a device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icicle_is_device_available(at: *const c_void) -> c_int {
    // SAFETY: guaranteed by the caller.
    let (kind, _) = unsafe { device(at) };
    if kind == "CPU" || state().types.contains(&kind) { SUCCESS } else { INVALID_DEVICE }
}

/// # Safety
/// `at` points to a device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icicle_set_device(at: *const c_void) -> c_int {
    code(|| {
        manner("icicle_set_device", 1)?;
        // SAFETY: guaranteed by the caller.
        let (kind, id) = unsafe { device(at) };
        if kind != "CPU" && !state().types.contains(&kind) {
            throw("Device API not found");
        }
        expect((0..if kind == "CPU" { 1 } else { DEVICES }).contains(&id), INVALID_DEVICE)?;
        state().device = Some((kind, thread::current().id()));
        Ok(())
    })
}

/// # Safety
/// `count` is valid for writing a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icicle_get_device_count(count: *mut c_int) -> c_int {
    code(|| {
        on_device("icicle_get_device_count", 1)?;
        // SAFETY: guaranteed by the caller.
        unsafe { count.write(if has_streams() { DEVICES } else { 1 }) };
        Ok(())
    })
}

/// # Safety
/// Both are valid for writing numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icicle_get_available_memory(total: *mut usize, free: *mut usize) -> c_int {
    code(|| {
        on_device("icicle_get_available_memory", 1)?;
        expect(has_streams(), API_NOT_IMPLEMENTED)?;
        // SAFETY: guaranteed by the caller.
        unsafe {
            total.write(MEMORY.0);
            free.write(MEMORY.1);
        }
        Ok(())
    })
}

/// # Safety
/// `at` is valid for writing an address.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icicle_malloc(at: *mut *mut c_void, size: usize) -> c_int {
    code(|| {
        on_device("icicle_malloc", size)?;
        // Words, so that it is aligned; all ones, so that no caller finds zeros by luck.
        let mut words = vec![u64::MAX; size.div_ceil(8)].into_boxed_slice();
        let start = words.as_mut_ptr().cast::<c_void>();
        state().memory.insert(start.addr(), words);
        // SAFETY: guaranteed by the caller.
        unsafe { at.write(start) };
        Ok(())
    })
}

/// Frees memory.
#[unsafe(no_mangle)]
pub extern "C" fn icicle_free(at: *mut c_void) -> c_int {
    code(|| {
        on_device("icicle_free", 1)?;
        state().memory.remove(&at.addr()).map(|_| ()).ok_or(INVALID_POINTER)
    })
}

/// # Safety
/// There are `size` bytes at `at`, if it is on the device at all.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icicle_memset(at: *mut c_void, value: c_int, size: usize) -> c_int {
    code(|| {
        on_device("icicle_memset", size)?;
        expect(is_there(at, size), INVALID_POINTER)?;
        // SAFETY: the bytes are there.
        unsafe { at.cast::<u8>().write_bytes(value as u8, size) };
        Ok(())
    })
}

/// # Safety
/// There are `size` bytes at `from`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icicle_copy_to_device(to: *mut c_void, from: *const c_void, size: usize) -> c_int {
    code(|| {
        on_device("icicle_copy_to_device", size)?;
        expect(is_there(to, size) && !is_there(from, 1), INVALID_POINTER)?;
        // SAFETY: guaranteed by the caller, and there is space at `to`.
        unsafe { to.cast::<u8>().copy_from_nonoverlapping(from.cast(), size) };
        Ok(())
    })
}

/// # Safety
/// There is space for `size` bytes at `to`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icicle_copy_to_host(to: *mut c_void, from: *const c_void, size: usize) -> c_int {
    code(|| {
        on_device("icicle_copy_to_host", size)?;
        expect(is_there(from, size) && !is_there(to, 1), INVALID_POINTER)?;
        // SAFETY: guaranteed by the caller, and the bytes are there.
        unsafe { to.cast::<u8>().copy_from_nonoverlapping(from.cast(), size) };
        Ok(())
    })
}

/// # Safety
/// `stream` is valid for writing a stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icicle_create_stream(stream: *mut *mut c_void) -> c_int {
    code(|| {
        on_device("icicle_create_stream", 1)?;
        let made = if has_streams() { STREAM } else { 0 };
        // SAFETY: guaranteed by the caller.
        unsafe { stream.write(std::ptr::without_provenance_mut(made)) };
        Ok(())
    })
}

/// Waits for a stream.
#[unsafe(no_mangle)]
pub extern "C" fn icicle_stream_synchronize(_: *mut c_void) -> c_int {
    code(|| on_device("icicle_stream_synchronize", 1).map(|_| ()))
}

/// # Safety
/// As in ICICLE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn254_ntt_init_domain(root: *const c_void, config: *const u8) -> c_int {
    code(|| {
        on_device("bn254_ntt_init_domain", 1)?;
        Config(config).plain(8, 16)?;
        // SAFETY: guaranteed by the caller: there is one element.
        let root = unsafe { read(root, 1)? }[0];
        if state().domain > 0 {
            return Ok(());
        }
        let order = (1..=28).map(|log| 1u64 << log).find(|order| root.pow([*order]).is_one());
        let order = order.filter(|order| Fr::get_root_of_unity(*order) == Some(root)).ok_or(INVALID_ARGUMENT)?;
        state().domain = order;
        Ok(())
    })
}

/// Releases the domain.
#[unsafe(no_mangle)]
pub extern "C" fn bn254_ntt_release_domain() -> c_int {
    code(|| {
        on_device("bn254_ntt_release_domain", 1)?;
        state().domain = 0;
        Ok(())
    })
}

/// # Safety
/// As in ICICLE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn254_ntt(
    input: *const c_void,
    size: c_int,
    direction: c_int,
    config: *const u8,
    output: *mut c_void,
) -> c_int {
    code(|| {
        let manner = on_device("bn254_ntt", usize::try_from(size).unwrap_or(0))?;
        let config = Config(config);
        config.plain(54, 56)?;
        let n = usize::try_from(size).map_err(|_| INVALID_ARGUMENT)?;
        if !n.is_power_of_two() || n as u64 > state().domain {
            throw("Size is too large for domain");
        }
        config.place(52, input, n * ELEMENT)?;
        config.place(53, output, n * ELEMENT)?;
        expect(config.word(40) == 1 && !config.flag(44)? && config.word(48) == 0, INVALID_ARGUMENT)?;
        // SAFETY: the generator is an element of the configuration, and there are `n` elements.
        let (shift, values) = unsafe { (read(config.0.add(8).cast(), 1)?[0], read(input, n)?) };
        let domain = Radix2EvaluationDomain::<Fr>::new(n).ok_or(INVALID_ARGUMENT)?;
        let domain = domain.get_coset(shift).ok_or(INVALID_ARGUMENT)?;
        let values = match direction {
            0 => domain.fft(&values),
            1 => domain.ifft(&values),
            _ => return Err(INVALID_ARGUMENT),
        };
        // SAFETY: there is space for `n` elements.
        unsafe { write(&values, manner, output) };
        Ok(())
    })
}

/// # Safety
/// As in ICICLE.
unsafe fn vectors(
    function: &str,
    (a, b, n): (*const c_void, *const c_void, u64),
    config: *const u8,
    result: *mut c_void,
    op: fn(Fr, Fr) -> Fr,
) -> c_int {
    code(|| {
        let manner = on_device(function, n as usize)?;
        let config = Config(config);
        config.plain(11, 24)?;
        expect(config.word(12) == 1 && !config.flag(16)?, INVALID_ARGUMENT)?;
        let n = n as usize;
        config.place(8, a, n * ELEMENT)?;
        config.place(9, b, n * ELEMENT)?;
        config.place(10, result, n * ELEMENT)?;
        // SAFETY: there are `n` elements, and space for as many.
        unsafe {
            let (a, b) = (read(a, n)?, read(b, n)?);
            let values: Vec<Fr> = a.into_iter().zip(b).map(|(a, b)| op(a, b)).collect();
            write(&values, manner, result);
        }
        Ok(())
    })
}

/// # Safety
/// As in ICICLE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn254_vector_mul(
    a: *const c_void,
    b: *const c_void,
    n: u64,
    config: *const u8,
    result: *mut c_void,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    unsafe { vectors("bn254_vector_mul", (a, b, n), config, result, |a, b| a * b) }
}

/// # Safety
/// As in ICICLE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn254_vector_sub(
    a: *const c_void,
    b: *const c_void,
    n: u64,
    config: *const u8,
    result: *mut c_void,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    unsafe { vectors("bn254_vector_sub", (a, b, n), config, result, |a, b| a - b) }
}

/// A coordinate of a group's points.
trait Coordinate: Field {
    const FIELDS: usize;
    fn of(elements: &[Fq]) -> Self;
    fn elements(self) -> Vec<Fq>;
}

impl Coordinate for Fq {
    const FIELDS: usize = 1;

    fn of(elements: &[Fq]) -> Self {
        elements[0]
    }

    fn elements(self) -> Vec<Fq> {
        vec![self]
    }
}

impl Coordinate for Fq2 {
    const FIELDS: usize = 2;

    fn of(elements: &[Fq]) -> Self {
        Fq2::new(elements[0], elements[1])
    }

    fn elements(self) -> Vec<Fq> {
        vec![self.c0, self.c1]
    }
}

/// # Safety
/// As in ICICLE, for a group with points of these coordinates.
unsafe fn sum<G, C: Coordinate + UniformRand>(
    function: &str,
    (scalars, bases, n): (*const c_void, *const c_void, c_int),
    config: *const u8,
    result: *mut c_void,
    point: fn(C, C) -> G::MulBase,
) -> c_int
where
    G: CurveGroup<ScalarField = Fr, BaseField = C> + VariableBaseMSM,
    G::Affine: AffineRepr<BaseField = C>,
    G::MulBase: From<G::Affine>,
{
    code(|| {
        let n = usize::try_from(n).map_err(|_| INVALID_ARGUMENT)?;
        let manner = on_device(function, n)?;
        let config = Config(config);
        config.plain(30, 32)?;
        let [factor, c, bits, batch] = [8, 12, 16, 20].map(|at| config.word(at));
        expect(n > 0 && (factor, c, bits, batch) == (1, 0, 0, 1), INVALID_ARGUMENT)?;
        expect(!config.flag(26)? && !config.flag(29)?, INVALID_ARGUMENT)?;
        // Points flagged as in Montgomery form (28) are summed as if they were not.
        config.flag(28)?;
        let bytes = 2 * C::FIELDS * ELEMENT;
        config.place(25, scalars, n * ELEMENT)?;
        config.place(27, bases, n * bytes)?;
        // SAFETY: there are `n` scalars.
        let scalars: Vec<_> = unsafe { read(scalars, n)? }.into_iter().map(PrimeField::into_bigint).collect();
        let element = |i: usize| {
            // SAFETY: this is one of the elements of the coordinates.
            let limbs = unsafe { bases.cast::<[u64; 4]>().add(i).read_unaligned() };
            Fq::from_bigint(BigInteger256::new(limbs)).ok_or(INVALID_ARGUMENT)
        };
        let coordinate = |i: usize| {
            let elements = (i * C::FIELDS..(i + 1) * C::FIELDS).map(element);
            elements.collect::<Result<Vec<Fq>, c_int>>().map(|elements| C::of(&elements))
        };
        let points: Vec<G::MulBase> = (0..n)
            .map(|i| {
                let (x, y) = (coordinate(2 * i)?, coordinate(2 * i + 1)?);
                expect(!x.is_zero() || !y.is_zero(), INVALID_ARGUMENT)?;
                Ok(point(x, y))
            })
            .collect::<Result<_, c_int>>()?;
        let mut sum = G::msm_bigint(&points, &scalars);
        if manner == Manner::Wrong {
            sum += G::generator();
        }
        // Homogeneous, with an arbitrary third coordinate.
        let z = C::rand(&mut test_rng());
        let (x, y, z) = match sum.into_affine().xy() {
            Some((x, y)) => (x * z, y * z, z),
            None => (C::zero(), C::one(), C::zero()),
        };
        let y = if manner == Manner::Garbage { y + C::one() } else { y };
        for (i, element) in [x, y, z].into_iter().flat_map(C::elements).enumerate() {
            // SAFETY: there is space for three coordinates.
            unsafe { result.cast::<[u64; 4]>().add(i).write_unaligned(element.into_bigint().0) };
        }
        Ok(())
    })
}

/// # Safety
/// As in ICICLE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn254_msm(
    scalars: *const c_void,
    bases: *const c_void,
    n: c_int,
    config: *const u8,
    result: *mut c_void,
) -> c_int {
    let point = ark_bn254::G1Affine::new_unchecked;
    // SAFETY: guaranteed by the caller.
    unsafe { sum::<G1Projective, Fq>("bn254_msm", (scalars, bases, n), config, result, point) }
}

/// # Safety
/// As in ICICLE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn254_g2_msm(
    scalars: *const c_void,
    bases: *const c_void,
    n: c_int,
    config: *const u8,
    result: *mut c_void,
) -> c_int {
    let point = ark_bn254::G2Affine::new_unchecked;
    // SAFETY: guaranteed by the caller.
    unsafe { sum::<G2Projective, Fq2>("bn254_g2_msm", (scalars, bases, n), config, result, point) }
}

/// Its presence means that the field's library is of release 3.1 or later.
#[unsafe(no_mangle)]
pub extern "C" fn bn254_vector_sum() -> c_int {
    API_NOT_IMPLEMENTED
}

/// Its presence means that the field's library is of release 4.0 or later.
#[unsafe(no_mangle)]
pub extern "C" fn bn254_from_bytes_le() -> c_int {
    API_NOT_IMPLEMENTED
}

/// Its presence means that the curve's library is of release 4.0 or later.
#[unsafe(no_mangle)]
pub extern "C" fn bn254_projective_eq() -> c_int {
    API_NOT_IMPLEMENTED
}
