//! A safe layer over ICICLE's libraries: a device, memory on it, and the operations of [`Algebra`].
//!
//! A C++ exception that leaves one of ICICLE's functions ends the process, so calls that are known to throw are
//! avoided: an unregistered type of device, or a transform that exceeds its domain or is not a power of two in size.
//! Every call is synchronous and comes from the one thread on which the device was selected, through one stream.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{CString, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::rc::Rc;

use ark_ff::{BigInteger256, FftField, One, PrimeField};
use zeroize::Zeroizing;

use super::super::{BackendError, Bound, DeviceKind};
use super::algebra::{Algebra, ELEMENT, Group, Scalars};
use super::sys::{
    self, Device, FORWARD, Functions, INVERSE, MsmConfig, NttConfig, NttInitDomainConfig, Release, TYPE_BYTES,
    VecOpsConfig,
};
use crate::model::{Fr, MAX_DOMAIN};

/// Types of devices in order of preference, for when none is requested. The CPU is not among them: the program's own
/// backend is many times faster there.
const PREFERRED: [&str; 3] = ["CUDA", "METAL", "VULKAN"];

/// Memory that a sum takes per point, bytes: ICICLE sorts seven words for each window of a scalar, of which there are
/// up to 22, and processes two chunks at a time.
pub(super) const BYTES_PER_POINT: u64 = 2 * (32 + 7 * 4 * 22);
/// Upper bound on points summed at once: a device takes well below a second for this many, so that a stop request is
/// noticed.
pub(super) const MAX_POINTS: u64 = 1 << 22;
/// Lower bound on points summed at once.
const MIN_POINTS: u64 = 1 << 12;

/// What a library reports about a device.
pub(super) struct DeviceProperties {
    /// Type, such as `CUDA`.
    pub kind: String,
    /// Number of devices of that type.
    pub count: u32,
    /// Total and currently free memory, bytes; 0 if the device does not report it.
    pub memory: (u64, u64),
    /// Range of releases to which the libraries belong.
    pub release: Release,
}

/// A device driven by ICICLE.
pub(super) struct Icicle {
    f: Functions,
    label: String,
    stream: *mut c_void,
    /// Size of the largest transform in the current domain; 0 if there is no domain.
    domain: Cell<usize>,
    /// Keeps the type on one thread, because ICICLE selects devices per thread.
    on_one_thread: PhantomData<*const ()>,
}

/// Converts a call's code to a result.
fn check(op: &'static str, code: c_int) -> Result<(), BackendError> {
    if code == 0 { Ok(()) } else { Err(BackendError::Device { op, code: i64::from(code) }) }
}

/// Like [`check`], with the error as a sentence, for calls made before there is a device.
fn check_early(op: &'static str, code: c_int) -> Result<(), String> {
    check(op, code).map_err(|e| format!("{e} ({})", sys::code_name(i64::from(code))))
}

impl Device {
    /// A device by type and number; `None` if the type's name is too long.
    fn new(kind: &str, id: u32) -> Option<Self> {
        let mut device = Self { kind: [0; TYPE_BYTES], id: c_int::try_from(id).ok()? };
        if kind.len() >= TYPE_BYTES {
            return None;
        }
        for (to, from) in device.kind.iter_mut().zip(kind.bytes()) {
            *to = c_char::from_ne_bytes([from]);
        }
        Some(device)
    }
}

impl Icicle {
    /// Opens the libraries in one folder and the backends in another, and selects a device: of type `kind`, or of the
    /// first preferred type with any devices.
    ///
    /// # Errors
    /// One sentence.
    pub(super) fn open(
        libraries: &Path,
        backends: &Path,
        kind: Option<&str>,
        ordinal: u32,
    ) -> Result<(Rc<Self>, DeviceProperties), String> {
        let (f, release) = sys::open(libraries)?;
        if backends.is_dir() {
            let path = CString::new(backends.as_os_str().as_bytes())
                .map_err(|_| format!("{} is not a valid path", backends.display()))?;
            // Twice: a backend that needs another one, and is found before it, fails to load the first time.
            for _ in 0..2 {
                // SAFETY: the path ends in a zero. The libraries found there run their initialisers, which is their
                // purpose.
                check_early("icicle_load_backend", unsafe { (f.icicle_load_backend)(path.as_ptr(), true) })?;
            }
        }
        let registered = registered(&f)?;
        let lacks = |what: &str| {
            let types = registered.join(", ");
            let problem = if backends.is_dir() { "has no suitable backend" } else { "does not exist" };
            format!("expected {what}, got only {types}: {} {problem}", backends.display())
        };
        let kinds: Vec<&str> = match kind {
            Some(kind) => vec![kind],
            None => PREFERRED.to_vec(),
        };
        let kinds: Vec<&str> = kinds.into_iter().filter(|kind| registered.iter().any(|r| r == kind)).collect();
        let mut why = lacks(&kind.map_or_else(
            || format!("a device of type {}", PREFERRED.join(", ")),
            |kind| format!("a device of type {kind}"),
        ));
        for kind in kinds {
            match select_device(&f, kind, ordinal) {
                Ok(count) => {
                    let memory = memory(&f).unwrap_or_default();
                    let stream = stream(&f)?;
                    let label = DeviceKind::Icicle.label(ordinal);
                    let (domain, on_one_thread) = (Cell::new(0), PhantomData);
                    let found = DeviceProperties { kind: kind.to_owned(), count, memory, release };
                    return Ok((Rc::new(Self { f, label, stream, domain, on_one_thread }), found));
                }
                Err(e) => why = e,
            }
        }
        Err(why)
    }

    /// Free memory, if the device reports it.
    fn free(&self) -> Option<u64> {
        memory(&self.f).map(|(_, free)| free)
    }

    /// The error of a device that returns what no correct one would.
    fn invalid_result(&self, why: String) -> BackendError {
        BackendError::Unavailable { device: self.label.clone(), why }
    }

    fn buffer(self: &Rc<Self>, bytes: usize, secret: bool) -> Result<Buffer, BackendError> {
        let mut at = ptr::null_mut();
        // SAFETY: `at` is valid for writing the address.
        let code = unsafe { (self.f.icicle_malloc)(&raw mut at, bytes.max(1)) };
        if code != 0 || at.is_null() {
            let (needed, free) = (bytes as u64, self.free().unwrap_or_default());
            return Err(BackendError::OutOfMemory { needed, free });
        }
        Ok(Buffer { icicle: self.clone(), at, bytes, secret })
    }

    /// Allocates a buffer and fills it with these bytes.
    fn upload_bytes(self: &Rc<Self>, bytes: &[u8], secret: bool) -> Result<Buffer, BackendError> {
        let buffer = self.buffer(bytes.len(), secret)?;
        // SAFETY: both places have this many bytes, one on the device and one in host memory.
        let code = unsafe { (self.f.icicle_copy_to_device)(buffer.at, bytes.as_ptr().cast(), bytes.len()) };
        check("icicle_copy_to_device", code)?;
        Ok(buffer)
    }

    /// Copies points, given as bytes, to the device.
    pub(super) fn bases_of<G: Group>(self: &Rc<Self>, bytes: &[u8]) -> Result<Bases<G>, BackendError> {
        Ok(Bases { buffer: self.upload_bytes(bytes, false)?, len: bytes.len() / G::BYTES, of: PhantomData })
    }

    fn transform(&self, vector: &mut Vector, direction: c_int, shift: Fr) -> Result<(), BackendError> {
        let size = vector.len;
        if size > self.domain.get() || !size.is_power_of_two() {
            let bound = match size.is_power_of_two() {
                true => Bound::AtMost(self.domain.get() as u64),
                false => Bound::PowerOfTwo { max_log2: MAX_DOMAIN.ilog2() },
            };
            return Err(BackendError::OutOfRange { what: "values of a transform", bound, got: size as u64 });
        }
        let config = NttConfig {
            stream: self.stream,
            coset_gen: shift.into_bigint().0,
            batch_size: 1,
            columns_batch: false,
            ordering: 0,
            are_inputs_on_device: true,
            are_outputs_on_device: true,
            is_async: false,
            ext: ptr::null_mut(),
        };
        let at = vector.buffer.at;
        let size = c_int::try_from(size).unwrap_or(c_int::MAX);
        // SAFETY: the vector has `size` elements, on the device; transforms may be in place; the domain is large
        // enough.
        check("bn254_ntt", unsafe { (self.f.bn254_ntt)(at, size, direction, &raw const config, at) })
    }

    /// Computes a sum of points; `montgomery` says whether they are in Montgomery form.
    pub(super) fn sum_of<G: Group>(
        &self,
        bases: &Bases<G>,
        first: usize,
        count: usize,
        scalars: Scalars<'_, Vector>,
        montgomery: bool,
    ) -> Result<G, BackendError> {
        let (scalars, on_device, available) = match scalars {
            Scalars::Host(values) => (values.as_ptr().cast::<c_void>(), false, values.len()),
            Scalars::Device(vector, at) => {
                let left = vector.len.saturating_sub(at).min(count);
                (vector.buffer.at.cast_const().wrapping_byte_add(at * ELEMENT), true, left)
            }
        };
        check_len("scalars of a sum", count, available)?;
        check_len("points of a sum", count, bases.len.saturating_sub(first).min(count))?;
        let (bound, got) = (Bound::AtMost(c_int::MAX as u64), count as u64);
        let size = c_int::try_from(count);
        let size = size.map_err(|_| BackendError::OutOfRange { what: "points of a sum", bound, got })?;
        let config = MsmConfig {
            stream: self.stream,
            precompute_factor: 1,
            c: 0,
            bitsize: 0,
            batch_size: 1,
            are_points_shared_in_batch: true,
            are_scalars_on_device: on_device,
            are_scalars_montgomery_form: false,
            are_points_on_device: true,
            are_points_montgomery_form: montgomery,
            are_results_on_device: false,
            is_async: false,
            ext: ptr::null_mut(),
        };
        let points = bases.buffer.at.cast_const().wrapping_byte_add(first * G::BYTES);
        let (op, function) = match G::EXTENSION {
            false => ("bn254_msm", self.f.bn254_msm),
            true => ("bn254_g2_msm", self.f.bn254_g2_msm),
        };
        let mut sum = Zeroizing::new([0u8; 6 * ELEMENT]);
        // SAFETY: `count` scalars and points are at the given places, and the result, three coordinates, fits.
        let code = unsafe { function(scalars, points, size, &raw const config, sum.as_mut_ptr().cast()) };
        check(op, code)?;
        G::read_homogeneous(&sum[..])
            .ok_or_else(|| self.invalid_result(format!("{op}: expected a point on the curve, got none")))
    }

    fn vector_config(&self) -> VecOpsConfig {
        VecOpsConfig {
            stream: self.stream,
            is_a_on_device: true,
            is_b_on_device: true,
            is_result_on_device: true,
            is_async: false,
            batch_size: 1,
            columns_batch: false,
            ext: ptr::null_mut(),
        }
    }
}

/// Returns the registered types of devices.
fn registered(f: &Functions) -> Result<Vec<String>, String> {
    let mut names = [0u8; 1024];
    // SAFETY: the buffer has at least the given size; one byte always remains zero.
    let code = unsafe { (f.icicle_get_registered_devices)(names.as_mut_ptr().cast(), names.len() - 1) };
    check_early("icicle_get_registered_devices", code)?;
    let end = names.iter().position(|b| *b == 0).unwrap_or(0);
    let names = String::from_utf8_lossy(&names[..end]).into_owned();
    Ok(names.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect())
}

/// Selects a device of a registered type on this thread; returns the number of such devices.
fn select_device(f: &Functions, kind: &str, ordinal: u32) -> Result<u32, String> {
    let device = Device::new(kind, ordinal)
        .ok_or_else(|| format!("expected a device type of less than {TYPE_BYTES} bytes, got {}", kind.len()))?;
    // SAFETY: the device is valid, with a zero at the end of its type, and `count` is valid for writing.
    let (available, taken) =
        unsafe { ((f.icicle_is_device_available)(&raw const device), (f.icicle_set_device)(&raw const device)) };
    check_early("icicle_is_device_available", available)?;
    check_early("icicle_set_device", taken).map_err(|e| format!("{kind} {ordinal}: {e}"))?;
    let mut count: c_int = 0;
    // SAFETY: a device was selected on this thread, and `count` is valid for writing.
    check_early("icicle_get_device_count", unsafe { (f.icicle_get_device_count)(&raw mut count) })?;
    u32::try_from(count)
        .ok()
        .filter(|count| *count > ordinal)
        .ok_or_else(|| format!("expected device {ordinal} of type {kind}, got {count} of them"))
}

/// Returns the total and the currently free memory.
fn memory(f: &Functions) -> Option<(u64, u64)> {
    let (mut total, mut free) = (0usize, 0usize);
    // SAFETY: a device was selected on this thread, and both places are valid for writing.
    let code = unsafe { (f.icicle_get_available_memory)(&raw mut total, &raw mut free) };
    (code == 0).then_some((total as u64, free as u64))
}

fn stream(f: &Functions) -> Result<*mut c_void, String> {
    let mut stream = ptr::null_mut();
    // SAFETY: a device was selected on this thread, and `stream` is valid for writing. It becomes null on the CPU.
    check_early("icicle_create_stream", unsafe { (f.icicle_create_stream)(&raw mut stream) })?;
    // SAFETY: the stream was just created.
    check_early("icicle_stream_synchronize", unsafe { (f.icicle_stream_synchronize)(stream) })?;
    Ok(stream)
}

/// Memory on the device.
struct Buffer {
    icicle: Rc<Icicle>,
    at: *mut c_void,
    bytes: usize,
    /// Whether to overwrite the memory when it is freed.
    secret: bool,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let f = &self.icicle.f;
        // SAFETY: this buffer owns the memory, and no work is in progress, because every call is synchronous. If either
        // call fails, the memory is freed with the process.
        unsafe {
            if self.secret {
                let _ = (f.icicle_memset)(self.at, 0, self.bytes);
            }
            let _ = (f.icicle_free)(self.at);
        }
    }
}

/// Elements on the device.
pub(super) struct Vector {
    buffer: Buffer,
    len: usize,
}

/// Points on the device.
pub(super) struct Bases<G: Group> {
    buffer: Buffer,
    len: usize,
    of: PhantomData<G>,
}

const _: () = assert!(size_of::<BigInteger256>() == ELEMENT && cfg!(target_endian = "little"));

/// The bytes of values in memory.
pub(super) fn bytes_of(values: &[BigInteger256]) -> &[u8] {
    // SAFETY: a value consists of four words and, by the assertion above, of nothing else; any bytes are valid for it.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

fn check_len(what: &'static str, expected: usize, got: usize) -> Result<(), BackendError> {
    let (expected, got) = (expected as u64, got as u64);
    if expected == got { Ok(()) } else { Err(BackendError::Shape { what, expected, got }) }
}

impl Algebra for Rc<Icicle> {
    type Vector = Vector;
    type Bases<G: Group> = Bases<G>;

    fn max_points(&self) -> usize {
        let fit = self.free().map_or(MAX_POINTS, |free| free / 2 / BYTES_PER_POINT);
        fit.clamp(MIN_POINTS, MAX_POINTS) as usize
    }

    fn bases<G: Group>(&self, points: &[G::Affine]) -> Result<Bases<G>, BackendError> {
        // Not in Montgomery form from here on: on the CPU, ICICLE accepts points in Montgomery form but computes a
        // wrong sum.
        let mut plain = Vec::with_capacity(points.len() * G::BYTES);
        points.iter().for_each(|point| G::write(point, &mut plain));
        self.bases_of(&plain)
    }

    fn sum<G: Group>(
        &self,
        bases: &Bases<G>,
        first: usize,
        count: usize,
        scalars: Scalars<'_, Vector>,
    ) -> Result<G, BackendError> {
        self.sum_of(bases, first, count, scalars, false)
    }

    fn upload(&self, values: &[BigInteger256]) -> Result<Vector, BackendError> {
        Ok(Vector { buffer: self.upload_bytes(bytes_of(values), true)?, len: values.len() })
    }

    fn download(&self, vector: &Vector) -> Result<Zeroizing<Vec<BigInteger256>>, BackendError> {
        let mut values = Zeroizing::new(vec![BigInteger256::zero(); vector.len]);
        // SAFETY: both places have this many elements, and any bytes are valid for them.
        let code =
            unsafe { (self.f.icicle_copy_to_host)(values.as_mut_ptr().cast(), vector.buffer.at, vector.len * ELEMENT) };
        check("icicle_copy_to_host", code)?;
        if values.iter().any(|value| *value >= Fr::MODULUS) {
            return Err(self.invalid_result("a vector: expected elements below r, got a larger one".into()));
        }
        Ok(values)
    }

    fn prepare(&self, size: usize) -> Result<(), BackendError> {
        // With the coset's generator among the roots, devices need not compute its powers for each transform.
        let wanted = (2 * size).min(MAX_DOMAIN as usize).max(4);
        if wanted <= self.domain.get() {
            return Ok(());
        }
        // Initialising a domain over an existing one silently does nothing.
        if self.domain.replace(0) > 0 {
            // SAFETY: no transform is in progress.
            check("bn254_ntt_release_domain", unsafe { (self.f.bn254_ntt_release_domain)() })?;
        }
        let (bound, got) = (Bound::AtMost(MAX_DOMAIN.into()), size as u64);
        let root = Fr::get_root_of_unity(wanted as u64);
        let root = root.ok_or(BackendError::OutOfRange { what: "values of a transform", bound, got })?;
        let root = root.into_bigint().0;
        let config = NttInitDomainConfig { stream: self.stream, is_async: false, ext: ptr::null_mut() };
        // SAFETY: the root and the configuration are valid, and only read during the call.
        let code = unsafe { (self.f.bn254_ntt_init_domain)(&raw const root, &raw const config) };
        check("bn254_ntt_init_domain", code)?;
        self.domain.set(wanted);
        Ok(())
    }

    fn interpolate(&self, vector: &mut Vector) -> Result<(), BackendError> {
        self.transform(vector, INVERSE, Fr::one())
    }

    fn evaluate(&self, vector: &mut Vector, shift: Fr) -> Result<(), BackendError> {
        self.transform(vector, FORWARD, shift)
    }

    fn multiply(&self, a: &Vector, b: &Vector) -> Result<Vector, BackendError> {
        check_len("elements of a product", a.len, b.len)?;
        let product = Vector { buffer: self.buffer(a.buffer.bytes, true)?, len: a.len };
        let (a, b, len, to) = (a.buffer.at, b.buffer.at, a.len as u64, product.buffer.at);
        let config = self.vector_config();
        // SAFETY: all three vectors have this many elements, on the device.
        check("bn254_vector_mul", unsafe { (self.f.bn254_vector_mul)(a, b, len, &raw const config, to) })?;
        Ok(product)
    }

    fn subtract(&self, a: &mut Vector, b: &Vector) -> Result<(), BackendError> {
        check_len("elements of a difference", a.len, b.len)?;
        let (at, b, len) = (a.buffer.at, b.buffer.at, a.len as u64);
        let config = self.vector_config();
        // SAFETY: both vectors have this many elements, on the device; the operation is element-wise, so the result may
        // replace a.
        check("bn254_vector_sub", unsafe { (self.f.bn254_vector_sub)(at, b, len, &raw const config, at) })
    }
}
