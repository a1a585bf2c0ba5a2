//! A fixed set of small numbers, shared between threads without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bits that threads set, clear and test; each operation on a bit synchronises with the others on it.
#[derive(Debug)]
pub(crate) struct Bits(Box<[AtomicU64]>);

impl Bits {
    /// `count` bits, all clear.
    pub(crate) fn new(count: u32) -> Self {
        Self((0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    /// Bits from bytes, the lowest bit of the first byte being bit 0. Missing bytes are clear bits.
    pub(crate) fn from_bytes(count: u32, bytes: &[u8]) -> Self {
        let bits = Self::new(count);
        for (word, bytes) in bits.0.iter().zip(bytes.chunks(8)) {
            let mut full = [0; 8];
            full[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_le_bytes(full), Ordering::Relaxed);
        }
        bits
    }

    fn word(&self, bit: u32) -> (Option<&AtomicU64>, u64) {
        (self.0.get((bit / 64) as usize), 1 << (bit % 64))
    }

    pub(crate) fn get(&self, bit: u32) -> bool {
        let (word, mask) = self.word(bit);
        word.is_some_and(|w| w.load(Ordering::Acquire) & mask != 0)
    }

    pub(crate) fn set(&self, bit: u32) {
        let (word, mask) = self.word(bit);
        if let Some(word) = word {
            word.fetch_or(mask, Ordering::AcqRel);
        }
    }

    /// Sets a bit; where it is set already, the cache line stays shared.
    pub(crate) fn set_if_clear(&self, bit: u32) {
        if !self.get(bit) {
            self.set(bit);
        }
    }

    /// Clears all.
    pub(crate) fn clear(&self) {
        self.0.iter().for_each(|word| word.store(0, Ordering::Release));
    }

    /// Makes each bit what it is in `others`, of which there are as many.
    pub(crate) fn replace(&self, others: &Self) {
        for (word, other) in self.0.iter().zip(&others.0) {
            word.store(other.load(Ordering::Acquire), Ordering::Release);
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
        bits.set(1000);
        assert!(!bits.get(1000), "a bit beyond the end stays clear");

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
}
