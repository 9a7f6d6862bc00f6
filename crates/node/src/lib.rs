//! The running database. (In progress.)

pub mod api;
