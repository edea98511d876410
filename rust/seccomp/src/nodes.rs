//! The open nodes, by the inode of the socket that the program has in their place: dups and forks
//! have the same.

use rustix::io::Errno;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vduse_framework::IrqGate;

/// An open node.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// What its owner calls it.
    pub(crate) key: u64,
    /// Where its irqs go at once; `None`: they are calls like others.
    pub(crate) gate: Option<Arc<IrqGate>>,
}

/// The table.
#[derive(Debug, Default)]
pub(crate) struct Nodes(Mutex<HashMap<u64, Node>>);

impl Nodes {
    /// `EXIST`: there is one.
    pub(crate) fn add(&self, inode: u64, node: Node) -> Result<(), Errno> {
        let mut nodes = self.lock();
        if nodes.contains_key(&inode) {
            return Err(Errno::EXIST);
        }
        nodes.insert(inode, node);
        Ok(())
    }

    /// Nothing where there is none.
    pub(crate) fn remove(&self, inode: u64) {
        self.lock().remove(&inode);
    }

    /// The node, for one call.
    pub(crate) fn get(&self, inode: u64) -> Option<Node> {
        self.lock().get(&inode).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Node>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_lives_from_add_to_remove() {
        let (nodes, key) = (Nodes::default(), |node: Option<Node>| {
            node.map(|node| node.key)
        });
        let node = |key| Node { key, gate: None };
        nodes.add(5, node(1)).unwrap();
        assert_eq!(nodes.add(5, node(2)), Err(Errno::EXIST));
        assert_eq!((key(nodes.get(5)), key(nodes.get(6))), (Some(1), None));
        nodes.remove(5);
        nodes.remove(5);
        assert_eq!(key(nodes.get(5)), None);
        assert_eq!(nodes.add(5, node(2)), Ok(()));
    }
}
