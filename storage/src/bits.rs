//! A fixed set of small numbers, shared between threads without a lock.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Words of a page.
const PAGE: usize = 64;

/// Bits of a page: 64 of each word.
const PAGE_BITS: u32 = 4096;

type Page = Box<[AtomicU64; PAGE]>;

/// Bits that threads set, clear and test; each operation on a bit synchronises with the others on it. Memory is taken for
/// pages of 4096 bits in which one has been set, so that a large set of which little is used takes little.
#[derive(Debug)]
pub(crate) struct Bits(Box<[OnceLock<Page>]>);

fn page() -> Page {
    Box::new([const { AtomicU64::new(0) }; PAGE])
}

impl Bits {
    /// `count` bits, all clear.
    pub(crate) fn new(count: u32) -> Self {
        Self((0..count.div_ceil(PAGE_BITS)).map(|_| OnceLock::new()).collect())
    }

    /// Bits from bytes, the lowest bit of the first byte being bit 0. Missing bytes are clear bits.
    pub(crate) fn from_bytes(count: u32, bytes: &[u8]) -> Self {
        let bits = Self::new(count);
        for (slot, bytes) in bits.0.iter().zip(bytes.chunks(8 * PAGE)) {
            if bytes.iter().all(|byte| *byte == 0) {
                continue;
            }
            for (word, bytes) in slot.get_or_init(page).iter().zip(bytes.chunks(8)) {
                let mut full = [0; 8];
                full[..bytes.len()].copy_from_slice(bytes);
                word.store(u64::from_le_bytes(full), Ordering::Relaxed);
            }
        }
        bits
    }

    /// The word of a bit, if any of its page has ever been set, and the bit in it.
    fn word(&self, bit: u32) -> (Option<&AtomicU64>, u64) {
        let page = self.0.get((bit / PAGE_BITS) as usize).and_then(OnceLock::get);
        (page.and_then(|page| page.get((bit % PAGE_BITS / 64) as usize)), 1 << (bit % 64))
    }

    pub(crate) fn get(&self, bit: u32) -> bool {
        let (word, mask) = self.word(bit);
        word.is_some_and(|w| w.load(Ordering::Acquire) & mask != 0)
    }

    pub(crate) fn set(&self, bit: u32) {
        let Some(slot) = self.0.get((bit / PAGE_BITS) as usize) else { return };
        slot.get_or_init(page)[(bit % PAGE_BITS / 64) as usize].fetch_or(1 << (bit % 64), Ordering::AcqRel);
    }

    /// Sets a bit; where it is set already, the cache line stays shared.
    pub(crate) fn set_if_clear(&self, bit: u32) {
        if !self.get(bit) {
            self.set(bit);
        }
    }

    /// Clears all.
    pub(crate) fn clear(&self) {
        let words = self.0.iter().filter_map(OnceLock::get).flat_map(|page| page.iter());
        words.for_each(|word| word.store(0, Ordering::Release));
    }

    /// Makes each bit what it is in `others`, of which there are as many.
    pub(crate) fn replace(&self, others: &Self) {
        for (slot, other) in self.0.iter().zip(&others.0) {
            let Some(other) = other.get() else {
                slot.get().into_iter().flat_map(|page| page.iter()).for_each(|word| word.store(0, Ordering::Release));
                continue;
            };
            for (word, other) in slot.get_or_init(page).iter().zip(other.iter()) {
                word.store(other.load(Ordering::Acquire), Ordering::Release);
            }
        }
    }

    /// Clears a bit and says whether it was set.
    pub(crate) fn take(&self, bit: u32) -> bool {
        let (word, mask) = self.word(bit);
        // The load first: it keeps the cache line shared in the usual case.
        self.get(bit) && word.is_some_and(|w| w.fetch_and(!mask, Ordering::AcqRel) & mask != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_set_taken_and_loaded() {
        let bits = Bits::new(70);
        assert!(!bits.get(69));
        bits.set(69);
        bits.set(3);
        assert!(bits.get(69) && bits.get(3) && !bits.get(4));
        assert!(bits.take(69) && !bits.take(69) && !bits.get(69));
        bits.set(100_000);
        assert!(!bits.get(100_000) && !bits.take(100_000), "a bit beyond the end stays clear");

        let bits = Bits::from_bytes(70, &[0b1000_0001, 0, 0, 0, 0, 0, 0, 0, 2]);
        let set = |bits: &Bits| (0..70).filter(|&b| bits.get(b)).collect::<Vec<u32>>();
        assert_eq!(set(&bits), [0, 7, 65]);
        let other = Bits::new(70);
        other.set_if_clear(1);
        other.replace(&bits);
        assert_eq!(set(&other), [0, 7, 65]);
        other.clear();
        assert!(set(&other).is_empty());
    }

    #[test]
    fn memory_is_taken_for_what_is_used() {
        let pages = |bits: &Bits| bits.0.iter().filter(|page| page.get().is_some()).count();
        let bits = Bits::new(1 << 25);
        assert_eq!((bits.0.len(), pages(&bits)), (1 << 13, 0));
        assert!(!bits.get(5_000_000) && !bits.take(5_000_000));
        bits.set(5_000_000);
        bits.set(5_000_001);
        assert_eq!(pages(&bits), 1);
        let mut bytes = vec![0; 4 << 20];
        bytes[3 << 20] = 1;
        let others = Bits::from_bytes(1 << 25, &bytes);
        assert_eq!(pages(&others), 1);
        bits.replace(&others);
        assert!(bits.get(3 << 23) && !bits.get(5_000_000));
    }
}
