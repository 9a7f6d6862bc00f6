//! The machines of a run: one for each node, those that join late included, and a spare one.
//!
//! As a slice they are those of the nodes. The spare one has the number behind theirs. Nothing runs on
//! it but a copy of some node's directory: what is asked of all nodes is not asked of it, and no client
//! knows it.

use std::ops::{Deref, DerefMut, Index, IndexMut};

use super::Machine;
use crate::random::Random;
use crate::rings::RingConfig;

/// The machines.
pub(crate) struct Machines {
    nodes: Vec<Machine>,
    spare: Machine,
}

impl Machines {
    pub(crate) fn new(founders: usize, rings: &RingConfig, random: &Random) -> Machines {
        let (late, mode) = (rings.late, rings.mode);
        let machine = |node| Machine::new(node, founders, mode, random.clone());
        Machines {
            nodes: (0..founders + late).map(machine).collect(),
            spare: machine(founders + late),
        }
    }

    /// The number of the spare one.
    pub(crate) fn spare(&self) -> usize {
        self.nodes.len()
    }
}

impl Deref for Machines {
    type Target = [Machine];

    fn deref(&self) -> &[Machine] {
        &self.nodes
    }
}

impl DerefMut for Machines {
    fn deref_mut(&mut self) -> &mut [Machine] {
        &mut self.nodes
    }
}

impl Index<usize> for Machines {
    type Output = Machine;

    fn index(&self, node: usize) -> &Machine {
        self.nodes.get(node).unwrap_or(&self.spare)
    }
}

impl IndexMut<usize> for Machines {
    fn index_mut(&mut self, node: usize) -> &mut Machine {
        self.nodes.get_mut(node).unwrap_or(&mut self.spare)
    }
}
