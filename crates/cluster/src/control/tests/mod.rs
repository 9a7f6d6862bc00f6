//! Whole clusters of control parts in one process, over a network and disks that fail.

mod birth;
mod chaos;
mod fuzz;
mod life;
mod rings;
mod sim;
