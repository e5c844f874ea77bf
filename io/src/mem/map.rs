//! Anonymous memory mappings, on huge pages where there are any.
//!
//! A table of a million flows touches a new page with nearly every packet; on 4 KiB pages each of those is a TLB miss
//! on top of the cache miss. So large mappings ask for 2 MiB pages first (`MAP_HUGETLB`: reserved by the operator,
//! never split), then for transparent ones (`MADV_HUGEPAGE`), and take plain ones last. What was got is reported.

use std::io;
use std::ptr::NonNull;

/// Bytes of a huge page. (`MAP_HUGETLB` without a size takes the default one, 2 MiB on x86-64 and on arm64 with 4 KiB
/// base pages.)
pub(crate) const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Which pages a mapping may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HugePages {
    /// Reserved huge pages, else transparent ones, else plain pages.
    #[default]
    Auto,
    /// Reserved huge pages, or an error.
    On,
    /// Plain pages.
    Off,
}

/// Which pages a mapping got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// Reserved 2 MiB pages.
    Huge,
    /// Plain pages that the kernel was asked to join into huge ones where it can.
    Transparent,
    /// Plain pages.
    Plain,
}

/// One private, zeroed, anonymous mapping; unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
    pages: Pages,
}

// SAFETY: a mapping is an address range of the process, the same for every thread; who may touch which part of it is
// the business of the types built on it.
unsafe impl Send for Mapping {}
// SAFETY: see `Send`; the methods only read the three fields.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps at least `bytes` zeroed bytes, aligned to a page (to a huge page, if it asks for one).
    ///
    /// # Errors
    ///
    /// What mmap(2) reports; with [`HugePages::On`] a text that names the sysctl to set.
    pub(crate) fn new(bytes: usize, huge: HugePages) -> io::Result<Mapping> {
        let rounded = bytes
            .max(1)
            .checked_next_multiple_of(HUGE_PAGE_BYTES)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "mapping larger than the address space"))?;
        match huge {
            HugePages::Off => Self::plain(bytes.max(1)),
            HugePages::On => Self::reserved(rounded).map_err(|error| {
                let needed = rounded / HUGE_PAGE_BYTES;
                io::Error::new(
                    error.kind(),
                    format!(
                        "{needed} free huge pages of 2 MiB are needed ({error}); set vm.nr_hugepages or hugePages: auto"
                    ),
                )
            }),
            // A mapping that would not fill one huge page leaves them to those that need them.
            HugePages::Auto if bytes < HUGE_PAGE_BYTES => Self::plain(bytes.max(1)),
            HugePages::Auto => Self::reserved(rounded).or_else(|_| Self::transparent(rounded)),
        }
    }

    /// First byte.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Usable bytes, at least what was asked for.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What it is made of.
    pub(crate) fn pages(&self) -> Pages {
        self.pages
    }

    fn plain(bytes: usize) -> io::Result<Mapping> {
        Ok(Mapping { start: map(bytes, 0)?, bytes, pages: Pages::Plain })
    }

    fn reserved(bytes: usize) -> io::Result<Mapping> {
        // Without MAP_NORESERVE: the pages are set aside now, so a later touch cannot end in SIGBUS.
        Ok(Mapping { start: map(bytes, libc::MAP_HUGETLB)?, bytes, pages: Pages::Huge })
    }

    fn transparent(bytes: usize) -> io::Result<Mapping> {
        // Mapped with a huge page to spare, then trimmed to an aligned range: a huge page must begin on its own boundary.
        let spare = map(bytes + HUGE_PAGE_BYTES, 0)?;
        let skip = spare.as_ptr().align_offset(HUGE_PAGE_BYTES).min(HUGE_PAGE_BYTES);
        // SAFETY: `skip` is at most the spare huge page, so start and end lie inside the mapping just made.
        let (start, end) = unsafe { (spare.add(skip), spare.add(skip + bytes)) };
        unmap(spare, skip);
        unmap(end, HUGE_PAGE_BYTES - skip);
        // SAFETY: the range is the mapping just trimmed; advice changes no contents.
        let advised = unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) } == 0;
        let pages = if advised && transparent_enabled() { Pages::Transparent } else { Pages::Plain };
        Ok(Mapping { start, bytes, pages })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        unmap(self.start, self.bytes);
    }
}

/// Whether the kernel joins pages at all, for the report only.
fn transparent_enabled() -> bool {
    std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").is_ok_and(|text| !text.contains("[never]"))
}

fn map(bytes: usize, flags: libc::c_int) -> io::Result<NonNull<u8>> {
    // SAFETY: a new anonymous mapping at an address of the kernel's choice overlaps nothing.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags,
            -1,
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mmap returned address zero"))
}

fn unmap(start: NonNull<u8>, bytes: usize) {
    if bytes > 0 {
        // SAFETY: called with ranges of mappings made here, which their owner gives up with this call.
        unsafe { libc::munmap(start.as_ptr().cast(), bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn automatic_mappings_are_zeroed_aligned_and_large_enough() {
        let mapping = Mapping::new(5 << 20, HugePages::Auto).unwrap();
        assert!(mapping.bytes() >= 5 << 20);
        assert_eq!(mapping.start().as_ptr().align_offset(HUGE_PAGE_BYTES), 0);
        for at in [0, 4096, (5 << 20) - 1] {
            // SAFETY: inside the mapping, and nobody else has it.
            unsafe {
                assert_eq!(*mapping.start().as_ptr().add(at), 0);
                *mapping.start().as_ptr().add(at) = 7;
            }
        }
    }

    #[test]
    fn small_mappings_leave_the_huge_pages_alone() {
        assert_eq!(Mapping::new(100, HugePages::Auto).unwrap().pages(), Pages::Plain);
        assert_eq!(Mapping::new(0, HugePages::Off).unwrap().bytes(), 1);
    }

    #[test]
    fn refusals_say_what_to_do() {
        assert!(Mapping::new(usize::MAX, HugePages::Off).is_err());
        if let Err(error) = Mapping::new(1 << 46, HugePages::On) {
            assert!(error.to_string().contains("vm.nr_hugepages"), "{error}");
        }
    }
}
