//! What happens when the process gets no more memory: one login, or one statement, ends with SQLSTATE 53200.
//!
//! Rust's own answer to a failed allocation is an abort, which restarts the server. Nor may an error of the server find no
//! memory while pgrx turns it into a panic: that ends the same way. So each way in asks first whether there is memory to
//! spare, and so does whatever grows with the number of sessions, roles or events. What is called often keeps the memory
//! to spare instead: the kernel takes longer to answer than the rest of the call. Should an allocation fail all the same,
//! this process ends.

use crate::pg::backend::Local;
use crate::pg::ffi;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode, pg_sys};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::{c_int, c_void};

/// What a statement, or a login, must find: for all that it asks for in small pieces, and for one block of 1 MB besides,
/// the smallest that a large memory context of the server takes when memory is short.
const TO_SPARE: usize = 2 << 20;

/// What belongs to so many rows, such as a label, fits into that.
pub const ROWS_BETWEEN: usize = 256;

struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

// SAFETY: the system's memory. `or_end` returns no null; where it does not return, the process has ended.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller says.
        or_end(|| unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller says.
        or_end(|| unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as the caller says. Where it fails, the memory stays as it is.
        or_end(|| unsafe { System.realloc(memory, layout, size) }, size)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller says.
        unsafe { System.dealloc(memory, layout) }
    }
}

fn or_end(get: impl Fn() -> *mut u8, size: usize) -> *mut u8 {
    let mut memory = get();
    if memory.is_null() && give_back_reserve() {
        memory = get();
    }
    // In the postmaster nothing can be done: null, and Rust aborts.
    // SAFETY: a variable of this process.
    if memory.is_null() && unsafe { pg_sys::IsUnderPostmaster } {
        end(size);
    }
    memory
}

/// Memory that is kept until an allocation fails; null if there is none.
static RESERVE: Local<Cell<*mut c_void>> = Local::new(Cell::new(std::ptr::null_mut()));

/// As `require(0)`, but for as long as the process has what it once got the kernel is not asked again.
pub fn keep_reserve() {
    if RESERVE.get().is_null() {
        RESERVE.set(map(TO_SPARE).unwrap_or_else(|| out_of_memory(TO_SPARE)));
    }
}

/// Whether there was a reserve.
fn give_back_reserve() -> bool {
    let memory = RESERVE.replace(std::ptr::null_mut());
    // SAFETY: it was mapped with this size, and nothing is in it.
    !memory.is_null() && unsafe { libc::munmap(memory, TO_SPARE) == 0 }
}

/// Ends the process as the server does when it is out of memory, and allocates nothing for that.
#[cold]
fn end(size: usize) -> ! {
    // SAFETY: the server's own sequence for a message. FATAL exits: nothing passes through Rust.
    unsafe {
        ffi::errstart(PgLogLevel::FATAL as c_int, std::ptr::null());
        ffi::errcode(PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY as c_int);
        ffi::errmsg(c"out of memory".as_ptr());
        ffi::errdetail(c"Failed on request of size %zu.".as_ptr(), size);
        ffi::errfinish(
            c"memory.rs".as_ptr(),
            line!() as c_int,
            c"session_limit".as_ptr(),
        );
    }
    std::process::abort()
}

/// For the library `session_limit_servers`, where an allocation of so many bytes has failed.
pub extern "C" fn end_without(size: usize) -> ! {
    end(size)
}

/// Raises an error unless the process could get so many bytes now, with some to spare.
pub fn require(bytes: usize) {
    if !is_there(bytes) {
        out_of_memory(bytes.saturating_add(TO_SPARE));
    }
}

fn out_of_memory(size: usize) -> ! {
    let code = PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY;
    ErrorReport::new(code, "out of memory", "session_limit")
        .set_detail(format!("Failed on request of size {size}."))
        .report(PgLogLevel::ERROR);
    unreachable!("an error does not return")
}

/// Whether the process could get so many bytes now, with some to spare.
pub fn is_there(bytes: usize) -> bool {
    let bytes = bytes.saturating_add(TO_SPARE);
    // The kernel is asked first: it gives no page before it is touched. A process at its limit may have enough that it
    // has freed.
    if let Some(mapped) = map(bytes) {
        // SAFETY: what was taken is given back.
        return unsafe { libc::munmap(mapped, bytes) == 0 };
    }
    // SAFETY: what is taken is given back.
    unsafe {
        // Unseen, the compiler would leave both calls out.
        let kept = std::hint::black_box(libc::malloc(bytes));
        libc::free(kept);
        !kept.is_null()
    }
}

/// So many bytes of the kernel's, none of them touched.
fn map(bytes: usize) -> Option<*mut c_void> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, wherever the kernel wants it.
    let mapped = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, kind, -1, 0) };
    (mapped != libc::MAP_FAILED).then_some(mapped)
}

/// Adds to what grows with the number of sessions, roles or events. Raises an error if there is no memory for it.
pub fn extend<T>(all: &mut Vec<T>, more: impl IntoIterator<Item = T>) {
    for one in more {
        if all.len() == all.capacity() {
            require(all.capacity().saturating_mul(2 * size_of::<T>()));
        } else if all.len().is_multiple_of(ROWS_BETWEEN) {
            require(0);
        }
        all.push(one);
    }
}
