//! C++ kernels (`cpp/`) for operations that take most of the search's time, each in one pass over memory, and settings of libtorch
//! that tch does not offer. No other crate calls foreign code for numbers.
//!
//! On a CPU, for floats with channels innermost, the kernels are own loops; otherwise they are composed of libtorch's operations,
//! with the same numbers up to rounding.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char};

use tch::Tensor;

/// `torch::Tensor` of C++.
type Raw = std::ffi::c_void;

unsafe extern "C" {
    fn basin_affine_relu(x: *const Raw, a: *const Raw, b: *const Raw, out: *mut *mut Raw) -> *mut c_char;
    fn basin_unit_distance(
        x: *const Raw,
        target: *const Raw,
        head: *const Raw,
        weights: *const Raw,
        out: *mut *mut Raw,
    ) -> *mut c_char;
    fn basin_allow_tf32(allow: bool) -> *mut c_char;
    fn basin_compose(always: bool);
    fn basin_profile_begin() -> u64;
    fn basin_profile_end(handle: u64) -> *mut c_char;
    fn free(pointer: *mut std::ffi::c_void);
}

/// `relu(a x + b)` for `x` `[n, c, h, w]` with a and b `[1 or n, c, 1, 1]`; differentiable once.
///
/// # Panics
/// With libtorch's message if the shapes do not fit, as tch's own operations do.
pub fn affine_relu(x: &Tensor, a: &Tensor, b: &Tensor) -> Tensor {
    // SAFETY: the pointers are to living tensors, which are not changed.
    made(|out| unsafe { basin_affine_relu(raw(x), raw(a), raw(b), out) })
}

/// Sum over pixels of `weights * sum_c head_c (x_c / |x| - target_c)^2`, `[n]`: LPIPS' distance of one layer.
///
/// `x` `[n, c, h, w]`, `target` `[1 or n, c, h, w]` of unit length over c, `head` `[1, c, 1, 1]`, `weights` `[1 or n, 1, h, w]`;
/// differentiable once, in one pass with respect to `x`.
///
/// # Panics
/// As [`affine_relu`].
pub fn unit_distance(x: &Tensor, target: &Tensor, head: &Tensor, weights: &Tensor) -> Tensor {
    // SAFETY: as above.
    made(|out| unsafe { basin_unit_distance(raw(x), raw(target), raw(head), raw(weights), out) })
}

/// Whether matrix products and convolutions on a GPU may round their factors to TF32, in the whole process.
pub fn allow_tf32(allow: bool) {
    // SAFETY: sets two flags.
    check(unsafe { basin_allow_tf32(allow) });
}

/// Does `work` with libtorch's operations only, in the whole process: what a GPU runs, but on a CPU.
pub fn composed<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: sets a flag.
    unsafe { basin_compose(true) };
    let done = work();
    unsafe { basin_compose(false) };
    done
}

/// Time of one of libtorch's operations in [`profile`].
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// Such as `aten::addmm`.
    pub name: String,
    pub calls: u64,
    /// Without the operations that it called.
    pub seconds: f64,
}

/// Does `work`, and returns the operations that libtorch ran meanwhile in all threads of the process, the longest first.
pub fn profile(work: impl FnOnce()) -> Vec<Operation> {
    // SAFETY: the handle is given back once; the text ends with 0 and is ours to free.
    let handle = unsafe { basin_profile_begin() };
    work();
    let text = unsafe { basin_profile_end(handle) };
    let lines = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    unsafe { free(text.cast()) };
    let operation = |line: &str| {
        let mut fields = line.split('\t');
        let (name, calls, seconds) = (fields.next()?, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(Operation { name: name.into(), calls, seconds })
    };
    let mut operations: Vec<Operation> = lines.lines().filter_map(operation).collect();
    operations.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    operations
}

fn raw(tensor: &Tensor) -> *const Raw {
    tensor.as_ptr().cast()
}

fn made(call: impl FnOnce(*mut *mut Raw) -> *mut c_char) -> Tensor {
    let mut out = std::ptr::null_mut();
    check(call(&mut out));
    // SAFETY: without an error `out` is a tensor on the heap, which is ours from here on.
    unsafe { Tensor::from_ptr(out.cast()) }
}

fn check(error: *mut c_char) {
    if !error.is_null() {
        // SAFETY: a text that ends with 0, allocated for us.
        let text = unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned();
        unsafe { free(error.cast()) };
        panic!("{text}");
    }
}
