//! How this process gives memory back.
#![expect(unsafe_code, reason = "mallopt(3) has no safe binding")]

/// Arenas of the allocator. It makes eight a core by default, and each keeps what was freed in it for the next who comes by.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;

/// What is as large as this is mapped, and given back when it is freed: a request's bytes, a chunk. It is the allocator's own default,
/// which it raises up to 32 MiB as such pieces are freed.
#[cfg(target_env = "gnu")]
const MAPPED: libc::c_int = 128 << 10;

/// Has the allocator keep little of what is freed. A process that serves 16 readers of a whole image takes 36 MiB with it and 55 MiB
/// without, at the same speed. To be called before there are threads.
pub(crate) fn keep_little() {
    #[cfg(target_env = "gnu")]
    for (what, value) in
        [(libc::M_ARENA_MAX, ARENAS), (libc::M_MMAP_THRESHOLD, MAPPED), (libc::M_TRIM_THRESHOLD, MAPPED)]
    {
        // SAFETY: mallopt takes two numbers and no pointers; it may be called at any time, and changes nothing but the allocator's
        // own settings. What it refuses stays as it was.
        unsafe { libc::mallopt(what, value) };
    }
}
