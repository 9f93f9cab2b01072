//! The C functions of `kernels/host/`, which run kernels on the CPU.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};

/// `struct kernels_host_launch` of `kernels/host/host.h`.
#[repr(C)]
pub(super) struct RawLaunch {
    pub(super) kernel: *const c_char,
    pub(super) grid_x: u32,
    pub(super) grid_y: u32,
    pub(super) block: u32,
    pub(super) shared: u32,
    pub(super) arguments: *const *const c_void,
    pub(super) argument_bytes: *const u8,
    pub(super) argument_count: u32,
    pub(super) order: u32,
    pub(super) seed: u64,
    pub(super) threads: u32,
}

// SAFETY: these are the declarations of kernels/host/host.h. What the functions that take names require is stated
// at their only calls; numbers may have any value. The others change nothing but what the address sanitizer
// reports, if it is built in.
unsafe extern "C" {
    pub(super) fn kernels_host_run(launch: *const RawLaunch, message: *mut c_char, message_bytes: usize) -> c_int;
    safe fn kernels_host_name(number: u32) -> *const c_char;
    fn kernels_host_parameter(kernel: *const c_char, number: u32) -> u8;
    pub(super) safe fn kernels_host_forbid(start: *const c_void, bytes: usize);
    pub(super) safe fn kernels_host_allow(start: *const c_void, bytes: usize);
}

/// Returns the names of all kernels, sorted.
pub fn kernels() -> Vec<&'static str> {
    let mut names: Vec<&'static str> = (0..)
        .map_while(|number| {
            let name = kernels_host_name(number);
            // SAFETY: a name that is not null is a string literal of the C++ sources.
            (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) }.to_str().unwrap_or(""))
        })
        .collect();
    names.sort_unstable();
    names
}

/// Returns the bytes of each parameter of a kernel: 8 for a pointer, 4 for a number.
pub fn parameters(kernel: &str) -> Vec<u8> {
    let name = CString::new(kernel).unwrap_or_default();
    // SAFETY: the name is NUL-terminated and outlives the call.
    let bytes = (0..).map(|number| unsafe { kernels_host_parameter(name.as_ptr(), number) });
    bytes.take_while(|bytes| *bytes != 0).collect()
}
