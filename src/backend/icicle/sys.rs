//! ICICLE's C ABI, for releases 3.1 to 4.0: its data types, byte for byte, and its functions.
//!
//! Field elements are 32 bytes, little-endian, not in Montgomery form. A point is affine as (x, y), infinity as (0, 0),
//! and a sum is homogeneous as (X : Y : Z) with x = X/Z and y = Y/Z; a coordinate in G2 is c0, then c1.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::{align_of, offset_of, size_of};
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};

/// Size of the name of a device type, bytes, including the terminating zero.
pub(super) const TYPE_BYTES: usize = 64;

/// A device.
#[repr(C)]
pub(super) struct Device {
    pub kind: [c_char; TYPE_BYTES],
    pub id: c_int,
}

/// Configuration of a multi-scalar product.
#[repr(C)]
pub(super) struct MsmConfig {
    pub stream: *mut c_void,
    pub precompute_factor: c_int,
    pub c: c_int,
    pub bitsize: c_int,
    pub batch_size: c_int,
    pub are_points_shared_in_batch: bool,
    pub are_scalars_on_device: bool,
    pub are_scalars_montgomery_form: bool,
    pub are_points_on_device: bool,
    pub are_points_montgomery_form: bool,
    pub are_results_on_device: bool,
    pub is_async: bool,
    pub ext: *mut c_void,
}

/// Configuration of a transform.
#[repr(C)]
pub(super) struct NttConfig {
    pub stream: *mut c_void,
    /// Factor by which the points of the domain are multiplied; 1 for none.
    pub coset_gen: [u64; 4],
    pub batch_size: c_int,
    pub columns_batch: bool,
    /// 0: input and output in natural order.
    pub ordering: c_int,
    pub are_inputs_on_device: bool,
    pub are_outputs_on_device: bool,
    pub is_async: bool,
    pub ext: *mut c_void,
}

/// Configuration for initialising the domain of transforms.
#[repr(C)]
pub(super) struct NttInitDomainConfig {
    pub stream: *mut c_void,
    pub is_async: bool,
    pub ext: *mut c_void,
}

/// Configuration of vector products and differences. In release 3.0, it lacks `batch_size` and `columns_batch`.
#[repr(C)]
pub(super) struct VecOpsConfig {
    pub stream: *mut c_void,
    pub is_a_on_device: bool,
    pub is_b_on_device: bool,
    pub is_result_on_device: bool,
    pub is_async: bool,
    pub batch_size: c_int,
    pub columns_batch: bool,
    pub ext: *mut c_void,
}

/// Transform from coefficients to values.
pub(super) const FORWARD: c_int = 0;
/// Transform from values to coefficients.
pub(super) const INVERSE: c_int = 1;

#[cfg(target_pointer_width = "64")]
const _: () = {
    assert!(size_of::<bool>() == 1 && size_of::<c_int>() == 4);
    assert!(size_of::<Device>() == 68 && align_of::<Device>() == 4 && offset_of!(Device, id) == 64);

    assert!(size_of::<MsmConfig>() == 40 && offset_of!(MsmConfig, precompute_factor) == 8);
    assert!(offset_of!(MsmConfig, batch_size) == 20 && offset_of!(MsmConfig, are_points_shared_in_batch) == 24);
    assert!(offset_of!(MsmConfig, are_scalars_on_device) == 25 && offset_of!(MsmConfig, are_points_on_device) == 27);
    assert!(offset_of!(MsmConfig, are_points_montgomery_form) == 28 && offset_of!(MsmConfig, is_async) == 30);
    assert!(offset_of!(MsmConfig, ext) == 32);

    assert!(size_of::<NttConfig>() == 64 && offset_of!(NttConfig, coset_gen) == 8);
    assert!(offset_of!(NttConfig, batch_size) == 40 && offset_of!(NttConfig, columns_batch) == 44);
    assert!(offset_of!(NttConfig, ordering) == 48 && offset_of!(NttConfig, are_inputs_on_device) == 52);
    assert!(offset_of!(NttConfig, is_async) == 54 && offset_of!(NttConfig, ext) == 56);

    assert!(size_of::<NttInitDomainConfig>() == 24 && offset_of!(NttInitDomainConfig, is_async) == 8);
    assert!(offset_of!(NttInitDomainConfig, ext) == 16);

    assert!(size_of::<VecOpsConfig>() == 32 && offset_of!(VecOpsConfig, is_a_on_device) == 8);
    assert!(offset_of!(VecOpsConfig, is_async) == 11 && offset_of!(VecOpsConfig, batch_size) == 12);
    assert!(offset_of!(VecOpsConfig, columns_batch) == 16 && offset_of!(VecOpsConfig, ext) == 24);
};

/// Declares the functions by library, and how they are looked up.
macro_rules! functions {
    ($($library:ident { $($name:ident($($argument:ty),*);)* })*) => {
        /// ICICLE's functions, under their own names. They return 0 or a code of `icicle/errors.h`.
        pub(super) struct Functions {
            $($(pub $name: unsafe extern "C" fn($($argument),*) -> c_int,)*)*
        }

        /// The functions' names, for messages.
        pub(super) const NAMES: &[&str] = &[$($(stringify!($name),)*)*];

        impl Functions {
            fn find(libraries: &Libraries) -> Result<Self, String> {
                Ok(Self {
                    $($(
                        // SAFETY: releases 3.1 to 4.0 declare the function like this, and older ones are refused
                        // beforehand.
                        $name: unsafe { libraries.$library.function(concat!(stringify!($name), "\0"))? },
                    )*)*
                })
            }
        }
    };
}

functions! {
    device {
        icicle_load_backend(*const c_char, bool);
        icicle_get_registered_devices(*mut c_char, usize);
        icicle_is_device_available(*const Device);
        icicle_set_device(*const Device);
        icicle_get_device_count(*mut c_int);
        icicle_get_available_memory(*mut usize, *mut usize);
        icicle_malloc(*mut *mut c_void, usize);
        icicle_free(*mut c_void);
        icicle_memset(*mut c_void, c_int, usize);
        icicle_copy_to_device(*mut c_void, *const c_void, usize);
        icicle_copy_to_host(*mut c_void, *const c_void, usize);
        icicle_create_stream(*mut *mut c_void);
        icicle_stream_synchronize(*mut c_void);
    }
    field {
        bn254_ntt(*const c_void, c_int, c_int, *const NttConfig, *mut c_void);
        bn254_ntt_init_domain(*const [u64; 4], *const NttInitDomainConfig);
        bn254_ntt_release_domain();
        bn254_vector_mul(*const c_void, *const c_void, u64, *const VecOpsConfig, *mut c_void);
        bn254_vector_sub(*const c_void, *const c_void, u64, *const VecOpsConfig, *mut c_void);
    }
    curve {
        bn254_msm(*const c_void, *const c_void, c_int, *const MsmConfig, *mut c_void);
        bn254_g2_msm(*const c_void, *const c_void, c_int, *const MsmConfig, *mut c_void);
    }
}

/// The releases to which a library may belong, as far as its functions tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Release {
    /// 3.1 to 3.9.
    Three,
    /// 4.0 or later.
    Four,
}

impl Release {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Three => "3.1 to 3.9",
            Self::Four => "4.0 or later",
        }
    }
}

/// One of ICICLE's libraries.
struct Shared {
    path: PathBuf,
    library: Library,
}

impl Shared {
    fn open(dir: &Path, name: &str) -> Result<Self, String> {
        let path = dir.join(format!("lib{name}{}", std::env::consts::DLL_SUFFIX));
        if !path.exists() {
            return Err(format!("expected ICICLE's library {}, which does not exist", path.display()));
        }
        // Global, because ICICLE's backends, which it loads itself, look up these functions. initialisers run, as in
        // every program that uses ICICLE. This process does nothing else, so they can break only this process.
        let library = unsafe { Library::open(Some(&path), RTLD_LAZY | RTLD_GLOBAL) };
        let library = library.map_err(|e| format!("{} could not be opened: {e}", path.display()))?;
        Ok(Self { path, library })
    }

    /// Looks up a function by its name, which ends in a zero.
    ///
    /// # Safety
    /// The library must declare it as an `F`, a pointer to a function.
    unsafe fn function<F: Copy>(&self, name: &str) -> Result<F, String> {
        // SAFETY: the caller guarantees the type.
        let found = unsafe { self.library.get::<F>(name.as_bytes()) };
        found.map(|function| *function).map_err(|_| {
            format!(
                "{} lacks the function {}, which every release from 3.1 to 4.0 has",
                self.path.display(),
                name.trim_end_matches('\0')
            )
        })
    }

    fn has(&self, name: &CStr) -> bool {
        // SAFETY: the address is not used.
        unsafe { self.library.get::<*mut c_void>(name.to_bytes_with_nul()) }.is_ok()
    }
}

struct Libraries {
    device: Shared,
    field: Shared,
    curve: Shared,
}

impl Libraries {
    /// Determines the release to which field and curve belong.
    fn release(&self) -> Result<Release, String> {
        // Vector sums were added together with the current vector configuration, in 3.1.
        if !self.field.has(c"bn254_vector_sum") {
            return Err(format!(
                "{} is of a release before 3.1: expected 3.1 to 4.0, whose vector operations have another configuration",
                self.field.path.display()
            ));
        }
        let of = |four| if four { Release::Four } else { Release::Three };
        let field = of(self.field.has(c"bn254_from_bytes_le"));
        let curve = of(self.curve.has(c"bn254_projective_eq"));
        if field != curve {
            return Err(format!(
                "expected libraries of one release, got {} of {} and {} of {}",
                self.field.path.display(),
                field.as_str(),
                self.curve.path.display(),
                curve.as_str()
            ));
        }
        Ok(field)
    }
}

/// Opens ICICLE's libraries in a folder, for the life of the process.
pub(super) fn open(dir: &Path) -> Result<(Functions, Release), String> {
    // Each library uses the ones before it.
    let device = Shared::open(dir, "icicle_device")?;
    let field = Shared::open(dir, "icicle_field_bn254")?;
    let curve = Shared::open(dir, "icicle_curve_bn254")?;
    let libraries = Libraries { device, field, curve };
    let release = libraries.release()?;
    let functions = Functions::find(&libraries)?;
    // Closing them would remove the functions, and run their cleanup while a device may be active.
    std::mem::forget(libraries);
    Ok((functions, release))
}

/// Returns ICICLE's name for an error code.
pub(super) fn code_name(code: i64) -> &'static str {
    const CODES: [&str; 15] = [
        "SUCCESS",
        "INVALID_DEVICE",
        "OUT_OF_MEMORY",
        "INVALID_POINTER",
        "ALLOCATION_FAILED",
        "DEALLOCATION_FAILED",
        "COPY_FAILED",
        "SYNCHRONIZATION_FAILED",
        "STREAM_CREATION_FAILED",
        "STREAM_DESTRUCTION_FAILED",
        "API_NOT_IMPLEMENTED",
        "INVALID_ARGUMENT",
        "BACKEND_LOAD_FAILED",
        "LICENSE_CHECK_ERROR",
        "UNKNOWN_ERROR",
    ];
    usize::try_from(code).ok().and_then(|code| CODES.get(code)).copied().unwrap_or("unknown code")
}
