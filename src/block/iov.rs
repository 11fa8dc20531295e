//! Scatter-gather lists that keep alive what they point to.
//!
//! An [`Iov`] is a list of memory ranges: of guest memory, or of a [`Buffer`]. It is cheap to clone and to
//! split, and it never becomes a `&[u8]`: the guest, the kernel and a second request may change the bytes at
//! any time, so every access copies.

use crate::block::{Error, Kind, Result};
use smallvec::SmallVec;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::any::Any;
use std::ptr::{self, NonNull};
use std::rc::Rc;

/// Alignment of every [`Buffer`], in bytes: enough for direct I/O on any host device.
pub const BUFFER_ALIGN: usize = 4096;
/// Zeros are looked for in copies of this many bytes.
const ZERO_BLOCK: usize = 4096;

/// A list of memory ranges and a handle on their owner.
#[derive(Clone)]
pub struct Iov {
    parts: SmallVec<[libc::iovec; 2]>,
    len: usize,
    owner: Rc<dyn Any>,
}

impl Iov {
    /// A list over memory that `owner` keeps mapped.
    ///
    /// # Safety
    /// Each range must be readable and writable memory for as long as `owner` lives, and nothing may hold a
    /// Rust reference into it meanwhile.
    pub unsafe fn new(parts: impl IntoIterator<Item = (*mut u8, usize)>, owner: Rc<dyn Any>) -> Iov {
        let parts: SmallVec<[libc::iovec; 2]> = parts
            .into_iter()
            .filter(|&(_, len)| len > 0)
            .map(|(base, len)| libc::iovec { iov_base: base.cast(), iov_len: len })
            .collect();
        let len = parts.iter().map(|part| part.iov_len).sum();
        Iov { parts, len, owner }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// As many of the ranges as one system call takes. A longer list is done in part, and the caller goes on
    /// behind it.
    pub fn parts_for_one_call(&self) -> &[libc::iovec] {
        &self.parts[..self.parts.len().min(libc::UIO_MAXIOV as usize)]
    }

    /// The `len` bytes from `start` on; what lies beyond the end is left out.
    #[must_use]
    pub fn slice(&self, start: usize, len: usize) -> Iov {
        if start == 0 && len >= self.len {
            return self.clone();
        }
        let mut out = Iov { parts: SmallVec::new(), len: 0, owner: self.owner.clone() };
        self.each(start, len, |base, len| {
            out.parts.push(libc::iovec { iov_base: base.cast(), iov_len: len });
            out.len += len;
        });
        out
    }

    /// One list after another.
    pub fn concat(lists: &[Iov]) -> Iov {
        match lists {
            [one] => one.clone(),
            _ => Iov {
                parts: lists.iter().flat_map(|list| list.parts.iter().copied()).collect(),
                len: lists.iter().map(Iov::len).sum(),
                owner: Rc::new(lists.iter().map(|list| list.owner.clone()).collect::<Vec<_>>()),
            },
        }
    }

    /// Copies from the list, from byte `start` on, as much as both sides have; returns how much.
    pub fn copy_to(&self, start: usize, into: &mut [u8]) -> usize {
        let mut done = 0;
        self.each(start, into.len(), |base, len| {
            // SAFETY: `each` yields ranges that the owner keeps mapped, and no more than `into.len()` in all.
            unsafe { ptr::copy_nonoverlapping(base, into.as_mut_ptr().add(done), len) };
            done += len;
        });
        done
    }

    /// Copies into the list, from byte `start` on, as much as both sides have; returns how much.
    pub fn copy_from(&self, start: usize, from: &[u8]) -> usize {
        let mut done = 0;
        self.each(start, from.len(), |base, len| {
            // SAFETY: as in `copy_to`.
            unsafe { ptr::copy_nonoverlapping(from.as_ptr().add(done), base, len) };
            done += len;
        });
        done
    }

    /// Copies what `from` holds to byte `start` of this list.
    pub fn copy_from_iov(&self, start: usize, from: &Iov) {
        let mut at = start;
        for part in &from.parts {
            let mut done = 0;
            self.each(at, part.iov_len, |base, len| {
                // SAFETY: both owners keep their ranges mapped; guest memory may overlap, so `ptr::copy`.
                unsafe { ptr::copy(part.iov_base.cast::<u8>().add(done), base, len) };
                done += len;
            });
            at += part.iov_len;
        }
    }

    /// Sets `len` bytes from `start` on.
    pub fn fill(&self, start: usize, len: usize, byte: u8) {
        self.each(start, len, |base, len| {
            // SAFETY: as in `copy_to`.
            unsafe { ptr::write_bytes(base, byte, len) };
        });
    }

    /// Whether all bytes are zeros, as they are now: a guest may change them meanwhile.
    pub fn is_zero(&self) -> bool {
        let mut block = [0; ZERO_BLOCK];
        (0..self.len).step_by(ZERO_BLOCK).all(|at| {
            let copied = self.copy_to(at, &mut block[..(self.len - at).min(ZERO_BLOCK)]);
            block[..copied].iter().fold(0, |seen, &byte| seen | byte) == 0
        })
    }

    /// A copy of all bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = vec![0; self.len];
        self.copy_to(0, &mut out);
        out
    }

    /// Whether address and length of every range are multiples of `align` (a power of two).
    pub fn is_aligned(&self, align: usize) -> bool {
        self.parts.iter().all(|part| (part.iov_base as usize | part.iov_len) & (align - 1) == 0)
    }

    /// Calls `f` for each piece of the `len` bytes from `start` on.
    fn each(&self, start: usize, len: usize, mut f: impl FnMut(*mut u8, usize)) {
        let (mut skip, mut left) = (start, len);
        for part in &self.parts {
            if left == 0 {
                return;
            }
            if skip >= part.iov_len {
                skip -= part.iov_len;
                continue;
            }
            let take = left.min(part.iov_len - skip);
            // The sum stays inside the range: skip < iov_len.
            f(part.iov_base.cast::<u8>().wrapping_add(skip), take);
            left -= take;
            skip = 0;
        }
    }
}

impl std::fmt::Debug for Iov {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Iov({} bytes in {} parts)", self.len, self.parts.len())
    }
}

/// Memory of one thread at a time, aligned to [`BUFFER_ALIGN`] bytes: what a processor copies between it and the page
/// cache it copies half as fast again as where it is not aligned, as long vectors are not.
pub struct AlignedBytes {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory belongs to it alone.
unsafe impl Send for AlignedBytes {}

impl AlignedBytes {
    /// `len` zero bytes.
    pub fn new(len: usize) -> AlignedBytes {
        // At least one byte: a zero-sized allocation has no address.
        let Ok(layout) = Layout::from_size_align(len.max(1), BUFFER_ALIGN) else {
            handle_alloc_error(Layout::new::<u8>())
        };
        // SAFETY: the size is not zero.
        match NonNull::new(unsafe { alloc_zeroed(layout) }) {
            Some(base) => AlignedBytes { base, layout },
            None => handle_alloc_error(layout),
        }
    }

    /// How many bytes of memory it is.
    pub fn capacity(&self) -> usize {
        self.layout.size()
    }

    /// The first `len` bytes, of new memory where there are fewer. What they hold is left from before.
    pub fn first(&mut self, len: usize) -> &mut [u8] {
        if len > self.capacity() {
            *self = AlignedBytes::new(len);
        }
        // SAFETY: base and size are the allocation's, all of it was written, and nobody else refers to it.
        let all = unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.capacity()) };
        &mut all[..len]
    }
}

impl Default for AlignedBytes {
    fn default() -> AlignedBytes {
        AlignedBytes::new(0)
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, freed once.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}

/// Memory of our own for requests, zeroed and aligned to [`BUFFER_ALIGN`] bytes.
pub struct Buffer(Rc<AlignedBytes>);

impl Buffer {
    /// `len` zero bytes.
    pub fn new(len: usize) -> Buffer {
        Buffer(Rc::new(AlignedBytes::new(len)))
    }

    /// A copy of `bytes`.
    pub fn from_bytes(bytes: &[u8]) -> Buffer {
        let buffer = Buffer::new(bytes.len());
        let iov = buffer.iov(bytes.len());
        iov.copy_from(0, bytes);
        buffer
    }

    /// Length in bytes, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "none is")]
    pub fn len(&self) -> usize {
        self.0.layout.size()
    }

    /// The memory, with what a finished request left there.
    ///
    /// # Errors
    /// When a list over it is still about (a request in flight).
    pub fn into_bytes(self) -> Result<AlignedBytes> {
        Rc::into_inner(self.0).ok_or_else(|| Error::new(Kind::Io, "a finished read holds its buffer"))
    }

    /// The first `len` bytes as a list.
    pub fn iov(&self, len: usize) -> Iov {
        let len = len.min(self.len());
        // SAFETY: the memory lives as long as the `Rc` in the list; `bytes` hands out references only while
        // no list exists.
        unsafe { Iov::new([(self.0.base.as_ptr(), len)], self.0.clone()) }
    }

    /// The bytes, unless a list over them is still about (a request in flight).
    pub fn bytes(&mut self) -> Option<&mut [u8]> {
        let len = self.len();
        // The `Rc` is the only one, so no list points here.
        Rc::get_mut(&mut self.0).map(|memory| memory.first(len))
    }
}

impl From<AlignedBytes> for Buffer {
    fn from(bytes: AlignedBytes) -> Buffer {
        Buffer(Rc::new(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_of_slices_see_the_same_bytes() {
        let bytes: Vec<u8> = (0..=255).collect();
        let (a, b) = (Buffer::from_bytes(&bytes[..100]), Buffer::from_bytes(&bytes[100..]));
        let all = Iov::concat(&[a.iov(100), b.iov(156)]);
        assert_eq!(all.to_vec(), bytes);
        for (start, len) in [(0, 256), (0, 0), (99, 2), (100, 100), (250, 100), (256, 1)] {
            let expect = &bytes[start..(start + len).min(256)];
            assert_eq!(all.slice(start, len).to_vec(), expect, "{start}+{len}");
        }
        assert_eq!(all.slice(90, 100).slice(5, 20).to_vec(), bytes[95..115]);
    }

    #[test]
    fn a_single_byte_anywhere_is_not_zeros() {
        for len in [1, 4095, 4096, 4097, 10_000] {
            let list = Iov::concat(&[Buffer::new(7).iov(7), Buffer::new(len).iov(len)]);
            assert!(list.is_zero());
            for at in [0, len / 2, len + 6] {
                list.fill(at, 1, 1);
                assert!(!list.is_zero(), "{at} of {len}");
                list.fill(at, 1, 0);
            }
        }
    }

    #[test]
    fn copies_and_fills_cross_part_borders() {
        let all = Iov::concat(&[Buffer::new(3).iov(3), Buffer::new(5).iov(5)]);
        assert_eq!(all.copy_from(1, b"abcd"), 4);
        all.fill(5, 2, b'x');
        assert_eq!(all.to_vec(), b"\0abcdxx\0");
        let other = Iov::concat(&[Buffer::new(4).iov(4), Buffer::new(4).iov(4)]);
        other.copy_from_iov(2, &all.slice(1, 5));
        assert_eq!(other.to_vec(), b"\0\0abcdx\0");
    }

    #[test]
    fn memory_grows_and_changes_hands() {
        let mut bytes = AlignedBytes::default();
        bytes.first(3).copy_from_slice(b"abc");
        assert_eq!(bytes.first(2), b"ab");
        assert_eq!(bytes.first(10_000), [0; 10_000]);
        assert!(bytes.first(1).as_ptr().addr().is_multiple_of(BUFFER_ALIGN));
        bytes.first(3).copy_from_slice(b"def");
        let buffer = Buffer::from(bytes);
        let iov = buffer.iov(3);
        assert_eq!(iov.to_vec(), b"def");
        assert!(buffer.into_bytes().is_err(), "a request may be in flight");
        assert!(Buffer::new(1).into_bytes().is_ok());
    }

    #[test]
    fn bytes_are_lent_only_when_no_list_is_about() {
        let mut buffer = Buffer::new(8);
        let iov = buffer.iov(8);
        assert!(buffer.bytes().is_none());
        drop(iov);
        assert!(buffer.bytes().is_some());
    }
}
