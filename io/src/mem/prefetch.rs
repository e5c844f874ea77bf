//! Hints to the memory system: bring this line in, it is needed in the next sweep.
//!
//! A prefetch never faults and changes nothing that a program can observe but time, so these are safe functions. On
//! processors without a prefetch that Rust can express they do nothing.

/// Starts to load the first cache line of `value` for reading, into every level of the cache.
#[inline(always)]
pub fn prefetch_read<T: ?Sized>(value: &T) {
    prefetch_line(std::ptr::from_ref(value).cast());
}

/// Starts to load the first cache line of `value` in the state that a write needs.
#[inline(always)]
pub fn prefetch_write<T: ?Sized>(value: &T) {
    prefetch_line_write(std::ptr::from_ref(value).cast());
}

/// As [`prefetch_write`] for the line at `address`, which need not be valid.
#[inline(always)]
pub(crate) fn prefetch_line_write(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: PREFETCHW (or PREFETCHT0 on processors without it, where it is a no-op) is a hint that never faults.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_ET0 }>(address.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: PRFM is a hint that never faults and touches no register.
    unsafe {
        core::arch::asm!("prfm pstl1keep, [{0}]", in(reg) address, options(nostack, readonly, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}

/// Starts to load the cache line at `address`, which need not be valid.
#[inline(always)]
pub(crate) fn prefetch_line(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: PREFETCHT0 is a hint that never faults, whatever the address.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: PRFM is a hint that never faults, whatever the address, and touches no register.
    unsafe {
        core::arch::asm!("prfm pldl1keep, [{0}]", in(reg) address, options(nostack, readonly, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}
