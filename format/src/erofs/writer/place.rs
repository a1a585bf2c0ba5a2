//! Packs inodes one behind the other.
//!
//! An inode with an inline tail must not cross a block, any other may. So that no space is lost, one that does
//! not fit into what is left of the block waits until others have crossed into the next.

use std::collections::VecDeque;

use crate::ids::BLOCK_SIZE;
use crate::tree::NodeId;

use super::super::ondisk::INODE_UNIT;

/// Most inodes that wait. Keeps them near their directory, and each step's search short; where nothing but
/// inline inodes come, choosing among so many still fills blocks well.
const MAX_WAITING: usize = 32;

pub(super) struct Placer {
    next: u64,
    waiting: VecDeque<(NodeId, u64)>,
    offsets: Vec<u64>,
}

impl Placer {
    pub(super) fn new(start: u64, nodes: usize) -> Self {
        Self { next: start.next_multiple_of(INODE_UNIT), waiting: VecDeque::new(), offsets: vec![0; nodes] }
    }

    /// An inode that may cross a block.
    pub(super) fn anywhere(&mut self, node: NodeId, length: u64) {
        self.place(node, length);
        self.retry();
    }

    /// An inode of at most a block that must lie in one.
    pub(super) fn in_one_block(&mut self, node: NodeId, length: u64) {
        if self.fits(length) {
            self.place(node, length);
            return self.retry();
        }
        self.waiting.push_back((node, length));
        if self.waiting.len() > MAX_WAITING {
            self.next_block();
        }
    }

    /// Places all that wait.
    pub(super) fn flush(&mut self) {
        while !self.waiting.is_empty() {
            self.next_block();
        }
    }

    /// Space that is not an inode's.
    pub(super) fn reserve(&mut self, length: u64) -> u64 {
        let at = self.next;
        self.next = (at + length).next_multiple_of(INODE_UNIT);
        at
    }

    /// Every node's offset, and where the inodes end.
    pub(super) fn finish(mut self) -> (Vec<u64>, u64) {
        self.flush();
        (self.offsets, self.next)
    }

    fn next_block(&mut self) {
        self.next = self.next.next_multiple_of(BLOCK_SIZE);
        self.retry();
    }

    fn fits(&self, length: u64) -> bool {
        self.next % BLOCK_SIZE + length <= BLOCK_SIZE
    }

    fn place(&mut self, node: NodeId, length: u64) {
        self.offsets[node.0 as usize] = self.next;
        self.next = (self.next + length).next_multiple_of(INODE_UNIT);
    }

    /// Places those that fit by now, longest waiting first.
    fn retry(&mut self) {
        let mut at = 0;
        while let Some(&(node, length)) = self.waiting.get(at) {
            if self.fits(length) {
                self.waiting.remove(at);
                self.place(node, length);
            } else {
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::to_usize;

    #[test]
    fn nothing_is_lost_between_inodes() {
        let mut placer = Placer::new(1152, 200);
        for number in 0..100_u32 {
            placer.in_one_block(NodeId(2 * number), 64 + u64::from(number) * 37 % 1500);
            placer.anywhere(NodeId(2 * number + 1), 96);
        }
        let sizes = |id: u32| if id.is_multiple_of(2) { 64 + u64::from(id / 2) * 37 % 1500 } else { 96 };
        let (offsets, end) = placer.finish();
        let mut order: Vec<_> = (0..200).map(|id| (offsets[to_usize(u64::from(id))], sizes(id))).collect();
        order.sort_unstable();
        let used: u64 = order.iter().map(|(_, size)| size.next_multiple_of(32)).sum();
        assert!(end - 1152 - used < BLOCK_SIZE, "{} bytes lost", end - 1152 - used);
        assert!(order.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
        for id in (0..200).step_by(2) {
            let start = offsets[to_usize(u64::from(id))];
            assert_eq!(start / BLOCK_SIZE, (start + sizes(id) - 1) / BLOCK_SIZE);
        }
    }
}
