//! Writes a bootstrap.

use crate::tree::ValidTree;

/// Soon.
pub fn write_bootstrap(tree: &ValidTree) -> Vec<u8> {
    let _ = (tree.node(tree.tree().root), tree.parent(tree.tree().root));
    Vec::new()
}
